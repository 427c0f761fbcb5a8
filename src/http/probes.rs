//! `/healthz` and `/readyz`: what a load balancer asks.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use utoipa::IntoResponses;

use super::openapi::words;
use crate::{
    app::App,
    error::{Error, Result},
    web::openapi::Responses,
};

/// Yes.
pub(super) struct Healthy;

impl Healthy {
    const SAID: &str = "ok\n";
}

/// Yes.
pub(super) struct Ready;

impl Ready {
    const SAID: &str = "ready\n";
}

/// Whether the process answers
#[utoipa::path(get, path = "/healthz", security())]
pub(super) async fn health() -> Healthy {
    Healthy
}

/// Whether this node should get traffic
#[utoipa::path(get, path = "/readyz", security(), responses((status = 503)))]
pub(super) async fn readiness(State(app): State<App>) -> Result<Ready> {
    if app.draining.is_cancelled() {
        return Err(Error::draining());
    }
    if !app.db.is_served().await {
        return Err(Error::unavailable("The database is out of reach, or has no connection for requests."));
    }
    if !app.db.is_tended().await {
        return Err(Error::unavailable("The database has no connection for what the nodes tell each other."));
    }
    if !app.hub.is_fed() {
        return Err(Error::unavailable("The log is not read: streams get no events on this node."));
    }
    Ok(Ready)
}

impl IntoResponse for Healthy {
    fn into_response(self) -> Response {
        Self::SAID.into_response()
    }
}

impl IntoResponse for Ready {
    fn into_response(self) -> Response {
        Self::SAID.into_response()
    }
}

impl IntoResponses for Healthy {
    fn responses() -> Responses {
        [("200".to_owned(), words(Self::SAID, "It does.").into())].into()
    }
}

impl IntoResponses for Ready {
    fn responses() -> Responses {
        [("200".to_owned(), words(Self::SAID, "It should.").into())].into()
    }
}
