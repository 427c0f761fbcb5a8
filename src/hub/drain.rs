//! The end of a node: every stream is told to come back elsewhere, a few at a time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{Closing, Hub, frames::ClosingReason, mailbox::Mailbox};

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
            mailbox.close(Closing::usual(ClosingReason::Draining, nth as u64));
        }
        drop(streams);
        self.streams.subscribe().wait_for(|streams| *streams == 0).await.expect("the hub owns the sender");
    }
}
