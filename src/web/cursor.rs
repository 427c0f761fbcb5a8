//! The cursor that every read carries: where in the event log its data stands.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, header::ETAG},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::{
    Entity, List, Plain, etag,
    openapi::{Responses, header, json},
};
use crate::{db::Read, log::Position};

/// The header with the position of the snapshot that an answer was read from: a stream that resumes from it begins
/// exactly behind the answer.
pub const CREWCAST_CURSOR: HeaderName = HeaderName::from_static("crewcast-cursor");

/// What was read, with the position it was read at.
#[derive(Debug)]
pub struct Seen<T> {
    cursor: Position,
    version: Option<i64>,
    data: T,
}

impl<T> Seen<T> {
    /// Data from this read.
    pub fn at(read: &Read, data: T) -> Self {
        Self { cursor: read.cursor().clone(), version: None, data }
    }

    /// An entity from this read.
    pub fn entity(read: &Read, entity: T) -> Self
    where
        T: Entity,
    {
        Self { version: Some(entity.version()), ..Self::at(read, entity) }
    }
}

impl<T: ToSchema> IntoResponses for Seen<List<T>> {
    fn responses() -> Responses {
        let page = json::<List<T>>("A page.").header_ref("Crewcast-Cursor", header("Cursor"));
        [("200".to_owned(), page.into())].into()
    }
}

impl<T: ToSchema> IntoResponses for Seen<Plain<T>> {
    fn responses() -> Responses {
        let seen = json::<T>("As it is now.").header_ref("Crewcast-Cursor", header("Cursor"));
        [("200".to_owned(), seen.into())].into()
    }
}

impl<E: Entity + ToSchema> IntoResponses for Seen<E> {
    fn responses() -> Responses {
        let seen = json::<E>(&format!("The {}.", E::NOUN)).header_ref("Crewcast-Cursor", header("Cursor"));
        [("200".to_owned(), seen.header_ref("ETag", header("ETag")).into())].into()
    }
}

impl<T: Serialize> IntoResponse for Seen<T> {
    fn into_response(self) -> Response {
        let cursor = HeaderValue::try_from(self.cursor.to_string()).expect("a position is visible ASCII");
        let mut response = ([(CREWCAST_CURSOR, cursor)], Json(self.data)).into_response();
        if let Some(version) = self.version {
            response.headers_mut().insert(ETAG, etag(version));
        }
        response
    }
}
