//! What streams are told of presence and typing: frames without an id, which are in no log.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    room::Snapshot,
    typing::{Told, Typist},
    view::News,
};
use crate::{ids::Room, sse};

/// A frame for the streams of a room. Who misses it is told better by the next one, or by a snapshot.
#[derive(Debug, Clone)]
pub struct Whisper {
    /// The room.
    pub room: Arc<str>,
    /// The event's name, which a stream may not want.
    pub kind: &'static str,
    /// The bytes.
    pub frame: Bytes,
    /// Which streams of the room.
    pub ear: Ear,
}

/// Who of a room is to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ear {
    /// Everybody.
    All,
    /// All streams but this one.
    AllBut(Uuid),
    /// This stream alone.
    Only(Uuid),
}

/// How many are in a large room: the data of `presence:count`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PresenceCountData)]
pub struct Count<'a> {
    /// The room.
    #[schema(value_type = Room)]
    room: &'a str,
    /// How many are in it.
    total: usize,
}

impl Whisper {
    /// What a room is told of its users; not told to a stream that is told everything next.
    pub(super) fn of_news(news: News, but: Option<Uuid>) -> Self {
        let ear = but.map_or(Ear::All, Ear::AllBut);
        match news {
            News::Changed(shown) => {
                Self { frame: frame("presence:change", &shown), room: shown.room, kind: "presence:change", ear }
            }
            News::Counted(room, total) => {
                let frame = frame("presence:count", &Count { room: &room, total });
                Self { room, kind: "presence:count", frame, ear }
            }
            News::Anew(snapshot) => Self::of_snapshot(&snapshot, ear),
        }
    }

    pub(super) fn of_snapshot(snapshot: &Snapshot, ear: Ear) -> Self {
        Self { room: snapshot.room.clone(), kind: "presence:snapshot", frame: snapshot.frame(), ear }
    }

    /// What a project's room is told of a typist; their own stream knows.
    pub(super) fn of_typing(told: &Told) -> Option<Self> {
        Self::of_typist(told, Ear::AllBut(told.stream))
    }

    /// None where there is no project.
    pub(super) fn of_typist(told: &Told, ear: Ear) -> Option<Self> {
        let place = &told.place;
        let (user_id, name, field) = (&*place.sub, told.name.as_deref(), &*place.field);
        let typist = Typist { user_id, name, project_id: place.project()?, field };
        let kind = if told.is_typing { "typing:start" } else { "typing:stop" };
        Some(Self { room: place.room.clone(), kind, frame: frame(kind, &typist), ear })
    }
}

fn frame(kind: &str, data: &impl Serialize) -> Bytes {
    sse::event(kind, None, &serde_json::to_string(data).expect("data is plain text and numbers"))
}
