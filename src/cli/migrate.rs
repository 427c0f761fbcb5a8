//! `crewcast migrate`: brings the schema up to date, for a role that owns it where the server's does not.

use anyhow::Context as _;
use clap::Args;
use sqlx::postgres::PgConnectOptions;

use super::print;
use crate::{app, config::Secret};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The database: postgres://user:password@host/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<Secret>,
}

/// Migrates. A private Postgres is migrated by the server that runs it.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    app::migrate(&options(arguments.database_url)?).await?;
    print("crewcast: the schema is up to date\n")
}

/// How to connect to the database of a command that needs one.
pub(super) fn options(url: Option<Secret>) -> anyhow::Result<PgConnectOptions> {
    let url = url.context("set DATABASE_URL; a private Postgres is looked after by `crewcast serve`")?;
    url.reveal().parse().map_err(|_| anyhow::anyhow!("DATABASE_URL is not a Postgres URL"))
}
