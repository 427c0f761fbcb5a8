//! The one error type of the service, and how it becomes an answer.
//!
//! A [`Code`] names what went wrong for good: clients switch on it, the docs have a page for it.
//! An [`Error`] is a code, a sentence for the person who reads it, and a cause for our log, which
//! the client never sees. As a handler does not know its request's id, the answer that an error
//! becomes has an empty body and a [`Problem`] in its extensions; [`crate::web::problem::render`]
//! writes the body.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::log::LogError;

/// A cause of any type.
type BoxError = Box<dyn StdError + Send + Sync>;

/// A result whose error is ours.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($variant:ident $name:literal $status:ident $title:literal;)*) => {
        /// What went wrong: stable names, each with one status and one title.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`: ", $title, ".")] $variant,)*
        }

        impl Code {
            /// Every code, for whoever lists them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in `code` and at the end of `type`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The status that this code is answered with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),* }
            }

            /// The title: the same for every problem of this code.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }
        }
    };
}

codes! {
    BadRequest "bad_request" BAD_REQUEST "The request is not one that the server takes";
    MalformedJson "malformed_json" BAD_REQUEST "The body is not JSON";
    InvalidQuery "invalid_query" BAD_REQUEST "A query parameter is not valid";
    InvalidPath "invalid_path" BAD_REQUEST "A part of the path is not valid";
    InvalidHeader "invalid_header" BAD_REQUEST "A header is not valid";
    InvalidRoom "invalid_room" BAD_REQUEST "That is not the name of a room";
    TooManyRooms "too_many_rooms" BAD_REQUEST "Too many rooms were asked for";
    TokenInQuery "token_in_query" BAD_REQUEST "A token stands in the query string";
    Unauthorized "unauthorized" UNAUTHORIZED "Valid credentials are needed";
    Forbidden "forbidden" FORBIDDEN "The caller may not do this";
    OriginNotAllowed "origin_not_allowed" FORBIDDEN "The page's origin is not allowed to write with a cookie";
    NotFound "not_found" NOT_FOUND "There is no such thing";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "This address does not take that method";
    Timeout "timeout" REQUEST_TIMEOUT "The request took too long";
    Conflict "conflict" CONFLICT "The request does not fit the present state";
    AlreadyExists "already_exists" CONFLICT "There is one already";
    InUse "in_use" CONFLICT "Something else still refers to it";
    CursorNotResumable "cursor_not_resumable" CONFLICT "That cursor cannot be resumed";
    IdempotencyInProgress "idempotency_in_progress" CONFLICT "The first request with this key is still running";
    VersionConflict "version_conflict" PRECONDITION_FAILED "Somebody else changed the same fields";
    BodyTooLarge "body_too_large" PAYLOAD_TOO_LARGE "The body is too large";
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The body must be JSON";
    InvalidBody "invalid_body" UNPROCESSABLE_ENTITY "The body is JSON, but not what is expected here";
    IdempotencyKeyReused "idempotency_key_reused" UNPROCESSABLE_ENTITY "This key was used for another request";
    RateLimited "rate_limited" TOO_MANY_REQUESTS "Too many requests";
    TooManyStreams "too_many_streams" TOO_MANY_REQUESTS "Too many streams are open";
    Internal "internal" INTERNAL_SERVER_ERROR "Something went wrong on the server";
    Unavailable "unavailable" SERVICE_UNAVAILABLE "Not possible at the moment";
    Draining "draining" SERVICE_UNAVAILABLE "The server is shutting down";
    Overloaded "overloaded" SERVICE_UNAVAILABLE "The server has more to do than it can";
}

impl Code {
    /// Codes for routes to come: no route answers them yet.
    pub const KEPT: &[Self] = &[Self::Conflict];

    /// When a client may ask again, unless the error says otherwise; none where asking again is no use.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Unavailable | Self::Draining | Self::RateLimited => Some(Duration::from_secs(1)),
            // Room is made by others who leave.
            Self::Overloaded | Self::TooManyStreams => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// The code for an answer that comes with a status alone, from a layer or from the router.
    #[must_use]
    pub fn for_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::Timeout,
            StatusCode::CONFLICT => Self::Conflict,
            StatusCode::PRECONDITION_FAILED => Self::VersionConflict,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Self::InvalidBody,
            StatusCode::TOO_MANY_REQUESTS => Self::RateLimited,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Self::Unavailable,
            status if status.is_server_error() => Self::Internal,
            _ => Self::BadRequest,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(given: &str) -> Result<Self, UnknownCode> {
        let mut all = Self::ALL.iter().copied();
        all.find(|code| code.as_str() == given).ok_or(UnknownCode)
    }
}

/// There is no such [`Code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such code")]
pub struct UnknownCode;

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let kept: Vec<String> = Self::KEPT.iter().map(|code| format!("`{code}`")).collect();
        let description = format!(
            "Stable. These are all that the server knows; no route answers {} yet: that is kept for routes to come.",
            kept.join(", ")
        );
        let code = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
        code.enum_values(Some(Self::ALL.iter().map(|code| code.as_str()))).into()
    }
}

impl ToSchema for Code {}

/// What is wrong with one part of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where in the body: a JSON pointer (RFC 6901), empty for the whole.
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

/// What the client gets to read of an error; all but the request's id, which is added last.
///
/// It can be stored and answered again: that is how a repeated request gets its first answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong.
    pub code: Code,
    /// A sentence about this very case.
    pub detail: String,
    /// What is wrong with which field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Extension members, such as `current` of a version conflict.
    #[serde(flatten)]
    pub members: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// A problem that has nothing to say but its code.
    #[must_use]
    pub fn of(code: Code) -> Self {
        Self { code, detail: format!("{}.", code.title()), errors: Vec::new(), members: serde_json::Map::new() }
    }
}

/// What was wrong with the credentials that a 401 is about; it is in the answer's extensions, for whoever counts and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// There were none.
    Missing,
    /// They were good once.
    Expired,
    /// They are none of ours, or were tampered with.
    Bad,
}

/// Anything that keeps a request from being done.
#[derive(Debug)]
pub struct Error(Box<Inner>);

/// Boxed, so that a `Result` that is fine stays small.
#[derive(Debug)]
struct Inner {
    problem: Problem,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Of a 401.
    credentials: Option<Credentials>,
    /// For the log only.
    cause: Option<BoxError>,
}

impl Error {
    /// An error with a sentence about this very case.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self::from_problem(Problem { detail: detail.into(), ..Problem::of(code) })
    }

    fn from_problem(problem: Problem) -> Self {
        Self(Box::new(Inner { problem, headers: Vec::new(), credentials: None, cause: None }))
    }

    /// 401 for bad credentials. `why` says what was wrong with them and never repeats them.
    pub fn unauthorized(why: impl Into<String>) -> Self {
        let challenge = HeaderValue::from_static(r#"Bearer error="invalid_token""#);
        Self::new(Code::Unauthorized, why).with_header(WWW_AUTHENTICATE, challenge).with_credentials(Credentials::Bad)
    }

    /// 403: the caller may know about it, but not do this.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, detail)
    }

    /// 404: it does not exist, or the caller may not know that it does.
    #[must_use]
    pub fn not_found() -> Self {
        Self::from_problem(Problem::of(Code::NotFound))
    }

    /// 422 about one field; `pointer` is a JSON pointer such as `/name`.
    pub fn invalid_body(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidBody, "The body is not what is expected here; see errors.").with_error(pointer, detail)
    }

    /// 503 with `Retry-After`.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, detail)
    }

    /// 503 with `Retry-After`: another node takes the request.
    #[must_use]
    pub fn draining() -> Self {
        Self::new(Code::Draining, "The server is shutting down.")
    }

    /// 500: the cause goes to the log, and the client learns nothing but the request's id.
    pub fn internal(cause: impl Into<BoxError>) -> Self {
        Self::new(Code::Internal, "The server's log has the cause under this request's id.").with_cause(cause)
    }

    /// Adds what is wrong with one field.
    #[must_use]
    pub fn with_error(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.0.problem.errors.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        self
    }

    /// Adds an extension member. `name` is none of the standard ones.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.0.problem.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header to the answer, in place of one of that name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.retain(|(other, _)| *other != name);
        self.0.headers.push((name, value));
        self
    }

    /// Says what was wrong with the credentials that a 401 is about.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.0.credentials = Some(credentials);
        self
    }

    /// Says when to ask again, in whole seconds rounded up.
    #[must_use]
    pub fn with_retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.with_header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The same for somebody else who asks; the cause stays with the first.
    pub(crate) fn again(&self) -> Self {
        let Inner { problem, headers, credentials, .. } = &*self.0;
        let (problem, headers) = (problem.clone(), headers.clone());
        Self(Box::new(Inner { problem, headers, credentials: *credentials, cause: None }))
    }

    /// Adds what our log should know and the client should not.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<BoxError>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.problem.code
    }

    /// What the client will read.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// This error, or another one if it comes from the database's constraint of that name.
    #[must_use]
    pub fn on_constraint(self, name: &str, other: impl FnOnce() -> Self) -> Self {
        if self.constraint() == Some(name) { other() } else { self }
    }

    /// The constraint that the database refused to break.
    fn constraint(&self) -> Option<&str> {
        let cause = self.0.cause.as_ref()?.downcast_ref::<sqlx::Error>()?;
        cause.as_database_error()?.constraint()
    }

    /// Once, here, for this is where an error leaves us; inside the request's span.
    fn log(&self) {
        match self.code() {
            Code::Internal => tracing::error!(cause = %Chain(self), "request failed"),
            Code::Unavailable | Code::Draining | Code::Overloaded => {
                tracing::warn!(cause = %Chain(self), "request put off");
            }
            _ => {}
        }
    }
}

/// What another node of ours has answered.
impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::from_problem(problem)
    }
}

/// `on_constraint` on results, where queries need it.
pub trait OnConstraint<T> {
    /// Turns the violation of a named constraint into the error that the client should see.
    ///
    /// # Errors
    /// The error there was, or `other` in place of that violation.
    fn on_constraint(self, name: &str, other: impl FnOnce() -> Error) -> Result<T>;
}

impl<T, E: Into<Error>> OnConstraint<T> for std::result::Result<T, E> {
    fn on_constraint(self, name: &str, other: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| error.into().on_constraint(name, other))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.0.problem;
        write!(f, "{}: {}", problem.code, problem.detail)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

/// An error and its causes on one line.
struct Chain<'a>(&'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log();
        let Inner { problem, headers, credentials, .. } = *self.0;
        let mut response = problem.into_response();
        if let Some(credentials) = credentials {
            response.extensions_mut().insert(credentials);
        }
        for (name, value) in headers {
            // In place of a default one.
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.code.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = "The database is out of reach.";
        let code = error.as_database_error().and_then(|db| db.code());
        let mapped = match (&error, code.as_deref()) {
            (_, Some(code)) => for_sqlstate(code),
            (
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed,
                None,
            ) => Some(Self::unavailable(unavailable)),
            _ => None,
        };
        match mapped {
            Some(mapped) => mapped.with_cause(error),
            None => Self::internal(error),
        }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        match error {
            LogError::TooOld => {
                Self::new(Code::CursorNotResumable, "The cursor is older than what the log still holds.")
            }
            LogError::Foreign => Self::new(Code::CursorNotResumable, "The cursor was made by another log."),
            LogError::Db(error) => error.into(),
            LogError::Ahead | LogError::Broken(_) => {
                Self::unavailable("The event log cannot be read at the moment.").with_cause(error)
            }
        }
    }
}

/// Postgres's error codes that are not our mistake
/// (<https://www.postgresql.org/docs/15/errcodes-appendix.html>).
fn for_sqlstate(code: &str) -> Option<Error> {
    match code {
        // A character that the database cannot store, or none at all.
        "22P05" | "22021" => {
            Some(Error::invalid_body("", "contains a character that cannot be stored, such as U+0000"))
        }
        // Serialisation failure, deadlock, a lock or a statement that took too long.
        "40001" | "40P01" | "55P03" | "57014" => {
            Some(Error::unavailable("Others were changing the same things; try again."))
        }
        // Shutting down, crashed, starting up; read-only after a failover to another server.
        "57P01" | "57P02" | "57P03" | "25006" => Some(Error::unavailable("The database is out of reach.")),
        // Connection exceptions; connections, memory or disk at their end.
        code if code.starts_with("08") || code.starts_with("53") => {
            Some(Error::unavailable("The database is out of reach."))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Refusal {
        code: &'static str,
        constraint: Option<&'static str>,
    }

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("secret inner words")
        }
    }

    impl StdError for Refusal {}

    impl sqlx::error::DatabaseError for Refusal {
        fn message(&self) -> &str {
            "secret inner words"
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }
        fn constraint(&self) -> Option<&str> {
            self.constraint
        }
        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn refusal(code: &'static str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Refusal { code, constraint: Some("assignments_once") }))
    }

    #[test]
    fn the_databases_errors_become_ours() {
        for (code, expected) in [
            ("22P05", Code::InvalidBody),
            ("22021", Code::InvalidBody),
            ("40001", Code::Unavailable),
            ("40P01", Code::Unavailable),
            ("57P01", Code::Unavailable),
            ("57P03", Code::Unavailable),
            ("53300", Code::Unavailable),
            ("08006", Code::Unavailable),
            ("23505", Code::Internal),
            ("42703", Code::Internal),
        ] {
            assert_eq!(Error::from(refusal(code)).code(), expected, "{code}");
        }
        for (error, expected) in [
            (sqlx::Error::PoolTimedOut, Code::Unavailable),
            (sqlx::Error::PoolClosed, Code::Unavailable),
            (sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()), Code::Unavailable),
            (sqlx::Error::RowNotFound, Code::Internal),
        ] {
            assert_eq!(Error::from(error).code(), expected);
        }
    }

    #[test]
    fn a_named_constraint_becomes_a_clients_error() {
        let mend = || Error::new(Code::AlreadyExists, "There is such an assignment.");
        let result: Result<(), _> = Err(refusal("23505"));
        let error = result.on_constraint("assignments_once", mend).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        let result: Result<(), _> = Err(refusal("23505"));
        let error = result.on_constraint("another", mend).unwrap_err();
        assert_eq!(error.code(), Code::Internal);
    }

    #[test]
    fn an_internal_error_tells_the_log_and_not_the_client() {
        let error = Error::from(refusal("42703"));
        assert!(Chain(&error).to_string().contains("secret inner words"));
        let problem = serde_json::to_string(error.problem()).unwrap();
        assert!(!problem.contains("secret"), "{problem}");
    }

    #[test]
    fn what_must_stand_in_headers_does() {
        for code in Code::ALL {
            let response = Error::new(*code, "Busy.").into_response();
            let is_for_later = matches!(response.status().as_u16(), 429 | 503);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), is_for_later, "{code}");
        }
        let later = Error::unavailable("Busy.").with_retry_after(Duration::from_millis(2_100));
        assert_eq!(later.into_response().headers()[RETRY_AFTER], "3");
        let response = Error::unauthorized("The token has expired.").into_response();
        assert_eq!(response.headers().get_all(WWW_AUTHENTICATE).iter().count(), 1);
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn a_stored_problem_is_the_same_problem() {
        let error = Error::new(Code::VersionConflict, "Somebody was faster.")
            .with_error("/name", "was changed")
            .with_member("current", serde_json::json!({"version": 8}));
        let stored = serde_json::to_string(error.problem()).unwrap();
        assert_eq!(serde_json::from_str::<Problem>(&stored).unwrap(), *error.problem());
    }

    #[test]
    fn codes_are_snake_case_and_read_back() {
        for code in Code::ALL {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.parse(), Ok(*code));
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }
}
