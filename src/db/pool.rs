//! A pool of connections. Ours, since nothing of it may wait without a bound: taking one, giving one back, and its end.
//!
//! A connection that lay idle for a while is asked whether it still lives. One that does not answer did not die alone, so
//! whatever was made before is not used any more, and a request that comes upon one waits for one and not for all of them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, postgres::PgConnectOptions};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::{
    Conn,
    reach::Reach,
    session::{Bounds, Line, millis},
};
use crate::metrics::{Gauge, Metrics};

/// How long somebody waits for a connection before they are told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(1750);

/// A connection that was used this recently is not asked whether it still lives.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);

/// The longest that it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_millis(750);

/// A connection that nothing uses for so long is closed.
const IDLE_MAX: Duration = Duration::from_mins(10);

/// And one that is so old, so that what Postgres keeps for it does not only grow.
const AGE_MAX: Duration = Duration::from_mins(30);

/// How often somebody who connects looks whether another has given one back meanwhile: a pooler may have no more places.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits before a refused connection is tried again: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Connections of one kind.
#[derive(Debug)]
pub(super) struct Pool {
    options: PgConnectOptions,
    bounds: Bounds,
    /// One for each connection that may be open; whoever uses one holds it.
    places: Arc<Semaphore>,
    /// One for each of those that may wait long for a lock: no more than half.
    patience: Arc<Semaphore>,
    max: u32,
    idle: Mutex<Idle>,
    reach: Arc<Reach>,
    metrics: Arc<Metrics>,
}

/// What nobody uses now; the last one given back is the next one taken.
#[derive(Debug, Default)]
struct Idle {
    lines: Vec<(Line, Instant)>,
    is_closed: bool,
    /// Whether the last one who asked for a connection got none.
    is_starved: bool,
}

/// Where a connection in use goes back to. With it goes its place.
#[derive(Debug)]
pub(super) struct Home {
    pool: Arc<Pool>,
    _place: OwnedSemaphorePermit,
    patience: Option<OwnedSemaphorePermit>,
}

impl Home {
    /// Nothing is under way on it.
    pub(super) fn take_back(&self, line: Line) {
        self.pool.keep(line);
    }

    /// Whether it may wait long for a lock.
    pub(super) fn is_patient(&self) -> bool {
        self.patience.is_some()
    }

    /// What sets a session back that was in a hurry.
    pub(super) fn calm_down(&self) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!("set lock_timeout = {}", millis(self.pool.bounds.lock)))
    }

    /// It was closed in the middle of a statement.
    pub(super) fn gave_up(&self) {
        self.pool.metrics.postgres_given_up.inc();
    }
}

impl Pool {
    pub(super) fn new(
        options: PgConnectOptions,
        bounds: Bounds,
        (max, patient): (u32, u32),
        reach: Arc<Reach>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let [places, patience] = [max, patient].map(|count| Arc::new(Semaphore::new(count as usize)));
        Arc::new(Self { options, bounds, places, patience, max, idle: Mutex::default(), reach, metrics })
    }

    /// A connection that lives.
    ///
    /// # Errors
    /// When none is to be had in time, or Postgres is out of reach.
    pub(super) async fn acquire(self: &Arc<Self>) -> sqlx::Result<Conn> {
        let _waiting = Waiting::one(&self.metrics.postgres_waiting);
        let taken = tokio::select! {
            biased;
            () = self.reach.lost() => Err(Reach::away()),
            taken = timeout(ACQUIRE_TIMEOUT, self.take()) => taken.unwrap_or(Err(sqlx::Error::PoolTimedOut)),
        };
        if taken.is_err() {
            self.metrics.postgres_not_acquired.inc();
        }
        self.idle().is_starved = taken.is_err();
        taken
    }

    /// Whether there are connections: where the last one who asked got none, another one is tried.
    pub(super) async fn serves(self: &Arc<Self>) -> bool {
        let is_starved = self.idle().is_starved;
        !is_starved || self.acquire().await.is_ok()
    }

    /// Connections that are open, and those of them that nothing uses now.
    pub(super) fn count(&self) -> (usize, usize) {
        let idle = self.idle().lines.len();
        (self.max as usize - self.places.available_permits() + idle, idle)
    }

    /// Closes what nothing uses, now and whenever something is given back.
    pub(super) fn close(&self) {
        self.places.close();
        let lines = {
            let mut idle = self.idle();
            idle.is_closed = true;
            std::mem::take(&mut idle.lines)
        };
        lines.into_iter().for_each(|(line, _)| line.close());
    }

    /// Closes what has lain idle for too long.
    pub(super) fn reap(&self) {
        let old: Vec<_> = self.idle().lines.extract_if(.., |(_, since)| since.elapsed() > IDLE_MAX).collect();
        old.into_iter().for_each(|(line, _)| line.close());
    }

    async fn take(self: &Arc<Self>) -> sqlx::Result<Conn> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let line = match self.living().await {
            Some(line) => line,
            None => tokio::select! {
                line = self.connect() => line?,
                line = self.given_back() => line,
            },
        };
        let patience = self.patience.clone().try_acquire_owned().ok();
        let home = Home { pool: self.clone(), _place: place, patience };
        Ok(Conn::new(line, self.bounds, Some(self.reach.clone()), Some(home)))
    }

    /// One that lay idle and lives, if there is one.
    async fn living(&self) -> Option<Line> {
        while let Some((mut line, since)) = self.pop() {
            if since.elapsed() < IDLE_TRUSTED {
                return Some(line);
            }
            match timeout(PING_TIMEOUT, line.raw.ping()).await {
                Ok(Ok(())) => return Some(line),
                // It was closed, as a server does that stops.
                Ok(Err(_)) => {}
                Err(_) => self.reach.distrust(),
            }
            self.metrics.postgres_dead.inc();
        }
        None
    }

    async fn connect(&self) -> sqlx::Result<Line> {
        let mut wait = RETRY.0;
        loop {
            match Line::open(&self.options, self.bounds, ACQUIRE_TIMEOUT).await.map_err(sqlx::Error::from) {
                Err(error) if will_pass(&error) => {}
                opened => return opened,
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// One that somebody has given back just now.
    async fn given_back(&self) -> Line {
        loop {
            sleep(LOOK_EVERY).await;
            let line = self.pop();
            if let Some((line, _)) = line.filter(|(_, since)| since.elapsed() < IDLE_TRUSTED) {
                return line;
            }
        }
    }

    /// The one that was given back last; what is not trusted any more is closed.
    fn pop(&self) -> Option<(Line, Instant)> {
        loop {
            let (line, since) = self.idle().lines.pop()?;
            if self.reach.trusts(line.made) {
                return Some((line, since));
            }
        }
    }

    fn keep(&self, line: Line) {
        let is_good = line.made.elapsed() < AGE_MAX && self.reach.trusts(line.made);
        let mut idle = self.idle();
        if is_good && !idle.is_closed {
            idle.lines.push((line, Instant::now()));
        } else {
            drop(idle);
            line.close();
        }
    }

    /// A list and two words, each changed at once: nothing is half done when a panic comes.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a refusal is one of a Postgres that starts, or that has no connection left at the moment.
fn will_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// Somebody who waits, for as long as this lives.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn one(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
