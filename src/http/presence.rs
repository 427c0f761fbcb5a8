//! Presence: who is in a room, and what a stream's client says of its user. The picture itself is the hub's.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::command::{self, Command};
use crate::{
    app::App,
    auth::{Caller, Person},
    bus::Message,
    error::{Code, Error, Result},
    hub::presence::{Editing, NotTyping, Snapshot, Status, Update},
    ids::{Room, Text},
    web::{self, Body, Done, Patch, PathArg, Plain, Query, present},
};

/// What a page or a field may be called.
type Label = Text<1, 200>;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// The room.
    #[param(value_type = Room, example = "company")]
    room: String,
}

/// Read who is in a room
///
/// As `presence:snapshot` says it: at most `presence-users-max` users, those who edit first, then those who view. That of a
/// large room may be a second old. For whoever may join the room.
#[utoipa::path(get, path = "/v1/presence", params(Parameters), responses((status = 400), (status = 403)))]
pub(super) async fn read_presence(
    State(app): State<App>,
    caller: Caller,
    Query(Parameters { room }): Query<Parameters>,
) -> Result<Plain<Snapshot>> {
    let room = web::room(&room)?;
    if !room.has_presence() {
        let detail = format!("{room} has no presence: company, divisions and projects have.");
        return Err(Error::new(Code::InvalidRoom, detail));
    }
    if app.joins.may_join(&caller, std::slice::from_ref(&room)).await? != [true] {
        return Err(Error::forbidden("You may not join this room."));
    }
    Ok(Plain(Arc::unwrap_or_clone(app.hub.presence().snapshot(&room.to_string()))))
}

/// What the user of a stream does. What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetPresence {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    status: Option<Status>,
    /// A room, of which others learn only in that very room, or a page's path, which begins with a slash. `null`: nothing.
    #[serde(default)]
    #[schema(value_type = Option<Label>)]
    viewing: Patch<Label>,
    /// `null`: nothing.
    #[serde(default)]
    #[schema(value_type = Option<SetEditing>)]
    editing: Patch<SetEditing>,
}

/// What is being edited.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetEditing {
    /// Only this room learns of it.
    room: Room,
    field: Label,
}

/// Say what the user of a stream does
///
/// Shown to the others in the stream's rooms with `presence:change`. A user is `online` when any of their streams is, and
/// what they view and edit is what their stream that reported last says.
#[utoipa::path(
    put,
    path = "/v1/streams/{id}/presence",
    params(("id" = Uuid, Path, description = "`streamId` of `stream:open`.")),
    request_body = inline(SetPresence),
    responses((status = 403), (status = 404))
)]
pub(super) async fn set_presence(
    State(app): State<App>,
    Person(asking): Person,
    PathArg(stream): PathArg<Uuid>,
    Body(SetPresence { status, viewing, editing }): Body<SetPresence>,
) -> Result<Done> {
    let is_place = |place: &Label| place.as_str().starts_with('/') || place.as_str().parse::<Room>().is_ok();
    if let Patch::Value(place) = &viewing
        && !is_place(place)
    {
        return Err(Error::invalid_body("/viewing", "is neither a room nor a path that begins with a slash"));
    }
    let name = |label: Label| Arc::<str>::from(label.as_str());
    let editing =
        editing.map(|SetEditing { room, field }| Editing { room: room.to_string().into(), field: name(field) });
    let update = Update { status, viewing: viewing.map(name).into_change(), editing: editing.into_change() };
    command::send(&app, stream, Some(asking.sub), Command::Report(update)).await?;
    Ok(Done)
}

/// Does it for a stream of this node.
pub(super) fn do_report(app: &App, stream: Uuid, update: Update) -> Result<Value> {
    if app.hub.presence().reported(stream, update) { Ok(Value::Null) } else { Err(Error::not_found()) }
}

/// Where the user of a stream types.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetTyping {
    /// A project's room that the stream is in.
    room: Room,
    field: Label,
    /// Whether they do, or do not any more.
    typing: bool,
}

/// Say that the user of a stream types
///
/// The others in the project's room are told with `typing:start`, once, and with `typing:stop` when no stream of the user
/// says so any more. Say it again every few seconds while it lasts: it ends by itself after `typing-ttl`.
#[utoipa::path(
    put,
    path = "/v1/streams/{id}/typing",
    params(("id" = Uuid, Path, description = "`streamId` of `stream:open`.")),
    request_body = inline(SetTyping),
    responses((status = 403), (status = 404))
)]
pub(super) async fn set_typing(
    State(app): State<App>,
    Person(asking): Person,
    PathArg(stream): PathArg<Uuid>,
    Body(SetTyping { room, field, typing }): Body<SetTyping>,
) -> Result<Done> {
    let types = Types { room: room.to_string(), field: field.into_string(), typing };
    command::send(&app, stream, Some(asking.sub), Command::Type(types)).await?;
    Ok(Done)
}

/// Where somebody types, or does not any more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Types {
    room: String,
    field: String,
    typing: bool,
}

/// Does it for a stream of this node, and tells the others.
pub(super) fn do_type(app: &App, stream: Uuid, types: Types) -> Result<Value> {
    let typed = app.hub.typed(stream, &types.room, &types.field, types.typing);
    typed.map_err(|error| match error {
        NotTyping::NotThere => Error::forbidden("Your stream is not in this room, or it is no project's."),
        NotTyping::TooMany(_) => Error::invalid_body("/field", format!("is one too many: {error}")),
    })?;
    let told = serde_json::to_value((stream, types)).map_err(Error::internal)?;
    app.bus.tell(Message::Typing(told));
    Ok(Value::Null)
}

/// Another node says that somebody types. Who that is may become known only after it.
pub(super) fn hear_typing(app: &App, told: Value) {
    if let Ok((stream, Types { room, field, typing })) = serde_json::from_value::<(Uuid, Types)>(told) {
        let _ = app.hub.presence().typed(stream, &room, &field, typing, || true);
    }
}
