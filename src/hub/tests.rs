//! The hub without a server: its router, ring, seats and mailboxes as they are, told what a pump would tell them. A
//! [`node`] is driven by hand, one message at a time, so that a test stands wherever it wants inside a read. What must hold
//! at every such moment is in [`model`]; the moments that have a name are in [`ring`] and [`mailbox`].

mod change;
mod mailbox;
mod model;
mod node;
mod ring;
mod stream;
mod told;

use std::{sync::Arc, task::Waker};

use time::OffsetDateTime;

use super::{
    seat::{Claim, Seat},
    *,
};
use crate::ids::{NodeKey, TypeFilter};

/// An event as the log gives it, of about 10 bytes.
fn event(xact: u64, seq: i64, kind: &str, rooms: &[&str]) -> Event {
    let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
    let (xact, at, data) = (xact.cast_signed(), OffsetDateTime::UNIX_EPOCH, format!(r#"{{"n":{seq}}}"#));
    Event { seq, xact, at, kind: kind.to_owned(), rooms, data }
}

/// Whoever opens streams here.
#[derive(Debug)]
struct Ana;

impl Holder for Ana {
    fn id(&self) -> &'static str {
        "ana"
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn avatar_url(&self) -> Option<&str> {
        None
    }

    fn is_seen(&self) -> bool {
        true
    }
}

/// Nobody's rights change but by hand.
#[derive(Debug)]
struct Lenient;

impl Warden for Lenient {
    fn takes_rights(&self, _: &str, _: &str) -> bool {
        false
    }

    fn is_revocable(&self, _: &str) -> bool {
        false
    }

    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }

    fn judge<'a>(&'a self, _: &'a mut crate::db::Conn, _: Vec<Suspect>) -> Judging<'a> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// A seat in these rooms.
fn sit(hub: &Arc<Hub>, rooms: &[&str], types: TypeFilter) -> Seat {
    let rooms: Vec<String> = rooms.iter().map(|room| (*room).to_owned()).collect();
    let (stream, holder, judged) = (NodeKey::random().stream(), Arc::new(Ana), hub.rights());
    Seat::take(hub, Claim { stream, holder, rooms: &rooms, types, judged }).unwrap()
}

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicU64);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Wakes {
    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }
}
