//! Who asks whether Postgres is there, on a connection that nobody else uses.
//!
//! Nobody can tell a Postgres that is frozen from one that takes its time by waiting for an answer of one's own. So one task
//! asks for nothing, several times a second, and for no longer than that may take. Where the answer does not come it tries a
//! new connection beside, since a firewall may have forgotten the old one; when that is not answered either, Postgres is out
//! of reach, and everybody who waits is told. From then on it tries again until it is answered.
//!
//! The same connection tells who waits for an answer in vain: `pg_stat_activity` shows whether a process of Postgres works.

use std::{collections::HashSet, time::Duration};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Conn, Db, MACHINE,
    session::{Line, silent},
};

/// How often it is asked.
const EVERY: Duration = Duration::from_millis(250);

/// Without an answer after this long a new connection is tried beside.
const ANEW_AFTER: Duration = Duration::from_millis(500);

/// Without an answer after this long Postgres is out of reach: within two seconds of whatever happened.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1400);

/// Which of these processes work. `$1`: their numbers. A server that does not count what they do says so of all of them. One that
/// waits for its client does not: it has sent what nobody takes.
const WORKING: &str = "
    select asked.pid from unnest($1::int[]) as asked (pid)
    where exists (select from pg_stat_activity as process
                  where process.pid = asked.pid and process.state is distinct from 'idle'
                    and process.wait_event_type is distinct from 'Client'
                    and process.state is distinct from 'idle in transaction'
                    and process.state is distinct from 'idle in transaction (aborted)')";

impl Db {
    /// Watches over Postgres until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        let mut conn = None;
        while !stop.is_cancelled() {
            let look = async {
                self.look(&mut conn).await;
                tokio::select! {
                    () = sleep(EVERY) => {}
                    () = self.reach.look.notified() => {}
                }
            };
            stop.run_until_cancelled(look).await;
        }
    }

    async fn look(&self, conn: &mut Option<Conn>) {
        let suspects = self.reach.take_suspects();
        let pids: Vec<i32> = suspects.iter().map(|(pid, _)| *pid).collect();
        let found = timeout(ANSWER_TIMEOUT, self.either(conn, &pids)).await.unwrap_or_else(|_| Err(silent()));
        match found {
            Ok(working) => {
                self.found(None);
                for (pid, tell) in suspects {
                    // Whoever asked may have been answered meanwhile.
                    let _ = tell.send(working.contains(&pid));
                }
            }
            Err(error) => {
                *conn = None;
                self.found(Some(error));
            }
        }
        self.pool.reap();
        self.own.reap();
    }

    /// Asks on the old connection, and beside that on a new one when it does not answer.
    async fn either(&self, old: &mut Option<Conn>, pids: &[i32]) -> sqlx::Result<HashSet<i32>> {
        let broken = Notify::new();
        let mut taken = old.take();
        let first = async {
            let working: sqlx::Result<HashSet<i32>> = match &mut taken {
                Some(conn) => ask(conn, pids).await,
                None => Err(silent()),
            };
            if working.is_err() {
                broken.notify_one();
                std::future::pending::<()>().await;
            }
            working
        };
        let second = async {
            let _ = timeout(ANEW_AFTER, broken.notified()).await;
            let line = Line::open(&self.options, MACHINE, ANSWER_TIMEOUT).await.map_err(sqlx::Error::from)?;
            let mut conn = Conn::new(line, MACHINE, None, None);
            let working = ask(&mut conn, pids).await?;
            Ok::<_, sqlx::Error>((conn, working))
        };
        let (fresh, working) = tokio::select! {
            biased;
            working = first => (None, working?),
            asked = second => {
                let (conn, working) = asked?;
                (Some(conn), working)
            }
        };
        *old = fresh.or(taken);
        Ok(working)
    }

    fn found(&self, error: Option<sqlx::Error>) {
        let is_news = self.reach.set(error.is_none());
        self.metrics.postgres_reachable.set(i64::from(error.is_none()));
        match error {
            Some(error) if is_news => {
                self.metrics.postgres_outages.inc();
                tracing::warn!(%error, "lost Postgres; streams stay open");
            }
            None if is_news => tracing::info!("Postgres is back"),
            _ => {}
        }
    }
}

/// Which of these processes work; where there are none, whether there is an answer.
async fn ask(conn: &mut Conn, pids: &[i32]) -> sqlx::Result<HashSet<i32>> {
    if pids.is_empty() {
        conn.ping().await?;
        return Ok(HashSet::new());
    }
    let working: Vec<i32> = sqlx::query_scalar(WORKING).bind(pids).fetch_all(conn).await?;
    Ok(working.into_iter().collect())
}
