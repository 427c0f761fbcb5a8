//! `GET /events`: who may listen to what, and from where. The stream itself is the hub's session.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;

use super::{address::Address, come_back::STREAM_HEADERS, security::Kind};
use crate::{
    app::App,
    auth::{
        Caller,
        ticket::{Held, Listener, Tickets},
    },
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

/// Makes a ticket, with which a browser's `EventSource` opens a stream.
pub(super) async fn ticket(State(tickets): State<Tickets>, caller: Caller) -> Result<Response> {
    let made = tickets.make(&caller).await?;
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(made)).into_response())
}

/// Opens a stream.
pub(super) async fn events(
    State(app): State<App>,
    address: Address,
    Listener { caller, ticket }: Listener,
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
    Ok((STREAM_HEADERS, Body::new(Listening { session, _ticket: ticket })).into_response())
}

/// A stream, and the ticket that is good for as long as it lasts.
struct Listening {
    session: Session,
    _ticket: Option<Held>,
}

impl http_body::Body for Listening {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.session).poll_frame(cx)
    }
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
