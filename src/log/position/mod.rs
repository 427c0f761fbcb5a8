//! What a reader of the log has seen: the set of transactions of a Postgres snapshot.
//!
//! Transactions commit in an order that neither their ids nor the events' `seq` show, so no number can say where a reader is:
//! a lower one may become visible after a higher one was read. A snapshot can. It names every transaction that had ended,
//! and an event is new to it exactly when its transaction is not in the set. Nobody waits for an open transaction, and none
//! is ever declared dead: it is one open id in the set until it ends, and new when it commits.
//!
//! - A snapshot of Postgres is `xmin:xmax:xip`: all ids below `xmax` have ended but those in `xip` (["System Information
//!   Functions", `pg_snapshot`](https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT)). Of the
//!   ended ones only the committed ones left events, so the set may well contain the others.
//! - What has ended stays so. Hence the positions of one primary are ordered by inclusion, whichever node took them.
//! - That holds through a crash only for ids that are on disk: others are handed out again. [`RawSnapshot::clamp`] cuts a
//!   position at the highest id whose event shows, and events show only once they are on disk.
//! - A read from `A` to `B` delivers in `seq` order. Inside it, after the event `k`, a reader has seen `A`, and of `B` what
//!   has `seq <= k`; after its last event, plain `B`.
//!
//! The text is `{epoch}-{A}` or `{epoch}-{A}~{B}~{k}`, for each position exactly one; `A` and `B` as [`Snapshot`] has them,
//! or where that is longer than [`SET_BYTES_MAX`], a `.` and the set's name (see [`named`](super::named)).

mod snapshot;
mod text;

#[cfg(test)]
pub(crate) mod tests;

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

pub use snapshot::{LogAhead, NotASet, NotASnapshot, RawSnapshot, Snapshot};
use text::{NAMED, is_name, whole_number, write_number};
pub use text::{ParseError, SET_BYTES_MAX, TEXT_BYTES_MAX};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

/// Which life of the log a position is from: 1 to 16 of `a-z` and `0-9`. Positions of different epochs have nothing to do
/// with each other. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Arc<str>);

/// Characters of an [`Epoch`] at most.
const EPOCH_CHARS_MAX: usize = 16;

impl Epoch {
    /// The epoch's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Epoch {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_char = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_epoch = (1..=EPOCH_CHARS_MAX).contains(&text.len()) && text.bytes().all(is_char);
        is_epoch.then(|| Self(text.into())).ok_or(ParseError::Epoch)
    }
}

/// What a reader has seen, and where it resumes: a settled snapshot `A`, or inside a read `A~B~k`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position(Extent);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Extent {
    Settled { epoch: Epoch, seen: Snapshot },
    Within { reading: Reading, k: i64 },
}

impl Position {
    /// The position that has seen exactly `seen`.
    pub fn settled(epoch: Epoch, seen: Snapshot) -> Self {
        Self(Extent::Settled { epoch, seen })
    }

    /// The position after event `k` of the read from `a` to `b`. For many `k` of one read, use [`Reading::at`].
    ///
    /// # Errors
    /// `b` is `a` or does not include it, or `k` is less than 1.
    pub fn within(epoch: Epoch, a: Snapshot, b: Snapshot, k: i64) -> Result<Self, NotARead> {
        let reading = Reading::new(epoch, a, b)?;
        if k < 1 {
            return Err(NotARead);
        }
        Ok(reading.at(k))
    }

    /// Which life of the log it is from.
    pub fn epoch(&self) -> &Epoch {
        match &self.0 {
            Extent::Settled { epoch, .. } => epoch,
            Extent::Within { reading, .. } => &reading.0.epoch,
        }
    }

    /// `A`: the transactions that were seen whole. It is what must include the floor for the position to be resumable.
    pub fn base(&self) -> &Snapshot {
        match &self.0 {
            Extent::Settled { seen, .. } => seen,
            Extent::Within { reading, .. } => &reading.0.a,
        }
    }

    /// `B` and `k` of a position inside a read: of `B`'s transactions, the events of `seq <= k` were seen.
    pub fn rest(&self) -> Option<(&Snapshot, i64)> {
        match &self.0 {
            Extent::Settled { .. } => None,
            Extent::Within { reading, k } => Some((&reading.0.b, *k)),
        }
    }

    /// The transactions of which something may have been seen: `B`, or `A` when settled. A read can take over from here when
    /// its own snapshot includes this.
    pub fn reach(&self) -> &Snapshot {
        self.rest().map_or_else(|| self.base(), |(b, _)| b)
    }

    /// Whether event `seq` of transaction `xact` was seen.
    pub fn contains(&self, xact: u64, seq: i64) -> bool {
        self.base().contains(xact) || self.rest().is_some_and(|(b, k)| seq <= k && b.contains(xact))
    }

    /// Whether all events of `snapshot` were seen. Only `A` counts, even if `k` happens to be the last event's.
    pub fn includes(&self, snapshot: &Snapshot) -> bool {
        self.base().includes(snapshot)
    }

    /// Whether every event that `other` has seen was seen here, whatever events its transactions have. Never across epochs.
    pub fn includes_position(&self, other: &Self) -> bool {
        self.epoch() == other.epoch() && self.includes(other.base()) && self.includes_rest(other)
    }

    /// Whether `self`, which includes `other`'s `A`, also has what `other` has seen of its `B`.
    fn includes_rest(&self, other: &Self) -> bool {
        let Some((theirs, their_k)) = other.rest() else {
            return true;
        };
        self.includes(theirs) || self.rest().is_some_and(|(ours, k)| their_k <= k && ours.includes(theirs))
    }
}

impl PartialSchema for Position {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(TEXT_BYTES_MAX));
        let text = text.description(Some("A position in the event log. Opaque, store it and send it back."));
        text.examples(["d781d231--W"]).into()
    }
}

impl ToSchema for Position {
    /// What clients call it.
    fn name() -> Cow<'static, str> {
        "Cursor".into()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Extent::Settled { epoch, seen } => write!(f, "{epoch}-{}", InId(seen)),
            Extent::Within { reading, k } => reading.write_id(f, *k),
        }
    }
}

/// A set as ids have it.
struct InId<'a>(&'a Snapshot);

impl fmt::Display for InId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.name() {
            None => self.0.fmt(f),
            Some(name) => write!(f, "{NAMED}{name}"),
        }
    }
}

/// The names that a text has in place of sets.
pub(super) fn names(text: &str) -> Vec<&str> {
    let (_, sets) = text.split_once('-').filter(|_| text.len() <= TEXT_BYTES_MAX).unwrap_or_default();
    sets.split('~').filter_map(|set| set.strip_prefix(NAMED)).filter(|name| is_name(name)).collect()
}

/// Takes what [`Display`](fmt::Display) writes, where it has no name.
impl FromStr for Position {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text, |_| None)
    }
}

impl Position {
    /// Takes exactly what [`Display`](fmt::Display) writes, up to [`TEXT_BYTES_MAX`]. `find` says which set has a name.
    ///
    /// # Errors
    /// [`ParseError::Named`] when it does not know one.
    pub fn parse(text: &str, find: impl Fn(&str) -> Option<Snapshot>) -> Result<Self, ParseError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ParseError::TooLong);
        }
        let (epoch, sets) = text.split_once('-').ok_or(ParseError::Parts)?;
        let epoch = epoch.parse()?;
        let set = |text: &str| match text.strip_prefix(NAMED) {
            Some(name) if is_name(name) => {
                let found = find(name).filter(|set| set.name().is_some_and(|own| own == name));
                found.ok_or(ParseError::Named)
            }
            None if text.len() > SET_BYTES_MAX => Err(ParseError::TooLong),
            _ => text.parse(),
        };
        let mut parts = sets.split('~');
        match [parts.next(), parts.next(), parts.next(), parts.next()] {
            [Some(seen), None, ..] => Ok(Self::settled(epoch, set(seen)?)),
            [Some(a), Some(b), Some(k), None] => {
                let k = i64::try_from(whole_number(k)?).map_err(|_| ParseError::Number)?;
                Self::within(epoch, set(a)?, set(b)?, k).map_err(|NotARead| ParseError::Read)
            }
            _ => Err(ParseError::Parts),
        }
    }
}

/// A read from snapshot `A` to `B`: makes the positions inside it, which share both sets and all of their text but `k`.
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reading(Arc<Read>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Read {
    epoch: Epoch,
    a: Snapshot,
    /// Includes `a`, and is not `a`.
    b: Snapshot,
    /// `{epoch}-{A}~{B}~`, encoded once.
    prefix: String,
}

/// `A~B~k` where `B` does not hold all of `A` and more, or `k` is less than 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not inside a read: B must hold all of A and more, and k be at least 1")]
pub struct NotARead;

impl Reading {
    /// The read from `a` to `b`.
    ///
    /// # Errors
    /// `b` is `a`, so that there is nothing to read, or does not include it.
    pub fn new(epoch: Epoch, a: Snapshot, b: Snapshot) -> Result<Self, NotARead> {
        if a == b || !b.includes(&a) {
            return Err(NotARead);
        }
        let prefix = format!("{epoch}-{}~{}~", InId(&a), InId(&b));
        Ok(Self(Arc::new(Read { epoch, a, b, prefix })))
    }

    /// Which life of the log it is in.
    pub fn epoch(&self) -> &Epoch {
        &self.0.epoch
    }

    /// `A`: what was seen before it.
    pub fn from(&self) -> &Snapshot {
        &self.0.a
    }

    /// `B`: what will have been seen after it.
    pub fn to(&self) -> &Snapshot {
        &self.0.b
    }

    /// The position after event `k`, which is its `seq`. Before the first, when `k` is less than 1, that is plain `A`.
    pub fn at(&self, k: i64) -> Position {
        if k < 1 {
            return Position::settled(self.0.epoch.clone(), self.0.a.clone());
        }
        Position(Extent::Within { reading: self.clone(), k })
    }

    /// The text of [`at`](Self::at).
    pub fn id(&self, k: i64) -> String {
        self.at(k).to_string()
    }

    /// The position after the last event: plain `B`.
    pub fn end(&self) -> Position {
        Position::settled(self.0.epoch.clone(), self.0.b.clone())
    }

    /// `k` is at least 1.
    fn write_id(&self, f: &mut fmt::Formatter<'_>, k: i64) -> fmt::Result {
        f.write_str(&self.0.prefix)?;
        write_number(f, k.unsigned_abs())
    }
}
