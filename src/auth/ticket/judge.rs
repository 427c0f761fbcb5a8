//! Which tickets are good. A node's restart brings the streams of all its tickets back at once, so those that wait at a
//! moment share a statement.

use std::{collections::HashMap, sync::Arc};

use sqlx::types::JsonValue;

use super::{Caller, Digest, TicketSettings};
use crate::{
    db::{Conn, Db, desk::Clerk},
    error::Result,
    metrics::Metrics,
};

/// Reads tickets, and moves those that are good on. `$1`: their digests, `$2`: how far ahead in seconds, `$3`: by how many
/// seconds one may have run out.
///
/// Locked in order: the same tickets may be used, or renewed, on two nodes at once. A list, and no join, stays on the index
/// in generic plans as well.
pub const USE: &str = "
    with asked as (
        select digest, caller, ends_at > now() and good_until > now() - make_interval(secs => $3) as is_good
        from crewcast.tickets where digest = any($1) order by digest for no key update
    ), used as (
        update crewcast.tickets set good_until = least(now() + make_interval(secs => $2), ends_at)
        where digest = any(array(select digest from asked where is_good))
    )
    select digest, caller, is_good from asked";

/// What became of a ticket.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// It stands for this caller.
    Good(Box<Caller>),
    RanOut,
    Unknown,
}

/// Who judges.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) db: Db,
    pub(super) settings: TicketSettings,
    pub(super) metrics: Arc<Metrics>,
}

impl Clerk for Judge {
    const NAME: &'static str = "tickets";

    type Question = Digest;
    type Answer = Verdict;

    async fn answer(&mut self, conn: &mut Conn, digests: &[Digest]) -> Result<Vec<Verdict>> {
        self.metrics.ticket_statements.inc();
        let asked: Vec<&[u8]> = digests.iter().map(|digest| &digest.0[..]).collect();
        let rows: Vec<(Vec<u8>, JsonValue, bool)> = sqlx::query_as(USE)
            .bind(asked)
            .bind(self.settings.ahead().as_secs_f64())
            .bind(self.db.lost_lately(self.settings.idle).as_secs_f64())
            .fetch_all(conn)
            .await?;
        let rows = rows.into_iter().map(|(digest, caller, is_good)| (digest, verdict(caller, is_good)));
        let verdicts: HashMap<Vec<u8>, Verdict> = rows.collect();
        // Two streams may have come with one ticket.
        let verdict = |digest: &Digest| verdicts.get(&digest.0[..]).cloned().unwrap_or(Verdict::Unknown);
        Ok(digests.iter().map(verdict).collect())
    }
}

fn verdict(caller: JsonValue, is_good: bool) -> Verdict {
    if !is_good {
        return Verdict::RanOut;
    }
    match serde_json::from_value(caller) {
        Ok(caller) => Verdict::Good(Box::new(caller)),
        Err(error) => {
            // Stored by another version: its client makes another one, here.
            tracing::warn!(%error, "a ticket's caller cannot be read");
            Verdict::Unknown
        }
    }
}
