//! A seat: one stream's place in the hub, for as long as it lives.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Holder, Hub, Refused, State, Tail, change::Catching, frames::Reset, mailbox::Mailbox, ring::Delivery};
use crate::{
    error::{Code, Error},
    ids::TypeFilter,
    log::{self, Position, Reader, Scope, Snapshot},
};

/// Events of the ring that one look hands over at most.
pub(super) const LOOK_EVENTS_MAX: usize = 1024;

/// When somebody with too many streams may ask again: nobody knows when one of theirs ends.
const LIMIT_RETRY: Duration = Duration::from_secs(10);

/// Why a node does not take a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// It is shutting down.
    Draining,
    /// It has as many as it may have.
    Overload,
    /// Its user has as many here as one may have.
    Limit(usize),
    /// Somebody has lost rights since its rooms were judged: they are to be judged again.
    Stale,
}

impl Full {
    /// The name of the reason.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Overload => "overload",
            Self::Limit(_) => "limit",
            Self::Stale => "stale",
        }
    }
}

impl From<Full> for Error {
    fn from(full: Full) -> Self {
        match full {
            Full::Stale => Self::unavailable("Rights change faster than they can be judged."),
            Full::Draining => Self::draining(),
            Full::Overload => Self::new(Code::Overloaded, "This server has as many streams as it can serve."),
            Full::Limit(most) => {
                Self::new(Code::TooManyStreams, format!("You may have {most} streams open at once; end one first."))
                    .with_retry_after(LIMIT_RETRY)
            }
        }
    }
}

/// A stream's place: its mailbox and the rooms it is in. Dropping it leaves them.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) hub: Arc<Hub>,
    pub(super) mailbox: Arc<Mailbox>,
}

/// Who asks for a seat.
pub(super) struct Claim<'a> {
    pub(super) stream: Uuid,
    pub(super) holder: Arc<dyn Holder>,
    /// The holder's own is one of them.
    pub(super) rooms: &'a [String],
    pub(super) types: TypeFilter,
    /// What [`Hub::rights`] said before the rooms were judged.
    pub(super) judged: u64,
}

/// What a stream has to read before its mailbox goes on.
#[derive(Debug)]
pub(super) enum Attached {
    /// These events, none if it missed nothing. Where there are `more`, it attaches again behind them.
    Ring { missed: Vec<Delivery>, more: bool },
    /// The log, up to the tail.
    Log,
    /// What it missed cannot be told.
    Reset(Reset),
    /// First it has to catch up with rooms that it joined.
    Overdue(Box<Catching>),
}

impl Seat {
    /// Puts a stream into its rooms. Its mailbox takes nothing yet.
    ///
    /// # Errors
    /// When the node takes no more streams, of this user or at all, and when its rooms must be judged again.
    pub(super) fn take(hub: &Arc<Hub>, claim: Claim<'_>) -> Result<Self, Full> {
        let Claim { stream, holder, rooms, types, judged } = claim;
        let mut state = hub.state();
        if state.draining {
            return Err(Full::Draining);
        }
        if state.streams.len() >= hub.settings.streams_max {
            return Err(Full::Overload);
        }
        let most = hub.settings.streams_per_user;
        if state.users.get(holder.id()).is_some_and(|streams| *streams >= most) {
            return Err(Full::Limit(most));
        }
        if state.rights.is_stale(judged, rooms) {
            return Err(Full::Stale);
        }
        *state.users.entry(holder.id().to_owned()).or_default() += 1;
        let mailbox = Arc::new(Mailbox::new(stream, holder, rooms, types, hub.settings.queue_bytes));
        state.streams.insert(stream, mailbox.clone());
        for room in rooms {
            state.rooms.join(room, &mailbox);
        }
        drop(state);
        Ok(Self { hub: hub.clone(), mailbox })
    }

    /// Begins where the router is: nothing was missed.
    pub(super) fn begin(&self) -> Arc<Tail> {
        let state = self.hub.state();
        self.mailbox.open(state.tail.read);
        state.tail.clone()
    }

    /// The same for a stream that was elsewhere: it is in all its rooms from here. Also what it was still to read of those
    /// that it joined, and those that it was to leave then.
    pub(super) fn begin_anew(&self) -> (Arc<Tail>, Vec<Catching>, Vec<Refused>) {
        let state = self.hub.state();
        self.mailbox.open(state.tail.read);
        let (waiting, leaving) = self.mailbox.begin_anew();
        (state.tail.clone(), waiting, leaving)
    }

    /// Goes on from a position: says what lies between it and the router, and opens the mailbox for what comes then,
    /// unless there is more. More than `most` missed events are too many.
    pub(super) fn attach(&self, at: &Position, most: Option<i64>) -> (Arc<Tail>, Attached) {
        let state = self.hub.state();
        let attached = self.attach_to(&state, at, most);
        (state.tail.clone(), attached)
    }

    fn attach_to(&self, state: &State, at: &Position, most: Option<i64>) -> Attached {
        if let Some(reset) = refuses(&state.tail, at) {
            return Attached::Reset(reset);
        }
        if let Some(catching) = self.mailbox.overdue() {
            return Attached::Overdue(catching);
        }
        if at.includes(state.tail.at.base()) {
            self.mailbox.open(state.tail.read);
            return Attached::Ring { missed: Vec::new(), more: false };
        }
        let rooms = self.mailbox.rooms();
        let Some(missed) = state.ring.since(at, state.settled.1.base(), &rooms, LOOK_EVENTS_MAX) else {
            // The unfinished read is in the log as a whole.
            self.mailbox.open(state.tail.read);
            return Attached::Log;
        };
        if most.is_some_and(|most| has_more_than(state, at, &rooms, &missed, most)) {
            return Attached::Reset(Reset::TooMany);
        }
        let is_all = missed.len() < LOOK_EVENTS_MAX;
        let (missed, fits) = self.first_of(missed);
        let more = !(is_all && fits);
        if !more {
            // Of an unfinished read the ring had what was routed, and the mailbox gets the rest.
            self.mailbox.open(state.settled.0);
        }
        Attached::Ring { missed, more }
    }

    /// Counts where a stream reads from that has missed something.
    pub(super) fn count(&self, attached: &Attached) {
        let source = match attached {
            Attached::Ring { missed, .. } if missed.is_empty() => return,
            Attached::Ring { .. } => "ring",
            Attached::Log => "log",
            Attached::Reset(_) | Attached::Overdue(_) => return,
        };
        self.hub.metrics.replays.count("source", source);
    }

    /// As many as a mailbox would hold, and whether that is all.
    fn first_of(&self, mut missed: Vec<Delivery>) -> (Vec<Delivery>, bool) {
        let mut bytes = 0;
        let fits = |delivery: &Delivery| {
            bytes += delivery.live.encoded.bytes().len();
            bytes <= self.hub.settings.queue_bytes
        };
        let fitting = missed.iter().map(fits).take_while(|fits| *fits).count().max(1);
        let all = missed.len() <= fitting;
        missed.truncate(fitting);
        missed.shrink_to_fit();
        (missed, all)
    }

    /// The position that a stream with nothing left to write has reached, if it was attached at `read`.
    pub(super) fn reached(&self, read: u64) -> Option<Position> {
        // In this order: what was routed before the router settled is in the mailbox already.
        let (settled, at) = self.hub.state().settled.clone();
        (settled >= read && self.mailbox.is_drained()).then_some(at)
    }

    /// What lies between two positions, if the ring has it with the ids that it went out with: as many events as a mailbox
    /// would hold, and whether that is all.
    pub(super) fn recent(&self, from: &Position, to: &Position) -> Option<(Vec<Delivery>, bool)> {
        let state = self.hub.state();
        let missed = state.ring.since(from, state.settled.1.base(), &self.mailbox.rooms(), LOOK_EVENTS_MAX)?;
        drop(state);
        // One that was given an id for all of this speaks of what lies behind `to` as well.
        if !missed.iter().all(Delivery::is_own) {
            return None;
        }
        let is_before = |delivery: &Delivery| to.contains(delivery.live.xact, delivery.live.seq);
        let is_all = missed.len() < LOOK_EVENTS_MAX || !missed.last().is_some_and(is_before);
        let (missed, fits) = self.first_of(missed.into_iter().filter(is_before).collect());
        Some((missed, is_all && fits))
    }

    /// The reads of the log that lead from a position to another one, for the stream's rooms.
    pub(super) fn readers(&self, from: &Position, to: &Snapshot) -> Vec<Reader> {
        self.hub.readers(from, to, self.mailbox.rooms())
    }
}

impl Hub {
    /// The reads of the log that lead from a position to another one, for these rooms.
    pub(super) fn readers(&self, from: &Position, to: &Snapshot, rooms: Vec<String>) -> Vec<Reader> {
        let (scope, bytes_max) = (Scope::Rooms(rooms), self.settings.event_bytes_max);
        let page_bytes = self.settings.queue_bytes;
        let reader =
            |(reading, after)| Reader::resume(reading, after, scope.clone(), bytes_max).in_pages_of(page_bytes);
        log::legs(from, to).into_iter().map(reader).collect()
    }
}

/// Whether more than `most` events follow a position, of which a look has these.
pub(super) fn has_more_than(state: &State, at: &Position, rooms: &[String], look: &[Delivery], most: i64) -> bool {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    look.len() > most || (look.len() == LOOK_EVENTS_MAX && state.ring.exceeds(at, rooms, most))
}

/// Why a stream cannot go on exactly from this position, if so.
pub(super) fn refuses(tail: &Tail, at: &Position) -> Option<Reset> {
    if tail.at.epoch() != at.epoch() {
        Some(Reset::Foreign)
    } else if !tail.at.includes(at.reach()) {
        Some(Reset::Unknown)
    } else if !at.includes(&tail.floor) {
        Some(Reset::TooOld)
    } else {
        None
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let holder = self.mailbox.holder();
        let mut state = self.hub.state();
        state.streams.remove(&self.mailbox.key);
        if let Entry::Occupied(mut streams) = state.users.entry(holder.id().to_owned()) {
            *streams.get_mut() -= 1;
            if *streams.get() == 0 {
                streams.remove();
            }
        }
        for room in self.mailbox.rooms() {
            state.rooms.leave(&room, &self.mailbox);
        }
        if state.draining {
            self.hub.streams.send_replace(state.streams.len());
        }
    }
}
