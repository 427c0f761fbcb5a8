//! Which streams are in which room.

use std::{collections::HashMap, sync::Arc};

use super::mailbox::Mailbox;

/// The streams of each room, those that opened first before the others.
#[derive(Debug, Default)]
pub(super) struct Rooms(HashMap<Box<str>, Vec<Arc<Mailbox>>>);

impl Rooms {
    /// Puts a stream into a room.
    pub(super) fn join(&mut self, room: &str, mailbox: &Arc<Mailbox>) {
        let Some(members) = self.0.get_mut(room) else {
            self.0.insert(room.into(), vec![mailbox.clone()]);
            return;
        };
        if let Err(place) = members.binary_search_by_key(&mailbox.key, |member| member.key) {
            members.insert(place, mailbox.clone());
        }
    }

    /// Takes a stream out of a room, which is gone with its last one.
    pub(super) fn leave(&mut self, room: &str, mailbox: &Mailbox) {
        let Some(members) = self.0.get_mut(room) else { return };
        if let Ok(place) = members.binary_search_by_key(&mailbox.key, |member| member.key) {
            members.remove(place);
        }
        if members.is_empty() {
            self.0.remove(room);
        }
    }

    /// The streams in a room.
    pub(super) fn members(&self, room: &str) -> &[Arc<Mailbox>] {
        self.0.get(room).map_or(&[], Vec::as_slice)
    }

    /// How many rooms somebody is in.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
