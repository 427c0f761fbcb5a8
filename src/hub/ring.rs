//! The ring: the events that were routed last, in memory, so that a stream which missed little asks Postgres nothing.
//!
//! It knows the reads that brought its events, since a position is a set of transactions and not a place in a list. Where
//! a client's position is one that this node has been at, all that follows goes out as it did live, shared. Where it lies
//! between two of them (another node gave it, or a read of the state did), the events are cut to the set and put into the
//! order of their seqs, with ids of their own: that is the read from the client's position, done in memory.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque, vec_deque},
    sync::Arc,
};

use bytes::Bytes;

use super::Live;
use crate::log::{self, Position, Reading, Snapshot};

/// Reads that are remembered at most: one without events costs memory, too.
const SPANS_MAX: usize = 65_536;

/// An event of the past on its way to one stream.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    /// The event.
    pub(super) live: Arc<Live>,
    /// The position after it, where that is not the one it went out with.
    at: Option<Position>,
}

impl Delivery {
    /// The event as it went out live.
    pub(super) fn own(live: Arc<Live>) -> Self {
        Self { live, at: None }
    }

    /// Whether its position is the one it went out with.
    pub(super) fn is_own(&self) -> bool {
        self.at.is_none()
    }

    /// The position after it.
    pub(super) fn at(&self) -> &Position {
        self.at.as_ref().unwrap_or(&self.live.at)
    }

    /// Its bytes on the wire.
    pub(super) fn frame(&self) -> Bytes {
        match &self.at {
            None => self.live.encoded.bytes().clone(),
            Some(at) => self.live.encoded.with_id(&at.to_string()),
        }
    }
}

/// Recent events, bounded in bytes.
#[derive(Debug)]
pub(super) struct Ring {
    bytes_max: usize,
    /// Whatever is in a routed read and not in this set is here.
    start: Snapshot,
    events: VecDeque<Arc<Live>>,
    /// The number of `events[0]`: they are counted from the start of the node.
    first: u64,
    spans: VecDeque<Span>,
    /// The numbers of each room's events, ascending.
    rooms: HashMap<String, VecDeque<u64>>,
    bytes: usize,
}

/// A read of the pump, from one set of transactions to another.
#[derive(Debug)]
struct Span {
    from: Snapshot,
    to: Snapshot,
    /// The number of its first event.
    first: u64,
}

impl Span {
    /// The seq up to which a client has seen this read, if its position is one that this read leads through.
    fn passes(&self, at: &Position) -> Option<i64> {
        match at.rest() {
            None => (*at.base() == self.from).then_some(0),
            Some((to, seq)) => (*at.base() == self.from && *to == self.to).then_some(seq),
        }
    }
}

/// A room's numbers from `from` on.
fn rest(numbers: &VecDeque<u64>, from: u64) -> vec_deque::Iter<'_, u64> {
    numbers.range(numbers.partition_point(|number| *number < from)..)
}

impl Ring {
    /// A ring of at most `bytes_max` bytes that begins at `start`.
    pub(super) fn new(bytes_max: usize, start: Snapshot) -> Self {
        let (events, spans) = (VecDeque::new(), VecDeque::new());
        Self { bytes_max, start, events, first: 0, spans, rooms: HashMap::new(), bytes: 0 }
    }

    /// Begins anew. What it held is returned, for the caller to forget once nobody waits for the ring: that takes long.
    #[must_use]
    pub(super) fn restart(&mut self, start: Snapshot) -> Self {
        let anew = Self::new(self.bytes_max, start);
        std::mem::replace(self, anew)
    }

    /// How many events it holds.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The events pushed from now on are those of the read from `from` to `to`.
    pub(super) fn begin(&mut self, from: Snapshot, to: Snapshot) {
        let first = self.next();
        self.spans.push_back(Span { from, to, first });
        self.bytes += size_of::<Span>();
        self.evict();
    }

    /// Adds an event of the read that began last.
    pub(super) fn push(&mut self, live: &Arc<Live>) {
        let number = self.next();
        for room in &live.rooms {
            match self.rooms.get_mut(room) {
                Some(numbers) => numbers.push_back(number),
                None => {
                    self.rooms.insert(room.clone(), VecDeque::from([number]));
                }
            }
        }
        self.bytes += live.footprint();
        self.events.push_back(live.clone());
        self.evict();
    }

    /// What a stream in these rooms has missed since `at`, in the order in which it is to go out, up to what has been
    /// pushed; none when the ring does not reach back to `at`. `settled` is the end of the last read that was pushed as a
    /// whole. More than `most` events are cut to the first `most`, or are left to the log where they would have to be put
    /// into order first: everybody waits while somebody looks, so no position may make that long, whoever made it up.
    pub(super) fn since(
        &self,
        at: &Position,
        settled: &Snapshot,
        rooms: &[String],
        most: usize,
    ) -> Option<Vec<Delivery>> {
        if !at.includes(&self.start) {
            return None;
        }
        let known = self.spans.partition_point(|span| at.includes(&span.to));
        let Some(span) = self.spans.get(known) else { return Some(Vec::new()) };
        if let Some(seen) = span.passes(at) {
            let from = self.behind(known, seen);
            // A client may know more of a read than has been pushed so far.
            let knows_more = seen > 0 && span.to != *settled && from == self.next();
            let numbers = self.numbers(rooms, from, most);
            return (!knows_more).then(|| numbers.into_iter().map(|number| self.own(number)).collect());
        }
        let numbers = self.numbers(rooms, span.first, most);
        (numbers.len() < most && settled.includes(at.reach())).then(|| self.between(at, settled, numbers))
    }

    /// Whether more than `most` events of these rooms follow a position that one of our reads leads through.
    pub(super) fn exceeds(&self, at: &Position, rooms: &[String], most: usize) -> bool {
        let known = self.spans.partition_point(|span| at.includes(&span.to));
        let Some(seen) = self.spans.get(known).and_then(|span| span.passes(at)) else { return false };
        let from = self.behind(known, seen);
        let counts = rooms.iter().filter_map(|room| self.rooms.get(room)).map(|numbers| rest(numbers, from).len());
        let (all, longest) = counts.fold((0, 0), |(all, longest), count| (all + count, longest.max(count)));
        // Only an event of several rooms makes it necessary to count one by one.
        longest > most || (all > most && self.numbers(rooms, from, most.saturating_add(1)).len() > most)
    }

    /// The same for a position that none of our reads leads through: the legs of a replay, then the unfinished read.
    fn between(&self, at: &Position, settled: &Snapshot, mut numbers: Vec<u64>) -> Vec<Delivery> {
        let unfinished = self.spans.back().filter(|span| span.to != *settled).map_or(self.next(), |span| span.first);
        let later = numbers.split_off(numbers.partition_point(|number| *number < unfinished));
        let legs = log::legs(at, settled);
        let mut deliveries: Vec<Delivery> =
            legs.iter().flat_map(|(reading, after)| self.leg(reading, *after, &numbers)).collect();
        deliveries.extend(later.into_iter().map(|number| self.own(number)));
        deliveries
    }

    /// Of these events those of a read, behind `after`, with the positions inside that read.
    fn leg(&self, reading: &Reading, after: i64, numbers: &[u64]) -> Vec<Delivery> {
        let events = numbers.iter().map(|number| self.event(*number));
        let is_new = |live: &&Arc<Live>| {
            live.seq > after && reading.to().contains(live.xact) && !reading.from().contains(live.xact)
        };
        let mut events: Vec<&Arc<Live>> = events.filter(is_new).collect();
        events.sort_unstable_by_key(|live| live.seq);
        let last = events.last().map(|live| live.seq);
        let at = |seq| if Some(seq) == last { reading.end() } else { reading.at(seq) };
        events.into_iter().map(|live| Delivery { live: live.clone(), at: Some(at(live.seq)) }).collect()
    }

    /// The first `most` numbers of these rooms' events, from `from` on, each once and ascending. It costs what it gives,
    /// whatever else the rooms have.
    fn numbers(&self, rooms: &[String], from: u64, most: usize) -> Vec<u64> {
        let of_rooms = rooms.iter().filter_map(|room| self.rooms.get(room));
        let mut rests: Vec<_> = of_rooms.map(|numbers| rest(numbers, from)).collect();
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::with_capacity(rests.len());
        next.extend(rests.iter_mut().enumerate().filter_map(|(nth, rest)| Some(Reverse((*rest.next()?, nth)))));
        let mut numbers = Vec::new();
        while numbers.len() < most
            && let Some(Reverse((number, nth))) = next.pop()
        {
            // An event of several rooms comes once.
            if numbers.last() != Some(&number) {
                numbers.push(number);
            }
            next.extend(rests[nth].next().map(|number| Reverse((*number, nth))));
        }
        numbers
    }

    fn own(&self, number: u64) -> Delivery {
        Delivery::own(self.event(number).clone())
    }

    /// The number of the first event of a read behind `seq`. A read's events are in the order of their seqs.
    fn behind(&self, span: usize, seq: i64) -> u64 {
        let end = self.spans.get(span + 1).map_or(self.next(), |span| span.first);
        let (mut low, mut high) = (self.spans[span].first, end);
        while low < high {
            let middle = low.midpoint(high);
            if self.event(middle).seq <= seq { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Where an event stands; one that is gone stood before the first.
    fn place(&self, number: u64) -> usize {
        usize::try_from(number.saturating_sub(self.first)).expect("a place in a list")
    }

    fn event(&self, number: u64) -> &Arc<Live> {
        &self.events[self.place(number)]
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max || self.spans.len() > SPANS_MAX {
            match self.events.pop_front() {
                Some(event) => self.forget(&event),
                // Reads without events, or one frame larger than the ring.
                None if self.spans.len() > 1 => self.forget_span(),
                None => return,
            }
            // What a read has lost cannot be told from the middle of it: the ring begins at its end.
            while self.spans.front().is_some_and(|span| span.first < self.first) {
                self.forget_span();
            }
        }
    }

    fn forget(&mut self, event: &Live) {
        self.first += 1;
        self.bytes -= event.footprint();
        for room in &event.rooms {
            let Some(numbers) = self.rooms.get_mut(room) else { continue };
            numbers.pop_front();
            if numbers.is_empty() {
                self.rooms.remove(room);
            }
        }
    }

    fn forget_span(&mut self) {
        if let Some(span) = self.spans.pop_front() {
            self.start = span.to;
            self.bytes -= size_of::<Span>();
        }
    }
}
