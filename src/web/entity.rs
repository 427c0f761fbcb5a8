//! An entity as it is answered: its state, with its version as `ETag`.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, ETAG, LOCATION},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sqlx::{FromRow, Row as _, postgres::PgRow, types::Json};

use super::etag;

/// The version at which each field last changed; one that is not named has been as it is from the beginning.
pub type FieldVersions = Json<BTreeMap<String, i64>>;

/// Something with versions.
pub trait Entity: Serialize {
    /// What clients call such a thing.
    const NOUN: &'static str;

    /// Its version: 1 when it was made, one more with every change.
    fn version(&self) -> i64;

    /// When its fields changed; none for what is only changed as a whole.
    fn field_versions(&self) -> Option<&FieldVersions> {
        None
    }

    /// The version at which a field got the value that it has.
    fn changed_at(&self, field: &str) -> i64 {
        self.field_versions().map_or(self.version(), |versions| versions.get(field).copied().unwrap_or(1))
    }
}

/// The answer to a change, down to its bytes: a repeated request gets the same again.
///
/// It carries no cursor, since a write does not read from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub(super) status: StatusCode,
    /// Where it is, a path.
    pub(super) location: Option<String>,
    pub(super) version: Option<i64>,
    /// JSON, or nothing.
    pub(super) body: Bytes,
}

impl Answer {
    /// 201: it was made and is at `location`, a path.
    pub fn made(location: String, entity: &impl Entity) -> Self {
        Self { status: StatusCode::CREATED, location: Some(location), ..Self::current(entity) }
    }

    /// 200: the entity as the change left it.
    pub fn current<E: Entity>(entity: &E) -> Self {
        Self { version: Some(entity.version()), ..Self::of(StatusCode::OK, entity) }
    }

    /// 204: it is gone, or nothing is to be said.
    #[must_use]
    pub fn nothing() -> Self {
        Self { status: StatusCode::NO_CONTENT, location: None, version: None, body: Bytes::new() }
    }

    /// Something that is no entity.
    ///
    /// # Panics
    /// When it does not serialise: answers are plain structs of ours.
    pub fn of(status: StatusCode, data: &impl Serialize) -> Self {
        let body = serde_json::to_vec(data).expect("answers are structs with text keys").into();
        Self { status, location: None, version: None, body }
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body.clone()).into_response();
        let headers = response.headers_mut();
        headers.remove(CONTENT_TYPE);
        if !self.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, HeaderValue::try_from(location).expect("a path of ours is ASCII"));
        }
        if let Some(version) = self.version {
            headers.insert(ETAG, etag(version));
        }
        response
    }
}

impl FromRow<'_, PgRow> for Answer {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let status: i16 = row.try_get("status")?;
        let status = StatusCode::from_u16(status.cast_unsigned()).map_err(|error| sqlx::Error::Decode(error.into()))?;
        let body: Vec<u8> = row.try_get("body")?;
        Ok(Self { status, location: row.try_get("location")?, version: row.try_get("version")?, body: body.into() })
    }
}
