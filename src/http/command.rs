//! Commands: what is asked of an open stream, wherever it is. The node that holds it does it; the one that was asked waits
//! for its reply. A stream's id says which node that is, so nobody has to look it up.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    admin,
    presence::{self, Types},
    streams,
};
use crate::{
    app::App,
    auth::Caller,
    bus::{Heard, Message},
    error::{Error, Problem, Result},
    hub::presence::Update,
    ids::{NodeKey, Room, Sub},
};

/// Commands of other nodes that are done at once.
const OBEYING_MAX: usize = 256;

/// What is to be done, by the node that gets it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// With one stream, for its owner; for an admin, where none is named.
    Stream { stream: Uuid, owner: Option<Sub>, command: Command },
    /// Lists streams behind this one, up to so many.
    List { after: Uuid, limit: usize },
}

/// What is asked of a stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// To be in other rooms.
    Move { join: Vec<Room>, leave: Vec<Room>, after: Option<String> },
    /// To go on with these claims instead of its own.
    Renew(Box<Caller>),
    /// To show its user so.
    Report(Update),
    /// To show its user typing.
    Type(Types),
    /// To end.
    End,
}

/// What a node replies: what the caller gets, or why not.
type Reply = Result<Value, Problem>;

/// Has something done with a stream.
///
/// # Errors
/// 404 when the caller has no such stream, 503 when the node that holds it does not answer, and what it answers.
pub(super) async fn send(app: &App, stream: Uuid, owner: Option<Sub>, command: Command) -> Result<Value> {
    ask(app, NodeKey::of(stream), Order::Stream { stream, owner, command }).await
}

/// Has a node do something.
///
/// # Errors
/// 404 when there is no such node, 503 when it does not answer, and what it answers.
pub(super) async fn ask(app: &App, node: NodeKey, order: Order) -> Result<Value> {
    if node == app.node {
        return within(app.config.limits.command_timeout, execute(app, order)).await;
    }
    let patience = app.config.limits.command_timeout;
    within(patience, async {
        if !app.hub.presence().lives(node) && !is_there(app, node).await? {
            return Err(Error::not_found());
        }
        let order = serde_json::to_value(&order).map_err(Error::internal)?;
        let reply = app.bus.ask(node, order, patience).await.map_err(|_| silent())?;
        let reply: Reply = serde_json::from_value(reply).map_err(Error::internal)?;
        reply.map_err(Error::from)
    })
    .await
}

fn silent() -> Error {
    Error::unavailable("The node that holds the stream does not answer.")
}

async fn within(patience: Duration, done: impl Future<Output = Result<Value>>) -> Result<Value> {
    timeout(patience, done).await.unwrap_or_else(|_| Err(silent()))
}

/// Whether a node has given a sign of life of late. While this node's own sign is missing, as after a crash of Postgres that
/// emptied the table, nobody knows.
async fn is_there(app: &App, node: NodeKey) -> Result<bool> {
    let mut conn = app.db.acquire().await?;
    let signs = sqlx::query_scalar(
        "select key from crewcast.nodes
         where key = any($1) and not ended and beat_at > now() - make_interval(secs => $2)",
    );
    let lease = app.config.limits.presence_lease.as_secs_f64();
    let (own, other) = (app.node.to_sql(), node.to_sql());
    let signs: Vec<i64> = signs.bind([own, other]).bind(lease).fetch_all(&mut conn).await?;
    if signs.contains(&own) { Ok(signs.contains(&other)) } else { Err(silent()) }
}

/// Does what is asked of this node.
async fn execute(app: &App, order: Order) -> Result<Value> {
    match order {
        Order::List { after, limit } => Ok(admin::here(app, after, limit)),
        Order::Stream { stream, owner, command } => {
            // An admin ends others' streams, and does nothing else with them.
            let is_admins = owner.is_none() && !matches!(command, Command::End);
            if is_admins || !app.hub.has(stream, owner.as_ref().map(Sub::as_str)) {
                return Err(Error::not_found());
            }
            match command {
                Command::Move { join, leave, after } => streams::do_move(app, stream, join, leave, after).await,
                Command::Renew(caller) => streams::do_renew(app, stream, *caller).await,
                Command::Report(update) => presence::do_report(app, stream, update),
                Command::Type(types) => presence::do_type(app, stream, types),
                Command::End => Ok(streams::do_end(app, stream)),
            }
        }
    }
}

/// Does what other nodes ask, and heeds their bells, until `stop`.
pub async fn serve(app: App, mut heard: Heard, stop: CancellationToken) {
    let obeying = Arc::new(Semaphore::new(OBEYING_MAX));
    while let Some(come) = stop.run_until_cancelled(heard.recv()).await.flatten() {
        match come {
            // What was lost may have been any bell.
            None => {
                app.db.bell().notify_one();
                app.hub.presence().look_now();
                app.sessions.look_now();
            }
            Some((_, Message::Log)) => app.db.bell().notify_one(),
            Some((from, Message::Command(number, order))) => {
                // Whoever asks one too many is told by the silence.
                if let Ok(turn) = obeying.clone().try_acquire_owned() {
                    let obeying = obey(app.clone(), from, number, order);
                    app.tasks.errand("a command of another node", async {
                        obeying.await;
                        drop(turn);
                    });
                }
            }
            Some((_, Message::Presence)) => app.hub.presence().look_now(),
            Some((_, Message::Sessions)) => app.sessions.look_now(),
            Some((_, Message::Typing(told))) => presence::hear_typing(&app, told),
            Some((_, Message::Reply(..))) => {}
        }
    }
}

async fn obey(app: App, from: NodeKey, number: u64, order: Value) {
    // What this version does not understand, it does not do: whoever asked is told by the silence.
    let Ok(order) = serde_json::from_value(order) else { return };
    let done = within(app.config.limits.command_timeout, execute(&app, order)).await;
    let reply: Reply = done.map_err(|error| error.problem().clone());
    app.bus.reply(from, number, serde_json::to_value(reply).expect("JSON and names"));
}
