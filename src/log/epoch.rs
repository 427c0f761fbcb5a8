//! Epochs: when positions of before can no longer be trusted.
//!
//! A position counts transactions of one log's history. Four things end that history: the log is restored into another
//! cluster, whose count starts elsewhere; it is restored or copied inside its own, and what came after the copy was made is
//! gone, or is another log's; a standby is promoted, and commits that it had not received are gone; the data is set back to an
//! earlier state, and ids are handed out again. Each gives the log a new epoch, so that every position of before is
//! recognised as foreign and every client is told to read its state again.
//!
//! # One new epoch, however many nodes notice
//!
//! A node that finds its positions broken renews the epoch that it has just read, if that is still in force. The log keeps
//! its former epochs. A node that comes later, with an epoch which is among those, knows that somebody has seen to it; one
//! whose epoch the log has never heard of knows that the log was set back to before that epoch began. Whoever finds that
//! out first adds the unknown epoch to the former ones, so that the other nodes that came from there know as well.

use time::OffsetDateTime;

use super::{Event, LogError, Now, Position, Snapshot, rows::is_of_a_row};
use crate::db::Conn;

/// Epochs of before that the log remembers. A node that has slept through more of them makes one more.
const FORMER_MAX: i32 = 32;

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
    /// Those of before.
    pub former: Vec<String>,
    /// The cluster that the log was written by.
    pub log_sysid: i64,
    /// The cluster that it is in.
    pub sysid: i64,
    /// Whether it is a copy: it was restored from a dump, or its database is not the one that it was written in.
    pub is_copy: bool,
    /// The WAL timeline the log was last seen on.
    pub log_timeline: String,
    /// The WAL timeline now.
    pub timeline: String,
}

/// Reads the identity of the log and of its cluster.
///
/// # Errors
/// [`LogError::Broken`] on a standby: its snapshots do not show which transactions are running.
pub async fn identity(conn: &mut Conn) -> Result<Identity, LogError> {
    if sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *conn).await? {
        return Err(LogError::Broken("this Postgres is a standby; connect crewcast to the primary"));
    }
    // A dump is restored in this order: rows, indexes, triggers.
    let is_whole = "select exists (select from pg_trigger where tgrelid = 'crewcast.commits'::regclass
                                   and tgname = 'commit_durably')";
    if !sqlx::query_scalar::<_, bool>(is_whole).fetch_one(&mut *conn).await? {
        return Err(LogError::Broken("it is being restored"));
    }
    Ok(sqlx::query_as(
        "select log.epoch, log.former, cluster.sysid as log_sysid, control.system_identifier as sysid,
                cluster.xmin <> cluster.written or cluster.database <> here.oid as is_copy, log.timeline as log_timeline,
                substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline
         from crewcast.log, crewcast.cluster, pg_control_system() as control, pg_database as here
         where here.datname = current_database()",
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
    conn: &mut Conn,
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
    let ours = last.map(|(last, _)| last.epoch().as_str());
    begin(conn, &identity.epoch, ours).await?;
    Ok(Some(reason))
}

/// Why the positions of before are worth nothing any more, if they are.
async fn broken(
    conn: &mut Conn,
    identity: &Identity,
    failover: Failover,
    last: Option<(&Position, &[Proof])>,
) -> Result<Option<&'static str>, LogError> {
    if identity.sysid != identity.log_sysid {
        return Ok(Some("the log was restored into another cluster"));
    }
    if identity.is_copy {
        return Ok(Some("the log was restored from a copy"));
    }
    if identity.timeline != identity.log_timeline && failover == Failover::Lossy {
        return Ok(Some("a standby was promoted"));
    }
    let seen = match super::look(conn, &[]).await {
        Err(LogError::Ahead) => return Ok(Some("the log is ahead of its cluster")),
        seen => seen?,
    };
    let now = seen.peek();
    let Some((last, proof)) = last else { return Ok(None) };
    let ours = last.epoch().as_str();
    if identity.former.iter().any(|former| former == ours) {
        // Whatever ended it, somebody has seen to it.
        return Ok(None);
    }
    if identity.epoch != ours {
        return Ok(Some("the database was set back to before its epoch"));
    }
    let intact = now.snapshot.includes(last.reach()) && holds(conn, now, proof).await?;
    Ok((!intact).then_some("the database was set back"))
}

/// Whether these events are still in the log, under the same transactions, but for those that were let go.
async fn holds(conn: &mut Conn, now: &Now, proof: &[Proof]) -> sqlx::Result<bool> {
    let kept: Vec<&Proof> = proof.iter().filter(|proof| !now.floor.contains(proof.xact.cast_unsigned())).collect();
    let found: sqlx::Result<i64> = sqlx::query_scalar(
        "select count(*) from unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) as proof (seq, xact, at)
         where exists (select from crewcast.events event
                       where event.seq = proof.seq and event.xact = proof.xact and event.at = proof.at)",
    )
    .bind(kept.iter().map(|proof| proof.seq).collect::<Vec<_>>())
    .bind(kept.iter().map(|proof| proof.xact).collect::<Vec<_>>())
    .bind(kept.iter().map(|proof| proof.at).collect::<Vec<_>>())
    .fetch_one(conn)
    .await;
    let found = match found {
        // A damaged row is no sign of another history.
        Err(error) if is_of_a_row(&error) => return Ok(true),
        found => found?,
    };
    Ok(usize::try_from(found) == Ok(kept.len()))
}

/// Begins a new epoch if the log still has the epoch `old`; returns the epoch now in force. A log that another cluster
/// wrote, that is a copy, or that is ahead of its cluster, is adopted in the same transaction: its count goes on above the
/// highest id it holds.
///
/// # Errors
/// When Postgres does not answer or the role may not write the log.
pub async fn renew(conn: &mut Conn, old: &str) -> Result<String, LogError> {
    begin(conn, old, None).await
}

/// As [`renew`], by a node whose own epoch is `ours`. If the log does not know that one, it was set back to before it, and
/// the other nodes that went on to it need not say so again.
async fn begin(conn: &mut Conn, old: &str, ours: Option<&str>) -> Result<String, LogError> {
    conn.begin().await?;
    // What is said of it must hold through a crash, whatever the role sets.
    let durably =
        "select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'";
    sqlx::query(durably).execute(&mut *conn).await?;
    // Two nodes that notice at once: the second waits here, and then finds the epoch changed.
    let (epoch, floor): (String, String) =
        sqlx::query_as("select epoch, floor from crewcast.log for update").fetch_one(&mut *conn).await?;
    if epoch != old {
        conn.rollback().await?;
        return Ok(epoch);
    }
    adopt(conn, &super::snapshot(&floor)?).await?;
    let former: Vec<&str> = [old].into_iter().chain(ours.filter(|ours| *ours != old)).collect();
    let epoch = sqlx::query_scalar(
        "update crewcast.log
         set epoch = left(gen_random_uuid()::text, 8), timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
             former = ($1 || former)[1:$2]
         returning epoch",
    )
    .bind(former)
    .bind(FORMER_MAX)
    .fetch_one(&mut *conn)
    .await?;
    conn.commit().await?;
    Ok(epoch)
}

/// Makes a log that is not at home here be so.
///
/// Until that is done `append` refuses, so no transaction is under way that would store an id by the old count. The shift
/// starts at `xmin`, not at the next id: a transaction that runs already may publish once this commits. In a cluster that
/// the log's count is of, the count stays as it is: it has gone on since whatever copy was made, and in a log that is at
/// home publishers are under way.
async fn adopt(conn: &mut Conn, floor: &Snapshot) -> sqlx::Result<()> {
    sqlx::query(
        "update crewcast.cluster
         set sysid = home.sysid, database = home.database, written = pg_current_xact_id()::xid,
             ofs = case when cluster.sysid <> home.sysid or home.next + cluster.ofs <= home.top
                        then greatest(ofs, home.top + 1 - home.oldest) else ofs end
         from (select (select system_identifier from pg_control_system()) as sysid,
                      (select oid from pg_database where datname = current_database()) as database,
                      greatest((select max(xact) from crewcast.commits), $1) as top,
                      pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest,
                      pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) as home
         where cluster.sysid <> home.sysid or cluster.database <> home.database or cluster.xmin <> cluster.written
            or home.next + cluster.ofs <= home.top",
    )
    .bind(floor.xmax().cast_signed() - 1)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "select setval('crewcast.event_seq', newest.seq)
         from crewcast.event_seq, (select max(seq) as seq from crewcast.events) as newest
         where newest.seq >= last_value",
    )
    .execute(conn)
    .await?;
    Ok(())
}
