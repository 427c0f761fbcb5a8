//! The cursor that every read carries: where in the event log its data stands.

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::openapi::{Responses, header, json};
use crate::{db::Read, log::Position};

/// The header with the position of the snapshot that an answer was read from: a stream that resumes from it begins
/// exactly behind the answer.
pub const CREWCAST_CURSOR: HeaderName = HeaderName::from_static("crewcast-cursor");

/// What was read, with the position it was read at.
#[derive(Debug)]
pub struct Seen<T> {
    cursor: Position,
    data: T,
}

impl<T> Seen<T> {
    /// Data from this read.
    pub fn at(read: &Read, data: T) -> Self {
        Self { cursor: read.cursor().clone(), data }
    }
}

impl<T: ToSchema> IntoResponses for Seen<T> {
    fn responses() -> Responses {
        let seen = json::<T>("As it was at the `Crewcast-Cursor`.").header_ref("Crewcast-Cursor", header("Cursor"));
        [("200".to_owned(), seen.into())].into()
    }
}

impl<T: Serialize> IntoResponse for Seen<T> {
    fn into_response(self) -> Response {
        let cursor = HeaderValue::try_from(self.cursor.to_string()).expect("a position is visible ASCII");
        ([(CREWCAST_CURSOR, cursor)], Json(self.data)).into_response()
    }
}
