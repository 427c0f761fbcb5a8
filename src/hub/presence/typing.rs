//! Who types where. It is said again and again while it lasts, and ends by itself where it is not.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::facts::Who;
use crate::ids::{Room, Sub};

/// Fields that one stream may be typing in at once.
pub const FIELDS_MAX: usize = 8;

/// Typists that whoever comes to a room is told of. Those of a room that has more are seen when they begin anew.
pub(super) const TYPISTS_MAX: usize = 50;

/// The data of `typing:start` and `typing:stop`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TypingData)]
pub struct Typist<'a> {
    /// Their `sub`.
    #[schema(value_type = Sub)]
    pub(super) user_id: &'a str,
    /// What they are called.
    #[schema(required)]
    pub(super) name: Option<&'a str>,
    /// The project.
    pub(super) project_id: Uuid,
    /// The field, as their client calls it.
    pub(super) field: &'a str,
}

/// That one stream is typing in more fields than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream types in at most {FIELDS_MAX} fields at once")]
pub struct TooManyFields;

/// Somebody has begun to type, or does not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) place: Arc<Place>,
    pub(super) name: Option<Box<str>>,
    pub(super) is_typing: bool,
    /// The stream that caused it.
    pub(super) stream: Uuid,
}

/// Where somebody types. Those of a room come together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) room: Arc<str>,
    pub(super) field: Arc<str>,
    pub(super) sub: Arc<str>,
}

impl Place {
    /// The project whose room it is; other rooms have no typing.
    pub(super) fn project(&self) -> Option<Uuid> {
        match self.room.parse() {
            Ok(Room::Project(id)) => Some(id),
            _ => None,
        }
    }
}

/// What a user is called who types somewhere, and the streams that do, each with when that ends.
type Typists = (Option<Box<str>>, Vec<(Uuid, Instant)>);

/// Everybody who types.
#[derive(Debug)]
pub(super) struct Typing {
    /// How long it lasts when it is not said again.
    ttl: Duration,
    places: BTreeMap<Arc<Place>, Typists>,
    streams: HashMap<Uuid, Vec<Arc<Place>>>,
    ends: BTreeSet<(Instant, Uuid, Arc<Place>)>,
}

impl Typing {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, places: BTreeMap::new(), streams: HashMap::new(), ends: BTreeSet::new() }
    }

    /// A stream's user types in a field of a project, or does still.
    ///
    /// # Errors
    /// When the stream is in too many fields already.
    pub(super) fn start(
        &mut self,
        stream: Uuid,
        who: &Who,
        room: &Arc<str>,
        field: &Arc<str>,
        now: Instant,
    ) -> Result<Option<Told>, TooManyFields> {
        let place = Arc::new(Place { room: room.clone(), field: field.clone(), sub: who.sub.clone() });
        let ends = now + self.ttl;
        if let Some((_, streams)) = self.places.get_mut(&place)
            && let Some((_, until)) = streams.iter_mut().find(|(id, _)| *id == stream)
        {
            self.ends.remove(&(*until, stream, place.clone()));
            *until = ends;
            self.ends.insert((ends, stream, place));
            return Ok(None);
        }
        let fields = self.streams.entry(stream).or_default();
        if fields.len() >= FIELDS_MAX {
            return Err(TooManyFields);
        }
        fields.push(place.clone());
        self.ends.insert((ends, stream, place.clone()));
        let (name, streams) = self.places.entry(place.clone()).or_insert_with(|| (who.name.clone(), Vec::new()));
        streams.push((stream, ends));
        Ok((streams.len() == 1).then(|| Told { place, name: name.clone(), is_typing: true, stream }))
    }

    /// A stream's user does not type there any more.
    pub(super) fn stop(&mut self, stream: Uuid, room: &str, field: &str) -> Option<Told> {
        let is_it = |place: &&Arc<Place>| &*place.room == room && &*place.field == field;
        let place = self.streams.get(&stream)?.iter().find(is_it)?.clone();
        self.end(stream, &place)
    }

    /// A stream is in no room but these: where else it was typing, that has ended.
    pub(super) fn keep_in(&mut self, stream: Uuid, rooms: &[&str]) -> Vec<Told> {
        let places = self.streams.get(&stream).cloned().unwrap_or_default();
        let left = places.iter().filter(|place| !rooms.contains(&&*place.room));
        left.filter_map(|place| self.end(stream, place)).collect()
    }

    /// Who types in a room, for a stream that comes to it: not all, if they are very many.
    pub(super) fn in_room(&self, room: &str, stream: Uuid) -> Vec<Told> {
        let first = Place { room: room.into(), field: "".into(), sub: "".into() };
        let here = self.places.range::<Place, _>(first..).take_while(|(place, _)| *place.room == *room);
        here.take(TYPISTS_MAX)
            .map(|(place, (name, _))| Told { place: place.clone(), name: name.clone(), is_typing: true, stream })
            .collect()
    }

    /// What ends by time.
    pub(super) fn passed(&mut self, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some((_, stream, place)) = self.ends.first().filter(|(ends, ..)| *ends <= now).cloned() {
            told.extend(self.end(stream, &place));
        }
        told
    }

    /// When something ends by time next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ends.first().map(|(ends, ..)| *ends)
    }

    /// The streams that type.
    pub(super) fn streams(&self) -> impl Iterator<Item = Uuid> {
        self.streams.keys().copied()
    }

    /// Where somebody types.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn end(&mut self, stream: Uuid, place: &Arc<Place>) -> Option<Told> {
        let (name, streams) = self.places.get_mut(place)?;
        let nth = streams.iter().position(|(id, _)| *id == stream)?;
        let (_, ends) = streams.swap_remove(nth);
        self.ends.remove(&(ends, stream, place.clone()));
        let is_last = streams.is_empty();
        let name = name.clone();
        if is_last {
            self.places.remove(place);
        }
        let fields = self.streams.get_mut(&stream).expect("a stream that types has its fields");
        fields.retain(|other| other != place);
        if fields.is_empty() {
            self.streams.remove(&stream);
        }
        is_last.then(|| Told { place: place.clone(), name, is_typing: false, stream })
    }
}
