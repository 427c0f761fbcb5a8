//! The hub: from the log to the streams of this node.
//!
//! One task, the [pump](Pump), reads the log and is the only source of live events. It sends them into a broadcast
//! channel and never waits for a stream. The router takes them from there, keeps the last ones in the ring, and
//! puts each into the mailbox of every stream that is in one of its rooms, once. A stream is a [`Session`]: it reads
//! history until it meets the router, then its mailbox, and history again when that overflowed. Where the ring reaches
//! back far enough, history is the ring; else it is the log.
//!
//! # How a session meets the router
//!
//! A read of the pump from `A` to `B` is announced, as the [`Tail`], *before* its first event is sent. What a session
//! attaches to is decided under the router's lock:
//!
//! - **History from the ring** is what was routed so far and is not in the client's position; the mailbox takes what is
//!   routed from then on. Both are cut at the same moment, so nothing is between them, also in the middle of a read.
//! - **History from the log** goes up to `B`, and the mailbox ignores that read: whatever of it is still to be routed is
//!   in the log already.
//!
//! That lock is everybody's, so nothing is done under it that a caller or a room can make long: a look at the ring takes a
//! bounded number of events, and what would be more is read from the log; what concerns all streams goes through them a
//! few at a time.
//!
//! When the router itself falls behind the channel, nobody knows what the dropped events were: the ring begins anew at
//! the newest announcement, and every stream reads history up to there.

mod change;
mod chunk;
mod closing;
mod contact;
mod damage;
mod drain;
mod frames;
mod holder;
mod mailbox;
mod past;
pub mod presence;
mod pump;
mod rights;
mod ring;
mod rooms;
mod route;
mod seat;
mod session;
mod start;
#[cfg(test)]
mod tests;
mod whisper;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{Notify, Semaphore, broadcast, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    change::Joining,
    contact::Contact,
    damage::Damages,
    mailbox::Mailbox,
    presence::{Presence, PresenceSettings},
    rights::Rights,
    ring::Ring,
    rooms::Rooms,
};
pub use self::{
    change::{Listed, NotJoined, Renewal, Wish},
    closing::Closing,
    frames::{ClosingReason, Expiring, Heartbeat, Open, Refusal, Refused, ResetTo, RoomsChanged},
    holder::{Holder, Judging, Suspect, Verdict, Warden},
    pump::{Pump, PumpSettings},
    session::{Opening, Session},
};
use crate::{
    db::Db,
    ids::NodeKey,
    log::{Event, Now, Position, Snapshot},
    metrics::Metrics,
    sse::Encoded,
};

/// Streams that are looked up while everybody else waits.
const PART_STREAMS: usize = 256;

/// What the hub and every session are told.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The longest silence on a stream.
    pub heartbeat: Duration,
    /// How long before its end a stream is told that its token expires.
    pub expiring_ahead: Duration,
    /// Events that a client may have missed and still be sent one by one.
    pub replay_events_max: i64,
    /// Payloads of more bytes go out as a reference.
    pub event_bytes_max: u64,
    /// Memory for recent events.
    pub ring_bytes: usize,
    /// What may wait for one stream, also as history that was read for it.
    pub queue_bytes: usize,
    /// Streams at most.
    pub streams_max: usize,
    /// Streams of one user at most.
    pub streams_per_user: usize,
    /// Streams that read history from Postgres at the same moment.
    pub replays_max: usize,
    /// Events that the router may be behind the pump.
    pub channel_events: usize,
    /// The name of this node.
    pub node: String,
    /// This node's life: its streams' ids say it.
    pub key: NodeKey,
    /// Who is shown for how long.
    pub presence: PresenceSettings,
}

/// Where the pump is: the end of the read that it announced last.
#[derive(Debug, Clone)]
pub struct Tail {
    /// The read's number.
    pub read: u64,
    /// The position that the read ends at.
    pub at: Position,
    /// The log's floor at that moment.
    pub floor: Snapshot,
    /// Requests for a read that were made before its statement began.
    asked: u64,
}

/// What the pump tells the router.
#[derive(Debug, Clone)]
enum Routed {
    /// It looked and found nothing, or a read begins, whose events follow.
    Announced(Arc<Tail>),
    /// An event of the read.
    Event(Arc<Live>),
    /// The read was sent as a whole.
    Settled(u64),
    /// It went on from elsewhere: over more than it routes, or to a log with a new epoch. What lies before is history.
    Jumped(Arc<Tail>),
}

/// An event on its way out, shared by every stream that wants it.
#[derive(Debug)]
struct Live {
    /// The number of the read that brought it.
    read: u64,
    seq: i64,
    xact: u64,
    appended: OffsetDateTime,
    routed: Instant,
    kind: String,
    rooms: Vec<String>,
    /// The position after it.
    at: Position,
    /// Its bytes on the wire, with the position as id.
    encoded: Encoded,
}

impl Live {
    fn new(read: u64, event: Event, at: Position) -> Self {
        let encoded = Encoded::new(&event.kind, &at.to_string(), &event.data);
        let Event { seq, xact, at: appended, kind, rooms, .. } = event;
        let (xact, routed) = (xact.unsigned_abs(), Instant::now());
        Self { read, seq, xact, appended, routed, kind, rooms, at, encoded }
    }

    /// The memory that it takes, in bytes.
    fn footprint(&self) -> usize {
        let rooms: usize = self.rooms.iter().map(|room| size_of::<String>() + room.len() + size_of::<u64>()).sum();
        size_of::<Self>() + self.encoded.bytes().len() + self.kind.len() + rooms
    }
}

/// Handed to everything that streams or asks about streams.
#[derive(Debug)]
pub struct Hub {
    db: Db,
    settings: HubSettings,
    metrics: Arc<Metrics>,
    live: broadcast::Sender<Routed>,
    /// What the pump announced last, whether or not the router has got there.
    announced: watch::Sender<Arc<Tail>>,
    /// The highest request for a read that the router has seen answered.
    answered: watch::Sender<u64>,
    /// How often somebody has asked for a read that begins from now on. Written by sessions, read by the pump.
    asked: AtomicU64,
    /// Rung by the router when the channel has room again.
    room: Notify,
    replays: Semaphore,
    warden: Arc<dyn Warden>,
    /// Locked before `state`, never after.
    presence: Arc<Presence>,
    damages: Damages,
    contact: Contact,
    /// Changes with every stream that ends while the node drains.
    streams: watch::Sender<usize>,
    state: Mutex<State>,
    /// Cancelled when what all streams share may be half changed: the node is to end.
    broken: CancellationToken,
}

/// What is decided at one moment for all: where the router is, and who gets what comes next.
#[derive(Debug)]
struct State {
    /// The read that the router is in, or was in last.
    tail: Arc<Tail>,
    /// The last read that was routed as a whole, and its end.
    settled: (u64, Position),
    ring: Ring,
    rooms: Rooms,
    /// Every stream, those that opened first before the others.
    streams: BTreeMap<Uuid, Arc<Mailbox>>,
    /// How many streams each user has. Whoever puts another token on a stream is the same user.
    users: HashMap<String, usize>,
    /// Those who wait for the end of the read that the router is in to join rooms.
    joining: Vec<Joining>,
    rights: Rights,
    draining: bool,
}

impl State {
    /// Everything up to this tail is history now. What the ring held is returned, as by [`Ring::restart`].
    #[must_use]
    fn jump(&mut self, tail: Arc<Tail>) -> Ring {
        let held = self.ring.restart(tail.at.base().clone());
        self.settled = (tail.read, tail.at.clone());
        self.tail = tail;
        for mailbox in self.streams.values() {
            mailbox.shut();
        }
        held
    }
}

/// Who is where, told to the streams of this hub.
fn presence(settings: &HubSettings, metrics: &Arc<Metrics>, hub: Weak<Hub>) -> Arc<Presence> {
    let deliver = move |whisper| {
        if let Some(hub) = hub.upgrade() {
            hub.whisper(whisper);
        }
    };
    Arc::new(Presence::new(settings.key, settings.presence.clone(), metrics.clone(), deliver))
}

impl Hub {
    fn new(db: Db, settings: HubSettings, metrics: Arc<Metrics>, now: Now, warden: Arc<dyn Warden>) -> Arc<Self> {
        let tail = Arc::new(Tail { read: 0, at: now.position(), floor: now.floor, asked: 0 });
        let state = State {
            tail: tail.clone(),
            settled: (0, tail.at.clone()),
            ring: Ring::new(settings.ring_bytes, now.snapshot),
            rooms: Rooms::default(),
            streams: BTreeMap::new(),
            users: HashMap::new(),
            joining: Vec::new(),
            rights: Rights::default(),
            draining: false,
        };
        metrics.streams_max.set(settings.streams_max.try_into().unwrap_or(i64::MAX));
        Arc::new_cyclic(|hub: &Weak<Self>| Self {
            presence: presence(&settings, &metrics, hub.clone()),
            live: broadcast::Sender::new(settings.channel_events),
            announced: watch::Sender::new(tail),
            answered: watch::Sender::new(0),
            asked: AtomicU64::new(0),
            room: Notify::new(),
            replays: Semaphore::new(settings.replays_max),
            warden,
            damages: Damages::default(),
            contact: Contact::default(),
            streams: watch::Sender::new(0),
            state: Mutex::new(state),
            broken: CancellationToken::new(),
            db,
            settings,
            metrics,
        })
    }

    /// The name of this node.
    pub fn node(&self) -> &str {
        &self.settings.node
    }

    /// The position that the router has reached, or is about to.
    pub fn tail(&self) -> Tail {
        Tail::clone(&self.state().tail)
    }

    /// Whether the router has reached all that a position of this log may have seen.
    fn reaches(&self, at: &Position) -> bool {
        let state = self.state();
        state.tail.at.epoch() == at.epoch() && state.tail.at.includes(at.reach())
    }

    /// Waits until the router has reached a read whose statement began after this call. It includes every position that
    /// any node had taken by now.
    async fn catch_up(&self) {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.db.bell().notify_one();
        let mut answered = self.answered.subscribe();
        answered.wait_for(|answered| *answered >= ticket).await.expect("the hub owns the sender");
    }

    /// Sets the gauges that are looked up only when somebody asks.
    pub fn measure(&self) {
        self.presence.measure();
        let (mut events, mut bytes, mut longest) = (0, 0, 0);
        for mailbox in self.streams_in_parts().flatten() {
            let depth = mailbox.depth().unwrap_or_default();
            (events, bytes, longest) = (events + depth.0, bytes + depth.1, longest.max(depth.1));
        }
        let state = self.state();
        let gauges = [
            (&self.metrics.streams, state.streams.len()),
            (&self.metrics.rooms, state.rooms.len()),
            (&self.metrics.queued_events, events),
            (&self.metrics.queued, bytes),
            (&self.metrics.queue_longest, longest),
            (&self.metrics.ring_events, state.ring.len()),
            (&self.metrics.ring, state.ring.bytes()),
        ];
        for (gauge, value) in gauges {
            gauge.set(value.try_into().unwrap_or(i64::MAX));
        }
    }

    /// All streams, a few at a time: nobody waits until somebody has seen all of them. One that opens meanwhile comes last.
    fn streams_in_parts(&self) -> impl Iterator<Item = Vec<Arc<Mailbox>>> {
        let mut last = Some(Uuid::nil());
        std::iter::from_fn(move || {
            let behind = (Bound::Excluded(last?), Bound::Unbounded);
            let streams = self.state().streams.range(behind).take(PART_STREAMS).map(|(_, one)| one.clone()).collect();
            let part: Vec<Arc<Mailbox>> = streams;
            last = part.last().map(|mailbox| mailbox.key);
            (!part.is_empty()).then_some(part)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|half| self.give_up(half.into_inner()))
    }

    /// Somebody panicked while they held the state. What they left half changed might keep an event from a stream that then
    /// gets the next one's id. So whoever comes next ends every stream before anything else goes into its mailbox, and the
    /// node takes no more of them: they go on elsewhere, from the last id that they have.
    fn give_up<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.state.clear_poison();
        state.draining = true;
        for (nth, mailbox) in state.streams.values().enumerate() {
            mailbox.close(Closing::usual(ClosingReason::Draining, nth as u64));
        }
        self.broken.cancel();
        state
    }

    /// Ends with `stop`, or as soon as somebody has panicked who held what all streams share.
    pub async fn stay_whole(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.broken.cancelled() => {}
            () = self.presence.broken.cancelled() => {}
        }
    }
}
