//! Whispers: what is told in a room and kept nowhere. Who is there, and who types.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Hub;

/// A frame for the streams of one room, without an id.
#[derive(Debug)]
pub(super) struct Whisper {
    pub(super) room: Arc<str>,
    /// What it is, for the streams' filters.
    pub(super) kind: &'static str,
    pub(super) frame: Bytes,
    /// The stream that is not told: it said so.
    pub(super) except: Option<Uuid>,
}

impl Hub {
    /// Tells the streams of its room. Whoever calls holds what it is about, so that all hear it in the same order.
    pub(super) fn whisper(&self, whisper: Whisper) {
        let whisper = Arc::new(whisper);
        let state = self.state();
        let others = |key: Uuid| whisper.except != Some(key);
        for mailbox in state.rooms.members(&whisper.room).iter().filter(|mailbox| others(mailbox.key)) {
            mailbox.whisper(&whisper);
        }
    }
}
