//! The cluster's picture on one node: who is in which room, and what they do there.
//!
//! Facts come stream by stream, of this node's streams at once and of the others' as rows. A user is shown by all of their
//! streams together. Each operation says what changed of that in which room, and nothing that did not.
//!
//! The facts of a user's streams on several nodes come in any order: that one tab is idle may be known before it is known
//! that another has opened. So what would make a user idle, or take them out of a room, is shown only when it has been so
//! for [`SETTLE`]. What a node says at once is taken in at once.
//!
//! Nothing here looks at a clock: `now` comes with the operation, and [`View::next_due`] says when time alone changes
//! something.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    facts::{Facts, Shown, Status, Update, Who, with_presence},
    room::{Room, Snapshot, Way},
    user::User,
};
use crate::ids::NodeKey;

/// For how long nothing must say that a user is active, or in a room, before they are shown idle, or leaving it. Longer than
/// it takes until a node has read what another knows: that gathers what it writes for a tenth of a second, and whoever
/// hears no bell looks once a second.
pub(super) const SETTLE: Duration = Duration::from_millis(1200);

/// What a room is to be told.
#[derive(Debug)]
pub(super) enum News {
    /// A user is seen otherwise there.
    Changed(Shown),
    /// A large room has another number of users.
    Counted(Arc<str>, usize),
    /// The room has become small: what was not told meanwhile is in a snapshot.
    Anew(Arc<Snapshot>),
}

/// When a user is shown leaving, or idle, whose streams do not say otherwise any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// At once: it has been so for long, or what was shown for a moment is over.
    Now,
    /// After [`SETTLE`].
    Late,
}

/// Everybody in every room.
#[derive(Debug)]
pub(super) struct View {
    /// Users that a snapshot shows, and that a room may have whose changes are told.
    users_max: usize,
    users: HashMap<Arc<str>, User>,
    /// Whose each stream is that counts.
    streams: HashMap<Uuid, Arc<str>>,
    rooms: HashMap<Arc<str>, Room>,
    /// When the graces end of streams that have closed.
    graces: BTreeSet<(Instant, Uuid)>,
    /// When what lingers of users is looked at.
    lingers: BTreeSet<(Instant, Arc<str>)>,
    /// When large rooms are told how many they are.
    counts: BTreeSet<(Instant, Arc<str>)>,
    news: Vec<News>,
}

impl View {
    pub(super) fn new(users_max: usize) -> Self {
        Self {
            users_max,
            users: HashMap::new(),
            streams: HashMap::new(),
            rooms: HashMap::new(),
            graces: BTreeSet::new(),
            lingers: BTreeSet::new(),
            counts: BTreeSet::new(),
            news: Vec::new(),
        }
    }

    /// A stream has opened. One that resumes is as its user's others are: a laptop that sleeps does not wake up by
    /// connecting again.
    pub(super) fn opened(&mut self, stream: Uuid, who: Who, rooms: &[&str], resumed: bool, now: Instant) -> Vec<News> {
        self.pass(now);
        let status = self.users.get(&who.sub).filter(|_| resumed).map_or(Status::Online, User::resumed);
        let rooms = self.shared(with_presence(rooms));
        let facts = Facts { who: Arc::new(who), rooms, status, report: None, ends: None };
        self.put(stream, facts, now);
        self.told(now)
    }

    /// A stream is in these rooms now.
    pub(super) fn moved(&mut self, stream: Uuid, rooms: &[&str], now: Instant) -> Vec<News> {
        self.pass(now);
        let rooms = self.shared(with_presence(rooms));
        self.change(stream, now, |facts| facts.rooms = rooms);
        self.told(now)
    }

    /// A stream's user is called otherwise.
    pub(super) fn renamed(&mut self, stream: Uuid, who: Who, now: Instant) -> Vec<News> {
        self.pass(now);
        self.change(stream, now, |facts| facts.who = Arc::new(who));
        self.told(now)
    }

    /// A stream's client says what its user does.
    pub(super) fn reported(&mut self, stream: Uuid, update: Update, stamp: i64, now: Instant) -> Vec<News> {
        self.pass(now);
        self.change(stream, now, |facts| facts.report(update, stamp));
        self.told(now)
    }

    /// A stream has ended, and counts as it was until the grace has.
    pub(super) fn closed(&mut self, stream: Uuid, grace: Duration, now: Instant) -> Vec<News> {
        self.pass(now);
        if grace.is_zero() {
            self.remove(&[stream], now, Leaving::Late);
        } else {
            self.change(stream, now, |facts| facts.ends = Some(now + grace));
        }
        self.told(now)
    }

    /// What other nodes say of their streams. What has ended is none.
    pub(super) fn heard(&mut self, facts: Vec<(Uuid, Option<Facts>)>, now: Instant) -> Vec<News> {
        self.pass(now);
        let mut by_user = BTreeMap::<Arc<str>, Vec<(Uuid, Option<Facts>)>>::new();
        for (stream, facts) in facts {
            let facts = facts.filter(|facts| facts.ends.is_none_or(|ends| ends > now));
            let whose = self.streams.get(&stream).or(facts.as_ref().map(|facts| &facts.who.sub));
            if let Some(sub) = whose.cloned() {
                by_user.entry(sub).or_default().push((stream, facts));
            }
        }
        for (sub, facts) in by_user {
            self.take(&sub, facts, now, Leaving::Late);
        }
        self.told(now)
    }

    /// Of this node's streams only these are left.
    pub(super) fn kept(&mut self, node: NodeKey, left: &HashSet<Uuid>, now: Instant) -> Vec<News> {
        self.pass(now);
        let is_gone = |stream: &Uuid| NodeKey::of(*stream) == node && !left.contains(stream);
        let mut gone = BTreeMap::<Arc<str>, Vec<Uuid>>::new();
        for (stream, sub) in self.streams.iter().filter(|(stream, _)| is_gone(stream)) {
            gone.entry(sub.clone()).or_default().push(*stream);
        }
        // A user with several of them leaves once.
        for streams in gone.values() {
            self.remove(streams, now, Leaving::Now);
        }
        self.told(now)
    }

    /// Time has passed.
    pub(super) fn passed(&mut self, now: Instant) -> Vec<News> {
        self.pass(now);
        self.told(now)
    }

    /// When time alone changes something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (grace, linger) = (self.graces.first().map(|(at, _)| *at), self.lingers.first().map(|(at, _)| *at));
        let count = self.counts.first().map(|(at, _)| *at);
        [grace, linger, count].into_iter().flatten().min()
    }

    /// What is known of a stream that counts.
    pub(super) fn facts(&self, stream: Uuid) -> Option<&Facts> {
        self.users.get(self.streams.get(&stream)?)?.facts(stream)
    }

    /// The streams that count.
    pub(super) fn streams(&self) -> impl ExactSizeIterator<Item = Uuid> {
        self.streams.keys().copied()
    }

    /// Users and rooms.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.users.len(), self.rooms.len())
    }

    /// Who is in a room. That of a large room may be a second old.
    pub(super) fn snapshot(&mut self, name: &str, now: Instant) -> Arc<Snapshot> {
        let Some((name, room)) = self.rooms.get_key_value(name) else {
            return Arc::new(Snapshot::new(name.into(), 0, Vec::new()));
        };
        let name = name.clone();
        let snapshot = room.kept_snapshot(now).unwrap_or_else(|| Arc::new(self.look(&name, room)));
        let room = self.rooms.get_mut(&name).expect("it was there just now");
        room.keep(now, &snapshot);
        if room.gave(snapshot.total) {
            self.ask(&name, now);
        }
        snapshot
    }

    fn look(&self, name: &Arc<str>, room: &Room) -> Snapshot {
        // Those who edit, those who view, and the others: each in the room's order.
        let mut ranks = [Vec::new(), Vec::new(), Vec::new()];
        for sub in &room.users {
            let portrait = self.users.get(sub).and_then(User::portrait).expect("whoever is in a room is seen");
            let shown = portrait.seen_in(name);
            let rank = if shown.editing.is_some() { 0 } else { 2 - usize::from(shown.viewing.is_some()) };
            if ranks[rank].len() < self.users_max {
                ranks[rank].push(shown);
            }
        }
        let users = ranks.into_iter().flatten().take(self.users_max).collect();
        Snapshot::new(name.clone(), room.users.len(), users)
    }

    /// What ends by time, in the order in which it does.
    fn pass(&mut self, now: Instant) {
        loop {
            let grace = self.graces.first().copied().filter(|(ends, _)| *ends <= now);
            let linger = self.lingers.first().cloned().filter(|(until, _)| *until <= now);
            match (grace, linger) {
                (Some((ends, stream)), linger) if linger.as_ref().is_none_or(|(until, _)| ends <= *until) => {
                    self.remove(&[stream], ends, Leaving::Late);
                }
                (_, Some(linger)) => {
                    self.lingers.remove(&linger);
                    let (until, sub) = linger;
                    self.user_changes(&sub, until, Leaving::Now, |user| user.settle(until));
                }
                (_, None) => return,
            }
        }
    }

    /// What is to be told of all that happened until now.
    fn told(&mut self, now: Instant) -> Vec<News> {
        while let Some((due, name)) = self.counts.first().filter(|(due, _)| *due <= now).cloned() {
            self.counts.remove(&(due, name.clone()));
            if let Some(total) = self.rooms.get_mut(&name).and_then(|room| room.count(due, now)) {
                self.news.push(News::Counted(name, total));
            }
        }
        std::mem::take(&mut self.news)
    }

    fn put(&mut self, stream: Uuid, facts: Facts, now: Instant) {
        let sub = self.streams.get(&stream).unwrap_or(&facts.who.sub).clone();
        self.take(&sub, vec![(stream, Some(facts))], now, Leaving::Late);
    }

    fn change(&mut self, stream: Uuid, now: Instant, change: impl FnOnce(&mut Facts)) {
        let Some(mut facts) = self.facts(stream).cloned() else { return };
        change(&mut facts);
        self.put(stream, facts, now);
    }

    /// Some streams of one user count no more.
    fn remove(&mut self, streams: &[Uuid], now: Instant, leaving: Leaving) {
        let Some(sub) = streams.iter().find_map(|stream| self.streams.get(stream)).cloned() else { return };
        self.take(&sub, streams.iter().map(|stream| (*stream, None)).collect(), now, leaving);
    }

    /// Sets what is known of streams of one user, all at once; those of which it is nothing count no more.
    fn take(&mut self, sub: &Arc<str>, mut facts: Vec<(Uuid, Option<Facts>)>, now: Instant, leaving: Leaving) {
        for (stream, facts) in &mut facts {
            let ended = self.facts(*stream).and_then(|facts| facts.ends);
            self.regrace(*stream, ended, facts.as_ref().and_then(|facts| facts.ends));
            match facts {
                Some(facts) => {
                    facts.rooms = self.shared(facts.rooms.iter().map(|room| &**room).collect());
                    self.streams.entry(*stream).or_insert_with(|| sub.clone());
                }
                None => drop(self.streams.remove(stream)),
            }
        }
        self.user_changes(sub, now, leaving, |user| {
            for (stream, facts) in facts {
                match facts {
                    Some(facts) => user.put(stream, facts),
                    None => user.remove(stream),
                }
            }
        });
    }

    fn regrace(&mut self, stream: Uuid, was: Option<Instant>, is: Option<Instant>) {
        if let Some(was) = was {
            self.graces.remove(&(was, stream));
        }
        self.graces.extend(is.map(|is| (is, stream)));
    }

    /// Changes a user, and finds out which rooms see it.
    fn user_changes(&mut self, sub: &Arc<str>, now: Instant, leaving: Leaving, change: impl FnOnce(&mut User)) {
        let user = self.users.entry(sub.clone()).or_default();
        let (before, were_in, said) = (user.portrait(), user.rooms(), user.said());
        change(user);
        let until = now + SETTLE;
        if user.linger(before.as_ref(), said, (leaving == Leaving::Late).then_some(until)) {
            self.lingers.insert((until, sub.clone()));
        }
        let (after, are_in) = (user.portrait(), user.rooms());
        if user.is_gone() {
            self.users.remove(sub);
        }
        let left = were_in.iter().filter(|room| are_in.binary_search(room).is_err());
        for room in left {
            let gone = before.as_ref().expect("whoever was in a room was seen").gone_from(room);
            self.room(room).users.remove(sub);
            self.tell(room, gone, now);
        }
        for room in &are_in {
            let shown = after.as_ref().expect("whoever is in a room is seen").seen_in(room);
            if were_in.binary_search(room).is_err() {
                let sub = shown.user_id.clone();
                self.room(room).users.insert(sub);
            } else if before.as_ref().is_some_and(|before| before.seen_in(room) == shown) {
                continue;
            }
            self.tell(room, shown, now);
        }
    }

    fn room(&mut self, name: &Arc<str>) -> &mut Room {
        self.rooms.entry(name.clone()).or_default()
    }

    /// Tells a room of a user, in the way that suits its size.
    fn tell(&mut self, name: &Arc<str>, shown: Shown, now: Instant) {
        let users_max = self.users_max;
        let way = self.room(name).way(users_max);
        match way {
            Way::Changes => self.news.push(News::Changed(shown)),
            Way::Counts => self.ask(name, now),
            Way::Anew => {
                let snapshot = self.look(name, &self.rooms[name]);
                self.news.push(News::Anew(Arc::new(snapshot)));
            }
        }
        if self.rooms[name].users.is_empty() {
            self.rooms.remove(name);
        }
    }

    fn ask(&mut self, name: &Arc<str>, now: Instant) {
        if let Some(due) = self.room(name).ask(now) {
            self.counts.insert((due, name.clone()));
        }
    }

    /// One name for each room, however many streams are in it.
    fn shared(&self, names: Vec<&str>) -> Box<[Arc<str>]> {
        let known = |name: &str| self.rooms.get_key_value(name).map(|(name, _)| name.clone());
        names.into_iter().map(|name| known(name).unwrap_or_else(|| name.into())).collect()
    }
}
