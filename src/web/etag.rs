//! Versions as entity tags: `ETag` out, `If-Match` in (RFC 9110, sections 8.8.3 and 13.1.1).

use axum::extract::FromRequestParts;
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use serde::Serialize;

use crate::error::{Code, Error, Result};

/// The entity tag of a version, such as `"7"`.
#[must_use]
pub fn etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits in quotes are a header value")
}

/// What the client knew when it decided to change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// No `If-Match`: the last writer wins.
    Absent,
    /// `*`: any version, as long as it exists.
    Any,
    /// These versions, in the order given. Tags that are none of ours, and weak ones, are left
    /// out, as they match nothing; so this may be empty, and then nothing matches.
    Versions(Vec<i64>),
}

impl IfMatch {
    /// Whether a change of what is at `version` meets the condition as it stands.
    #[must_use]
    pub fn allows(&self, version: i64) -> bool {
        match self {
            Self::Absent | Self::Any => true,
            Self::Versions(versions) => versions.contains(&version),
        }
    }

    /// Refuses a change of `entity`, which is at `version`, where the condition does not allow it. `noun` is what the
    /// client calls such a thing.
    ///
    /// # Errors
    /// 412 `version_conflict` with the present state in `current` and `currentVersion`.
    pub fn require(&self, noun: &str, version: i64, entity: &impl Serialize) -> Result<()> {
        if self.allows(version) {
            return Ok(());
        }
        let current = serde_json::to_value(entity).map_err(Error::internal)?;
        Err(Error::new(Code::VersionConflict, format!("The {noun} is at version {version}."))
            .with_member("current", current)
            .with_member("currentVersion", version))
    }

    /// The latest version that the client says it has seen: a merge starts from there.
    #[must_use]
    pub fn base(&self) -> Option<i64> {
        match self {
            Self::Absent | Self::Any => None,
            Self::Versions(versions) => versions.iter().max().copied(),
        }
    }

    /// Reads the header, which may be given in several lines.
    ///
    /// # Errors
    /// 400 `invalid_header` when it is neither `*` nor a list of entity tags.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self> {
        let lines: Vec<_> = headers.get_all(IF_MATCH).iter().collect();
        match lines.as_slice() {
            [] => Ok(Self::Absent),
            [one] if one.as_bytes().trim_ascii() == b"*" => Ok(Self::Any),
            lines => {
                let mut versions = Vec::new();
                for line in lines {
                    versions.extend(tags(line.as_bytes()).ok_or_else(malformed)?);
                }
                Ok(Self::Versions(versions))
            }
        }
    }
}

fn malformed() -> Error {
    Error::new(Code::InvalidHeader, "`If-Match` must be `*` or a list of entity tags such as \"7\", in double quotes.")
}

/// The versions in a comma-separated list of entity tags; `None` when it is no such list.
fn tags(line: &[u8]) -> Option<Vec<i64>> {
    let mut versions = Vec::new();
    let mut rest = line.trim_ascii();
    loop {
        let (is_weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|byte| *byte == b'"')?;
        let (tag, tail) = (&inner[..end], inner[end + 1..].trim_ascii_start());
        if !tag.iter().all(|byte| *byte > b' ' && *byte != 0x7f) {
            return None;
        }
        versions.extend(version(tag).filter(|_| !is_weak));
        if tail.is_empty() {
            return Some(versions);
        }
        rest = tail.strip_prefix(b",")?.trim_ascii_start();
    }
}

/// The version that a tag of ours stands for; `"07"` is not ours.
fn version(tag: &[u8]) -> Option<i64> {
    let tag = std::str::from_utf8(tag).ok()?;
    let version: i64 = tag.parse().ok()?;
    (version.to_string() == tag).then_some(version)
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        Self::from_headers(&parts.headers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Result<IfMatch, Code> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_MATCH, HeaderValue::from_str(line).unwrap());
        }
        IfMatch::from_headers(&headers).map_err(|error| error.code())
    }

    #[test]
    fn conditions_are_read() {
        assert_eq!(read(&[]), Ok(IfMatch::Absent));
        assert_eq!(read(&[" * "]), Ok(IfMatch::Any));
        assert_eq!(read(&["\"7\""]), Ok(IfMatch::Versions(vec![7])));
        assert_eq!(read(&["\"7\" ,\"9\"", "\"8\""]), Ok(IfMatch::Versions(vec![7, 9, 8])));
    }

    #[test]
    fn tags_that_are_none_of_ours_match_nothing() {
        for given in ["W/\"7\"", "\"07\"", "\"a,b\"", "\"\"", "\"+7\""] {
            let condition = read(&[given]).unwrap();
            assert_eq!(condition, IfMatch::Versions(vec![]), "{given}");
            assert!(!condition.allows(7));
        }
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for given in ["7", "", "\"7", "7\"", "\"7\" \"8\"", "\"7\",", "w/\"7\"", "*, \"7\"", "\"a b\""] {
            assert_eq!(read(&[given]), Err(Code::InvalidHeader), "{given}");
        }
    }

    #[test]
    fn a_condition_allows_its_versions() {
        let condition = read(&["\"7\", \"9\""]).unwrap();
        assert!(condition.allows(7) && condition.allows(9) && !condition.allows(8));
        assert_eq!(condition.base(), Some(9));
        assert!(IfMatch::Absent.allows(1) && IfMatch::Any.allows(1));
    }

    proptest! {
        #[test]
        fn a_version_round_trips(version in any::<i64>()) {
            let tag = etag(version);
            prop_assert_eq!(tags(tag.as_bytes()), Some(vec![version]));
        }

        #[test]
        fn no_header_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = tags(&bytes);
        }
    }
}
