//! Keeping tickets good while they have streams.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Digest, TicketSettings};
use crate::auth::opened::{self, Opened};
use crate::{db::Db, error::Result, metrics::Metrics};

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

/// A ticket in use by a stream: for as long as this lives, it is renewed.
pub(crate) type Held = opened::Held<Digest>;

/// The task that keeps them.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) db: Db,
    pub(super) settings: TicketSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) open: Arc<Opened<Digest>>,
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
        let open = self.open.credentials();
        if open.is_empty() {
            return Ok(());
        }
        let digests: Vec<&[u8]> = open.iter().map(|digest| &digest.0[..]).collect();
        let mut conn = self.db.acquire().await?;
        let renew = sqlx::query(RENEW).bind(digests).bind(self.settings.ahead().as_secs_f64());
        self.metrics.tickets_renewed.inc_by(renew.execute(&mut conn).await?.rows_affected());
        Ok(())
    }
}
