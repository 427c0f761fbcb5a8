//! Versions as entity tags: `ETag` out, `If-Match` in (RFC 9110, sections 8.8.3 and 13.1.1).

use axum::extract::FromRequestParts;
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Type};

use super::{Changed, Entity};
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
    /// Refuses what is only allowed as long as nothing has changed, such as to delete an entity.
    ///
    /// # Errors
    /// 412 `version_conflict` where the entity's version is none of those given.
    pub fn require<E: Entity>(&self, entity: &E) -> Result<()> {
        match self.base(entity.version()) {
            Base::Any => Ok(()),
            Base::Version(base) if base == entity.version() => Ok(()),
            base => {
                let fields = entity.field_versions().into_iter().flat_map(|versions| versions.keys());
                Err(conflict(entity, fields.filter(|field| base.is_before(entity, field))))
            }
        }
    }

    /// Refuses a change of fields that somebody else has changed since the version that the client knew. Changes of other
    /// fields go together.
    ///
    /// # Errors
    /// 412 `version_conflict` with `conflictingFields`.
    pub fn merge<E: Entity>(&self, entity: &E, changed: &Changed) -> Result<()> {
        let base = self.base(entity.version());
        let mut conflicting = changed.iter().map(|(field, _)| field).filter(|field| base.is_before(entity, field));
        let Some(first) = conflicting.next() else { return Ok(()) };
        Err(conflict(entity, std::iter::once(first).chain(conflicting)))
    }

    /// Where a change of what is at `version` begins: at the latest of its versions that the client says it has seen.
    fn base(&self, version: i64) -> Base {
        match self {
            Self::Absent | Self::Any => Base::Any,
            Self::Versions(versions) => {
                let known = versions.iter().copied().filter(|known| (1..=version).contains(known)).max();
                known.map_or(Base::Unknown, Base::Version)
            }
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

/// What the client has seen of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// It does not care.
    Any,
    /// This version.
    Version(i64),
    /// None that there was.
    Unknown,
}

impl Base {
    /// Whether a field has changed since.
    fn is_before<E: Entity>(self, entity: &E, field: &str) -> bool {
        match self {
            Self::Any => false,
            Self::Version(base) => entity.changed_at(field) > base,
            Self::Unknown => true,
        }
    }
}

/// 412 with the present state.
fn conflict<E: Entity>(entity: &E, fields: impl Iterator<Item = impl AsRef<str>>) -> Error {
    let current = match serde_json::to_value(entity) {
        Ok(current) => current,
        Err(error) => return Error::internal(error),
    };
    let fields: Vec<String> = fields.map(|field| field.as_ref().to_owned()).collect();
    let detail = format!("Somebody else changed the {}, which is at version {} now.", E::NOUN, entity.version());
    Error::new(Code::VersionConflict, detail)
        .with_member("current", current)
        .with_member("currentVersion", entity.version())
        .with_member("conflictingFields", fields)
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

impl IntoParams for IfMatch {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let description = "The `ETag` that the caller knows, or a list of them, or `*`. A change is 412 where somebody else \
                           has changed one of the same fields since; changes of different fields go together. A deletion is \
                           412 where anything has changed since. Without it the last writer wins.";
        let condition = ParameterBuilder::new().name("If-Match").parameter_in(ParameterIn::Header);
        let condition = condition.schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        vec![condition.description(Some(description)).example(Some("\"7\"".into())).build()]
    }
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
    use serde::Serialize;
    use serde_json::json;

    use super::*;
    use crate::web::FieldVersions;

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
            assert_eq!(condition.base(7), Base::Unknown);
        }
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for given in ["7", "", "\"7", "7\"", "\"7\" \"8\"", "\"7\",", "w/\"7\"", "*, \"7\"", "\"a b\""] {
            assert_eq!(read(&[given]), Err(Code::InvalidHeader), "{given}");
        }
    }

    /// At version 9; its `name` changed with 5 and its `notes` with 9.
    #[derive(Serialize)]
    struct Thing(#[serde(skip)] FieldVersions);

    impl Entity for Thing {
        const NOUN: &'static str = "thing";

        fn version(&self) -> i64 {
            9
        }

        fn field_versions(&self) -> Option<&FieldVersions> {
            Some(&self.0)
        }
    }

    fn thing() -> Thing {
        Thing(sqlx::types::Json([("name".to_owned(), 5), ("notes".to_owned(), 9)].into()))
    }

    /// The fields that conflict; none where the change is allowed.
    fn conflicts(result: Result<()>) -> Option<serde_json::Value> {
        let error = result.err()?;
        assert_eq!((error.code(), &error.problem().members["currentVersion"]), (Code::VersionConflict, &9.into()));
        Some(error.problem().members["conflictingFields"].clone())
    }

    #[test]
    fn changes_of_different_fields_go_together_and_of_the_same_do_not() {
        let changed = |fields: &[&'static str]| {
            let mut changed = Changed::default();
            for field in fields {
                changed.set(field, &mut 0, Some(1));
            }
            changed
        };
        for (known, fields, expected) in [
            ("\"9\"", &["name", "notes", "status"][..], None),
            ("\"5\"", &["name", "status"], None),
            ("\"5\"", &["name", "notes"], Some(json!(["notes"]))),
            ("\"4\"", &["status"], None),
            ("\"4\"", &["notes", "name"], Some(json!(["notes", "name"]))),
            ("\"4\", \"8\"", &["name"], None),
            ("\"10\"", &["status"], Some(json!(["status"]))),
            ("\"10\", \"9\"", &["status", "notes"], None),
            ("\"0\"", &["status"], Some(json!(["status"]))),
            ("W/\"9\"", &["status"], Some(json!(["status"]))),
            ("*", &["name", "notes"], None),
        ] {
            let condition = read(&[known]).unwrap();
            assert_eq!(conflicts(condition.merge(&thing(), &changed(fields))), expected, "{known} {fields:?}");
        }
        assert_eq!(conflicts(IfMatch::Absent.merge(&thing(), &changed(&["notes"]))), None);
    }

    #[test]
    fn what_must_not_have_changed_at_all_is_compared_as_a_whole() {
        for (known, expected) in [
            ("\"9\"", None),
            ("\"8\", \"9\"", None),
            ("*", None),
            ("\"8\"", Some(json!(["notes"]))),
            ("\"4\"", Some(json!(["name", "notes"]))),
            ("\"10\"", Some(json!(["name", "notes"]))),
        ] {
            assert_eq!(conflicts(read(&[known]).unwrap().require(&thing())), expected, "{known}");
        }
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
