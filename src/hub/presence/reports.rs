//! What clients say of their users, shown and written at most once in a while: the first word of several at once, and the
//! others as one. However fast a client talks, the others in its rooms hear a few words of it.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;
use uuid::Uuid;

use super::{facts::Update, keeper::GATHER};

/// What a client said, and its place among all reports.
pub(super) type Word = (Update, i64);

/// Streams of this node that reported a moment ago.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// What each has said since it was shown.
    waiting: HashMap<Uuid, Option<Word>>,
    /// When that is shown, the soonest first.
    due: VecDeque<(Instant, Uuid)>,
}

impl Reports {
    /// What is to be shown at once of what a stream's client says.
    pub(super) fn say(&mut self, stream: Uuid, (update, stamp): Word, now: Instant) -> Option<Word> {
        let Some(waiting) = self.waiting.get_mut(&stream) else {
            self.waiting.insert(stream, None);
            self.due.push_back((now + GATHER, stream));
            return Some((update, stamp));
        };
        let (before, _) = waiting.take().unwrap_or_default();
        *waiting = Some((before.then(update), stamp));
        None
    }

    /// What is to be shown by now.
    pub(super) fn passed(&mut self, now: Instant) -> Vec<(Uuid, Word)> {
        let mut shown = Vec::new();
        while let Some((_, stream)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            if let Some(word) = self.finish(stream) {
                self.waiting.insert(stream, None);
                self.due.push_back((now + GATHER, stream));
                shown.push((stream, word));
            }
        }
        shown
    }

    /// What was still to be shown of a stream, which says no more.
    pub(super) fn finish(&mut self, stream: Uuid) -> Option<Word> {
        self.waiting.remove(&stream).flatten()
    }

    /// When something is to be shown next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }
}
