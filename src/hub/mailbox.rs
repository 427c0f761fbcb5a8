//! A mailbox: what the hub has for one stream, bounded.
//!
//! The hub puts shared events in and never waits; the stream takes them out when its socket has room. A full mailbox
//! is emptied and takes nothing more: what it held is in the ring and in the log, and the stream reads on from there.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Waker},
};

use super::{Closing, Live};
use crate::ids::TypeFilter;

/// Places of an empty queue that are kept for the next events: what a burst needed is not.
const QUEUE_KEPT_MAX: usize = 8;

/// Where the hub puts what is for one stream.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Streams are counted as they open.
    pub(super) key: u64,
    /// The user whose stream it is, as the hub hashes them: others may be in their room, too.
    pub(super) owner: u64,
    types: TypeFilter,
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<Live>>,
    bytes: usize,
    /// Whether events are taken; else the stream reads history.
    open: bool,
    /// Reads up to this one are history's.
    after: u64,
    /// The event put in last: one that goes to several rooms comes once for each.
    last: i64,
    closing: Option<Closing>,
    /// Set while the stream waits for something to come in.
    waiting: Option<Waker>,
}

/// Why nothing more was taken from a mailbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// As much was taken as was wanted.
    Enough,
    /// All was taken: the stream will be woken.
    All,
    /// Nothing will come in: the stream has to read history.
    Behind,
    /// The stream is to end.
    Closing(Closing),
}

impl Mailbox {
    /// A mailbox that takes nothing yet.
    pub(super) fn new(key: u64, owner: u64, types: TypeFilter, bytes_max: usize) -> Self {
        Self { key, owner, types, bytes_max, state: Mutex::default() }
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
        let mut state = self.state();
        state.closing = Some(closing);
        state.wake();
    }

    /// Takes events for as long as `wants` says so of the bytes of the next. When all are taken, the task of `cx` is woken
    /// by the next thing that comes in.
    pub(super) fn take(&self, cx: &Context<'_>, mut wants: impl FnMut(&Arc<Live>) -> bool) -> Taken {
        let mut state = self.state();
        if let Some(closing) = state.closing.take() {
            return Taken::Closing(closing);
        }
        while let Some(live) = state.queue.front() {
            if !wants(live) {
                return Taken::Enough;
            }
            state.bytes -= live.encoded.bytes().len();
            state.queue.pop_front();
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

    /// Whether the stream is to end. If not, the task of `cx` is woken when it is.
    pub(super) fn closing(&self, cx: &Context<'_>) -> Option<Closing> {
        let mut state = self.state();
        if state.closing.is_none() {
            state.wait(cx);
        }
        state.closing.take()
    }

    /// Whether everything that came in was taken out.
    pub(super) fn is_drained(&self) -> bool {
        let state = self.state();
        state.open && state.queue.is_empty()
    }

    /// Events that wait, and their bytes.
    pub(super) fn depth(&self) -> (usize, usize) {
        let state = self.state();
        (state.queue.len(), state.bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a mailbox")
    }
}

impl State {
    fn empty(&mut self) {
        (self.queue, self.bytes) = (VecDeque::new(), 0);
    }

    fn shut(&mut self) {
        self.empty();
        self.open = false;
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
