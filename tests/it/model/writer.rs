//! Those who change things: in SQL transactions of every shape, over REST, and some who only take transaction ids.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use super::{Gate, Ledger, Rng, SHARED, TOPICS};
use crate::support::{Client, PATIENCE, connect};

/// Changes counters and publishes each change in the same transaction.
pub(super) struct Writer {
    name: &'static str,
    url: String,
    conn: PgConnection,
    rng: Rng,
    ledger: Arc<Mutex<Ledger>>,
    /// How many events it has published so far, whatever became of them.
    published: usize,
    /// The marks of the transaction under way.
    pending: Vec<String>,
}

enum Outcome {
    Committed,
    RolledBack,
    Unknown,
}

impl Writer {
    pub(super) async fn new(name: &'static str, url: &str, rng: Rng, ledger: Arc<Mutex<Ledger>>) -> Self {
        let conn = connect(url).await;
        Self { name, url: url.to_owned(), conn, rng, ledger, published: 0, pending: Vec::new() }
    }

    /// One transaction after the other until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken, gate: Gate, losing: bool) {
        while !stop.is_cancelled() {
            let _writing = gate.read().await;
            if let Err(error) = self.transaction().await {
                assert!(losing, "{}: {error}", self.name);
                self.recover().await;
            }
        }
    }

    async fn transaction(&mut self) -> sqlx::Result<()> {
        if let Err(error) = self.changes().await {
            self.settle(Outcome::RolledBack);
            return Err(error);
        }
        match self.rng.below(10) {
            0 | 1 => self.roll_back().await,
            2 | 3 => {
                self.prepare().await?;
                self.idle().await.inspect_err(|_| self.settle_unknown())?;
                let rolls_back = self.rng.one_in(4);
                self.decide(rolls_back).await
            }
            _ => self.commit().await,
        }
    }

    /// Everything up to the end of the transaction.
    async fn changes(&mut self) -> sqlx::Result<()> {
        self.execute("begin").await?;
        if self.rng.one_in(2) {
            self.execute("set local synchronous_commit = off").await?;
        }
        if self.rng.one_in(2) {
            self.execute("select pg_current_xact_id()").await?;
            self.idle().await?;
        }
        if self.rng.one_in(2) {
            // Its seq and its id are drawn long before the commit, and nobody waits for its lock.
            self.publish(self.name).await?;
            self.idle().await?;
        }
        // In one order, so that writers wait for each other and never in a circle.
        for entity in SHARED {
            if self.rng.one_in(3) {
                self.change(entity).await?;
            }
        }
        if self.rng.one_in(4) {
            self.execute("set local synchronous_commit = off").await?;
        }
        Ok(())
    }

    async fn change(&mut self, entity: &str) -> sqlx::Result<()> {
        match self.rng.below(4) {
            0 => {
                let before = self.pending.len();
                self.execute("savepoint s").await?;
                self.publish(entity).await?;
                self.execute("rollback to savepoint s").await?;
                let undone = self.pending.split_off(before);
                self.ledger.lock().unwrap().rolled_back.extend(undone);
            }
            1 => {
                self.execute("savepoint s").await?;
                self.publish(entity).await?;
                self.execute("release savepoint s").await?;
            }
            _ => self.publish(entity).await?,
        }
        Ok(())
    }

    /// Counts an entity up and tells one or two rooms.
    pub(super) async fn publish(&mut self, entity: &str) -> sqlx::Result<()> {
        let n: i64 = sqlx::query_scalar("update public.counters set n = n + 1 where entity = $1 returning n")
            .bind(entity)
            .fetch_one(&mut self.conn)
            .await?;
        let (one, other) = (self.rng.below(TOPICS.len()), self.rng.below(TOPICS.len()));
        let mark = format!("{}-{}", self.name, self.published);
        self.published += 1;
        self.pending.push(mark.clone());
        // White space as a publisher may write it.
        let data = format!("{{ \"entity\" : \"{entity}\",\n \"n\" : {n}, \"mark\":\"{mark}\", \"text\": \"a  b\" }}");
        sqlx::query("select crewcast.publish($1, 'test:count', $2::json)")
            .bind([TOPICS[one], TOPICS[other]].as_slice())
            .bind(data)
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn execute(&mut self, statement: &str) -> sqlx::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut self.conn).await?;
        Ok(())
    }

    /// Some round trips, while others go on.
    async fn idle(&mut self) -> sqlx::Result<()> {
        for _ in 0..self.rng.below(8) {
            self.execute("select 1").await?;
        }
        Ok(())
    }

    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        let done = self.execute("commit").await;
        self.settle_as(Outcome::Committed, done)
    }

    pub(super) async fn roll_back(&mut self) -> sqlx::Result<()> {
        let done = self.execute("rollback").await;
        self.settle(Outcome::RolledBack);
        done
    }

    /// The first phase of two.
    pub(super) async fn prepare(&mut self) -> sqlx::Result<()> {
        let done = self.execute(&format!("prepare transaction '{}'", self.name)).await;
        if done.is_err() {
            self.settle_unknown();
        }
        done
    }

    /// The second phase.
    pub(super) async fn decide(&mut self, rolls_back: bool) -> sqlx::Result<()> {
        let (verb, outcome) =
            if rolls_back { ("rollback", Outcome::RolledBack) } else { ("commit", Outcome::Committed) };
        let done = self.execute(&format!("{verb} prepared '{}'", self.name)).await;
        self.settle_as(outcome, done)
    }

    fn settle_as(&mut self, outcome: Outcome, done: sqlx::Result<()>) -> sqlx::Result<()> {
        self.settle(if done.is_ok() { outcome } else { Outcome::Unknown });
        done
    }

    fn settle_unknown(&mut self) {
        self.settle(Outcome::Unknown);
    }

    fn settle(&mut self, outcome: Outcome) {
        let mut ledger = self.ledger.lock().unwrap();
        let marks = match outcome {
            Outcome::Committed => &mut ledger.committed,
            Outcome::RolledBack => &mut ledger.rolled_back,
            Outcome::Unknown => &mut ledger.unknown,
        };
        marks.extend(self.pending.drain(..));
    }

    /// A new connection; what was prepared over the old one is committed.
    async fn recover(&mut self) {
        while let Err(error) = self.commit_prepared().await {
            println!("{}: {error}", self.name);
        }
    }

    async fn commit_prepared(&mut self) -> sqlx::Result<()> {
        self.conn = reconnect(&self.url).await;
        let statement = "select exists (select from pg_prepared_xacts where gid = $1)";
        if sqlx::query_scalar(statement).bind(self.name).fetch_one(&mut self.conn).await? {
            self.execute(&format!("commit prepared '{}'", self.name)).await?;
        }
        Ok(())
    }
}

/// A connection, as soon as Postgres is there.
async fn reconnect(url: &str) -> PgConnection {
    let connecting = async {
        loop {
            if let Ok(conn) = PgConnection::connect(url).await {
                return conn;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("Postgres does not come back")
}

/// Changes a project over REST, at either node.
pub(super) async fn patch(
    clients: Vec<Client>,
    project: String,
    mut rng: Rng,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    gate: Gate,
    losing: bool,
) {
    for nth in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let _writing = gate.read().await;
        let mark = format!("{project}-{nth}");
        let marks = ["name", "notes"].map(|field| format!("{mark}/{field}"));
        let client = &clients[rng.below(clients.len())];
        let body = json!({ "name": mark, "notes": mark });
        let (status, answer) = client.send(Method::PATCH, &format!("/v1/projects/{project}"), body).await;
        if status == StatusCode::OK {
            ledger.lock().unwrap().committed.extend(marks);
        } else {
            assert!(losing && status.is_server_error(), "{status}: {answer}");
            ledger.lock().unwrap().unknown.extend(marks);
            // Not a request in every free moment while Postgres is away.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Takes transaction ids and rolls back, without writing anything.
pub(super) async fn burn(url: String, stop: CancellationToken, gate: Gate, losing: bool) {
    let mut conn = connect(&url).await;
    while !stop.is_cancelled() {
        let _writing = gate.read().await;
        if let Err(error) = take_ids(&mut conn, 20).await {
            assert!(losing, "{error}");
            conn = reconnect(&url).await;
        }
    }
}

/// This many ids, each rolled back.
pub(super) async fn take_ids(conn: &mut PgConnection, n: u32) -> sqlx::Result<()> {
    let statement =
        format!("do $$ begin for i in 1..{n} loop perform pg_current_xact_id(); rollback; end loop; end $$");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?;
    Ok(())
}
