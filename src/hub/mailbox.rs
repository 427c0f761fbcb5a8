//! A mailbox: what the hub has for one stream, bounded.
//!
//! The hub puts shared events in and never waits; the stream takes them out when its socket has room. A full mailbox
//! is emptied and takes nothing more: what it held is in the ring and in the log, and the stream reads on from there.
//! What a stream is told besides is rare, and comes before the events.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Waker},
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Closing, Holder, Live, Refused, RoomsChanged,
    change::{Catching, Listed},
    whisper::Whisper,
};
use crate::{ids::TypeFilter, log::Position};

/// Places of an empty queue that are kept for the next events: what a burst needed is not.
const QUEUE_KEPT_MAX: usize = 8;

/// Whispers that wait for one stream; one more, and the stream is shown its rooms anew instead.
const WHISPERS_MAX: usize = 256;

/// Where the hub puts what is for one stream.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// The stream's id; those that opened first come before the others.
    pub(super) key: Uuid,
    types: TypeFilter,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Arc<Live>>,
    bytes: usize,
    /// Whether events are taken; else the stream reads history.
    open: bool,
    /// Reads up to this one are history's.
    after: u64,
    /// The event put in last: one that goes to several rooms comes once for each.
    last: i64,
    holder: Arc<dyn Holder>,
    rooms: Vec<Joined>,
    /// Whether those are others than the stream began with.
    is_moved: bool,
    /// Joins of rooms so far.
    joins: u32,
    later: Option<Box<Later>>,
    told: Option<Box<Told>>,
    /// Set while the stream waits for something to come in.
    waiting: Option<Waker>,
}

/// A room that a stream is in.
#[derive(Debug)]
struct Joined {
    room: Box<str>,
    /// Whether the stream was shown who is there.
    is_shown: bool,
    /// Where it joined the room, if that was later than its beginning: what is in there came by another way.
    since: Option<Box<Since>>,
}

/// When a stream joined a room.
#[derive(Debug)]
struct Since {
    at: Position,
    /// What it has not to bring of the room, with all that it reads of it before anything else.
    after: Position,
    /// Which of its joins that was.
    nth: u32,
}

/// What a stream is told by others.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// It is to end.
    pub(super) closing: Option<Closing>,
    /// Its credentials end at another time.
    pub(super) renewed: Option<OffsetDateTime>,
    /// Rooms that were taken away from it.
    pub(super) rooms: Vec<RoomsChanged>,
    /// Who came and went in its rooms.
    pub(super) whispers: Vec<Arc<Whisper>>,
    /// There were more: it is to be shown its rooms anew.
    pub(super) is_confused: bool,
}

/// What has to wait for its turn.
#[derive(Debug, Default)]
struct Later {
    /// Rooms that the stream joined, each with how many of the queue's events come before.
    catching: VecDeque<(usize, Box<Catching>)>,
    /// Joins that the stream has not yet caught up with, of those and of one that it has begun with.
    pending: usize,
    /// Rooms that it is to leave then: what they brought would come again by the others.
    leaving: Vec<Refused>,
}

/// Why nothing more was taken from a mailbox.
#[derive(Debug)]
pub(super) enum Taken {
    /// As much was taken as was wanted.
    Enough,
    /// All was taken: the stream will be woken.
    All,
    /// Nothing will come in: the stream has to read history.
    Behind,
    /// The stream was told something.
    Told(Box<Told>),
    /// All was taken that came before the stream joined some rooms: it is their turn.
    Catch(Box<Catching>),
}

impl Mailbox {
    /// A mailbox that takes nothing yet.
    pub(super) fn new(
        key: Uuid,
        holder: Arc<dyn Holder>,
        rooms: &[String],
        types: TypeFilter,
        bytes_max: usize,
    ) -> Self {
        let joined = |room: &String| Joined { room: room.as_str().into(), is_shown: false, since: None };
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            open: false,
            after: 0,
            last: 0,
            holder,
            rooms: rooms.iter().map(joined).collect(),
            is_moved: false,
            joins: 0,
            later: None,
            told: None,
            waiting: None,
        };
        Self { key, types, bytes_max, state: Mutex::new(state) }
    }

    /// Whose the stream is.
    pub(super) fn holder(&self) -> Arc<dyn Holder> {
        self.state().holder.clone()
    }

    /// The rooms that the stream is in.
    pub(super) fn rooms(&self) -> Vec<String> {
        self.state().rooms.iter().map(|joined| joined.room.to_string()).collect()
    }

    /// Whether it is in a room.
    pub(super) fn is_in(&self, room: &str) -> bool {
        self.state().rooms.iter().any(|joined| &*joined.room == room)
    }

    /// Whether it is in a room that it is not to leave as soon as it has caught up.
    pub(super) fn stays_in(&self, room: &str) -> bool {
        let state = self.state();
        let leaves = |later: &Later| later.leaving.iter().any(|left| left.room == room);
        state.rooms.iter().any(|joined| *joined.room == *room) && !state.later.as_deref().is_some_and(leaves)
    }

    /// Joins that it has still to catch up with.
    pub(super) fn pending(&self) -> usize {
        self.state().later.as_ref().map_or(0, |later| later.pending)
    }

    /// Whether it is in a room since this of its joins, or before, and has not left it since.
    pub(super) fn is_in_since(&self, room: &str, nth: u32) -> bool {
        let state = self.state();
        let mut rooms = state.rooms.iter().filter(|joined| *joined.room == *room);
        rooms.any(|joined| joined.since.as_ref().is_none_or(|since| since.nth <= nth))
    }

    /// Which events the stream wants.
    pub(super) fn types(&self) -> &TypeFilter {
        &self.types
    }

    /// Takes events from now on, those of reads after this one.
    pub(super) fn open(&self, after: u64) {
        let mut state = self.state();
        state.empty();
        // A log that was set back counts again what it counted before.
        (state.open, state.after, state.last) = (true, after, 0);
    }

    /// Puts an event in. Returns false when the mailbox was full: it is now empty, and shut.
    pub(super) fn put(&self, live: &Arc<Live>) -> bool {
        let mut state = self.state();
        if !state.open || live.read <= state.after || state.last == live.seq || !self.types.passes(&live.kind) {
            return true;
        }
        let bytes = state.bytes + live.encoded.bytes().len();
        let fits = bytes <= self.bytes_max || state.queue.is_empty();
        if fits {
            (state.last, state.bytes) = (live.seq, bytes);
            state.queue.push_back(live.clone());
        } else {
            state.shut();
        }
        state.wake();
        fits
    }

    /// Empties and shuts it: the stream has to read history.
    pub(super) fn shut(&self) {
        let mut state = self.state();
        state.shut();
        state.wake();
    }

    /// Tells the stream to end.
    pub(super) fn close(&self, closing: Closing) {
        self.tell(|told| told.closing = Some(closing));
    }

    /// The stream's credentials end at another time, and are somebody's who may have other rights.
    pub(super) fn renew(&self, holder: Arc<dyn Holder>, expires_at: OffsetDateTime) {
        self.state().holder = holder;
        self.tell(|told| told.renewed = Some(expires_at));
    }

    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        let mut state = self.state();
        tell(state.told.get_or_insert_default());
        state.wake();
    }

    /// Tells the stream of who is in one of its rooms, once it was shown that room.
    pub(super) fn whisper(&self, whisper: &Arc<Whisper>) {
        let mut state = self.state();
        let is_shown = state.rooms.iter().any(|joined| joined.is_shown && *joined.room == *whisper.room);
        if !is_shown || !self.types.passes(whisper.kind) {
            return;
        }
        let told = state.told.get_or_insert_default();
        if told.whispers.len() < WHISPERS_MAX {
            told.whispers.push(whisper.clone());
        } else {
            (told.whispers, told.is_confused) = (Vec::new(), true);
        }
        state.wake();
    }

    /// Tells the stream who is in a room of its, and from now on who comes and goes.
    pub(super) fn show(&self, whisper: Arc<Whisper>) {
        let mut state = self.state();
        let Some(joined) = state.rooms.iter_mut().find(|joined| *joined.room == *whisper.room) else { return };
        joined.is_shown = true;
        if !self.types.passes(whisper.kind) {
            return;
        }
        state.told.get_or_insert_default().whispers.push(whisper);
        state.wake();
    }

    /// Puts the stream into rooms that it is in none of; once it has taken what came before, it is their turn.
    pub(super) fn join(&self, rooms: &[String], mut catching: Catching) {
        let mut state = self.state();
        state.joins += 1;
        catching.nth = state.joins;
        let Catching { since: at, after, nth, .. } = &catching;
        let since = || Some(Box::new(Since { at: at.clone(), after: after.clone(), nth: *nth }));
        let joined: Vec<Joined> =
            rooms.iter().map(|room| Joined { room: room.as_str().into(), is_shown: false, since: since() }).collect();
        state.rooms.extend(joined);
        state.is_moved = true;
        let before = state.queue.len();
        let later = state.later.get_or_insert_default();
        // What it wants now it does not leave, whatever it wanted before.
        later.leaving.retain(|left| !catching.told.joined.contains(&left.room));
        later.catching.push_back((before, Box::new(catching)));
        later.pending += 1;
        state.wake();
    }

    /// The stream has caught up with rooms that it joined; the rooms that it is to leave now.
    pub(super) fn caught(&self) -> Vec<Refused> {
        let mut state = self.state();
        let Some(later) = &mut state.later else { return Vec::new() };
        later.pending -= 1;
        if later.pending > 0 {
            return Vec::new();
        }
        state.later.take().map(|later| later.leaving).unwrap_or_default()
    }

    /// Has the stream leave rooms once it has caught up with those that it joined; false when it has already.
    pub(super) fn leave_later(&self, rooms: &[Refused]) -> bool {
        let mut state = self.state();
        let Some(later) = &mut state.later else { return false };
        let is_new = |room: &&Refused| later.leaving.iter().all(|left| left.room != room.room);
        let new: Vec<Refused> = rooms.iter().filter(is_new).cloned().collect();
        later.leaving.extend(new);
        true
    }

    /// Takes the stream out of rooms, and what came from nowhere else out of here.
    pub(super) fn leave(&self, left: Vec<Refused>) {
        let is_left = |room: &str| left.iter().any(|left| left.room == room);
        let mut state = self.state();
        state.rooms.retain(|joined| !is_left(&joined.room));
        state.is_moved = true;
        state.sort_out(is_left);
        let told = state.told.get_or_insert_default();
        told.whispers.retain(|whisper| !is_left(&whisper.room));
        told.rooms.push(RoomsChanged { left, ..RoomsChanged::default() });
        state.wake();
    }

    /// Whether an event goes to this stream at all: it is in one of its rooms, and the event came after it joined that.
    pub(super) fn brings(&self, live: &Live) -> bool {
        self.state().brings(live)
    }

    /// Whether an event of the past goes to this stream by rooms that it joined: it is in one of them, not again but still,
    /// and no room of before has brought the event or will. `start` is where the stream began.
    pub(super) fn catches(&self, live: &Live, nth: u32, start: &Position) -> bool {
        let state = self.state();
        let is_of_it = |since: &Since| since.nth == nth;
        let has_come = |since: Option<&Since>| match since {
            Some(since) => since.nth < nth && !since.after.contains(live.xact, live.seq),
            None => !start.contains(live.xact, live.seq),
        };
        let mut rooms = state.rooms.iter().filter(|joined| joined.is_room_of(live));
        let by = rooms.clone().filter_map(|joined| joined.since.as_deref());
        by.into_iter().any(is_of_it) && !rooms.any(|joined| has_come(joined.since.as_deref()))
    }

    /// The stream begins anew, in every room that it is in; what of those it was to read is not asked for any more.
    pub(super) fn begin_anew(&self) -> (Vec<Catching>, Vec<Refused>) {
        let mut state = self.state();
        state.rooms.iter_mut().for_each(|joined| joined.since = None);
        let later = state.later.take().unwrap_or_default();
        (later.catching.into_iter().map(|(_, catching)| *catching).collect(), later.leaving)
    }

    /// Takes events for as long as `wants` says so of the bytes of the next. When all are taken, the task of `cx` is woken
    /// by the next thing that comes in.
    pub(super) fn take(&self, cx: &Context<'_>, mut wants: impl FnMut(&Arc<Live>) -> bool) -> Taken {
        let mut state = self.state();
        if let Some(told) = state.told.take() {
            return Taken::Told(told);
        }
        loop {
            if state.open
                && let Some(catching) = state.due()
            {
                return Taken::Catch(catching);
            }
            let Some(live) = state.queue.front() else { break };
            if !wants(live) {
                return Taken::Enough;
            }
            state.bytes -= live.encoded.bytes().len();
            state.queue.pop_front();
            state.came_before();
        }
        if state.queue.capacity() > QUEUE_KEPT_MAX {
            state.queue = VecDeque::new();
        }
        if !state.open {
            return Taken::Behind;
        }
        state.wait(cx);
        Taken::All
    }

    /// Rooms whose turn it is although the stream has not even read what came before.
    pub(super) fn overdue(&self) -> Option<Box<Catching>> {
        self.state().due()
    }

    /// What the stream was told. If nothing, the task of `cx` is woken when it is.
    pub(super) fn told(&self, cx: &Context<'_>) -> Option<Box<Told>> {
        let mut state = self.state();
        if state.told.is_none() {
            state.wait(cx);
        }
        state.told.take()
    }

    /// Whether everything that came in was taken out.
    pub(super) fn is_drained(&self) -> bool {
        let state = self.state();
        state.open && state.queue.is_empty()
    }

    /// Events that wait, and their bytes; none when the stream reads history.
    pub(super) fn depth(&self) -> Option<(usize, usize)> {
        let state = self.state();
        state.open.then(|| (state.queue.len(), state.bytes))
    }

    /// The stream, as an admin sees it.
    pub(super) fn listed(&self) -> Listed {
        let (holder, rooms, waiting) = (self.holder(), self.rooms(), self.depth());
        Listed { stream: self.key, holder, rooms, waiting }
    }

    /// A queue that somebody left half changed when they panicked is emptied and shut: its stream reads history, as after
    /// one that was full. The rooms are the hub's, and change under its lock, which heeds such a panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|half| {
            self.state.clear_poison();
            let mut state = half.into_inner();
            state.shut();
            state
        })
    }
}

impl Joined {
    fn is_room_of(&self, live: &Live) -> bool {
        live.rooms.iter().any(|room| **room == *self.room)
    }
}

impl State {
    fn empty(&mut self) {
        (self.queue, self.bytes) = (VecDeque::new(), 0);
        if let Some(later) = &mut self.later {
            later.catching.iter_mut().for_each(|(before, _)| *before = 0);
        }
    }

    fn shut(&mut self) {
        self.empty();
        self.open = false;
    }

    fn brings(&self, live: &Live) -> bool {
        let comes_by = |joined: &Joined| {
            joined.is_room_of(live) && joined.since.as_ref().is_none_or(|since| !since.at.contains(live.xact, live.seq))
        };
        !self.is_moved || self.rooms.iter().any(comes_by)
    }

    /// Drops what no room brings any more. What is of none of the rooms that were left is brought by another one.
    fn sort_out(&mut self, is_left: impl Fn(&str) -> bool) {
        let stays = |live: &Arc<Live>| !live.rooms.iter().any(|room| is_left(room)) || self.brings(live);
        let stays: Vec<bool> = self.queue.iter().map(stays).collect();
        if let Some(later) = &mut self.later {
            for (before, _) in &mut later.catching {
                *before = stays[..*before].iter().filter(|stays| **stays).count();
            }
        }
        let mut stays = stays.into_iter();
        self.queue.retain(|_| stays.next().is_some_and(|stays| stays));
        self.bytes = self.queue.iter().map(|live| live.encoded.bytes().len()).sum();
    }

    /// The rooms whose turn it is.
    fn due(&mut self) -> Option<Box<Catching>> {
        let catching = &mut self.later.as_mut()?.catching;
        let is_due = catching.front().is_some_and(|(before, _)| *before == 0);
        is_due.then(|| catching.pop_front()).flatten().map(|(_, catching)| catching)
    }

    /// An event was taken.
    fn came_before(&mut self) {
        if let Some(later) = &mut self.later {
            later.catching.iter_mut().for_each(|(before, _)| *before -= 1);
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waiting = Some(cx.waker().clone()),
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}
