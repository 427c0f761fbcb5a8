//! A session: one stream, from its first frame to its last.
//!
//! It is one loop: read history until the pump's tail, then live, and back to history when it fell behind. Replay,
//! resume and lag are one path. [`Session::next`] gives one frame at a time and only when it is asked, so a client that
//! does not read makes nobody wait and nothing grow: the channel drops what it missed, and the log still has it.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{Counters, Hub, Routed, Tail};
use crate::{
    db::Db,
    error::Error,
    ids::TypeFilter,
    log::{self, Event, LogError, Page, Position, Reader, Reading, Scope},
    sse,
};

/// How long a client waits before it comes back, when nothing says otherwise, in milliseconds.
const RETRY_MS: u64 = 2000;
/// How long a session waits for Postgres before it asks for a page again.
const PAGE_RETRY: Duration = Duration::from_millis(250);

/// How long a new stream waits for the pump to look at the log.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// What every session is told.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// The longest silence on a stream.
    pub heartbeat: Duration,
    /// How long before its end a stream is told that its token expires.
    pub expiring_ahead: Duration,
    /// Events that a client may have missed and still be sent one by one.
    pub replay_events_max: i64,
    /// Payloads of more bytes go out as a reference.
    pub event_bytes_max: u64,
    /// The name of this node.
    pub node: String,
}

/// Who a stream belongs to.
#[derive(Debug, Clone, Serialize)]
pub struct User {
    /// The caller's `sub`.
    pub id: String,
    /// What they are called.
    pub name: Option<String>,
}

/// A room that the stream did not get, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Refused {
    /// Its name.
    pub room: String,
    /// One of the reasons of the wire contract.
    pub reason: &'static str,
}

/// What a stream is opened with.
#[derive(Debug)]
pub struct Opening {
    /// Names the stream.
    pub stream_id: uuid::Uuid,
    /// Whose it is.
    pub user: User,
    /// The rooms it is in.
    pub rooms: Vec<String>,
    /// The rooms it asked for in vain.
    pub refused: Vec<Refused>,
    /// The events it wants.
    pub types: TypeFilter,
    /// The id that the client saw last, as it sent it.
    pub last_event_id: Option<String>,
    /// When its credentials end.
    pub expires_at: OffsetDateTime,
}

/// Why a stream can't go on where the client was: it has to read its state again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reset {
    /// The position was made by another log.
    Foreign,
    /// Some of what follows it was deleted.
    TooOld,
    /// It is no position.
    Malformed,
    /// It claims transactions that this log does not have.
    Unknown,
    /// More was missed than is sent one by one.
    TooMany,
}

/// One stream.
pub struct Session {
    hub: Arc<Hub>,
    db: Db,
    settings: Arc<SessionSettings>,
    rooms: Vec<String>,
    types: TypeFilter,
    /// Frames that wait to be taken.
    out: VecDeque<Bytes>,
    /// All that was written or did not concern this stream: what a heartbeat claims.
    at: Position,
    /// Live events count from the read after this one.
    attached: u64,
    live: broadcast::Receiver<Routed>,
    source: Source,
    heartbeat: Interval,
    expiring: Option<Instant>,
    expires: Instant,
    expires_at: OffsetDateTime,
    stop: CancellationToken,
    _counted: Counted,
}

/// Where the next event comes from.
enum Source {
    History(Work<(Reader, Result<Page, LogError>)>, VecDeque<Reader>),
    Live,
    Attaching(Work<()>, Reset),
    Ended,
}

/// Work that goes on across frames: a heartbeat does not cancel it.
type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Step {
    Stop,
    Expired,
    Expiring,
    Beat,
    Read(Box<Reader>, Result<Page, LogError>),
    Live(Result<Routed, RecvError>),
    Attach(Reset),
}

impl Session {
    /// Judges where the stream begins and prepares its first frames.
    ///
    /// # Errors
    /// `unavailable` when Postgres does not say what was missed.
    pub async fn open(
        hub: Arc<Hub>,
        db: Db,
        settings: Arc<SessionSettings>,
        opening: Opening,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        if !db.is_reachable() {
            return Err(out_of_reach());
        }
        let (mut live, mut tail) = hub.attach();
        let mut start = Start::Live;
        if let Some(text) = &opening.last_event_id {
            match text.parse::<Position>() {
                Ok(position) => {
                    if !reaches(&tail, &position) {
                        // Another node, or a read of the state, was faster than our pump.
                        timeout(CATCH_UP_TIMEOUT, hub.catch_up()).await.map_err(|_| out_of_reach())?;
                        (live, tail) = hub.attach();
                    }
                    start = judge(&db, &settings, &opening.rooms, position, &tail).await?;
                }
                Err(_) => start = Start::Reset(Reset::Malformed),
            }
        }
        let counted = Counted::new(&hub, opening.stream_id);
        let heartbeat = beats(settings.heartbeat);
        let (now, left) = (Instant::now(), opening.expires_at - OffsetDateTime::now_utc());
        let expires = now + Duration::try_from(left).unwrap_or_default();
        let mut session = Self {
            at: tail.at.clone(),
            attached: tail.read,
            live,
            source: Source::Live,
            out: VecDeque::new(),
            expiring: Some(expires.checked_sub(settings.expiring_ahead).unwrap_or(now)),
            expires,
            expires_at: opening.expires_at,
            heartbeat,
            rooms: opening.rooms.clone(),
            types: opening.types.clone(),
            hub,
            db,
            settings,
            stop,
            _counted: counted,
        };
        session.greet(&opening, start, &tail);
        Ok(session)
    }

    /// The frames of the stream, until it ends.
    pub fn into_stream(mut self) -> impl Stream<Item = Bytes> + Send {
        async_stream::stream! {
            while let Some(frame) = self.next().await {
                yield frame;
            }
        }
    }

    /// The next frame; `None` once the stream has ended.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Some(frame);
            }
            if matches!(self.source, Source::Ended) {
                return None;
            }
            match self.step().await {
                Step::Stop => self.close("draining"),
                Step::Expired => self.close("expired"),
                Step::Expiring => self.expiring(),
                Step::Beat => self.beat(),
                Step::Read(reader, page) => self.read(*reader, page),
                Step::Live(routed) => self.routed(routed),
                Step::Attach(reason) => self.reset(reason),
            }
        }
    }

    async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Step::Stop,
            () = sleep_until(self.expires) => Step::Expired,
            () = sleep_until(self.expiring.unwrap_or(self.expires)), if self.expiring.is_some() => Step::Expiring,
            _ = self.heartbeat.tick() => Step::Beat,
            step = self.source.next(&mut self.live) => step,
        }
    }

    fn greet(&mut self, opening: &Opening, start: Start, tail: &Tail) {
        let (resume, id) = match &start {
            Start::Live => ("live", Some(tail.at.to_string())),
            Start::Replay(from, _) => ("replayed", Some(from.to_string())),
            Start::Reset(_) => ("reset", None),
        };
        let open = json!({
            "streamId": opening.stream_id, "user": opening.user, "rooms": opening.rooms, "refused": opening.refused,
            "resume": resume, "heartbeatMs": self.settings.heartbeat.as_millis() as u64, "node": self.settings.node,
        });
        self.out.push_back(sse::retry(RETRY_MS));
        self.out.push_back(sse::event("stream:open", id.as_deref(), &open.to_string()));
        match start {
            Start::Live => {}
            Start::Replay(from, readers) => {
                Counters::add(&self.hub.counters.replays, 1);
                self.at = from;
                self.source = Source::history(&self.db, readers);
            }
            Start::Reset(reason) => self.push_reset(reason),
        }
    }

    fn push_reset(&mut self, reason: Reset) {
        Counters::add(&self.hub.counters.resets, 1);
        let id = self.at.to_string();
        let data = json!({ "reason": reason, "cursor": id });
        self.out.push_back(sse::event("stream:reset", Some(&id), &data.to_string()));
    }

    fn control(&mut self, kind: &str, data: &serde_json::Value) {
        let id = self.at.to_string();
        self.out.push_back(sse::event(kind, Some(&id), &data.to_string()));
    }

    fn beat(&mut self) {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        self.control(crate::ids::HEARTBEAT, &json!({ "at": at }));
    }

    fn expiring(&mut self) {
        self.expiring = None;
        let at = self.expires_at.format(&Rfc3339).unwrap_or_default();
        self.control("stream:expiring", &json!({ "expiresAt": at }));
    }

    fn close(&mut self, reason: &str) {
        self.out.push_back(sse::retry(RETRY_MS));
        self.control("stream:closing", &json!({ "reason": reason, "reconnectInMs": RETRY_MS }));
        self.source = Source::Ended;
    }

    fn routed(&mut self, routed: Result<Routed, RecvError>) {
        match routed {
            Ok(Routed::Event(live)) if live.read > self.attached => {
                self.at = live.at.clone();
                if self.wants(&live.event) {
                    self.out.push_back(live.frame.clone());
                    self.heartbeat.reset();
                }
            }
            Ok(Routed::Settled(read, at)) if read > self.attached => self.at = at,
            Ok(Routed::Skipped(read)) if read > self.attached => self.fall_back(),
            Ok(Routed::Renewed(read, at)) if read > self.attached => {
                self.at = at;
                self.push_reset(Reset::Foreign);
            }
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => self.fall_back(),
            Err(RecvError::Closed) => self.close("draining"),
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.types.passes(&event.kind) && event.rooms.iter().any(|room| self.rooms.contains(room))
    }

    /// From the channel back to the log, from where this stream is to where the pump is.
    fn fall_back(&mut self) {
        Counters::add(&self.hub.counters.lagged, 1);
        let tail = self.attach();
        if tail.at.epoch() != self.at.epoch() {
            self.at = tail.at;
            return self.push_reset(Reset::Foreign);
        }
        let readers = readers(&self.at, &tail, &self.rooms, self.settings.event_bytes_max);
        self.source = Source::history(&self.db, readers);
    }

    fn attach(&mut self) -> Tail {
        let (live, tail) = self.hub.attach();
        (self.live, self.attached) = (live, tail.read);
        tail
    }

    fn read(&mut self, reader: Reader, page: Result<Page, LogError>) {
        let Source::History(_, rest) = &mut self.source else { return };
        let mut rest = std::mem::take(rest);
        let page = match page {
            Ok(page) => page,
            Err(error) => return self.unread(reader, rest, &error),
        };
        let end = page.events.len();
        for (nth, event) in page.events.into_iter().enumerate() {
            let is_end = page.last && nth + 1 == end;
            self.at = if is_end { reader.reading().end() } else { reader.reading().at(event.seq) };
            if self.types.passes(&event.kind) {
                self.out.push_back(sse::event(&event.kind, Some(&self.at.to_string()), &event.data));
            }
        }
        if page.last {
            self.at = reader.reading().end();
        } else {
            rest.push_front(reader);
        }
        if !self.out.is_empty() {
            self.heartbeat.reset();
        }
        self.source = Source::history(&self.db, rest);
    }

    fn unread(&mut self, reader: Reader, mut rest: VecDeque<Reader>, error: &LogError) {
        let reason = match error {
            LogError::TooOld => Reset::TooOld,
            LogError::Foreign => Reset::Foreign,
            error => {
                tracing::debug!(%error, "a page of history waits for Postgres");
                rest.push_front(reader);
                self.source = Source::history_later(&self.db, rest, PAGE_RETRY);
                return;
            }
        };
        let hub = self.hub.clone();
        self.source = Source::Attaching(Box::pin(async move { hub.catch_up().await }), reason);
    }

    /// Starts anew at the tail, and says so.
    fn reset(&mut self, reason: Reset) {
        self.at = self.attach().at;
        self.source = Source::Live;
        self.push_reset(reason);
    }
}

impl Source {
    /// Reads these, one after the other; nothing to read is live.
    fn history(db: &Db, readers: VecDeque<Reader>) -> Self {
        Self::history_later(db, readers, Duration::ZERO)
    }

    fn history_later(db: &Db, mut readers: VecDeque<Reader>, wait: Duration) -> Self {
        let Some(mut reader) = readers.pop_front() else { return Self::Live };
        let db = db.clone();
        let page = async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let page = async { reader.page(&mut *db.acquire_raw().await?).await }.await;
            (reader, page)
        };
        Self::History(Box::pin(page), readers)
    }

    /// Cancelling this loses nothing: the work goes on at the next call.
    async fn next(&mut self, live: &mut broadcast::Receiver<Routed>) -> Step {
        match self {
            Self::History(page, _) => {
                let (reader, page) = page.await;
                Step::Read(Box::new(reader), page)
            }
            Self::Live => Step::Live(live.recv().await),
            Self::Attaching(work, reason) => {
                work.await;
                Step::Attach(*reason)
            }
            Self::Ended => Step::Stop,
        }
    }
}

/// Where a stream begins.
enum Start {
    Live,
    Replay(Position, VecDeque<Reader>),
    Reset(Reset),
}

fn out_of_reach() -> Error {
    Error::unavailable("The database is out of reach.")
}

fn reaches(tail: &Tail, position: &Position) -> bool {
    tail.at.epoch() == position.epoch() && tail.at.includes(position.reach())
}

/// Whether a client's position can be resumed, and by which reads.
async fn judge(
    db: &Db,
    settings: &SessionSettings,
    rooms: &[String],
    position: Position,
    tail: &Tail,
) -> Result<Start, Error> {
    if tail.at.epoch() != position.epoch() {
        return Ok(Start::Reset(Reset::Foreign));
    }
    if !reaches(tail, &position) {
        return Ok(Start::Reset(Reset::Unknown));
    }
    if !position.includes(&tail.floor) {
        return Ok(Start::Reset(Reset::TooOld));
    }
    let mut readers = readers(&position, tail, rooms, settings.event_bytes_max);
    let mut left = settings.replay_events_max;
    if !readers.is_empty() {
        let mut conn = db.acquire().await?;
        for reader in &mut readers {
            match reader.count(&mut conn, left).await {
                Ok(Some(count)) => left -= count,
                Ok(None) => return Ok(Start::Reset(Reset::TooMany)),
                Err(LogError::TooOld) => return Ok(Start::Reset(Reset::TooOld)),
                Err(LogError::Foreign) => return Ok(Start::Reset(Reset::Foreign)),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(Start::Replay(position, readers))
}

/// From a position to the tail: the rest of the read that it lies in, if it does, then everything since.
fn readers(from: &Position, tail: &Tail, rooms: &[String], bytes_max: u64) -> VecDeque<Reader> {
    let scope = Scope::Rooms(rooms.to_vec());
    let legs: Vec<(Reading, i64)> = log::legs(from, tail.at.base());
    legs.into_iter().map(|(reading, after)| Reader::resume(reading, after, scope.clone(), bytes_max)).collect()
}

fn beats(every: Duration) -> Interval {
    let mut beats = interval_at(Instant::now() + every, every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// Counts a stream for as long as it lives.
struct Counted {
    hub: Arc<Hub>,
    stream_id: uuid::Uuid,
}

impl Counted {
    fn new(hub: &Arc<Hub>, stream_id: uuid::Uuid) -> Self {
        Counters::add(&hub.counters.streams, 1);
        Counters::add(&hub.counters.streams_opened, 1);
        tracing::debug!(target: "crewcast::events", %stream_id, "stream opened");
        Self { hub: hub.clone(), stream_id }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.hub.counters.streams.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        tracing::debug!(target: "crewcast::events", stream_id = %self.stream_id, "stream closed");
    }
}
