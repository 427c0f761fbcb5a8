//! Buckets of permits, one a key, in bounded memory.
//!
//! A bucket holds a minute's permits, and they come back evenly. So who did nothing for a minute may use all of them at
//! once, and then one whenever one has come back. A bucket that is full again is like a new one and need not be kept.
//!
//! At most [`KEYS_MAX`] keys have a bucket. They are in two generations: a key that is asked about moves to the young one,
//! and when that is full it becomes the old one, whose keys are forgotten. So when there are too many, those go that nobody
//! asked about for the longest time and begin anew; nobody has to share, and a flood of new keys shuts nobody out.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, FakeRelativeClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{StateStore, keyed::ShrinkableKeyedStateStore},
};

use crate::metrics::Counter;

/// Keys that have a bucket, at most.
pub const KEYS_MAX: usize = 1 << 16;

/// The time that permits come back by.
#[derive(Debug, Clone)]
pub enum Time {
    /// The system's, from this moment on.
    System(Instant),
    /// One that is turned by hand.
    ByHand(FakeRelativeClock),
}

impl Default for Time {
    fn default() -> Self {
        Self::System(Instant::now())
    }
}

impl Clock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match self {
            Self::System(start) => start.elapsed().into(),
            Self::ByHand(clock) => clock.now(),
        }
    }
}

/// What a bucket has after a permit was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    /// Permits that are there now.
    pub(super) permits: u32,
    /// Until all of them are there again.
    pub(super) full_in: Duration,
}

/// A bucket is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Empty {
    /// Until the next permit.
    pub(super) retry_after: Duration,
}

/// A bucket for each key.
#[derive(Debug)]
pub(super) struct Buckets<K: Clone + Eq + Hash>(RateLimiter<Ask<K>, Recent<K>, Time, StateInformationMiddleware>);

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// Buckets of so many permits. Keys that have to be forgotten are counted.
    pub(super) fn new(per_minute: NonZeroU32, time: Time, forgotten: Counter) -> Self {
        let recent = Recent { generations: Mutex::new(Generations::new()), forgotten };
        Self(RateLimiter::new(Quota::per_minute(per_minute), recent, time))
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn take(&self, key: K) -> Result<Left, Empty> {
        self.ask(Ask { key, takes: true })
    }

    /// Looks whether there is a permit, and leaves it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn look(&self, key: K) -> Result<(), Empty> {
        self.ask(Ask { key, takes: false }).map(|_| ())
    }

    fn ask(&self, ask: Ask<K>) -> Result<Left, Empty> {
        let asked = self.0.check_key(&ask);
        let state = asked.map_err(|until| Empty { retry_after: until.wait_time_from(self.0.clock().now()) })?;
        let (permits, quota) = (state.remaining_burst_capacity(), state.quota());
        Ok(Left { permits, full_in: quota.replenish_interval() * (quota.burst_size().get() - permits) })
    }

    /// Forgets the keys whose bucket has been full for as long as a permit takes to come back.
    pub(super) fn sweep(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }

    /// Keys that have a bucket.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is asked about a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ask<K> {
    key: K,
    takes: bool,
}

/// The buckets of the keys that were asked about last: each is the moment at which it is full again.
#[derive(Debug)]
struct Recent<K> {
    generations: Mutex<Generations<K>>,
    forgotten: Counter,
}

impl<K: Clone + Eq + Hash> Recent<K> {
    /// What decides about a bucket runs before it is changed, and each change is one call of a map: nothing is half done
    /// when a panic comes.
    fn generations(&self) -> MutexGuard<'_, Generations<K>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> StateStore for Recent<K> {
    type Key = Ask<K>;

    fn measure_and_replace<T, F, E>(&self, ask: &Ask<K>, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut generations = self.generations();
        let decided = decide(generations.find(&ask.key));
        if let Ok((_, full_at)) = &decided
            && ask.takes
        {
            generations.put(ask.key.clone(), *full_at);
        }
        self.forgotten.inc_by(mem::take(&mut generations.forgotten));
        decided.map(|(answer, _)| answer)
    }
}

impl<K: Clone + Eq + Hash> ShrinkableKeyedStateStore<Ask<K>> for Recent<K> {
    fn retain_recent(&self, full_at: Nanos) {
        let mut generations = self.generations();
        generations.young.retain(|_, other| *other > full_at);
        generations.old.retain(|_, other| *other > full_at);
    }

    fn shrink_to_fit(&self) {
        let mut generations = self.generations();
        generations.young.shrink_to_fit();
        generations.old.shrink_to_fit();
    }

    fn len(&self) -> usize {
        let generations = self.generations();
        generations.young.len() + generations.old.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a key is tells how long ago it was asked about.
#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Nanos>,
    old: HashMap<K, Nanos>,
    /// Keys that had to go since somebody looked.
    forgotten: u64,
}

impl<K: Clone + Eq + Hash> Generations<K> {
    fn new() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), forgotten: 0 }
    }

    /// The bucket of a key, which moves to the young ones.
    fn find(&mut self, key: &K) -> Option<Nanos> {
        if let Some(full_at) = self.young.get(key) {
            return Some(*full_at);
        }
        let full_at = self.old.remove(key)?;
        self.put(key.clone(), full_at);
        Some(full_at)
    }

    fn put(&mut self, key: K, full_at: Nanos) {
        if self.young.len() >= KEYS_MAX / 2 && !self.young.contains_key(&key) {
            let old = mem::replace(&mut self.old, mem::take(&mut self.young));
            self.forgotten += old.len() as u64;
        }
        self.young.insert(key, full_at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Tested {
        buckets: Buckets<u32>,
        clock: FakeRelativeClock,
        forgotten: Counter,
    }

    fn tested(per_minute: u32) -> Tested {
        let (clock, forgotten) = (FakeRelativeClock::default(), Counter::default());
        let per_minute = NonZeroU32::new(per_minute).unwrap();
        let buckets = Buckets::new(per_minute, Time::ByHand(clock.clone()), forgotten.clone());
        Tested { buckets, clock, forgotten }
    }

    fn use_up(buckets: &Buckets<u32>, key: u32) {
        while buckets.take(key).is_ok() {}
    }

    #[test]
    fn a_minutes_permits_may_be_used_at_once_and_come_back_evenly() {
        let Tested { buckets, clock, .. } = tested(100);
        let each = Duration::from_millis(600);
        for taken in 1..=100 {
            assert_eq!(buckets.take(1), Ok(Left { permits: 100 - taken, full_in: each * taken }));
        }
        assert_eq!(buckets.take(1), Err(Empty { retry_after: each }));
        clock.advance(each - Duration::from_nanos(1));
        assert_eq!(buckets.take(1), Err(Empty { retry_after: Duration::from_nanos(1) }));
        clock.advance(Duration::from_nanos(1));
        assert_eq!(buckets.take(1), Ok(Left { permits: 0, full_in: each * 100 }));
        clock.advance(Duration::from_secs(60));
        assert_eq!(buckets.take(1), Ok(Left { permits: 99, full_in: each }));
    }

    #[test]
    fn looking_takes_nothing_and_keys_do_not_share() {
        let Tested { buckets, .. } = tested(2);
        for _ in 0..10 {
            buckets.look(1).unwrap();
        }
        assert_eq!(buckets.len(), 0);
        use_up(&buckets, 1);
        assert!(buckets.look(1).is_err());
        assert!(buckets.look(2).is_ok() && buckets.take(2).is_ok());
    }

    #[test]
    fn a_hundred_thousand_keys_take_bounded_memory_and_shut_nobody_out() {
        let Tested { buckets, forgotten, .. } = tested(3);
        use_up(&buckets, 0);
        for key in 1..=100_000 {
            assert!(buckets.take(key).is_ok(), "{key} is new");
            assert!(buckets.len() <= KEYS_MAX, "{}", buckets.len());
            if key % 10_000 == 0 {
                assert!(buckets.take(0).is_err(), "who goes on asking is not forgotten");
            }
        }
        assert!(buckets.len() > KEYS_MAX / 2);
        assert_eq!(forgotten.get(), 100_001 - buckets.len() as u64);
        // Of those that asked once the last ones are remembered, and the first ones begin anew.
        assert_eq!((buckets.take(100_000).unwrap().permits, buckets.take(1).unwrap().permits), (1, 2));
    }

    #[test]
    fn a_sweep_forgets_full_buckets_and_no_others() {
        let Tested { buckets, clock, .. } = tested(60);
        use_up(&buckets, 1);
        for key in 2..1000 {
            buckets.take(key).unwrap();
        }
        clock.advance(Duration::from_secs(30));
        buckets.sweep();
        assert_eq!(buckets.len(), 1);
        assert_eq!(buckets.take(1).unwrap().permits, 29);
        clock.advance(Duration::from_secs(60));
        buckets.sweep();
        assert_eq!(buckets.len(), 0);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_a_minutes_permits_and_those_that_came_back(
            per_minute in 1..200_u32,
            pauses_ms in proptest::collection::vec(0..5000_u64, 1..300),
        ) {
            let Tested { buckets, clock, .. } = tested(per_minute);
            let (mut taken, mut elapsed) = (0, Duration::ZERO);
            for pause in pauses_ms {
                let came_back = elapsed.as_nanos() / (60_000_000_000 / u128::from(per_minute));
                match buckets.take(1) {
                    Ok(_) => taken += 1,
                    Err(Empty { retry_after }) => {
                        clock.advance(retry_after);
                        elapsed += retry_after;
                        prop_assert!(buckets.look(1).is_ok(), "who waits as told is not refused");
                    }
                }
                prop_assert!(taken <= u128::from(per_minute) + came_back);
                let pause = Duration::from_millis(pause);
                clock.advance(pause);
                elapsed += pause;
            }
        }
    }
}
