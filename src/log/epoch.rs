//! Epochs: when positions of before can no longer be trusted.
//!
//! A position counts transactions of one cluster's history. Three things end that history: the log is restored into
//! another cluster, whose count starts elsewhere; a standby is promoted, and commits that it had not received are gone; the
//! data is set back to an earlier state, and ids are handed out again. Each gives the log a new epoch, so that every
//! position of before is recognised as foreign and every client is told to read its state again.

use sqlx::{Acquire as _, PgConnection};
use time::OffsetDateTime;

use super::{Event, LogError, Now, Position, Snapshot};

/// What to do about positions when the cluster's timeline has changed, as it does when a standby is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failover {
    /// Commits may be missing: a new epoch.
    Lossy,
    /// The operator says that nothing is ever lost (synchronous standbys only): positions stay good.
    Lossless,
}

/// An event that was read, as it can be recognised. A database that was set back and went on hands out the same numbers
/// again, in the same order: the time tells the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    seq: i64,
    xact: i64,
    at: OffsetDateTime,
}

impl From<&Event> for Proof {
    fn from(event: &Event) -> Self {
        Self { seq: event.seq, xact: event.xact, at: event.at }
    }
}

/// What a log and its cluster say of themselves.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Identity {
    /// The log's epoch.
    pub epoch: String,
    /// The cluster that the log was written by.
    pub log_sysid: i64,
    /// The cluster that it is in.
    pub sysid: i64,
    /// The WAL timeline the log was last seen on.
    pub log_timeline: String,
    /// The WAL timeline now.
    pub timeline: String,
}

/// Reads the identity of the log and of its cluster.
///
/// # Errors
/// [`LogError::Broken`] on a standby: its snapshots do not show which transactions are running.
pub async fn identity(conn: &mut PgConnection) -> Result<Identity, LogError> {
    if sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *conn).await? {
        return Err(LogError::Broken("this Postgres is a standby; connect crewcast to the primary"));
    }
    Ok(sqlx::query_as(
        "select log.epoch, cluster.sysid as log_sysid, control.system_identifier as sysid, log.timeline as log_timeline,
                substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline
         from crewcast.log, crewcast.cluster, pg_control_system() as control",
    )
    .fetch_one(conn)
    .await?)
}

/// Makes sure, on a new connection, that the log goes on where it was, and adopts it otherwise. Returns why a new epoch
/// began, if one did.
///
/// `last` is the position last read here and some events that it covers: both must still hold.
///
/// # Errors
/// When Postgres does not answer, or is a standby.
pub async fn verify(
    conn: &mut PgConnection,
    failover: Failover,
    last: Option<(&Position, &[Proof])>,
) -> Result<Option<&'static str>, LogError> {
    let identity = identity(conn).await?;
    let Some(reason) = broken(conn, &identity, failover, last).await? else {
        if identity.timeline != identity.log_timeline {
            sqlx::query("update crewcast.log set timeline = $1").bind(&identity.timeline).execute(conn).await?;
        }
        return Ok(None);
    };
    renew(conn, &identity.epoch).await?;
    Ok(Some(reason))
}

/// Why the positions of before are worth nothing any more, if they are.
async fn broken(
    conn: &mut PgConnection,
    identity: &Identity,
    failover: Failover,
    last: Option<(&Position, &[Proof])>,
) -> Result<Option<&'static str>, LogError> {
    if identity.sysid != identity.log_sysid {
        return Ok(Some("the log was restored into another cluster"));
    }
    if identity.timeline != identity.log_timeline && failover == Failover::Lossy {
        return Ok(Some("a standby was promoted"));
    }
    let seen = match super::look(conn, &[]).await {
        Err(LogError::Ahead) => return Ok(Some("the log is ahead of its cluster")),
        seen => seen?,
    };
    let now = seen.peek();
    // Also when the epoch is another one: it may be an older one, from a copy made before it was renewed.
    let Some((last, proof)) = last else { return Ok(None) };
    let intact = now.snapshot.includes(last.reach()) && holds(conn, now, proof).await?;
    Ok((!intact).then_some("the database was set back"))
}

/// Whether these events are still in the log, under the same transactions, but for those that were let go.
async fn holds(conn: &mut PgConnection, now: &Now, proof: &[Proof]) -> sqlx::Result<bool> {
    let kept: Vec<&Proof> = proof.iter().filter(|proof| !now.floor.contains(proof.xact.cast_unsigned())).collect();
    let found: i64 = sqlx::query_scalar(
        "select count(*) from unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) as proof (seq, xact, at)
         where exists (select from crewcast.events event
                       where event.seq = proof.seq and event.xact = proof.xact and event.at = proof.at)",
    )
    .bind(kept.iter().map(|proof| proof.seq).collect::<Vec<_>>())
    .bind(kept.iter().map(|proof| proof.xact).collect::<Vec<_>>())
    .bind(kept.iter().map(|proof| proof.at).collect::<Vec<_>>())
    .fetch_one(conn)
    .await?;
    Ok(usize::try_from(found) == Ok(kept.len()))
}

/// Begins a new epoch if the log still has the epoch `old`; returns the epoch now in force. A log that another cluster
/// wrote, or that is ahead of its own, is adopted in the same transaction: its count goes on above the highest id it holds.
///
/// Until a restored log is adopted `append` refuses, so no transaction is under way that would store an id by the old
/// count. The shift starts at `xmin`, not at the next id: a transaction that runs already may publish once this commits.
/// In a cluster that the log is at home in the count stays as it is, for there publishers are under way.
///
/// # Errors
/// When Postgres does not answer or the role may not write the log.
pub async fn renew(conn: &mut PgConnection, old: &str) -> Result<String, LogError> {
    let mut tx = conn.begin().await?;
    // Two nodes that notice at once: the second waits here, and then finds the epoch changed.
    let (epoch, floor): (String, String) =
        sqlx::query_as("select epoch, floor from crewcast.log for update").fetch_one(&mut *tx).await?;
    if epoch != old {
        return Ok(epoch);
    }
    let floor: Snapshot = floor.parse().map_err(|_| LogError::Broken("the floor is not a snapshot"))?;
    sqlx::query(
        "update crewcast.cluster
         set sysid = home.sysid, ofs = greatest(ofs, home.top + 1 - home.xmin)
         from (select (select system_identifier from pg_control_system()) as sysid,
                      greatest((select max(xact) from crewcast.commits), $1) as top,
                      pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin,
                      pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax) as home
         where cluster.sysid <> home.sysid or home.xmax + cluster.ofs <= home.top",
    )
    .bind(floor.xmax().cast_signed() - 1)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "select setval('crewcast.event_seq', greatest(last_value, (select max(seq) from crewcast.events)))
         from crewcast.event_seq",
    )
    .execute(&mut *tx)
    .await?;
    let epoch = sqlx::query_scalar(
        "update crewcast.log
         set epoch = left(gen_random_uuid()::text, 8), timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
         returning epoch",
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(epoch)
}
