//! Whispers: what is told in a room and kept nowhere. Who is there, and who types.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

pub(super) use super::presence::Whisper;
use super::{
    Closing, ClosingReason, Holder, Hub,
    presence::{Ear, NotTyping, Presence, Who},
};

impl Hub {
    /// Who is where, on all nodes.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// Tells the streams that are meant. Whoever calls holds what it is about, so that all hear it in the same order.
    pub(super) fn whisper(&self, whisper: Whisper) {
        let whisper = Arc::new(whisper);
        let state = self.state();
        if let Ear::Only(stream) = whisper.ear {
            if let Some(mailbox) = state.streams.get(&stream) {
                mailbox.show(whisper);
            }
            return;
        }
        let is_meant = |key: Uuid| whisper.ear != Ear::AllBut(key);
        for mailbox in state.rooms.members(&whisper.room).iter().filter(|mailbox| is_meant(mailbox.key)) {
            mailbox.whisper(&whisper);
        }
    }

    /// A stream of this node types in a field, or does not any more.
    ///
    /// # Errors
    /// [`NotTyping`].
    pub fn typed(&self, stream: Uuid, room: &str, field: &str, is_typing: bool) -> Result<(), NotTyping> {
        // It is in rooms that it joined before it has caught up with them, and others see it there after that.
        let is_coming = || self.mailbox(stream).is_some_and(|mailbox| mailbox.is_in(room));
        self.presence.typed(stream, room, field, is_typing, is_coming)
    }

    /// How long a stream that has ended still counts as there: until its client can be expected back.
    pub(super) fn grace(&self, closing: Option<Closing>) -> Duration {
        match closing {
            Some(Closing { reason: ClosingReason::Ended | ClosingReason::SignedOut, .. }) => Duration::ZERO,
            Some(Closing { reconnect_ms, .. }) => self.presence.grace() + Duration::from_millis(reconnect_ms),
            None => self.presence.grace(),
        }
    }
}

/// The user as others see them; none for those who are not seen.
pub(super) fn who(holder: &dyn Holder) -> Option<Who> {
    holder.is_seen().then(|| Who::new(holder.id(), holder.name(), holder.avatar_url()))
}
