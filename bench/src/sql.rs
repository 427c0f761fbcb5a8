//! Publishing and looking from SQL: one connection, used from threads without a runtime of their own.

use std::path::Path;

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::runtime::Runtime;

/// A connection to the server's Postgres.
pub(crate) struct Sql {
    // Before the runtime, so that it is dropped first.
    connection: PgConnection,
    runtime: Runtime,
}

impl Sql {
    /// Connects through the socket in this folder, as the superuser.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = PgConnectOptions::new_without_pgpass().socket(socket).port(5432).username("postgres");
        let options = options.database("crewcast").application_name("bench");
        let connection = runtime.block_on(PgConnection::connect_with(&options)).context("connecting to Postgres")?;
        Ok(Self { connection, runtime })
    }

    /// Runs statements.
    pub(crate) fn run(&mut self, statements: &str) -> Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        self.runtime.block_on(statements.execute(&mut self.connection))?;
        Ok(())
    }

    /// The one text that a statement gives.
    pub(crate) fn text(&mut self, statement: &str) -> Result<String> {
        let statement = sqlx::query_scalar(AssertSqlSafe(statement.to_owned()));
        Ok(self.runtime.block_on(statement.fetch_one(&mut self.connection))?)
    }

    /// Publishes `count` events in one transaction: event `i`, from `first` on, goes to room `{prefix}{i mod rooms}` as
    /// number `i / rooms + 1`, with the time of sending and `pad` bytes of text.
    pub(crate) fn publish(
        &mut self,
        prefix: &str,
        rooms: u64,
        first: u64,
        count: u64,
        sent: u64,
        pad: usize,
    ) -> Result<()> {
        let statement = sqlx::query(
            "select count(crewcast.publish(array[$1 || i % $2], 'bench:tick',
                                           json_build_object('n', i / $2 + 1, 't', $5, 'text', $6)))
             from generate_series($3, $3 + $4 - 1) i",
        );
        let statement = statement.bind(prefix).bind(rooms.cast_signed()).bind(first.cast_signed());
        let statement = statement.bind(count.cast_signed()).bind(sent.cast_signed()).bind("x".repeat(pad));
        self.runtime.block_on(statement.execute(&mut self.connection))?;
        Ok(())
    }
}
