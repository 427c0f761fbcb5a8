//! `/metrics` and `/stats`: what the node counts, for machines and for people. Counts only, never names.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Json,
    extract::{Request, State},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::openapi::{always, text};
use crate::{
    app::App,
    error::Code,
    log::Position,
    metrics::{Metrics, resident_bytes},
    output, tasks,
    web::openapi::{Responses, json},
};

/// Figures are of the moment.
const NO_STORE: &str = "no-store";

/// The text format of OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that this node counts and measures, for Prometheus
///
/// Each metric with its meaning and its unit. Counts only, never names.
#[utoipa::path(get, path = "/metrics", security())]
pub(super) async fn metrics(State(app): State<App>) -> Text {
    measure(&app);
    Text(app.metrics.text())
}

/// Metrics as text.
pub(super) struct Text(String);

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, OPENMETRICS), (CACHE_CONTROL, NO_STORE)], self.0).into_response()
    }
}

impl IntoResponses for Text {
    fn responses() -> Responses {
        let text = text("application/openmetrics-text", "As they are now.");
        [("200".to_owned(), text.header("Cache-Control", always(NO_STORE)).into())].into()
    }
}

fn measure(app: &App) {
    app.hub.measure();
    let (open, idle) = app.db.connections();
    app.metrics.postgres_connections.set(open.try_into().unwrap_or(i64::MAX));
    app.metrics.postgres_connections_idle.set(idle.try_into().unwrap_or(i64::MAX));
    app.metrics.sessions_waiting.set(app.sessions.waiting().try_into().unwrap_or(i64::MAX));
    app.metrics.tickets_waiting.set(app.tickets.waiting().try_into().unwrap_or(i64::MAX));
    app.limiters.measure();
    let joins = app.joins.stats();
    app.metrics.joins.inner().store(joins.joins, Ordering::Relaxed);
    app.metrics.join_statements.inner().store(joins.statements, Ordering::Relaxed);
    app.metrics.log_lines_dropped.inner().store(output::stderr().dropped(), Ordering::Relaxed);
    app.metrics.panics.inner().store(tasks::panics(), Ordering::Relaxed);
    if let Some(bytes) = resident_bytes() {
        app.metrics.resident_memory.set(bytes.try_into().unwrap_or(i64::MAX));
    }
}

/// By name, how many there were; what there was none of is not named.
type Counts = BTreeMap<&'static str, u64>;

/// The figures of this node that a person looks at first, counted since its start. Maps name only what there was any of.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    #[schema(inline)]
    streams: Streams,
    /// Rooms that a stream of this node is in.
    rooms: i64,
    /// Events routed, by type; custom ones together.
    #[schema(value_type = BTreeMap<String, u64>)]
    events: Counts,
    #[schema(inline)]
    deliveries: Deliveries,
    #[schema(inline)]
    replays: Replays,
    #[schema(inline)]
    queues: Queues,
    #[schema(inline)]
    ring: Bounded,
    #[schema(inline)]
    log: Log,
    /// Memory that the process holds.
    memory_bytes: i64,
    #[schema(inline)]
    postgres: Postgres,
    /// The position that is routed as a whole or being routed.
    #[schema(value_type = Position)]
    cursor: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Streams {
    /// Streams open now.
    open: i64,
    /// Streams at most; more are told to come back.
    max: i64,
    opened: u64,
    /// By reason; `gone` is the client's own leaving.
    #[schema(value_type = BTreeMap<String, u64>)]
    closed: Counts,
    /// By reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    refused: Counts,
}

/// What went to sockets.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Deliveries {
    /// Events handed to sockets.
    events: u64,
    bytes: u64,
    /// Pieces in which they were handed over.
    writes: u64,
    /// Events a piece.
    per_write: f64,
    /// Connections cut because their peer acknowledged nothing of what waited for it.
    stalled_connections: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Replays {
    /// Times a stream read history: from the `ring` or the `log`.
    #[schema(value_type = BTreeMap<String, u64>)]
    by_source: Counts,
    /// By reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    resets: Counts,
    /// Times a stream fell so far behind that it reads history.
    queue_overflows: u64,
    /// Times every stream of the node did.
    router_lagged: u64,
    /// Streams that wait for their turn to read from Postgres.
    waiting: i64,
    reading: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Queues {
    /// Events that wait, each counted once a stream.
    events: i64,
    bytes: i64,
    longest_bytes: i64,
}

/// What the log holds. Of all nodes, but for what was deleted; looked up every `floor-every`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Log {
    /// How long ago the floor was noted: whoever was away for less can resume.
    floor_age_seconds: i64,
    /// Events above the floor, up to the position noted last.
    events: i64,
    /// Events that are kept if they are not too old.
    events_max: i64,
    /// Events below the floor that are not deleted yet.
    overdue: i64,
    /// Events that this node has deleted.
    deleted: u64,
    /// Transactions in which it did.
    batches: u64,
    /// How long ago a node last did something for retention.
    idle_seconds: i64,
}

/// The events routed last, in memory.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Bounded {
    events: i64,
    bytes: i64,
    bytes_max: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Postgres {
    reachable: bool,
    connections: i64,
    idle: i64,
    max: i64,
    /// Those who wait for a connection now.
    waiting: i64,
    /// Times somebody got none.
    not_acquired: u64,
    /// Connections closed in the middle of a statement that was given up.
    given_up: u64,
    /// Connections that were found dead.
    dead: u64,
    /// Times it was out of reach.
    outages: u64,
}

/// Figures of this node
///
/// Counted since the start of the process.
#[utoipa::path(get, path = "/stats", security())]
pub(super) async fn stats(State(app): State<App>) -> Unstored<Stats> {
    measure(&app);
    Unstored(of(&app))
}

/// JSON of the moment.
pub(super) struct Unstored<T>(T);

impl<T: Serialize> IntoResponse for Unstored<T> {
    fn into_response(self) -> Response {
        ([(CACHE_CONTROL, NO_STORE)], Json(self.0)).into_response()
    }
}

impl<T: ToSchema> IntoResponses for Unstored<T> {
    fn responses() -> Responses {
        let figures = json::<T>("As they are now.").header("Cache-Control", always(NO_STORE));
        [("200".to_owned(), figures.into())].into()
    }
}

fn of(app: &App) -> Stats {
    let metrics = &app.metrics;
    let (events, writes) = (metrics.deliveries.get(), metrics.writes.get());
    Stats {
        streams: Streams {
            open: metrics.streams.get(),
            max: metrics.streams_max.get(),
            opened: metrics.streams_opened.get(),
            closed: metrics.streams_closed.all(),
            refused: metrics.streams_refused.all(),
        },
        rooms: metrics.rooms.get(),
        events: metrics.events.all(),
        deliveries: Deliveries {
            events,
            bytes: metrics.delivered.get(),
            writes,
            per_write: if writes == 0 { 0.0 } else { events as f64 / writes as f64 },
            stalled_connections: metrics.connections_stalled.get(),
        },
        replays: Replays {
            by_source: metrics.replays.all(),
            resets: metrics.resets.all(),
            queue_overflows: metrics.queue_overflows.get(),
            router_lagged: metrics.hub_lagged.get(),
            waiting: metrics.replays_waiting.get(),
            reading: metrics.replays_reading.get(),
        },
        queues: Queues {
            events: metrics.queued_events.get(),
            bytes: metrics.queued.get(),
            longest_bytes: metrics.queue_longest.get(),
        },
        ring: Bounded {
            events: metrics.ring_events.get(),
            bytes: metrics.ring.get(),
            bytes_max: app.config.limits.ring_bytes(),
        },
        log: Log {
            floor_age_seconds: metrics.log_floor_age.get(),
            events: metrics.log_events.get(),
            events_max: metrics.log_events_max.get(),
            overdue: metrics.log_overdue.get(),
            deleted: metrics.log_deleted.get(),
            batches: metrics.log_batches.get(),
            idle_seconds: metrics.log_retention_idle.get(),
        },
        memory_bytes: metrics.resident_memory.get(),
        postgres: Postgres {
            reachable: app.db.is_reachable(),
            connections: metrics.postgres_connections.get(),
            idle: metrics.postgres_connections_idle.get(),
            max: metrics.postgres_connections_max.get(),
            waiting: metrics.postgres_waiting.get(),
            not_acquired: metrics.postgres_not_acquired.get(),
            given_up: metrics.postgres_given_up.get(),
            dead: metrics.postgres_dead.get(),
            outages: metrics.postgres_outages.get(),
        },
        cursor: app.hub.tail().at.to_string(),
    }
}

/// Middleware: counts every answer.
pub(super) async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let class = match status.as_u16() {
        ..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    };
    metrics.requests.count("status", class);
    if let Some(code) = response.extensions().get::<Code>() {
        metrics.problems.count("code", code.as_str());
    }
    response
}
