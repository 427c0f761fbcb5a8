//! Fields of a `PATCH`: left out, `null`, or a value.
//!
//! ```
//! # use crewcast::web::{Patch, present};
//! #[derive(serde::Deserialize)]
//! struct Change {
//!     /// Can be emptied: `null` is a value of its own.
//!     #[serde(default)]
//!     notes: Patch<String>,
//!     /// Can not be emptied: `null` is refused, where serde alone would read it as left out.
//!     #[serde(default, deserialize_with = "present")]
//!     name: Option<String>,
//! }
//! let change: Change = serde_json::from_str(r#"{"notes":null}"#)?;
//! assert_eq!(change.notes, Patch::Null);
//! assert_eq!(change.name, None);
//! assert!(serde_json::from_str::<Change>(r#"{"name":null}"#).is_err());
//! # Ok::<_, serde_json::Error>(())
//! ```

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sqlx::types::Json;

use super::FieldVersions;

/// A field of a `PATCH` that can be emptied. Needs `#[serde(default)]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Left out: stays as it is.
    #[default]
    Absent,
    /// `null`: is emptied.
    Null,
    /// Is set.
    Value(T),
}

impl<T> Patch<T> {
    /// Whether the field stays as it is.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// The field with its value as another type.
    #[must_use]
    pub fn map<U>(self, value: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Value(given) => Patch::Value(value(given)),
        }
    }

    /// `None` when it stays, else what it becomes, as a column that may be null.
    #[must_use]
    pub fn into_change(self) -> Option<Option<T>> {
        match self {
            Self::Absent => None,
            Self::Null => Some(None),
            Self::Value(value) => Some(Some(value)),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Option::<T>::deserialize(deserializer)?;
        Ok(value.map_or(Self::Null, Self::Value))
    }
}

/// For a field of a `PATCH` that can not be emptied: with `#[serde(default, deserialize_with =
/// "present")]` it may be left out, but not be `null`.
///
/// # Errors
/// When the value is no `T`, such as `null`.
pub fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// What a `PATCH` changed: the fields that are not what they were, with their new values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changed(Vec<(&'static str, Value)>);

impl Changed {
    /// Sets a field, if it was given and is not what it was.
    ///
    /// # Panics
    /// When the value does not serialise: fields are plain values of ours.
    pub fn set<T: PartialEq + Serialize>(&mut self, name: &'static str, field: &mut T, given: Option<T>) {
        let Some(new) = given.filter(|new| new != field) else { return };
        self.0.push((name, serde_json::to_value(&new).expect("fields are plain values")));
        *field = new;
    }

    /// Whether all is as it was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields, as changed by the change that makes this version.
    #[must_use]
    pub fn versions(&self, version: i64) -> FieldVersions {
        Json(self.0.iter().map(|(name, _)| ((*name).to_owned(), version)).collect())
    }

    /// The fields, with their new values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Change {
        #[serde(default)]
        notes: Patch<String>,
        #[serde(default, deserialize_with = "present")]
        hours: Option<u8>,
    }

    fn read(json: &str) -> crate::error::Result<Change> {
        crate::web::body::parse(json.as_bytes())
    }

    #[test]
    fn absent_null_and_a_value_differ() {
        assert!(read("{}").unwrap().notes.is_absent());
        assert_eq!(read(r#"{"notes":null}"#).unwrap().notes.into_change(), Some(None));
        let set = read(r#"{"notes":"x","hours":8}"#).unwrap();
        assert_eq!(set.notes, Patch::Value("x".to_owned()));
        assert_eq!(set.hours, Some(8));
    }

    #[test]
    fn only_what_is_not_what_it_was_has_changed() {
        let (mut name, mut ends_on, mut changed) = ("a".to_owned(), Some(1), Changed::default());
        changed.set("name", &mut name, None);
        changed.set("name", &mut name, Some("a".to_owned()));
        assert!(changed.is_empty());
        changed.set("endsOn", &mut ends_on, Some(None));
        assert_eq!((ends_on, changed.iter().collect::<Vec<_>>()), (None, vec![("endsOn", &Value::Null)]));
    }

    #[test]
    fn null_is_refused_where_nothing_can_be_emptied() {
        let error = read(r#"{"hours":null}"#).unwrap_err();
        assert_eq!(error.problem().errors[0].pointer, "/hours");
    }
}
