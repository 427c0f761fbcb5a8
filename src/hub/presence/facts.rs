//! What is known of one stream, and what is shown of a user.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::ids::{Room, Sub};

/// Somebody who is shown to others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Who {
    /// Their `sub`.
    pub sub: Arc<str>,
    /// What they are called.
    pub name: Option<Box<str>>,
    /// A picture of them.
    pub avatar_url: Option<Box<str>>,
}

impl Who {
    /// Somebody with this name. Postgres keeps no NUL, so no name has one.
    pub fn new(sub: &str, name: Option<&str>, avatar_url: Option<&str>) -> Self {
        let kept = |text: &str| text.replace('\0', "").into_boxed_str();
        Self { sub: sub.into(), name: name.map(kept), avatar_url: avatar_url.map(kept) }
    }
}

/// Whether somebody is at their desk, as their client says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PresenceStatus)]
pub enum Status {
    /// They do something.
    Online,
    /// They have done nothing for a while.
    Idle,
}

/// What somebody is editing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = PresenceEditing)]
pub struct Editing {
    /// The room of the thing that the field is part of.
    #[schema(value_type = Room)]
    pub room: Arc<str>,
    /// The field.
    #[schema(value_type = String)]
    pub field: Arc<str>,
}

/// What a stream's client said last about what its user does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// Orders the reports of a user's streams, on all nodes.
    pub stamp: i64,
    /// A room, or a page's path.
    pub viewing: Option<Arc<str>>,
    /// What they edit.
    pub editing: Option<Editing>,
}

/// What a client says of its user. What it leaves out stays as it was.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Update {
    /// Whether they are at their desk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// What they look at, or that they look at nothing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub viewing: Option<Option<Arc<str>>>,
    /// What they edit, or that they edit nothing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub editing: Option<Option<Editing>>,
}

impl Update {
    /// Both as one, when they are said one after the other.
    pub(super) fn then(self, later: Self) -> Self {
        Self {
            status: later.status.or(self.status),
            viewing: later.viewing.or(self.viewing),
            editing: later.editing.or(self.editing),
        }
    }
}

/// What is there is given, also when it is null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// All that is known of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Whose it is.
    pub who: Arc<Who>,
    /// The rooms it is in that have presence, each once, in order.
    pub rooms: Box<[Arc<str>]>,
    /// What its client said.
    pub status: Status,
    /// What its client reported, if it has.
    pub report: Option<Arc<Report>>,
    /// When it stops to count; none while it is open.
    pub ends: Option<Instant>,
}

impl Facts {
    /// What a client's word makes of the stream.
    pub(super) fn report(&mut self, update: Update, stamp: i64) {
        self.status = update.status.unwrap_or(self.status);
        let (viewing, editing) = match self.report.as_deref() {
            Some(last) => (last.viewing.clone(), last.editing.clone()),
            None => (None, None),
        };
        let (viewing, editing) = (update.viewing.unwrap_or(viewing), update.editing.unwrap_or(editing));
        self.report = Some(Arc::new(Report { stamp, viewing, editing }));
    }
}

/// Of these rooms, those that have presence, each once, in order.
pub(super) fn with_presence<S: AsRef<str>>(rooms: &[S]) -> Vec<&str> {
    let has_presence = |name: &&str| name.parse::<Room>().is_ok_and(|room| room.has_presence());
    let mut rooms: Vec<&str> = rooms.iter().map(AsRef::as_ref).filter(has_presence).collect();
    rooms.sort_unstable();
    rooms.dedup();
    rooms
}

/// A user as the others in one room see them: each of `users` in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PresenceUser)]
pub struct Shown {
    /// Their `sub`.
    #[schema(value_type = Sub)]
    pub user_id: Arc<str>,
    /// What they are called.
    #[schema(value_type = Option<String>, required)]
    pub name: Option<Box<str>>,
    /// A picture of them.
    #[schema(value_type = Option<String>, required)]
    pub avatar_url: Option<Box<str>>,
    /// `online` when any of their streams is, `idle` when all are, `offline` when they have left the room.
    pub status: ShownStatus,
    /// Where they are seen so.
    #[schema(value_type = Room)]
    pub room: Arc<str>,
    /// This room, or a page's path: what their stream that reported last says, if it is no other room.
    #[schema(value_type = Option<String>, required)]
    pub viewing: Option<Arc<str>>,
    /// What they edit in this room, as their stream that reported last says.
    #[schema(required)]
    pub editing: Option<Editing>,
}

/// How a user is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PresenceShownStatus)]
pub enum ShownStatus {
    /// Any of their streams is active.
    Online,
    /// All of their streams are idle.
    Idle,
    /// They are not in the room any more.
    Offline,
}

impl From<Status> for ShownStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Online => Self::Online,
            Status::Idle => Self::Idle,
        }
    }
}
