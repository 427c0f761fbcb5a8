//! Sweeps: rows that have had their time are deleted, a bounded number at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Db;

/// How often each table is swept.
const EVERY: Duration = Duration::from_secs(60);

/// Rows that one statement deletes.
const ROWS: i64 = 5000;

/// What deletes the old rows of one table.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// Deletes rows older than `$1` seconds, `$2` at most. Other nodes sweep as well: it skips the rows that they have locked.
    pub statement: &'static str,
    /// How old they must be.
    pub age: Duration,
}

impl Sweep {
    /// Deletes what is old until nothing is left of it.
    ///
    /// # Errors
    /// When Postgres refuses; what was deleted until then stays deleted.
    pub async fn all(&self, db: &Db) -> sqlx::Result<()> {
        loop {
            let mut conn = db.acquire_raw().await?;
            let delete = sqlx::query(self.statement).bind(self.age.as_secs_f64()).bind(ROWS);
            if delete.execute(&mut conn).await?.rows_affected() < ROWS.unsigned_abs() {
                return Ok(());
            }
        }
    }
}

/// Sweeps now and then, until `stop`.
pub async fn keep_sweeping(db: Db, sweeps: Vec<Sweep>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        for sweep in &sweeps {
            match stop.run_until_cancelled(sweep.all(&db)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, "old rows are left for the next time"),
                None => return,
            }
        }
    }
}
