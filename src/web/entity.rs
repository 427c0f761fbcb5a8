//! Answers that are one entity: its state, with its version as `ETag`.

use axum::{
    Json,
    http::{
        StatusCode,
        header::{ETAG, LOCATION},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::etag;

/// 201: it was made and is at `location`, a path.
pub fn made(location: String, version: i64, entity: impl Serialize) -> Response {
    (StatusCode::CREATED, [(LOCATION, location)], current(version, entity)).into_response()
}

/// 200: the entity as a write left it. It carries no cursor, since a write does not read from a snapshot.
pub fn current(version: i64, entity: impl Serialize) -> Response {
    ([(ETAG, etag(version))], Json(entity)).into_response()
}
