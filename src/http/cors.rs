//! Pages of other origins: which may call, what they may send, and what of the answers their scripts may read.

use axum::http::{
    HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, LOCATION, RETRY_AFTER},
};
use tower_http::cors::CorsLayer;

use super::limit::{RATELIMIT, RATELIMIT_POLICY};
use crate::{
    config::Origin,
    web::{
        CREWCAST_CURSOR,
        mutation::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED},
        request::X_REQUEST_ID,
    },
};

/// How long a browser may remember what a preflight was told, in seconds; Chromium remembers no longer.
const MAX_AGE_S: u64 = 7200;

/// The layer for these origins, each exactly as named, with credentials. Without any, no page of another origin may call.
pub(super) fn layer(origins: &[Origin]) -> CorsLayer {
    let origins = origins.iter().map(|origin| HeaderValue::from_str(origin.as_str()).expect("an origin is ASCII"));
    CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, IF_MATCH, LAST_EVENT_ID, IDEMPOTENCY_KEY])
        .expose_headers([
            ETAG,
            LOCATION,
            RETRY_AFTER,
            CREWCAST_CURSOR,
            IDEMPOTENT_REPLAYED,
            RATELIMIT,
            RATELIMIT_POLICY,
            X_REQUEST_ID,
        ])
        .max_age(std::time::Duration::from_secs(MAX_AGE_S))
}

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
