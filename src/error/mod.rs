//! The one error type of the service, and how it becomes an answer.
//!
//! A [`Code`] names what went wrong for good: clients switch on it, the docs have a page for it.
//! An [`Error`] is a code, a sentence for the person who reads it, and a cause for our log, which
//! the client never sees. As a handler does not know its request's id, the answer that an error
//! becomes has an empty body and a [`Problem`] in its extensions; [`crate::web::problem::render`]
//! writes the body.

mod code;
mod database;

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::code::{Code, UnknownCode};
pub use self::database::OnConstraint;
use crate::log::rows::is_of_a_row;

/// A cause of any type.
type BoxError = Box<dyn StdError + Send + Sync>;

/// A result whose error is ours.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

    /// Whether it comes from a row that cannot be read: other rows may well be fine.
    #[must_use]
    pub fn is_of_a_row(&self) -> bool {
        let cause = self.0.cause.as_ref().and_then(|cause| cause.downcast_ref());
        cause.is_some_and(is_of_a_row)
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

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

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
}
