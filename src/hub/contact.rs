//! Since when the log is not read.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Hub;

/// A node that has not read the log for longer than this is none to send anybody to: a reconnect takes a moment.
const GRACE: Duration = Duration::from_secs(5);

/// When the pump failed first since it last got on; none while all is well.
#[derive(Debug, Default)]
pub(super) struct Contact(Mutex<Option<Instant>>);

impl Contact {
    /// The pump has failed.
    pub(super) fn is_lost(&self) {
        self.since().get_or_insert_with(Instant::now);
    }

    /// The pump has got on.
    pub(super) fn is_made(&self) {
        *self.since() = None;
    }

    /// A time that is set at once: nothing is half done when a panic comes.
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// Whether the log is read, but for a moment.
    pub fn is_fed(&self) -> bool {
        self.contact.since().is_none_or(|since| since.elapsed() < GRACE)
    }
}
