//! The view against a model that is too simple to be wrong: whatever happens in whatever order, what a client makes of
//! what it is told is what the model says, and nothing is told that changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{prelude::*, sample::Index};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    hub::presence::{
        facts::{Editing, Shown, ShownStatus, Status, Update, Who},
        view::{News, SETTLE, View},
    },
    ids::NodeKey,
};

const ROOMS: [&str; 3] = ["company", "division:x", "project:0192f0c1-2b7a-7cc0-8a2e-0123456789ab"];
const USERS: [&str; 5] = ["ana", "bo", "cy", "dora", "ed"];
const PLACES: [&str; 5] = [ROOMS[0], ROOMS[2], "user:ana", "/plan", "/x"];
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Step {
    Open {
        user: usize,
        rooms: u8,
        resumed: bool,
        node: usize,
    },
    Move {
        stream: Index,
        rooms: u8,
    },
    Report {
        stream: Index,
        update: (Option<bool>, Option<usize>, Option<usize>),
        stamp: i64,
    },
    Close {
        stream: Index,
        grace: u32,
    },
    /// Its row is read once more.
    Again {
        stream: Index,
    },
    Die {
        node: usize,
    },
    Pass {
        millis: u64,
    },
    /// Time passes and nobody looks.
    Lag {
        millis: u64,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let place = || prop::option::weighted(0.6, 0..=PLACES.len());
    let update = (prop::option::of(any::<bool>()), place(), place());
    prop_oneof![
        6 => (0..USERS.len(), 0_u8..8, any::<bool>(), 0_usize..2)
            .prop_map(|(user, rooms, resumed, node)| Step::Open { user, rooms, resumed, node }),
        3 => (any::<Index>(), 0_u8..8).prop_map(|(stream, rooms)| Step::Move { stream, rooms }),
        6 => (any::<Index>(), update, 0_i64..20).prop_map(|(stream, update, stamp)| Step::Report { stream, update, stamp }),
        5 => (any::<Index>(), 0_u32..4).prop_map(|(stream, grace)| Step::Close { stream, grace }),
        2 => any::<Index>().prop_map(|stream| Step::Again { stream }),
        1 => (0_usize..2).prop_map(|node| Step::Die { node }),
        4 => (0_u64..2500).prop_map(|millis| Step::Pass { millis }),
        2 => (0_u64..2500).prop_map(|millis| Step::Lag { millis }),
    ]
}

/// A stream as the model has it.
#[derive(Debug)]
struct Stream {
    user: usize,
    rooms: BTreeSet<&'static str>,
    is_idle: bool,
    /// When it reported, what it views and what it edits.
    report: Option<(i64, Option<&'static str>, Option<&'static str>)>,
    ends: Option<Instant>,
}

type Picture = BTreeMap<&'static str, (ShownStatus, Option<&'static str>, Option<&'static str>)>;

/// What is said of a user: whether they are active, where they are, and what they view and edit.
#[derive(Debug, Clone, Default)]
struct Said {
    is_online: bool,
    rooms: BTreeSet<&'static str>,
    report: (Option<&'static str>, Option<&'static str>),
}

#[derive(Debug, Default)]
struct Model {
    streams: BTreeMap<Uuid, Stream>,
    /// Until when users are shown active who are not any more.
    online: BTreeMap<usize, Instant>,
    /// Until when users are shown in rooms that they have left.
    left: BTreeMap<(usize, &'static str), Instant>,
    /// What was shown last of users who have no stream any more.
    reports: BTreeMap<usize, (Option<&'static str>, Option<&'static str>)>,
}

impl Model {
    /// What the streams of a user say; none where there is none.
    fn said(&self, user: usize) -> Option<Said> {
        let streams = || self.streams.iter().filter(move |(_, stream)| stream.user == user);
        streams().next()?;
        let reports = streams().filter_map(|(id, stream)| Some((stream.report?, id)));
        let last = reports.max_by_key(|((at, ..), id)| (*at, *id));
        Some(Said {
            is_online: streams().any(|(_, stream)| !stream.is_idle),
            rooms: streams().flat_map(|(_, stream)| stream.rooms.iter().copied()).collect(),
            report: last.map_or((None, None), |((_, viewing, editing), _)| (viewing, editing)),
        })
    }

    /// Something happens to streams at a moment. What is not said any more by that is shown for a while, if `lingers`.
    fn change(&mut self, at: Instant, lingers: bool, change: impl FnOnce(&mut BTreeMap<Uuid, Stream>)) {
        let said = |model: &Self| USERS.iter().enumerate().map(|(user, _)| model.said(user)).collect::<Vec<_>>();
        let before = said(self);
        change(&mut self.streams);
        for (user, (was, is)) in before.into_iter().zip(said(self)).enumerate() {
            let was = was.inspect(|was| self.reports.extend([(user, was.report)])).unwrap_or_default();
            let is = is.unwrap_or_default();
            if is.is_online {
                self.online.remove(&user);
            } else if was.is_online && lingers {
                self.online.insert(user, at + SETTLE);
            }
            self.left.retain(|(who, room), _| *who != user || !is.rooms.contains(room));
            if lingers {
                self.left.extend(was.rooms.difference(&is.rooms).map(|room| ((user, *room), at + SETTLE)));
            }
        }
    }

    /// Streams whose grace is over have gone, each at its moment.
    fn pass(&mut self, now: Instant) {
        let ended = |model: &Self| model.streams.iter().filter_map(|(id, stream)| Some((stream.ends?, *id))).min();
        while let Some((ends, stream)) = ended(self).filter(|(ends, _)| *ends <= now) {
            self.change(ends, true, |streams| drop(streams.remove(&stream)));
        }
        self.online.retain(|_, until| *until > now);
        self.left.retain(|_, until| *until > now);
    }

    /// Users who are shown anywhere, or whose streams are in no room.
    fn users(&self) -> BTreeSet<usize> {
        let lingering = self.left.keys().map(|(user, _)| *user).chain(self.online.keys().copied());
        self.streams.values().map(|stream| stream.user).chain(lingering).collect()
    }

    fn picture(&self, room: &'static str) -> Picture {
        let mut picture = Picture::new();
        for user in self.users() {
            let said = self.said(user);
            let is_there = said.as_ref().is_some_and(|said| said.rooms.contains(room));
            if !is_there && !self.left.contains_key(&(user, room)) {
                continue;
            }
            let (viewing, editing) = said.as_ref().map_or_else(|| self.reports[&user], |said| said.report);
            let viewing = viewing.filter(|place| *place == room || place.starts_with('/'));
            let editing = editing.filter(|place| *place == room);
            let is_online = said.is_some_and(|said| said.is_online) || self.online.contains_key(&user);
            let status = if is_online { ShownStatus::Online } else { ShownStatus::Idle };
            picture.insert(USERS[user], (status, viewing, editing));
        }
        picture
    }
}

/// Who follows a room.
#[derive(Debug, Default)]
struct Client {
    seen: Picture,
    /// The total it was told last, while the room is large.
    total: Option<usize>,
    /// The same for one who was given a snapshot meanwhile.
    joiner: Option<usize>,
}

fn entry(shown: &Shown) -> (&'static str, (ShownStatus, Option<&'static str>, Option<&'static str>)) {
    let known = |text: &str| PLACES.into_iter().find(|place| *place == text).unwrap();
    let user = USERS.into_iter().find(|user| **user == *shown.user_id).unwrap();
    let editing = shown.editing.as_ref().map(|editing| known(&editing.room));
    (user, (shown.status, shown.viewing.as_deref().map(known), editing))
}

struct World {
    view: View,
    users_max: usize,
    model: Model,
    nodes: [NodeKey; 2],
    now: Instant,
    clients: BTreeMap<&'static str, Client>,
}

impl World {
    fn new(users_max: usize) -> Self {
        let clients = ROOMS.map(|room| (room, Client::default())).into();
        let nodes = [NodeKey::random(), NodeKey::random()];
        Self { view: View::new(users_max), users_max, model: Model::default(), nodes, now: Instant::now(), clients }
    }

    fn rooms(mask: u8) -> BTreeSet<&'static str> {
        (0..3).filter(|nth| mask & (1 << nth) != 0).map(|nth| ROOMS[nth]).collect()
    }

    /// One of the open streams.
    fn pick(&self, index: Index) -> Option<Uuid> {
        let open: Vec<Uuid> =
            self.model.streams.iter().filter(|(_, stream)| stream.ends.is_none()).map(|(id, _)| *id).collect();
        (!open.is_empty()).then(|| *index.get(&open))
    }

    /// What the view tells of a step, which the model takes too; nothing if there is no stream for it.
    fn take(&mut self, step: Step) -> Option<Vec<News>> {
        let now = self.now;
        self.model.pass(now);
        Some(match step {
            Step::Open { user, rooms, resumed, node } => {
                let (stream, rooms) = (self.nodes[node].stream(), Self::rooms(rooms));
                let is_idle = resumed && self.model.said(user).is_some_and(|said| !said.is_online);
                let names: Vec<&str> = rooms.iter().copied().chain(["user:ana"]).collect();
                let opened = Stream { user, rooms, is_idle, report: None, ends: None };
                self.model.change(now, true, |streams| drop(streams.insert(stream, opened)));
                self.view.opened(stream, Who::new(USERS[user], None, None), &names, resumed, now)
            }
            Step::Move { stream, rooms } => {
                let (stream, rooms) = (self.pick(stream)?, Self::rooms(rooms));
                let names: Vec<&str> = rooms.iter().copied().collect();
                self.model.change(now, true, |streams| streams.get_mut(&stream).unwrap().rooms = rooms);
                self.view.moved(stream, &names, now)
            }
            Step::Report { stream, update: (is_idle, viewing, editing), stamp } => {
                let stream = self.pick(stream)?;
                // One past the last is none.
                let place = |nth: usize| PLACES.get(nth).copied();
                self.model.change(now, true, |streams| {
                    let known = streams.get_mut(&stream).unwrap();
                    known.is_idle = is_idle.unwrap_or(known.is_idle);
                    let (_, was_viewing, was_editing) = known.report.unwrap_or_default();
                    let (viewing, editing) = (viewing.map_or(was_viewing, place), editing.map_or(was_editing, place));
                    known.report = Some((stamp, viewing, editing));
                });
                let edits = |room: &str| Editing { room: room.into(), field: "f".into() };
                let update = Update {
                    status: is_idle.map(|is_idle| if is_idle { Status::Idle } else { Status::Online }),
                    viewing: viewing.map(|nth| place(nth).map(Into::into)),
                    editing: editing.map(|nth| place(nth).map(edits)),
                };
                self.view.reported(stream, update, stamp, now)
            }
            Step::Close { stream, grace } => {
                let (stream, grace) = (self.pick(stream)?, SECOND * grace);
                self.model.streams.get_mut(&stream)?.ends = Some(now + grace);
                self.model.pass(now);
                self.view.closed(stream, grace, now)
            }
            Step::Again { stream } => {
                let stream = self.pick(stream)?;
                let facts = self.view.facts(stream).cloned();
                self.view.heard(vec![(stream, facts)], now)
            }
            Step::Die { node } => {
                let node = self.nodes[node];
                self.model.change(now, false, |streams| streams.retain(|stream, _| NodeKey::of(*stream) != node));
                self.view.kept(node, &[].into(), now)
            }
            Step::Pass { .. } | Step::Lag { .. } => self.view.passed(now),
        })
    }
}

impl World {
    /// A client hears of it.
    fn hear(&mut self, news: News) {
        match news {
            News::Changed(shown) => {
                let (user, is) = entry(&shown);
                let client = self.clients.get_mut(&*shown.room).unwrap();
                assert_eq!(client.total, None, "a large room is told no changes");
                let was =
                    if is.0 == ShownStatus::Offline { client.seen.remove(user) } else { client.seen.insert(user, is) };
                let is = Some(is).filter(|is| is.0 != ShownStatus::Offline);
                assert_ne!(was, is, "{user} in {}: told what was known", shown.room);
            }
            News::Counted(room, total) => {
                let client = self.clients.get_mut(&*room).unwrap();
                assert!(client.total != Some(total) || client.joiner != Some(total), "{room}: told what was known");
                (client.total, client.joiner) = (Some(total), Some(total));
            }
            News::Anew(snapshot) => {
                let client = self.clients.get_mut(&*snapshot.room).unwrap();
                assert!(client.total.is_some(), "told anew what was told already");
                let seen = snapshot.users.iter().map(entry).collect();
                *client = Client { seen, total: None, joiner: None };
            }
        }
    }

    /// What clients know is what is so. `is_settled`: no change was in the last second.
    fn check(&mut self, is_settled: bool) {
        for room in ROOMS {
            let (truth, snapshot) = (self.model.picture(room), self.view.snapshot(room, self.now));
            let client = self.clients.get_mut(room).unwrap();
            let shown: Vec<_> = snapshot.users.iter().map(entry).collect();
            if client.total.is_none() {
                assert_eq!(client.seen, truth, "{room}");
                assert_eq!(shown.iter().copied().collect::<Picture>(), truth, "{room}");
                assert_eq!(snapshot.total, truth.len());
            } else if is_settled {
                assert_eq!((client.total, client.joiner), (Some(truth.len()), Some(truth.len())), "{room}");
                assert_eq!((snapshot.total, shown.len()), (truth.len(), truth.len().min(self.users_max)));
                assert!(shown.iter().all(|(user, is)| truth.get(user) == Some(is)), "{shown:?} {truth:?}");
            }
            let rank = |(user, (_, viewing, editing)): &(&'static str, (_, Option<_>, Option<_>))| {
                (editing.is_none(), editing.is_none() && viewing.is_none(), *user)
            };
            assert!(shown.is_sorted_by_key(rank), "{shown:?}");
            if client.total.is_some() {
                client.joiner = Some(snapshot.total);
            }
        }
        assert_eq!(self.view.len().0, self.model.users().len());
    }

    fn go(&mut self, step: Step) {
        let mut is_settled = false;
        match step {
            Step::Pass { millis } => {
                let time = Duration::from_millis(millis);
                // Once to let what is due happen, and once more when that has been told.
                for time in [time, SECOND, SECOND] {
                    self.now += time;
                    self.turn(Step::Pass { millis });
                }
                is_settled = true;
            }
            Step::Lag { millis } => {
                self.now += Duration::from_millis(millis);
                return;
            }
            step => self.turn(step),
        }
        self.check(is_settled);
    }

    fn turn(&mut self, step: Step) {
        for news in self.take(step).unwrap_or_else(|| self.view.passed(self.now)) {
            self.hear(news);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn what_clients_are_told_is_what_is_so(users_max in 1_usize..5, steps in prop::collection::vec(any_step(), 1..60)) {
        let mut world = World::new(users_max);
        for step in steps {
            world.go(step);
        }
        world.now += SECOND * 100;
        for stream in world.model.streams.keys().copied().collect::<Vec<_>>() {
            for news in world.view.closed(stream, Duration::ZERO, world.now) {
                world.hear(news);
            }
        }
        for news in world.view.passed(world.now + SETTLE) {
            world.hear(news);
        }
        prop_assert_eq!((world.view.len(), world.view.streams().count()), ((0, 0), 0));
    }
}
