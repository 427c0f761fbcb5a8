//! Text that people write.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::deserialize_from_str;

/// Text of `MIN` to `MAX` characters (Unicode scalar values) without control characters.
///
/// Tab, line feed and carriage return pass, and so does U+2028: people paste those. The other C0
/// and C1 controls and DEL are refused; Postgres could not even store U+0000.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const MIN: usize, const MAX: usize>(String);

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidText {
    /// It holds a control character.
    #[error("must not contain U+{:04X}", u32::from(*.0))]
    Control(char),
    /// It is too short or too long, in characters.
    #[error("must have {min} to {max} characters, not {chars}")]
    Length {
        /// Fewest characters.
        min: usize,
        /// Most characters.
        max: usize,
        /// Characters given.
        chars: usize,
    },
}

impl<const MIN: usize, const MAX: usize> Text<MIN, MAX> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, owned.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl<const MIN: usize, const MAX: usize> FromStr for Text<MIN, MAX> {
    type Err = InvalidText;

    fn from_str(given: &str) -> Result<Self, InvalidText> {
        if let Some(control) = given.chars().find(|c| is_refused(*c)) {
            return Err(InvalidText::Control(control));
        }
        let chars = given.chars().count();
        if !(MIN..=MAX).contains(&chars) {
            return Err(InvalidText::Length { min: MIN, max: MAX, chars });
        }
        Ok(Self(given.to_owned()))
    }
}

fn is_refused(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Text<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MIN: usize, const MAX: usize> Deref for Text<MIN, MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MIN: usize, const MAX: usize> Serialize for Text<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_from_str(deserializer, "a string")
    }
}

/// What [`is_refused`] leaves, for clients.
const PATTERN: &str = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$";

impl<const MIN: usize, const MAX: usize> PartialSchema for Text<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(MIN).filter(|min| *min > 0));
        let text = text.max_length(Some(MAX)).pattern(Some(PATTERN));
        text.description(Some("Without control characters; tab and line breaks pass.")).into()
    }
}

impl<const MIN: usize, const MAX: usize> ToSchema for Text<MIN, MAX> {
    fn name() -> Cow<'static, str> {
        format!("Text{MIN}To{MAX}").into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Short = Text<1, 5>;

    #[test]
    fn length_is_counted_in_characters() {
        assert!("äöüßé".parse::<Short>().is_ok());
        assert!("".parse::<Short>().is_err());
        let error = "äöüßéx".parse::<Short>().unwrap_err();
        assert_eq!(error.to_string(), "must have 1 to 5 characters, not 6");
        assert!("".parse::<Text<0, 5>>().is_ok());
    }

    #[test]
    fn control_characters_are_refused_by_name() {
        for (given, message) in [
            ("a\0", "must not contain U+0000"),
            ("\u{1b}[", "must not contain U+001B"),
            ("\u{7f}", "must not contain U+007F"),
            ("\u{85}", "must not contain U+0085"),
        ] {
            assert_eq!(given.parse::<Short>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn line_breaks_and_tabs_pass() {
        for given in ["a\r\nb", "\t", "a\u{2028}b"] {
            assert_eq!(given.parse::<Short>().unwrap().as_str(), given);
        }
    }

    #[test]
    fn json_says_why() {
        let error = serde_json::from_str::<Short>(r#""a\u0000""#).unwrap_err();
        assert!(error.to_string().starts_with("must not contain U+0000"), "{error}");
    }

    proptest! {
        #[test]
        fn no_string_panics_and_what_parses_is_written_alike(given in any::<String>()) {
            if let Ok(text) = given.parse::<Text<0, 40>>() {
                prop_assert_eq!(text.to_string(), given);
            }
        }
    }
}
