//! What can be changed of an open stream, by its owner: `/v1/streams/{id}`. Each is a [`Command`] to the node that holds
//! the stream; what that node does with it stands here, too.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{CACHE_CONTROL, SET_COOKIE},
    },
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use super::{
    command::{self, Command},
    session,
    warden::caller,
};
use crate::{
    app::App,
    auth::{Caller, Verifier},
    bus::Message,
    error::{Code, Error, Result},
    hub::{ClosingReason, NotJoined, Refusal, Refused, Renewal, RoomsChanged, Wish},
    ids::Room,
    log::Position,
    web::{
        Body, Done, PathArg, Plain,
        openapi::{Responses, json as described},
    },
};

/// Which rooms a stream is to be in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveStream {
    /// Rooms to be in as well.
    #[serde(default)]
    join: Vec<Room>,
    /// Rooms to be in no longer.
    #[serde(default)]
    leave: Vec<Room>,
    /// What the client has of the rooms that it joins: a cursor. Their events since then come first.
    #[serde(default)]
    #[schema(value_type = Option<Position>)]
    after: Option<String>,
}

/// Join and leave rooms on an open stream
///
/// The stream goes on as it is; it says with `stream:rooms` that this is done, as the answer does. Rooms of the stream's
/// URL may be left as well. With `after` the joined rooms' events since that cursor come before `stream:rooms`, without
/// ids, and without those that a room joined earlier has brought. A stream that is cut before `stream:rooms`: join again.
/// Rooms joined here last as long as the stream: after a reconnect, join them again with `after`.
#[utoipa::path(
    post,
    path = "/v1/streams/{id}/rooms",
    params(("id" = Uuid, Path, description = "`streamId` of `stream:open`.")),
    request_body = inline(MoveStream),
    responses(
        (status = 403),
        (status = 404),
        (status = 409, description = "`cursor_not_resumable`: `after` cannot be resumed, and nothing is joined.")
    )
)]
pub(super) async fn move_stream(
    State(app): State<App>,
    asking: Caller,
    PathArg(stream): PathArg<Uuid>,
    Body(MoveStream { join, leave, after }): Body<MoveStream>,
) -> Result<Plain<RoomsChanged>> {
    let (join, leave) = (distinct(join), distinct(leave));
    check(&app, &asking, &join, &leave)?;
    let moved = command::send(&app, stream, Some(asking.sub), Command::Move { join, leave, after }).await?;
    serde_json::from_value(moved).map(Plain).map_err(Error::internal)
}

fn distinct(mut rooms: Vec<Room>) -> Vec<Room> {
    let mut seen = std::collections::HashSet::new();
    rooms.retain(|room| seen.insert(room.to_string()));
    rooms
}

fn check(app: &App, asking: &Caller, join: &[Room], leave: &[Room]) -> Result<()> {
    let most = app.config.limits.rooms_max as usize;
    if join.len() > most {
        return Err(Error::new(Code::TooManyRooms, format!("A stream is in at most {most} rooms.")));
    }
    if join.is_empty() && leave.is_empty() {
        return Err(Error::invalid_body("", "must name a room to join or to leave"));
    }
    if let Some(both) = leave.iter().position(|room| join.contains(room)) {
        return Err(Error::invalid_body(format!("/leave/{both}"), "is a room to join as well"));
    }
    if let Some(own) = leave.iter().position(|room| *room == Room::User(asking.sub.clone())) {
        return Err(Error::invalid_body(format!("/leave/{own}"), "is the caller's own room, which every stream is in"));
    }
    Ok(())
}

/// Has a stream of this node be in other rooms. What it joins is judged by the stream's own credentials, again when
/// somebody's rights were taken in between.
pub(super) async fn do_move(
    app: &App,
    stream: Uuid,
    join: Vec<Room>,
    leave: Vec<Room>,
    after: Option<String>,
) -> Result<Value> {
    let after = match after {
        Some(text) => Some(app.hub.after(&text).await?),
        None => None,
    };
    let leave: Vec<String> = leave.iter().map(Room::to_string).collect();
    let mut moved =
        if join.is_empty() { RoomsChanged::default() } else { join_rooms(app, stream, &join, &leave, after).await? };
    if !leave.is_empty() {
        moved.left = app.hub.leave(stream, &leave).ok_or_else(Error::not_found)?;
    }
    serde_json::to_value(moved).map_err(Error::internal)
}

/// Joins, and counts only what is there once those rooms were left that are left next.
async fn join_rooms(
    app: &App,
    stream: Uuid,
    join: &[Room],
    leave: &[String],
    after: Option<Position>,
) -> Result<RoomsChanged> {
    loop {
        let judged = app.hub.rights();
        let (holder, _) = app.hub.standing(stream).ok_or_else(Error::not_found)?;
        let may = app.joins.may_join(caller(&holder), join).await?;
        let names = |wanted: bool| {
            let rooms = join.iter().zip(&may).filter(move |(_, may)| **may == wanted);
            rooms.map(|(room, _)| room.to_string())
        };
        let rooms: Vec<String> = names(true).collect();
        if rooms.is_empty() {
            return Err(Error::forbidden("You may join none of these rooms."));
        }
        let refused = names(false).map(|room| Refused { room, reason: Refusal::Forbidden }).collect();
        let (leaving, rooms_max) = (leave.to_vec(), app.config.limits.rooms_max as usize);
        let wish = Wish { rooms, refused, after: after.clone(), leaving, rooms_max, holder, judged };
        match app.hub.join(stream, wish).await {
            Ok(moved) => return Ok(moved),
            Err(NotJoined::Stale) => {}
            Err(NotJoined::Gone) => return Err(Error::not_found()),
            Err(NotJoined::Failed(error)) => return Err(error),
        }
    }
}

/// What a stream goes on with. Nothing shows it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// A token of the same `sub`.
    token: String,
}

/// A stream that goes on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RenewedStream)]
pub(super) struct Renewed {
    /// When it ends now, unless it gets another token.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Put another token on an open stream
///
/// The stream ends when that token does, and is in those of its rooms that the token's user may be in: `stream:rooms`
/// says which it lost. The ticket or the session that it was opened with goes on with the token as well, and so do all
/// streams of that session. Send the session's cookie along: the answer sets it again, for else the browser drops it when
/// the token of before ends.
#[utoipa::path(
    put,
    path = "/v1/streams/{id}/token",
    params(("id" = Uuid, Path, description = "`streamId` of `stream:open`.")),
    request_body = inline(NewToken),
    responses((status = 403, description = "The token is somebody else's."), (status = 404))
)]
pub(super) async fn renew_stream(
    State(app): State<App>,
    State(verifier): State<Arc<Verifier>>,
    asking: Caller,
    PathArg(stream): PathArg<Uuid>,
    headers: HeaderMap,
    Body(NewToken { token }): Body<NewToken>,
) -> Result<GoesOn> {
    let renewed = verifier.verify(&token).await.map_err(|error| not_a_token(&error))?;
    if renewed.sub != asking.sub {
        return Err(Error::forbidden("The token is of another `sub` than the stream."));
    }
    if renewed.expires_at <= OffsetDateTime::now_utc() {
        return Err(Error::invalid_body("/token", "has expired"));
    }
    let renewed = command::send(&app, stream, Some(asking.sub), Command::Renew(Box::new(renewed))).await?;
    let (renewed, session): (Renewed, Option<Uuid>) = serde_json::from_value(renewed).map_err(Error::internal)?;
    let cookie = match (session, session::only(&headers)) {
        (Some(session), Some(cookie)) if app.sessions.is_of(&cookie, session).await? => {
            Some(cookie.set(renewed.expires_at))
        }
        _ => None,
    };
    Ok(GoesOn(Plain(renewed), cookie))
}

/// A stream that goes on, and its session's cookie, which lasts as long from now on.
pub(super) struct GoesOn(Plain<Renewed>, Option<HeaderValue>);

impl IntoResponse for GoesOn {
    fn into_response(self) -> Response {
        let headers = self.1.map(|cookie| [(CACHE_CONTROL, session::NO_STORE), (SET_COOKIE, cookie)]);
        (headers, self.0).into_response()
    }
}

impl IntoResponses for GoesOn {
    fn responses() -> Responses {
        let goes_on = described::<Renewed>("The stream goes on.").header("Set-Cookie", session::set_cookie());
        [("200".to_owned(), goes_on.build().into())].into()
    }
}

/// The request's own credentials were fine: what is wrong is in the body.
fn not_a_token(error: &Error) -> Error {
    match error.code() {
        Code::Unauthorized => Error::invalid_body("/token", error.problem().detail.clone()),
        _ => error.again(),
    }
}

/// Has a stream of this node go on with other credentials, and its ticket or its session with it.
pub(super) async fn do_renew(app: &App, stream: Uuid, renewed: Caller) -> Result<Value> {
    renew(app, stream, &renewed).await?;
    app.tickets.renew(stream, &renewed).await?;
    let session = app.sessions.renew(stream, &renewed).await?;
    if session.is_some() {
        app.bus.tell(Message::Sessions);
    }
    Ok(json!((Renewed { expires_at: renewed.expires_at }, session)))
}

/// Has a stream of this node go on with other credentials, and with those of its rooms that they give; judged again when
/// somebody's rights were taken in between.
///
/// # Errors
/// 404 when there is no such stream here, 503 when Postgres does not say what it may have.
pub(super) async fn renew(app: &App, stream: Uuid, renewed: &Caller) -> Result<()> {
    loop {
        let judged = app.hub.rights();
        let (_, rooms) = app.hub.standing(stream).ok_or_else(Error::not_found)?;
        let asked: Vec<Room> = rooms.iter().filter_map(|room| room.parse().ok()).collect();
        let may = app.joins.may_join(renewed, &asked).await?;
        let lost = asked.iter().zip(may).filter(|(_, may)| !may);
        let lost = lost.map(|(room, _)| Refused { room: room.to_string(), reason: Refusal::Revoked }).collect();
        let (holder, expires_at) = (Arc::new(renewed.clone()), renewed.expires_at);
        match app.hub.renew(stream, Renewal { holder, expires_at, rooms, lost, judged }) {
            Ok(()) => return Ok(()),
            Err(NotJoined::Stale) => {}
            Err(NotJoined::Gone) => return Err(Error::not_found()),
            Err(NotJoined::Failed(error)) => return Err(error),
        }
    }
}

/// End an open stream
///
/// It gets `stream:closing` with the reason `ended`. Nobody waits for its user to come back.
#[utoipa::path(
    delete,
    path = "/v1/streams/{id}",
    params(("id" = Uuid, Path, description = "`streamId` of `stream:open`.")),
    responses((status = 404))
)]
pub(super) async fn end_stream(State(app): State<App>, asking: Caller, PathArg(stream): PathArg<Uuid>) -> Result<Done> {
    command::send(&app, stream, Some(asking.sub), Command::End).await?;
    Ok(Done)
}

/// Ends a stream of this node.
pub(super) fn do_end(app: &App, stream: Uuid) -> Value {
    app.hub.end(stream, ClosingReason::Ended);
    Value::Null
}
