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

use crate::{
    app::App,
    error::Code,
    ids::BUILTIN_TYPES,
    metrics::{Counters, Metrics, resident_bytes},
};

/// The text format of OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything, for Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    measure(&app);
    ([(CONTENT_TYPE, OPENMETRICS), (CACHE_CONTROL, "no-store")], app.metrics.text()).into_response()
}

fn measure(app: &App) {
    app.hub.measure();
    let (open, idle) = app.db.connections();
    app.metrics.postgres_connections.set(open.into());
    app.metrics.postgres_connections_idle.set(idle.try_into().unwrap_or(i64::MAX));
    app.limiters.measure();
    let joins = app.joins.stats();
    app.metrics.joins.inner().store(joins.joins, Ordering::Relaxed);
    app.metrics.join_statements.inner().store(joins.statements, Ordering::Relaxed);
    if let Some(bytes) = resident_bytes() {
        app.metrics.resident_memory.set(bytes.try_into().unwrap_or(i64::MAX));
    }
}

/// The figures that a person looks at first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    streams: Streams,
    rooms: i64,
    events: BTreeMap<&'static str, u64>,
    deliveries: Deliveries,
    replays: Replays,
    queues: Queues,
    ring: Bounded,
    memory_bytes: i64,
    postgres: Postgres,
    cursor: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Streams {
    open: i64,
    max: i64,
    opened: u64,
    closed: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
}

/// What went to sockets. `per_write` is how many events went out together.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deliveries {
    events: u64,
    bytes: u64,
    writes: u64,
    per_write: f64,
    stalled_connections: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replays {
    by_source: BTreeMap<&'static str, u64>,
    resets: BTreeMap<&'static str, u64>,
    queue_overflows: u64,
    router_lagged: u64,
    waiting: i64,
    reading: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Queues {
    events: i64,
    bytes: i64,
    longest_bytes: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bounded {
    events: i64,
    bytes: i64,
    bytes_max: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Postgres {
    reachable: bool,
    connections: i64,
    idle: i64,
    max: i64,
}

/// The first figures, as JSON.
pub(super) async fn stats(State(app): State<App>) -> Response {
    measure(&app);
    ([(CACHE_CONTROL, "no-store")], Json(of(&app))).into_response()
}

fn of(app: &App) -> Stats {
    let metrics = &app.metrics;
    let (events, writes) = (metrics.deliveries.get(), metrics.writes.get());
    let kinds: Vec<&'static str> = BUILTIN_TYPES.iter().copied().chain(["custom"]).collect();
    Stats {
        streams: Streams {
            open: metrics.streams.get(),
            max: metrics.streams_max.get(),
            opened: metrics.streams_opened.get(),
            closed: by(&metrics.streams_closed, "reason", &["gone", "expired", "draining"]),
            refused: by(&metrics.streams_refused, "reason", &["draining", "overload", "limit"]),
        },
        rooms: metrics.rooms.get(),
        events: by(&metrics.events, "type", &kinds),
        deliveries: Deliveries {
            events,
            bytes: metrics.delivered.get(),
            writes,
            per_write: if writes == 0 { 0.0 } else { events as f64 / writes as f64 },
            stalled_connections: metrics.connections_stalled.get(),
        },
        replays: Replays {
            by_source: by(&metrics.replays, "source", &["ring", "log"]),
            resets: by(&metrics.resets, "reason", &["foreign", "too_old", "malformed", "unknown", "too_many"]),
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
        memory_bytes: metrics.resident_memory.get(),
        postgres: Postgres {
            reachable: app.db.is_reachable(),
            connections: metrics.postgres_connections.get(),
            idle: metrics.postgres_connections_idle.get(),
            max: metrics.postgres_connections_max.get(),
        },
        cursor: app.hub.tail().at.to_string(),
    }
}

/// Those that there were any of.
fn by(counters: &Counters, label: &'static str, values: &[&'static str]) -> BTreeMap<&'static str, u64> {
    let counted = values.iter().map(|value| (*value, counters.of(label, value)));
    counted.filter(|(_, count)| *count > 0).collect()
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
