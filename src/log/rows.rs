//! One row that cannot be read is not a Postgres that is away.
//!
//! A disk loses a page, a value's parts are missing, a row holds what no text may hold: Postgres, or the decoding of what it
//! sent, fails at that row, each time. Whoever reads rows in a loop must tell that from a lost connection, or it asks again
//! for ever and takes along all that the other rows would have given.

use sqlx::{
    Executor as _, Postgres,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use crate::db::Conn;

/// A row, or some rows, that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read: {error}", seq.map_or_else(|| "some event".to_owned(), |seq| format!("event {seq}")))]
pub struct Damage {
    /// The event's number; none where not even that is known.
    pub seq: Option<i64>,
    /// What Postgres says.
    pub error: sqlx::Error,
}

/// Whether an error is of something that was read, so that other rows may well be fine: their number is to be read without
/// this one. All others are of the connection, the server or the statement.
///
/// The classes are those of Postgres's documentation, appendix A: a value that is none of its type or no text (22), corrupt
/// data and what it leads to (XX), a row that has grown past a limit (54), and a page or file that the system does not give
/// (58030, 58P01).
pub fn is_of_a_row(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["22", "XX", "54"].iter().any(|class| code.starts_with(class)) || ["58030", "58P01"].contains(&&*code)
        }),
        _ => false,
    }
}

/// Runs a statement whose failure leaves the transaction that `conn` is in as it was.
pub(super) async fn apart(conn: &mut Conn, statement: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
    (&mut *conn).execute("savepoint event").await?;
    match statement.fetch_all(&mut *conn).await {
        Ok(rows) => {
            (&mut *conn).execute("release event").await?;
            Ok(rows)
        }
        Err(error) => {
            conn.rollback_to("event").await?;
            Err(error)
        }
    }
}
