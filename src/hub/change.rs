//! What can be changed of a stream while it is open, by whoever may: its rooms, when it ends, and that it ends.
//!
//! Each change is made at once and by nobody's leave but the hub's: a client that does not read keeps nobody from taking a
//! room away from it. What the stream itself has to write of it (`stream:rooms`, a joined room's past) goes to its mailbox.
//!
//! # Joining, exactly
//!
//! A room is joined where the router has routed a read as a whole, at `C`: whoever comes in the middle of one waits for its
//! end. The router hands over what comes later; what the client missed of the room since its `after` and up to `C` is read
//! before that, and goes out without ids, since the stream's own position says nothing of this room yet. What its other
//! rooms had up to `C` goes out first, so that of one thing in several rooms nothing comes too late. Whatever the stream
//! reads again later, from wherever it stands, is cut by the same `C`: an event goes out if one of the stream's rooms
//! brings it, that is, if it came after the stream joined that room. So an event that is in a room of before as well comes
//! once, by that one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use time::OffsetDateTime;
use tokio::{sync::oneshot, time::timeout};
use uuid::Uuid;

use super::{
    Closing, ClosingReason, Holder, Hub, Refusal, Refused, RoomsChanged, State, Suspect, Verdict,
    frames::Reset,
    mailbox::Mailbox,
    past,
    ring::Delivery,
    seat::{self, LOOK_EVENTS_MAX},
    start::CATCH_UP_TIMEOUT,
    whisper,
};
use crate::{
    error::{Code, Error, Result},
    log::{LogError, Position, Reader},
};

/// Joins that wait for the router to have routed a read; one more is refused.
const JOINING_MAX: usize = 10_000;

/// Joins of one stream that it has still to catch up with; one more is refused.
const PENDING_MAX: usize = 16;

/// The rooms that a stream wants to be in as well.
#[derive(Debug)]
pub struct Wish {
    /// Those that it may have.
    pub rooms: Vec<String>,
    /// Those that it is to be told it does not get.
    pub refused: Vec<Refused>,
    /// What the client has of them; none is what there is at that moment.
    pub after: Option<Position>,
    /// Those that it leaves next: they leave their places to these.
    pub leaving: Vec<String>,
    /// How many it may be in, its own not counted.
    pub rooms_max: usize,
    /// Whose rights were judged.
    pub holder: Arc<dyn Holder>,
    /// What [`Hub::rights`] said before that.
    pub judged: u64,
}

/// What a stream goes on with.
#[derive(Debug)]
pub struct Renewal {
    /// Whose it is now.
    pub holder: Arc<dyn Holder>,
    /// When that ends.
    pub expires_at: OffsetDateTime,
    /// The rooms that were judged, all that it was in.
    pub rooms: Vec<String>,
    /// Those of them that it loses.
    pub lost: Vec<Refused>,
    /// What [`Hub::rights`] said before that.
    pub judged: u64,
}

/// A stream, as an admin sees it.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub stream: Uuid,
    /// Whose it is.
    pub holder: Arc<dyn Holder>,
    /// The rooms that it is in.
    pub rooms: Vec<String>,
    /// Events that wait for it and their bytes; none when it reads history.
    pub waiting: Option<(usize, usize)>,
}

/// A wish that waits for its moment.
#[derive(Debug)]
pub(super) struct Joining {
    stream: Uuid,
    wish: Wish,
    done: oneshot::Sender<Result<RoomsChanged, NotJoined>>,
}

/// Why a stream did not join.
#[derive(Debug)]
pub enum NotJoined {
    /// There is no such stream here.
    Gone,
    /// Somebody has lost rights since its rooms were judged: they are to be judged again.
    Stale,
    /// Anything else.
    Failed(Error),
}

impl From<Error> for NotJoined {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a stream has to read of rooms that it has just joined, and what it writes then.
#[derive(Debug)]
pub(super) struct Catching {
    /// Which of the stream's joins this is; its mailbox says it.
    pub(super) nth: u32,
    /// Where they were joined: what the stream's other rooms had up to there goes out before.
    pub(super) since: Position,
    /// What the client has of them.
    pub(super) after: Position,
    pub(super) missed: Missed,
    /// What `stream:rooms` says then.
    pub(super) told: RoomsChanged,
}

/// Where what was missed is read from.
#[derive(Debug)]
pub(super) enum Missed {
    Ring(Vec<Delivery>),
    Log(Vec<Reader>),
}

impl Hub {
    /// The position that a client wants to join rooms from.
    ///
    /// # Errors
    /// 409 when it is none of this log's, 503 when Postgres does not say.
    pub async fn after(&self, text: &str) -> Result<Position> {
        self.position(text).await?.map_err(not_resumable)
    }

    /// Puts a stream into rooms; those of before stay. With `after`, the rooms' events since then come first. The stream
    /// says so with `stream:rooms`, as what is returned does.
    ///
    /// # Errors
    /// See [`NotJoined`]; among them 409 when `after` cannot be resumed, 503 when Postgres does not say.
    pub async fn join(&self, stream: Uuid, wish: Wish) -> Result<RoomsChanged, NotJoined> {
        if let Some(after) = &wish.after {
            self.refuse_too_many(after, &wish.rooms).await?;
        }
        let (done, joined) = oneshot::channel();
        let joining = Joining { stream, wish, done };
        {
            let mut state = self.state();
            if state.tail.read == state.settled.0 {
                self.join_now(&mut state, joining);
            } else if state.joining.len() < JOINING_MAX {
                state.joining.push(joining);
            } else {
                return Err(Error::new(Code::Overloaded, "Too many join rooms at the moment.").into());
            }
        }
        joined.await.unwrap_or(Err(NotJoined::Gone))
    }

    /// The router has routed a read as a whole: this is the moment that those waited for. It lasts until the router goes
    /// on, so that others may have their turn between two of them.
    pub(super) fn join_waiting(&self) {
        let waiting = std::mem::take(&mut self.state().joining);
        for joining in waiting {
            // Whoever waits no longer was told that it did not work.
            if !joining.done.is_closed() {
                self.join_now(&mut self.state(), joining);
            }
        }
    }

    fn join_now(&self, state: &mut State, Joining { stream, wish, done }: Joining) {
        // Whoever went away meanwhile needs no answer.
        let _ = done.send(self.try_join(state, stream, wish));
    }

    fn try_join(&self, state: &mut State, stream: Uuid, mut wish: Wish) -> Result<RoomsChanged, NotJoined> {
        let mailbox = state.streams.get(&stream).cloned().ok_or(NotJoined::Gone)?;
        if state.rights.is_stale(wish.judged, &wish.rooms) || !Arc::ptr_eq(&wish.holder, &mailbox.holder()) {
            return Err(NotJoined::Stale);
        }
        if mailbox.pending() >= PENDING_MAX {
            let detail = "The stream has still to catch up with rooms that it joined.";
            return Err(Error::new(Code::Overloaded, detail).into());
        }
        limit(&mailbox, &mut wish);
        let new: Vec<String> = wish.rooms.iter().filter(|room| !mailbox.is_in(room)).cloned().collect();
        let since = state.settled.1.clone();
        let after = wish.after.unwrap_or_else(|| since.clone());
        let missed = self.missed(state, &after, &new)?;
        for room in &new {
            state.rooms.join(room, &mailbox);
        }
        let told = RoomsChanged { joined: wish.rooms, refused: wish.refused, ..RoomsChanged::default() };
        mailbox.join(&new, Catching { nth: 0, since, after, missed, told: told.clone() });
        Ok(told)
    }

    /// What these rooms had since `after` and up to what was routed.
    fn missed(&self, state: &State, after: &Position, rooms: &[String]) -> Result<Missed> {
        if let Some(reset) = seat::refuses(&state.tail, after) {
            return Err(not_resumable(reset));
        }
        let to = state.settled.1.base();
        match state.ring.since(after, to, rooms, LOOK_EVENTS_MAX) {
            Some(missed) if missed.len() < LOOK_EVENTS_MAX && self.fits_a_mailbox(&missed) => Ok(Missed::Ring(missed)),
            _ => Ok(Missed::Log(self.readers(after, to, rooms.to_vec()))),
        }
    }

    fn fits_a_mailbox(&self, missed: &[Delivery]) -> bool {
        let bytes: usize = missed.iter().map(|delivery| delivery.live.encoded.bytes().len()).sum();
        bytes <= self.settings.queue_bytes
    }

    /// Waits until the router has reached `after`, and refuses one that has too much behind it.
    async fn refuse_too_many(&self, after: &Position, rooms: &[String]) -> Result<()> {
        if !self.reaches(after) {
            let caught_up = timeout(CATCH_UP_TIMEOUT, self.catch_up()).await;
            caught_up.map_err(|_| Error::unavailable("The database is out of reach."))?;
        }
        let most = self.settings.replay_events_max;
        let (known, tail) = {
            let state = self.state();
            if let Some(reset) = seat::refuses(&state.tail, after) {
                return Err(not_resumable(reset));
            }
            let missed = state.ring.since(after, state.settled.1.base(), rooms, LOOK_EVENTS_MAX);
            let known = missed.map(|missed| seat::has_more_than(&state, after, rooms, &missed, most));
            (known, state.tail.clone())
        };
        let mut readers = self.readers(after, tail.at.base(), rooms.to_vec());
        let counted = match known {
            Some(known) => Ok(known),
            None => self.read_log(async |conn| past::too_many(&mut readers, conn, most).await).await,
        };
        match counted {
            Ok(false) => Ok(()),
            Ok(true) => Err(not_resumable(Reset::TooMany)),
            Err(LogError::TooOld) => Err(not_resumable(Reset::TooOld)),
            Err(LogError::Foreign) => Err(not_resumable(Reset::Foreign)),
            Err(LogError::Unreadable(damage)) => {
                self.note(&damage);
                Err(not_resumable(Reset::Unreadable))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has a stream leave those of these rooms that it is in, as its owner wants: after what it has still to read of rooms
    /// that it joined. None when there is no such stream here.
    pub fn leave(&self, stream: Uuid, rooms: &[String]) -> Option<Vec<Refused>> {
        let mailbox = self.mailbox(stream)?;
        let left = rooms.iter().filter(|room| mailbox.is_in(room)).cloned();
        let left: Vec<Refused> = left.map(|room| Refused { room, reason: Refusal::Requested }).collect();
        if !mailbox.leave_later(&left) {
            self.take_away(stream, &left);
        }
        Some(left)
    }

    /// Takes those of these rooms that a stream is in away from it, for the reasons given: from now on it gets nothing of
    /// them. Whether there is such a stream here.
    ///
    /// If it has still to catch up with rooms that it joined, an event that is in both of them and came already comes again:
    /// it could not be told from one that never came.
    pub fn take_away(&self, stream: Uuid, rooms: &[Refused]) -> bool {
        let mailbox = {
            let mut state = self.state();
            let Some(mailbox) = state.streams.get(&stream).cloned() else { return false };
            if !take_away(&mut state, &mailbox, rooms) {
                return true;
            }
            mailbox
        };
        self.presence.moved(stream, || mailbox.rooms(), &[]);
        true
    }

    /// Has a stream go on with other credentials, which end at another time and give it these of its rooms no more. Nothing
    /// happens in between: it never has the new end and the old rooms.
    ///
    /// # Errors
    /// [`NotJoined::Gone`], and [`NotJoined::Stale`] when what was judged is to be judged again.
    pub fn renew(&self, stream: Uuid, renewal: Renewal) -> Result<(), NotJoined> {
        let Renewal { holder, expires_at, rooms, lost, judged } = renewal;
        let mailbox = {
            let mut state = self.state();
            let mailbox = state.streams.get(&stream).cloned().ok_or(NotJoined::Gone)?;
            if state.rights.is_stale(judged, &rooms) || mailbox.rooms() != rooms {
                return Err(NotJoined::Stale);
            }
            mailbox.renew(holder.clone(), expires_at);
            take_away(&mut state, &mailbox, &lost);
            mailbox
        };
        self.presence.moved(stream, || mailbox.rooms(), &[]);
        self.presence.renewed(stream, whisper::who(holder.as_ref()), || mailbox.rooms());
        Ok(())
    }

    /// Ends a stream. Whether there is such a stream here.
    pub fn end(&self, stream: Uuid, reason: ClosingReason) -> bool {
        self.mailbox(stream).is_some_and(|mailbox| {
            let closing = Closing::usual(reason, stream.as_u128() as u64);
            mailbox.close(closing);
            let grace = self.grace(Some(closing));
            if grace.is_zero() {
                // Its client may be slow to hear of it: the others need not wait for that.
                self.presence.closed(stream, grace);
            }
            true
        })
    }

    pub(super) fn mailbox(&self, stream: Uuid) -> Option<Arc<Mailbox>> {
        self.state().streams.get(&stream).cloned()
    }

    /// Whether there is such a stream here, and it is this user's, if one is named.
    pub fn has(&self, stream: Uuid, owner: Option<&str>) -> bool {
        self.mailbox(stream).is_some_and(|mailbox| owner.is_none_or(|owner| mailbox.holder().id() == owner))
    }

    /// Whose a stream is and the rooms that it is in.
    pub fn standing(&self, stream: Uuid) -> Option<(Arc<dyn Holder>, Vec<String>)> {
        self.mailbox(stream).map(|mailbox| (mailbox.holder(), mailbox.rooms()))
    }

    /// The streams behind this one, up to so many.
    pub fn list(&self, after: Uuid, limit: usize) -> Vec<Listed> {
        let streams: Vec<Arc<Mailbox>> = {
            let state = self.state();
            let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
            state.streams.range(behind).take(limit).map(|(_, mailbox)| mailbox.clone()).collect()
        };
        streams.iter().map(|mailbox| mailbox.listed()).collect()
    }

    /// Takes a room away from every stream that is in it.
    pub fn close_room(&self, room: &str, reason: Refusal) {
        let members: Vec<Uuid> = self.state().rooms.members(room).iter().map(|mailbox| mailbox.key).collect();
        for stream in members {
            self.take_away(stream, &[Refused { room: room.to_owned(), reason }]);
        }
    }

    /// The rooms that streams of this node are in and that begin so.
    pub fn rooms_of(&self, prefix: &str) -> Vec<String> {
        let rooms = self.streams_in_parts().flatten().flat_map(|mailbox| mailbox.rooms());
        rooms.filter(|room| room.starts_with(prefix)).collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Changes whenever rights were taken from streams. Who judges what a stream may have asks before, and says it when the
    /// stream takes what was judged: what was judged before must be judged again.
    pub fn rights(&self) -> u64 {
        self.state().rights.count()
    }

    /// The streams that may lose rooms by what happened in these; in any room, where it is not known. From now on whoever
    /// was judged before has to be judged again.
    pub(super) fn suspects(&self, rooms: Option<&[String]>) -> Vec<Suspect> {
        match rooms {
            Some(rooms) => self.suspects_in(rooms),
            None => self.all_suspects(),
        }
    }

    fn suspects_in(&self, rooms: &[String]) -> Vec<Suspect> {
        let mut names: Vec<String> = rooms.iter().filter(|room| self.warden.is_revocable(room)).cloned().collect();
        names.sort_unstable();
        names.dedup();
        self.state().rights.taken(Some(&names));
        let mut suspects = BTreeMap::<Uuid, Suspect>::new();
        for room in names {
            // A room at a time: whoever comes into one of the others meanwhile was judged from now on.
            let members = self.state().rooms.members(&room).to_vec();
            for mailbox in members {
                let suspect = || Suspect { stream: mailbox.key, holder: mailbox.holder(), rooms: Vec::new() };
                suspects.entry(mailbox.key).or_insert_with(suspect).rooms.push(room.clone());
            }
        }
        suspects.into_values().collect()
    }

    fn all_suspects(&self) -> Vec<Suspect> {
        self.state().rights.taken(None);
        let suspect = |mailbox: Arc<Mailbox>| {
            let rooms: Vec<String> =
                mailbox.rooms().into_iter().filter(|room| self.warden.is_revocable(room)).collect();
            (!rooms.is_empty()).then(|| Suspect { stream: mailbox.key, holder: mailbox.holder(), rooms })
        };
        self.streams_in_parts().flatten().filter_map(suspect).collect()
    }

    /// Takes away what was judged.
    pub(super) fn apply(&self, verdicts: Vec<Verdict>) {
        for (stream, rooms) in verdicts {
            self.take_away(stream, &rooms);
        }
    }
}

/// Takes a stream out of those of these rooms that it is in, and tells it; whether there were any.
fn take_away(state: &mut State, mailbox: &Mailbox, rooms: &[Refused]) -> bool {
    let mut left: Vec<Refused> = rooms.iter().filter(|left| mailbox.is_in(&left.room)).cloned().collect();
    left.sort_by(|one, other| one.room.cmp(&other.room));
    left.dedup_by(|one, other| one.room == other.room);
    if left.is_empty() {
        return false;
    }
    for room in &left {
        state.rooms.leave(&room.room, mailbox);
    }
    mailbox.leave(left);
    true
}

/// Moves what would be too many rooms to those that are refused. The stream's own room is not counted.
fn limit(mailbox: &Mailbox, wish: &mut Wish) {
    let leaving = wish.leaving.iter().filter(|room| mailbox.stays_in(room)).count();
    let mut places = (wish.rooms_max + 1 + leaving).saturating_sub(mailbox.rooms().len());
    let refused = &mut wish.refused;
    wish.rooms.retain(|room| {
        if mailbox.is_in(room) {
            return true;
        }
        let fits = places > 0;
        places = places.saturating_sub(1);
        if !fits {
            refused.push(Refused { room: room.clone(), reason: Refusal::Limit });
        }
        fits
    });
}

fn not_resumable(reset: Reset) -> Error {
    let why = match reset {
        Reset::Foreign => "was made by another log",
        Reset::TooOld => "is older than what the log still holds",
        Reset::TooMany => "has more behind it than is sent one by one",
        Reset::Malformed | Reset::Unknown => "is not one of this log's",
        Reset::Unreadable => "has behind it what the database cannot give",
    };
    Error::new(Code::CursorNotResumable, format!("after {why}: read the state again, and join from there."))
}
