//! Sets of transactions, as Postgres's snapshots describe them.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

use super::text::{NUMBER_MAX, ParseError, SET_BYTES_MAX, name, take_number, write_number};

/// No id reaches this one: where what lies beyond a snapshot ends. Ids are 1 up to here, so that `end` of a range of ids is
/// a `bigint`, too.
const IDS_END: u64 = NUMBER_MAX;

/// No open range takes more of a text: two numbers of 63 bits. Neither does `xmax`.
const RANGE_BYTES_MAX: usize = 26;

/// The set of the transactions that were seen at one moment: all ids below `xmax` but the open ones.
///
/// Ids are as stored, so with the cluster's offset; the first is 1 (Postgres's own is 3). They are kept as the ranges that
/// are *not* in the set, in one normal form: ascending, neither empty nor touching, and `xmax - 1` is in the set. So equal
/// sets are equal values with equal texts, and a range costs the same however many ids it has. The empty set has `xmax` 1.
///
/// Its text is `xmax`, then from `xmax - 1` down in turn how many ids are seen and how many are open, each less 1, up to the
/// last open one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// One more than the highest id of the set; 1 to [`IDS_END`].
    xmax: u64,
    /// The ids below `xmax` that are not in the set.
    open: Arc<[Range<u64>]>,
}

/// The bounds are not those of a set of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("xmax is not in 1 to 2^63 - 1, or an open range is empty or not in 1 to xmax")]
pub struct NotASet;

impl Snapshot {
    /// The set of no transaction.
    pub fn empty() -> Self {
        Self { xmax: 1, open: Arc::default() }
    }

    /// The transactions below `xmax` that are in none of the ranges `open`, which may come in any order, overlap, and reach
    /// up to `xmax`.
    ///
    /// # Errors
    /// `xmax` is 0 or past 63 bits, or a range is empty, reversed, or has ids other than 1 to `xmax - 1`.
    pub fn from_parts(xmax: u64, open: Vec<Range<u64>>) -> Result<Self, NotASet> {
        let is_inside = |ids: &Range<u64>| 1 <= ids.start && ids.start < ids.end && ids.end <= xmax;
        if !(1..=IDS_END).contains(&xmax) || !open.iter().all(is_inside) {
            return Err(NotASet);
        }
        Ok(Self::normal(xmax, open))
    }

    /// Puts valid bounds into normal form.
    fn normal(mut xmax: u64, open: Vec<Range<u64>>) -> Self {
        let mut open = merged(open);
        // At most one range ends at `xmax`, as touching ones are merged.
        if let Some(last) = open.pop_if(|last| last.end == xmax) {
            xmax = last.start;
        }
        Self { xmax, open: open.into() }
    }

    /// One more than the highest id of the set; 1 when it is empty. At most `i64::MAX`.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The ids below `xmax` that are not in the set: ascending, neither empty nor touching, all below `xmax - 1`.
    pub fn open(&self) -> &[Range<u64>] {
        &self.open
    }

    /// The name that ids have for it, if its text is too long for them.
    pub fn name(&self) -> Option<String> {
        // The text of a few ranges is short, however large their numbers are.
        if self.open.len() < SET_BYTES_MAX / RANGE_BYTES_MAX {
            return None;
        }
        let text = self.to_string();
        (text.len() > SET_BYTES_MAX).then(|| name(&text))
    }

    /// Whether transaction `xact` was seen.
    pub fn contains(&self, xact: u64) -> bool {
        (1..self.xmax).contains(&xact) && self.open_from(xact).is_none_or(|ids| xact < ids.start)
    }

    /// Whether this set has all of `other`'s transactions.
    pub fn includes(&self, other: &Self) -> bool {
        // `other` has seen `other.xmax - 1`, so a lower `xmax` of ours lacks that one.
        self.xmax >= other.xmax && self.open.iter().take_while(|ids| ids.start < other.xmax).all(|ids| other.lacks(ids))
    }

    /// Whether not one of `ids`, which start below `xmax`, is in the set.
    fn lacks(&self, ids: &Range<u64>) -> bool {
        self.open_from(ids.start).is_some_and(|open| open.start <= ids.start && ids.end <= open.end)
    }

    /// The first open range that ends after `xact`.
    fn open_from(&self, xact: u64) -> Option<&Range<u64>> {
        self.open.get(self.open.partition_point(|ids| ids.end <= xact))
    }

    /// The ids of this set that are not in `other`: ascending, neither empty nor touching. What is read to get from `other`
    /// to here. Linear in the ranges of both.
    pub fn minus(&self, other: &Self) -> Vec<Range<u64>> {
        intersection(&self.seen(), &other.beyond())
    }

    /// All ids that are not in the set: the open ranges, then `xmax` up to `i64::MAX`, which no id reaches. Ascending,
    /// neither empty nor touching.
    pub fn beyond(&self) -> Vec<Range<u64>> {
        let later = self.xmax..IDS_END;
        self.open.iter().cloned().chain([later]).filter(|ids| !ids.is_empty()).collect()
    }

    /// The ids of the set.
    fn seen(&self) -> Vec<Range<u64>> {
        let starts = [1].into_iter().chain(self.open.iter().map(|ids| ids.end));
        let ends = self.open.iter().map(|ids| ids.start).chain([self.xmax]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|ids| !ids.is_empty()).collect()
    }
}

/// The same ids in ascending ranges that do not touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|ids| ids.start);
    ranges.dedup_by(|ids, before| {
        let touches = ids.start <= before.end;
        if touches {
            before.end = before.end.max(ids.end);
        }
        touches
    });
    ranges
}

/// The ids that are in both. Neighbours don't touch if those of `ours` and of `theirs` don't: two results that touched would
/// lie in one range of each, and be one result.
fn intersection(ours: &[Range<u64>], theirs: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut common = Vec::new();
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    while let (Some(our), Some(their)) = (ours.peek(), theirs.peek()) {
        let ids = our.start.max(their.start)..our.end.min(their.end);
        // The one that ends first meets nothing more.
        if our.end <= their.end {
            ours.next();
        } else {
            theirs.next();
        }
        if !ids.is_empty() {
            common.push(ids);
        }
    }
    common
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_number(f, self.xmax)?;
        let mut below = self.xmax;
        for ids in self.open.iter().rev() {
            write_number(f, below - ids.end - 1)?;
            write_number(f, ids.end - ids.start - 1)?;
            below = ids.start;
        }
        Ok(())
    }
}

/// Takes exactly what [`Display`](fmt::Display) writes. Time and memory are linear in the text; it has no bound of its own,
/// so that what was stored can always be read.
impl FromStr for Snapshot {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut rest = text.as_bytes();
        let xmax = take_number(&mut rest)?;
        let mut open = Vec::new();
        let mut below = xmax;
        while !rest.is_empty() {
            let ids = take_open(&mut rest, below)?;
            below = ids.start;
            open.push(ids);
        }
        open.reverse();
        // Runs of at least one id each are the normal form; what is left is that the first id is 1.
        let set = Self { xmax, open: open.into() };
        (below >= 1).then_some(set).ok_or(ParseError::Runs)
    }
}

/// Takes the lengths of a seen and an open run that lie under `below`, and says which ids are open.
fn take_open(text: &mut &[u8], below: u64) -> Result<Range<u64>, ParseError> {
    let seen = take_number(text)? + 1;
    let open = take_number(text)? + 1;
    let end = below.checked_sub(seen).ok_or(ParseError::Runs)?;
    let start = end.checked_sub(open).ok_or(ParseError::Runs)?;
    Ok(start..end)
}

/// What `pg_current_snapshot()` said, with the cluster's offset added to each id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSnapshot {
    xmin: u64,
    xmax: u64,
    xip: Vec<u64>,
}

/// The text is not a snapshot of Postgres, or the offset leads its ids out of `bigint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Postgres snapshot xmin:xmax:xip,.. with ids of 1 to 2^63 - 1 after the offset")]
pub struct NotASnapshot;

/// The log has an event of a transaction that this cluster has not ended: it was written by another one, or by an earlier
/// life of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log is ahead of the cluster: it shows transaction {top}, and the cluster's snapshot, of xmax {xmax}, does not"
)]
pub struct LogAhead {
    /// The highest id in the log.
    pub top: u64,
    /// The cluster's own `xmax`, offset included.
    pub xmax: u64,
}

impl RawSnapshot {
    /// Reads the text of `pg_current_snapshot()`, `xmin:xmax:xip,xip,..`, and adds `offset` to each id.
    ///
    /// # Errors
    /// Another text, one that breaks Postgres's own rules (`xip` ascending, from `xmin` to below `xmax`), or an id that is not
    /// in 1 to `i64::MAX` after the offset.
    pub fn parse(text: &str, offset: i64) -> Result<Self, NotASnapshot> {
        let id = |text: &str| shifted_id(text, offset).ok_or(NotASnapshot);
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or(NotASnapshot);
        let (xmin, xmax, running) = (id(part()?)?, id(part()?)?, part()?);
        let running = running.split(',').filter(|_| !running.is_empty());
        let xip = running.map(id).collect::<Result<Vec<_>, _>>()?;
        let is_inside = xmin <= xmax && xip.iter().all(|id| (xmin..xmax).contains(id));
        let is_snapshot = is_inside && xip.is_sorted_by(|one, next| one < next);
        is_snapshot.then_some(Self { xmin, xmax, xip }).ok_or(NotASnapshot)
    }

    /// The lowest id that was still open.
    pub fn xmin(&self) -> u64 {
        self.xmin
    }

    /// One more than the highest id that had ended.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The ids below `xmax` that were open, ascending.
    pub fn xip(&self) -> &[u64] {
        &self.xip
    }

    /// The position of this snapshot: what it has seen up to `top`, the highest id that shows in the log *in the same
    /// snapshot*, or the floor's `xmax - 1` if that is higher; 0 when there is neither.
    ///
    /// It must not claim more. After a crash Postgres hands out again the ids that never reached the disk; those up to an event
    /// that shows cannot be among them.
    ///
    /// # Errors
    /// This snapshot does not see `top`. To clamp to the lower number instead would lose events: the log must be adopted.
    pub fn clamp(&self, top: u64) -> Result<Snapshot, LogAhead> {
        if top >= self.xmax || self.xip.binary_search(&top).is_ok() {
            return Err(LogAhead { top, xmax: self.xmax });
        }
        let open = self.xip.iter().take_while(|&&id| id < top).map(|&id| id..id + 1).collect();
        Ok(Snapshot::normal(top + 1, open))
    }
}

fn shifted_id(text: &str, offset: i64) -> Option<u64> {
    let id = text.parse::<u64>().ok()?.checked_add_signed(offset)?;
    (1..=IDS_END).contains(&id).then_some(id)
}
