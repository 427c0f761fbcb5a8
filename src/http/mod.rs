//! The router: the only place where the domain and the machine meet.

mod history;
mod stream;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header::CACHE_CONTROL},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::timeout::TimeoutLayer;

use crate::{
    app::App,
    domain,
    error::Error,
    web::{problem, query, request},
};

/// Every route, inside all layers.
pub fn router(app: App) -> Router {
    let limits = &app.config.limits;
    let body_bytes_max = usize::try_from(limits.body_bytes_max).unwrap_or(usize::MAX);
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limits.request_timeout);
    let machine = Router::new()
        .route("/events", get(stream::events))
        .route("/v1/events/{seq}", get(history::event))
        .route("/v1/rooms/{room}/events", get(history::room))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/stats", get(stats))
        .with_state(app.clone());
    // The last layer is the outermost: a request passes them from the bottom up.
    Router::new()
        .merge(machine)
        .nest("/v1", domain::router().with_state(app.domain()))
        .layer(timeout)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(from_fn(query::refuse_tokens_in_query))
        .layer(from_fn(problem::render))
        .layer(from_fn(request::identify))
}

/// Whether this node should get traffic.
async fn ready(State(app): State<App>) -> Result<&'static str, Error> {
    if app.draining.is_cancelled() {
        return Err(Error::unavailable("The server is shutting down."));
    }
    if !app.db.is_reachable() {
        return Err(Error::unavailable("The database is out of reach."));
    }
    Ok("ready\n")
}

/// Figures of this node.
async fn stats(State(app): State<App>) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(app.hub.stats())).into_response()
}
