//! What is on disk: an event or a position goes out only once everything that it was read from has been flushed.
//!
//! A snapshot shows a transaction from the moment that its commit record is *in* the write-ahead log (WAL). Whether it is
//! also on disk is its own `synchronous_commit`'s business, and no reader can tell which one it had. So a reader takes the
//! insert position of the WAL with its snapshot, which lies behind every commit record that the snapshot shows, and
//! gives away nothing of what it read before the flush position has passed it. [`Seen`] holds it back until then.

/// The columns that make a [`Seen`] of a statement's row. They stand in the statement that takes the snapshot: what they call
/// is evaluated after that was taken.
macro_rules! wal_columns {
    () => {
        "(pg_current_wal_insert_lsn() - '0/0')::bigint as inserted,
         (pg_current_wal_flush_lsn() - '0/0')::bigint as flushed"
    };
}
pub(super) use wal_columns;

use crate::db::Conn;

/// A byte of the WAL, counted from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, sqlx::Type)]
#[sqlx(transparent)]
pub struct Lsn(i64);

/// What a statement saw, until it is on disk.
#[derive(Debug)]
#[must_use]
pub struct Seen<T> {
    value: T,
    wal: Wal,
}

/// How far the WAL was when a statement ran.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(super) struct Wal {
    /// Behind every commit that the statement's snapshot shows.
    inserted: Lsn,
    flushed: Lsn,
}

impl<T> Seen<T> {
    pub(super) fn new(value: T, wal: Wal) -> Self {
        Self { value, wal }
    }

    /// How far the WAL must be on disk before any of it goes out; none if it was so far already.
    pub fn waits_for(&self) -> Option<Lsn> {
        let Wal { inserted, flushed } = self.wal;
        (flushed < inserted).then_some(inserted)
    }

    /// What was seen, for judging it: nothing of it goes out.
    pub fn peek(&self) -> &T {
        &self.value
    }

    /// What was seen, for whoever has made sure that it is on disk.
    pub fn on_disk(self) -> T {
        self.value
    }
}

/// How far the WAL is on disk now.
///
/// # Errors
/// When Postgres does not answer.
pub async fn flush_position(conn: &mut Conn) -> sqlx::Result<Lsn> {
    sqlx::query_scalar("select (pg_current_wal_flush_lsn() - '0/0')::bigint").fetch_one(conn).await
}

/// Flushes all that is in the WAL now, by a commit that has something to flush: a message which nobody reads. It needs no
/// right and no `wal_level`, and no standby is waited for. The setting is local to the statement, which is its own
/// transaction: `conn` is in none.
///
/// # Errors
/// When Postgres refuses or does not answer.
pub async fn flush(conn: &mut Conn) -> sqlx::Result<()> {
    let statement = "select set_config('synchronous_commit', 'local', true),
                            pg_logical_emit_message(true, 'crewcast', 'flush')";
    sqlx::query(statement).execute(conn).await.map(|_| ())
}
