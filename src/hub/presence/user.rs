//! One user, as all of their streams together say.

use std::sync::Arc;

use uuid::Uuid;

use super::facts::{Facts, Report, Shown, ShownStatus, Status, Who};
use crate::ids::Room;

/// A user with the streams that count: those that are open, and those whose grace runs.
#[derive(Debug, Default)]
pub(super) struct User {
    /// Few, so that they are looked through.
    streams: Vec<(Uuid, Facts)>,
}

impl User {
    pub(super) fn facts(&self, stream: Uuid) -> Option<&Facts> {
        self.streams.iter().find(|(id, _)| *id == stream).map(|(_, facts)| facts)
    }

    pub(super) fn facts_mut(&mut self, stream: Uuid) -> Option<&mut Facts> {
        self.streams.iter_mut().find(|(id, _)| *id == stream).map(|(_, facts)| facts)
    }

    /// Sets what is known of a stream.
    pub(super) fn put(&mut self, stream: Uuid, mut facts: Facts) {
        // Tabs of one user share what they say of them.
        if let Some((_, other)) = self.streams.iter().find(|(_, other)| other.who == facts.who) {
            facts.who = other.who.clone();
        }
        if let Some(known) = self.facts_mut(stream) {
            *known = facts;
        } else {
            self.streams.reserve_exact(1);
            self.streams.push((stream, facts));
        }
    }

    pub(super) fn remove(&mut self, stream: Uuid) {
        self.streams.retain(|(id, _)| *id != stream);
        self.streams.shrink_to_fit();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.streams.is_empty()
    }

    /// Online when any of their streams is active.
    pub(super) fn status(&self) -> Status {
        let is_online = self.streams.iter().any(|(_, facts)| facts.status == Status::Online);
        if is_online { Status::Online } else { Status::Idle }
    }

    /// What is shown of them, wherever they are; none when no stream is left.
    pub(super) fn portrait(&self) -> Option<Portrait> {
        let (_, newest) = self.streams.iter().max_by_key(|(id, _)| *id)?;
        let reports = self.streams.iter().filter_map(|(id, facts)| Some((facts.report.as_ref()?, id)));
        let last = reports.max_by_key(|(report, id)| (report.stamp, **id));
        let report = last.map(|(report, _)| report.clone());
        Some(Portrait { who: newest.who.clone(), status: self.status(), report })
    }

    /// The rooms that any of their streams is in, each once, in order.
    pub(super) fn rooms(&self) -> Vec<Arc<str>> {
        let mut rooms: Vec<Arc<str>> = self.streams.iter().flat_map(|(_, facts)| facts.rooms.iter().cloned()).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms
    }
}

/// What is known of a user at one moment.
#[derive(Debug, Clone)]
pub(super) struct Portrait {
    who: Arc<Who>,
    status: Status,
    report: Option<Arc<Report>>,
}

impl Portrait {
    /// The user as a room sees them: of other rooms it learns nothing.
    pub(super) fn seen_in(&self, room: &Arc<str>) -> Shown {
        let report = self.report.as_deref();
        let viewing = report.and_then(|report| report.viewing.clone()).filter(|viewing| is_open_to(viewing, room));
        let editing = report.and_then(|report| report.editing.clone()).filter(|editing| editing.room == *room);
        Shown {
            user_id: self.who.sub.clone(),
            name: self.who.name.clone(),
            avatar_url: self.who.avatar_url.clone(),
            status: self.status.into(),
            room: room.clone(),
            viewing,
            editing,
        }
    }

    /// The user as a room sees them that they have left.
    pub(super) fn gone_from(&self, room: &Arc<str>) -> Shown {
        Shown { status: ShownStatus::Offline, viewing: None, editing: None, ..self.seen_in(room) }
    }
}

/// A page's path is no secret; a room's name is one to whoever is not in it.
fn is_open_to(viewing: &str, room: &str) -> bool {
    viewing == room || viewing.parse::<Room>().is_err()
}
