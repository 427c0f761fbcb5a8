//! The event log: appended to inside the transactions that change things, read exactly.
//!
//! Events are rows of `crewcast.events`, written by one SQL function, [`crewcast.append`](append), inside whatever
//! transaction makes the change they tell of. Transactions become visible in an order that none of their numbers
//! shows: neither `seq` nor the transaction's id is a position, since both are drawn long before the commit. What a
//! reader has seen is a *set of transactions*, and that is what a [`Position`] is.
//!
//! # Why this is exact
//!
//! Each step names its source: *doc* is Postgres's documentation, *src* its source tree.
//!
//! 1. **A snapshot is a set of transactions.** `pg_current_snapshot()` gives `xmin:xmax:xip`: every id below `xmax` that
//!    is not in `xip` had ended, every other one had not (doc 9.27 "Transaction ID and Snapshot Information", table
//!    "Snapshot Components"). `xip` holds only top-level ids, and `pg_current_xact_id()` is the top-level id also inside
//!    savepoints (same page), so a row stored with it is judged as its transaction is, however deep it was written. The
//!    ids have 64 bits and do not wrap. A prepared transaction stays in `xip` until it is committed or rolled back (src
//!    `twophase.c`: it is a dummy entry of the same array that snapshots are taken from).
//! 2. **The set and the rows belong together.** One SQL statement sees one snapshot at READ COMMITTED and above (doc
//!    13.2.1), and `pg_current_snapshot()` is `STABLE`: it shows the statement's own. So [`NOW`] is one plain `SELECT` that
//!    calls no volatile function which reads: inside such a function every statement would take a snapshot of its own
//!    (doc 38.7). Events may be read by later statements: a later snapshot sees all that an earlier one saw,
//!    and the cut to the set removes the rest.
//! 3. **No id of one's own.** A transaction's own id is not in the `xip` of its snapshots (src `procarray.c`,
//!    `GetSnapshotData` skips the caller's own entry). A position that was taken by a transaction with an id could claim
//!    an id that never commits, so [`look`] refuses one (`pg_current_xact_id_if_assigned()`).
//! 4. **What goes out is on disk.** A transaction is visible once its commit record is in the WAL (src `xact.c`:
//!    `RecordTransactionCommit` comes before `ProcArrayEndTransaction`); with `synchronous_commit = off` it is so before that
//!    record is flushed (doc 28.4 "Asynchronous Commit"), and a crash may take it back. `append` raises `off` to `on`, and a
//!    deferred constraint trigger does so again at commit, but neither binds anybody: `SET CONSTRAINTS ALL IMMEDIATE` lets the
//!    setting be lowered after the trigger, and an apply worker of logical replication undoes what a trigger has set when
//!    it goes back to its own role (src `usercontext.c`, `RestoreUserContext`). They save time. The promise is the
//!    reader's: [`NOW`] gives the insert position of the WAL too, which it takes after its snapshot, so behind every commit
//!    record that the snapshot shows (src `xlog.c`: a record's place is reserved before `XLogInsert` returns,
//!    `GetXLogInsertRecPtr` gives the end of what is reserved), and nothing of the answer leaves [`wal::Seen`] before the
//!    flush position has passed it. If nobody else's commit brings it there, one of our own does: it has an id and a record
//!    of its own, a message, without which a commit flushes nothing (src `xact.c`: `wrote_xlog && markXidCommitted`; `message.c`
//!    asks for no right and no `wal_level`). Later statements that read pages are cut to what was on disk. What is known to
//!    be on disk is kept as a position, so that a node asks once for each event and not for each reader.
//! 5. **The clamp.** Ids are handed out without WAL (src `varsup.c`: `GetNewTransactionId` logs nothing), and after a crash
//!    the counter starts again behind the last id that the WAL speaks of. Ids that only ever lived in memory are given out
//!    twice: a raw `xmax` may promise that a transaction of the future was already seen. A position's `xmax` is therefore
//!    one more than the highest id *visible in the same snapshot* in `commits` (or the floor's): that id is on disk by
//!    step 4, so nothing at or below it is ever handed out again. What the clamp leaves out has published nothing
//!    visible: leaving it out of the set costs nothing and is true.
//! 6. **Transactions first.** [`NOW`] asks `commits`, which has one row for each publishing transaction, which of them are
//!    new. Asking `events` would walk the rows of every open transaction at every read. One row is enough since a
//!    transaction is visible as a whole (doc 13.2).
//! 7. **Entity order.** Two transactions that change one row are ordered by that row's lock, held until the end (doc
//!    13.3.2). Events are appended after the write, so their seqs follow that order; sequences with `cache 1` only go up
//!    (doc `CREATE SEQUENCE`). If a snapshot shows the second change, it shows the first, for the second could not have
//!    been made before the first had ended. So reads in time order, and seq order inside a read, keep it.
//! 8. **Inside a read** from `A` to `B`, in seq order, the position after event `k` is "`A`, and of `B` what has seq ≤ k":
//!    `A~B~k`. A client cut there gets the rest of `B`, then goes on from `B`. `B` is never cut to some of its
//!    transactions: a set that lacks a transaction which a member waited for is no snapshot, and breaks step 7.
//! 9. **Order of positions.** Snapshots of one primary are ordered by inclusion: an ended transaction has ended for every
//!    later snapshot. A node that is brought a position which its own does not include has merely not looked since; after
//!    a read that began later it does. If not even then, the position is none of this log's. A standby shows an empty
//!    `xip` (src `procarray.c`: in recovery the running ids are kept among the subtransactions), so a connection to one is
//!    refused by [`epoch::verify`].
//! 10. **The floor.** What the floor contains may be deleted. Every statement that reads a page returns the floor of its
//!     own snapshot, and the page counts only if the position it reads from includes that floor: a check before the read
//!     would miss a deletion between two pages. How the floor rises, and why nothing is deleted too early, is told in
//!     [`retention`].
//! 11. **Another log.** A log that was restored into another cluster counts from elsewhere; one that was restored into the
//!     same cluster, over itself or beside itself, or copied there, goes on from where the copy was made; a database that was
//!     set back counts again what it counted before. All are told by [`epoch`]: the log goes on under a new epoch, and every
//!     position of before is foreign. The one row of `crewcast.cluster` says where the log is at home: in which cluster and
//!     database, and *which transaction wrote that row*. A row that a restore has written is of the restore's
//!     transaction (doc 5.6 "System Columns", `xmin`; freezing leaves it readable: src `heapam.c` since 9.4,
//!     `HEAP_XMIN_FROZEN`), and what Postgres copies file by file is another database or another cluster. `append` reads the
//!     row anyway, and refuses to write to a log that is not at home; [`NOW`] refuses to take a position of it.
//!
//! 12. **A row that cannot be read.** A disk may lose what a row needs. [`Reader`] then reads event by event. One whose
//!     payload is lost goes out as a reference, for what else it has says whose it is and where it stands; of one of which
//!     nothing is left, or of a page of them, nobody is given a position that claims it: the pump goes on from the end of the
//!     read, and each session reads that for itself, by rooms, whose index is elsewhere. A session that meets the row there
//!     is told `unreadable`, and begins anew.
//!
//! P3 holds for a caller of `publish` that publishes after the write whose lock orders it. It does not for one that
//! publishes first, in a CTE that does not depend on the write, in a `BEFORE INSERT` trigger, or under an advisory lock that is
//! released before the commit.

pub mod epoch;
pub mod event;
mod merge;
pub mod named;
pub mod position;
mod read;
pub mod retention;
pub mod rows;
mod strips;
pub mod wal;

use std::ops::Range;

use sqlx::{FromRow as _, Row as _};

use self::wal::{Wal, wal_columns};
pub use self::{
    event::{Event, Meta, NewEvent},
    merge::NUMBERS,
    position::{Epoch, Position, Reading, Snapshot},
    read::{
        BODIES, KEYS, KEYS_MAX, LOOKED_MAX, META, OF_KINDS, PAGE_MAX, Page, Reader, Scope, TRANSACTIONS, legs,
        of_kinds, one,
    },
    rows::Damage,
    strips::{STRIP, STRIPS},
    wal::Seen,
};

use crate::db::Conn;

/// More transactions than this at once are not routed one by one: the streams read them from the log.
pub const FRESH_MAX: i64 = 100_000;

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The position lies below the floor: some of what follows it was deleted.
    #[error("the position is older than what the log still holds")]
    TooOld,
    /// The log goes on under another epoch.
    #[error("the position was made by another log")]
    Foreign,
    /// The log has ids that its cluster has not handed out yet: it was restored and must be adopted.
    #[error("the event log is ahead of its Postgres cluster")]
    Ahead,
    /// A position was asked for in a transaction that writes, or the log's own rows are not as we write them.
    #[error("the event log cannot be read: {0}")]
    Broken(&'static str),
    /// Some of what was asked for cannot be read, now and later.
    #[error(transparent)]
    Unreadable(Damage),
    /// Postgres did not answer.
    #[error(transparent)]
    Db(#[from] sqlx::Error),
}

/// The log as one statement saw it.
#[derive(Debug, Clone)]
pub struct Now {
    /// The epoch of every position taken here.
    pub epoch: Epoch,
    /// All that has been published, as a set of transactions.
    pub snapshot: Snapshot,
    /// What can still be resumed includes this.
    pub floor: Snapshot,
    /// The publishing transactions in the ranges that were asked about, at most [`FRESH_MAX`] + 1.
    pub fresh: Vec<i64>,
}

impl Now {
    /// The position of this moment.
    pub fn position(&self) -> Position {
        Position::settled(self.epoch.clone(), self.snapshot.clone())
    }
}

/// The one statement that takes positions. `$1`, `$2`: half-open ranges of ids to look for publishing transactions in;
/// `$3`: how many of those at most.
pub const NOW: &str = concat!(
    "select pg_current_snapshot()::text as snapshot,
           pg_current_xact_id_if_assigned() is not null as writing,
           cluster.ofs, cluster.xmin = cluster.written as is_home, log.epoch, log.floor,
           (select max(xact) from crewcast.commits) as top,
           array(select fresh.xact
                 from unnest($1::bigint[], $2::bigint[]) as range (lo, hi)
                 cross join lateral (select xact from crewcast.commits
                                     where xact >= range.lo and xact < range.hi
                                     order by xact limit $3) as fresh
                 limit $3) as fresh,
           ",
    wal_columns!(),
    " from crewcast.cluster, crewcast.log"
);

/// The log now, with the publishing transactions in `ranges`. For the position to belong to data that is read on `conn` as
/// well, the transaction is `REPEATABLE READ READ ONLY`.
///
/// # Errors
/// [`LogError::Ahead`] when the log was restored into a cluster that counts from below it.
pub async fn look(conn: &mut Conn, ranges: &[Range<u64>]) -> Result<Seen<Now>, LogError> {
    let (lo, hi) = bounds(ranges);
    let row = sqlx::query(NOW).bind(lo).bind(hi).bind(FRESH_MAX + 1).fetch_one(conn).await?;
    if row.try_get("writing")? {
        return Err(LogError::Broken("a position was taken by a transaction that writes"));
    }
    if !row.try_get("is_home")? {
        return Err(LogError::Broken("it was restored, and nobody has adopted it yet"));
    }
    let floor = snapshot(row.try_get("floor")?)?;
    let top = row.try_get::<Option<i64>, _>("top")?.unwrap_or(0).cast_unsigned().max(floor.xmax() - 1);
    let raw = position::RawSnapshot::parse(row.try_get("snapshot")?, row.try_get("ofs")?);
    let raw = raw.map_err(|_| LogError::Broken("not a snapshot"))?;
    let epoch = row.try_get::<&str, _>("epoch")?.parse().map_err(|_| LogError::Broken("the epoch is not one"))?;
    let now =
        Now { epoch, snapshot: raw.clamp(top).map_err(|_| LogError::Ahead)?, floor, fresh: row.try_get("fresh")? };
    Ok(Seen::new(now, Wal::from_row(&row)?))
}

/// What can still be resumed includes this.
///
/// # Errors
/// When Postgres does not answer.
pub async fn floor(conn: &mut Conn) -> Result<Snapshot, LogError> {
    let floor: String = sqlx::query_scalar("select floor from crewcast.log").fetch_one(conn).await?;
    snapshot(&floor)
}

fn snapshot(floor: &str) -> Result<Snapshot, LogError> {
    floor.parse().map_err(|_| LogError::Broken("the floor is not a snapshot"))
}

/// Appends events to the log in the transaction on `conn`, in their order, and returns their seqs. Call it after the
/// rows that they speak of were written.
///
/// # Errors
/// When Postgres refuses, as it does while the log was not adopted by this cluster.
pub async fn append(conn: &mut Conn, events: &[NewEvent], mutation_id: Option<&str>) -> sqlx::Result<Vec<i64>> {
    // Room names hold no comma: a list of lists travels as a list of joined lists.
    let rooms: Vec<String> = events.iter().map(|event| event.rooms.join(",")).collect();
    let kinds: Vec<&str> = events.iter().map(|event| &*event.kind).collect();
    let data: Vec<&str> = events.iter().map(|event| event.data.get()).collect();
    let versions: Vec<Option<i64>> = events.iter().map(|event| event.version).collect();
    sqlx::query_scalar(
        "select crewcast.append(string_to_array(event.rooms, ','), event.type, event.data::json, event.version, $5)
         from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as event (rooms, type, data, version)",
    )
    .bind(rooms)
    .bind(kinds)
    .bind(data)
    .bind(versions)
    .bind(mutation_id)
    .fetch_all(conn)
    .await
}

/// Ranges as the two arrays that a statement takes. Stored ids fit a `bigint`.
fn bounds(ranges: &[Range<u64>]) -> (Vec<i64>, Vec<i64>) {
    ranges.iter().map(|range| (range.start.cast_signed(), range.end.cast_signed())).unzip()
}
