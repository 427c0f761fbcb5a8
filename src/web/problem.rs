//! Problem replies (RFC 9457): the last word on every 4xx and 5xx.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::RequestId;
use crate::error::{Code, FieldError, Problem};

/// The media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Where each code has its page: this and the code's name.
pub const PAGES: &str = "/docs/problems/";

/// RFC 9457. A code can have more members, listed with the answer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct Rendered {
    /// A page about the code.
    #[schema(format = "uri-reference", examples("/docs/problems/not_found"))]
    r#type: String,
    /// The same for every problem of this code.
    title: &'static str,
    status: u16,
    code: Code,
    /// About this very case, for a person.
    detail: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(flatten)]
    #[schema(ignore)]
    members: Map<String, Value>,
    /// The `X-Request-Id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required, value_type = Uuid)]
    request_id: Option<String>,
}

/// Middleware: writes the body of every failed answer.
///
/// An [`crate::error::Error`] left its [`Problem`] in the extensions. An answer without one (the
/// router's 404 and 405, a layer's 408 and 413) gets the problem of its status; its own headers,
/// such as `Allow`, stay. A problem that was rendered before, and is only repeated, passes.
pub async fn render(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().copied();
    let mut response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || is_problem(response.headers()) {
        return response;
    }
    let problem = response.extensions_mut().remove::<Problem>().unwrap_or_else(|| problem_for(status));
    with_body(response, problem, id)
}

fn is_problem(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(PROBLEM_JSON.as_bytes()))
}

/// The problem of an answer that did not come from an error of ours.
fn problem_for(status: StatusCode) -> Problem {
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!("a layer answered 500 without saying why");
    }
    Problem::of(Code::for_status(status))
}

fn with_body(response: Response, problem: Problem, id: Option<RequestId>) -> Response {
    let (mut parts, _) = response.into_parts();
    // A problem's own headers are there already, unless a layer made this answer.
    for (name, value) in problem.clone().into_response().headers() {
        parts.headers.entry(name).or_insert_with(|| value.clone());
    }
    // For whoever counts.
    parts.extensions.insert(problem.code);
    let rendered = Json(Rendered {
        r#type: format!("{PAGES}{}", problem.code),
        title: problem.code.title(),
        status: parts.status.as_u16(),
        code: problem.code,
        detail: problem.detail,
        errors: problem.errors,
        members: problem.members,
        request_id: id.map(|id| id.to_string()),
    });
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(CONTENT_ENCODING);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    let body: Body = rendered.into_response().into_body();
    Response::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::http::Method;
    use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
    use axum::middleware::from_fn;
    use axum::routing::{get, post};
    use serde_json::json;
    use tower::ServiceExt as _;
    use tower_http::limit::RequestBodyLimitLayer;
    use tower_http::timeout::TimeoutLayer;

    use super::*;
    use crate::error::Error;

    fn app() -> Router {
        Router::new()
            .route("/gone", get(|| async { Error::not_found() }))
            .route("/boom", get(|| async { Error::internal("the inner cause") }))
            .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/who", get(|| async { StatusCode::UNAUTHORIZED }))
            .route("/slow", get(std::future::pending::<()>))
            .route("/only-post", post(|| async {}))
            .route("/limited", post(|_: axum::body::Bytes| async {}))
            .route("/number/{n}", get(|_: axum::extract::Path<u8>| async {}))
            .route("/fine", get(|| async { "fine" }))
            .route(
                "/conflict",
                get(|| async {
                    Error::new(Code::VersionConflict, "Ana changed it.")
                        .with_error("/name", "was changed")
                        .with_member("current", json!({"version": 8}))
                }),
            )
            .layer(RequestBodyLimitLayer::new(10))
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(20)))
            .layer(from_fn(render))
            .layer(from_fn(crate::web::request::identify))
    }

    async fn ask(method: Method, path: &str, body: &'static str) -> (Response<()>, Value) {
        let request = Request::builder().method(method).uri(path);
        let response = app().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 10_000).await.unwrap();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (Response::from_parts(parts, ()), json)
    }

    #[tokio::test]
    async fn an_error_is_rendered_whole() {
        let (response, body) = ask(Method::GET, "/conflict", "").await;
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        let id = response.headers()["x-request-id"].to_str().unwrap();
        assert_eq!(
            body,
            json!({
                "type": "/docs/problems/version_conflict",
                "title": "Somebody else changed the same fields",
                "status": 412,
                "detail": "Ana changed it.",
                "code": "version_conflict",
                "requestId": id,
                "errors": [{"pointer": "/name", "detail": "was changed"}],
                "current": {"version": 8},
            })
        );
    }

    #[tokio::test]
    async fn an_internal_error_shows_nothing_but_the_request_id() {
        let (response, body) = ask(Method::GET, "/boom", "").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!body.to_string().contains("inner cause"), "{body}");
        assert!(body["requestId"].is_string() && body.get("errors").is_none());
    }

    #[tokio::test]
    async fn answers_of_the_router_and_of_layers_are_problems_too() {
        for (method, path, body, status, code) in [
            (Method::GET, "/nowhere", "", 404, "not_found"),
            (Method::GET, "/gone", "", 404, "not_found"),
            (Method::GET, "/only-post", "", 405, "method_not_allowed"),
            (Method::POST, "/limited", "more than ten", 413, "body_too_large"),
            (Method::GET, "/slow", "", 408, "timeout"),
            (Method::GET, "/number/x", "", 400, "bad_request"),
            (Method::GET, "/busy", "", 503, "unavailable"),
            (Method::GET, "/who", "", 401, "unauthorized"),
        ] {
            let (response, json) = ask(method, path, body).await;
            assert_eq!(response.status().as_u16(), status, "{path}");
            assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON, "{path}");
            assert_eq!((&json["code"], &json["status"]), (&json!(code), &json!(status)), "{path}");
            assert!(json["requestId"].is_string(), "{path}");
        }
    }

    #[tokio::test]
    async fn headers_that_belong_to_the_status_are_there() {
        let (response, _) = ask(Method::GET, "/only-post", "").await;
        assert_eq!(response.headers()[ALLOW], "POST");
        let (response, _) = ask(Method::GET, "/busy", "").await;
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let (response, _) = ask(Method::GET, "/who", "").await;
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
    }

    #[tokio::test]
    async fn what_is_fine_stays_as_it_is() {
        let (response, _) = ask(Method::GET, "/fine", "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    }
}
