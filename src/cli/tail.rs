//! `crewcast tail`: follows events in a terminal, across restarts of the server.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use reqwest::StatusCode;

use super::{print, token};
use crate::{
    auth::{Claims, Role, Roles},
    config::Keys,
    ids::HEARTBEAT,
    output::{self, Plain},
    sse::{Frame, Parser},
};

/// A stream this silent has died without a word: the server beats more often.
const SILENCE_MAX: Duration = Duration::from_secs(45);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The server
    #[arg(long, env = "CREWCAST_URL", default_value = "http://127.0.0.1:3001")]
    url: String,
    /// The rooms to follow, separated by commas
    #[arg(long, default_value = "company")]
    rooms: String,
    /// The types of events to show, separated by commas [default: all]
    #[arg(long, default_value = "")]
    types: String,
    /// A token [default: one minted with the key in the data folder]
    #[arg(long, env = "CREWCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Resume behind this event
    #[arg(long, default_value = "")]
    last_event_id: String,
    #[command(flatten)]
    keys: Keys,
}

/// Follows until it is interrupted, or until the server says that it is no use to come back.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let token = match &arguments.token {
        Some(token) => token.clone(),
        None => token::mint(&arguments.keys, &own_claims())?,
    };
    let client = reqwest::Client::builder().read_timeout(SILENCE_MAX).build()?;
    let mut parser = Parser::resuming(&arguments.last_event_id);
    let mut retry = Duration::from_secs(2);
    loop {
        let request = client
            .get(format!("{}/events", arguments.url.trim_end_matches('/')))
            .query(&[("rooms", &arguments.rooms), ("types", &arguments.types)])
            .bearer_auth(&token)
            .header("last-event-id", parser.last_id());
        match request.send().await {
            Ok(response) if response.status() == StatusCode::OK => follow(response, &mut parser, &mut retry).await?,
            Ok(response)
                if response.status().is_client_error() && response.status() != StatusCode::TOO_MANY_REQUESTS =>
            {
                bail!("{}", response.text().await?)
            }
            Ok(response) => tell(&format!("{}; trying again", response.status())),
            Err(error) => tell(&format!("{} does not answer ({error}); trying again", arguments.url)),
        }
        tokio::time::sleep(retry).await;
    }
}

/// Shows what comes, until the stream ends.
///
/// # Errors
/// When it cannot be shown any more.
async fn follow(mut response: reqwest::Response, parser: &mut Parser, retry: &mut Duration) -> anyhow::Result<()> {
    let ended = loop {
        match response.chunk().await {
            Ok(Some(bytes)) => {
                for frame in parser.push(&bytes) {
                    *retry = frame.retry.map_or(*retry, Duration::from_millis);
                    show(&frame)?;
                }
            }
            Ok(None) => break "ended".to_owned(),
            Err(error) => break format!("was cut ({error})"),
        }
    };
    tell(&format!("the stream {ended}; resuming"));
    Ok(())
}

/// Control characters are shown as JSON escapes them, so a terminal obeys none and the data stays JSON.
fn show(frame: &Frame) -> anyhow::Result<()> {
    if frame.event == HEARTBEAT { Ok(()) } else { print(&format!("{} {}\n", Plain(&frame.event), Plain(&frame.data))) }
}

fn tell(what: &str) {
    output::stderr().say(format_args!("crewcast: {what}"));
}

fn own_claims() -> Claims {
    let exp = (time::OffsetDateTime::now_utc() + token::DEFAULT_TTL).unix_timestamp();
    let sub = "tail".parse().expect("a valid sub");
    Claims { roles: Roles::of([Role::Admin]), ..Claims::new(sub, exp) }
}
