//! `crewcast token`: mints a token for development, with the secret that the server checks it with.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::print;
use crate::{
    app,
    auth::{Claims, Role, Roles},
    config::Keys,
    ids::{Slug, Sub, TopicName},
};

/// How long a development token lasts: a working day.
pub(super) const DEFAULT_TTL: Duration = Duration::from_hours(12);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Who the token stands for
    #[arg(long, default_value = "ana")]
    sub: Sub,
    /// What they are called
    #[arg(long)]
    name: Option<String>,
    /// member, manager, admin or service; can be repeated [default: member]
    #[arg(long = "role", value_parser = role)]
    roles: Vec<Role>,
    /// A division that they belong to; can be repeated
    #[arg(long = "division")]
    divisions: Vec<Slug>,
    /// A topic that they may join; can be repeated
    #[arg(long = "topic")]
    topics: Vec<TopicName>,
    /// How long it lasts
    #[arg(long, default_value = "12h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    keys: Keys,
}

fn role(name: &str) -> Result<Role, String> {
    Role::named(name).ok_or_else(|| "write member, manager, admin or service".to_owned())
}

/// Prints a token.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let exp = time::OffsetDateTime::now_utc().checked_add(arguments.ttl.try_into()?).context("--ttl is too long")?;
    let claims = Claims {
        sub: arguments.sub,
        name: arguments.name,
        roles: Roles::of(arguments.roles),
        divisions: arguments.divisions,
        topics: arguments.topics,
        exp: exp.unix_timestamp(),
    };
    print(&format!("{}\n", mint(&arguments.keys, &claims)?))
}

/// A token signed with the configured secret, or with the one in the data folder.
pub(super) fn mint(keys: &Keys, claims: &Claims) -> anyhow::Result<String> {
    Ok(app::configured_verifier(keys)?.mint(claims)?)
}
