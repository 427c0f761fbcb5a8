//! `crewcast serve`: runs until a signal, and says first what to paste.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{log, token::DEFAULT_TTL};
use crate::{
    app::Server,
    auth::{Claims, Role, Roles},
    config::Config,
    output,
};

/// The variable whose options libpq and sqlx add to every connection. No other `PG*` reaches a private Postgres.
const OPTIONS: &str = "PGOPTIONS";

/// Starts this process anew without `PGOPTIONS`, when Postgres is its own: the variable is for whichever Postgres the person at
/// the terminal has in mind.
pub(super) fn leave_the_shells_options(config: &Config) {
    if config.database.database_url.is_none() && std::env::var_os(OPTIONS).is_some() {
        let Ok(program) = std::env::current_exe() else { return };
        let error = Command::new(program).args(std::env::args_os().skip(1)).env_remove(OPTIONS).exec();
        output::stderr().say(format_args!("crewcast: {OPTIONS} stays set: {error}"));
    }
}

/// Runs the server.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    log::start();
    let mut signals = Signals::listen()?;
    let start = Server::start(config, say);
    // A start can wait for a download or for a recovery: a signal ends it, too.
    let server = tokio::select! {
        server = start => server?,
        () = signals.next() => return Ok(()),
    };
    greet(&server);
    keep(server, signals).await
}

/// Runs a server that was started, until a signal or until it wants to end; then stops it. A second signal ends it at once.
///
/// # Errors
/// When a part of it has died.
pub async fn keep(server: Server, mut signals: Signals) -> anyhow::Result<()> {
    let tasks = server.app.tasks.clone();
    tokio::select! {
        () = signals.next() => {}
        () = server.wants_to_end() => {}
    }
    say("ending streams and finishing requests; once more to end at once");
    let mut stopping = Box::pin(server.stop());
    tokio::select! {
        () = &mut stopping => {}
        // Dropping it would wait for a private Postgres, which learns of the end of this process by itself.
        () = signals.next() => std::mem::forget(stopping),
    }
    tasks.dead().map_or(Ok(()), |dead| Err(dead.clone().into()))
}

/// The signals that end the process.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Hears them from now on: they end nothing by themselves any more.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Tells the person at the terminal, who may have closed it or look at it no more.
fn say(notice: &str) {
    output::stdout().say(format_args!("crewcast: {notice}"));
}

/// What to do next, ready to paste. Where tokens are not ours to mint, they have to be brought.
fn greet(server: &Server) {
    let (base, version) = (format!("http://{}", server.address), env!("CARGO_PKG_VERSION"));
    let token = development_token(server).unwrap_or_else(|| "$TOKEN".to_owned());
    let auth = format!("-H \"Authorization: Bearer {token}\"");
    let json = "-H 'Content-Type: application/json'";
    let brought = match token.as_str() {
        "$TOKEN" => "TOKEN is a token of yours, signed with the key that crewcast is configured with.\n\n",
        _ => "",
    };
    let greeting = format!(
        "crewcast {version} listens on {base}\n\n\
         Follow events in one terminal:\n\n  \
         curl -N '{base}/events?rooms=company,division:north' {auth}\n\n\
         Cause one in another (a division, then a project in it):\n\n  \
         curl -sS -X PUT {base}/v1/divisions/north {auth} {json} -d '{{\"name\":\"North\"}}' && \
         curl -sS {base}/v1/projects {auth} {json} -d '{{\"name\":\"North tower\",\"division\":\"north\"}}'\n\n\
         Everything else is told at {base}/docs\n\n\
         {brought}"
    );
    output::stdout().put(greeting.as_bytes());
}

/// A token for the person at the terminal, when the key was made here for development.
fn development_token(server: &Server) -> Option<String> {
    let keys = &server.app.config.keys;
    if keys.jwt_secret.is_some() || keys.jwt_public_key.is_some() {
        return None;
    }
    let exp = (time::OffsetDateTime::now_utc() + DEFAULT_TTL).unix_timestamp();
    let claims = Claims { roles: Roles::of([Role::Admin]), ..Claims::new("ana".parse().ok()?, exp) };
    server.app.verifier.mint(&claims).ok()
}
