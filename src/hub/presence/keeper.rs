//! The keeper: the one task of a node that writes who is on it, and reads who is on the others.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Presence, ROW_KEPT,
    leases::{Beat, Follow, Leases},
    store::{self, Batch, Row},
};
use crate::{
    bus::{Bus, Message},
    db::{Conn, Db},
    ids::NodeKey,
};

/// The longest time between two looks at what the other nodes wrote.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So long what happens is gathered before it is written: ten times a second at most, however fast streams come. Only the
/// other nodes wait for it.
pub(super) const GATHER: Duration = Duration::from_millis(100);

/// Postgres not answering for so long is away. Nobody waits for the keeper but the end of the process.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The same at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);

/// How often old rows are deleted.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// The task's state.
#[derive(Debug)]
pub struct Keeper {
    presence: Arc<Presence>,
    db: Db,
    name: String,
    bus: Bus,
    leases: Leases,
    look_every: Duration,
    beat_every: Duration,
    beat: i64,
    batch: i64,
    /// Whether our row was written, so that it must be there.
    is_known: bool,
    beaten: Option<Instant>,
    forget_at: Instant,
}

impl Keeper {
    /// Reads who is there by now. A Postgres that does not answer is asked again by and by.
    pub async fn prime(presence: Arc<Presence>, db: Db, name: String, bus: Bus) -> Self {
        let lease = presence.settings.lease;
        let (look_every, beat_every) = (LOOK_EVERY.min(lease / 4), lease / 4);
        let leases = Leases::new(lease, look_every, ROW_KEPT / 2);
        let mut keeper = Self {
            presence,
            db,
            name,
            bus,
            leases,
            look_every,
            beat_every,
            beat: 0,
            batch: 0,
            is_known: false,
            beaten: None,
            forget_at: Instant::now() + FORGET_EVERY,
        };
        keeper.look().await;
        keeper.write_what_is_due().await;
        keeper
    }

    /// Writes and reads until `stop`, and then says good-bye.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut look_at = Instant::now() + self.look_every;
        loop {
            let presence = self.presence.clone();
            let is_rung = tokio::select! {
                () = stop.cancelled() => break,
                () = presence.look.notified() => true,
                () = presence.dirty.notified() => {
                    stop.run_until_cancelled(sleep(GATHER)).await;
                    false
                }
                () = sleep_until(look_at) => false,
            };
            let turn = async {
                self.write_what_is_due().await;
                if is_rung || look_at <= Instant::now() {
                    self.look().await;
                    look_at = Instant::now() + self.look_every;
                }
            };
            if stop.run_until_cancelled(turn).await.is_none() {
                break;
            }
        }
        self.say_good_bye().await;
    }

    async fn write_what_is_due(&mut self) {
        let is_beat = self.beaten.is_none_or(|beaten| beaten.elapsed() >= self.beat_every);
        if !(is_beat || self.presence.has_to_write()) {
            return;
        }
        let batch = self.presence.take_batch(false);
        self.write(batch, false).await;
    }

    /// Writes a batch, and what it did not get to write again with the next one.
    async fn write(&mut self, mut batch: Batch, ended: bool) {
        let written = timeout(ANSWER_TIMEOUT, self.try_to_write(&mut batch, ended)).await;
        match written.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(()) => self.beaten = Some(Instant::now()),
            Err(error) => {
                self.presence.put_back(batch);
                self.failed(&error);
            }
        }
    }

    async fn try_to_write(&mut self, batch: &mut Batch, ended: bool) -> sqlx::Result<()> {
        // A number is never used twice, also when nobody knows whether it was written.
        self.beat += 1;
        self.batch += i64::from(batch.is_news());
        let node = self.presence.node;
        let mut conn = self.db.acquire_own().await?;
        conn.begin().await?;
        let is_new = self.write_own(&mut conn, ended).await?;
        if is_new && self.is_known {
            // A crash has emptied the tables, or we were away for so long that we were swept.
            self.presence.take_again(batch);
            self.batch += 1;
            self.write_own(&mut conn, ended).await?;
        }
        if ended {
            // What a write that was given up at the end would have said.
            store::end(&mut conn, node, self.batch).await?;
        }
        if self.forget_at <= Instant::now() {
            store::forget(&mut conn, node, ROW_KEPT).await?;
            self.forget_at = Instant::now() + FORGET_EVERY;
        }
        let statements = store::write(&mut conn, node, self.batch, batch).await?;
        conn.commit().await?;
        self.presence.metrics.presence_statements.inc_by(statements);
        self.is_known = true;
        if batch.is_news() || is_new {
            self.bus.tell(Message::Presence);
        }
        Ok(())
    }

    async fn write_own(&self, conn: &mut Conn, ended: bool) -> sqlx::Result<bool> {
        let beat = Beat { node: self.presence.node, beat: self.beat, batch: self.batch, ended, age: Duration::ZERO };
        let (is_new, micros) = store::write_node(conn, beat, &self.name).await?;
        self.presence.set_clock(micros);
        Ok(is_new)
    }

    /// Looks at what the other nodes wrote.
    async fn look(&mut self) {
        let looked = timeout(ANSWER_TIMEOUT, self.try_to_look()).await;
        if let Err(error) = looked.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            self.leases.failed();
            self.presence.set_living(HashSet::new());
            self.failed(&error);
        }
    }

    async fn try_to_look(&mut self) -> sqlx::Result<()> {
        let mut conn = self.db.acquire_own().await?;
        let at = Instant::now();
        let beats = store::nodes(&mut conn, self.presence.node).await?;
        let findings = self.leases.looked(&beats, at);
        let mut read = Vec::new();
        for (node, follow) in findings.read {
            read.push((node, follow, self.read(&mut conn, node, follow).await?));
        }
        for (node, batch) in self.take_in(read) {
            let known = beats.iter().find(|beat| beat.node == node).map(|beat| beat.batch);
            self.leases.followed(node, known.max(batch).unwrap_or(-1), at);
        }
        // Whoever left a dead node for another is there by now.
        for node in &findings.dead {
            tracing::warn!(%node, "a node gives no sign of life: its users have left");
            self.presence.kept(*node, &HashSet::new());
        }
        self.presence.set_living(self.leases.living());
        self.bus.set_alone(self.leases.alive() == 0);
        self.presence.metrics.presence_nodes.set(self.leases.alive().try_into().unwrap_or(i64::MAX));
        Ok(())
    }

    /// A node's streams that can be read.
    async fn read(&self, conn: &mut Conn, node: NodeKey, follow: Follow) -> sqlx::Result<Vec<Row>> {
        let (rows, unreadable) = store::rows(conn, node, follow).await?;
        if unreadable > 0 {
            (0..unreadable).for_each(|_| _ = self.presence.metrics.unreadable.count("what", "presence"));
            tracing::warn!(%node, unreadable, "some of a node's streams cannot be read: the others are shown without them");
        }
        Ok(rows)
    }

    /// Takes what several nodes wrote into the picture, all at once: a user may have gone from one to another. The last batch
    /// that was read of each.
    fn take_in(&self, read: Vec<(NodeKey, Follow, Vec<Row>)>) -> Vec<(NodeKey, Option<i64>)> {
        let now = Instant::now();
        let (mut facts, mut stamp, mut batches, mut whole) = (Vec::new(), 0, Vec::new(), Vec::new());
        for (node, follow, rows) in read {
            batches.push((node, rows.iter().map(|row| row.batch).max()));
            stamp = rows.iter().filter_map(|row| row.stamp).max().unwrap_or(0).max(stamp);
            if follow == Follow::Whole {
                whole.push((node, rows.iter().map(|row| row.stream).collect()));
            }
            facts.extend(rows.into_iter().map(|row| row.facts(now)));
        }
        self.presence.heard(facts, stamp);
        for (node, streams) in &whole {
            self.presence.kept(*node, streams);
        }
        batches
    }

    /// Leaves behind for how long each user of this node stays.
    async fn say_good_bye(mut self) {
        self.presence.close_all();
        let batch = self.presence.take_batch(true);
        if timeout(LAST_TIMEOUT, self.write(batch, true)).await.is_err() {
            tracing::warn!("the other nodes are not told for how long the users of this one stay");
        }
    }

    /// That Postgres is out of reach is told by whoever found out.
    fn failed(&self, error: &sqlx::Error) {
        if self.db.is_reachable() {
            tracing::debug!(%error, "presence is not shared with the other nodes for a moment");
        }
    }
}

impl Presence {
    fn has_to_write(&self) -> bool {
        !self.state().dirty.is_empty()
    }

    /// What is to be written: what has changed, or all that there is.
    pub(super) fn take_batch(&self, whole: bool) -> Batch {
        let mut state = self.state();
        let mut streams = std::mem::take(&mut state.dirty);
        if whole {
            streams.extend(state.view.streams().filter(|stream| NodeKey::of(*stream) == self.node));
        }
        let mut batch = Batch::default();
        for stream in streams {
            match state.view.facts(stream) {
                Some(facts) => batch.put.push((stream, facts.clone())),
                None => batch.gone.push(stream),
            }
        }
        batch
    }

    /// Makes all streams of it, together with what has happened since it was taken.
    pub(super) fn take_again(&self, batch: &mut Batch) {
        self.put_back(std::mem::take(batch));
        *batch = self.take_batch(true);
    }

    /// It could not be written.
    fn put_back(&self, batch: Batch) {
        self.state().dirty.extend(batch.put.iter().map(|(stream, _)| *stream).chain(batch.gone));
    }

    /// Every stream of this node that is still open closes.
    fn close_all(&self) {
        let streams: Vec<Uuid> = {
            let state = self.state();
            state.view.streams().filter(|stream| NodeKey::of(*stream) == self.node).collect()
        };
        for stream in streams {
            self.closed(stream, self.settings.grace);
        }
    }
}
