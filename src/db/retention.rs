//! The task that keeps the log within its retention: see [`crate::log::retention`].

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Db;
use crate::{
    ids::NodeKey,
    log::{
        LogError,
        retention::{self, Batch, Figures, Keep, Keeper},
    },
    metrics::Metrics,
};

/// Events of a batch: it holds a writer up by no more than what it writes to the disk.
const BATCH_EVENTS: i64 = 250;

/// Events that are deleted in a second, besides [`PACE`] times as many as come. A retention that was shortened is not made up
/// for in one burst, and deletion never falls behind for good.
const EVENTS_PER_SECOND: f64 = 1000.0;

/// See [`EVENTS_PER_SECOND`].
const PACE: f64 = 2.0;

/// A node that has missed this many of its marks has lost its turn.
const MISSED_MAX: u32 = 3;

/// The wait before what failed is tried again, at most.
const RETRY: Duration = Duration::from_secs(10);

/// The task's state.
#[derive(Debug)]
pub struct Retention {
    db: Db,
    keep: Keep,
    keeper: Keeper,
    metrics: Arc<Metrics>,
    /// Events that are deleted in a second.
    pace: f64,
}

impl Retention {
    /// What is to be kept, by this node when it is its turn.
    pub fn new(db: Db, keep: Keep, node: NodeKey, metrics: Arc<Metrics>) -> Self {
        metrics.log_events_max.set(keep.events);
        let keeper = Keeper { node: node.to_sql(), lease: keep.every * MISSED_MAX };
        Self { db, keep, keeper, metrics, pace: EVENTS_PER_SECOND }
    }

    /// Notes positions, raises the floor and deletes what lies below it, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(Err(error)) = stop.run_until_cancelled(self.follow()).await {
            // That Postgres is out of reach is told by whoever found out.
            if self.db.is_reachable() {
                tracing::warn!(%error, "the log keeps more than it should; trying again");
            }
            stop.run_until_cancelled(sleep(self.keep.every.min(RETRY))).await;
        }
    }

    /// One connection's life.
    async fn follow(&mut self) -> Result<Infallible, LogError> {
        // A crash takes back the last of what was done, never what came before that: the floor stays below what is deleted.
        let mut conn = self.db.connect_hastily().await?;
        sqlx::query(retention::PLANNING).execute(&mut conn).await?;
        loop {
            retention::note(&mut conn, self.keeper, self.keep).await?;
            retention::raise(&mut conn, self.keeper, self.keep).await?;
            let due = Instant::now() + self.keep.every;
            self.show(&retention::figures(&mut conn).await?);
            while Instant::now() < due {
                let began = Instant::now();
                let batch = retention::delete(&mut conn, self.keeper, BATCH_EVENTS).await?;
                let next = batch.and_then(|batch| self.next(began, batch)).unwrap_or(due);
                sleep_until(next.min(due)).await;
            }
        }
    }

    /// When the batch after this one may begin; none when there is nothing left to delete.
    fn next(&self, began: Instant, batch: Batch) -> Option<Instant> {
        self.metrics.log_deleted.inc_by(batch.events);
        self.metrics.log_batches.inc();
        (!batch.is_last).then(|| began + Duration::from_secs_f64(batch.events as f64 / self.pace))
    }

    fn show(&mut self, figures: &Figures) {
        self.pace = EVENTS_PER_SECOND + PACE * figures.pace;
        let seconds = |seconds: f64| seconds as i64;
        self.metrics.log_floor_age.set(seconds(figures.floor_age));
        self.metrics.log_retention_idle.set(seconds(figures.idle));
        self.metrics.log_events.set(figures.events);
        self.metrics.log_overdue.set(figures.overdue);
    }
}
