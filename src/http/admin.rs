//! What admins do: look at the streams of all nodes, end them, and drain the node that they ask.

use std::collections::HashMap;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use utoipa::{IntoResponses, ToSchema, openapi::ResponseBuilder};
use uuid::Uuid;

use super::command::{self, Command, Order};
use crate::{
    app::App,
    auth::Admin,
    error::{Error, Result},
    hub::Listed,
    ids::{NodeKey, Room, Sub},
    web::{Done, Page, PathArg, Plain, Query, openapi::Responses},
};

/// An open stream.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OpenStream)]
pub(super) struct OpenStream {
    id: Uuid,
    /// Whose it is.
    #[schema(value_type = Sub)]
    user_id: String,
    #[schema(required)]
    name: Option<String>,
    #[schema(value_type = Vec<Room>)]
    rooms: Vec<String>,
    /// When it was opened.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// Events that wait for it; null while it reads history.
    #[schema(required)]
    lag_events: Option<usize>,
    /// The bytes of those.
    #[schema(required)]
    lag_bytes: Option<usize>,
    /// The name of the node that holds it.
    node: String,
}

/// Open streams of all nodes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OpenStreamList)]
pub(super) struct OpenStreams {
    items: Vec<OpenStream>,
    #[schema(required)]
    next_cursor: Option<String>,
    /// Nodes that did not answer in time: their streams are missing.
    silent_nodes: Vec<String>,
}

/// List the open streams of all nodes
///
/// For admins. In the order in which they were opened.
#[utoipa::path(get, path = "/v1/admin/streams", params(Page), responses((status = 403)))]
pub(super) async fn list_streams(
    State(app): State<App>,
    _: Admin,
    Query(page): Query<Page>,
) -> Result<Plain<OpenStreams>> {
    let (after, limit) = (page.after_id()?, page.limit as usize + 1);
    let mut asked = JoinSet::new();
    let nodes = nodes(&app).await?;
    for node in nodes.keys().copied() {
        let app = app.clone();
        asked.spawn(async move { (node, command::ask(&app, node, Order::List { after, limit }).await) });
    }
    let (mut items, mut silent_nodes) = (Vec::new(), Vec::new());
    for (node, answer) in asked.join_all().await {
        let here = answer.and_then(|here| serde_json::from_value::<Vec<OpenStream>>(here).map_err(Error::internal));
        match here {
            Ok(here) => items.extend(here),
            Err(error) => {
                tracing::debug!(%node, %error, "a node does not say its streams");
                silent_nodes.push(nodes[&node].clone());
            }
        }
    }
    items.sort_by_key(|stream| stream.id);
    silent_nodes.sort();
    let list = page.list(items, |stream| stream.id.to_string());
    Ok(Plain(OpenStreams { items: list.items, next_cursor: list.next_cursor, silent_nodes }))
}

/// The nodes that have given a sign of life of late, and this one.
async fn nodes(app: &App) -> Result<HashMap<NodeKey, String>> {
    let mut conn = app.db.acquire().await?;
    let alive: Vec<(i64, String)> = sqlx::query_as(
        "select key, name from crewcast.nodes where not ended and beat_at > now() - make_interval(secs => $1)",
    )
    .bind(app.config.limits.presence_lease.as_secs_f64())
    .fetch_all(&mut conn)
    .await?;
    let alive = alive.into_iter().filter_map(|(key, name)| Some((NodeKey::from_sql(key)?, name)));
    Ok(alive.chain([(app.node, app.hub.node().to_owned())]).collect())
}

/// The streams of this node behind this one, up to so many.
pub(super) fn here(app: &App, after: Uuid, limit: usize) -> Value {
    let stream = |Listed { stream, holder, rooms, waiting }| OpenStream {
        id: stream,
        user_id: holder.id().to_owned(),
        name: holder.name().map(str::to_owned),
        rooms,
        since: opened_at(stream),
        lag_events: waiting.map(|(events, _)| events),
        lag_bytes: waiting.map(|(_, bytes)| bytes),
        node: app.hub.node().to_owned(),
    };
    let streams: Vec<OpenStream> = app.hub.list(after, limit).into_iter().map(stream).collect();
    json!(streams)
}

/// A version 7 says when it was made, in milliseconds.
fn opened_at(stream: Uuid) -> OffsetDateTime {
    let (seconds, nanos) = stream.get_timestamp().map_or((0, 0), |timestamp| timestamp.to_unix());
    let at = OffsetDateTime::from_unix_timestamp(seconds.cast_signed()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at + std::time::Duration::from_nanos(nanos.into())
}

/// End somebody's stream
///
/// For admins, on whatever node it is. It gets `stream:closing` with the reason `ended`.
#[utoipa::path(
    delete,
    path = "/v1/admin/streams/{id}",
    params(("id" = Uuid, Path)),
    responses((status = 403), (status = 404))
)]
pub(super) async fn end_any_stream(State(app): State<App>, _: Admin, PathArg(stream): PathArg<Uuid>) -> Result<Done> {
    command::send(&app, stream, None, Command::End).await?;
    Ok(Done)
}

/// Drain this node, and end it
///
/// For admins. Does what SIGTERM does: `/readyz` is 503 at once, each stream is told to come back over `drain-spread`,
/// and the process exits when the last one has ended. Only the node that is asked.
#[utoipa::path(post, path = "/v1/admin/drain", responses((status = 403)))]
pub(super) async fn drain(State(app): State<App>, _: Admin) -> Begun {
    tracing::info!("an admin drains this node");
    app.leave.cancel();
    Begun
}

/// It has begun.
pub(super) struct Begun;

impl IntoResponse for Begun {
    fn into_response(self) -> Response {
        StatusCode::ACCEPTED.into_response()
    }
}

impl IntoResponses for Begun {
    fn responses() -> Responses {
        let begun = ResponseBuilder::new().description("It has begun.");
        [("202".to_owned(), begun.build().into())].into()
    }
}
