//! JSON bodies.
//!
//! A body is judged in two steps. First whether it is JSON at all, strings, escapes and depth
//! included: 400. That looks at everything, also at parts that the type takes as raw text, so a
//! payload that passes through unread is sound too. Then whether it is what the type wants: 422,
//! with a pointer to the place. How large it may be is for a layer around the router to say.

use std::fmt;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Segment;

use super::strict::Strict;
use crate::error::{Code, Error, Result};

/// The bytes of a body that is declared as JSON.
///
/// # Errors
/// 415 when it is not declared so, 413, or 400 when it did not arrive.
pub async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes> {
    require_json(request.headers())?;
    Bytes::from_request(request, state).await.map_err(unread)
}

/// The body of a request that changes nothing in Postgres; of all others it comes with their transaction.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        parse(&read(request, state).await?).map(Self)
    }
}

/// Whether the body is declared as JSON: `application/json` or `application/{..}+json`.
///
/// # Errors
/// 415 when it is not, or not declared at all.
pub fn require_json(headers: &HeaderMap) -> Result<()> {
    let declared = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = declared.and_then(|value| value.split(';').next());
    let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/").unwrap_or_default();
    if subtype == "json" || subtype.ends_with("+json") {
        return Ok(());
    }
    Err(Error::new(Code::UnsupportedMediaType, "Send the header `Content-Type: application/json`."))
}

/// Why the bytes did not arrive, for whoever takes them as [`Bytes`].
pub fn unread(rejection: BytesRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Error::new(Code::BodyTooLarge, "The body is larger than this server takes.");
    }
    Error::new(Code::MalformedJson, "The body could not be read to its end.").with_cause(rejection)
}

/// Reads a JSON object as a `T`.
///
/// # Errors
/// 400 `malformed_json` with line and column, or 422 `invalid_body` with pointers.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = check_syntax(bytes)?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Error::invalid_body("", "must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(Strict(&mut json))
        .map_err(|error| Error::invalid_body(pointer(error.path()), without_position(error.inner())))
}

/// Whether this is one JSON value and nothing else.
fn check_syntax(bytes: &[u8]) -> Result<&str> {
    let malformed = |why: String| Error::new(Code::MalformedJson, why);
    if bytes.trim_ascii().is_empty() {
        return Err(malformed("The body is empty; a JSON object is needed.".to_owned()));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format!("The body is not UTF-8 at byte {}.", error.valid_up_to())))?;
    serde_json::from_str::<WellFormed>(text).map_err(|error| malformed(format!("The body is not JSON: {error}.")))?;
    Ok(text)
}

/// Any JSON value, looked at and thrown away.
///
/// Not `IgnoredAny`, for which `serde_json` skips ahead: it checks neither surrogates nor depth.
struct WellFormed;

impl<'de> Deserialize<'de> for WellFormed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WellFormed)
    }
}

macro_rules! accept {
    ($($method:ident: $value:ty,)*) => {$(
        fn $method<E>(self, _: $value) -> Result<Self, E> {
            Ok(self)
        }
    )*};
}

impl<'de> Visitor<'de> for WellFormed {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    accept! { visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// A path in a body as a JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let segment = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.replace('~', "~0").replace('/', "~1"),
            Segment::Unknown => break,
        };
        pointer.push('/');
        pointer.push_str(&segment);
    }
    pointer
}

/// The message without line and column, which the pointer stands in for, and without the names of
/// our types.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&position).unwrap_or(&message);
    match message.split_once("expected struct ") {
        Some((found, _)) => format!("{found}expected an object"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{Request, StatusCode};
    use axum::routing::post;
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::value::RawValue;
    use tower::ServiceExt as _;

    use super::*;
    use crate::ids::Text;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it parses matters")]
    struct New {
        name: Text<1, 10>,
        #[serde(default)]
        weekly_hours: Option<f64>,
        #[serde(default)]
        parts: Vec<Part>,
        #[serde(default)]
        data: Option<Box<RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only whether it parses matters")]
    struct Part {
        #[serde(rename = "a/b~c")]
        odd: u8,
    }

    fn refusal(json: &[u8]) -> (Code, String, String) {
        let error = parse::<New>(json).unwrap_err();
        let problem = error.problem();
        match problem.errors.first() {
            Some(first) => (problem.code, first.pointer.clone(), first.detail.clone()),
            None => (problem.code, String::new(), problem.detail.clone()),
        }
    }

    #[test]
    fn what_is_not_json_is_400_and_says_where() {
        let deep = format!(r#"{{"name":"a","data":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        for json in [
            &b""[..],
            b"  ",
            b"{",
            br#"{"name":"a"} x"#,
            br#"{"name":"a"}{}"#,
            br#"{"name":"\ud800"}"#,
            br#"{"name":"a","data":"\ud800"}"#,
            br#"{"name":"a","data":"\udc00\ud800"}"#,
            br#"{"name":5, ]"#,
            br#"{"name":'a'}"#,
            br#"{"name":NaN}"#,
            b"{\"name\":\"a\nb\"}",
            b"{\"name\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
            deep.as_bytes(),
        ] {
            let (code, _, detail) = refusal(json);
            assert_eq!(code, Code::MalformedJson, "{:?}: {detail}", String::from_utf8_lossy(json));
        }
        let (_, _, detail) = refusal(b"{\n  \"name\": }");
        assert!(detail.contains("line 2 column 11"), "{detail}");
    }

    #[test]
    fn what_does_not_fit_is_422_and_says_where() {
        for (json, pointer, part_of_detail) in [
            (r#"{}"#, "", "missing field `name`"),
            (r#"{"name":7}"#, "/name", "expected a string"),
            (r#"{"name":"a\u0000"}"#, "/name", "must not contain U+0000"),
            (r#"{"name":""}"#, "/name", "must have 1 to 10 characters, not 0"),
            (r#"{"name":"a","weeklyHours":"4"}"#, "/weeklyHours", "expected f64"),
            (r#"{"name":"a","nmae":1}"#, "/nmae", "unknown field `nmae`"),
            (r#"{"name":"a","name":"b"}"#, "", "duplicate field `name`"),
            (r#"{"name":"a","parts":[{"a/b~c":1},{"a/b~c":999}]}"#, "/parts/1/a~1b~0c", "expected u8"),
            (r#"{"name":"a","parts":[[1]]}"#, "/parts/0", "expected an object"),
            (r#"["a"]"#, "", "must be a JSON object"),
            ("null", "", "must be a JSON object"),
            (r#""a""#, "", "must be a JSON object"),
        ] {
            let (code, at, detail) = refusal(json.as_bytes());
            assert_eq!(code, Code::InvalidBody, "{json}");
            assert!(detail.contains(part_of_detail), "{json}: {detail}");
            assert!(!detail.contains(" at line ") && !detail.contains("Part"), "{detail}");
            // Whether serde names the repeated or unknown key itself or its parent is its own
            // affair; everything else must be exact.
            if !detail.starts_with("duplicate") {
                assert_eq!(at, pointer, "{json}: {detail}");
            }
        }
    }

    #[test]
    fn payloads_keep_their_text() {
        let json = " {\"name\":\"a\u{2028}b\\r\\n\",\"data\": {\"n\": 1.50,  \"e\":\"\\ud83d\\ude00\"} }\n";
        let new: New = parse(json.as_bytes()).unwrap();
        assert_eq!(new.data.unwrap().get(), "{\"n\": 1.50,  \"e\":\"\\ud83d\\ude00\"}");
    }

    async fn read_new(request: axum::extract::Request) -> Result<StatusCode> {
        parse::<New>(&read(request, &()).await?).map(|_| StatusCode::CREATED)
    }

    async fn status_of(content_type: Option<&str>, body: Vec<u8>) -> StatusCode {
        let router = Router::new()
            .route("/", post(read_new))
            .layer(tower_http::limit::RequestBodyLimitLayer::new(100))
            .layer(axum::middleware::from_fn(crate::web::problem::render));
        let mut request = Request::post("/");
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(axum::body::Body::from(body)).unwrap();
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn only_declared_json_is_read() {
        let body = br#"{"name":"a"}"#.to_vec();
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
            assert_eq!(status_of(Some(good), body.clone()).await, StatusCode::CREATED, "{good}");
        }
        for bad in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("json")] {
            let status = status_of(bad, body.clone()).await;
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_with_and_without_a_length() {
        let large = vec![b' '; 101];
        let json = Some("application/json");
        assert_eq!(status_of(json, large.clone()).await, StatusCode::PAYLOAD_TOO_LARGE);

        let chunks = tokio_stream::iter(vec![Ok::<_, std::io::Error>(large)]);
        let request = Request::post("/")
            .header(CONTENT_TYPE, "application/json")
            .body(axum::body::Body::from_stream(chunks))
            .unwrap();
        let router = Router::new().route("/", post(read_new)).layer(tower_http::limit::RequestBodyLimitLayer::new(100));
        let status = router.oneshot(request).await.unwrap().status();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<New>(&bytes);
        }

        #[test]
        fn no_json_like_body_panics(text in r#"[{}\[\]",:0-9a-z\\un ]{0,60}"#) {
            let _ = parse::<New>(text.as_bytes());
        }
    }
}
