//! A node whose pump is the test.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Waker},
};

use sqlx::postgres::PgConnectOptions;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::{super::route::route, *};
use crate::log::position::tests::epoch;

/// Nothing here asks Postgres: this one is never connected to.
pub(super) static DB: LazyLock<(Runtime, Db)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let db = {
        let _inside = runtime.enter();
        Db::new(PgConnectOptions::new(), 1, Duration::from_secs(1), Arc::default())
    };
    (runtime, db)
});

/// What a node has room for.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) ring_bytes: usize,
    pub(super) queue_bytes: usize,
    pub(super) channel_events: usize,
}

impl Sizes {
    /// More than any test fills.
    pub(super) const AMPLE: Self = Self { ring_bytes: 1 << 24, queue_bytes: 1 << 20, channel_events: 1 << 10 };
}

/// What the pump does next, in pieces between which others may run.
pub(super) enum Act {
    Announce { at: Position, floor: Snapshot, reads: u64, is_jump: bool },
    Tell(Told),
}

/// Of a read, whose number is known only once it was announced.
pub(super) enum Told {
    Announced(Arc<Tail>, bool),
    Event(Event, Position),
    Settled,
}

pub(super) struct Node {
    pub(super) hub: Arc<Hub>,
    router: Pin<Box<dyn Future<Output = ()>>>,
    /// Where the pump is once it has done all of `acts`.
    pub(super) last: Snapshot,
    pub(super) acts: VecDeque<Act>,
}

impl Node {
    pub(super) fn new(sizes: Sizes, start: Snapshot, floor: Snapshot) -> Self {
        let settings = HubSettings {
            heartbeat: Duration::from_secs(15),
            expiring_ahead: Duration::from_secs(60),
            replay_events_max: i64::MAX,
            event_bytes_max: 1 << 16,
            ring_bytes: sizes.ring_bytes,
            queue_bytes: sizes.queue_bytes,
            streams_max: usize::MAX,
            streams_per_user: usize::MAX,
            replays_max: 1,
            channel_events: sizes.channel_events,
            node: "test".to_owned(),
            key: NodeKey::random(),
            presence: PresenceSettings {
                grace: Duration::from_secs(5),
                lease: Duration::from_secs(10),
                users_max: 200,
                typing_ttl: Duration::from_secs(6),
            },
        };
        let now = Now { epoch: epoch(), snapshot: start.clone(), floor, fresh: Vec::new() };
        let hub = Hub::new(DB.1.clone(), settings, Arc::new(Metrics::default()), now, Arc::new(Lenient));
        let router = Box::pin(route(hub.clone(), hub.live.subscribe(), CancellationToken::new()));
        Self { hub, router, last: start, acts: VecDeque::new() }
    }

    /// Plans a read of these events up to `to`, each with the position after it.
    pub(super) fn read(&mut self, to: &Snapshot, floor: &Snapshot, events: Vec<(Event, Position)>) {
        self.announce(to, floor, u64::from(*to != self.last), false);
        if *to != self.last {
            self.acts.extend(events.into_iter().map(|(event, at)| Act::Tell(Told::Event(event, at))));
            self.acts.push_back(Act::Tell(Told::Settled));
            self.last = to.clone();
        }
    }

    /// Gives up what is planned and goes on from `to`.
    pub(super) fn jump(&mut self, to: &Snapshot, floor: &Snapshot) {
        self.acts.clear();
        self.announce(to, floor, 1, true);
        self.last = to.clone();
    }

    fn announce(&mut self, to: &Snapshot, floor: &Snapshot, reads: u64, is_jump: bool) {
        let at = Position::settled(epoch(), to.clone());
        self.acts.push_back(Act::Announce { at, floor: floor.clone(), reads, is_jump });
    }

    /// Whether the pump is inside the read that it announced last: only there it can give it up.
    pub(super) fn is_inside_a_read(&self) -> bool {
        matches!(self.acts.front(), Some(Act::Tell(Told::Event(..) | Told::Settled)))
    }

    /// Does the next piece of what is planned.
    pub(super) fn act(&mut self) {
        match self.acts.pop_front() {
            None => {}
            Some(Act::Announce { at, floor, reads, is_jump }) => {
                let read = self.hub.announced.borrow().read + reads;
                let asked = self.hub.asked.load(Ordering::SeqCst);
                let tail = Arc::new(Tail { read, at, floor, asked });
                self.hub.announced.send_replace(tail.clone());
                self.acts.push_front(Act::Tell(Told::Announced(tail, is_jump)));
            }
            Some(Act::Tell(told)) => self.tell(told),
        }
    }

    fn tell(&self, told: Told) {
        let read = self.hub.announced.borrow().read;
        let routed = match told {
            Told::Announced(tail, true) => Routed::Jumped(tail),
            Told::Announced(tail, false) => Routed::Announced(tail),
            Told::Event(event, at) => Routed::Event(Arc::new(Live::new(read, event, at))),
            Told::Settled => Routed::Settled(read),
        };
        self.hub.live.send(routed).unwrap();
    }

    /// The router takes all that it was told.
    pub(super) fn route(&mut self) {
        assert!(self.router.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// The next `acts` of the pump, each of them routed.
    pub(super) fn go(&mut self, acts: usize) {
        for _ in 0..acts {
            self.act();
            self.route();
        }
    }

    /// All that is planned, each piece routed.
    pub(super) fn finish(&mut self) {
        while !self.acts.is_empty() {
            self.go(1);
        }
    }
}
