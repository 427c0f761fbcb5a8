//! The hub: from the log to the streams of this node.
//!
//! One task, the [pump](Pump), reads the log and is the only source of live events. It sends them into a broadcast
//! channel; each stream is a [`Session`] that reads history until it meets the pump, then the channel, and history again
//! when it fell behind. The channel never makes the pump wait, and what it dropped is still in the log.
//!
//! # How a session meets the pump
//!
//! A read of the pump from `A` to `B` is announced, as the [`Tail`], *before* its first event is sent. A session first
//! subscribes, then looks at the tail: it reads history up to the tail's position, and of the channel it ignores the
//! reads up to the tail's number. A read announced after the look is received whole, since the subscription is older; one
//! announced before it is covered by history, also when the pump was in the middle of it.

mod pump;
mod session;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};

pub use self::{
    pump::{Pump, PumpSettings},
    session::{Opening, Refused, Reset, Session, SessionSettings, User},
};
use crate::log::{Event, Now, Position, Snapshot};

/// Events that a session may be behind the pump before it goes back to the log.
const CHANNEL_EVENTS_MAX: usize = 1024;

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

/// What the pump tells every session.
#[derive(Debug, Clone)]
pub enum Routed {
    /// An event.
    Event(Arc<Live>),
    /// A read was routed as a whole: the position is its end.
    Settled(u64, Position),
    /// The pump skipped to this position: what lies between is read from the log.
    Skipped(u64),
    /// The log has a new epoch and goes on from this position.
    Renewed(u64, Position),
}

/// An event on its way out, shared by every session that wants it.
#[derive(Debug)]
pub struct Live {
    /// The number of the read that brought it.
    pub read: u64,
    /// The event.
    pub event: Event,
    /// The position after it.
    pub at: Position,
    /// Its bytes on the wire, with the position as id.
    pub frame: Bytes,
}

/// Handed to everything that streams or asks about streams.
#[derive(Debug)]
pub struct Hub {
    live: broadcast::Sender<Routed>,
    tail: watch::Sender<Tail>,
    /// How often somebody has asked for a read that begins from now on. Written by sessions, read by the pump.
    asked: AtomicU64,
    bell: Arc<Notify>,
    counters: Counters,
}

/// What the node has done so far.
#[derive(Debug, Default)]
struct Counters {
    streams: AtomicU64,
    streams_opened: AtomicU64,
    events_routed: AtomicU64,
    replays: AtomicU64,
    resets: AtomicU64,
    lagged: AtomicU64,
    reads: AtomicU64,
}

/// Figures of this node, for people.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Streams open now.
    pub streams: u64,
    /// Streams opened since the start.
    pub streams_opened: u64,
    /// Events that the pump has read from the log.
    pub events_routed: u64,
    /// Streams that began with a position that could be resumed.
    pub replays: u64,
    /// Times a stream was told that it cannot be resumed exactly.
    pub resets: u64,
    /// Times a stream fell behind and went back to the log.
    pub lagged: u64,
    /// Reads of the log that found something.
    pub reads: u64,
    /// The position that is routed as a whole, or being routed.
    pub cursor: String,
}

impl Hub {
    fn new(now: Now, bell: Arc<Notify>) -> Arc<Self> {
        let tail = Tail { read: 0, at: now.position(), floor: now.floor, asked: 0 };
        Arc::new(Self {
            live: broadcast::Sender::new(CHANNEL_EVENTS_MAX),
            tail: watch::Sender::new(tail),
            asked: AtomicU64::new(0),
            bell,
            counters: Counters::default(),
        })
    }

    /// Where the pump is.
    pub fn tail(&self) -> Tail {
        self.tail.borrow().clone()
    }

    /// The live events from the returned tail on: those of a read with a higher number.
    fn attach(&self) -> (broadcast::Receiver<Routed>, Tail) {
        // In this order: a read that is announced in between is in both, and its events are ignored.
        let live = self.live.subscribe();
        (live, self.tail())
    }

    /// Waits for a read whose statement began after this call. It includes every position that any node had taken by now.
    async fn catch_up(&self) {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.bell.notify_one();
        let mut tail = self.tail.subscribe();
        tail.wait_for(|tail| tail.asked >= ticket).await.expect("the hub owns the sender");
    }

    /// Figures of this node.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Stats {
            streams: read(&counters.streams),
            streams_opened: read(&counters.streams_opened),
            events_routed: read(&counters.events_routed),
            replays: read(&counters.replays),
            resets: read(&counters.resets),
            lagged: read(&counters.lagged),
            reads: read(&counters.reads),
            cursor: self.tail.borrow().at.to_string(),
        }
    }
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}
