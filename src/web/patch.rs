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

use serde::{Deserialize, Deserializer};

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
    fn null_is_refused_where_nothing_can_be_emptied() {
        let error = read(r#"{"hours":null}"#).unwrap_err();
        assert_eq!(error.problem().errors[0].pointer, "/hours");
    }
}
