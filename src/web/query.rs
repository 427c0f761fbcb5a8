//! What stands in the address: path and query parameters.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};
use crate::ids::Room;

/// Parts of the path, read as a `T`; refused with 400 `invalid_path`.
#[derive(Clone, Copy, Debug)]
pub struct PathArg<T>(pub T);

impl<T, S> FromRequestParts<S> for PathArg<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        if percent_decoded(parts.uri.path()).contains(&0) {
            return Err(Error::new(Code::InvalidPath, "The path must not contain %00."));
        }
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(bad_path)
    }
}

fn bad_path(rejection: PathRejection) -> Error {
    // A handler that asks for more than its route has is a mistake of ours.
    if rejection.status().is_server_error() {
        return Error::internal(rejection);
    }
    // Without the name of the type that it is not: that is a word of our language.
    let text = rejection.body_text();
    Error::new(Code::InvalidPath, format!("{}.", text.split(" to a `").next().unwrap_or(&text)))
}

/// A room that stands in the address.
///
/// # Errors
/// 400 `invalid_room`.
pub fn room(name: &str) -> Result<Room> {
    name.parse().map_err(|error| Error::new(Code::InvalidRoom, format!("{error}.")))
}

/// The query string, read as a `T`; refused with 400 `invalid_query`. Unknown parameters are
/// ignored.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        check_query_text(parts.uri.query().unwrap_or_default())?;
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(bad_query)
    }
}

fn bad_query(rejection: QueryRejection) -> Error {
    Error::new(Code::InvalidQuery, format!("{}.", rejection.body_text()))
}

/// Refuses what would be replaced or cut on its way: bytes that are no UTF-8, and U+0000.
fn check_query_text(query: &str) -> Result<()> {
    let decoded = percent_decoded(query);
    if decoded.contains(&0) {
        return Err(Error::new(Code::InvalidQuery, "The query must not contain %00."));
    }
    if std::str::from_utf8(&decoded).is_err() {
        return Err(Error::new(Code::InvalidQuery, "The query's escapes are not UTF-8."));
    }
    Ok(())
}

/// The bytes behind the `%XX`; a `%` that escapes nothing stands for itself, as in URLs.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        let escape = escaped(rest);
        decoded.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &rest[3..] } else { tail };
    }
    decoded
}

/// The byte that `text` begins with as an escape.
fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

/// Middleware: refuses every request whose query string holds something shaped like a JWT.
///
/// Addresses end up in logs, histories and referrers; a token must not. The answer does not repeat
/// it.
pub async fn refuse_tokens_in_query(request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    if holds_token(&percent_decoded(query)) {
        return Error::new(
            Code::TokenInQuery,
            "Send the token as `Authorization: Bearer`, and consider \
             this token known to others.",
        )
        .into_response();
    }
    next.run(request).await
}

/// Whether a JWT stands somewhere in the text: three parts of base64url with dots between them, of
/// which the first begins as `{"` does, `eyJ`. An unsigned one ends with its second dot.
pub(super) fn holds_token(text: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    text.split(|byte| !is_part(byte) && *byte != b'.').any(|run| {
        let parts: Vec<_> = run.split(|byte| *byte == b'.').collect();
        parts.windows(3).any(|part| part[0].starts_with(b"eyJ") && !part[1].is_empty())
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use proptest::prelude::*;
    use serde::Deserialize;
    use tower::ServiceExt as _;
    use uuid::Uuid;

    use super::*;
    use crate::ids::{Slug, Sub};
    use crate::web::Page;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it parses matters")]
    struct Filter {
        division: Option<Slug>,
        #[serde(flatten)]
        page: Page,
    }

    async fn ask(uri: &str) -> (StatusCode, Option<Code>) {
        let router = Router::new()
            .route("/list", get(|_: Query<Filter>| async {}))
            .route("/id/{id}", get(|_: PathArg<Uuid>| async {}))
            .route("/text/{text}", get(|_: PathArg<String>| async {}))
            .route("/rooms/{room}/events", get(|_: PathArg<Room>| async {}))
            .route("/p/{id}/members/{sub}", get(|_: PathArg<(Uuid, Sub)>| async {}))
            .layer(from_fn(refuse_tokens_in_query));
        let request = Request::get(uri).body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let code = response.extensions().get::<crate::error::Problem>().map(|p| p.code);
        (response.status(), code)
    }

    #[tokio::test]
    async fn queries_are_read_or_refused() {
        for good in ["", "division=nord&limit=7&after=x", "limit=200&other=%F0%9F%98%80", "division=a&a=1&a=2"] {
            assert_eq!(ask(&format!("/list?{good}")).await.0, StatusCode::OK, "{good}");
        }
        for bad in [
            "limit=0",
            "limit=201",
            "limit=x",
            "limit=-1",
            "limit=1&limit=2",
            "division=Nord",
            "division=",
            "x=%FF",
            "after=%00",
            "%00=1",
        ] {
            let answer = ask(&format!("/list?{bad}")).await;
            assert_eq!(answer, (StatusCode::BAD_REQUEST, Some(Code::InvalidQuery)), "{bad}");
        }
    }

    #[tokio::test]
    async fn paths_are_read_or_refused() {
        let id = Uuid::now_v7();
        for good in
            [format!("/id/{id}"), "/rooms/user:ana%40x.org/events".into(), format!("/p/{id}/members/auth0%7Cana")]
        {
            assert_eq!(ask(&good).await.0, StatusCode::OK, "{good}");
        }
        for bad in ["/id/7", "/text/a%00b", "/text/%FF", "/rooms/kitchen/events", "/p/x/members/ana"] {
            let answer = ask(bad).await;
            assert_eq!(answer, (StatusCode::BAD_REQUEST, Some(Code::InvalidPath)), "{bad}");
        }
    }

    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbmEifQ.c2ln-_c2ln";

    #[tokio::test]
    async fn a_token_in_the_query_is_refused_on_every_route() {
        let escaped: String = TOKEN.bytes().map(|b| format!("%{b:02x}")).collect();
        for query in [
            format!("token={TOKEN}"),
            format!("access_token={escaped}"),
            format!("a=b&{TOKEN}"),
            format!("{TOKEN}=1"),
            format!("x=Bearer+{TOKEN}"),
            format!("x=Bearer%20{TOKEN}%22"),
            "x=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbmEifQ.".to_owned(),
        ] {
            for path in ["/list", "/nowhere"] {
                let answer = ask(&format!("{path}?{query}")).await;
                assert_eq!(answer, (StatusCode::BAD_REQUEST, Some(Code::TokenInQuery)), "{query}");
            }
        }
    }

    #[tokio::test]
    async fn what_only_looks_a_little_like_a_token_passes() {
        for query in ["a=eyJ", "a=eyJhbG.x", "a=1.2.3", "after=k3f9-5c2x", "a=eyJ..", "a=x.eyJa.b"] {
            assert_eq!(ask(&format!("/list?{query}")).await.0, StatusCode::OK, "{query}");
        }
    }

    proptest! {
        #[test]
        fn decoding_agrees_with_form_urlencoded(text in "[a-zA-Z0-9%._~-]{0,40}") {
            let ours = String::from_utf8_lossy(&percent_decoded(&text)).into_owned();
            let theirs: Vec<_> = form_urlencoded::parse(text.as_bytes()).map(|(key, _)| key.into_owned()).collect();
            prop_assert_eq!(theirs.first().cloned().unwrap_or_default(), ours);
        }

        #[test]
        fn no_query_panics(text in any::<String>()) {
            let _ = check_query_text(&text);
            let _ = holds_token(text.as_bytes());
        }
    }
}
