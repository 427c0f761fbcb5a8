//! What can go wrong: stable names.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

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

#[cfg(test)]
mod tests {
    use super::*;

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
