//! What Postgres cannot give: counted, and named in the log once.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Hub;
use crate::log::Damage;

/// Events that are remembered to have been named.
const NAMED_MAX: usize = 1024;

/// The events that were named so far.
#[derive(Debug, Default)]
pub(super) struct Damages(Mutex<BTreeSet<Option<i64>>>);

impl Damages {
    /// Each change is one call of the set: nothing is half done when a panic comes.
    fn named(&self) -> MutexGuard<'_, BTreeSet<Option<i64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// An event cannot be read: each reader counts that, the first one says so.
    pub fn note(&self, damage: &Damage) {
        self.metrics.unreadable.count("what", "event");
        let mut named = self.damages.named();
        if named.len() >= NAMED_MAX {
            named.clear();
        }
        if named.insert(damage.seq) {
            tracing::error!(seq = damage.seq, error = %damage.error, "an event cannot be read: the log goes on without it");
        }
    }
}
