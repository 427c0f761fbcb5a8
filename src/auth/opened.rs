//! Which streams of this node were opened with which credential: a ticket, or the cookie of a session.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use crate::metrics::Gauge;

/// The credentials of a kind that have streams here, each with its streams, of which something may be known. Bounded by the
/// streams.
#[derive(Debug)]
pub(super) struct Opened<K, V = ()> {
    both: Mutex<Both<K, V>>,
    /// How many credentials.
    gauge: Gauge,
}

#[derive(Debug)]
struct Both<K, V> {
    streams: HashMap<K, HashMap<Uuid, V>>,
    /// The credential of each of those streams.
    credentials: HashMap<Uuid, K>,
}

impl<K: Copy + Eq + Hash, V> Opened<K, V> {
    pub(super) fn new(gauge: Gauge) -> Arc<Self> {
        let both = Both { streams: HashMap::new(), credentials: HashMap::new() };
        Arc::new(Self { both: Mutex::new(both), gauge })
    }

    /// A stream is opened with this credential. It counts for as long as what is returned lives.
    pub(super) fn hold(self: &Arc<Self>, credential: K, stream: Uuid, known: V) -> Held<K, V> {
        let mut both = self.both();
        both.streams.entry(credential).or_default().insert(stream, known);
        both.credentials.insert(stream, credential);
        self.gauge.set(both.streams.len().try_into().unwrap_or(i64::MAX));
        drop(both);
        Held { opened: self.clone(), stream }
    }

    /// All credentials that have streams.
    pub(super) fn credentials(&self) -> Vec<K> {
        self.both().streams.keys().copied().collect()
    }

    /// The credential that a stream was opened with, if it was opened with one of this kind.
    pub(super) fn credential(&self, stream: Uuid) -> Option<K> {
        self.both().credentials.get(&stream).copied()
    }

    /// Those streams of a credential of which this holds.
    pub(super) fn streams(&self, credential: K, holds: impl Fn(&V) -> bool) -> Vec<Uuid> {
        let both = self.both();
        let streams = both.streams.get(&credential).into_iter().flatten();
        streams.filter(|(_, known)| holds(known)).map(|(stream, _)| *stream).collect()
    }

    /// Something else is known of a stream now.
    pub(super) fn know(&self, stream: Uuid, known: V) {
        let mut both = self.both();
        let Both { streams, credentials } = &mut *both;
        let streams = credentials.get(&stream).and_then(|credential| streams.get_mut(credential));
        if let Some(known_before) = streams.and_then(|streams| streams.get_mut(&stream)) {
            *known_before = known;
        }
    }

    /// Between the changes of the two maps runs nothing that could panic: a panic that comes while they are held comes from
    /// a look at them.
    fn both(&self) -> MutexGuard<'_, Both<K, V>> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, stream: Uuid) {
        let mut both = self.both();
        let Some(credential) = both.credentials.remove(&stream) else { return };
        if let Some(streams) = both.streams.get_mut(&credential) {
            streams.remove(&stream);
            if streams.is_empty() {
                both.streams.remove(&credential);
            }
        }
        self.gauge.set(both.streams.len().try_into().unwrap_or(i64::MAX));
    }
}

/// A credential in use by a stream.
#[derive(Debug)]
pub(crate) struct Held<K: Copy + Eq + Hash, V = ()> {
    opened: Arc<Opened<K, V>>,
    stream: Uuid,
}

impl<K: Copy + Eq + Hash, V> Drop for Held<K, V> {
    fn drop(&mut self) {
        self.opened.end(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_open_for_as_long_as_one_of_its_streams_is() {
        let (gauge, streams) = (Gauge::default(), [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)]);
        let opened = Opened::new(gauge.clone());
        let one = opened.hold('a', streams[0], 7);
        let other = opened.hold('a', streams[1], 7);
        let last = opened.hold('b', streams[2], 7);
        assert_eq!(
            (gauge.get(), opened.credential(streams[1]), opened.credential(streams[2])),
            (2, Some('a'), Some('b'))
        );
        opened.know(streams[1], 8);
        assert_eq!(opened.streams('a', |known| *known == 8), [streams[1]]);
        assert!(opened.streams('b', |known| *known == 8).is_empty());
        drop(one);
        assert_eq!((gauge.get(), opened.credential(streams[0])), (2, None));
        assert_eq!(opened.streams('a', |_| true), [streams[1]]);
        drop(other);
        assert_eq!((gauge.get(), opened.credentials()), (1, vec!['b']));
        opened.know(streams[1], 9);
        drop(last);
        assert_eq!((gauge.get(), opened.credentials()), (0, Vec::new()));
    }
}
