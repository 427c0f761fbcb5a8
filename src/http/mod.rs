//! The router: the only place where the domain and the machine meet.

pub mod accept;
mod address;
mod admin;
pub mod buckets;
mod come_back;
pub mod command;
mod cors;
mod docs;
mod figures;
mod history;
pub mod limit;
pub mod openapi;
mod origin;
mod overdue;
mod presence;
mod probes;
pub mod security;
pub mod session;
mod stream;
mod streams;
pub mod warden;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts as _, Request, State},
    http::{HeaderValue, StatusCode, header::CONNECTION},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use tower::util::option_layer;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{limit::Limiters, security::Security};
use crate::{
    app::App,
    auth::{Caller, ticket::Ticket},
    config::Config,
    domain,
    hub::{
        Closing, Expiring, Heartbeat, Open, ResetTo, RoomsChanged,
        presence::{Count, Shown, Snapshot, Typist},
    },
    ids::HEARTBEAT,
    metrics::Metrics,
    tasks,
    web::{Describe as _, problem, query, request},
};

/// Where the domain's routes are.
const DOMAIN: &str = "/v1";

/// The limits of this node and the security log.
pub fn limiters(config: &Config, metrics: &Arc<Metrics>) -> (Arc<Limiters>, Arc<Security>) {
    let security = Arc::new(Security::new(config.limits.time.clone(), metrics.clone()));
    (Arc::new(Limiters::new(&config.limits, security.clone(), metrics.clone())), security)
}

/// Every route, inside all layers.
pub fn router(app: App) -> Router {
    let stream = Router::from(stream()).with_state(app.clone());
    let machine =
        Router::from(streams().merge(live_streams()).merge(administration()).merge(operations()).merge(pages()))
            .with_state(app.clone());
    let domain = Router::from(domain::router()).with_state(app.domain());
    let hooks = Router::from(domain::hooks()).with_state(app.domain());
    layered(stream, Router::new().merge(machine).merge(hooks).nest(DOMAIN, domain), app)
}

/// All layers around routes that answer with a stream, and around others.
pub fn layered(streams: Router, others: Router, app: App) -> Router {
    let limits = &app.config.limits;
    let body_bytes_max = usize::try_from(limits.body_bytes_max).unwrap_or(usize::MAX);
    let timeout = from_fn_with_state(limits.request_timeout, overdue::bound);
    let inner = |routes| counted(routes, &app).layer(timeout.clone()).layer(from_fn(outlive));
    // The last layer is the outermost: a request passes them from the bottom up.
    inner(others)
        // Around limits, the timeout and panics, whose answers an `EventSource` must not get.
        .merge(inner(streams).layer(from_fn_with_state(app.metrics.clone(), come_back::come_back)))
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

/// The event stream itself.
fn stream() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream::follow_events)).headed("stream", "Follow events, and read them back")
}

/// What goes with it: tickets and sessions for it, and the log that it comes from.
fn streams() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(stream::make_ticket))
        .routes(routes!(session::sign_in, session::sign_out))
        .routes(routes!(history::read_event))
        .routes(routes!(history::read_room))
        .emits::<Open<'_>>("stream:open", "The first event of every stream. It has no `id` when `resume` is `reset`.")
        .emits::<RoomsChanged>(
            "stream:rooms",
            "The stream is in other rooms now: it was told so by `POST /v1/streams/{id}/rooms`, or has lost some.",
        )
        .emits::<ResetTo>(
            "stream:reset",
            "The stream cannot go on exactly where the client was; read the state again. It goes on from `cursor`.",
        )
        .emits::<Expiring>("stream:expiring", "The token expires soon; the stream ends with it.")
        .emits::<Closing>(
            "stream:closing",
            "The last event of a stream that the server ends. A `retry:` of the same time stands before it.",
        )
        .emits::<Heartbeat>(
            HEARTBEAT,
            "After `heartbeat` without an event. Its `id` keeps a quiet stream's position young.",
        )
        .headed("stream", "Follow events, and read them back")
}

/// What can be changed of a stream that is open.
fn live_streams() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(streams::move_stream))
        .routes(routes!(streams::renew_stream))
        .routes(routes!(streams::end_stream))
        .routes(routes!(presence::set_presence))
        .routes(routes!(presence::set_typing))
        .routes(routes!(presence::read_presence))
        .emits::<Snapshot>("presence:snapshot", "Who is in a room, after `stream:open` and each join. It has no `id`, as all of presence and typing.")
        .emits::<Shown>("presence:change", "A user came, went, or does something else. They come in the order in which it happened, after the snapshot.")
        .emits::<Count<'_>>("presence:count", "How many are in a room with more than `presence-users-max` users, at most once a second, in place of `presence:change`. Once it is smaller by a tenth, a snapshot follows.")
        .emits::<Typist<'_>>("typing:start", "A user types in a field of a project. Not to the stream that said so.")
        .emits::<Typist<'_>>("typing:stop", "They do not any more, or have not said so for `typing-ttl`.")
        .headed("live streams", "Change a stream while it is open, on whatever node it is")
}

/// What admins do.
fn administration() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(admin::list_streams))
        .routes(routes!(admin::end_any_stream))
        .routes(routes!(admin::drain))
        .headed("administration", "Look at streams and end them; for admins")
}

/// What runs a node.
fn operations() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(probes::health))
        .routes(routes!(probes::readiness))
        .routes(routes!(figures::metrics))
        .routes(routes!(figures::stats))
        .headed("operations", "For probes and people; no token needed")
}

/// What tells people and machines how to use all that.
fn pages() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(docs::overview))
        .routes(routes!(docs::reference))
        .routes(routes!(docs::stream_guide))
        .routes(routes!(docs::hook_guide))
        .routes(routes!(docs::updates_guide))
        .routes(routes!(docs::problem_list))
        .routes(routes!(docs::problem_page))
        .routes(routes!(docs::openapi))
        .headed("docs", "Pages for people, and this document; no token needed")
}

/// Counts requests for their address, refuses writes of unknown pages, finds out who calls, and counts writes for their
/// caller; in this order.
fn counted(routes: Router, app: &App) -> Router {
    routes
        .layer(from_fn_with_state(app.clone(), limit::writes))
        .layer(from_fn_with_state(app.clone(), meet))
        .layer(from_fn_with_state(app.clone(), origin::guard))
        .layer(from_fn_with_state(app.clone(), limit::addresses))
}

/// Finds out who calls, and notes people. Whoever cannot be found out is told so by the route, if it asks.
async fn meet(State(app): State<App>, request: Request, next: Next) -> Response {
    let takes_a_cookie = takes_a_cookie(&request);
    let (mut parts, body) = request.into_parts();
    if takes_a_cookie {
        app.sessions.recognise(&mut parts).await;
    }
    if let Ok(caller) = Caller::from_request_parts(&mut parts, &app).await {
        app.people.saw(&caller);
    }
    next.run(Request::from_parts(parts, body)).await
}

/// Whether somebody asks for the caller there whom a cookie names. A ticket goes before it.
fn takes_a_cookie(request: &Request) -> bool {
    let is_for_a_stream = limit::opens_a_stream(request) && Ticket::of(request.headers(), request.uri()).is_none();
    is_for_a_stream || limit::has_a_caller(request)
}

/// Answers for a request that panics, so that its connection goes on. What it shared with others is whole, or the node ends;
/// the log has the panic already, under the request's id.
async fn outlive(request: Request, next: Next) -> Response {
    tasks::caught(next.run(request)).await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
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
