//! The answer to a browser that is to come back.
//!
//! An `EventSource` gives up for ever on any answer but 200. So whoever can be one, and was refused for a while only, gets
//! a stream of one event that says why, and the time to come back. Whoever sends an `Authorization` header reads the
//! status, and gets the honest one.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    auth::{session::Cookie, ticket::Ticket},
    error::{Code, Problem},
    hub::{Closing, ClosingReason},
    metrics::Metrics,
};

/// The media type of streams.
pub(super) const EVENT_STREAM: &str = "text/event-stream";
/// How streams must be left alone by whatever lies between.
pub(super) const NEVER_CHANGED: &str = "no-cache, no-transform";

/// What every stream is sent with.
pub(super) const STREAM_HEADERS: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM)),
    (CACHE_CONTROL, HeaderValue::from_static(NEVER_CHANGED)),
    // Tells nginx not to collect events into a buffer.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// Middleware around the stream's route and its timeout: says in a stream what an `EventSource` could not read.
pub(super) async fn come_back(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let gives_up = gives_up(&request);
    let response = next.run(request).await;
    match reason(&response).filter(|_| gives_up) {
        Some(reason) => closing(reason, &response, &metrics),
        None => response,
    }
}

/// Whether whoever asks may be an `EventSource` with a ticket or a cookie. Whether that is good may be what could not be
/// found out.
fn gives_up(request: &Request) -> bool {
    match Ticket::of(request.headers(), request.uri()) {
        Some(ticket) => ticket.is_ok(),
        None => matches!(Cookie::of(request.headers()), Some(Ok(_))),
    }
}

/// Why the client is to come back; none when it is answered for good.
fn reason(response: &Response) -> Option<ClosingReason> {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return None;
    }
    // A layer's answer has no problem yet.
    match response.extensions().get::<Problem>().map_or_else(|| Code::for_status(status), |problem| problem.code) {
        Code::Draining => Some(ClosingReason::Draining),
        Code::Overloaded => Some(ClosingReason::Overload),
        Code::RateLimited | Code::TooManyStreams => Some(ClosingReason::Limit),
        Code::Timeout => Some(ClosingReason::Unavailable),
        code if code.status().is_server_error() => Some(ClosingReason::Unavailable),
        _ => None,
    }
}

/// The stream of one event. The client stays away for as long as the honest answer says, at least.
fn closing(reason: ClosingReason, honest: &Response, metrics: &Metrics) -> Response {
    let nth = metrics.come_backs.count("reason", reason.as_str());
    let closing = Closing::spread(reason, nth, retry_after(honest.headers()));
    let after = Duration::from_millis(closing.reconnect_ms).as_secs_f64().ceil() as u64;
    let mut response = (STREAM_HEADERS, Body::from(closing.frame(None))).into_response();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after));
    response
}

/// What an answer says, and else what an unavailable one would.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let usual = Code::Unavailable.retry_after().unwrap_or_default();
    seconds.map_or(usual, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        http::{StatusCode, header::AUTHORIZATION},
        middleware::{from_fn, from_fn_with_state},
        routing::get,
    };
    use serde_json::{Value, json};
    use tower::ServiceExt as _;
    use tower_http::timeout::TimeoutLayer;

    use super::*;
    use crate::{error::Error, sse::Parser, web::problem};

    const TICKET: &str = "cct_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    const COOKIE: &str = "__Host-crewcast=ccs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn limited() -> Error {
        Error::new(Code::RateLimited, "Too many.").with_retry_after(Duration::from_secs(30))
    }

    fn app() -> Router {
        let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(20));
        Router::new()
            .route("/draining", get(|| async { Error::draining() }))
            .route("/overloaded", get(|| async { Error::new(Code::Overloaded, "Full.") }))
            .route("/limited", get(|| async { limited() }))
            .route("/streams", get(|| async { Error::new(Code::TooManyStreams, "Too many.") }))
            .route("/unavailable", get(|| async { Error::unavailable("Away.") }))
            .route("/internal", get(|| async { Error::internal("a cause") }))
            .route("/bare", get(|| async { StatusCode::BAD_GATEWAY }))
            .route("/slow", get(std::future::pending::<()>))
            .route("/expired", get(|| async { Error::unauthorized("Expired.") }))
            .route("/forbidden", get(|| async { Error::forbidden("No.") }))
            .route("/bad", get(|| async { Error::new(Code::InvalidRoom, "No room.") }))
            .route("/fine", get(|| async { "fine" }))
            .layer(timeout)
            .layer(from_fn_with_state(Arc::new(Metrics::default()), come_back))
            .layer(from_fn(problem::render))
    }

    async fn ask(path: &str, authorization: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::get(path);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 10_000).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    fn text(headers: &HeaderMap, name: HeaderName) -> &str {
        headers[name].to_str().unwrap()
    }

    fn seconds(headers: &HeaderMap) -> u64 {
        text(headers, RETRY_AFTER).parse().unwrap()
    }

    #[tokio::test]
    async fn who_can_read_no_status_is_told_in_a_stream_and_who_can_by_the_status() {
        for (path, honest, reason) in [
            ("/draining", 503, "draining"),
            ("/overloaded", 503, "overload"),
            ("/limited", 429, "limit"),
            ("/streams", 429, "limit"),
            ("/unavailable", 503, "unavailable"),
            ("/internal", 500, "unavailable"),
            ("/bare", 502, "unavailable"),
            ("/slow", 408, "unavailable"),
        ] {
            let (status, headers, body) = ask(&format!("{path}?ticket={TICKET}"), None).await;
            assert_eq!((status, text(&headers, CONTENT_TYPE)), (StatusCode::OK, "text/event-stream"), "{path}");
            let frames = Parser::default().push(body.as_bytes());
            let [frame] = &frames[..] else { panic!("{path}: {body}") };
            let data: Value = serde_json::from_str(&frame.data).unwrap();
            assert_eq!((frame.event.as_str(), &data["reason"]), ("stream:closing", &json!(reason)), "{path}");
            let reconnect_ms = data["reconnectInMs"].as_u64();
            assert_eq!(frame.retry, reconnect_ms, "{path}");
            assert_eq!(seconds(&headers), reconnect_ms.unwrap().div_ceil(1000), "{path}");

            let (status, headers, body) = ask(&format!("{path}?ticket={TICKET}"), Some("Bearer x")).await;
            let kind = text(&headers, CONTENT_TYPE);
            assert_eq!((status.as_u16(), kind), (honest, problem::PROBLEM_JSON), "{path} {body}");
            if matches!(honest, 429 | 503) {
                assert!(seconds(&headers) * 1000 <= reconnect_ms.unwrap(), "{path}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_answered_for_good_stays_as_it_is() {
        for (path, expected) in
            [("/expired", 401), ("/forbidden", 403), ("/bad", 400), ("/fine", 200), ("/nowhere", 404)]
        {
            let (status, headers, body) = ask(&format!("{path}?ticket={TICKET}"), None).await;
            assert_eq!(status.as_u16(), expected, "{path} {body}");
            assert!(!headers.contains_key(RETRY_AFTER), "{path}");
        }
        for (cookie, expected) in
            [(COOKIE, StatusCode::OK), ("__Host-crewcast=nonsense", StatusCode::SERVICE_UNAVAILABLE)]
        {
            let request = Request::get("/unavailable").header("cookie", cookie);
            let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), expected, "{cookie}");
        }
        for nobody in ["/unavailable", "/unavailable?ticket=", "/unavailable?ticket=nonsense"] {
            assert_eq!(ask(nobody, None).await.0, StatusCode::SERVICE_UNAVAILABLE, "{nobody}");
        }
    }
}
