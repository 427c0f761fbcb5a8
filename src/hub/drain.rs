//! The end of a node: every stream is told to come back elsewhere, a few at a time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    Hub,
    frames::{Closing, ClosingReason},
    mailbox::Mailbox,
    session::RETRY_MS,
};

/// How often the next streams are told.
const STEP: Duration = Duration::from_millis(50);

impl Hub {
    /// Takes no more streams, ends those there are over `spread`, and waits until the last one has gone.
    pub async fn drain(&self, spread: Duration) {
        let streams: Vec<Arc<Mailbox>> = {
            let mut state = self.state();
            state.draining = true;
            self.streams.send_replace(state.streams.len());
            state.streams.values().cloned().collect()
        };
        let begun = Instant::now();
        for (nth, mailbox) in streams.iter().enumerate() {
            let due = begun + spread.mul_f64(nth as f64 / streams.len() as f64);
            if due >= Instant::now() + STEP {
                sleep_until(due).await;
            }
            mailbox.close(Closing { reason: ClosingReason::Draining, reconnect_ms: reconnect_ms(nth) });
        }
        drop(streams);
        self.streams.subscribe().wait_for(|streams| *streams == 0).await.expect("the hub owns the sender");
    }
}

/// From half of the usual time to one and a half, spread evenly however many streams there are: the multiples of the
/// golden ratio, less their whole parts, fall into the largest gap each.
fn reconnect_ms(nth: usize) -> u64 {
    let part = (nth as f64 * 0.618_033_988_749_895).fract();
    RETRY_MS / 2 + (part * RETRY_MS as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_back_spread_over_one_usual_time() {
        let mut times: Vec<u64> = (0..1000).map(reconnect_ms).collect();
        times.sort_unstable();
        assert!(times[0] >= RETRY_MS / 2 && times[999] <= RETRY_MS * 3 / 2, "{} {}", times[0], times[999]);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= RETRY_MS / 200), "no gap, no herd");
    }
}
