//! Presence and typing: who is in which room, and what they do there.
//!
//! Each node holds the picture of the whole cluster in memory, the `View`, and tells its own streams what changes in it.
//! What happens to its own streams is in the picture at once. The *keeper* writes that to a table, many streams in one
//! statement, and reads what the other nodes wrote; it goes on in memory while Postgres is away. A node that is gone
//! takes its users along when its *lease* has run out; one that stops says for how long each of its users stays.
//!
//! # Order
//!
//! Frames are handed to the streams while the picture is locked, so that a stream's snapshot and the changes after it come
//! in order. Whoever delivers may therefore lock the hub, and never calls back; whoever holds the hub's lock does not call
//! this. They have no id and are in no log: one that a stream misses is made good by the next one.

mod early;
mod facts;
mod keeper;
mod leases;
mod reports;
mod room;
mod store;
#[cfg(test)]
mod tests;
mod typing;
mod user;
mod view;
mod whisper;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    early::Early,
    facts::{Facts, with_presence},
    reports::{Reports, Word},
    typing::{Told, Typing},
    view::{News, View},
};
pub use self::{
    facts::{Editing, Shown, ShownStatus, Status, Update, Who},
    keeper::Keeper,
    room::Snapshot,
    store::{END, FORGET, GONE, NODE, NODES, PUT, ROWS, SWEEP, sweep},
    typing::{FIELDS_MAX, TooManyFields, Typist},
    whisper::{Count, Ear, Whisper},
};
use crate::{ids::NodeKey, metrics::Metrics};

/// How long a stream's row stays when it has counted for the last time: who has not read it by then reads all of the
/// node's.
const ROW_KEPT: Duration = Duration::from_secs(60);

/// What presence is told.
#[derive(Debug, Clone)]
pub struct PresenceSettings {
    /// How long a stream that has closed counts.
    pub grace: Duration,
    /// How long a node that gives no sign of life is believed in.
    pub lease: Duration,
    /// Users that a snapshot shows, and that a room may have before it is told counts.
    pub users_max: usize,
    /// How long somebody types who does not say it again.
    pub typing_ttl: Duration,
}

/// Why nobody is shown typing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTyping {
    /// The stream is in no such room, it is no project's, or its user is nobody who is shown.
    #[error("the stream is not in this room, or it is no project's")]
    NotThere,
    /// It would be one field too many.
    #[error(transparent)]
    TooMany(#[from] TooManyFields),
}

/// Who is where, on all nodes.
pub struct Presence {
    node: NodeKey,
    settings: PresenceSettings,
    metrics: Arc<Metrics>,
    deliver: Box<dyn Fn(Whisper) + Send + Sync>,
    state: Mutex<State>,
    /// Cancelled when the picture may be half changed: the node is to end.
    pub(super) broken: CancellationToken,
    /// Rung when something ends by time sooner than it did.
    sooner: Notify,
    /// Rung when there is something to write.
    dirty: Notify,
    /// Rung when there is something to read.
    look: Notify,
}

#[derive(Debug)]
struct State {
    view: View,
    typing: Typing,
    early: Early,
    reports: Reports,
    /// Open streams of this node whose user never appears.
    unseen: HashSet<Uuid>,
    /// Streams of this node whose rows are not what they should be.
    dirty: HashSet<Uuid>,
    /// What the clock's task waits for.
    awaited: Option<Instant>,
    /// Other nodes that gave a sign of life when they were looked at last, if that could be done.
    living: HashSet<NodeKey>,
    /// The last stamp that any report has, here or in what was read.
    stamp: i64,
    /// Postgres's clock, in microseconds, and when it showed that; none before it has been seen.
    clock: Option<(i64, Instant)>,
}

impl Presence {
    /// Nobody is anywhere yet. `deliver` hands a frame to the streams of this node, and waits for nothing.
    pub fn new(
        node: NodeKey,
        settings: PresenceSettings,
        metrics: Arc<Metrics>,
        deliver: impl Fn(Whisper) + Send + Sync + 'static,
    ) -> Self {
        let (view, typing) = (View::new(settings.users_max), Typing::new(settings.typing_ttl));
        let (early, unseen, dirty) = (Early::new(settings.typing_ttl), HashSet::new(), HashSet::new());
        let reports = Reports::default();
        let (living, awaited, stamp, clock) = (HashSet::new(), None, 0, None);
        let state = State { view, typing, early, reports, unseen, dirty, awaited, living, stamp, clock };
        Self {
            node,
            settings,
            metrics,
            deliver: Box::new(deliver),
            state: Mutex::new(state),
            broken: CancellationToken::new(),
            sooner: Notify::new(),
            dirty: Notify::new(),
            look: Notify::new(),
        }
    }

    /// A stream of this node has opened; its `who` is none for those who never appear. It is told who is in its rooms, and
    /// the others are told of it. `rooms` says where it is by then; `resumed`: its client was here before.
    pub fn opened(&self, stream: Uuid, who: Option<Who>, rooms: impl FnOnce() -> Vec<String>, resumed: bool) {
        let now = Instant::now();
        let mut state = self.state();
        let rooms = rooms();
        let rooms = with_presence(&rooms);
        if let Some(who) = who {
            let news = state.view.opened(stream, who, &rooms, resumed, now);
            self.tell(news, Some(stream));
            self.write(&mut state, stream);
        } else {
            state.unseen.insert(stream);
        }
        self.show(&mut state, stream, &rooms, now);
        self.wake(&mut state);
    }

    /// A stream of this node is in other rooms; `rooms` says in which by then, whoever else has changed them. It is told
    /// who is in those that it `joined`.
    pub fn moved(&self, stream: Uuid, rooms: impl FnOnce() -> Vec<String>, joined: &[String]) {
        let now = Instant::now();
        let mut state = self.state();
        let rooms = rooms();
        let (rooms, joined) = (with_presence(&rooms), with_presence(joined));
        let told = state.typing.keep_in(stream, &rooms);
        self.tell_typing(&told);
        if state.view.facts(stream).is_some() {
            let news = state.view.moved(stream, &rooms, now);
            self.tell(news, None);
            self.write(&mut state, stream);
        }
        self.show(&mut state, stream, &joined, now);
        self.show_early(&mut state);
        self.wake(&mut state);
    }

    /// A stream of this node goes on with another token; its `who` is none now for those who never appear. Who appears by
    /// that is in the rooms that `rooms` says by then.
    pub fn renewed(&self, stream: Uuid, who: Option<Who>, rooms: impl FnOnce() -> Vec<String>) {
        let now = Instant::now();
        let mut state = self.state();
        let shown = state.view.facts(stream).map(|facts| (facts.who.clone(), facts.ends));
        let news = match (who, shown) {
            (Some(who), Some((shown, _))) if *shown != who => state.view.renamed(stream, who, now),
            // One that has ended meanwhile would stay for ever.
            (Some(who), None) if state.unseen.remove(&stream) => {
                state.view.opened(stream, who, &with_presence(&rooms()), true, now)
            }
            (None, Some((_, None))) => {
                let told = state.typing.keep_in(stream, &[]);
                self.tell_typing(&told);
                state.unseen.insert(stream);
                state.view.closed(stream, Duration::ZERO, now)
            }
            _ => return,
        };
        self.tell(news, None);
        self.write(&mut state, stream);
        self.wake(&mut state);
    }

    /// The client of a stream of this node says what its user does. Whether that is anybody who is shown.
    pub fn reported(&self, stream: Uuid, update: Update) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        if state.view.facts(stream).is_none() {
            return false;
        }
        let word = (update, state.next_stamp(now));
        if let Some(word) = state.reports.say(stream, word, now) {
            self.show_report(&mut state, stream, word, now);
        }
        self.wake(&mut state);
        true
    }

    fn show_report(&self, state: &mut State, stream: Uuid, (update, stamp): Word, now: Instant) {
        if state.view.facts(stream).is_some() {
            let news = state.view.reported(stream, update, stamp, now);
            self.tell(news, None);
            self.write(state, stream);
        }
    }

    /// A stream of this node has ended. It counts until the grace has passed; zero when its client said good-bye.
    pub fn closed(&self, stream: Uuid, grace: Duration) {
        let now = Instant::now();
        let mut state = self.state();
        state.unseen.remove(&stream);
        let told = state.typing.keep_in(stream, &[]);
        self.tell_typing(&told);
        if state.view.facts(stream).is_none_or(|facts| facts.ends.is_some()) {
            return;
        }
        if let Some(word) = state.reports.finish(stream) {
            self.show_report(&mut state, stream, word, now);
        }
        let news = state.view.closed(stream, grace, now);
        self.tell(news, None);
        self.write(&mut state, stream);
        self.wake(&mut state);
    }

    /// Who is in a room. That of a large room may be a second old.
    pub fn snapshot(&self, room: &str) -> Arc<Snapshot> {
        let mut state = self.state();
        let snapshot = state.view.snapshot(room, Instant::now());
        self.wake(&mut state);
        snapshot
    }

    /// How long a stream counts that has closed, when nothing else was said.
    pub fn grace(&self) -> Duration {
        self.settings.grace
    }

    /// Whether another node is known to live, however old the sign of life is that it left in Postgres: that may have been
    /// away from all of them.
    pub fn lives(&self, node: NodeKey) -> bool {
        self.state().living.contains(&node)
    }

    /// Another node has written something: what it wrote is read at once.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    /// These nodes live, and no others.
    fn set_living(&self, living: HashSet<NodeKey>) {
        self.state().living = living;
    }

    /// Postgres's clock shows this now.
    fn set_clock(&self, micros: i64) {
        self.state().clock = Some((micros, Instant::now()));
    }

    /// Sets the gauges.
    pub fn measure(&self) {
        let state = self.state();
        let (users, rooms) = state.view.len();
        let gauges = [
            (&self.metrics.presence_users, users),
            (&self.metrics.presence_rooms, rooms),
            (&self.metrics.presence_streams, state.view.streams().len()),
            (&self.metrics.presence_unwritten, state.dirty.len()),
            (&self.metrics.typing, state.typing.len()),
            (&self.metrics.typing_waiting, state.early.len()),
        ];
        for (gauge, value) in gauges {
            gauge.set(value.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Tells what time alone changes, until `stop`.
    pub async fn watch_the_clock(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let due = self.pass(Instant::now());
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = wait => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    /// Tells what time has changed; when it changes something next.
    fn pass(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        state.early.passed(now);
        for (stream, word) in state.reports.passed(now) {
            self.show_report(&mut state, stream, word, now);
        }
        let (told, news) = (state.typing.passed(now), state.view.passed(now));
        self.tell_typing(&told);
        self.tell(news, None);
        state.awaited = state.next_due();
        state.awaited
    }

    /// What another node says of its streams.
    fn heard(&self, facts: Vec<(Uuid, Option<Facts>)>, stamp: i64) {
        let mut state = self.state();
        state.stamp = state.stamp.max(stamp);
        let news = state.view.heard(facts, Instant::now());
        self.tell_of_others(&mut state, news);
    }

    /// Another node has these streams and no others.
    fn kept(&self, node: NodeKey, left: &HashSet<Uuid>) {
        let mut state = self.state();
        let news = state.view.kept(node, left, Instant::now());
        self.tell_of_others(&mut state, news);
    }

    fn tell_of_others(&self, state: &mut State, news: Vec<News>) {
        let State { view, typing, .. } = state;
        for stream in typing.streams().collect::<Vec<_>>() {
            let open = view.facts(stream).filter(|facts| facts.ends.is_none());
            let rooms: Vec<&str> = open.iter().flat_map(|facts| facts.rooms.iter().map(|room| &**room)).collect();
            self.tell_typing(&typing.keep_in(stream, &rooms));
        }
        self.tell(news, None);
        self.show_early(state);
        self.wake(state);
    }

    fn tell(&self, news: Vec<News>, but: Option<Uuid>) {
        news.into_iter().for_each(|news| (self.deliver)(Whisper::of_news(news, but)));
    }

    fn tell_typing(&self, told: &[Told]) {
        told.iter().filter_map(Whisper::of_typing).for_each(&self.deliver);
    }

    /// Tells a stream who is in these rooms, and who types there.
    fn show(&self, state: &mut State, stream: Uuid, rooms: &[&str], now: Instant) {
        for room in rooms {
            let snapshot = state.view.snapshot(room, now);
            (self.deliver)(Whisper::of_snapshot(&snapshot, Ear::Only(stream)));
            let typists = state.typing.in_room(room, stream);
            typists.iter().filter_map(|told| Whisper::of_typist(told, Ear::Only(stream))).for_each(&self.deliver);
        }
    }

    fn write(&self, state: &mut State, stream: Uuid) {
        state.dirty.insert(stream);
        self.dirty.notify_one();
    }

    /// Wakes the clock's task, if something is due before it looks.
    fn wake(&self, state: &mut State) {
        let due = state.next_due();
        if due.is_some_and(|due| state.awaited.is_none_or(|awaited| due < awaited)) {
            state.awaited = due;
            self.sooner.notify_one();
        }
    }

    /// A picture that somebody left half changed when they panicked is still one to go on with: it is shown for as long as
    /// the node takes to end, and what is wrong in it is made good by the node that its streams go to.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|half| {
            self.broken.cancel();
            half.into_inner()
        })
    }
}

impl State {
    fn next_due(&self) -> Option<Instant> {
        let due = [self.view.next_due(), self.typing.next_due(), self.early.next_due(), self.reports.next_due()];
        due.into_iter().flatten().min()
    }

    /// Later than all reports that this node knows of, and by the one clock that all nodes have later than what it does not
    /// know of.
    fn next_stamp(&mut self, now: Instant) -> i64 {
        let since = |at| i64::try_from(now.saturating_duration_since(at).as_micros()).unwrap_or(0);
        let clock = self.clock.map_or(0, |(micros, at)| micros.saturating_add(since(at)));
        self.stamp = clock.max(self.stamp + 1);
        self.stamp
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("node", &self.node).finish_non_exhaustive()
    }
}
