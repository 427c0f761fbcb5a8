//! `crewcast serve`: runs until a signal, and says first what to paste.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::token::DEFAULT_TTL;
use crate::{
    app::Server,
    auth::{Claims, Role, Roles},
    config::Config,
};

/// Runs the server.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    // A certificate that is not trusted is told by whoever asked for it, once.
    let quiet = "info,sqlx=warn,rustls_platform_verifier=off";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let start = Server::start(config, say);
    // A start can wait for a download or for a recovery: a signal ends it, too.
    let server = tokio::select! {
        server = start => server?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    greet(&server);
    let leave = server.app.leave.clone();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = leave.cancelled() => {}
    }
    say("ending streams and finishing requests; once more to end at once");
    tokio::select! {
        () = server.stop() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Tells the person at the terminal, who may have closed it: that must not end the server.
fn say(notice: &str) {
    let _ = writeln!(std::io::stdout(), "crewcast: {notice}");
}

/// What to do next, ready to paste. Where tokens are not ours to mint, they have to be brought.
fn greet(server: &Server) {
    let base = format!("http://{}", server.address);
    println!("crewcast {} listens on {base}\n", env!("CARGO_PKG_VERSION"));
    let token = development_token(server).unwrap_or_else(|| "$TOKEN".to_owned());
    let auth = format!("-H \"Authorization: Bearer {token}\"");
    let json = "-H 'Content-Type: application/json'";
    println!("Follow events in one terminal:\n");
    println!("  curl -N '{base}/events?rooms=company,division:north' {auth}\n");
    println!("Cause one in another (a division, then a project in it):\n");
    println!(
        "  curl -sS -X PUT {base}/v1/divisions/north {auth} {json} -d '{{\"name\":\"North\"}}' && \
         curl -sS {base}/v1/projects {auth} {json} -d '{{\"name\":\"North tower\",\"division\":\"north\"}}'\n"
    );
    println!("Everything else is told at {base}/docs\n");
    if token == "$TOKEN" {
        println!("TOKEN is a token of yours, signed with the key that crewcast is configured with.\n");
    }
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
