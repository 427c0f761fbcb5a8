//! A connection in use. Every statement of the service runs through one, whatever module asks it.
//!
//! **A statement is given up in Postgres, too.** Whoever waits for an answer may go away in the middle: a request is over its
//! time, its client has hung up, the node stops. What is left is a connection with a statement under way, and nobody knows
//! for how long. It is closed at once, without a word: Postgres ends the statement within
//! `client_connection_check_interval`, also one that waits for a lock. Only a connection whose last statement was answered
//! goes back to its pool, after a rollback where a transaction was open; nothing waits for that, either.
//!
//! **Nothing waits for ever.** An answer is waited for until it is there, until the statement has had its time, until
//! Postgres is out of reach, or until the process that should be working on it turns out not to be: then the connection was
//! cut without a word, as a firewall does that forgot it, and no answer will ever come.

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::sleep;
use tokio_stream::{Stream, StreamExt as _};

use super::{
    pool::Home,
    reach::Reach,
    session::{Bounds, Line, millis, silent},
};

/// How long somebody waits for a lock when half of the pool may wait longer.
const IMPATIENCE: Duration = Duration::from_millis(500);

/// The longest that our side waits for what Postgres should have ended by itself.
const GRACE: Duration = Duration::from_secs(1);

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type BoxStream<'a, T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// A connection in use. Dropped, it goes back to where it came from, or is closed.
pub struct Conn {
    /// There until it is dropped.
    line: Option<Line>,
    patience: Patience,
    state: State,
    /// Where it goes back to; one that has no home is closed.
    home: Option<Home>,
}

/// How far a connection is in what it does.
#[derive(Debug, Default)]
struct State {
    /// Whether a statement is under way, or was given up.
    is_busy: bool,
    /// Whether it waits for a lock for less time than others of its pool.
    is_hurried: bool,
    transaction: Transaction,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    #[default]
    None,
    Open,
    /// A statement has failed: nothing but going back is possible.
    Failed,
}

/// How long an answer is waited for.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Who knows whether Postgres is there, where somebody does.
    reach: Option<Arc<Reach>>,
}

impl Patience {
    /// The answer, unless it is not to be waited for any more.
    async fn wait<T>(&self, pid: i32, answer: impl Future<Output = T>) -> sqlx::Result<T> {
        tokio::select! {
            // An answer that is there counts, however late this task comes to look.
            biased;
            answer = answer => Ok(answer),
            error = self.ends(pid) => Err(error),
        }
    }

    async fn ends(&self, pid: i32) -> sqlx::Error {
        let Some(reach) = &self.reach else {
            sleep(self.limit).await;
            return silent();
        };
        tokio::select! {
            () = sleep(self.limit) => silent(),
            () = reach.lost() => Reach::away(),
            () = reach.is_cut(pid) => silent(),
        }
    }
}

impl Conn {
    pub(super) fn new(line: Line, bounds: Bounds, reach: Option<Arc<Reach>>, home: Option<Home>) -> Self {
        let patience = Patience { limit: bounds.statement.saturating_add(GRACE), reach };
        Self { line: Some(line), patience, state: State::default(), home }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn begin(&mut self) -> sqlx::Result<()> {
        self.begin_as("begin").await
    }

    /// The same, by this statement. How long it waits for locks is said in the same breath.
    pub(super) async fn begin_as(&mut self, statement: &'static str) -> sqlx::Result<()> {
        if self.is_patient() {
            self.execute(statement).await?;
        } else {
            let hurried = format!("{statement}; set local lock_timeout = {}", millis(IMPATIENCE));
            self.execute(AssertSqlSafe(hurried)).await?;
        }
        self.state.transaction = Transaction::Open;
        Ok(())
    }

    /// Has statements outside of a transaction wait no longer for a lock than they may, which costs a turn where more than half
    /// of the pool is in use.
    pub(super) async fn hurry(&mut self) -> sqlx::Result<()> {
        if !self.is_patient() {
            self.state.is_hurried = true;
            self.execute(AssertSqlSafe(format!("set lock_timeout = {}", millis(IMPATIENCE)))).await?;
        }
        Ok(())
    }

    fn is_patient(&self) -> bool {
        self.home.as_ref().is_none_or(Home::is_patient)
    }

    /// Ends the transaction, and makes what was done in it last.
    ///
    /// # Errors
    /// When Postgres refuses, or a statement had failed; then nothing has happened. When the connection breaks while the
    /// commit is under way, nobody knows.
    pub async fn commit(&mut self) -> sqlx::Result<()> {
        if self.state.transaction == Transaction::Failed {
            // Postgres would roll back and call it a success.
            self.rollback().await?;
            return Err(sqlx::Error::Protocol("a statement of the transaction has failed".to_owned()));
        }
        self.execute("commit").await?;
        self.state.transaction = Transaction::None;
        Ok(())
    }

    /// Ends the transaction, and undoes what was done in it.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn rollback(&mut self) -> sqlx::Result<()> {
        self.execute("rollback").await?;
        self.state.transaction = Transaction::None;
        Ok(())
    }

    /// Goes back to a savepoint: what failed after it has not happened.
    ///
    /// # Errors
    /// When Postgres does not answer, or there is no such savepoint.
    pub async fn rollback_to(&mut self, savepoint: &'static str) -> sqlx::Result<()> {
        self.execute(AssertSqlSafe(format!("rollback to {savepoint}"))).await?;
        self.state.transaction = Transaction::Open;
        Ok(())
    }

    /// Whether Postgres answers.
    pub(super) async fn ping(&mut self) -> sqlx::Result<()> {
        self.ask(async |raw| raw.ping().await).await
    }

    /// The connection itself, for what bounds itself.
    pub(super) fn raw(&mut self) -> &mut PgConnection {
        &mut self.line.as_mut().expect(THERE).raw
    }

    fn parts(&mut self) -> (&mut Line, &Patience, &mut State) {
        (self.line.as_mut().expect(THERE), &self.patience, &mut self.state)
    }

    /// Asks something, and waits for all of the answer.
    async fn ask<T>(&mut self, ask: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> sqlx::Result<T> {
        let (line, patience, state) = self.parts();
        state.is_busy = true;
        let answer = patience.wait(line.pid, ask(&mut line.raw)).await.flatten();
        state.settle(line, patience, answer.as_ref().err()).await;
        answer
    }
}

const THERE: &str = "a connection is there until it is dropped";

impl State {
    /// Notes how a statement has ended. After an error of its own the connection is as good as before, once Postgres has
    /// said that it is ready.
    async fn settle(&mut self, line: &mut Line, patience: &Patience, error: Option<&sqlx::Error>) {
        self.is_busy = match error {
            None => false,
            Some(sqlx::Error::Database(_)) => {
                if self.transaction == Transaction::Open {
                    self.transaction = Transaction::Failed;
                }
                !matches!(patience.wait(line.pid, line.raw.flush()).await, Ok(Ok(())))
            }
            // Of our side: a value that does not fit its column, or no row.
            Some(sqlx::Error::RowNotFound | sqlx::Error::Encode(_)) => false,
            Some(_) => true,
        };
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<'c> Executor<'c> for &'c mut Conn {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        Box::pin(async_stream::stream! {
            let (line, patience, state) = self.parts();
            state.is_busy = true;
            let mut error = None;
            {
                let mut answers = line.raw.fetch_many(query);
                while error.is_none() {
                    match patience.wait(line.pid, answers.next()).await {
                        Ok(None) => break,
                        Ok(Some(Ok(answer))) => yield Ok(answer),
                        Ok(Some(Err(failed))) | Err(failed) => error = Some(failed),
                    }
                }
            }
            state.settle(line, patience, error.as_ref()).await;
            if let Some(error) = error {
                yield Err(error);
            }
        })
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        Box::pin(self.ask(async move |raw| raw.fetch_optional(query).await))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(self.ask(async move |raw| raw.describe(sql).await))
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(self.ask(async move |raw| raw.prepare_with(sql, parameters).await))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let Some(mut line) = self.line.take() else { return };
        if self.state.is_busy {
            if let Some(home) = &self.home {
                home.gave_up();
            }
            return;
        }
        let Some(home) = &self.home else { return line.close() };
        let is_clean = (self.state.transaction == Transaction::None || line.send("rollback"))
            && (!self.state.is_hurried || line.send(home.calm_down()));
        if is_clean { home.take_back(line) } else { line.close() }
    }
}

/// What a future has to say without waiting.
pub(super) fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let future = pin!(tokio::task::unconstrained(future));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
