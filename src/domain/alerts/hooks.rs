//! Hooks: alerts that other backends raise, without a token of ours, in the form of [Standard Webhooks].
//!
//! A delivery is signed with a secret that both sides know, over its id, its time and its body as it came, and is refused
//! when it is more than five minutes old. Whoever signed is the service `hook`. While one secret takes another's place both
//! hold. A service with a token needs no signature.
//!
//! The `webhook-id` names the request as an `Idempotency-Key` would (see [`crate::web::mutation`]): a delivery that is sent
//! again raises nothing twice and gets the first answer.
//!
//! Event: `alert:new`, as of every alert.
//!
//! [Standard Webhooks]: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

use std::fmt;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts as _, Request},
    http::{HeaderMap, HeaderName, header::AUTHORIZATION, request::Parts},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use standardwebhooks::{Webhook, WebhookError};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Alert, Domain, Make, raise_alone};
use crate::{
    auth::Publisher,
    error::{Code, Credentials, Error, Result},
    ids::Sub,
    web::{Answer, Describe as _, IDEMPOTENCY_KEY, Mutation, NotBegun, Posted, Repeatable, body},
};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Bytes of a secret, as the specification has it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Digits of a time in seconds: until the year 33658.
const TIMESTAMP_DIGITS_MAX: usize = 12;

/// The routes, which do not lie below `/v1`.
pub(in crate::domain) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(deliver_alert))
        .headed("hooks", "What other backends deliver without a token, signed as Standard Webhooks has it")
}

/// What is delivered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Hook {
    #[serde(rename = "type")]
    #[schema(inline)]
    _type: Type,
    /// When it happened.
    #[serde(rename = "timestamp", with = "time::serde::rfc3339")]
    _timestamp: OffsetDateTime,
    data: Make,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Type {
    Alert,
}

/// Raise an alert from another backend
///
/// Signed, or with the token of a service or an admin. A `webhook-id` that was taken before raises nothing and gets the first
/// answer again; with a token it may be left out. Causes `alert:new`.
#[utoipa::path(
    post,
    path = "/hooks/alerts",
    params(
        ("webhook-id" = Option<String>, Header, description = "Names the delivery."),
        ("webhook-timestamp" = Option<String>, Header, description = "When it was signed, in seconds since 1970."),
        (
            "webhook-signature" = Option<String>,
            Header,
            description = "`v1,` and the base64 of an HMAC-SHA256 over id, timestamp and body, with full stops between them; \
                           several have spaces between them."
        )
    ),
    request_body = inline(Hook),
    responses((status = 403)),
    security((), ("bearer" = []))
)]
async fn deliver_alert(Delivery(Mutation { tx, body: hook }): Delivery) -> Result<Answer<Posted<Alert>>> {
    raise_alone(tx, hook.data).await
}

/// A delivery by somebody who may.
struct Delivery(Mutation<Hook>);

impl FromRequest<Domain> for Delivery {
    type Rejection = NotBegun;

    async fn from_request(request: Request, state: &Domain) -> Result<Self, NotBegun> {
        let (mut parts, body) = request.into_parts();
        let (repeatable, bytes) = if parts.headers.contains_key(AUTHORIZATION) {
            let Publisher(caller) = Publisher::from_request_parts(&mut parts, state).await?;
            let is_webhook = parts.headers.contains_key(WEBHOOK_ID);
            let name = if is_webhook { WEBHOOK_ID } else { IDEMPOTENCY_KEY };
            (Repeatable::by(&name, &caller.sub, &parts)?, read(parts, body, state).await?)
        } else {
            state.signatures.expect(&parts.headers)?;
            let headers = parts.headers.clone();
            let repeatable = Repeatable::by(&WEBHOOK_ID, &hook(), &parts)?;
            let bytes = read(parts, body, state).await?;
            state.signatures.verify(&headers, &bytes)?;
            (repeatable, bytes)
        };
        Ok(Self(Mutation::of(&bytes, repeatable, state).await?))
    }
}

async fn read(parts: Parts, body: axum::body::Body, state: &Domain) -> Result<Bytes> {
    body::read(Request::from_parts(parts, body), state).await
}

/// Who a delivery with a signature is by.
fn hook() -> Sub {
    "hook".parse().expect("it is a user id")
}

/// What other backends sign with; each of these secrets is as good as the others.
pub struct Signatures(Vec<Webhook>);

/// A secret that is none. It is not shown.
#[derive(Debug, thiserror::Error)]
#[error("secret number {0} is not whsec_ with the base64 of 24 to 64 bytes")]
pub struct InvalidSecret(usize);

impl Signatures {
    /// The secrets, as they are configured.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidSecret> {
        let secrets = secrets.into_iter().zip(1..);
        secrets
            .map(|(secret, nth)| webhook(secret.trim()).ok_or(InvalidSecret(nth)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a delivery with these headers can be verified at all.
    fn expect(&self, headers: &HeaderMap) -> Result<()> {
        if self.0.is_empty() {
            return Err(missing(
                "This server knows no secret to check signatures with: set CREWCAST_WEBHOOK_SECRET there, or send the \
                 header `Authorization: Bearer {token}` with a service's token.",
            ));
        }
        let names = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE];
        let lacking: Vec<_> =
            names.iter().filter(|name| !headers.contains_key(*name)).map(|name| format!("`{name}`")).collect();
        if !lacking.is_empty() {
            return Err(missing(format!(
                "Sign the request, or send the header `Authorization: Bearer {{token}}` with a service's token; missing of \
                 a signature: {}.",
                lacking.join(", ")
            )));
        }
        let timestamp = headers.get(WEBHOOK_TIMESTAMP).map_or(&b""[..], |value| value.as_bytes());
        // The library would reckon with any number.
        if !(1..=TIMESTAMP_DIGITS_MAX).contains(&timestamp.len()) || !timestamp.iter().all(u8::is_ascii_digit) {
            return Err(refused(&WebhookError::InvalidTimestamp));
        }
        Ok(())
    }

    /// Whether one of the secrets made one of the signatures, of late.
    fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<()> {
        let mut last = WebhookError::InvalidSignature;
        for secret in &self.0 {
            match secret.verify(body, headers) {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(refused(&last))
    }
}

impl fmt::Debug for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signatures([{} secrets])", self.0.len())
    }
}

fn webhook(secret: &str) -> Option<Webhook> {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    SECRET_BYTES.contains(&key.len()).then(|| Webhook::from_bytes(key).ok()).flatten()
}

fn refused(why: &WebhookError) -> Error {
    let (credentials, detail) = match why {
        WebhookError::InvalidTimestamp => {
            (Credentials::Bad, "`webhook-timestamp` is not a time in seconds since 1970.")
        }
        WebhookError::TimestampTooOldError => {
            (Credentials::Expired, "`webhook-timestamp` is more than 5 minutes ago: sign it anew.")
        }
        WebhookError::FutureTimestampError => {
            (Credentials::Bad, "`webhook-timestamp` is more than 5 minutes ahead of this server's clock.")
        }
        _ => (
            Credentials::Bad,
            "None of the signatures in `webhook-signature` is of this id, timestamp and body with a secret of this server.",
        ),
    };
    Error::new(Code::Unauthorized, detail).with_credentials(credentials)
}

fn missing(detail: impl Into<String>) -> Error {
    Error::new(Code::Unauthorized, detail).with_credentials(Credentials::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_configured_as_the_specification_writes_it_and_is_never_shown() {
        let of = |bytes: usize| format!("whsec_{}", BASE64_STANDARD.encode(vec![7; bytes]));
        let (good, other, longest) = (of(24), of(32), of(64));
        let signatures = Signatures::new([good.as_str(), &format!(" {other} "), &longest]).unwrap();
        assert_eq!(format!("{signatures:?}"), "Signatures([3 secrets])");
        for bad in ["", "whsec_", "whsec_!", &good[6..], &of(23), &of(65), &format!("{good}=")] {
            let error = Signatures::new([good.as_str(), bad]).unwrap_err().to_string();
            assert_eq!(error, "secret number 2 is not whsec_ with the base64 of 24 to 64 bytes", "{bad}");
        }
    }
}
