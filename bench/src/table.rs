//! The figures: each beside its baseline, with the bar that it has to clear.

use std::fmt::Write as _;

/// What a figure is held to.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    /// Ours divided by the baseline's is at least this.
    RatioAtLeast(f64),
    /// Ours divided by the baseline's is at most this.
    RatioAtMost(f64),
    /// Ours is at most this, in the figure's unit.
    AtMost(f64),
    /// Ours is exactly this.
    Exactly(f64),
    /// Shown, and held to nothing.
    None,
}

/// One figure.
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    /// None where the bar is a number of its own.
    pub(crate) baseline: Option<f64>,
    pub(crate) bar: Bar,
    /// What both were measured with.
    pub(crate) note: String,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.baseline.map(|baseline| self.ours / baseline)
    }

    /// Whether the figure clears its bar; none when it has none.
    pub(crate) fn passes(&self) -> Option<bool> {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        Some(match self.bar {
            Bar::RatioAtLeast(bar) => ratio >= bar,
            Bar::RatioAtMost(bar) => ratio <= bar,
            Bar::AtMost(bar) => self.ours <= bar,
            Bar::Exactly(bar) => self.ours == bar,
            Bar::None => return None,
        })
    }

    fn bar(&self) -> String {
        match self.bar {
            Bar::RatioAtLeast(bar) => format!("≥ {bar} ×"),
            Bar::RatioAtMost(bar) => {
                format!("≤ {bar:.3}",).trim_end_matches('0').trim_end_matches('.').to_owned() + " ×"
            }
            Bar::AtMost(bar) => format!("≤ {bar} {}", self.unit),
            Bar::Exactly(bar) => format!("= {bar}"),
            Bar::None => String::new(),
        }
    }
}

/// The rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut table = "| figure | crewcast | baseline | ratio | bar | | measured with |\n".to_owned();
    table.push_str("|---|--:|--:|--:|--:|---|---|\n");
    for row in rows {
        let value = |value: f64| format!("{} {}", short(value), row.unit).trim_end().to_owned();
        let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let baseline = row.baseline.map(value).unwrap_or_default();
        let verdict = row.passes().map_or("", |passes| if passes { "pass" } else { "**fail**" });
        let _ = writeln!(
            table,
            "| {} | {} | {baseline} | {ratio} | {} | {verdict} | {} |",
            row.figure,
            value(row.ours),
            row.bar(),
            row.note
        );
    }
    table
}

/// A number as people read it: three digits, with separators.
pub(crate) fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(whole, part)| (whole, Some(part)));
    let mut grouped = String::new();
    for (nth, digit) in whole.chars().enumerate() {
        if nth > 0 && (whole.len() - nth).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |part| format!("{grouped}.{part}"))
}

/// The middle one; of an even number the upper of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let numbers = [4_123_456.7, 999.4, 12.34, 1.234, 0.1234, 0.0, -1234.0, 5.0];
        assert_eq!(numbers.map(short), ["4,123,457", "999", "12.3", "1.23", "0.123", "0", "-1,234", "5"]);
    }

    #[test]
    fn a_figure_is_held_to_its_bar() {
        let row =
            |ours, baseline, bar| Row { figure: String::new(), unit: "", ours, baseline, bar, note: String::new() };
        assert_eq!(row(3.0, Some(1.0), Bar::RatioAtLeast(3.0)).passes(), Some(true));
        assert_eq!(row(2.9, Some(1.0), Bar::RatioAtLeast(3.0)).passes(), Some(false));
        assert_eq!(row(0.9, Some(1.0), Bar::RatioAtMost(0.85)).passes(), Some(false));
        assert_eq!(row(8.1, None, Bar::AtMost(8.0)).passes(), Some(false));
        assert_eq!(row(0.0, None, Bar::Exactly(0.0)).passes(), Some(true));
        assert_eq!(row(f64::NAN, None, Bar::AtMost(8.0)).passes(), Some(false));
        assert_eq!(row(1.0, None, Bar::None).passes(), None);
    }
}
