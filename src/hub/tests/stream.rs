//! A stream on a seat, as a session has it, and the client behind it, which is held against what it may claim.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    task::Context,
};

use super::{
    super::{
        frames::Reset,
        mailbox::Taken,
        ring::Delivery,
        seat::{Attached, Seat},
    },
    *,
};
use crate::{
    ids::TypeFilter,
    log::{self, position::tests::cluster::Cluster},
    sse,
};

const ROOMS: [&str; 3] = ["a", "b", "c"];
const KINDS: [&str; 2] = ["project:updated", "alert:new"];

/// The log, what its events are about, and when its transactions committed.
pub(super) struct Log {
    pub(super) cluster: Cluster,
    /// The rooms of the events, as bits, by seq, over and over.
    masks: Vec<u8>,
    /// The next seq when a transaction committed: what has a lower one was not published after that.
    pub(super) committed: BTreeMap<u64, i64>,
    /// Bytes that each event is longer by.
    pub(super) padding: usize,
}

impl Log {
    pub(super) fn new(masks: Vec<u8>) -> Self {
        let mut cluster = Cluster::new(0);
        cluster.look(0);
        Self { cluster, masks, committed: BTreeMap::new(), padding: 0 }
    }

    /// Notes what has committed since the last call.
    pub(super) fn note_commits(&mut self) {
        for &xact in self.cluster.committed.keys() {
            self.committed.entry(xact).or_insert(self.cluster.next_seq);
        }
    }

    pub(super) fn mask(&self, seq: i64) -> u8 {
        self.masks[usize::try_from(seq).unwrap() % self.masks.len()]
    }

    fn kind(seq: i64) -> &'static str {
        KINDS[usize::try_from(seq % 2).unwrap()]
    }

    /// What a pump reads.
    pub(super) fn read(&self, from: &Snapshot, to: &Snapshot) -> Vec<(Event, Position)> {
        let xacts: BTreeMap<i64, u64> = self.cluster.events().map(|(xact, seq)| (seq, xact)).collect();
        let frames = self.cluster.read(from, to, 0).into_iter();
        let event = |seq| {
            let mut event = event(xacts[&seq], seq, Self::kind(seq), &rooms(self.mask(seq)));
            event.data.extend(std::iter::repeat_n(' ', self.padding));
            event
        };
        frames.map(|frame| (event(frame.seq), frame.id.parse().unwrap())).collect()
    }
}

pub(super) fn rooms(mask: u8) -> Vec<&'static str> {
    (0..ROOMS.len()).filter(|nth| mask & (1 << nth) != 0).map(|nth| ROOMS[nth]).collect()
}

/// A client: where it is, and all that it was ever sent.
#[derive(Clone)]
pub(super) struct Client {
    mask: u8,
    types: TypeFilter,
    start: Position,
    pub(super) at: Position,
    got: BTreeSet<i64>,
    newest: i64,
}

impl Client {
    pub(super) fn new(mask: u8, types: &str, start: Position) -> Self {
        let types = TypeFilter::parse(types).unwrap();
        Self { mask, types, at: start.clone(), start, got: BTreeSet::new(), newest: 0 }
    }

    pub(super) fn is_in_a_room_of(&self, log: &Log, seq: i64) -> bool {
        self.mask & log.mask(seq) != 0
    }

    fn wants(&self, log: &Log, seq: i64) -> bool {
        self.is_in_a_room_of(log, seq) && self.types.passes(Log::kind(seq))
    }

    /// An event on the wire.
    fn take(&mut self, log: &Log, live: &Live, frame: &[u8]) {
        let (seq, xact) = (live.seq, live.xact);
        let mut frames = sse::Parser::default().push(frame);
        let frame = frames.pop().unwrap();
        assert!(frames.is_empty() && frame.data == format!(r#"{{"n":{seq}}}"#));
        assert!(self.wants(log, seq), "{seq} was not asked for");
        assert!(!self.at.contains(xact, seq), "{seq} comes a second time, at {}", self.at);
        assert!(self.newest < log.committed[&xact], "{seq} of {xact} comes after what was made of it");
        self.newest = self.newest.max(seq);
        self.got.insert(seq);
        self.claim(log, frame.id.parse().unwrap());
    }

    /// The id of a frame, which claims exactly what the client has.
    fn claim(&mut self, log: &Log, at: Position) {
        assert!(at.includes_position(&self.at), "back from {} to {at}", self.at);
        for (xact, seq) in log.cluster.events().filter(|(_, seq)| self.wants(log, *seq)) {
            let has = self.start.contains(xact, seq) || self.got.contains(&seq);
            assert_eq!(at.contains(xact, seq), has, "{seq} of {xact} at {at}");
        }
        self.at = at;
    }

    /// Events that it has missed up to there.
    fn missed(&self, log: &Log, to: &Position) -> usize {
        let is_missed = |&(xact, seq): &(u64, i64)| {
            self.is_in_a_room_of(log, seq) && to.contains(xact, seq) && !self.at.contains(xact, seq)
        };
        log.cluster.events().filter(is_missed).count()
    }
}

/// Where the next event comes from; the same as a session's.
enum Source {
    Live,
    Past(VecDeque<Missed>, Next),
}

struct Missed {
    live: Arc<Live>,
    at: Position,
    frame: Vec<u8>,
    /// Of an event that is read from the log: the beginning of that read.
    from: Option<Snapshot>,
}

enum Next {
    Live,
    Attach,
    Tail(Position),
}

/// How a stream came to what it missed. The tests see to it that each of them happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    UpToDate,
    /// From the ring, with the ids that the events went out with; at the end of a read or inside one.
    Own,
    OwnInside,
    /// From the ring, with ids of its own; at the end of a read, or inside one.
    Cut,
    CutInside,
    /// From the ring, in parts.
    More,
    Log,
    LogInside,
    TooOld,
    TooMany,
    /// The mailbox was full, or the router lagged or jumped.
    Behind,
    /// A heartbeat that moved on.
    Reached,
    /// The client's position was one inside a read.
    FromInside,
}

impl Way {
    pub(super) const ALL: [Self; 13] = [
        Self::UpToDate,
        Self::Own,
        Self::OwnInside,
        Self::Cut,
        Self::CutInside,
        Self::More,
        Self::Log,
        Self::LogInside,
        Self::TooOld,
        Self::TooMany,
        Self::Behind,
        Self::Reached,
        Self::FromInside,
    ];
}

pub(super) type Ways = BTreeMap<Way, usize>;

/// Why a stream has ended.
pub(super) struct Gone;

pub(super) struct Stream {
    pub(super) client: Client,
    seat: Seat,
    source: Source,
    /// As a session has them: what its next own frame claims, and the read that it was attached at.
    at: Position,
    read: u64,
    wakes: Arc<Wakes>,
    /// The wakes counted when the mailbox was found empty.
    asleep: Option<u64>,
}

impl Stream {
    /// A stream without a position.
    pub(super) fn begin(hub: &Arc<Hub>, mask: u8, types: &str) -> Self {
        let client = Client::new(mask, types, hub.tail().at);
        let mut stream = Self::sit(hub, client);
        let tail = stream.seat.begin();
        (stream.at, stream.read) = (tail.at.clone(), tail.read);
        stream
    }

    /// A stream that goes on where its client is.
    pub(super) fn resume(
        hub: &Arc<Hub>,
        client: Client,
        most: Option<i64>,
        log: &Log,
        ways: &mut Ways,
    ) -> Result<Self, Gone> {
        if client.at.rest().is_some() {
            *ways.entry(Way::FromInside).or_default() += 1;
        }
        let mut stream = Self::sit(hub, client);
        stream.attach(most, log, ways)?;
        Ok(stream)
    }

    fn sit(hub: &Arc<Hub>, client: Client) -> Self {
        let seat = sit(hub, &rooms(client.mask), client.types.clone());
        let at = client.at.clone();
        Self { client, seat, source: Source::Live, at, read: 0, wakes: Arc::default(), asleep: None }
    }

    fn attach(&mut self, most: Option<i64>, log: &Log, ways: &mut Ways) -> Result<(), Gone> {
        let (tail, attached) = self.seat.attach(&self.at, most);
        let is_inside = tail.read != self.seat.hub.state().settled.0;
        let mut goes = |way| *ways.entry(way).or_default() += 1;
        self.read = tail.read;
        self.source = match attached {
            Attached::Ring { missed, more: false } if missed.is_empty() => {
                goes(Way::UpToDate);
                Source::Live
            }
            Attached::Ring { missed, more } => {
                assert!(most.is_none_or(|most| missed.len() <= usize::try_from(most).unwrap()));
                let missed: VecDeque<Missed> = missed.iter().map(Missed::of_the_ring).collect();
                let is_own = missed.iter().all(|missed| missed.at == missed.live.at);
                goes(match (is_own, is_inside) {
                    _ if more => Way::More,
                    (true, false) => Way::Own,
                    (true, true) => Way::OwnInside,
                    (false, false) => Way::Cut,
                    (false, true) => Way::CutInside,
                });
                Source::Past(missed, if more { Next::Attach } else { Next::Live })
            }
            Attached::Log => {
                goes(if is_inside { Way::LogInside } else { Way::Log });
                Source::Past(self.history(log, &tail), Next::Tail(tail.at.clone()))
            }
            Attached::Reset(Reset::TooOld) => {
                assert!(!self.at.includes(&tail.floor));
                goes(Way::TooOld);
                return Err(Gone);
            }
            Attached::Reset(Reset::TooMany) => {
                assert!(self.client.missed(log, &tail.at) > usize::try_from(most.unwrap()).unwrap());
                goes(Way::TooMany);
                return Err(Gone);
            }
            attached @ (Attached::Reset(_) | Attached::Overdue(_)) => panic!("{attached:?}"),
        };
        Ok(())
    }

    /// What the log has from here to the tail, as a replay reads it.
    fn history(&self, log: &Log, tail: &Tail) -> VecDeque<Missed> {
        let mut history = VecDeque::new();
        for (reading, after) in log::legs(&self.at, tail.at.base()) {
            let events = log.read(reading.from(), reading.to()).into_iter().map(|(event, _)| event);
            let events = events.filter(|event| event.seq > after && self.client.is_in_a_room_of(log, event.seq));
            let leg: Vec<Event> = events.collect();
            let last = leg.last().map(|event| event.seq);
            history.extend(leg.into_iter().map(|event| {
                let at = if Some(event.seq) == last { reading.end() } else { reading.at(event.seq) };
                Missed {
                    from: Some(reading.from().clone()),
                    ..Missed::of_the_ring(&Delivery::own(Arc::new(Live::new(0, event, at))))
                }
            }));
        }
        history
    }

    /// The client takes up to `most` events.
    pub(super) fn turn(&mut self, most: usize, log: &Log, ways: &mut Ways) -> Result<(), Gone> {
        let mut taken = 0;
        let mut goes_on = true;
        while goes_on {
            goes_on = match self.source {
                Source::Live => self.turn_live(most, &mut taken, log, ways)?,
                Source::Past(..) => self.turn_past(most, &mut taken, log, ways)?,
            };
        }
        Ok(())
    }

    /// Says whether there may be more.
    fn turn_live(&mut self, most: usize, taken: &mut usize, log: &Log, ways: &mut Ways) -> Result<bool, Gone> {
        let Self { client, seat, at, read, wakes, asleep, .. } = self;
        let sleeps = asleep.take() == Some(wakes.count());
        let waker = wakes.waker();
        let result = seat.mailbox.take(&Context::from_waker(&waker), |live| {
            assert!(!sleeps, "something came in and nobody was woken");
            if *taken == most {
                return false;
            }
            *taken += 1;
            client.take(log, live, live.encoded.bytes());
            at.clone_from(&live.at);
            *read = live.read;
            true
        });
        match result {
            Taken::Enough => {}
            Taken::All => *asleep = Some(wakes.count()),
            Taken::Behind => {
                assert!(!sleeps, "the mailbox was shut and nobody was woken");
                *ways.entry(Way::Behind).or_default() += 1;
                self.attach(None, log, ways)?;
                return Ok(true);
            }
            taken @ (Taken::Told(_) | Taken::Catch(_)) => panic!("{taken:?}"),
        }
        Ok(false)
    }

    /// Says whether there may be more.
    fn turn_past(&mut self, most: usize, taken: &mut usize, log: &Log, ways: &mut Ways) -> Result<bool, Gone> {
        let Source::Past(missed, next) = &mut self.source else { return Ok(true) };
        while let Some(first) = missed.front() {
            if *taken == most {
                return Ok(false);
            }
            if first.from.as_ref().is_some_and(|from| !from.includes(&log.cluster.floor)) {
                return Err(Gone);
            }
            if self.client.types.passes(&first.live.kind) {
                *taken += 1;
                self.client.take(log, &first.live, &first.frame);
            }
            self.at.clone_from(&first.at);
            missed.pop_front();
        }
        match next {
            Next::Live => self.source = Source::Live,
            Next::Attach => self.attach(None, log, ways)?,
            Next::Tail(tail) => (self.at, self.source) = (tail.clone(), Source::Live),
        }
        Ok(true)
    }

    /// A heartbeat goes out.
    pub(super) fn beat(&mut self, log: &Log, ways: &mut Ways) {
        if matches!(self.source, Source::Live)
            && let Some(at) = self.seat.reached(self.read)
        {
            *ways.entry(Way::Reached).or_default() += usize::from(at != self.at);
            self.at = at;
        }
        self.client.claim(log, self.at.clone());
    }
}

impl Missed {
    fn of_the_ring(delivery: &Delivery) -> Self {
        let (frame, at) = (delivery.frame().to_vec(), delivery.at().clone());
        Self { live: delivery.live.clone(), at, frame, from: None }
    }
}
