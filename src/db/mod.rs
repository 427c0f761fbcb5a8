//! Postgres: the connections, and the two kinds of transaction that the service uses.
//!
//! [`Db::write`] hands out the only thing that events can be appended to, so a change without its events, or events
//! without their change, cannot be written. [`Db::read`] reads everything from one snapshot and knows its position in the
//! log.
//!
//! **Nobody is held up by a lock that somebody else holds.** A request may wait for one for most of `request-timeout`, but only
//! while no more than half of the connections are in such hands. The others wait for a moment, far longer than our own
//! transactions hold a lock, and are then told to come back: a row that a stranger has locked keeps those who want it, and
//! nobody else.

mod conn;
pub mod desk;
mod disk;
pub mod embedded;
mod migrate;
mod pool;
mod reach;
mod retention;
mod session;
mod sweep;
mod watch;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;

pub use self::{
    conn::Conn,
    migrate::migrate,
    retention::Retention,
    session::ConnectError,
    sweep::{Sweep, keep_sweeping},
};
use self::{
    disk::Disk,
    pool::Pool,
    reach::Reach,
    session::{Bounds, Line, fix},
};
use crate::{
    error::Error,
    log::{self, NewEvent, Position, Snapshot, named},
    metrics::Metrics,
};

/// Connections of the machine's own: one writes who is where, one tells, one reads what was told.
const OWN_CONNECTIONS: u32 = 3;

/// The machine's own connections: how long it waits for an answer it knows better itself.
const MACHINE: Bounds = Bounds { statement: Duration::from_mins(10), lock: Duration::from_secs(1), durable: true };

/// Whoever runs a command waits for what may take long: a migration, or another node that is at it.
const UPKEEP: Bounds = Bounds { statement: Duration::from_hours(24), lock: Duration::from_mins(1), durable: true };

/// The longest that the machine waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for whoever runs a command, or starts a node.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The service's access to Postgres. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Arc<Pool>,
    /// For what must go on while requests have all of the others: signs of life, and what nodes tell each other.
    own: Arc<Pool>,
    options: PgConnectOptions,
    /// Rung after each commit that appended events: the pump listens.
    bell: Arc<Notify>,
    /// Rung with it, for whoever tells the other nodes.
    echo: Arc<Notify>,
    /// Whether Postgres answers.
    reach: Arc<Reach>,
    /// What is known to be on disk.
    disk: Arc<Disk>,
    metrics: Arc<Metrics>,
}

/// Connects outside of a server, as commands do.
///
/// # Errors
/// When Postgres cannot be reached, or is none that crewcast can work with.
pub async fn connect(options: &PgConnectOptions) -> Result<Conn, ConnectError> {
    let line = Line::open(&session::options(options.clone()), UPKEEP, START_TIMEOUT).await?;
    Ok(Conn::new(line, UPKEEP, None, None))
}

impl Db {
    /// Access with at most `connections` connections besides the machine's own, for requests that take `request_timeout` at
    /// most. Connects when first used.
    pub fn new(options: PgConnectOptions, connections: u32, request_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        let (options, reach) = (session::options(options), Arc::<Reach>::default());
        let pool = |bounds, counts| Pool::new(options.clone(), bounds, counts, reach.clone(), metrics.clone());
        // Nothing that goes over the machine's own is kept over a crash: it need not wait for the disk.
        let hasty = Bounds { durable: false, statement: Duration::from_secs(5), ..MACHINE };
        // Whoever waits is told before the whole request has had its time.
        let statement = request_timeout * 3 / 4;
        Self {
            pool: pool(Bounds { statement, lock: statement, durable: true }, (connections, connections / 2)),
            own: pool(hasty, (OWN_CONNECTIONS, OWN_CONNECTIONS)),
            bell: Arc::default(),
            echo: Arc::default(),
            reach,
            disk: Arc::default(),
            metrics,
            options,
        }
    }

    /// Begins a change.
    ///
    /// # Errors
    /// [`Error`] with `unavailable` while Postgres is out of reach.
    pub async fn write(&self) -> Result<Write, Error> {
        let mut conn = self.pool.acquire().await?;
        conn.begin().await?;
        Ok(Write {
            conn,
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
        let mut conn = self.pool.acquire().await?;
        conn.begin_as("begin isolation level repeatable read read only").await?;
        let cursor = self.now(&mut conn, &[]).await?.position();
        self.name(&[cursor.base()]).await?;
        Ok(Read { conn, cursor })
    }

    /// Makes sure that ids can name these sets, where they are too long to be written out. It is written by itself: whoever
    /// reads them does not write.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn name(&self, sets: &[&Snapshot]) -> Result<(), Error> {
        if sets.iter().any(|set| set.name().is_some()) {
            named::keep(&mut self.acquire_own().await?, sets).await?;
        }
        Ok(())
    }

    /// A connection for statements that each stand alone.
    ///
    /// # Errors
    /// [`Error`] with `unavailable` while Postgres is out of reach.
    pub async fn acquire(&self) -> Result<Conn, Error> {
        Ok(self.acquire_raw().await?)
    }

    /// As [`Db::acquire`], for the machine, which has no requests to answer.
    ///
    /// # Errors
    /// When no connection was to be had in time.
    pub async fn acquire_raw(&self) -> sqlx::Result<Conn> {
        let mut conn = self.pool.acquire().await?;
        conn.hurry().await?;
        Ok(conn)
    }

    /// The same from the few connections that no request uses.
    ///
    /// # Errors
    /// As [`Db::acquire_raw`].
    pub async fn acquire_own(&self) -> sqlx::Result<Conn> {
        self.own.acquire().await
    }

    /// A connection outside of the pools, as the pump has one.
    ///
    /// # Errors
    /// When Postgres does not answer in time, or is none that crewcast can work with.
    pub async fn connect(&self) -> sqlx::Result<Conn> {
        self.connect_as(MACHINE, CONNECT_TIMEOUT).await
    }

    /// The same for a node that starts, which has nothing to do before it is connected.
    ///
    /// # Errors
    /// As [`Db::connect`].
    pub async fn connect_at_start(&self) -> sqlx::Result<Conn> {
        self.connect_as(MACHINE, START_TIMEOUT).await
    }

    /// The same for what may be gone after a crash: its commits do not wait for the disk.
    ///
    /// # Errors
    /// As [`Db::connect`].
    pub async fn connect_hastily(&self) -> sqlx::Result<Conn> {
        self.connect_as(Bounds { durable: false, ..MACHINE }, CONNECT_TIMEOUT).await
    }

    async fn connect_as(&self, bounds: Bounds, patience: Duration) -> sqlx::Result<Conn> {
        let line = Line::open(&self.options, bounds, patience).await?;
        Ok(Conn::new(line, bounds, Some(self.reach.clone()), None))
    }

    /// One that hears notifications.
    ///
    /// # Errors
    /// As [`Db::connect`].
    pub async fn listener(&self) -> sqlx::Result<PgListener> {
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
        let pool = pool.after_connect(|raw, _| Box::pin(async { Ok(fix(raw, MACHINE).await.map(drop)?) }));
        PgListener::connect_with(&pool.connect_lazy_with(self.options.clone())).await
    }

    /// What rings after each commit that appended events.
    pub fn bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    /// The same for whoever tells the other nodes.
    pub fn echo(&self) -> Arc<Notify> {
        self.echo.clone()
    }

    /// Whether Postgres answered last time.
    pub fn is_reachable(&self) -> bool {
        self.reach.is_up()
    }

    /// Whether requests get connections: where the last one got none, another one is tried.
    pub async fn is_served(&self) -> bool {
        self.is_reachable() && self.pool.serves().await
    }

    /// The same of the machine's own connections.
    pub async fn is_tended(&self) -> bool {
        self.own.serves().await
    }

    /// A row of this kind could not be read.
    pub fn count_unreadable(&self, what: &'static str) {
        self.metrics.unreadable.count("what", what);
    }

    /// How long Postgres was out of reach last, if that ended less than `within` ago; else zero.
    pub fn lost_lately(&self, within: Duration) -> Duration {
        self.reach.lost_lately(within)
    }

    /// Connections for requests that are open, and those of them that nothing uses now.
    pub fn connections(&self) -> (usize, usize) {
        self.pool.count()
    }

    /// Closes every connection that nothing uses, and each other one when it is given back. Nothing is waited for.
    pub fn close(&self) {
        self.own.close();
        self.pool.close();
    }
}

/// A change under way: a transaction and the events it will have appended. Dropped without [`Write::commit`], nothing has
/// happened.
#[derive(Debug)]
pub struct Write {
    conn: Conn,
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
        self.conn.commit().await.map_err(Error::of_commit)?;
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
        Ok(log::append(&mut self.conn, &events, self.mutation_id.as_deref()).await?)
    }
}

impl Deref for Write {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

/// A read under way, all of it from one snapshot.
#[derive(Debug)]
pub struct Read {
    conn: Conn,
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
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Read {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}
