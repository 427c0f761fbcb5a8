//! A small model of a Postgres cluster with a log: transactions begin, publish, end and are lost in crashes in any order;
//! two nodes take positions at any moment; readers are cut anywhere and resume on either node. It is held against plain
//! sets of the transactions that had committed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};

use super::*;

/// A step of the cluster's life. An `Index` picks among what there is at that moment.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Begin,
    /// Ids that leave nothing in the log: a savepoint's (the transaction goes on), or of one that wrote elsewhere.
    Burn {
        ids: u64,
        ended: bool,
    },
    Publish {
        by: Index,
        events: i64,
    },
    Commit(Index),
    Rollback(Index),
    Look {
        node: usize,
    },
    /// Ids that no flushed commit has passed are handed out again from the picked one.
    Crash(Index),
    /// One of the positions taken so far becomes the floor; what it contains is deleted.
    Retain(Index),
}

pub(crate) fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Begin),
        1 => (1_u64..4, any::<bool>()).prop_map(|(ids, ended)| Step::Burn { ids, ended }),
        6 => (any::<Index>(), 1_i64..4).prop_map(|(by, events)| Step::Publish { by, events }),
        4 => any::<Index>().prop_map(Step::Commit),
        1 => any::<Index>().prop_map(Step::Rollback),
        4 => (0_usize..2).prop_map(|node| Step::Look { node }),
        1 => any::<Index>().prop_map(Step::Crash),
        1 => any::<Index>().prop_map(Step::Retain),
    ]
}

/// A position that a node took, and what had committed by then.
pub(crate) struct Cut {
    node: usize,
    pub(crate) seen: Snapshot,
    committed: BTreeSet<u64>,
}

/// Ids are as stored, with the offset.
pub(crate) struct Cluster {
    offset: i64,
    next_id: u64,
    /// One more than the highest id that has ended: the snapshot's `xmax`.
    ended: u64,
    pub(crate) next_seq: i64,
    /// The events of open transactions, by id.
    open: BTreeMap<u64, Vec<i64>>,
    /// The events of committed publishers, also of those that the floor has deleted.
    pub(crate) committed: BTreeMap<u64, Vec<i64>>,
    pub(crate) floor: Snapshot,
    pub(crate) cuts: Vec<Cut>,
}

impl Cluster {
    pub(crate) fn new(offset: i64) -> Self {
        // Postgres's first id is 3.
        let first = 3_u64.checked_add_signed(offset).unwrap();
        Self {
            offset,
            next_id: first,
            ended: first,
            next_seq: 1,
            open: BTreeMap::new(),
            committed: BTreeMap::new(),
            floor: Snapshot::empty(),
            cuts: Vec::new(),
        }
    }

    /// Looks before the first step and after the last one, on both nodes.
    fn after(offset: i64, steps: Vec<Step>) -> Self {
        let mut cluster = Self::new(offset);
        cluster.look(0);
        steps.into_iter().for_each(|step| cluster.step(step));
        cluster.look(0);
        cluster.look(1);
        cluster
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Begin => _ = self.begin(),
            Step::Burn { ids, ended } => self.burn(ids, ended),
            Step::Publish { by, events } => self.with_open(by, |cluster, id| cluster.publish(id, events)),
            Step::Commit(which) => self.with_open(which, Self::commit),
            Step::Rollback(which) => self.with_open(which, |cluster, id| _ = cluster.end(id)),
            Step::Look { node } => self.look(node),
            Step::Crash(from) => {
                let lost = self.next_id - self.flushed();
                self.crash(self.flushed() + 1 + u64::try_from(from.index(usize::try_from(lost).unwrap())).unwrap());
            }
            Step::Retain(which) => self.retain(which.index(self.cuts.len())),
        }
    }

    fn with_open(&mut self, which: Index, then: impl FnOnce(&mut Self, u64)) {
        if !self.open.is_empty() {
            let id = *self.open.keys().nth(which.index(self.open.len())).unwrap();
            then(self, id);
        }
    }

    pub(crate) fn begin(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(id, Vec::new());
        id
    }

    fn burn(&mut self, ids: u64, ended: bool) {
        self.next_id += ids;
        if ended {
            self.ended = self.next_id;
        }
    }

    pub(crate) fn publish(&mut self, id: u64, events: i64) {
        let seqs = self.next_seq..self.next_seq + events;
        self.next_seq += events;
        self.open.get_mut(&id).unwrap().extend(seqs);
    }

    pub(crate) fn commit(&mut self, id: u64) {
        let events = self.end(id);
        if !events.is_empty() {
            self.committed.insert(id, events);
        }
    }

    fn end(&mut self, id: u64) -> Vec<i64> {
        self.ended = self.ended.max(id + 1);
        self.open.remove(&id).unwrap()
    }

    /// The highest id that a crash cannot hand out again: an event that shows is on disk.
    fn flushed(&self) -> u64 {
        let before_first = 2_u64.checked_add_signed(self.offset).unwrap();
        self.committed.last_key_value().map_or(before_first, |(&id, _)| id)
    }

    fn crash(&mut self, next_id: u64) {
        assert!(self.flushed() < next_id && next_id <= self.next_id);
        self.open.clear();
        self.next_id = next_id;
        self.ended = next_id;
    }

    /// The floor only rises.
    fn retain(&mut self, cut: usize) {
        let mark = &self.cuts[cut].seen;
        if mark.includes(&self.floor) {
            self.floor = mark.clone();
        }
    }

    /// What `pg_current_snapshot()` says.
    fn raw(&self) -> String {
        let unshifted = |id: &u64| id.checked_add_signed(-self.offset).unwrap().to_string();
        let xip: Vec<_> = self.open.keys().take_while(|&&id| id < self.ended).collect();
        let xmin = xip.first().copied().unwrap_or(&self.ended);
        let list: Vec<_> = xip.iter().copied().map(unshifted).collect();
        format!("{}:{}:{}", unshifted(xmin), unshifted(&self.ended), list.join(","))
    }

    /// The highest id that shows in the log, or the floor's.
    fn top(&self) -> u64 {
        let shown = self.committed.keys().rfind(|&&id| !self.floor.contains(id));
        shown.copied().unwrap_or(0).max(self.floor.xmax() - 1)
    }

    pub(crate) fn now(&self) -> Snapshot {
        RawSnapshot::parse(&self.raw(), self.offset).unwrap().clamp(self.top()).unwrap()
    }

    pub(crate) fn look(&mut self, node: usize) {
        let committed = self.committed.keys().copied().collect();
        self.cuts.push(Cut { node, seen: self.now(), committed });
    }

    /// Each pair of a committed event.
    pub(crate) fn events(&self) -> impl Iterator<Item = (u64, i64)> {
        self.committed.iter().flat_map(|(&xact, seqs)| seqs.iter().map(move |&seq| (xact, seq)))
    }

    /// The events after `after` of the read from `a` to `b`, each with the position after it. They are looked up in what is
    /// in the log *now*, much later than either snapshot, as pages are.
    pub(crate) fn read(&self, a: &Snapshot, b: &Snapshot, after: i64) -> Vec<Frame> {
        let Ok(reading) = Reading::new(epoch(), a.clone(), b.clone()) else {
            assert_eq!(a, b);
            return Vec::new();
        };
        let ranges = b.minus(a);
        let is_new = |xact| ranges.iter().any(|range| range.contains(&xact));
        let mut frames: Vec<_> = self
            .events()
            .filter(|&(xact, seq)| is_new(xact) && seq > after)
            .map(|(_, seq)| Frame { seq, id: reading.id(seq) })
            .collect();
        frames.sort_by_key(|frame| frame.seq);
        if let Some(last) = frames.last_mut() {
            last.id = reading.end().to_string();
        }
        frames
    }

    /// What a reader at `from` gets from a node that is at `to`.
    fn resume(&self, from: &Position, to: &Snapshot) -> Vec<Frame> {
        let mut frames = from.rest().map_or_else(Vec::new, |(b, k)| self.read(from.base(), b, k));
        frames.extend(self.read(from.reach(), to, 0));
        frames
    }
}

/// An event on the wire.
pub(crate) struct Frame {
    pub(crate) seq: i64,
    pub(crate) id: String,
}

/// A reader that starts at a cluster's first cut.
struct Reader<'a> {
    cluster: &'a Cluster,
    position: Position,
    got: Vec<i64>,
}

impl<'a> Reader<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let position = Position::settled(epoch(), cluster.cuts[0].seen.clone());
        Self { cluster, position, got: Vec::new() }
    }

    /// Connects to `node` at one of the moments at which it takes over from here, and is cut after some events.
    fn visit(&mut self, node: usize, moment: Index, cut: Index) {
        let takes_over = |cut: &&Cut| cut.node == node && cut.seen.includes(self.position.reach());
        let moments: Vec<_> = self.cluster.cuts.iter().filter(takes_over).collect();
        let to = &moments[moment.index(moments.len())].seen;
        let frames = self.cluster.resume(&self.position, to);
        let stays = cut.index(frames.len() + 1);
        let all = stays == frames.len();
        frames.into_iter().take(stays).for_each(|frame| self.take(&frame));
        if all {
            // The heartbeat at the end of it.
            self.position = Position::settled(epoch(), to.clone());
        }
    }

    fn take(&mut self, frame: &Frame) {
        let position: Position = frame.id.parse().unwrap();
        assert_eq!(position.to_string(), frame.id);
        assert!(position.includes_position(&self.position) && !self.position.includes_position(&position));
        self.position = position;
        self.got.push(frame.seq);
        self.assert_claims_what_it_got();
    }

    fn assert_claims_what_it_got(&self) {
        let start = &self.cluster.cuts[0].committed;
        for (xact, seq) in self.cluster.events() {
            let got = start.contains(&xact) || self.got.contains(&seq);
            assert_eq!(self.position.contains(xact, seq), got, "{seq} of {xact} at {}", self.position);
        }
    }
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let offset = prop_oneof![Just(0), 0_i64..1 << 40];
    (offset, prop::collection::vec(any_step(), 0..90)).prop_map(|(offset, steps)| Cluster::after(offset, steps))
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "offset {}, committed {:?}, open {:?}", self.offset, self.committed, self.open)?;
        self.cuts.iter().try_for_each(|cut| writeln!(f, "node {}: {:?} {:?}", cut.node, cut.seen, cut.committed))
    }
}

proptest! {
    #[test]
    fn an_event_is_seen_exactly_when_its_transaction_had_committed(cluster in any_cluster()) {
        for cut in &cluster.cuts {
            let position = Position::settled(epoch(), cut.seen.clone());
            for (xact, seq) in cluster.events() {
                prop_assert_eq!(position.contains(xact, seq), cut.committed.contains(&xact), "{}", xact);
            }
        }
    }

    #[test]
    fn positions_of_any_node_are_ordered_by_inclusion(cluster in any_cluster()) {
        for (place, later) in cluster.cuts.iter().enumerate() {
            for earlier in &cluster.cuts[..place] {
                prop_assert!(later.seen.includes(&earlier.seen));
                prop_assert_eq!(earlier.seen.includes(&later.seen), earlier.seen == later.seen);
                prop_assert_eq!(earlier.seen == later.seen, earlier.seen.to_string() == later.seen.to_string());
                // A position that is the same has the same events; one with more events is another.
                prop_assert!(earlier.seen != later.seen || earlier.committed == later.committed);
            }
        }
    }

    #[test]
    fn a_difference_is_exactly_what_committed_in_between(cluster in any_cluster()) {
        for (place, later) in cluster.cuts.iter().enumerate() {
            for earlier in &cluster.cuts[..place] {
                let ranges = later.seen.minus(&earlier.seen);
                let new = cluster.committed.keys().copied().filter(|id| ranges.iter().any(|range| range.contains(id)));
                prop_assert_eq!(new.collect::<BTreeSet<_>>(), &later.committed - &earlier.committed);
                prop_assert_eq!(earlier.seen.minus(&later.seen), []);
            }
        }
    }

    #[test]
    fn beyond_a_position_is_exactly_what_commits_later(cluster in any_cluster()) {
        for cut in &cluster.cuts {
            let ranges = cut.seen.beyond();
            let is_new = |id: &u64| ranges.iter().any(|range| range.contains(id));
            prop_assert!(cluster.committed.keys().all(|id| is_new(id) != cut.committed.contains(id)));
        }
    }

    #[test]
    fn a_reader_cut_anywhere_gets_each_event_once_on_any_node(
        cluster in any_cluster(),
        visits: Vec<(bool, Index, Index)>,
        last: Index,
    ) {
        let mut reader = Reader::new(&cluster);
        for (node, moment, cut) in visits {
            reader.visit(usize::from(node), moment, cut);
        }
        let end = &cluster.cuts[cluster.cuts.len() - 1 - last.index(2)].seen;
        cluster.resume(&reader.position, end).iter().for_each(|frame| reader.take(frame));
        let mut got = reader.got;
        got.sort_unstable();
        let start = &cluster.cuts[0].committed;
        let mut all: Vec<_> = cluster.events().filter(|(xact, _)| !start.contains(xact)).map(|(_, seq)| seq).collect();
        all.sort_unstable();
        prop_assert_eq!(got, all);
    }
}

#[test]
fn ids_that_a_crash_hands_out_again_are_new_to_a_position_from_before() {
    let mut cluster = Cluster::new(0);
    let (shown, lost, open) = (cluster.begin(), cluster.begin(), cluster.begin());
    cluster.publish(shown, 1);
    cluster.publish(lost, 1);
    cluster.commit(shown);
    // Rolled back, never flushed: the raw snapshot says that it has ended.
    cluster.end(lost);
    cluster.burn(5, true);
    let before = cluster.now();
    assert_eq!(cluster.raw(), "5:11:5");

    cluster.crash(shown + 1);
    assert_eq!((cluster.begin(), cluster.begin()), (lost, open));
    for id in [lost, open] {
        cluster.publish(id, 1);
        cluster.commit(id);
        assert!(before.contains(shown) && !before.contains(id));
    }
    assert_eq!(cluster.now().minus(&before), [lost..open + 1]);
}

#[test]
fn a_transaction_open_for_long_is_new_when_it_commits() {
    let mut cluster = Cluster::new(1000);
    let slow = cluster.begin();
    cluster.publish(slow, 3);
    for _ in 0..100 {
        let quick = cluster.begin();
        cluster.publish(quick, 1);
        cluster.commit(quick);
    }
    let before = cluster.now();
    // One number in the position, however many passed it by.
    assert_eq!(before.open(), [slow..slow + 1]);
    cluster.commit(slow);
    assert_eq!(cluster.now().minus(&before), [slow..slow + 1]);
}
