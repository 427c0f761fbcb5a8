//! `GET /events`: who may listen to what, and from where. The stream itself is the hub's session.

use axum::{
    body::Body,
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{address::Address, security::Kind};
use crate::{
    app::App,
    auth::Caller,
    error::{Code, Error, Result},
    hub::{Opening, Refused, Session, User},
    ids::{Room, TypeFilter},
    web::Query,
};

#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    #[serde(default)]
    rooms: String,
    #[serde(default)]
    types: String,
    #[serde(default)]
    last_event_id: String,
}

/// Opens a stream.
pub(super) async fn events(
    State(app): State<App>,
    address: Address,
    caller: Caller,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Result<Response> {
    let asked = rooms(&parameters.rooms, app.config.limits.rooms_max as usize)?;
    let types = TypeFilter::parse(&parameters.types)
        .map_err(|error| Error::new(Code::InvalidQuery, format!("types: {error}.")))?;
    let (joined, refused) = judge(&app, &caller, asked).await?;
    let opening = Opening {
        stream_id: uuid::Uuid::now_v7(),
        user: User { id: caller.sub.to_string(), name: caller.name },
        rooms: joined,
        refused,
        types,
        last_event_id: last_event_id(&headers, parameters.last_event_id),
        expires_at: caller.expires_at,
    };
    let session = Session::open(&app.hub, opening).await.inspect_err(|error| {
        if error.code() == Code::TooManyStreams {
            app.security.note(Kind::TooManyStreams, address, Some(&caller.sub));
        }
    })?;
    Ok(reply(session))
}

fn reply(session: Session) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        // Tells nginx not to collect events into a buffer.
        ("x-accel-buffering".parse().expect("a header name"), HeaderValue::from_static("no")),
    ];
    (headers, Body::new(session)).into_response()
}

/// The rooms that were asked for, each once; `company` when none was named.
fn rooms(list: &str, max: usize) -> Result<Vec<Room>> {
    let mut rooms = Vec::new();
    for name in list.split(',').filter(|name| !name.is_empty()) {
        let room = name.parse().map_err(|error| Error::new(Code::InvalidRoom, format!("rooms: {error}.")))?;
        if !rooms.contains(&room) {
            rooms.push(room);
        }
        if rooms.len() > max {
            return Err(Error::new(
                Code::TooManyRooms,
                format!("A stream is in at most {max} rooms; {name} is one more."),
            ));
        }
    }
    if rooms.is_empty() {
        rooms.push(Room::Company);
    }
    Ok(rooms)
}

/// Which rooms the stream gets. The caller's own is among them without being asked for.
async fn judge(app: &App, caller: &Caller, asked: Vec<Room>) -> Result<(Vec<String>, Vec<Refused>)> {
    let own = Room::User(caller.sub.clone());
    let may = app.joins.may_join(caller, &asked).await?;
    let (mut joined, mut refused) = (Vec::new(), Vec::new());
    for (room, may) in asked.into_iter().zip(may) {
        if may {
            joined.push(room.to_string());
        } else {
            refused.push(Refused { room: room.to_string(), reason: "forbidden" });
        }
    }
    if joined.is_empty() {
        return Err(Error::forbidden("You may join none of the rooms that you asked for."));
    }
    let own = own.to_string();
    if !joined.contains(&own) {
        joined.push(own);
    }
    Ok((joined, refused))
}

/// The header that browsers send by themselves goes before the parameter; an empty one is none. What is not text is no
/// position either, and is judged as one.
fn last_event_id(headers: &HeaderMap, parameter: String) -> Option<String> {
    let header = headers.get("last-event-id").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    header.filter(|id| !id.is_empty()).or(Some(parameter).filter(|id| !id.is_empty()))
}
