//! Hours, as clients give them and as they are answered.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

/// Hours that a week has: nobody works more, and nobody can be planned for more in one place.
const HOURS_MAX: f64 = 168.0;

/// A number that comes from the database, where sums are exact to the last decimal. A whole one is written without a
/// fraction: `8`, not `8.0`.
#[derive(Debug, Clone, Copy, PartialEq, sqlx::Type)]
#[sqlx(transparent)]
pub(super) struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 { serializer.serialize_i64(self.0 as i64) } else { serializer.serialize_f64(self.0) }
    }
}

/// Hours of a week: 0 to 168, in hundredths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hours(f64);

impl Hours {
    pub(super) fn number(self) -> Number {
        Number(self.0)
    }

    fn new(given: f64) -> Option<Self> {
        // The nearest number to a text of two decimals comes back from its hundredths as the same number.
        let is_in_hundredths = (given * 100.0).round() / 100.0 == given;
        ((0.0..=HOURS_MAX).contains(&given) && is_in_hundredths).then_some(Self(given.abs()))
    }
}

impl PartialSchema for Hours {
    fn schema() -> RefOr<Schema> {
        let hours = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(HOURS_MAX));
        hours.description(Some("Hours of a week, with at most two decimals.")).into()
    }
}

impl ToSchema for Hours {}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = Hours;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hours of a week: a number from 0 to 168 with at most two decimals")
    }

    fn visit_f64<E: de::Error>(self, given: f64) -> Result<Hours, E> {
        Hours::new(given).ok_or_else(|| E::invalid_value(de::Unexpected::Float(given), &self))
    }

    fn visit_u64<E: de::Error>(self, given: u64) -> Result<Hours, E> {
        self.visit_f64(given as f64)
    }

    fn visit_i64<E: de::Error>(self, given: i64) -> Result<Hours, E> {
        self.visit_f64(given as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hours_are_read_or_refused() {
        for good in ["0", "8", "8.0", "7.5", "37.25", "168", "0.01", "1e1", "-0.0"] {
            assert!(serde_json::from_str::<Hours>(good).is_ok(), "{good}");
        }
        for bad in ["-1", "-0.01", "168.01", "169", "7.333", "0.001", "1e300", "null", "\"8\"", "true", "[8]"] {
            let error = serde_json::from_str::<Hours>(bad).unwrap_err().to_string();
            assert!(error.contains("hours of a week: a number from 0 to 168 with at most two decimals"), "{error}");
        }
    }

    #[test]
    fn whole_numbers_have_no_fraction() {
        for (number, text) in [(8.0, "8"), (0.0, "0"), (7.5, "7.5"), (1.0625, "1.0625")] {
            assert_eq!(serde_json::to_string(&Number(number)).unwrap(), text);
        }
        assert_eq!(serde_json::to_string(&Hours::new(-0.0).unwrap().number()).unwrap(), "0");
    }

    proptest! {
        #[test]
        fn every_hundredth_is_taken_as_it_is_written(hundredths in 0_u32..=16_800) {
            let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            let hours: Hours = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(format!("{:.2}", hours.0), text);
        }
    }
}
