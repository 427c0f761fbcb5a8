//! `/v1/session`: signing in with a token, for a browser that goes on with a cookie, and signing out.

mod keep;

use axum::{
    Json,
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, SET_COOKIE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{Header, ObjectBuilder, ResponseBuilder, Type, header::HeaderBuilder},
};

pub use self::keep::keep;
use super::{
    address::Address,
    openapi::always,
    origin::{self, Origin},
};
use crate::{
    app::App,
    auth::{
        Caller,
        session::{self, Cookie},
    },
    bus::Message,
    error::{Error, Result},
    ids::Sub,
    web::openapi::{Responses, json},
};

/// A session that was begun.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Session)]
struct Begun {
    /// When it ends: with the token that it was begun with.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    user: User,
}

/// Whose session it is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionUser)]
struct User {
    /// The caller's `sub`.
    id: Sub,
    /// What they are called.
    #[schema(required)]
    name: Option<String>,
}

/// A session, and the cookie that stands for it.
pub(super) struct SignedIn(Begun, HeaderValue);

/// Sign in, for a browser
///
/// Sets the cookie `__Host-crewcast`, which no script can read. It stands for the caller on every route, wherever there is no
/// `Authorization` header, until the token ends. An `EventSource` sends it by itself, from a page of another origin with
/// `withCredentials`. Writes with it are for pages of the server's own origin and of those in `cors-origins`; so is signing in.
///
/// Who comes with the cookie of their session goes on with that: the cookie gets a new value, the old one is no good any more,
/// and open streams end with the new token. Somebody else's session is ended.
#[utoipa::path(post, path = "/v1/session", security(("bearer" = [])))]
pub(super) async fn sign_in(
    State(app): State<App>,
    address: Address,
    caller: Caller,
    headers: HeaderMap,
) -> Result<SignedIn> {
    if !headers.contains_key(AUTHORIZATION) {
        return Err(Error::unauthorized(
            "Sign in with the header `Authorization: Bearer {token}`; a cookie is not enough.",
        ));
    }
    origin::admit(&app, address, &headers, Origin::Welcome)?;
    let old = only(&headers);
    let cookie = app.sessions.begin(&caller, old.as_ref()).await?;
    if old.is_some() {
        app.bus.tell(Message::Sessions);
    }
    let Caller { sub, name, expires_at, .. } = caller;
    Ok(SignedIn(Begun { expires_at, user: User { id: sub, name } }, cookie.set(expires_at)))
}

/// The cookie that a request brings. Of several nobody knows which one is meant.
pub(super) fn only(headers: &HeaderMap) -> Option<Cookie> {
    let mut all = Cookie::all(headers);
    all.next().filter(|_| all.next().is_none())?.ok()
}

impl IntoResponse for SignedIn {
    fn into_response(self) -> Response {
        let headers = [(CACHE_CONTROL, NO_STORE), (SET_COOKIE, self.1)];
        (StatusCode::CREATED, headers, Json(self.0)).into_response()
    }
}

impl IntoResponses for SignedIn {
    fn responses() -> Responses {
        let begun = json::<Begun>("The session has begun, or goes on.");
        let begun = begun.header("Cache-Control", always("no-store")).header("Set-Cookie", set_cookie());
        [("201".to_owned(), begun.build().into())].into()
    }
}

pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A browser without its session.
pub(super) struct SignedOut;

/// Sign out
///
/// Ends the session of the cookie, takes the cookie away, and ends the session's streams with `stream:closing` and the reason
/// `signed_out`. It is no error when there is no session any more.
#[utoipa::path(delete, path = "/v1/session", security((), ("cookie" = [])))]
pub(super) async fn sign_out(State(app): State<App>, address: Address, headers: HeaderMap) -> Result<SignedOut> {
    let cookies: Vec<Cookie> = Cookie::all(&headers).flatten().collect();
    origin::admit(&app, address, &headers, if cookies.is_empty() { Origin::Welcome } else { Origin::Needed })?;
    app.sessions.end(&cookies).await?;
    if !cookies.is_empty() {
        app.bus.tell(Message::Sessions);
    }
    Ok(SignedOut)
}

impl IntoResponse for SignedOut {
    fn into_response(self) -> Response {
        (StatusCode::NO_CONTENT, [(CACHE_CONTROL, NO_STORE), (SET_COOKIE, session::clear())]).into_response()
    }
}

impl IntoResponses for SignedOut {
    fn responses() -> Responses {
        let ended = ResponseBuilder::new().description("There is no session any more.");
        let ended = ended.header("Cache-Control", always("no-store")).header("Set-Cookie", set_cookie());
        [("204".to_owned(), ended.build().into())].into()
    }
}

/// How the document describes the cookie.
pub(super) fn set_cookie() -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let example = format!("{}=ccs_..; Max-Age=3600; Path=/; HttpOnly; Secure; SameSite=Strict", session::NAME);
    HeaderBuilder::new().schema(Some(text)).example(Some(example.into())).build()
}
