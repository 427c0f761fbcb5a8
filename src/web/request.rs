//! Every request has an id, and a span that its log lines stand in.

use std::fmt;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;
use uuid::Uuid;

use super::query::holds_token;

/// The header that tells a client the id of its request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of an unknown path that a log line shows.
const PATH_CHARS_MAX: usize = 200;

/// The id of a request: made here and never taken from the client, so that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Middleware: gives the request an id, in its extensions and in the answer's headers, and runs it
/// in a span of its own.
///
/// The span knows the path and never the query string, in which secrets may stand.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let id = RequestId(Uuid::now_v7());
    request.extensions_mut().insert(id);
    // At the level of errors, so that a filter that lets an error's line through shows its id too.
    let span = tracing::error_span!(
        "request",
        request_id = %id,
        method = %request.method(),
        path = %path_for_log(&request),
    );
    let mut response = async move {
        let response = next.run(request).await;
        tracing::debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await;
    let value = HeaderValue::try_from(id.to_string()).expect("a UUID is a header value");
    response.headers_mut().insert(X_REQUEST_ID, value);
    response
}

/// The route, or for an unknown one the path, unless somebody put a token there.
fn path_for_log(request: &Request) -> String {
    if let Some(route) = request.extensions().get::<MatchedPath>() {
        return route.as_str().to_owned();
    }
    let path = request.uri().path();
    if holds_token(path.as_bytes()) {
        return "[a token]".to_owned();
    }
    path.chars().take(PATH_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn request(uri: &str) -> Request {
        Request::get(uri).header(X_REQUEST_ID, "mine").body(axum::body::Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn an_id_is_made_for_each_request_and_never_taken_over() {
        let router = Router::new().route("/", get(|| async {})).layer(from_fn(identify));
        let first = router.clone().oneshot(request("/").await).await.unwrap();
        let second = router.oneshot(request("/").await).await.unwrap();
        let id = |response: &Response| response.headers()[X_REQUEST_ID].to_str().unwrap().to_owned();
        assert_eq!(Uuid::try_parse(&id(&first)).unwrap().get_version_num(), 7);
        assert_ne!(id(&first), id(&second));
    }

    #[tokio::test]
    async fn a_log_line_shows_neither_query_nor_token() {
        let shown = path_for_log(&request("/v1/x?ticket=secret").await);
        assert_eq!(shown, "/v1/x");
        let shown = path_for_log(&request("/v1/eyJhbGciOi.eyJzdWIi.c2ln").await);
        assert_eq!(shown, "[a token]");
    }
}
