//! Whether Postgres answers, and for how long it last did not: the circuit breaker.
//!
//! While it is open nothing is asked, and whoever waits for an answer, or for a connection, is told at once. One task asks
//! ([`watch`](super::watch)), and closes it when it is answered.

use std::{
    io::{Error, ErrorKind},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};

/// After so long without an answer somebody looks whether it is being worked on.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// So often it must be found that it is not, since an answer may have been on its way the first time.
const FOUND_IDLE: u32 = 2;

/// The time between.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What this node knows of Postgres's being there. It is taken to be there until somebody says otherwise.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Looked at by every request.
    is_lost: AtomicBool,
    outage: Mutex<Outage>,
    /// Rung when it is lost.
    lost: Notify,
    /// Rung when somebody wants to know at once.
    pub(super) look: Notify,
    /// Processes of Postgres that should be working for us, and who wants to know whether they do. One a connection at most.
    suspects: Mutex<Vec<Suspect>>,
}

/// A process of Postgres, and who is told whether it works.
pub(super) type Suspect = (i32, oneshot::Sender<bool>);

/// The outage that is, and the one that was.
#[derive(Debug, Default)]
struct Outage {
    began: Option<Instant>,
    /// When the last one ended, and how long it had lasted.
    last: Option<(Instant, Duration)>,
    /// Connections that are older may be dead without knowing it.
    distrusted: Option<Instant>,
}

impl Reach {
    /// Whether Postgres answered last time.
    pub(super) fn is_up(&self) -> bool {
        !self.is_lost.load(Ordering::Relaxed)
    }

    /// What somebody is told who asks while it does not.
    pub(super) fn away() -> sqlx::Error {
        sqlx::Error::Io(Error::new(ErrorKind::NotConnected, "Postgres is out of reach"))
    }

    /// Says whether Postgres answers; whether that is news.
    pub(super) fn set(&self, is_up: bool) -> bool {
        let mut outage = self.outage();
        let is_news = is_up == outage.began.is_some();
        if !is_up {
            outage.began.get_or_insert_with(Instant::now);
        } else if let Some(began) = outage.began.take() {
            outage.last = Some((Instant::now(), began.elapsed()));
            outage.distrusted = Some(Instant::now());
        }
        self.is_lost.store(!is_up, Ordering::Relaxed);
        drop(outage);
        if !is_up {
            self.lost.notify_waiters();
        }
        is_news
    }

    /// Ends when Postgres is out of reach.
    pub(super) async fn lost(&self) {
        loop {
            let lost = self.lost.notified();
            if !self.is_up() {
                return;
            }
            lost.await;
        }
    }

    /// Ends when the process that should be working on an answer is not: the connection to it was cut without a word.
    pub(super) async fn is_cut(&self, pid: i32) {
        sleep(LOOK_AFTER).await;
        let mut idle = 0;
        while idle < FOUND_IDLE {
            sleep(LOOK_AGAIN).await;
            idle = if self.works(pid).await == Some(false) { idle + 1 } else { 0 };
        }
    }

    /// Whether a process of Postgres works for us; none when nobody knows.
    async fn works(&self, pid: i32) -> Option<bool> {
        let (told, tells) = oneshot::channel();
        self.suspects().push((pid, told));
        self.look.notify_one();
        tells.await.ok()
    }

    /// Whom somebody has asked about.
    pub(super) fn take_suspects(&self) -> Vec<Suspect> {
        std::mem::take(&mut self.suspects())
    }

    /// A connection was dead without knowing it: so may be whatever was made before.
    pub(super) fn distrust(&self) {
        self.outage().distrusted = Some(Instant::now());
    }

    /// Whether a connection of this age may be used.
    pub(super) fn trusts(&self, made: Instant) -> bool {
        self.outage().distrusted.is_none_or(|distrusted| made > distrusted)
    }

    /// How long the last outage lasted, if it ended less than `within` ago; else zero.
    pub(super) fn lost_lately(&self, within: Duration) -> Duration {
        let last = self.outage().last;
        last.filter(|(ended, _)| ended.elapsed() < within).map_or(Duration::ZERO, |(_, lasted)| lasted)
    }

    /// Times, each set at once: nothing is half done when a panic comes. The same goes for a list that something is put on.
    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspects(&self) -> MutexGuard<'_, Vec<Suspect>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
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
        let before = Instant::now();
        assert!(reach.trusts(before));
        for _ in 0..2 {
            reach.set(true);
            advance(MINUTE).await;
        }
        assert!(reach.is_up());
        assert_eq!(reach.lost_lately(10 * MINUTE), 3 * MINUTE);
        assert_eq!(reach.lost_lately(MINUTE), Duration::ZERO, "it is over for longer");
        assert!(!reach.trusts(before), "a connection from before");
        assert!(reach.trusts(Instant::now()));
        reach.set(false);
        advance(MINUTE / 2).await;
        reach.set(true);
        assert_eq!(reach.lost_lately(MINUTE), MINUTE / 2, "the last one counts");
    }
}
