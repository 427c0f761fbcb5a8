//! `crewcast epoch`: shows the log's epoch, or begins a new one after a restore that nothing else could notice.

use clap::{Args, Subcommand};

use super::{migrate, print};
use crate::{app, config::Secret, log::epoch};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The database: postgres://user:password@host/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    database_url: Option<Secret>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a new epoch: every stream is told to read its state again, also on running servers
    New,
}

/// Shows or renews.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut conn = app::connect(&migrate::options(arguments.database_url)?).await?;
    let identity = epoch::identity(&mut conn).await?;
    let said = match arguments.command {
        None => format!(
            "epoch {}, timeline {}, written by cluster {}, in cluster {}\n",
            identity.epoch, identity.timeline, identity.log_sysid, identity.sysid
        ),
        Some(Command::New) => format!("epoch {}\n", epoch::renew(&mut conn, &identity.epoch).await?),
    };
    print(&said)
}
