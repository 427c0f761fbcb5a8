//! What becomes of the streams of sessions that end or change, on this node or another.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    auth::session::Change,
    error::{Code, Result},
    http::streams,
    hub::ClosingReason,
};

/// The wait before what failed is tried again, at most.
const RETRY: Duration = Duration::from_secs(1);

/// Looks every `session-check`, and when somebody asks for it, until `stop`.
pub async fn keep(app: App, stop: CancellationToken) {
    let every = app.config.limits.session_check;
    let mut wait = every;
    while stop.run_until_cancelled(app.sessions.turn(wait)).await.is_some() {
        wait = match stop.run_until_cancelled(look(&app)).await {
            Some(Ok(())) => every,
            Some(Err(error)) => {
                // That Postgres is out of reach is told by whoever found out.
                if app.db.is_reachable() {
                    tracing::warn!(%error, "sessions cannot be looked at; trying again");
                }
                every.min(RETRY)
            }
            None => return,
        };
    }
}

async fn look(app: &App) -> Result<()> {
    for change in app.sessions.look().await? {
        match change {
            // One that has no place in the hub yet, or none any more, is found at the next look.
            Change::Ended(stream) => {
                if app.hub.end(stream, ClosingReason::SignedOut) {
                    app.metrics.session_streams_ended.inc();
                }
            }
            Change::Renewed(renewal) => match streams::renew(app, renewal.stream, &renewal.caller).await {
                Ok(()) => app.sessions.renewed(&renewal),
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => return Err(error),
            },
        }
    }
    Ok(())
}
