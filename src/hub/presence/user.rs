//! One user, as all of their streams together say.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;
use uuid::Uuid;

use super::facts::{Facts, Report, Shown, ShownStatus, Status, Who};
use crate::ids::Room;

/// A user with the streams that count: those that are open, and those whose grace runs.
#[derive(Debug, Default)]
pub(super) struct User {
    /// Few, so that they are looked through.
    streams: Vec<(Uuid, Facts)>,
    /// What no stream says any more and is still shown.
    lingering: Option<Box<Lingering>>,
}

/// What is still shown of a user for a moment: another node may be about to say it.
#[derive(Debug)]
struct Lingering {
    /// The user as they were.
    was: Portrait,
    /// Until when they are online.
    online: Option<Instant>,
    /// Until when they are in these rooms.
    rooms: BTreeMap<Arc<str>, Instant>,
}

/// What a user's streams say of where they are.
#[derive(Debug)]
pub(super) struct Said {
    is_online: bool,
    rooms: Vec<Arc<str>>,
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
        self.streams.is_empty() && self.lingering.is_none()
    }

    /// What a stream's status is that resumes: as the others are, and online where there are none.
    pub(super) fn resumed(&self) -> Status {
        if self.is_online() || self.streams.is_empty() { Status::Online } else { Status::Idle }
    }

    /// Whether any of their streams is active.
    fn is_online(&self) -> bool {
        self.streams.iter().any(|(_, facts)| facts.status == Status::Online)
    }

    fn status(&self) -> Status {
        let lingers = self.lingering.as_ref().is_some_and(|lingering| lingering.online.is_some());
        if self.is_online() || lingers { Status::Online } else { Status::Idle }
    }

    /// What their streams say.
    pub(super) fn said(&self) -> Said {
        Said { is_online: self.is_online(), rooms: self.stream_rooms() }
    }

    /// What their streams said before, when they were seen so, and do not say now is shown until then; not, if that is none.
    /// Whether there is any such thing.
    pub(super) fn linger(&mut self, was: Option<&Portrait>, before: Said, until: Option<Instant>) -> bool {
        let Said { is_online, rooms } = self.said();
        let is_said = |room: &Arc<str>| rooms.binary_search(room).is_ok();
        let is_idle = before.is_online && !is_online;
        let left: Vec<_> = before.rooms.into_iter().filter(|room| !is_said(room)).collect();
        let (Some(was), until) = (was, until.filter(|_| is_idle || !left.is_empty())) else { return false };
        if self.lingering.is_none() && until.is_none() {
            return false;
        }
        let new = || Box::new(Lingering { was: was.clone(), online: None, rooms: BTreeMap::new() });
        let lingering = self.lingering.get_or_insert_with(new);
        lingering.was = was.clone();
        lingering.online = until.filter(|_| is_idle).or(lingering.online).filter(|_| !is_online);
        lingering.rooms.retain(|room, _| !is_said(room));
        if let Some(until) = until {
            lingering.rooms.extend(left.into_iter().map(|room| (room, until)));
        }
        self.forget_lingering();
        until.is_some()
    }

    /// What was shown until now is not shown any more.
    pub(super) fn settle(&mut self, now: Instant) {
        if let Some(lingering) = &mut self.lingering {
            lingering.online = lingering.online.filter(|until| *until > now);
            lingering.rooms.retain(|_, until| *until > now);
        }
        self.forget_lingering();
    }

    fn forget_lingering(&mut self) {
        let is_over = |lingering: &Lingering| lingering.online.is_none() && lingering.rooms.is_empty();
        if self.lingering.as_deref().is_some_and(is_over) {
            self.lingering = None;
        }
    }

    /// What is shown of them, wherever they are; none when no stream is left and nothing lingers.
    pub(super) fn portrait(&self) -> Option<Portrait> {
        let Some((_, newest)) = self.streams.iter().max_by_key(|(id, _)| *id) else {
            let was = &self.lingering.as_ref()?.was;
            return Some(Portrait { status: self.status(), ..was.clone() });
        };
        let reports = self.streams.iter().filter_map(|(id, facts)| Some((facts.report.as_ref()?, id)));
        let last = reports.max_by_key(|(report, id)| (report.stamp, **id));
        let report = last.map(|(report, _)| report.clone());
        Some(Portrait { who: newest.who.clone(), status: self.status(), report })
    }

    /// The rooms that they are shown in, each once, in order.
    pub(super) fn rooms(&self) -> Vec<Arc<str>> {
        let mut rooms = self.stream_rooms();
        if let Some(lingering) = &self.lingering {
            rooms.extend(lingering.rooms.keys().cloned());
            rooms.sort_unstable();
            rooms.dedup();
        }
        rooms
    }

    /// The rooms that any of their streams is in, each once, in order.
    fn stream_rooms(&self) -> Vec<Arc<str>> {
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
