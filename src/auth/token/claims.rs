//! What a token says: read from one that was verified, or put into one that is made here.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::Checks;
use crate::auth::{Caller, Roles};
use crate::error::{Error, Result};
use crate::ids::{Slug, Sub, TopicName};

/// What a token of ours says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who it stands for.
    pub sub: Sub,
    /// What they are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What they are.
    #[serde(default)]
    pub roles: Roles,
    /// The divisions that they belong to.
    #[serde(default)]
    pub divisions: Vec<Slug>,
    /// The topics that they may join.
    #[serde(default)]
    pub topics: Vec<TopicName>,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
}

impl Claims {
    /// Claims of a plain member.
    #[must_use]
    pub fn new(sub: Sub, exp: i64) -> Self {
        Self { sub, name: None, roles: Roles::default(), divisions: Vec::new(), topics: Vec::new(), exp }
    }
}

/// Claims, with those that this server checks: it takes the tokens that it makes.
#[derive(Serialize)]
pub(super) struct Checked<'a> {
    #[serde(flatten)]
    claims: &'a Claims,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(claims: &'a Claims, checks: &'a Checks) -> Self {
        Self { claims, aud: checks.audience.as_deref(), iss: checks.issuer.as_deref() }
    }
}

/// A caller by the claims of a verified token.
pub(super) fn caller(claims: &Map<String, Value>) -> Result<Caller> {
    let sub = string(claims, "sub")?.and_then(|sub| sub.parse::<Sub>().ok());
    let sub = sub.ok_or_else(|| {
        Error::unauthorized("The token's claim `sub` must have 1 to 128 characters of A-Z a-z 0-9 . _ @ | : + ~ -.")
    })?;
    // The library would take a list with the right one in it; it is one string (RFC 7519, section 4.1.1).
    string(claims, "iss")?;
    let roles = strings(claims, "roles")?;
    let divisions = strings(claims, "divisions")?;
    let topics = strings(claims, "topics")?;
    Ok(Caller {
        sub,
        name: string(claims, "name")?.and_then(printable),
        avatar_url: string(claims, "avatarUrl")?.and_then(printable),
        roles: Roles::named(roles),
        divisions: divisions.filter_map(|slug| slug.parse::<Slug>().ok()).collect(),
        topics: topics.filter_map(|name| name.parse::<TopicName>().ok()).collect(),
        expires_at: expiry(claims)?,
    })
}

fn wrong_type(claim: &str, expected: &str) -> Error {
    Error::unauthorized(format!("The token's claim `{claim}` must be {expected}."))
}

/// A claim that is text; `null` is as absent.
fn string<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<Option<&'a str>> {
    match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type(claim, "a string")),
    }
}

/// A claim that is a list of text; `null` is as absent.
fn strings<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<impl Iterator<Item = &'a str>> {
    let items = match claims.get(claim) {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => items,
        Some(_) => return Err(wrong_type(claim, "a list of strings")),
    };
    Ok(items.iter().filter_map(Value::as_str))
}

/// Text that can be stored and shown: without control characters.
fn printable(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

/// When the token ends; what lies beyond the calendar ends with it.
fn expiry(claims: &Map<String, Value>) -> Result<OffsetDateTime> {
    let exp = claims.get("exp").and_then(Value::as_f64);
    let exp = exp.ok_or_else(|| wrong_type("exp", "a number of seconds"))?;
    let last = time::Date::MAX.midnight().assume_utc();
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds; a cast saturates")]
    let seconds = (exp as i64).min(last.unix_timestamp());
    Ok(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(last))
}
