//! The pump: the one task of a node that reads the log as it grows.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Hub, HubSettings, Live, Routed, Tail, Warden, route::route};
use crate::{
    db::{Conn, Db},
    log::{
        self, Event, FRESH_MAX, LogError, Now, Page, Position, Reader, Reading, Scope,
        epoch::{self, Failover, Proof},
        named,
        rows::is_of_a_row,
    },
    metrics::Metrics,
};

/// Postgres not answering one of the pump's small statements for this long is out of reach.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a page of events, which may be large.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often those are doubled for what was not answered in time.
const DOUBLINGS_MAX: u32 = 4;
/// Waits before connecting again: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Events of one read that may take rights from somebody; with so many everybody is judged.
const TAKINGS_MAX: i64 = 1000;

/// Streams that are judged by one statement.
const JUDGED_MAX: usize = 1000;

/// The longest that the pump waits for the router to make room in the channel.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// What the pump is told.
#[derive(Debug, Clone)]
pub struct PumpSettings {
    /// The longest time between two looks at the log, when no commit rings the bell.
    pub poll: Duration,
    /// Payloads of more bytes go out as a reference.
    pub event_bytes_max: u64,
    /// What a promoted standby means.
    pub failover: Failover,
}

/// The task's state.
#[derive(Debug)]
pub struct Pump {
    db: Db,
    settings: PumpSettings,
    hub: Arc<Hub>,
    /// The position up to which everything was sent, inside a read while that is being routed.
    last: Position,
    /// The events last sent: after a reconnect they must still be there.
    proof: Vec<Proof>,
    patience: Patience,
}

/// How much longer than usual Postgres may take. What the pump asks it asks again after a new connection: at a bound that
/// does not move, a statement that needs longer would end there for ever. So each that is not answered in time gets all
/// of them twice as long, until the pump has got on.
#[derive(Debug, Default)]
struct Patience(AtomicU32);

impl Patience {
    async fn within<T>(
        &self,
        usual: Duration,
        answer: impl Future<Output = Result<T, LogError>>,
    ) -> Result<T, LogError> {
        let doublings = self.0.load(Ordering::Relaxed);
        timeout(usual * (1 << doublings), answer).await.unwrap_or_else(|_| {
            self.0.store((doublings + 1).min(DOUBLINGS_MAX), Ordering::Relaxed);
            Err(SILENT)
        })
    }

    /// The pump has got on.
    fn is_rewarded(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Pump {
    /// Checks the log's identity, adopts it if need be, and takes the first position: streams begin there.
    ///
    /// # Errors
    /// When Postgres does not answer or is a standby.
    pub async fn prime(
        db: Db,
        settings: PumpSettings,
        hub: HubSettings,
        metrics: Arc<Metrics>,
        warden: Arc<dyn Warden>,
    ) -> Result<(Self, Arc<Hub>), LogError> {
        let mut conn = db.connect_at_start().await?;
        if let Some(reason) = epoch::verify(&mut conn, settings.failover, None).await? {
            tracing::warn!(reason, "the log has a new epoch: every stream starts anew");
        }
        let now = db.now(&mut conn, &[]).await?;
        named::keep(&mut conn, &[&now.snapshot]).await?;
        let last = now.position();
        let hub = Hub::new(db.clone(), hub, metrics, now, warden);
        let patience = Patience::default();
        let pump = Self { db, settings, hub: hub.clone(), last, proof: Vec::new(), patience };
        Ok((pump, hub))
    }

    /// Reads the log, and routes it to the streams, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let router = route(self.hub.clone(), self.hub.live.subscribe(), stop.clone());
        // Neither is of use without the other: when one ends, so does the other.
        tokio::select! {
            () = router => {}
            () = self.read(stop) => {}
        }
    }

    async fn read(mut self, stop: CancellationToken) {
        let mut wait = BACKOFF.0;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let error = tokio::select! {
                () = stop.cancelled() => return,
                Err(error) = self.follow() => error,
            };
            self.hub.contact.is_lost();
            // That Postgres is out of reach is told by whoever found out. The first failure after a good time is news; the ones
            // that follow it are not.
            if self.hub.metrics.pump_connected.set(0) == 1 && self.db.is_reachable() {
                tracing::warn!(%error, "the log is not read for a moment; streams stay open");
            }
            wait = if started.elapsed() > BACKOFF.1 { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One connection's life.
    async fn follow(&mut self) -> Result<std::convert::Infallible, LogError> {
        let mut conn = self.db.connect().await?;
        let last = Some((&self.last, self.proof.as_slice()));
        if let Some(reason) = self.within(epoch::verify(&mut conn, self.settings.failover, last)).await? {
            tracing::warn!(reason, "the log has a new epoch: every stream is told");
        }
        self.finish(&mut conn).await?;
        self.hub.metrics.pump_connected.set(1);
        let bell = self.db.bell();
        loop {
            let asked = self.hub.asked.load(Ordering::SeqCst);
            let now = self.now(&mut conn, &self.last.base().beyond()).await?;
            self.advance(&mut conn, now, asked).await?;
            self.patience.is_rewarded();
            self.hub.contact.is_made();
            let _ = timeout(self.settings.poll, bell.notified()).await;
        }
    }

    /// Routes what is new in `now`.
    async fn advance(&mut self, conn: &mut Conn, now: Now, asked: u64) -> Result<(), LogError> {
        let to = now.position();
        if to.epoch() != self.last.epoch() {
            self.proof.clear();
            return self.jump(conn, &now, asked).await;
        }
        if !now.snapshot.includes(self.last.base()) {
            // Only a database that was set back does that; a new connection finds out.
            return Err(LogError::Broken("its newest position lacks what was already read"));
        }
        if to == self.last {
            self.looked(&now, asked);
            return Ok(());
        }
        if !self.last.includes(&now.floor) {
            // What is new may have been let go before it was read here.
            return self.jump(conn, &now, asked).await;
        }
        if now.fresh.is_empty() {
            let read = self.announce_read(&now, asked);
            self.settle(read, to);
            return Ok(());
        }
        if now.fresh.len() > usize::try_from(FRESH_MAX).expect("a small constant") {
            return self.jump(conn, &now, asked).await;
        }
        let reading = Reading::new(to.epoch().clone(), self.last.base().clone(), now.snapshot.clone())
            .expect("the new position is another one and includes the last");
        let mut reader = Reader::new(reading, Scope::All(now.fresh.clone()), self.settings.event_bytes_max);
        // Announced only once its first events are here: a read that fails before that has never been.
        let page = match self.page(&mut reader, conn).await {
            Err(LogError::TooOld) => {
                return self.jump(conn, &now, asked).await;
            }
            Err(LogError::Unreadable(damage)) => {
                self.hub.note(&damage);
                return self.jump(conn, &now, asked).await;
            }
            page => page?,
        };
        self.heed_rights(conn, &page, &now.fresh).await?;
        let read = self.announce_read(&now, asked);
        match self.route(conn, reader, Some(page), read).await {
            // Nobody knows whose it is: each session finds out by the rooms that it reads.
            Err(LogError::Unreadable(damage)) => {
                self.hub.note(&damage);
                self.jump(conn, &now, asked).await
            }
            routed => routed,
        }
    }

    /// Whatever a read says of rights holds before anything of it is sent, since what was made later may stand before it.
    async fn heed_rights(&self, conn: &mut Conn, first: &Page, fresh: &[i64]) -> Result<(), LogError> {
        let warden = &self.hub.warden;
        let takes = |event: &&Event| warden.takes_rights(&event.kind, &event.data);
        let rooms: Vec<String> = if first.last {
            first.events.iter().filter(takes).flat_map(|event| event.rooms.iter().cloned()).collect()
        } else {
            // The rest of the read is not here yet.
            let told = log::of_kinds(conn, fresh, warden.kinds(), self.settings.event_bytes_max, TAKINGS_MAX);
            let told = match self.patience.within(PAGE_TIMEOUT, told).await {
                // What it takes from whom cannot be read.
                Err(LogError::Db(error)) if is_of_a_row(&error) => None,
                told => told?,
            };
            let Some(told) = told else {
                return self.judge(conn, None).await;
            };
            told.iter().filter(takes).flat_map(|event| event.rooms.iter().cloned()).collect()
        };
        if rooms.is_empty() { Ok(()) } else { self.judge(conn, Some(&rooms)).await }
    }

    async fn judge(&self, conn: &mut Conn, rooms: Option<&[String]>) -> Result<(), LogError> {
        let mut suspects = self.hub.suspects(rooms);
        while !suspects.is_empty() {
            let rest = suspects.split_off(suspects.len().min(JUDGED_MAX));
            let judging = self.hub.warden.judge(conn, std::mem::replace(&mut suspects, rest));
            let judging = async {
                judging.await.map_err(|error| {
                    tracing::debug!(%error, "rights are not judged");
                    LogError::Broken("the rights of open streams cannot be judged")
                })
            };
            let verdicts = self.patience.within(ANSWER_TIMEOUT, judging).await?;
            self.hub.apply(verdicts);
        }
        Ok(())
    }

    /// Goes on with a read that a lost connection cut: the sessions have some of its events already.
    async fn finish(&mut self, conn: &mut Conn) -> Result<(), LogError> {
        let Some((to, after)) = self.last.rest() else { return Ok(()) };
        let (from, to, epoch) = (self.last.base().clone(), to.clone(), self.last.epoch().clone());
        let now = self.now(conn, &to.minus(&from)).await?;
        if now.epoch != epoch {
            return Ok(());
        }
        let reading = Reading::new(epoch, from, to).expect("a position inside a read");
        let scope = Scope::All(now.fresh);
        let reader = Reader::resume(reading, after, scope, self.settings.event_bytes_max);
        let read = self.hub.announced.borrow().read;
        match self.route(conn, reader, None, read).await {
            // The floor has passed the read: asking again would be refused for ever.
            Err(LogError::TooOld) => self.skip_rest(conn).await,
            Err(LogError::Unreadable(damage)) => {
                self.hub.note(&damage);
                self.skip_rest(conn).await
            }
            routed => routed,
        }
    }

    /// Gives up a read whose beginning the log has let go.
    async fn skip_rest(&mut self, conn: &mut Conn) -> Result<(), LogError> {
        let asked = self.hub.asked.load(Ordering::SeqCst);
        let now = self.now(conn, &[]).await?;
        if now.epoch == *self.last.epoch() {
            self.jump(conn, &now, asked).await?;
        }
        Ok(())
    }

    async fn route(
        &mut self,
        conn: &mut Conn,
        mut reader: Reader,
        first: Option<Page>,
        read: u64,
    ) -> Result<(), LogError> {
        let mut next = first;
        loop {
            self.make_room().await;
            let page = match next.take() {
                Some(page) => page,
                None => self.page(&mut reader, conn).await?,
            };
            if !page.events.is_empty() {
                self.proof = page.events.iter().map(Proof::from).collect();
            }
            if let Some(damage) = &page.damage {
                self.hub.note(damage);
            }
            let end = page.events.len();
            for (nth, event) in page.events.into_iter().enumerate() {
                let is_end = page.last && nth + 1 == end;
                let at = if is_end { reader.reading().end() } else { reader.reading().at(event.seq) };
                self.send(read, event, at);
            }
            if page.last {
                self.settle(read, reader.reading().end());
                return Ok(());
            }
        }
    }

    fn send(&mut self, read: u64, event: Event, at: Position) {
        tracing::debug!(target: "crewcast::events", seq = event.seq, kind = event.kind, rooms = ?event.rooms, "event");
        self.last = at.clone();
        self.tell(Routed::Event(Arc::new(Live::new(read, event, at))));
    }

    fn settle(&mut self, read: u64, at: Position) {
        self.last = at;
        self.tell(Routed::Settled(read));
    }

    /// Goes on from `now`, over more than can be routed, over what the log has let go, or to another epoch: every session
    /// reads for itself.
    async fn jump(&mut self, conn: &mut Conn, now: &Now, asked: u64) -> Result<(), LogError> {
        self.judge(conn, None).await?;
        self.last = now.position();
        let tail = self.announce(now, asked, 1);
        self.tell(Routed::Jumped(tail));
        Ok(())
    }

    fn announce_read(&self, now: &Now, asked: u64) -> u64 {
        let tail = self.announce(now, asked, 1);
        let read = tail.read;
        self.tell(Routed::Announced(tail));
        read
    }

    /// There was nothing new: worth telling when somebody asked, or the floor rose.
    fn looked(&self, now: &Now, asked: u64) {
        let is_news = {
            let last = self.hub.announced.borrow();
            last.asked < asked || last.floor != now.floor
        };
        if is_news {
            let tail = self.announce(now, asked, 0);
            self.tell(Routed::Announced(tail));
        }
    }

    /// Announced first and told then: a router that lagged looks at the announcement.
    fn announce(&self, now: &Now, asked: u64, reads: u64) -> Arc<Tail> {
        self.hub.metrics.pump_reads.inc_by(reads);
        let read = self.hub.announced.borrow().read + reads;
        let tail = Arc::new(Tail { read, at: now.position(), floor: now.floor.clone(), asked });
        self.hub.announced.send_replace(tail.clone());
        tail
    }

    fn tell(&self, routed: Routed) {
        // The router has ended: so will the pump.
        let _ = self.hub.live.send(routed);
    }

    /// Lets the router take what it was sent, so that a large transaction does not make it lag. It never waits for a
    /// stream, so it is quick; if it is not, the pump goes on.
    async fn make_room(&self) {
        let (live, settings) = (&self.hub.live, &self.hub.settings);
        let is_full = || live.len() > settings.channel_events / 2;
        while is_full() {
            if timeout(ROOM_TIMEOUT, self.hub.room.notified()).await.is_err() {
                return;
            }
        }
    }

    /// The log now. Ids may name all of it.
    async fn now(&self, conn: &mut Conn, ranges: &[Range<u64>]) -> Result<Now, LogError> {
        let now = self.within(self.db.now(conn, ranges)).await?;
        if now.snapshot != *self.last.base() {
            self.within(named::keep(conn, &[&now.snapshot])).await?;
        }
        Ok(now)
    }

    async fn page(&self, reader: &mut Reader, conn: &mut Conn) -> Result<Page, LogError> {
        self.patience.within(PAGE_TIMEOUT, reader.page(conn)).await
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        self.patience.within(ANSWER_TIMEOUT, answer).await
    }
}

const SILENT: LogError = LogError::Broken("Postgres does not answer");

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_than_the_pump_waits_is_answered_in_the_end() {
        let patience = Patience::default();
        let slow = async |seconds| {
            let answer = async {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(())
            };
            patience.within(ANSWER_TIMEOUT, answer).await.is_ok()
        };
        assert_eq!([slow(1).await, slow(7).await, slow(7).await, slow(7).await], [true, false, false, true]);
        patience.is_rewarded();
        assert!(!slow(3).await, "what is usual again is usual");
        assert!(slow(3).await);
        let mut failed = 0;
        while !slow(600).await && failed < 10 {
            failed += 1;
        }
        assert_eq!(failed, 10, "nobody waits for ever");
    }
}
