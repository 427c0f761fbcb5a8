//! Postgres: the pool, and the two kinds of transaction that the service uses.
//!
//! [`Db::write`] hands out the only thing that events can be appended to, so a change without its events, or events
//! without their change, cannot be written. [`Db::read`] reads everything from one snapshot and knows its position in the
//! log.

pub mod desk;
mod disk;
pub mod embedded;
mod reach;
mod sweep;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, Transaction,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::Notify;

pub use self::sweep::{Sweep, keep_sweeping};
use self::{disk::Disk, reach::Reach};
use crate::{
    error::Error,
    log::{self, NewEvent, Position, Snapshot, named},
};

/// How long a request waits for a connection before it is told to come back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that was used this recently is not asked whether it still lives.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);

/// Connections of the machine's own: one writes who is where, one tells, one reads what was told.
const OWN_CONNECTIONS: u32 = 3;

/// The service's access to Postgres. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    /// For what must go on while requests have all of the others: signs of life, and what nodes tell each other.
    own: PgPool,
    options: PgConnectOptions,
    /// Rung after each commit that appended events: the pump listens.
    bell: Arc<Notify>,
    /// Rung with it, for whoever tells the other nodes.
    echo: Arc<Notify>,
    /// Whether Postgres answered last time. Written by the pump, which is never without a question.
    reach: Arc<Reach>,
    /// What is known to be on disk.
    disk: Arc<Disk>,
}

impl Db {
    /// Access with at most `connections` connections besides the pump's own. Connects when first used.
    pub fn new(options: PgConnectOptions, connections: u32) -> Self {
        // What we ask is answered sooner than Postgres has compiled it, whatever it estimates. And a node that vanishes must
        // not leave its locks behind: no transaction of ours is idle between two statements.
        let settings = [("jit", "off"), ("idle_in_transaction_session_timeout", "60s")];
        let options = options.application_name("crewcast").options(settings);
        let reach = Arc::<Reach>::default();
        let pool = |connections, options| {
            let reach = reach.clone();
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // A ping before each use would cost a round trip; one that lay idle may have died with its server, and one
                // that is older than the last outage has, however lately it was used.
                .test_before_acquire(false)
                .before_acquire(move |conn, meta| {
                    let is_of_before = reach.back_for().is_some_and(|back_for| meta.age > back_for);
                    Box::pin(async move {
                        if !is_of_before && meta.idle_for > IDLE_TRUSTED {
                            conn.ping().await?;
                        }
                        Ok(!is_of_before)
                    })
                })
                .connect_lazy_with(options)
        };
        // Nothing that goes there is kept over a crash: it need not wait for the disk.
        let hasty = options.clone().options([("synchronous_commit", "off")]);
        let (pool, own) = (pool(connections, options.clone()), pool(OWN_CONNECTIONS, hasty));
        Self { pool, own, options, bell: Arc::default(), echo: Arc::default(), reach, disk: Arc::default() }
    }

    /// Begins a change.
    ///
    /// # Errors
    /// [`Error`] with `unavailable` while Postgres is out of reach.
    pub async fn write(&self) -> Result<Write, Error> {
        self.breaker()?;
        let tx = self.pool.begin().await?;
        Ok(Write {
            tx,
            events: Vec::new(),
            mutation_id: None,
            publishes: false,
            bells: [self.bell.clone(), self.echo.clone()],
        })
    }

    /// Begins a read: every statement sees one snapshot, and [`Read::cursor`] is the position of it.
    ///
    /// # Errors
    /// [`Error`] with `unavailable` while Postgres is out of reach.
    pub async fn read(&self) -> Result<Read, Error> {
        self.breaker()?;
        let mut tx = self.pool.begin_with("begin isolation level repeatable read read only").await?;
        let cursor = self.now(&mut tx, &[]).await?.position();
        self.name(&[cursor.base()]).await?;
        Ok(Read { tx, cursor })
    }

    /// Makes sure that ids can name these sets, where they are too long to be written out. It is written by itself: whoever
    /// reads them does not write.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn name(&self, sets: &[&Snapshot]) -> Result<(), Error> {
        if sets.iter().any(|set| set.name().is_some()) {
            named::keep(&mut *self.acquire_own().await?, sets).await?;
        }
        Ok(())
    }

    /// A connection for statements that each stand alone.
    ///
    /// # Errors
    /// [`Error`] with `unavailable` while Postgres is out of reach.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, Error> {
        self.breaker()?;
        Ok(self.pool.acquire().await?)
    }

    /// As [`Db::acquire`], for the machine, which has no requests to answer.
    ///
    /// # Errors
    /// When no connection was to be had in time.
    pub async fn acquire_raw(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.pool.acquire().await
    }

    /// The same from the few connections that no request uses.
    ///
    /// # Errors
    /// As [`Db::acquire_raw`].
    pub async fn acquire_own(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.own.acquire().await
    }

    /// How to connect outside the pool, as the pump does.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// What rings after each commit that appended events.
    pub fn bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    /// The same for whoever tells the other nodes.
    pub fn echo(&self) -> Arc<Notify> {
        self.echo.clone()
    }

    /// Says whether Postgres can be reached: while it can't, requests are answered at once.
    pub fn set_reachable(&self, reachable: bool) {
        self.reach.set(reachable);
    }

    /// Whether Postgres answered last time.
    pub fn is_reachable(&self) -> bool {
        self.reach.is_up()
    }

    /// How long Postgres was out of reach last, if that ended less than `within` ago; else zero.
    pub fn lost_lately(&self, within: Duration) -> Duration {
        self.reach.lost_lately(within)
    }

    /// Connections of the pool that are open, and those of them that nothing uses now.
    pub fn connections(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }

    /// Closes every connection, waiting for those in use.
    pub async fn close(&self) {
        self.own.close().await;
        self.pool.close().await;
    }

    fn breaker(&self) -> Result<(), Error> {
        if self.is_reachable() { Ok(()) } else { Err(Error::unavailable("Postgres is out of reach")) }
    }
}

/// Brings the schema `crewcast` up to date. A schema that is needs no rights but to be read.
///
/// # Errors
/// When a migration fails, or one that was applied before has changed.
pub async fn migrate(conn: &mut PgConnection) -> Result<(), MigrateError> {
    let mut migrator: Migrator = sqlx::migrate!();
    if is_current(conn, &migrator).await? {
        return Ok(());
    }
    migrator.dangerous_set_table_name("crewcast.migrations");
    migrator.create_schema("crewcast");
    migrator.run(conn).await
}

async fn is_current(conn: &mut PgConnection, migrator: &Migrator) -> sqlx::Result<bool> {
    let exists: bool =
        sqlx::query_scalar("select to_regclass('crewcast.migrations') is not null").fetch_one(&mut *conn).await?;
    if !exists {
        return Ok(false);
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from crewcast.migrations where success order by version")
            .fetch_all(conn)
            .await?;
    let ours = migrator.iter().map(|migration| (migration.version, migration.checksum.to_vec()));
    Ok(ours.eq(applied))
}

/// A change under way: a transaction and the events it will have appended. Dropped without [`Write::commit`], nothing has
/// happened.
#[derive(Debug)]
pub struct Write {
    tx: Transaction<'static, Postgres>,
    events: Vec<NewEvent>,
    mutation_id: Option<String>,
    /// Whether some of its events are written.
    publishes: bool,
    bells: [Arc<Notify>; 2],
}

impl Write {
    /// Adds an event. It is written at the end of the transaction, when every row it may speak of has been.
    pub fn append(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Names the client's own mutation in every event of this change, so that it knows its echo.
    pub fn set_mutation_id(&mut self, id: String) {
        self.mutation_id = Some(id);
    }

    /// Commits the change together with its events.
    ///
    /// # Errors
    /// When Postgres refuses; then nothing has happened. When the connection breaks while the commit is under way, nobody
    /// knows.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.write_events().await?;
        self.tx.commit().await?;
        if self.publishes {
            self.bells.iter().for_each(|bell| bell.notify_one());
        }
        Ok(())
    }

    /// Writes the events that were added until now, and says their numbers. For changes whose answer names them; all
    /// others leave that to the end.
    ///
    /// # Errors
    /// When Postgres refuses.
    pub async fn write_events(&mut self) -> Result<Vec<i64>, Error> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(Vec::new());
        }
        self.publishes = true;
        Ok(log::append(&mut self.tx, &events, self.mutation_id.as_deref()).await?)
    }
}

impl Deref for Write {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}

/// A read under way, all of it from one snapshot.
#[derive(Debug)]
pub struct Read {
    tx: Transaction<'static, Postgres>,
    cursor: Position,
}

impl Read {
    /// Where in the log the snapshot stands: events that are new to this position are not in what is read here, all
    /// others are.
    pub fn cursor(&self) -> &Position {
        &self.cursor
    }
}

impl Deref for Read {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for Read {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}
