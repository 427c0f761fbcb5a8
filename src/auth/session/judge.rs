//! Whose sessions cookies are. A node's restart brings the streams of all its sessions back at once, so those that wait at a
//! moment share a statement.

use std::{collections::HashMap, sync::Arc};

use sqlx::types::JsonValue;
use uuid::Uuid;

use super::{Caller, Digest, SessionId};
use crate::{db::Conn, db::desk::Clerk, error::Result, metrics::Metrics};

/// Reads sessions. `$1`: the digests of their cookies.
pub const READ: &str = "
    select digest, id, sha256(convert_to(caller::text, 'UTF8')), caller, ends_at > now()
    from crewcast.sessions where digest = any($1)";

/// What became of a session.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// It stands for this caller.
    Good(SessionId, Box<Caller>),
    Expired,
    Unknown,
}

/// Who judges.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) metrics: Arc<Metrics>,
}

impl Clerk for Judge {
    const NAME: &'static str = "sessions";

    type Question = Digest;
    type Answer = Verdict;

    async fn answer(&mut self, conn: &mut Conn, digests: &[Digest]) -> Result<Vec<Verdict>> {
        self.metrics.session_statements.inc();
        let asked: Vec<&[u8]> = digests.iter().map(|digest| &digest.0[..]).collect();
        let rows: Vec<Row> = sqlx::query_as(READ).bind(asked).fetch_all(conn).await?;
        let rows = rows.into_iter().map(|(digest, id, claims, caller, is_good)| {
            let verdict = if is_good { verdict(id, claims, caller) } else { Verdict::Expired };
            (digest, verdict)
        });
        let verdicts: HashMap<Vec<u8>, Verdict> = rows.collect();
        // Many requests may have come with one cookie.
        let verdict = |digest: &Digest| verdicts.get(&digest.0[..]).cloned().unwrap_or(Verdict::Unknown);
        Ok(digests.iter().map(verdict).collect())
    }
}

/// A session: the digest of its cookie, its id, the digest of its claims, its claims, whether it is good.
type Row = (Vec<u8>, Uuid, [u8; 32], JsonValue, bool);

fn verdict(id: Uuid, claims: [u8; 32], caller: JsonValue) -> Verdict {
    let session = SessionId { id, claims: Digest(claims) };
    caller_of(caller).map_or(Verdict::Unknown, |caller| Verdict::Good(session, Box::new(caller)))
}

/// The stored claims.
pub(super) fn caller_of(stored: JsonValue) -> Option<Caller> {
    let caller = serde_json::from_value(stored);
    // Stored by another version: its client signs in again, here.
    caller.inspect_err(|error| tracing::warn!(%error, "a session's caller cannot be read")).ok()
}
