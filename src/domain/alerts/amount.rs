//! Numbers of accounts and alerts, as clients give them and as they are answered: as they were written.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

/// The largest balance either way: up to here hundredths are exact in a column of two decimals and in a number of JSON.
const AMOUNT_MAX: f64 = 999_999_999_999.99;

/// The largest figure either way: up to here whole numbers are exact.
const FIGURE_MAX: f64 = 9_007_199_254_740_991.0;

/// A number that an alert tells. A whole one is written without a fraction: `8`, not `8.0`.
#[derive(Debug, Clone, Copy, PartialEq, sqlx::Type)]
#[sqlx(transparent)]
pub(in crate::domain) struct Figure(f64);

impl Figure {
    fn new(given: f64) -> Option<Self> {
        // Zero is added since there is a negative one.
        (given.abs() <= FIGURE_MAX).then_some(Self(given + 0.0))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 { serializer.serialize_i64(self.0 as i64) } else { serializer.serialize_f64(self.0) }
    }
}

impl PartialSchema for Figure {
    fn schema() -> RefOr<Schema> {
        between(FIGURE_MAX).description(Some("A number that an alert tells.")).into()
    }
}

impl ToSchema for Figure {}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(Visitor { read: Self::new, expected: "a number between -2^53 and 2^53" })
    }
}

/// Money: a number with at most two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, sqlx::Type)]
#[sqlx(transparent)]
#[serde(transparent)]
pub(super) struct Amount(Figure);

impl Amount {
    /// The amount as alerts tell it.
    pub(super) fn figure(self) -> Figure {
        self.0
    }

    /// Whether it is less than another.
    pub(super) fn is_below(self, other: Self) -> bool {
        self.0.0 < other.0.0
    }

    fn new(given: f64) -> Option<Self> {
        // The nearest number to a text of two decimals comes back from its hundredths as the same number.
        let is_in_hundredths = (given * 100.0).round() / 100.0 == given;
        let figure = Figure::new(given).filter(|_| given.abs() <= AMOUNT_MAX && is_in_hundredths);
        figure.map(Self)
    }
}

impl PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        between(AMOUNT_MAX).description(Some("Money, with at most two decimals.")).into()
    }
}

impl ToSchema for Amount {}

/// A number as far as this either way.
fn between(max: f64) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-max)).maximum(Some(max))
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "an amount: a number between -999999999999.99 and 999999999999.99 with at most two decimals";
        deserializer.deserialize_f64(Visitor { read: Self::new, expected })
    }
}

/// Reads any JSON number as an `f64` and lets its type judge it.
struct Visitor<T> {
    read: fn(f64) -> Option<T>,
    expected: &'static str,
}

impl<T> de::Visitor<'_> for Visitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_f64<E: de::Error>(self, given: f64) -> Result<T, E> {
        (self.read)(given).ok_or_else(|| E::invalid_value(de::Unexpected::Float(given), &self))
    }

    fn visit_u64<E: de::Error>(self, given: u64) -> Result<T, E> {
        self.visit_f64(given as f64)
    }

    fn visit_i64<E: de::Error>(self, given: i64) -> Result<T, E> {
        self.visit_f64(given as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written_back(text: &str) -> Option<String> {
        let amount: Option<Amount> = serde_json::from_str(text).ok();
        amount.map(|amount| serde_json::to_string(&amount).unwrap())
    }

    #[test]
    fn amounts_are_read_or_refused() {
        for (good, written) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("12.5", "12.5"),
            ("12.50", "12.5"),
            ("-7.01", "-7.01"),
            ("1e3", "1000"),
            ("999999999999.99", "999999999999.99"),
            ("-999999999999.99", "-999999999999.99"),
        ] {
            assert_eq!(written_back(good).as_deref(), Some(written), "{good}");
        }
        for bad in ["0.001", "999999999999.985", "1000000000000", "-1e300", "null", "\"8\"", "true", "[8]"] {
            assert_eq!(written_back(bad), None, "{bad}");
        }
    }

    #[test]
    fn figures_are_bounded_where_whole_numbers_end() {
        for (text, written) in [
            ("9007199254740991", Some("9007199254740991")),
            ("-9007199254740991", Some("-9007199254740991")),
            ("0.851234", Some("0.851234")),
            ("9007199254740993", None),
            ("1e300", None),
        ] {
            let figure: Option<Figure> = serde_json::from_str(text).ok();
            assert_eq!(figure.map(|figure| serde_json::to_string(&figure).unwrap()).as_deref(), written, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_hundredth_is_taken_as_it_is_written(hundredths in -99_999_999_999_999_i64..=99_999_999_999_999) {
            let sign = if hundredths < 0 { "-" } else { "" };
            let text = format!("{sign}{}.{:02}", hundredths.abs() / 100, hundredths.abs() % 100);
            let amount: Amount = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(format!("{:.2}", amount.0.0), text);
        }
    }
}
