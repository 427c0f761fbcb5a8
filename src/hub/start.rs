//! Where a stream begins, and what it reads before it is live.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    Hub, Tail,
    change::{Catching, Missed},
    frames::Reset,
    past::{self, Chapter, Pages, too_many},
    seat::{Attached, Seat},
};
use crate::{
    error::Error,
    log::{LogError, Position, Reader},
};

/// How long a new stream waits for the pump to look at the log.
pub(super) const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the next event comes from.
pub(super) enum Source {
    /// The mailbox.
    Live,
    /// These events, then what comes after them.
    Past(Box<Past>),
    /// A place to begin anew from.
    Anew(Box<Anew>),
    Ended,
}

/// What a stream reads before it goes on.
pub(super) struct Past {
    pub(super) chapter: Chapter,
    /// What follows of the log, and the position that it ends at.
    pub(super) pages: Option<(Pages, Option<Position>)>,
    /// Rooms that the stream has joined, whose past this is.
    pub(super) catching: Option<Box<Catching>>,
    pub(super) then: Then,
}

/// What follows the past.
pub(super) enum Then {
    Live,
    /// The stream looks again where it stands.
    Attach,
    /// It has to reach the place where it joined rooms before it may catch up with those.
    Reach(Box<Catching>),
}

impl Then {
    /// The rooms that were to be caught up with next.
    pub(super) fn catching(&mut self) -> Option<Box<Catching>> {
        match std::mem::replace(self, Self::Attach) {
            Self::Reach(catching) => Some(catching),
            Self::Live | Self::Attach => None,
        }
    }
}

/// A stream that cannot go on from where it stands.
pub(super) struct Anew {
    pub(super) caught_up: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(super) reason: Reset,
    /// Rooms that it was catching up with.
    pub(super) catching: Option<Box<Catching>>,
}

/// Where a stream begins.
pub(super) enum Start {
    Live,
    Replay(Position, Source),
    Reset(Reset),
}

pub(super) fn out_of_reach() -> Error {
    Error::unavailable("The database is out of reach.")
}

/// Where a stream begins, and the tail that it is attached to.
pub(super) async fn judge(seat: &Seat, last_event_id: Option<&str>) -> Result<(Arc<Tail>, Start), Error> {
    let Some(text) = last_event_id else { return Ok((seat.begin(), Start::Live)) };
    let at = match seat.hub.position(text).await? {
        Ok(at) => at,
        Err(reset) => return Ok((seat.begin(), Start::Reset(reset))),
    };
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
    let mut readers = seat.readers(at, tail.at.base());
    let most = seat.hub.settings.replay_events_max;
    let counted = seat.hub.read_log(async |conn| too_many(&mut readers, conn, most).await).await;
    match counted {
        Ok(true) => Ok(Err(Reset::TooMany)),
        Ok(false) => Ok(Ok(from_log(seat, readers, tail))),
        Err(LogError::TooOld) => Ok(Err(Reset::TooOld)),
        Err(LogError::Foreign) => Ok(Err(Reset::Foreign)),
        Err(LogError::Unreadable(damage)) => {
            seat.hub.note(&damage);
            Ok(Err(Reset::Unreadable))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a stream that was attached at `at` reads.
pub(super) fn source(seat: &Seat, at: &Position, tail: &Tail, attached: Attached) -> Result<Source, Reset> {
    match attached {
        Attached::Ring { missed, more: false } if missed.is_empty() => Ok(Source::Live),
        Attached::Ring { missed, more } => {
            let then = if more { Then::Attach } else { Then::Live };
            let chapter = Chapter { events: missed.into_iter(), end: None };
            Ok(Source::Past(Box::new(Past { chapter, pages: None, catching: None, then })))
        }
        Attached::Log => Ok(from_log(seat, seat.readers(at, tail.at.base()), tail)),
        Attached::Reset(reset) => Err(reset),
        Attached::Overdue(catching) => Ok(catch_up_from_behind(seat, at, catching)),
    }
}

fn from_log(seat: &Seat, readers: Vec<Reader>, tail: &Tail) -> Source {
    let pages = Some((past::pages(seat.hub.clone(), readers), Some(tail.at.clone())));
    Source::Past(Box::new(Past { chapter: Chapter::default(), pages, catching: None, then: Then::Live }))
}

/// Catches up with rooms that the stream has joined, when all that came before has been written.
pub(super) fn catch_up(hub: &Arc<Hub>, mut catching: Box<Catching>, then: Then) -> Source {
    let missed = std::mem::replace(&mut catching.missed, Missed::Ring(Vec::new()));
    let (chapter, pages) = match missed {
        Missed::Ring(missed) => (Chapter { events: missed.into_iter(), end: None }, None),
        Missed::Log(readers) => (Chapter::default(), Some((past::pages(hub.clone(), readers), None))),
    };
    Source::Past(Box::new(Past { chapter, pages, catching: Some(catching), then }))
}

/// Reads up to where the stream joined rooms, and then what it missed of those.
pub(super) fn catch_up_from_behind(seat: &Seat, at: &Position, catching: Box<Catching>) -> Source {
    let to = catching.since.clone();
    if at.includes(to.base()) {
        return catch_up(&seat.hub, catching, Then::Attach);
    }
    let (chapter, pages) = match seat.recent(at, &to) {
        Some((events, is_all)) => (Chapter { events: events.into_iter(), end: is_all.then_some(to) }, None),
        None => {
            let pages = past::pages(seat.hub.clone(), seat.readers(at, to.base()));
            (Chapter::default(), Some((pages, Some(to))))
        }
    };
    Source::Past(Box::new(Past { chapter, pages, catching: None, then: Then::Reach(catching) }))
}

/// Begins at the tail of a read that begins from now on, and says why.
pub(super) fn anew(hub: Arc<Hub>, reason: Reset, catching: Option<Box<Catching>>) -> Source {
    let caught_up = Box::pin(async move { hub.catch_up().await });
    Source::Anew(Box::new(Anew { caught_up, reason, catching }))
}
