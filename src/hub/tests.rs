//! The hub without a server: its router, ring, seats and mailboxes as they are, told what a pump would tell them. A
//! [`node`] is driven by hand, one message at a time, so that a test stands wherever it wants inside a read. What must hold
//! at every such moment is in [`model`]; the moments that have a name are in [`ring`] and [`mailbox`].

mod mailbox;
mod model;
mod node;
mod ring;
mod stream;

use std::{sync::Arc, task::Waker};

use time::OffsetDateTime;

use super::*;

/// An event as the log gives it, of about 10 bytes.
fn event(xact: u64, seq: i64, kind: &str, rooms: &[&str]) -> Event {
    let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
    let (xact, at, data) = (xact.cast_signed(), OffsetDateTime::UNIX_EPOCH, format!(r#"{{"n":{seq}}}"#));
    Event { seq, xact, at, kind: kind.to_owned(), rooms, data }
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
