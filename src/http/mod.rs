//! The router: the only place where the domain and the machine meet.

pub mod accept;
mod address;
pub mod buckets;
mod cors;
mod docs;
mod figures;
mod history;
pub mod limit;
pub mod security;
mod stream;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts as _, Request, State},
    http::{HeaderValue, StatusCode, header::CONNECTION},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::get,
};
use tower::util::option_layer;
use tower_http::timeout::TimeoutLayer;

use self::{limit::Limiters, security::Security};
use crate::{
    app::App,
    auth::Caller,
    config::Config,
    domain,
    error::Error,
    metrics::Metrics,
    web::{problem, query, request},
};

/// The limits of this node and the security log.
pub fn limiters(config: &Config, metrics: &Arc<Metrics>) -> (Arc<Limiters>, Arc<Security>) {
    let security = Arc::new(Security::new(config.limits.time.clone(), metrics.clone()));
    (Arc::new(Limiters::new(&config.limits, security.clone(), metrics.clone())), security)
}

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
        .route("/metrics", get(figures::metrics))
        .route("/stats", get(figures::stats))
        .route("/docs", get(docs::overview))
        .route("/docs/api", get(docs::reference))
        .route("/docs/stream", get(docs::stream_guide))
        .route("/docs/hooks", get(docs::hook_guide))
        .route("/docs/problems", get(docs::problem_list))
        .route("/docs/problems/{code}", get(docs::problem_page))
        .route("/openapi.yaml", get(docs::openapi))
        .with_state(app.clone());
    // The last layer is the outermost: a request passes them from the bottom up.
    let routes = Router::new()
        .merge(machine)
        .nest("/v1", domain::router().with_state(app.domain()))
        .merge(domain::hooks().with_state(app.domain()));
    counted(routes, &app)
        .layer(timeout)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(from_fn(query::refuse_tokens_in_query))
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(app.metrics.clone(), figures::count))
        // Without origins its headers would only cost every stream memory.
        .layer(option_layer((!app.config.cors_origins.is_empty()).then(|| cors::layer(&app.config.cors_origins))))
        // Preflights are answered inside of these two, as the security log is about them, too.
        .layer(from_fn_with_state(app.clone(), security::watch))
        .layer(from_fn(request::identify))
        .layer(from_fn_with_state(app, close_while_draining))
}

/// Counts requests for their address, finds out who calls, and counts writes for their caller; in this order.
fn counted(routes: Router, app: &App) -> Router {
    routes
        .layer(from_fn_with_state(app.clone(), limit::writes))
        .layer(from_fn_with_state(app.clone(), meet))
        .layer(from_fn_with_state(app.clone(), limit::addresses))
}

/// Finds out who calls, and notes people. Whoever cannot be found out is told so by the route, if it asks.
async fn meet(State(app): State<App>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    if let Ok(caller) = Caller::from_request_parts(&mut parts, &app).await {
        app.people.saw(&caller);
    }
    next.run(Request::from_parts(parts, body)).await
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

/// While the node drains, clients are told to use the next node for their next request: closing connections that they
/// still use would lose a request that is on its way.
async fn close_while_draining(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if app.draining.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
