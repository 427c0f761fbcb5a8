//! The bus over `NOTIFY`. It is never sent inside a write: a transaction that notifies takes a lock that all others which
//! notify wait for, from its notification to its end ("NOTIFY" in Postgres's documentation, and `PreCommit_Notify`). So one
//! task a node sends for all, what collects while a statement runs together in the next one.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Bus, Letter,
    parts::{Assembly, texts},
};
use crate::{bus::Message, db::Db, ids::NodeKey};

/// The channel, within the database.
const CHANNEL: &str = "crewcast";

/// Letters that one statement sends, at most.
const BATCH_MAX: usize = 256;

/// The wait before Postgres is asked again, and the longest for an answer.
const RETRY: Duration = Duration::from_millis(250);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends what is to be told until `stop`. What Postgres does not take is lost.
pub(super) async fn tell(db: Db, mut letters: mpsc::Receiver<Letter>, bus: Bus, stop: CancellationToken) {
    let mut batch = Vec::new();
    while stop.run_until_cancelled(letters.recv_many(&mut batch, BATCH_MAX)).await.is_some_and(|sent| sent > 0) {
        let texts: Vec<String> = coalesced(std::mem::take(&mut batch)).into_iter().flat_map(texts).collect();
        bus.0.metrics.bus_statements.inc();
        if !matches!(timeout(ANSWER_TIMEOUT, notify(&db, &texts)).await, Ok(Ok(()))) {
            bus.0.metrics.bus_dropped.inc_by(texts.len() as u64);
        }
    }
}

async fn notify(db: &Db, texts: &[String]) -> sqlx::Result<()> {
    let mut conn = db.acquire_raw().await?;
    let notify = sqlx::query(
        "select pg_notify($1, text) from unnest($2::text[]) with ordinality as told (text, nth) order by nth",
    );
    notify.bind(CHANNEL).bind(texts).execute(&mut *conn).await?;
    Ok(())
}

/// Each bell once.
fn coalesced(letters: Vec<Letter>) -> Vec<Letter> {
    let mut rung = Vec::<Message>::new();
    let is_news = |letter: &Letter| {
        let is_news = !letter.message.is_bell() || !rung.contains(&letter.message);
        if is_news && letter.message.is_bell() {
            rung.push(letter.message.clone());
        }
        is_news
    };
    letters.into_iter().filter(is_news).collect()
}

/// Hears what others tell until `stop`.
pub(super) async fn listen(
    options: PgConnectOptions,
    bus: Bus,
    heard: mpsc::Sender<Option<(NodeKey, Message)>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let error = tokio::select! {
            () = stop.cancelled() => return,
            Err(error) = hear(&options, &bus, &heard) => error,
        };
        bus.0.metrics.bus_connected.set(0);
        tracing::debug!(%error, "the bus is out of reach");
        stop.run_until_cancelled(sleep(RETRY)).await;
    }
}

/// One connection's life.
async fn hear(
    options: &PgConnectOptions,
    bus: &Bus,
    heard: &mpsc::Sender<Option<(NodeKey, Message)>>,
) -> sqlx::Result<std::convert::Infallible> {
    let pool =
        PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER_TIMEOUT).connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    bus.0.metrics.bus_connected.set(1);
    let mut assembly = Assembly::default();
    let mut lost = true;
    loop {
        if lost {
            // Whatever was told before is to be looked up.
            assembly.clear();
            say(bus, heard, None);
        }
        // None says that the connection was lost: the next call makes another one.
        let notification = listener.try_recv().await?;
        lost = notification.is_none();
        let letter = notification.and_then(|notification| assembly.take(notification.payload()));
        if let Some(come) = letter.and_then(|letter| bus.open(letter)) {
            say(bus, heard, Some(come));
        }
    }
}

/// Nobody waits for whoever hears: what they have no room for is lost.
fn say(bus: &Bus, heard: &mpsc::Sender<Option<(NodeKey, Message)>>, come: Option<(NodeKey, Message)>) {
    if heard.try_send(come).is_err() {
        bus.0.metrics.bus_dropped.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_rung_once_and_all_else_is_sent_in_its_order() {
        let from = NodeKey::random();
        let letter = |message: Message| Letter { from, to: None, message };
        let (log, typing) = (Message::Log, Message::Typing(1.into()));
        let told = [&log, &typing, &log, &Message::Presence, &typing, &log].map(|message| letter(message.clone()));
        let sent = [log, typing.clone(), Message::Presence, typing].map(letter);
        assert_eq!(coalesced(told.to_vec()), sent);
    }
}
