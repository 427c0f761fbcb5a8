//! A session: one stream, from its first frame to its last.
//!
//! It is one loop: read history until the router, then the mailbox, and history again when that overflowed. Replay,
//! resume and lag are one path. A session is a body: the connection asks it for a chunk when its socket has room, so a
//! client that does not read makes nobody wait, and nothing grows but a mailbox up to its bound.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    Closing, Hub, Tail,
    chunk::Chunk,
    frames::{ClosingReason, Expiring, Heartbeat, Open, Refused, Reset, ResetTo, Resume, User},
    mailbox::Taken,
    past::{self, Chapter, Pages},
    seat::{Attached, Seat},
};
use crate::{
    error::Error,
    ids::{HEARTBEAT, TypeFilter},
    log::{LogError, Position, Reader},
    sse,
};

/// How long a client waits before it comes back, when nothing says otherwise, in milliseconds.
pub(super) const RETRY_MS: u64 = 2000;

/// Of so many pieces one is taken into the lag's account: looking at the clock and adding cost more than they tell.
const LAG_EVERY: u64 = 16;

/// How long a new stream waits for the pump to look at the log.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

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

/// One stream.
pub struct Session {
    seat: Seat,
    stream_id: uuid::Uuid,
    types: TypeFilter,
    /// Frames of the stream itself, which go out before anything else.
    own: Vec<Bytes>,
    /// All that was handed over or does not concern this stream: what the next frame of its own claims.
    at: Position,
    /// The router's read when this stream was attached, or that of its last event: `at` is behind its beginning.
    read: u64,
    source: Source,
    timer: Pin<Box<Sleep>>,
    /// Who the timer wakes: it is asked only when it may have something to say.
    timed: Option<Waker>,
    /// When something was handed over last; of a live event, when it was routed, which saves a look at the clock.
    quiet_since: Instant,
    expires: Expiry,
    /// Why it ended; none while it runs, and when the client left.
    ended: Option<ClosingReason>,
}

/// When a stream's credentials end.
struct Expiry {
    /// When the client is told; none once it was.
    told: Option<Instant>,
    at: Instant,
    date: OffsetDateTime,
}

/// Where the next event comes from.
enum Source {
    /// The mailbox.
    Live,
    /// These events, then what comes after them.
    Past(Box<(Chapter, Next)>),
    /// A place to begin anew from.
    Anew(Pin<Box<dyn Future<Output = ()> + Send>>, Reset),
    Ended,
}

/// What follows a chapter of the past.
enum Next {
    Live,
    /// The stream looks again where it stands.
    Attach,
    /// The log, up to the position that the mailbox goes on from.
    Log(Pages, Position),
}

/// Where a stream begins.
enum Start {
    Live,
    Replay(Position, Source),
    Reset(Reset),
}

impl Session {
    /// Takes a seat, judges where the stream begins, and prepares its first frames.
    ///
    /// # Errors
    /// `unavailable` when the node takes no more streams, or Postgres does not say what was missed; `too_many_streams` when
    /// it takes no more of this user.
    pub async fn open(hub: &Arc<Hub>, opening: Opening) -> Result<Self, Error> {
        if !hub.db.is_reachable() {
            return Err(out_of_reach());
        }
        let seat = Seat::take(hub, &opening.user.id, &opening.rooms, opening.types.clone()).inspect_err(|full| {
            hub.metrics.streams_refused.count("reason", full.as_str());
        })?;
        let (tail, start) = judge(&seat, opening.last_event_id.as_deref()).await?;
        let now = Instant::now();
        let left = Duration::try_from(opening.expires_at - OffsetDateTime::now_utc()).unwrap_or_default();
        let told = now + left.saturating_sub(hub.settings.expiring_ahead);
        let expires = Expiry { told: Some(told), at: now + left, date: opening.expires_at };
        let mut session = Self {
            stream_id: opening.stream_id,
            types: opening.types.clone(),
            own: Vec::new(),
            at: tail.at.clone(),
            read: tail.read,
            source: Source::Live,
            timer: Box::pin(sleep_until(now)),
            timed: None,
            quiet_since: now,
            expires,
            ended: None,
            seat,
        };
        hub.metrics.streams_opened.inc();
        tracing::debug!(target: "crewcast::events", stream_id = %session.stream_id, "stream opened");
        session.greet(&opening, start);
        Ok(session)
    }

    fn greet(&mut self, opening: &Opening, start: Start) {
        let (resume, id) = match &start {
            Start::Live => (Resume::Live, Some(self.at.to_string())),
            Start::Replay(from, _) => (Resume::Replayed, Some(from.to_string())),
            Start::Reset(_) => (Resume::Reset, None),
        };
        let settings = &self.seat.hub.settings;
        let open = Open {
            stream_id: opening.stream_id,
            user: &opening.user,
            rooms: &opening.rooms,
            refused: &opening.refused,
            resume,
            heartbeat_ms: settings.heartbeat.as_millis() as u64,
            node: &settings.node,
        };
        let open = frame("stream:open", id.as_deref(), &open);
        self.own.extend([sse::retry(RETRY_MS), open]);
        match start {
            Start::Live => {}
            Start::Replay(from, source) => (self.at, self.source) = (from, source),
            Start::Reset(reason) => self.push_reset(reason),
        }
    }

    fn push_reset(&mut self, reason: Reset) {
        self.seat.hub.metrics.resets.count("reason", reason.as_str());
        self.push_own("stream:reset", &ResetTo { reason, cursor: self.at.to_string() });
    }

    fn push_own(&mut self, kind: &str, data: &impl Serialize) {
        self.own.push(frame(kind, Some(&self.at.to_string()), data));
    }

    /// The next bytes; none once the stream has ended.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut chunk = Chunk::default();
        self.fill(&mut chunk, cx);
        self.tick(cx);
        if chunk.is_empty() && !self.own.is_empty() {
            self.fill(&mut chunk, cx);
        }
        if !chunk.is_empty() {
            return Poll::Ready(Some(self.handed_over(chunk)));
        }
        if matches!(self.source, Source::Ended) { Poll::Ready(None) } else { Poll::Pending }
    }

    fn handed_over(&mut self, chunk: Chunk) -> Bytes {
        let metrics = &self.seat.hub.metrics;
        let nth = metrics.writes.inc();
        metrics.deliveries.inc_by(chunk.events());
        metrics.delivered.inc_by(chunk.len() as u64);
        if let Some(appended) = chunk.appended()
            && nth.is_multiple_of(LAG_EVERY)
        {
            // The clock of Postgres, which may be ahead of ours.
            let lag = Duration::try_from(OffsetDateTime::now_utc() - appended).unwrap_or_default();
            metrics.delivery_lag.observe(lag);
        }
        chunk.into_bytes()
    }

    /// Adds what is there, until the chunk is full or nothing is ready.
    fn fill(&mut self, chunk: &mut Chunk, cx: &mut Context<'_>) {
        loop {
            if !self.fill_own(chunk) {
                return;
            }
            let filled = match self.source {
                Source::Live => self.fill_live(chunk, cx),
                Source::Past(_) => self.fill_past(chunk, cx),
                Source::Anew(..) => self.begin_anew(cx),
                Source::Ended => return,
            };
            if filled.is_pending() {
                return;
            }
        }
    }

    /// Adds the stream's own frames; whether all of them fitted.
    fn fill_own(&mut self, chunk: &mut Chunk) -> bool {
        if self.own.is_empty() {
            return true;
        }
        let added = self.own.iter().take_while(|frame| chunk.add(frame)).count();
        self.own.drain(..added);
        self.quiet_since = Instant::now();
        // They are rare: no memory is kept for the next ones.
        self.own.shrink_to_fit();
        self.own.is_empty()
    }

    fn fill_live(&mut self, chunk: &mut Chunk, cx: &Context<'_>) -> Poll<()> {
        let (at, read, quiet_since) = (&mut self.at, &mut self.read, &mut self.quiet_since);
        let taken = self.seat.mailbox.take(cx, |live| {
            let fits = chunk.add_event(live.encoded.bytes(), live.appended);
            if fits {
                at.clone_from(&live.at);
                (*read, *quiet_since) = (live.read, live.routed);
            }
            fits
        });
        match taken {
            Taken::Enough | Taken::All => return Poll::Pending,
            Taken::Behind => self.attach(),
            Taken::Closing(closing) => self.close(closing),
        }
        Poll::Ready(())
    }

    fn fill_past(&mut self, chunk: &mut Chunk, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(closing) = self.seat.mailbox.closing(cx) {
            self.close(closing);
            return Poll::Ready(());
        }
        let Source::Past(past) = &mut self.source else { return Poll::Ready(()) };
        let (chapter, next) = past.as_mut();
        while let Some(delivery) = chapter.events.as_slice().first() {
            if self.types.passes(&delivery.live.kind) {
                if !chunk.add_event(&delivery.frame(), delivery.live.appended) {
                    return Poll::Pending;
                }
                self.quiet_since = Instant::now();
            }
            self.at.clone_from(delivery.at());
            chapter.events.next();
        }
        if let Some(end) = chapter.end.take() {
            self.at = end;
        }
        match next {
            Next::Live => self.source = Source::Live,
            Next::Attach => self.attach(),
            Next::Log(pages, end) => match ready!(pages.as_mut().poll_next(cx)) {
                Some(Ok(page)) => *chapter = page,
                Some(Err(reset)) => self.source = anew(self.seat.hub.clone(), reset),
                None => (self.at, self.source) = (end.clone(), Source::Live),
            },
        }
        Poll::Ready(())
    }

    /// Goes back to history: what the mailbox held is there.
    fn attach(&mut self) {
        let (tail, attached) = self.seat.attach(&self.at, None);
        if matches!(self.source, Source::Live) {
            self.seat.count(&attached);
        }
        self.read = tail.read;
        match source(&self.seat, &self.at, &tail, attached) {
            Ok(source) => self.source = source,
            Err(reset) => self.source = anew(self.seat.hub.clone(), reset),
        }
    }

    fn begin_anew(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(closing) = self.seat.mailbox.closing(cx) {
            self.close(closing);
            return Poll::Ready(());
        }
        let Source::Anew(caught_up, reason) = &mut self.source else { return Poll::Ready(()) };
        ready!(caught_up.as_mut().poll(cx));
        let reason = *reason;
        let tail = self.seat.begin();
        (self.at, self.read, self.source) = (tail.at.clone(), tail.read, Source::Live);
        self.push_reset(reason);
        Poll::Ready(())
    }

    fn close(&mut self, closing: Closing) {
        self.own.push(closing.frame(Some(&self.at.to_string())));
        self.ended = Some(closing.reason);
        self.source = Source::Ended;
    }

    /// What is due by the clock.
    fn tick(&mut self, cx: &mut Context<'_>) {
        let is_timed = self.timed.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_timed && !self.timer.is_elapsed() {
            return;
        }
        self.timed = Some(cx.waker().clone());
        while self.timer.as_mut().poll(cx).is_ready() && !matches!(self.source, Source::Ended) {
            let now = Instant::now();
            if now >= self.expires.at {
                return self.close(Closing { reason: ClosingReason::Expired, reconnect_ms: RETRY_MS });
            }
            if self.expires.told.take_if(|told| now >= *told).is_some() {
                self.push_own("stream:expiring", &Expiring { expires_at: self.expires.date });
            }
            let heartbeat = self.seat.hub.settings.heartbeat;
            if now >= self.quiet_since + heartbeat {
                self.beat();
                self.quiet_since = now;
            }
            let due = self.expires.told.unwrap_or(self.expires.at).min(self.quiet_since + heartbeat);
            self.timer.as_mut().reset(due);
        }
    }

    fn beat(&mut self) {
        if matches!(self.source, Source::Live)
            && let Some(at) = self.seat.reached(self.read)
        {
            self.at = at;
        }
        self.push_own(HEARTBEAT, &Heartbeat { at: OffsetDateTime::now_utc() });
    }
}

impl http_body::Body for Session {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let chunk = ready!(self.get_mut().poll_chunk(cx));
        Poll::Ready(chunk.map(|chunk| Ok(http_body::Frame::data(chunk))))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.seat.hub.metrics.streams_closed.count("reason", self.ended.map_or("gone", ClosingReason::as_str));
        tracing::debug!(target: "crewcast::events", stream_id = %self.stream_id, "stream closed");
    }
}

fn frame(kind: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    sse::event(kind, id, &serde_json::to_string(data).expect("data is plain text and numbers"))
}

fn out_of_reach() -> Error {
    Error::unavailable("The database is out of reach.")
}

/// Where a stream begins, and the tail that it is attached to.
async fn judge(seat: &Seat, last_event_id: Option<&str>) -> Result<(Arc<Tail>, Start), Error> {
    let Some(text) = last_event_id else { return Ok((seat.begin(), Start::Live)) };
    let Ok(at) = text.parse::<Position>() else { return Ok((seat.begin(), Start::Reset(Reset::Malformed))) };
    if !seat.hub.reaches(&at) {
        // Another node, or a read of the state, was faster than our pump.
        timeout(CATCH_UP_TIMEOUT, seat.hub.catch_up()).await.map_err(|_| out_of_reach())?;
    }
    let (tail, attached) = seat.attach(&at, Some(seat.hub.settings.replay_events_max));
    seat.count(&attached);
    let source = match attached {
        Attached::Log => count(seat, &at, &tail).await?,
        attached => source(seat, &at, &tail, attached),
    };
    Ok(match source {
        Ok(source) => (tail, Start::Replay(at, source)),
        Err(reset) => (seat.begin(), Start::Reset(reset)),
    })
}

/// The log from a position to the tail, unless it has more than is sent one by one.
async fn count(seat: &Seat, at: &Position, tail: &Tail) -> Result<Result<Source, Reset>, Error> {
    let mut readers = seat.readers(at, tail);
    let most = seat.hub.settings.replay_events_max;
    let counted = seat.hub.read_log(async |conn| too_many(&mut readers, conn, most).await).await;
    match counted {
        Ok(true) => Ok(Err(Reset::TooMany)),
        Ok(false) => Ok(Ok(from_log(seat, readers, tail))),
        Err(LogError::TooOld) => Ok(Err(Reset::TooOld)),
        Err(LogError::Foreign) => Ok(Err(Reset::Foreign)),
        Err(error) => Err(error.into()),
    }
}

async fn too_many(readers: &mut [Reader], conn: &mut sqlx::PgConnection, most: i64) -> Result<bool, LogError> {
    let mut left = most;
    for reader in readers {
        match reader.count(conn, left).await? {
            Some(count) => left -= count,
            None => return Ok(true),
        }
    }
    Ok(false)
}

/// What a stream that was attached at `at` reads.
fn source(seat: &Seat, at: &Position, tail: &Tail, attached: Attached) -> Result<Source, Reset> {
    match attached {
        Attached::Ring { missed, more: false } if missed.is_empty() => Ok(Source::Live),
        Attached::Ring { missed, more } => {
            let chapter = Chapter { events: missed.into_iter(), end: None };
            Ok(Source::Past(Box::new((chapter, if more { Next::Attach } else { Next::Live }))))
        }
        Attached::Log => Ok(from_log(seat, seat.readers(at, tail), tail)),
        Attached::Reset(reset) => Err(reset),
    }
}

fn from_log(seat: &Seat, readers: Vec<Reader>, tail: &Tail) -> Source {
    let pages = past::pages(seat.hub.clone(), readers);
    let chapter = Chapter { events: Vec::new().into_iter(), end: None };
    Source::Past(Box::new((chapter, Next::Log(pages, tail.at.clone()))))
}

/// Begins at the tail of a read that begins from now on, and says why.
fn anew(hub: Arc<Hub>, reason: Reset) -> Source {
    Source::Anew(Box::pin(async move { hub.catch_up().await }), reason)
}
