//! Days, weeks and times of the day as people write them.
//!
//! Years have four digits, so that Postgres can hold each and texts sort as the time goes.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Deserializer;
use time::{Date, Weekday, format_description::FormatItem, macros::format_description};
use utoipa::openapi::{KnownFormat, SchemaFormat};

use super::{InvalidName, deserialize_from_str, is_made_of, schema};

const DAY_RULE: &str = "a day such as 2026-11-23";
const DAY: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]");

/// A day, written `2026-11-23`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Date);

impl Day {
    /// The date.
    #[must_use]
    pub fn date(self) -> Date {
        self.0
    }
}

impl FromStr for Day {
    type Err = InvalidName;

    fn from_str(given: &str) -> Result<Self, InvalidName> {
        // The format takes a sign and more digits as well.
        let day = Some(given).filter(|given| given.len() == 10).and_then(|given| Date::parse(given, DAY).ok());
        day.map(Self).ok_or_else(|| InvalidName::new(given, DAY_RULE))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }
}

serde_as_string!(Day, DAY_RULE, schema::text(DAY_RULE).format(Some(SchemaFormat::KnownFormat(KnownFormat::Date))));

const WEEK_RULE: &str = "a week such as 2026-W48, from W01 to the W52 or W53 that its year has (ISO 8601)";

/// The same, for clients, as far as a pattern can say it.
const WEEK_PATTERN: &str = "[0-9]{4}-W(0[1-9]|[1-4][0-9]|5[0-3])";

/// A week of ISO 8601, written `2026-W48`: from Monday to Sunday, in the year that has its Thursday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Week {
    year: i32,
    number: u8,
}

impl Week {
    /// The week that a date is in.
    #[must_use]
    pub fn of(date: Date) -> Self {
        let (year, number, _) = date.to_iso_week_date();
        Self { year, number }
    }
}

impl FromStr for Week {
    type Err = InvalidName;

    fn from_str(given: &str) -> Result<Self, InvalidName> {
        week(given).ok_or_else(|| InvalidName::new(given, WEEK_RULE))
    }
}

fn week(given: &str) -> Option<Week> {
    let (year, number) = given.split_once("-W")?;
    let is_digits = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(year, 4) || !is_digits(number, 2) {
        return None;
    }
    let (year, number) = (year.parse().ok()?, number.parse().ok()?);
    // Not every year has a week 53.
    Date::from_iso_week_date(year, number, Weekday::Thursday).ok().map(Week::of)
}

impl fmt::Display for Week {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-W{:02}", self.year, self.number)
    }
}

serde_as_string!(Week, WEEK_RULE, schema::pattern(WEEK_RULE, WEEK_PATTERN).examples(["2026-W48"]));

name!(
    /// A time of the day, written `18:30`.
    TimeOfDay,
    "a time of the day from 00:00 to 23:59",
    "([01][0-9]|2[0-3]):[0-5][0-9]",
    |s| matches!(s.as_bytes(), [h1, h2, b':', m1, m2]
        if matches!((h1, h2), (b'0'..=b'1', b'0'..=b'9') | (b'2', b'0'..=b'3'))
            && matches!((m1, m2), (b'0'..=b'5', b'0'..=b'9')))
);

name!(
    /// The name of a time zone, as IANA has it. Whether there is one of that name is not judged here.
    TimeZone,
    "a time zone such as Europe/Berlin: 1 to 64 characters of A-Z a-z 0-9 / _ + -",
    "[A-Za-z0-9/_+-]{1,64}",
    |s| is_made_of(s, 64, |b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b))
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::date;

    use super::*;

    #[test]
    fn a_year_has_the_weeks_that_the_calendar_gives_it() {
        for good in ["2026-W01", "2026-W48", "2026-W53", "2020-W53", "2025-W52", "0001-W01", "9999-W52"] {
            assert_eq!(good.parse::<Week>().unwrap().to_string(), good);
        }
        for bad in ["2025-W53", "2026-W00", "2026-W54", "2021-W53", "2026-W60", "2026-W99"] {
            assert!(bad.parse::<Week>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_day_has_1440_times() {
        let times = (0..100).flat_map(|hour| (0..100).map(move |minute| format!("{hour:02}:{minute:02}")));
        assert_eq!(times.filter(|time| time.parse::<TimeOfDay>().is_ok()).count(), 24 * 60);
        for bad in ["", "8:00", "08:0", "08:000", "24:00", "08-00", "08:00:00", " 8:00", "٠٨:٠٠"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_week_has_one_spelling() {
        for bad in ["", "2026W48", "2026-w48", "2026-W4", "2026-W048", "26-W48", "+2026-W48", "2026-48", " 2026-W48"] {
            assert!(bad.parse::<Week>().is_err(), "{bad}");
        }
        for bad in ["2026-W48-1", "2026-W４８", "٢٠٢٦-W48", "-026-W48", "2026-W+8", "2026-11-23", "2026-W48\n"] {
            assert!(bad.parse::<Week>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_turn_of_the_year_belongs_to_the_week_of_its_thursday() {
        for (day, week) in [
            (date!(2026 - 11 - 23), "2026-W48"),
            (date!(2027 - 01 - 03), "2026-W53"),
            (date!(2027 - 01 - 04), "2027-W01"),
            (date!(2024 - 12 - 30), "2025-W01"),
            (date!(2023 - 01 - 01), "2022-W52"),
        ] {
            assert_eq!(Week::of(day).to_string(), week, "{day}");
        }
    }

    #[test]
    fn a_day_has_one_spelling() {
        assert_eq!("2024-02-29".parse::<Day>().unwrap().to_string(), "2024-02-29");
        for bad in ["2026-02-29", "2026-2-1", "+10000-01-01", "-9999-01-01", "infinity", "2026-W48", "20261123"] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn weeks_sort_as_the_time_goes(one in 0_i32..3_000_000, other in 0_i32..3_000_000) {
            let week = |julian| Week::of(Date::from_julian_day(date!(1000-01-01).to_julian_day() + julian).unwrap());
            let (one, other) = (week(one), week(other));
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
            prop_assert_eq!(one.to_string().parse::<Week>(), Ok(one));
        }

        #[test]
        fn no_string_panics_and_what_parses_is_written_alike(given in ".{0,12}|[0-9]{4}-W[0-9]{2}|[0-9-]{10}") {
            if let Ok(week) = given.parse::<Week>() {
                prop_assert_eq!(week.to_string(), &*given);
            }
            if let Ok(day) = given.parse::<Day>() {
                prop_assert_eq!(day.to_string(), given);
            }
        }
    }
}
