//! One room: who is in it, and whether they are too many to be told one by one.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::facts::Shown;
use crate::{ids, sse};

/// In a large room nobody is told anything more often than this.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Who is in a room: the data of `presence:snapshot`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = PresenceSnapshotData)]
pub struct Snapshot {
    /// The room.
    #[schema(value_type = ids::Room)]
    pub(super) room: Arc<str>,
    /// How many are in it.
    pub(super) total: usize,
    /// At most `presence-users-max` of them: those who edit first, then those who view.
    pub(super) users: Vec<Shown>,
    #[serde(skip)]
    frame: OnceLock<Bytes>,
}

impl Snapshot {
    pub(super) fn new(room: Arc<str>, total: usize, users: Vec<Shown>) -> Self {
        Self { room, total, users, frame: OnceLock::new() }
    }

    /// It as a frame, encoded once for all who get it.
    pub(super) fn frame(&self) -> Bytes {
        let data = || serde_json::to_string(self).expect("data is plain text and numbers");
        self.frame.get_or_init(|| sse::event("presence:snapshot", None, &data())).clone()
    }
}

/// A room with somebody in it.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The users in it, in the order that snapshots have.
    pub(super) users: BTreeSet<Arc<str>>,
    /// What only a large room needs.
    large: Option<Box<Large>>,
}

/// A room that is told counts.
#[derive(Debug, Default)]
struct Large {
    /// The total that everybody in the room has been told; none when some were told another one.
    told: Option<usize>,
    told_at: Option<Instant>,
    /// When it is told next.
    due: Option<Instant>,
    snapshot: Option<(Instant, Arc<Snapshot>)>,
}

/// How a room is told of what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Each change is told.
    Changes,
    /// Only how many there are.
    Counts,
    /// Counts were told until now, and everything is told once.
    Anew,
}

impl Room {
    /// How the room is told of a change that it has just gone through. It is large from one more than `max` users on, and
    /// until it has a tenth less, so that one person who comes and goes does not turn it.
    pub(super) fn way(&mut self, max: usize) -> Way {
        let total = self.users.len();
        match self.large {
            None if total > max => self.large = Some(Box::default()),
            None => return Way::Changes,
            Some(_) if total <= (max - max.div_ceil(10)).max(1) => {
                self.large = None;
                return Way::Anew;
            }
            Some(_) => {}
        }
        Way::Counts
    }

    /// Asks for the room to be told its total; when that is, if it was not asked for already.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Instant> {
        let large = self.large.as_mut().filter(|large| large.due.is_none())?;
        let due = large.told_at.map_or(now, |told| now.max(told + EVERY));
        large.due = Some(due);
        Some(due)
    }

    /// The total, if it is due at that moment and new to anybody.
    pub(super) fn count(&mut self, due: Instant, now: Instant) -> Option<usize> {
        let total = self.users.len();
        let large = self.large.as_mut().filter(|large| large.due == Some(due))?;
        large.due = None;
        if large.told.replace(total) == Some(total) {
            return None;
        }
        large.told_at = Some(now);
        Some(total)
    }

    /// A snapshot of a large room that is young enough to be given out again.
    pub(super) fn kept_snapshot(&self, now: Instant) -> Option<Arc<Snapshot>> {
        let (taken, snapshot) = self.large.as_ref()?.snapshot.as_ref()?;
        (now < *taken + EVERY).then(|| snapshot.clone())
    }

    /// Keeps a large room's snapshot.
    pub(super) fn keep(&mut self, now: Instant, snapshot: &Arc<Snapshot>) {
        if let Some(large) = &mut self.large {
            large.snapshot = Some((now, snapshot.clone()));
        }
    }

    /// Notes that somebody is given a snapshot with this total; whether a count must follow, so that they are not left
    /// with it.
    pub(super) fn gave(&mut self, total: usize) -> bool {
        let Some(large) = self.large.as_mut().filter(|large| large.told != Some(total)) else { return false };
        large.told = None;
        true
    }
}
