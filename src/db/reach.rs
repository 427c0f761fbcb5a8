//! Whether Postgres answers, and for how long it last did not.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What this node knows of Postgres's being there. It is taken to be there until somebody says otherwise.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Looked at by every request.
    is_lost: AtomicBool,
    outage: Mutex<Outage>,
}

/// The outage that is, and the one that was.
#[derive(Debug, Default)]
struct Outage {
    began: Option<Instant>,
    /// When the last one ended, and how long it had lasted.
    last: Option<(Instant, Duration)>,
}

impl Reach {
    /// Whether Postgres answered last time.
    pub(super) fn is_up(&self) -> bool {
        !self.is_lost.load(Ordering::Relaxed)
    }

    /// Says whether Postgres answers.
    pub(super) fn set(&self, is_up: bool) {
        let mut outage = self.outage();
        if !is_up {
            outage.began.get_or_insert_with(Instant::now);
        } else if let Some(began) = outage.began.take() {
            outage.last = Some((Instant::now(), began.elapsed()));
        }
        self.is_lost.store(!is_up, Ordering::Relaxed);
    }

    /// How long the last outage lasted, if it ended less than `within` ago; else zero.
    pub(super) fn lost_lately(&self, within: Duration) -> Duration {
        let last = self.outage().last;
        last.filter(|(ended, _)| ended.elapsed() < within).map_or(Duration::ZERO, |(_, lasted)| lasted)
    }

    /// How long ago the last outage ended; none when there was none.
    pub(super) fn back_for(&self) -> Option<Duration> {
        self.outage().last.map(|(ended, _)| ended.elapsed())
    }

    /// Two times, each set at once: nothing is half done when a panic comes.
    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_known_for_a_while_after_it_has_ended() {
        let reach = Reach::default();
        assert!(reach.is_up());
        // One that lasts is told again and again.
        for _ in 0..3 {
            reach.set(false);
            advance(MINUTE).await;
        }
        assert!(!reach.is_up());
        assert_eq!(reach.lost_lately(10 * MINUTE), Duration::ZERO, "it has not ended");
        assert_eq!(reach.back_for(), None);
        for _ in 0..2 {
            reach.set(true);
            advance(MINUTE).await;
        }
        assert!(reach.is_up());
        assert_eq!(reach.lost_lately(10 * MINUTE), 3 * MINUTE);
        assert_eq!(reach.lost_lately(MINUTE), Duration::ZERO, "it is over for longer");
        assert_eq!(reach.back_for(), Some(2 * MINUTE), "once is when it was told first");
        reach.set(false);
        advance(MINUTE / 2).await;
        reach.set(true);
        assert_eq!(reach.lost_lately(MINUTE), MINUTE / 2, "the last one counts");
    }
}
