//! `GET /events`: who may listen to what, and from where. The stream itself is the hub's session.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use utoipa::{
    IntoParams, IntoResponses,
    openapi::{ContentBuilder, ResponseBuilder},
};
use uuid::Uuid;

use super::{
    address::Address,
    come_back::{EVENT_STREAM, NEVER_CHANGED, STREAM_HEADERS},
    openapi::{always, sent},
    security::Kind,
};
use crate::{
    app::App,
    auth::{
        Caller, session,
        ticket::{self, Brought, Listener, Made, Tickets},
    },
    error::{Code, Error, Result},
    hub::{NotJoined, Opening, Refusal, Refused, Session},
    ids::{Room, TypeFilter},
    log::Position,
    web::{
        Query,
        openapi::{Responses, json},
    },
};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// Names of rooms, separated by commas; at most `rooms-max` of them, counted without repeats.
    #[serde(default)]
    #[param(default = "company", example = "company,division:north")]
    rooms: String,
    /// Types of events, or their prefixes, separated by commas. `stream:*` and `heartbeat` always pass. A name that cannot
    /// come is 400.
    #[serde(default)]
    #[param(default = "", example = "project,membership:changed")]
    types: String,
    /// A ticket from `POST /v1/stream-tickets`, for clients that cannot send the `Authorization` header, which goes before it.
    /// Its caller is told in a stream of one `stream:closing` when to come back, where others get 408, 429 or a 5xx.
    #[serde(default, rename = "ticket")]
    #[param(value_type = Option<String>, nullable = false)]
    _ticket: Option<IgnoredAny>,
    /// The same as the header, for clients that cannot send it.
    #[serde(default)]
    #[param(value_type = Position)]
    last_event_id: String,
}

/// A stream, and what it was opened with. There are ten thousand of them, and most have only the first: the second is elsewhere.
pub(super) struct Stream {
    session: Session,
    _kept: Option<Box<Kept>>,
}

/// What is kept for as long as a stream lasts.
enum Kept {
    /// The ticket stays good.
    Ticket { _held: ticket::Held },
    /// The stream has a place among those of its session.
    Session { _held: session::Held },
}

impl Kept {
    fn by(app: &App, brought: Brought, stream: Uuid) -> Self {
        match brought {
            Brought::Ticket(ticket) => Self::Ticket { _held: app.tickets.hold(ticket, stream) },
            Brought::Session(session) => Self::Session { _held: app.sessions.hold(session, stream) },
        }
    }
}

/// Make a ticket for a browser's stream
///
/// An `EventSource` sends no headers: it says who listens with `?ticket=`, where it has no cookie of a session. A ticket is good for `GET /events` only, by `expiresAt`; once
/// used it is good for as long as a stream of its lasts and for `ticket-idle` after that, never past the token that it was
/// made with.
#[utoipa::path(post, path = "/v1/stream-tickets")]
pub(super) async fn make_ticket(State(tickets): State<Tickets>, caller: Caller) -> Result<NewTicket> {
    tickets.make(&caller).await.map(NewTicket)
}

/// A ticket, shown once.
pub(super) struct NewTicket(Made);

impl IntoResponse for NewTicket {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(self.0)).into_response()
    }
}

impl IntoResponses for NewTicket {
    fn responses() -> Responses {
        let made = json::<Made>("It was made.").header("Cache-Control", always("no-store"));
        [("201".to_owned(), made.build().into())].into()
    }
}

/// Follow the events of some rooms
///
/// Opens a stream of Server-Sent Events. Its first event is `stream:open`.
///
/// Without `rooms` the stream is in `company`. The caller's own `user:` room is always joined and not counted. Rooms that
/// the caller may not join are listed in `stream:open`; if that is all of them, the answer is 403.
///
/// To resume, send the last `id` that was read: as the header `Last-Event-ID`, which browsers do by themselves, or as the
/// parameter `last_event_id`. The `Crewcast-Cursor` of a read is such an id too. Every event of the rooms since then
/// follows once. Where that is not possible the stream says so with `stream:reset`: read the state again.
#[utoipa::path(
    get,
    path = "/events",
    params(
        Parameters,
        (
            "Last-Event-ID" = Option<Position>,
            Header,
            nullable = false,
            description = "The position to resume from. It goes before the parameter; an empty one is none."
        )
    ),
    responses((status = 403))
)]
pub(super) async fn follow_events(
    State(app): State<App>,
    address: Address,
    Listener { caller, brought }: Listener,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Result<Stream> {
    let asked = rooms(&parameters.rooms, app.config.limits.rooms_max as usize)?;
    let types = TypeFilter::parse(&parameters.types)
        .map_err(|error| Error::new(Code::InvalidQuery, format!("types: {error}.")))?;
    let stream_id = app.node.stream();
    let kept = brought.map(|brought| Box::new(Kept::by(&app, brought, stream_id)));
    let last_event_id = last_event_id(&headers, parameters.last_event_id);
    let session = open(&app, stream_id, &caller, &asked, types, last_event_id).await;
    let session = session.inspect_err(|error| {
        if error.code() == Code::TooManyStreams {
            app.security.note(Kind::TooManyStreams, address, Some(&caller.sub));
        }
    })?;
    Ok(Stream { session, _kept: kept })
}

/// Judges the rooms and opens the stream; anew, when somebody's rights were taken in between.
async fn open(
    app: &App,
    stream_id: Uuid,
    caller: &Caller,
    asked: &[Room],
    types: TypeFilter,
    last_event_id: Option<String>,
) -> Result<Session> {
    let holder = Arc::new(caller.clone());
    loop {
        let judged = app.hub.rights();
        let (rooms, refused) = judge(app, caller, asked).await?;
        let opening = Opening {
            stream_id,
            holder: holder.clone(),
            rooms,
            judged,
            refused,
            types: types.clone(),
            last_event_id: last_event_id.clone(),
            expires_at: caller.expires_at,
        };
        match Session::open(&app.hub, opening).await {
            Ok(session) => return Ok(session),
            Err(NotJoined::Failed(error)) => return Err(error),
            Err(NotJoined::Stale | NotJoined::Gone) => {}
        }
    }
}

impl IntoResponse for Stream {
    fn into_response(self) -> Response {
        (STREAM_HEADERS, Body::new(self)).into_response()
    }
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.session).poll_frame(cx)
    }
}

/// The beginning of a stream.
const EXAMPLE: &str = r#"retry: 2000
event: stream:open
id: d781d231-B
data: {"streamId":"01a20834-c383-77bb-b50e-69c92aaca66a","user":{"id":"ana","name":null},"rooms":["company","division:north","user:ana"],"refused":[],"resume":"live","heartbeatMs":15000,"node":"2226"}

event: project:updated
id: d781d231--W
data: {"projectId":"01a20834-c789-71f3-93b9-1d13b4f86540","field":"endsOn","newValue":"2026-12-06","updatedBy":"ana","meta":{"seq":2,"at":"2026-11-23T11:40:06.463Z","rooms":["project:01a20834-c789-71f3-93b9-1d13b4f86540","division:north"],"version":2}}

"#;

impl IntoResponses for Stream {
    fn responses() -> Responses {
        let frames = ContentBuilder::new().schema(Some(sent())).example(Some(EXAMPLE.into()));
        let stream = ResponseBuilder::new()
            .description("The stream. It lasts until the client or the server ends it, or the token expires.")
            .header("Cache-Control", always(NEVER_CHANGED))
            .header("X-Accel-Buffering", always("no"))
            .content(EVENT_STREAM, frames.build());
        [("200".to_owned(), stream.into())].into()
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
async fn judge(app: &App, caller: &Caller, asked: &[Room]) -> Result<(Vec<String>, Vec<Refused>)> {
    let own = Room::User(caller.sub.clone());
    let may = app.joins.may_join(caller, asked).await?;
    let (mut joined, mut refused) = (Vec::new(), Vec::new());
    for (room, may) in asked.iter().zip(may) {
        if may {
            joined.push(room.to_string());
        } else {
            refused.push(Refused { room: room.to_string(), reason: Refusal::Forbidden });
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
