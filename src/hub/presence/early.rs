//! What is said of streams before it is known who they are, or that they are in a room: a message of another node may be
//! faster than the rows that it needs. It waits for them, for as long as it would have been shown, and not in numbers.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::{NotTyping, Presence, State, facts::Who, typing::FIELDS_MAX, view::View};
use crate::ids::NodeKey;

/// Fields that wait, of all streams; one more is dropped, and shown when its typist says it again.
pub(super) const EARLY_MAX: usize = 1024;

/// That a stream's user types in a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    at: Instant,
    stream: Uuid,
    room: Box<str>,
    field: Box<str>,
}

/// What becomes of something that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Wait,
    /// It is known now whom it is about.
    Show,
    /// It is about nobody any more.
    Drop,
}

/// What waits, the oldest first.
#[derive(Debug)]
pub(super) struct Early {
    /// How long it may.
    ttl: Duration,
    waiting: VecDeque<Said>,
}

impl Early {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, waiting: VecDeque::new() }
    }

    /// Somebody types, or does still. Whether there was room for it.
    fn start(&mut self, stream: Uuid, room: &str, field: &str, now: Instant) -> bool {
        self.stop(stream, room, field);
        let fields = self.waiting.iter().filter(|said| said.stream == stream).count();
        let fits = self.waiting.len() < EARLY_MAX && fields < FIELDS_MAX;
        if fits {
            self.waiting.push_back(Said { at: now, stream, room: room.into(), field: field.into() });
        }
        fits
    }

    /// They do not any more.
    fn stop(&mut self, stream: Uuid, room: &str, field: &str) {
        let is_it = |said: &Said| said.stream == stream && *said.room == *room && *said.field == *field;
        self.waiting.retain(|said| !is_it(said));
    }

    /// What need not wait any more, in the order in which it was said.
    fn ready(&mut self, then: impl Fn(&Said) -> Then) -> Vec<Said> {
        let mut ready = Vec::new();
        self.waiting.retain(|said| {
            let then = then(said);
            if then == Then::Show {
                ready.push(said.clone());
            }
            then == Then::Wait
        });
        ready
    }

    /// Nobody learns any more of what has waited for too long.
    pub(super) fn passed(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            self.waiting.pop_front();
        }
    }

    /// When something has waited for too long next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|said| said.at + self.ttl)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Presence {
    /// A stream of any node types in a field, or does not any more. Where that is not known yet of one that `is_coming`, it
    /// waits until it is.
    ///
    /// # Errors
    /// [`NotTyping`].
    pub fn typed(
        &self,
        stream: Uuid,
        room: &str,
        field: &str,
        is_typing: bool,
        is_coming: impl FnOnce() -> bool,
    ) -> Result<(), NotTyping> {
        let now = Instant::now();
        let mut state = self.state();
        let State { view, typing, early, .. } = &mut *state;
        early.stop(stream, room, field);
        if let Some((who, room)) = typist(view, stream, room) {
            let told = if is_typing {
                typing.start(stream, who, room, &field.into(), now)?
            } else {
                typing.stop(stream, room, field)
            };
            self.tell_typing(told.as_slice());
        } else if !(is_typed_in(room) && self.may_be_known_later(view, stream) && is_coming()) {
            return Err(NotTyping::NotThere);
        } else if is_typing && !early.start(stream, room, field, now) {
            self.metrics.typing_dropped.inc();
        }
        self.wake(&mut state);
        Ok(())
    }

    /// Whether more may be learned of a stream than is known. Those of this node are known, but for rooms that they are on
    /// their way to.
    fn may_be_known_later(&self, view: &View, stream: Uuid) -> bool {
        match view.facts(stream) {
            Some(facts) => facts.ends.is_none(),
            None => NodeKey::of(stream) != self.node,
        }
    }

    /// Shows what was said before it was known who says it.
    pub(super) fn show_early(&self, state: &mut State) {
        let State { view, typing, early, .. } = state;
        let then = |said: &Said| match typist(view, said.stream, &said.room) {
            Some(_) => Then::Show,
            None if self.may_be_known_later(view, said.stream) => Then::Wait,
            None => Then::Drop,
        };
        for Said { at, stream, room, field } in early.ready(then) {
            let told =
                typist(view, stream, &room).map(|(who, room)| typing.start(stream, who, room, &field.into(), at));
            self.tell_typing(told.and_then(Result::ok).flatten().as_slice());
        }
    }
}

/// Who types as an open stream, and where, if that stream is there.
fn typist<'a>(view: &'a View, stream: Uuid, room: &str) -> Option<(&'a Who, &'a Arc<str>)> {
    let facts = view.facts(stream).filter(|facts| facts.ends.is_none() && is_typed_in(room))?;
    let room = facts.rooms.iter().find(|name| ***name == *room)?;
    Some((&*facts.who, room))
}

/// Whether a room has typing.
fn is_typed_in(room: &str) -> bool {
    room.starts_with("project:")
}
