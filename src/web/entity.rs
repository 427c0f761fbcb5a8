//! An entity as it is answered: its state, with its version as `ETag`.

use std::{collections::BTreeMap, marker::PhantomData};

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
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, ResponseBuilder},
};

use super::{
    etag,
    openapi::{REPLAYED, Responses, header, json},
};

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

/// The answer to a change, down to its bytes: a repeated request gets the same again. `A` says what it is.
///
/// It carries no cursor, since a write does not read from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<A = ()> {
    pub(super) status: StatusCode,
    /// Where it is, a path.
    pub(super) location: Option<String>,
    pub(super) version: Option<i64>,
    /// JSON, or nothing.
    pub(super) body: Bytes,
    says: PhantomData<A>,
}

/// 201: an entity that was made, and where it is.
#[derive(Debug)]
pub struct Made<E>(PhantomData<E>);

/// 200: an entity as a change left it.
#[derive(Debug)]
pub struct Current<E>(PhantomData<E>);

/// 201 or 200: an entity that was made, or as a change left it.
#[derive(Debug)]
pub struct Set<E>(PhantomData<E>);

/// 201: what was made of something that was posted; it has no place of its own.
#[derive(Debug)]
pub struct Posted<T>(PhantomData<T>);

/// 204: it is gone, or nothing is to be said.
#[derive(Debug)]
pub struct Nothing;

/// 204: it is done. Not an answer that is kept for a repeat: to do it again does no harm.
#[derive(Debug)]
pub struct Done;

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl IntoResponses for Done {
    fn responses() -> Responses {
        [("204".to_owned(), ResponseBuilder::new().description("It is done.").build().into())].into()
    }
}

/// 200: something that is no entity.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Plain<T>(pub T);

impl<E: Entity> Answer<Made<E>> {
    /// It was made and is at `location`, a path.
    pub fn made(location: String, entity: &E) -> Self {
        Self { location: Some(location), ..Self::entity(StatusCode::CREATED, entity) }
    }
}

impl<E: Entity> Answer<Current<E>> {
    /// The entity as the change left it.
    pub fn current(entity: &E) -> Self {
        Self::entity(StatusCode::OK, entity)
    }
}

impl<E: Entity> Answer<Set<E>> {
    /// The entity, which was `made` or there already.
    pub fn set(made: bool, entity: &E) -> Self {
        Self::entity(if made { StatusCode::CREATED } else { StatusCode::OK }, entity)
    }
}

impl Answer<Nothing> {
    /// Nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { status: StatusCode::NO_CONTENT, location: None, version: None, body: Bytes::new(), says: PhantomData }
    }
}

impl<T: Serialize> Answer<Plain<T>> {
    /// Something that is no entity.
    ///
    /// # Panics
    /// When it does not serialise: answers are plain structs of ours.
    pub fn plain(data: &T) -> Self {
        Self::of(StatusCode::OK, data)
    }
}

impl<T: Serialize> Answer<Posted<T>> {
    /// What was made of something that was posted.
    ///
    /// # Panics
    /// As [`Answer::plain`].
    pub fn posted(data: &T) -> Self {
        Self::of(StatusCode::CREATED, data)
    }
}

impl<A> Answer<A> {
    fn entity(status: StatusCode, entity: &impl Entity) -> Self {
        Self { version: Some(entity.version()), ..Self::of(status, entity) }
    }

    fn of(status: StatusCode, data: &impl Serialize) -> Self {
        let body = serde_json::to_vec(data).expect("answers are structs with text keys").into();
        Self { status, location: None, version: None, body, says: PhantomData }
    }
}

impl<A> IntoResponse for Answer<A> {
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

impl<T: Serialize> IntoResponse for Plain<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// What can be repeated says so when it was.
impl<A: IntoResponses> IntoResponses for Answer<A> {
    fn responses() -> Responses {
        let mut responses = A::responses();
        for response in responses.values_mut() {
            if let RefOr::T(response) = response {
                response.headers.insert(REPLAYED.to_owned(), RefOr::Ref(header("IdempotentReplayed")));
            }
        }
        responses
    }
}

impl<E: Entity + ToSchema> IntoResponses for Made<E> {
    fn responses() -> Responses {
        let made = tagged::<E>(&format!("The new {}.", E::NOUN)).header_ref("Location", header("Location"));
        [("201".to_owned(), made.into())].into()
    }
}

impl<E: Entity + ToSchema> IntoResponses for Current<E> {
    fn responses() -> Responses {
        [("200".to_owned(), tagged::<E>(&format!("The {} after the change.", E::NOUN)).into())].into()
    }
}

impl<E: Entity + ToSchema> IntoResponses for Set<E> {
    fn responses() -> Responses {
        let made = tagged::<E>(&format!("The new {}.", E::NOUN));
        Current::<E>::responses().into_iter().chain([("201".to_owned(), made.into())]).collect()
    }
}

impl<T: ToSchema> IntoResponses for Posted<T> {
    fn responses() -> Responses {
        [("201".to_owned(), json::<T>("It was taken.").into())].into()
    }
}

impl IntoResponses for Nothing {
    fn responses() -> Responses {
        [("204".to_owned(), ResponseBuilder::new().description("It is gone.").into())].into()
    }
}

impl<T: ToSchema> IntoResponses for Plain<T> {
    fn responses() -> Responses {
        [("200".to_owned(), json::<T>("As it is now.").into())].into()
    }
}

fn tagged<E: ToSchema>(description: &str) -> ResponseBuilder {
    json::<E>(description).header_ref("ETag", header("ETag"))
}

impl FromRow<'_, PgRow> for Answer {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let status: i16 = row.try_get("status")?;
        let status = StatusCode::from_u16(status.cast_unsigned()).map_err(|error| sqlx::Error::Decode(error.into()))?;
        let body: Vec<u8> = row.try_get("body")?;
        let (location, version) = (row.try_get("location")?, row.try_get("version")?);
        Ok(Self { status, location, version, body: body.into(), says: PhantomData })
    }
}
