//! Keeping tickets good while they have streams, and letting go of those that nobody can want any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Digest, TicketSettings};
use crate::{
    db::Db,
    error::{Error, Result},
    metrics::{Gauge, Metrics},
};

/// How long after it ran out a ticket is kept at least: a node that was cut off from Postgres may still have its streams.
const KEPT: Duration = Duration::from_hours(1);

/// Tickets that one statement deletes, at most.
const DELETED_MAX: i64 = 1000;

/// The wait before what failed is tried again, at most.
const RETRY: Duration = Duration::from_secs(1);

/// Moves tickets on, whether or not they have run out. `$1`: their digests, `$2`: how far ahead in seconds.
///
/// Locked in order: the same tickets may be used, or renewed, on two nodes at once. A list, and no join, stays on the index
/// in generic plans as well.
pub const RENEW: &str = "
    with held as (select digest from crewcast.tickets where digest = any($1) order by digest for no key update)
    update crewcast.tickets set good_until = least(now() + make_interval(secs => $2), ends_at)
    where digest = any(array(select digest from held))";

/// Deletes tickets that ran out more than `$1` seconds ago, the oldest first, `$2` at most.
pub const DELETE: &str = "
    delete from crewcast.tickets where digest = any(array(
        select digest from crewcast.tickets where good_until < now() - make_interval(secs => $1)
        order by good_until limit $2 for update skip locked))";

/// The tickets that have streams on this node, and how many. Bounded by those.
#[derive(Debug)]
pub(super) struct Open {
    streams: Mutex<HashMap<Digest, usize>>,
    gauge: Gauge,
}

impl Open {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { streams: Mutex::default(), gauge }
    }

    fn digests(&self) -> Vec<Digest> {
        self.streams().keys().copied().collect()
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.streams.lock().expect("nothing panics while it holds the open tickets")
    }
}

/// A ticket in use: for as long as this lives, it is renewed.
#[derive(Debug)]
pub struct Held {
    open: Arc<Open>,
    digest: Digest,
}

impl Held {
    pub(super) fn new(open: Arc<Open>, digest: Digest) -> Self {
        let mut streams = open.streams();
        *streams.entry(digest).or_default() += 1;
        open.gauge.set(streams.len().try_into().unwrap_or(i64::MAX));
        drop(streams);
        Self { open, digest }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut streams = self.open.streams();
        let left = streams.get_mut(&self.digest).expect("it was put in when this was made");
        *left -= 1;
        if *left == 0 {
            streams.remove(&self.digest);
        }
        self.open.gauge.set(streams.len().try_into().unwrap_or(i64::MAX));
    }
}

/// The task that keeps them.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) db: Db,
    pub(super) settings: TicketSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) open: Arc<Open>,
    pub(super) stop: CancellationToken,
}

impl Keeper {
    /// Renews and deletes until `stop`.
    pub(super) async fn run(self) {
        let (every, stop) = (self.settings.idle / 8, self.stop.clone());
        let mut wait = every;
        while stop.run_until_cancelled(sleep(wait)).await.is_some() {
            let Some(kept) = stop.run_until_cancelled(self.keep()).await else { return };
            let Err(error) = kept else {
                wait = every;
                continue;
            };
            // That Postgres is out of reach is told by whoever found out.
            if self.db.is_reachable() {
                tracing::warn!(%error, "tickets cannot be renewed; trying again");
            }
            wait = every.min(RETRY);
        }
    }

    async fn keep(&self) -> Result<()> {
        let mut conn = self.db.acquire().await?;
        let keeping = async {
            self.renew(&mut conn).await?;
            self.delete(&mut conn).await
        };
        let kept = timeout(self.settings.statement_timeout, keeping).await;
        let kept = kept.unwrap_or_else(|_| Err(Error::unavailable("The database does not answer.")));
        if kept.is_err() {
            // It may be in the middle of an answer that never comes.
            conn.close_on_drop();
        }
        kept
    }

    async fn renew(&self, conn: &mut PgConnection) -> Result<()> {
        let open = self.open.digests();
        if open.is_empty() {
            return Ok(());
        }
        let digests: Vec<&[u8]> = open.iter().map(|digest| &digest.0[..]).collect();
        let ahead = self.settings.ahead().as_secs_f64();
        let renewed = sqlx::query(RENEW).bind(digests).bind(ahead).execute(conn).await?;
        self.metrics.tickets_renewed.inc_by(renewed.rows_affected());
        Ok(())
    }

    async fn delete(&self, conn: &mut PgConnection) -> Result<()> {
        let kept = KEPT + self.db.lost_lately(self.settings.idle);
        loop {
            let deleted = sqlx::query(DELETE).bind(kept.as_secs_f64()).bind(DELETED_MAX).execute(&mut *conn).await?;
            self.metrics.tickets_deleted.inc_by(deleted.rows_affected());
            if deleted.rows_affected() < DELETED_MAX.unsigned_abs() {
                return Ok(());
            }
        }
    }
}
