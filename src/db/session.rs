//! A session with Postgres: how one begins, and what is fixed in it.
//!
//! A role, a database, a server and a pooler can each set what a session begins with, and our statements mean something else
//! then: under another isolation two changes each compute what the other has not seen, under `default_transaction_read_only`
//! nothing can be written, under a `search_path` of somebody else's `=` is whatever they say. So whatever our statements rest
//! on is set here, by statements after connecting and not by options in the startup packet, which poolers refuse
//! (`unsupported startup parameter`) or drop, and is read back: a session that is not what we asked for is not used. Setting
//! and reading are one round trip.
//!
//! The server bounds a session as well, since a client that is gone can bound nothing: a statement and a wait for a lock by
//! time, and a connection whose other end has vanished by what the kernel finds out about it.

use std::{fmt::Write as _, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _, SqlSafeStr,
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, timeout};

use super::conn::poll_once;

/// The oldest Postgres that will do, as `server_version_num` has it.
const VERSION_MIN: u32 = 150_000;

/// What every session has, by the names and in the units of `pg_settings`.
const FIXED: [(&str, &str); 25] = [
    // Derived values are true at their commit because rows are locked first and then read anew, which is READ COMMITTED; a read
    // that needs one snapshot says so when it begins.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    // How values are written as text: parts of payloads are made in SQL.
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    // How ours are read.
    ("standard_conforming_strings", "on"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    // Every table of ours is named with its schema; functions and operators are Postgres's own.
    ("search_path", "pg_catalog, pg_temp"),
    ("row_security", "on"),
    // What we ask is answered sooner than Postgres has compiled it, whatever it estimates.
    ("jit", "off"),
    ("plan_cache_mode", "auto"),
    // An error ends a statement and not the session.
    ("exit_on_error", "off"),
    ("client_min_messages", "notice"),
    // A node that vanishes must not leave its locks behind: no transaction of ours is idle between two statements.
    ("idle_in_transaction_session_timeout", "60000"),
    ("idle_session_timeout", "0"),
    // A statement whose client has closed its connection ends, also while it waits for a lock.
    ("client_connection_check_interval", "1000"),
    // A client that vanished without closing its connection is noticed by the kernel: answers that nobody takes, and silence.
    ("tcp_user_timeout", "10000"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// Settings that do not show what was set: over a Unix socket there is no TCP, and not every kernel knows each of them.
const UNREAD: &str = "^tcp";

/// What of a session depends on whose it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The longest that a statement may take.
    pub(super) statement: Duration,
    /// The longest that one may wait for a lock.
    pub(super) lock: Duration,
    /// Whether commits wait for the disk.
    pub(super) durable: bool,
}

/// A connection to Postgres, and what is known of its other end.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) raw: PgConnection,
    /// The process that serves it, as Postgres numbers it.
    pub(super) pid: i32,
    pub(super) made: Instant,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Postgres cannot be reached, or refuses.
    #[error(transparent)]
    Db(#[from] sqlx::Error),
    /// It is none that crewcast can work with.
    #[error("{0}")]
    Unfit(String),
}

impl From<ConnectError> for sqlx::Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Db(error) => error,
            unfit @ ConnectError::Unfit(_) => Self::Configuration(Box::new(unfit)),
        }
    }
}

/// How we connect: nothing in the startup packet that a pooler might not know.
pub(super) fn options(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("crewcast").extra_float_digits(None)
}

impl Line {
    /// Connects, and fixes the session.
    ///
    /// # Errors
    /// When there is no connection within `patience`, or Postgres is not one that will do.
    pub(super) async fn open(
        options: &PgConnectOptions,
        bounds: Bounds,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        let opening = async {
            let mut raw = options.connect().await?;
            let pid = fix(&mut raw, bounds).await?;
            Ok(Self { raw, pid, made: Instant::now() })
        };
        timeout(patience, opening).await.unwrap_or_else(|_| Err(silent().into()))
    }

    /// Says good-bye, as far as that goes without waiting.
    pub(super) fn close(self) {
        let _ = poll_once(self.raw.close());
    }

    /// Has Postgres do something without waiting for it; the answer is read before the next one. Whether that was sent.
    pub(super) fn send(&mut self, statement: impl SqlSafeStr + Send) -> bool {
        let is_fine = poll_once(self.raw.execute(statement)).is_none_or(|answer| answer.is_ok());
        is_fine && !self.raw.should_flush()
    }
}

/// Postgres did not answer in time.
pub(super) fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "Postgres does not answer"))
}

/// Fixes the settings of a new session, and refuses one that is not as it should be; the process that serves it.
pub(super) async fn fix(raw: &mut PgConnection, bounds: Bounds) -> Result<i32, ConnectError> {
    if let Some(version) = raw.server_version_num().filter(|version| *version < VERSION_MIN) {
        let version = version / 10_000;
        return Err(ConnectError::Unfit(format!("it is version {version}: crewcast needs Postgres 15 or newer")));
    }
    let answers = raw.fetch_all(AssertSqlSafe(statement(bounds))).await?;
    let found = answers.last().ok_or_else(silent)?;
    let encoding: String = found.try_get("encoding")?;
    if encoding != "UTF8" {
        return Err(ConnectError::Unfit(format!(
            "the database's encoding is {encoding} and crewcast needs UTF8: create one with `encoding 'UTF8' template template0`"
        )));
    }
    if found.try_get("is_standby")? {
        return Err(ConnectError::Unfit("this Postgres is a standby; connect crewcast to the primary".to_owned()));
    }
    if let Some(others) = found.try_get::<Option<String>, _>("others")? {
        return Err(ConnectError::Unfit(format!(
            "these settings of the session do not stay as crewcast needs them (a pooler in session mode keeps them): {others}"
        )));
    }
    Ok(found.try_get("pid")?)
}

/// Sets everything, and asks what became of it.
fn statement(bounds: Bounds) -> String {
    let timeouts = [("statement_timeout", millis(bounds.statement)), ("lock_timeout", millis(bounds.lock))];
    // First, so that the rest of this has the time that it takes.
    let fixed = timeouts.into_iter().chain(FIXED.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let (mut text, mut wanted) = (String::new(), String::new());
    for (name, value) in fixed {
        let list = if name == "search_path" { value.clone() } else { format!("'{value}'") };
        write!(text, "set {name} = {list}; ").expect("a string takes all");
        write!(wanted, "('{name}', '{value}'), ").expect("a string takes all");
    }
    // A stricter setting than `on` is whoever made it to know. Postgres 17 bounds transactions, too.
    let commits = if bounds.durable { "case setting when 'off' then 'on' else setting end" } else { "'off'" };
    write!(
        text,
        "select set_config(name, case name when 'transaction_timeout' then '0' else {commits} end, false)
         from pg_settings where name in ('synchronous_commit', 'transaction_timeout');
         select pg_backend_pid() as pid, pg_is_in_recovery() as is_standby,
                current_setting('server_encoding') as encoding,
                (select string_agg(format('%s is %s', name, setting), ', ')
                 from pg_settings
                 join (values {wanted}('session_replication_role', 'origin')) as wanted (name, value) using (name)
                 where setting <> value and name !~ '{UNREAD}') as others"
    )
    .expect("a string takes all");
    text
}

/// As Postgres counts: at least one, since none would be no bound, and no more than fit an `int`.
pub(super) fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX as u128).to_string()
}
