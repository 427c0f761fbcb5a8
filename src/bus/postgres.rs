//! The bus over `NOTIFY`. It is never sent inside a write: a transaction that notifies takes a lock that all others which
//! notify wait for, from its notification to its end ("NOTIFY" in Postgres's documentation, and `PreCommit_Notify`). So one
//! task a node sends for all, what collects while a statement runs together in the next one.
//!
//! Whoever may connect to the database may listen and notify. So a notification says no more than that a bell rings, or
//! which letter is for whom; the letter itself is in a table that only the owner reads and writes. A forged one makes a
//! node look at what it would look at anyway.

use std::{collections::BTreeSet, time::Duration};

use sqlx::postgres::PgNotification;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Bus, Come, Letter, Message};
use crate::{
    db::{Conn, Db, Sweep},
    ids::NodeKey,
    log::rows::is_of_a_row,
};

/// The channel, within the database.
const CHANNEL: &str = "crewcast";

/// Letters that one statement sends, at most.
const BATCH_MAX: usize = 256;

/// The wait before Postgres is asked again, and the longest for an answer.
const RETRY: Duration = Duration::from_millis(250);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a silent connection is believed in: whatever lies between may have forgotten it.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The shortest time between two looks at what was told. What is said in between, however often and by whomever, costs one
/// look: anybody may say anything.
const LOOKS_APART: Duration = Duration::from_millis(5);

/// Letters that one look reads, at most.
const LETTERS_MAX: usize = 4096;

/// How long letters are kept: a command is answered, or given up, long before.
const LETTERS_KEPT: Duration = Duration::from_secs(60);

/// Rings bells and sends letters. `$1`: the channel, `$2`: the sender, `$3`: bells, `$4`: who each letter is for, null for
/// all, `$5`: what it says.
pub const TELL: &str = "
    with sent as (
        insert into crewcast.letters (sender, receiver, message)
        select $2, receiver, message from unnest($4::bigint[], $5::text[]) with ordinality as letter (receiver, message, nth)
        order by nth
        returning id, receiver
    )
    select pg_notify($1, concat_ws(' ', $2, said)) from (
        select unnest($3::text[]) as said
        union all
        select * from (select concat_ws(' ', 'letter', id, receiver) from sent order by id) as letters
    ) as told";

/// Letters. `$1`: their ids, `$2`: who reads them. One that is for them alone is read once: anybody can say again that it is there.
pub const READ: &str = "
    with taken as (
        delete from crewcast.letters where id = any($1) and receiver = $2 returning id, sender, receiver, message
    )
    select sender, receiver, message from (
        select * from taken
        union all
        select id, sender, receiver, message from crewcast.letters where id = any($1) and receiver is null
    ) as letter
    order by id";

/// Deletes old letters. `$1`: how old they must be, in seconds, `$2`: how many at most.
pub const SWEEP: &str = "
    delete from crewcast.letters where id = any(array(
        select id from crewcast.letters where sent_at < now() - make_interval(secs => $1)
        order by sent_at limit $2 for update skip locked))";

/// What deletes letters that nobody waits for any more.
pub fn sweep() -> Sweep {
    Sweep { statement: SWEEP, age: LETTERS_KEPT }
}

/// Sends what is to be told until `stop`. What Postgres does not take is lost.
pub(super) async fn tell(db: Db, mut letters: mpsc::Receiver<Letter>, bus: Bus, stop: CancellationToken) {
    let mut batch = Vec::new();
    while stop.run_until_cancelled(letters.recv_many(&mut batch, BATCH_MAX)).await.is_some_and(|sent| sent > 0) {
        let count = batch.len() as u64;
        bus.0.metrics.bus_statements.inc();
        if !matches!(timeout(ANSWER_TIMEOUT, send(&db, &bus, std::mem::take(&mut batch))).await, Ok(Ok(()))) {
            bus.0.metrics.bus_dropped.inc_by(count);
        }
    }
}

async fn send(db: &Db, bus: &Bus, batch: Vec<Letter>) -> sqlx::Result<()> {
    let mut bells: Vec<&str> = batch.iter().filter_map(|letter| letter.message.bell()).collect();
    bells.sort_unstable();
    bells.dedup();
    let letters = batch.iter().filter(|letter| letter.message.bell().is_none());
    let message = |letter: &Letter| serde_json::to_string(&letter.message).expect("names and JSON");
    let letters = letters.map(|letter| (letter.to.map(NodeKey::to_sql), message(letter)));
    let (receivers, messages): (Vec<Option<i64>>, Vec<String>) = letters.unzip();
    let tell = sqlx::query(TELL).bind(CHANNEL).bind(bus.0.node.to_sql()).bind(&bells);
    tell.bind(receivers).bind(messages).execute(&mut db.acquire_own().await?).await?;
    Ok(())
}

/// Hears what others tell until `stop`.
pub(super) async fn listen(db: Db, bus: Bus, heard: mpsc::Sender<Come>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let error = tokio::select! {
            () = stop.cancelled() => return,
            Err(error) = hear(&db, &bus, &heard) => error,
        };
        bus.0.metrics.bus_connected.set(0);
        tracing::debug!(%error, "the bus is out of reach");
        stop.run_until_cancelled(sleep(RETRY)).await;
    }
}

/// One connection's life.
async fn hear(db: &Db, bus: &Bus, heard: &mpsc::Sender<Come>) -> sqlx::Result<std::convert::Infallible> {
    let mut listener = within(db.listener()).await?;
    within(listener.listen(CHANNEL)).await?;
    bus.0.metrics.bus_connected.set(1);
    let mut lost = true;
    loop {
        if lost {
            // Whatever was told before is to be looked up.
            say(bus, heard, None);
            lost = false;
        }
        let (mut told, next) = (Told::default(), Instant::now() + LOOKS_APART);
        match timeout(SILENCE_MAX, listener.try_recv()).await {
            // The connection was lost: the next call makes another one.
            Ok(notification) => match notification? {
                Some(notification) => told.add(&notification, bus.0.node),
                None => lost = true,
            },
            Err(_) => within(listener.listen(CHANNEL)).await?,
        }
        // Neither does a flood without an end keep what was told from being looked up.
        let enough = Instant::now() + LOOKS_APART;
        while !told.is_full()
            && !lost
            && Instant::now() < enough
            && let Ok(notification) = timeout(Duration::ZERO, listener.try_recv()).await
        {
            match notification? {
                Some(notification) => told.add(&notification, bus.0.node),
                None => lost = true,
            }
        }
        told.look_up(db, bus, heard).await?;
        sleep_until(next).await;
    }
}

async fn within<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// What a notification is about.
#[derive(Debug, PartialEq)]
enum Notice {
    Bell(Message),
    /// The letter of this id.
    Letter(i64),
}

/// What this node has to do with a notification. What is none of ours is another version's, or somebody's nonsense.
fn notice(text: &str, node: NodeKey) -> Option<Notice> {
    let mut words = text.split(' ');
    let sender = words.next()?.parse().ok().and_then(NodeKey::from_sql)?;
    let notice = match words.next()? {
        "letter" => {
            let id = words.next()?.parse().ok()?;
            let is_for_us = words.next().is_none_or(|receiver| receiver.parse() == Ok(node.to_sql()));
            is_for_us.then_some(Notice::Letter(id))?
        }
        bell => Notice::Bell(Message::of_bell(bell)?),
    };
    (sender != node && words.next().is_none()).then_some(notice)
}

/// Messages that were told since the last look, in bounded memory however many they are.
#[derive(Debug, Default)]
struct Told {
    bells: Vec<Message>,
    letters: BTreeSet<i64>,
}

impl Told {
    fn is_full(&self) -> bool {
        self.letters.len() >= LETTERS_MAX
    }

    fn add(&mut self, notification: &PgNotification, node: NodeKey) {
        match notice(notification.payload(), node) {
            None => {}
            Some(Notice::Bell(bell)) if self.bells.contains(&bell) => {}
            Some(Notice::Bell(bell)) => self.bells.push(bell),
            Some(Notice::Letter(id)) => {
                self.letters.insert(id);
            }
        }
    }

    async fn look_up(self, db: &Db, bus: &Bus, heard: &mpsc::Sender<Come>) -> sqlx::Result<()> {
        if !self.bells.is_empty() || !self.letters.is_empty() {
            bus.0.metrics.bus_looks.inc();
        }
        self.bells.into_iter().for_each(|bell| say(bus, heard, Some((bus.0.node, bell))));
        if self.letters.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = self.letters.into_iter().collect();
        let mut conn = within(db.acquire_own()).await?;
        let letters = match read(&mut conn, bus, &ids).await {
            // One letter is lost, and not the bus.
            Err(error) if is_of_a_row(&error) => one_by_one(&mut conn, bus, &ids).await?,
            letters => letters?,
        };
        letters.into_iter().filter_map(|letter| open(bus, letter)).for_each(|come| say(bus, heard, Some(come)));
        Ok(())
    }
}

/// A letter as the table has it.
type Stored = (i64, Option<i64>, String);

async fn read(conn: &mut Conn, bus: &Bus, ids: &[i64]) -> sqlx::Result<Vec<Stored>> {
    within(sqlx::query_as(READ).bind(ids).bind(bus.0.node.to_sql()).fetch_all(conn)).await
}

async fn one_by_one(conn: &mut Conn, bus: &Bus, ids: &[i64]) -> sqlx::Result<Vec<Stored>> {
    let mut letters = Vec::new();
    for id in ids {
        match read(conn, bus, &[*id]).await {
            Err(error) if is_of_a_row(&error) => _ = bus.0.metrics.unreadable.count("what", "letter"),
            letter => letters.extend(letter?),
        }
    }
    Ok(letters)
}

/// A letter as the table has it; its sender is none of whom a notification tells.
fn open(bus: &Bus, (sender, receiver, message): Stored) -> Option<(NodeKey, Message)> {
    let from = NodeKey::from_sql(sender)?;
    // Of another version, which says what this one does not know.
    let message = serde_json::from_str(&message).ok()?;
    bus.open(Letter { from, to: receiver.and_then(NodeKey::from_sql), message })
}

/// Nobody waits for whoever hears: what they have no room for is lost.
fn say(bus: &Bus, heard: &mpsc::Sender<Come>, come: Come) {
    if heard.try_send(come).is_err() {
        bus.0.metrics.bus_dropped.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_says_who_rings_or_which_letter_is_for_whom() {
        let (us, other) = (NodeKey::random(), NodeKey::random());
        let (own, theirs) = (us.to_sql(), other.to_sql());
        for (text, expected) in [
            (format!("{theirs} log"), Some(Notice::Bell(Message::Log))),
            (format!("{theirs} presence"), Some(Notice::Bell(Message::Presence))),
            (format!("{theirs} sessions"), Some(Notice::Bell(Message::Sessions))),
            (format!("{theirs} letter 7"), Some(Notice::Letter(7))),
            (format!("{theirs} letter 7 {own}"), Some(Notice::Letter(7))),
            (format!("{theirs} letter 7 {theirs}"), None),
            (format!("{own} log"), None),
            (format!("{own} letter 7"), None),
        ] {
            assert_eq!(notice(&text, us), expected, "{text}");
        }
        let nonsense = ["", "log", "x log", "-1 log", "7 letter", "7 letter x", "7 later", "7 log log", "7 letter 7 x"];
        for text in nonsense {
            assert_eq!(notice(text, us), None, "{text}");
        }
    }
}
