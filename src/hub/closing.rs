//! How a client is told that its stream ends, and when it is to come back.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::{frames::ClosingReason, session::RETRY_MS};
use crate::sse;

/// However long clients are to stay away, they come back within this long of each other.
const SPREAD_MAX: Duration = Duration::from_secs(10);

/// The last word of a stream: the data of `stream:closing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = StreamClosingData)]
pub struct Closing {
    /// Why it ends.
    pub reason: ClosingReason,
    /// When the client is to come back, in milliseconds.
    #[serde(rename = "reconnectInMs")]
    pub reconnect_ms: u64,
}

impl Closing {
    /// The `nth` client that is told: it comes back after the usual time.
    pub(super) fn usual(reason: ClosingReason, nth: u64) -> Self {
        Self::spread(reason, nth, Duration::from_millis(RETRY_MS / 2))
    }

    /// The `nth` client that is told: it stays away for `least`, and for up to twice as long again. Those times are spread
    /// evenly however many clients there are: the multiples of the golden ratio, less their whole parts, fall into the
    /// largest gap each.
    pub fn spread(reason: ClosingReason, nth: u64, least: Duration) -> Self {
        let part = (nth as f64 * 0.618_033_988_749_895).fract();
        let wait = least + (2 * least).min(SPREAD_MAX).mul_f64(part);
        Self { reason, reconnect_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The frame that says so, and the `retry:` before it, which browsers heed by themselves. `id` is the position to
    /// resume from, if it is another one than before.
    pub fn frame(&self, id: Option<&str>) -> Bytes {
        let data = serde_json::to_string(self).expect("a reason and a number");
        let closing = sse::event("stream:closing", id, &data);
        [sse::retry(self.reconnect_ms), closing].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_back_spread_over_one_usual_time() {
        let mut times: Vec<u64> =
            (0..1000).map(|nth| Closing::usual(ClosingReason::Draining, nth).reconnect_ms).collect();
        times.sort_unstable();
        assert!(times[0] >= RETRY_MS / 2 && times[999] <= RETRY_MS * 3 / 2, "{} {}", times[0], times[999]);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= RETRY_MS / 200), "no gap, no herd");
    }

    #[test]
    fn nobody_comes_back_before_the_time_they_were_told_or_long_after() {
        for (least_s, most_s) in [(1, 3), (5, 15), (60, 70)] {
            let times = (0..1000)
                .map(|nth| Closing::spread(ClosingReason::Limit, nth, Duration::from_secs(least_s)).reconnect_ms);
            let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
            assert!(first >= least_s * 1000 && last <= most_s * 1000, "{least_s} s: {first} to {last}");
            assert!(last - first > (most_s - least_s) * 900, "{least_s} s: {first} to {last}");
        }
    }

    #[test]
    fn the_time_stands_before_the_frame_and_in_it() {
        let closing = Closing { reason: ClosingReason::Overload, reconnect_ms: 7001 };
        let frame = "event: stream:closing\ndata: {\"reason\":\"overload\",\"reconnectInMs\":7001}\n\n";
        assert_eq!(closing.frame(None), format!("retry: 7001\n{frame}"));
        assert!(closing.frame(Some("k-9")).starts_with(b"retry: 7001\nevent: stream:closing\nid: k-9\n"));
    }
}
