//! What an event is: as it is appended, and as it is read back.
//!
//! An event's `data` goes out as one line of JSON: the publisher's object with the white space outside its strings
//! dropped and nothing else changed, and `meta` as its last member. The line is a pure function of the stored row, so
//! a replay gives byte for byte what went out live.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{FromRow, Row as _, postgres::PgRow};
use time::{OffsetDateTime, format_description::FormatItem, macros::format_description};
use utoipa::ToSchema;

use crate::ids::{EventType, Room};

/// An event to append.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The rooms it is addressed to: 1 to 20 names, each once.
    pub rooms: Vec<String>,
    /// Its name, such as `project:updated`.
    pub kind: Cow<'static, str>,
    /// Its payload: a JSON object without a member `meta`.
    pub data: Box<RawValue>,
    /// The version of the entity it speaks of, after the change.
    pub version: Option<i64>,
}

impl NewEvent {
    /// An event about version `version` of an entity.
    ///
    /// # Panics
    /// When `data` does not serialise: payloads are plain structs of ours.
    pub fn new(kind: &'static str, rooms: Vec<String>, version: i64, data: &impl Serialize) -> Self {
        Self { version: Some(version), ..Self::unversioned(kind, rooms, data) }
    }

    /// An event about something that has no versions.
    ///
    /// # Panics
    /// As [`NewEvent::new`].
    pub fn unversioned(kind: &'static str, rooms: Vec<String>, data: &impl Serialize) -> Self {
        let data = serde_json::value::to_raw_value(data).expect("payloads are structs with text keys");
        Self { rooms, kind: kind.into(), data, version: None }
    }

    /// An event of a publisher's own, whose payload is a JSON object without a `meta`.
    pub fn custom(kind: &EventType, room: &Room, data: Box<RawValue>) -> Self {
        Self { rooms: vec![room.to_string()], kind: kind.to_string().into(), data, version: None }
    }
}

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number: unique, drawn in the order of the writes to one entity.
    pub seq: i64,
    /// The transaction that published it, in the log's own count.
    pub xact: i64,
    /// When it was appended.
    pub at: OffsetDateTime,
    /// Its name, such as `project:updated`.
    pub kind: String,
    /// The rooms it is addressed to.
    pub rooms: Vec<String>,
    /// Its payload with `meta`, one line of JSON.
    pub data: String,
}

/// The columns that [`Meta`] is decoded from. A time that is no date of ours is read as null, which fails at this row alone.
macro_rules! meta_columns {
    () => {
        "seq, xact, case when at between '0001-01-01' and '9999-12-31' then at end as at, type, rooms, version, mutation_id"
    };
}

/// The columns of a row of `crewcast.events` that [`Event`] is decoded from. `$1` is the largest payload in bytes that
/// is sent; a larger one is read as null and goes out as a reference.
macro_rules! event_columns {
    () => {
        concat!(
            $crate::log::event::meta_columns!(),
            ", case when octet_length(data::text) <= $1 then data::text end as data"
        )
    };
}
pub(super) use {event_columns, meta_columns};

impl FromRow<'_, PgRow> for Event {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let (seq, rooms): (i64, Vec<String>) = (row.try_get("seq")?, row.try_get("rooms")?);
        let meta = Meta {
            seq,
            at: row.try_get("at")?,
            rooms: &rooms,
            version: row.try_get("version")?,
            mutation_id: row.try_get("mutation_id")?,
        };
        let (at, data) = (meta.at, line(row.try_get("data")?, &meta));
        Ok(Self { seq, xact: row.try_get("xact")?, at, kind: row.try_get("type")?, data, rooms })
    }
}

/// What the server adds to every payload of the log, as its last member.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Meta<'a> {
    /// The event's number. It is not a position.
    seq: i64,
    /// When it was appended.
    #[serde(serialize_with = "milliseconds")]
    at: OffsetDateTime,
    /// The rooms it is addressed to, without `user:` rooms.
    #[serde(serialize_with = "without_users")]
    #[schema(value_type = Vec<Room>)]
    rooms: &'a [String],
    /// The version of what it speaks of, after the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1)]
    version: Option<i64>,
    /// The `Idempotency-Key` of the request that changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    mutation_id: Option<String>,
}

const MILLISECONDS: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

fn milliseconds<S: serde::Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    let text = at.to_offset(time::UtcOffset::UTC).format(MILLISECONDS).map_err(serde::ser::Error::custom)?;
    serializer.serialize_str(&text)
}

/// Whoever shares a room with somebody is not told by `meta` that the event also went to that person's own room.
fn without_users<S: serde::Serializer>(rooms: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rooms.iter().filter(|room| !room.starts_with("user:")))
}

/// The payload with `meta` as its last member, or a reference to it when it was too large to be read.
fn line(data: Option<&str>, meta: &Meta<'_>) -> String {
    let mut line = match data {
        Some(data) => compact(data),
        None => format!(r#"{{"ref":"/v1/events/{}"}}"#, meta.seq),
    };
    debug_assert!(line.ends_with('}'), "the log stores JSON objects only");
    line.pop();
    if line.len() > 1 {
        line.push(',');
    }
    line.push_str(r#""meta":"#);
    line.push_str(&serde_json::to_string(meta).expect("meta is plain text and numbers"));
    line.push('}');
    line
}

/// Valid JSON without the white space outside its strings: the same value, on one line.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + 128);
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if !in_string && matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        }
        out.push(c);
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(rooms: &[String]) -> Meta<'_> {
        Meta { seq: 7, at: OffsetDateTime::UNIX_EPOCH, rooms, version: None, mutation_id: None }
    }

    #[test]
    fn meta_comes_last_and_keeps_users_to_itself() {
        let rooms = ["company".to_owned(), "user:ana".to_owned()];
        let expected = r#""meta":{"seq":7,"at":"1970-01-01T00:00:00.000Z","rooms":["company"]}}"#;
        assert_eq!(line(Some("{}"), &meta(&rooms)), format!("{{{expected}"));
        assert_eq!(line(Some("{ \"a\" :\n 1 }"), &meta(&rooms)), format!(r#"{{"a":1,{expected}"#));
        assert_eq!(line(None, &meta(&rooms)), format!(r#"{{"ref":"/v1/events/7",{expected}"#));
    }

    #[test]
    fn white_space_and_quotes_inside_strings_stay() {
        assert_eq!(compact(r#"{ "a \" b\\" : "c  d" }"#), r#"{"a \" b\\":"c  d"}"#);
    }

    proptest! {
        #[test]
        fn compacting_changes_nothing_but_white_space(text in ".*", key in "[ a-z\\\\\"]{0,8}", n in any::<i64>()) {
            let value = serde_json::json!({ key: { "t": text }, "n": [n, null, {}] });
            let pretty = serde_json::to_string_pretty(&value).expect("valid");
            prop_assert_eq!(compact(&pretty), serde_json::to_string(&value).expect("valid"));
        }
    }
}
