//! Keeping tickets good while they have streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Digest, TicketSettings};
use crate::{
    db::Db,
    error::{Error, Result},
    metrics::{Gauge, Metrics},
};

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

/// The tickets that have streams on this node, and how many. Bounded by those.
#[derive(Debug)]
pub(super) struct Open {
    streams: Mutex<HashMap<Digest, usize>>,
    /// The ticket of each of those streams.
    tickets: Mutex<HashMap<Uuid, Digest>>,
    gauge: Gauge,
}

impl Open {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { streams: Mutex::default(), tickets: Mutex::default(), gauge }
    }

    /// The ticket that a stream was opened with, if it was.
    pub(super) fn ticket(&self, stream: Uuid) -> Option<Digest> {
        self.tickets().get(&stream).copied()
    }

    fn tickets(&self) -> MutexGuard<'_, HashMap<Uuid, Digest>> {
        self.tickets.lock().expect("nothing panics while it holds the open tickets")
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
    /// The stream that was opened with it.
    stream: Option<Uuid>,
}

impl Held {
    pub(super) fn new(open: Arc<Open>, digest: Digest) -> Self {
        let mut streams = open.streams();
        *streams.entry(digest).or_default() += 1;
        open.gauge.set(streams.len().try_into().unwrap_or(i64::MAX));
        drop(streams);
        Self { open, digest, stream: None }
    }

    /// A ticket in use by this stream.
    #[must_use]
    pub fn by(mut self, stream: Uuid) -> Self {
        self.open.tickets().insert(stream, self.digest);
        self.stream = Some(stream);
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.open.tickets().remove(&stream);
        }
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
    /// Renews until `stop`.
    pub(super) async fn run(self) {
        let (every, stop) = (self.settings.idle / 8, self.stop.clone());
        let mut wait = every;
        while stop.run_until_cancelled(sleep(wait)).await.is_some() {
            wait = match stop.run_until_cancelled(self.renew()).await {
                Some(Ok(())) => every,
                Some(Err(error)) => {
                    // That Postgres is out of reach is told by whoever found out.
                    if self.db.is_reachable() {
                        tracing::warn!(%error, "tickets cannot be renewed; trying again");
                    }
                    every.min(RETRY)
                }
                None => return,
            };
        }
    }

    async fn renew(&self) -> Result<()> {
        let open = self.open.digests();
        if open.is_empty() {
            return Ok(());
        }
        let digests: Vec<&[u8]> = open.iter().map(|digest| &digest.0[..]).collect();
        let mut conn = self.db.acquire().await?;
        let renew = sqlx::query(RENEW).bind(digests).bind(self.settings.ahead().as_secs_f64());
        let Ok(renewed) = timeout(self.settings.statement_timeout, renew.execute(&mut *conn)).await else {
            // It is in the middle of an answer that never comes.
            conn.close_on_drop();
            return Err(Error::unavailable("The database does not answer."));
        };
        self.metrics.tickets_renewed.inc_by(renewed?.rows_affected());
        Ok(())
    }
}
