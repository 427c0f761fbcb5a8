//! Streams that join and leave rooms while events come, from nowhere, from the ring and after they fell behind. Whatever
//! happens at whatever moment, a client gets each event of each room once: those since it joined, or since the position
//! that it joined with, and none after it was told that it left.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use proptest::{prelude::*, sample::Index};
use serde_json::Value;

use super::{
    super::{NotJoined, Opening, Refusal, Refused, Session, Wish},
    node::{DB, Node, Sizes},
    stream::{Log, rooms},
    *,
};
use crate::{
    log::position::tests::cluster,
    sse::{Frame, Parser},
};

#[derive(Debug, Clone)]
enum Step {
    Log(cluster::Step),
    Look,
    Go(usize),
    Open(u8),
    /// A stream joins rooms, maybe with one of the positions there were.
    Join(Index, u8, Option<Index>),
    Leave(Index, u8),
    TakeAway(Index, u8),
    Turn(Index),
}

fn any_step() -> impl Strategy<Value = Step> {
    let is_common = |step: &cluster::Step| {
        !matches!(step, cluster::Step::Crash(_) | cluster::Step::Retain(_) | cluster::Step::Rollback(_))
    };
    let after = prop::option::of(any::<Index>());
    prop_oneof![
        30 => cluster::any_step().prop_filter("of what is common", is_common).prop_map(Step::Log),
        8 => Just(Step::Look),
        14 => (1_usize..8).prop_map(Step::Go),
        2 => (1_u8..8).prop_map(Step::Open),
        8 => (any::<Index>(), 1_u8..8, after).prop_map(|(stream, rooms, after)| Step::Join(stream, rooms, after)),
        4 => (any::<Index>(), 1_u8..8).prop_map(|(stream, rooms)| Step::Leave(stream, rooms)),
        1 => (any::<Index>(), 1_u8..8).prop_map(|(stream, rooms)| Step::TakeAway(stream, rooms)),
        14 => any::<Index>().prop_map(Step::Turn),
    ]
}

type Joined = Pin<Box<dyn Future<Output = Result<RoomsChanged, NotJoined>>>>;

/// A stream and its client, who knows what it may expect.
struct Stream {
    session: Session,
    parser: Parser,
    last_id: String,
    key: Uuid,
    hub: Arc<Hub>,
    start: Position,
    /// The rooms that it is in as it was told, and what it has of each from elsewhere.
    rooms: BTreeMap<String, Position>,
    /// What it joins at the moment: the answer, the rooms, and what it has of them.
    joining: Vec<(Joined, Vec<String>, Option<Position>)>,
    /// Joins that were answered and of which `stream:rooms` has still to speak: the rooms, and what it has of them.
    asked: VecDeque<Asked>,
    /// For each time that rooms were taken away and it was not told yet: how many joins of `asked` were made before. A wish
    /// to leave waits for those.
    taken: VecDeque<usize>,
    got: BTreeSet<i64>,
    /// Rooms were taken away while it had still to catch up: what is in two of them may come twice.
    was_hurried: bool,
    /// The rooms that it ever left.
    left: BTreeSet<String>,
    /// Whether it wants to be in a room, by what it asked for last.
    wants: BTreeMap<String, bool>,
}

/// A join that was answered.
struct Asked {
    rooms: Vec<String>,
    /// What the client has of them.
    after: Position,
    /// Where it was made, if that is known.
    since: Option<Position>,
    /// The rooms that had been left by then: what they brought is not known any more, the client says itself what it has.
    left: BTreeSet<String>,
}

struct World {
    log: Log,
    node: Node,
    known: Vec<Position>,
    streams: Vec<Stream>,
}

impl World {
    fn new(masks: Vec<u8>, padding: usize, queue_bytes: usize) -> Self {
        let mut log = Log::new(masks);
        log.padding = padding;
        let start = log.cluster.now();
        let node = Node::new(Sizes { queue_bytes, ..Sizes::AMPLE }, start.clone(), Snapshot::empty());
        Self { known: vec![node.hub.tail().at], log, node, streams: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Log(step) => {
                self.log.cluster.step(step);
                self.log.note_commits();
            }
            Step::Look => self.look(),
            Step::Go(acts) => self.node.go(acts),
            Step::Open(mask) => self.streams.push(Stream::open(&self.node.hub, mask)),
            Step::Join(stream, mask, after) => {
                let after = after.map(|after| after.get(&self.known).clone());
                self.with(stream, |stream, hub| stream.join(hub, mask, after));
            }
            Step::Leave(stream, mask) => self.with(stream, |stream, hub| stream.leave(hub, mask)),
            Step::TakeAway(stream, mask) => self.with(stream, |stream, hub| stream.lose(hub, mask)),
            Step::Turn(stream) => {
                if !self.streams.is_empty() {
                    let nth = stream.index(self.streams.len());
                    self.streams[nth].turn(&self.log);
                }
            }
        }
        for stream in &mut self.streams {
            stream.hear(false);
        }
    }

    fn with(&mut self, which: Index, then: impl FnOnce(&mut Stream, &Arc<Hub>)) {
        if !self.streams.is_empty() {
            let nth = which.index(self.streams.len());
            then(&mut self.streams[nth], &self.node.hub);
        }
    }

    fn look(&mut self) {
        if self.node.acts.is_empty() {
            let (from, to) = (self.node.last.clone(), self.log.cluster.now());
            self.node.read(&to, &Snapshot::empty(), self.log.read(&from, &to));
            self.node.go(1);
            self.known.push(self.node.hub.tail().at);
        }
    }

    fn rest(mut self) {
        self.node.finish();
        self.look();
        self.node.finish();
        let end = self.node.hub.tail().at;
        for mut stream in self.streams {
            stream.hear(false);
            while stream.turn(&self.log) {}
            let mailbox = stream.hub.mailbox(stream.key).unwrap();
            assert!(stream.wants.iter().all(|(room, wants)| mailbox.is_in(room) == *wants), "{:?}", stream.wants);
            assert!(stream.joining.is_empty() && stream.asked.is_empty(), "a join was never told of");
            stream.has_all(&self.log, &end);
        }
    }
}

fn names(mask: u8) -> Vec<String> {
    rooms(mask).into_iter().map(str::to_owned).collect()
}

/// The bits of these rooms.
fn names_of(rooms: &[String]) -> u8 {
    (1..8).filter(|mask| names(*mask).iter().all(|room| rooms.contains(room))).max().unwrap_or(0)
}

/// Whether what was missed comes from the ring: there is no log here.
fn fits(hub: &Hub, after: &Position, rooms: &[String]) -> bool {
    let state = hub.state();
    let is_settled = state.tail.read == state.settled.0;
    let missed = state.ring.since(after, state.settled.1.base(), rooms, usize::MAX);
    let bytes = missed.map(|missed| missed.iter().map(|delivery| delivery.live.encoded.bytes().len()).sum::<usize>());
    let is_ample = hub.settings.queue_bytes > 1 << 21;
    bytes.is_some_and(|bytes| is_ample || is_settled && bytes <= hub.settings.queue_bytes)
}

impl Stream {
    fn open(hub: &Arc<Hub>, mask: u8) -> Self {
        let _inside = DB.0.enter();
        let (stream_id, rooms, judged) = (NodeKey::random().stream(), names(mask), hub.rights());
        let (types, expires_at) = (TypeFilter::default(), OffsetDateTime::now_utc() + Duration::from_hours(1));
        let refused = Vec::new();
        let holder = Arc::new(Ana);
        let (start, last_event_id) = (hub.tail().at, None);
        let opening =
            Opening { stream_id, holder, rooms: rooms.clone(), judged, refused, types, last_event_id, expires_at };
        let mut opened = Box::pin(Session::open(hub, opening));
        let Poll::Ready(Ok(session)) = opened.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a stream without a position waits for nobody");
        };
        let rooms = rooms.into_iter().map(|room| (room, start.clone())).collect();
        let (joining, asked, taken) = (Vec::new(), VecDeque::new(), VecDeque::new());
        let wants = BTreeMap::new();
        let (got, left, was_hurried) = (BTreeSet::new(), BTreeSet::new(), false);
        let (parser, key, hub) = (Parser::default(), stream_id, hub.clone());
        let last_id = String::new();
        Self { session, parser, last_id, key, hub, start, rooms, joining, asked, taken, got, was_hurried, left, wants }
    }

    fn join(&mut self, hub: &Arc<Hub>, mask: u8, after: Option<Position>) {
        let after = after.filter(|after| hub.reaches(after) && fits(hub, after, &names(mask)));
        let judged = hub.rights();
        let holder = hub.mailbox(self.key).unwrap().holder();
        let (refused, leaving, rooms_max) = (Vec::new(), Vec::new(), 100);
        let wish = Wish { rooms: names(mask), refused, after: after.clone(), leaving, rooms_max, holder, judged };
        let (hub, key) = (hub.clone(), self.key);
        let is_settled = self.is_settled();
        self.joining.push((Box::pin(async move { hub.join(key, wish).await }), names(mask), after));
        self.hear(is_settled);
    }

    fn is_settled(&self) -> bool {
        let state = self.hub.state();
        state.tail.read == state.settled.0
    }

    /// Notes which joins were made, and where if it is known. None can be refused here.
    fn hear(&mut self, is_settled: bool) {
        let mut waiting = Vec::new();
        for (mut joined, rooms, after) in std::mem::take(&mut self.joining) {
            match joined.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(joined) => {
                    assert_eq!(joined.unwrap().joined, rooms);
                    self.wants.extend(rooms.iter().map(|room| (room.clone(), true)));
                    let at = self.hub.state().settled.1.clone();
                    let (since, left) = (is_settled.then(|| at.clone()), self.left.clone());
                    self.asked.push_back(Asked { rooms, after: after.unwrap_or(at), since, left });
                }
                Poll::Pending => waiting.push((joined, rooms, after)),
            }
        }
        self.joining = waiting;
    }

    fn leave(&mut self, hub: &Arc<Hub>, mask: u8) {
        self.wants.extend(names(mask).into_iter().map(|room| (room, false)));
        let left = hub.leave(self.key, &names(mask)).unwrap().into_iter().map(|left| left.room);
        // While it has to catch up, it stays.
        let mailbox = hub.mailbox(self.key).unwrap();
        self.left.extend(left.filter(|room| !mailbox.is_in(room)));
    }

    fn lose(&mut self, hub: &Arc<Hub>, mask: u8) {
        self.was_hurried |= !self.asked.is_empty();
        let mailbox = hub.mailbox(self.key).unwrap();
        if names(mask).iter().any(|room| mailbox.is_in(room)) {
            self.taken.push_back(self.asked.len());
            self.left.extend(names(mask));
        }
        self.wants.extend(names(mask).into_iter().map(|room| (room, false)));
        let revoked = |room| Refused { room, reason: Refusal::Revoked };
        hub.take_away(self.key, &names(mask).into_iter().map(revoked).collect::<Vec<_>>());
    }

    /// Takes a chunk; whether there was one.
    fn turn(&mut self, log: &Log) -> bool {
        let _inside = DB.0.enter();
        let chunk = self.session.next(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(chunk)) = chunk else { return false };
        for frame in self.parser.push(&chunk) {
            self.read(log, &frame);
            self.last_id = frame.id;
        }
        true
    }

    fn read(&mut self, log: &Log, frame: &Frame) {
        let before = self.last_id.clone();
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        match frame.event.as_str() {
            "stream:open" => {}
            "stream:rooms" => self.moved(&data),
            _ => self.take(log, data["n"].as_i64().unwrap(), frame.id != before),
        }
    }

    fn moved(&mut self, data: &Value) {
        let left = data["left"].as_array().unwrap();
        for left in left {
            let room = left["room"].as_str().unwrap();
            self.rooms.remove(room);
            self.left.insert(room.to_owned());
        }
        if let Some(first) = left.first() {
            if first["reason"] == "revoked" {
                let made = self.taken.pop_front().unwrap();
                let is_lost = |room: &String| left.iter().any(|left| left["room"] == **room);
                self.asked.iter_mut().take(made).for_each(|asked| asked.rooms.retain(|room| !is_lost(room)));
            }
            return;
        }
        let Asked { rooms: asked, after, .. } = self.asked.pop_front().unwrap();
        self.taken.iter_mut().for_each(|made| *made = made.saturating_sub(1));
        let joined: Vec<&str> = data["joined"].as_array().unwrap().iter().map(|room| room.as_str().unwrap()).collect();
        for room in joined {
            assert!(asked.iter().any(|asked| asked == room), "{room} of {asked:?}");
            self.rooms.entry(room.to_owned()).or_insert_with(|| after.clone());
        }
    }

    fn take(&mut self, log: &Log, seq: i64, has_id: bool) {
        let rooms = rooms(log.mask(seq));
        let is_in = |room: &&str| self.rooms.contains_key(*room);
        let joins = |room: &&str| self.asked.iter().any(|asked| asked.rooms.iter().any(|asked| asked == room));
        assert!(rooms.iter().any(|room| is_in(room) || joins(room)), "{seq} is in none of its rooms");
        let is_new = self.got.insert(seq);
        let caught = self.asked.front().filter(|_| !has_id);
        let was_left = caught.is_some_and(|asked| rooms.iter().any(|room| asked.left.contains(*room)));
        assert!(is_new || was_left || self.was_hurried, "{seq} comes twice");
        if let Some(since) = caught.and_then(|asked| asked.since.as_ref()) {
            self.has_all(log, since);
            // What came later in one of those rooms comes later, by whatever other room.
            let later = |(xact, seq): &(u64, i64)| !since.contains(*xact, *seq) && self.got.contains(seq);
            let mut later = log.cluster.events().filter(later).map(|(_, seq)| log.mask(seq));
            let rooms = names_of(&caught.expect("it has a place").rooms);
            assert!(!later.any(|mask| mask & rooms != 0), "{seq} comes after what was made of it");
        }
    }

    /// It has all up to there of the rooms that it is in as it was told, since it joined them.
    fn has_all(&self, log: &Log, end: &Position) {
        for (xact, seq) in log.cluster.events() {
            let names = rooms(log.mask(seq));
            let due = names.iter().any(|room| {
                self.rooms.get(*room).is_some_and(|after| end.contains(xact, seq) && !after.contains(xact, seq))
            });
            assert!(!due || self.got.contains(&seq), "{seq} of {names:?} never came; from {}", self.start);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn each_event_comes_once_by_whatever_rooms_a_stream_joins_and_leaves(
        masks in prop::collection::vec(1_u8..8, 1..12),
        padding in prop_oneof![1 => Just(0_usize), 1 => Just(12_000)],
        queue in prop_oneof![1 => 1_usize..2000, 1 => 20_000_usize..100_000, 2 => Just(1_usize << 22)],
        steps in prop::collection::vec(any_step(), 0..250),
    ) {
        let mut world = World::new(masks, padding, queue);
        steps.into_iter().for_each(|step| world.step(step));
        world.rest();
    }
}
