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
use tokio::time::{Instant, Sleep, sleep_until};
use uuid::Uuid;

use super::{
    Closing, Holder, Hub, NotJoined,
    change::Catching,
    chunk::Chunk,
    frames::{ClosingReason, Expiring, Heartbeat, Open, Refused, Reset, ResetTo, Resume, User},
    mailbox::{Taken, Told},
    ring::Delivery,
    seat::{Claim, Full, Seat},
    start::{Anew, Past, Source, Start, Then, anew, catch_up, catch_up_from_behind, judge, out_of_reach, source},
    whisper,
};
use crate::{
    ids::{HEARTBEAT, TypeFilter},
    log::Position,
    sse,
};

/// How long a client waits before it comes back, when nothing says otherwise, in milliseconds.
pub(super) const RETRY_MS: u64 = 2000;

/// Of so many pieces one is taken into the lag's account: looking at the clock and adding cost more than they tell.
const LAG_EVERY: u64 = 16;

/// What a stream is opened with.
#[derive(Debug)]
pub struct Opening {
    /// Names the stream.
    pub stream_id: Uuid,
    /// Whose it is.
    pub holder: Arc<dyn Holder>,
    /// The rooms it is in, the holder's own among them.
    pub rooms: Vec<String>,
    /// What [`Hub::rights`] said before those were judged.
    pub judged: u64,
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
    /// Where the stream began in the rooms that it was opened with.
    start: Position,
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
    ended: Option<Closing>,
}

/// When a stream's credentials end.
struct Expiry {
    /// When the client is told; none once it was.
    told: Option<Instant>,
    at: Instant,
    date: OffsetDateTime,
}

impl Expiry {
    fn new(date: OffsetDateTime, ahead: Duration) -> Self {
        let now = Instant::now();
        let left = Duration::try_from(date - OffsetDateTime::now_utc()).unwrap_or_default();
        Self { told: Some(now + left.saturating_sub(ahead)), at: now + left, date }
    }
}

/// The seat that a stream is opened on.
fn claim(opening: &Opening) -> Claim<'_> {
    let Opening { stream_id, holder, rooms, judged, types, .. } = opening;
    Claim { stream: *stream_id, holder: holder.clone(), rooms, types: types.clone(), judged: *judged }
}

impl Session {
    /// Takes a seat, judges where the stream begins, and prepares its first frames.
    ///
    /// # Errors
    /// `unavailable` when the node takes no more streams, or Postgres does not say what was missed; `too_many_streams` when
    /// it takes no more of this user; [`NotJoined::Stale`] when its rooms must be judged again.
    pub async fn open(hub: &Arc<Hub>, opening: Opening) -> Result<Self, NotJoined> {
        if !hub.db.is_reachable() {
            return Err(out_of_reach().into());
        }
        let seat = Seat::take(hub, claim(&opening)).map_err(|full| {
            if full == Full::Stale {
                return NotJoined::Stale;
            }
            hub.metrics.streams_refused.count("reason", full.as_str());
            NotJoined::Failed(full.into())
        })?;
        let (tail, start) = judge(&seat, opening.last_event_id.as_deref()).await?;
        let now = Instant::now();
        let mut session = Self {
            start: tail.at.clone(),
            own: Vec::new(),
            at: tail.at.clone(),
            read: tail.read,
            source: Source::Live,
            timer: Box::pin(sleep_until(now)),
            timed: None,
            quiet_since: now,
            expires: Expiry::new(opening.expires_at, hub.settings.expiring_ahead),
            ended: None,
            seat,
        };
        hub.metrics.streams_opened.inc();
        tracing::debug!(target: "crewcast::events", stream_id = %opening.stream_id, "stream opened");
        session.greet(&opening, start);
        session.appear(&opening);
        Ok(session)
    }

    /// The others see its user; it sees them once it has begun.
    fn appear(&self, opening: &Opening) {
        let (mailbox, who) = (&self.seat.mailbox, whisper::who(opening.holder.as_ref()));
        self.seat.hub.presence.opened(mailbox.key, who, || mailbox.rooms(), opening.last_event_id.is_some());
    }

    /// The stream's id.
    pub fn id(&self) -> Uuid {
        self.seat.mailbox.key
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
            user: User { id: opening.holder.id(), name: opening.holder.name() },
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
            Start::Replay(from, source) => {
                self.start.clone_from(&from);
                (self.at, self.source) = (from, source);
            }
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
        if self.timer.is_elapsed() {
            // What came after its end is not for a stream that was slow to take what came before.
            self.tick(cx);
        }
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
            Taken::Told(told) => self.heed(*told),
            Taken::Catch(catching) => self.source = catch_up(&self.seat.hub, catching, Then::Live),
        }
        Poll::Ready(())
    }

    fn fill_past(&mut self, chunk: &mut Chunk, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(told) = self.seat.mailbox.told(cx) {
            self.heed(*told);
            return Poll::Ready(());
        }
        let Source::Past(past) = &mut self.source else { return Poll::Ready(()) };
        while let Some(delivery) = past.chapter.events.as_slice().first() {
            if let Some(frame) = wanted(&self.seat, &self.start, past.catching.as_deref(), delivery) {
                if !chunk.add_event(&frame, delivery.live.appended) {
                    return Poll::Pending;
                }
                self.quiet_since = Instant::now();
            }
            if past.catching.is_none() {
                self.at.clone_from(delivery.at());
            }
            past.chapter.events.next();
        }
        if let Some(end) = past.chapter.end.take()
            && past.catching.is_none()
        {
            self.at = end;
        }
        if let Some((pages, end)) = &mut past.pages {
            match ready!(pages.as_mut().poll_next(cx)) {
                Some(Ok(page)) => past.chapter = page,
                Some(Err(reset)) => {
                    let catching = past.catching.take().or_else(|| past.then.catching());
                    self.source = anew(self.seat.hub.clone(), reset, catching);
                }
                None => {
                    self.at = end.take().unwrap_or_else(|| self.at.clone());
                    past.pages = None;
                }
            }
            return Poll::Ready(());
        }
        self.turn_page();
        Poll::Ready(())
    }

    /// The past has been written: what follows it.
    fn turn_page(&mut self) {
        let Source::Past(past) = std::mem::replace(&mut self.source, Source::Live) else { return };
        let Past { catching, then, .. } = *past;
        if let Some(catching) = catching {
            self.caught(&catching);
        }
        match then {
            Then::Live => {}
            Then::Attach => self.attach(),
            Then::Reach(catching) => self.source = catch_up_from_behind(&self.seat, &self.at, catching),
        }
    }

    /// The stream has caught up with rooms that it joined, and leaves those that it was to leave then.
    fn caught(&mut self, catching: &Catching) {
        self.say_joined(catching);
        let left = self.seat.mailbox.caught();
        self.seat.hub.take_away(self.seat.mailbox.key, &left);
    }

    /// Says that it is in these rooms, if it still is.
    fn say_joined(&mut self, catching: &Catching) {
        let mut told = catching.told.clone();
        told.joined.retain(|room| self.seat.mailbox.is_in_since(room, catching.nth));
        self.push_own("stream:rooms", &told);
        let mailbox = &self.seat.mailbox;
        self.seat.hub.presence.moved(mailbox.key, || mailbox.rooms(), &told.joined);
    }

    /// Does what the stream was told by others.
    fn heed(&mut self, told: Told) {
        for changed in &told.rooms {
            self.push_own("stream:rooms", changed);
        }
        self.own.extend(told.whispers.iter().map(|whisper| whisper.frame.clone()));
        if told.is_confused {
            let (mailbox, rooms) = (&self.seat.mailbox, self.seat.mailbox.rooms());
            self.seat.hub.presence.moved(mailbox.key, || mailbox.rooms(), &rooms);
        }
        if let Some(date) = told.renewed {
            self.expires = Expiry::new(date, self.seat.hub.settings.expiring_ahead);
            // The timer is set anew by whatever comes first.
            self.timer.as_mut().reset(Instant::now());
            self.timed = None;
        }
        if let Some(closing) = told.closing {
            self.close(closing);
        }
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
            Err(reset) => self.source = anew(self.seat.hub.clone(), reset, None),
        }
    }

    fn begin_anew(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(told) = self.seat.mailbox.told(cx) {
            self.heed(*told);
            return Poll::Ready(());
        }
        let Source::Anew(anew) = &mut self.source else { return Poll::Ready(()) };
        ready!(anew.caught_up.as_mut().poll(cx));
        let Source::Anew(anew) = std::mem::replace(&mut self.source, Source::Live) else { return Poll::Ready(()) };
        let Anew { reason, catching, .. } = *anew;
        let (tail, waiting, left) = self.seat.begin_anew();
        (self.at, self.start, self.read) = (tail.at.clone(), tail.at.clone(), tail.read);
        self.push_reset(reason);
        for catching in catching.into_iter().map(|catching| *catching).chain(waiting) {
            self.say_joined(&catching);
        }
        self.seat.hub.take_away(self.seat.mailbox.key, &left);
        Poll::Ready(())
    }

    fn close(&mut self, closing: Closing) {
        self.own.push(closing.frame(Some(&self.at.to_string())));
        self.ended = Some(closing);
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
                // It may have been told of a later end.
                if let Some(told) = self.seat.mailbox.told(cx) {
                    self.heed(*told);
                    continue;
                }
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
        self.seat
            .hub
            .metrics
            .streams_closed
            .count("reason", self.ended.map_or("gone", |closing| closing.reason.as_str()));
        self.seat.hub.presence.closed(self.seat.mailbox.key, self.seat.hub.grace(self.ended));
        tracing::debug!(target: "crewcast::events", stream_id = %self.seat.mailbox.key, "stream closed");
    }
}

fn frame(kind: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    sse::event(kind, id, &serde_json::to_string(data).expect("data is plain text and numbers"))
}

#[cfg(test)]
impl Session {
    /// The next bytes, for whoever polls by hand.
    pub(super) fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_chunk(cx)
    }

    /// Puts the stream where a test wants it.
    pub(super) fn go_on_from(&mut self, source: Source) {
        self.source = source;
    }
}

/// What goes out of an event of the past, if it does: with its id, or without one when it is of rooms that the stream has
/// just joined.
fn wanted(seat: &Seat, start: &Position, catching: Option<&Catching>, delivery: &Delivery) -> Option<Bytes> {
    let live = &delivery.live;
    if !seat.mailbox.types().passes(&live.kind) {
        return None;
    }
    match catching {
        None => seat.mailbox.brings(live).then(|| delivery.frame()),
        Some(catching) => seat.mailbox.catches(live, catching.nth, start).then(|| delivery.live.encoded.without_id()),
    }
}
