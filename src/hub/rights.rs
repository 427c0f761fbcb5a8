//! When rights were taken from streams: what was judged before is to be judged again, where it is about the same rooms.

use std::collections::VecDeque;

/// Rooms that are remembered; of what was taken before, every room counts.
const ROOMS_MAX: usize = 1024;

/// The times that rights were taken so far, and in which rooms of late.
#[derive(Debug, Default)]
pub(super) struct Rights {
    count: u64,
    /// The last time at which it may have been any room.
    any: u64,
    recent: VecDeque<(u64, Box<str>)>,
}

impl Rights {
    /// How often so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// They are taken in these rooms; in any, where it is not known.
    pub(super) fn taken(&mut self, rooms: Option<&[String]>) {
        self.count += 1;
        let Some(rooms) = rooms else {
            (self.any, self.recent) = (self.count, VecDeque::new());
            return;
        };
        self.recent.extend(rooms.iter().map(|room| (self.count, room.as_str().into())));
        while self.recent.len() > ROOMS_MAX {
            self.any = self.recent.pop_front().map_or(self.any, |(forgotten, _)| forgotten);
        }
    }

    /// Whether something was taken in one of these rooms since this count.
    pub(super) fn is_stale(&self, judged: u64, rooms: &[String]) -> bool {
        let mut since = self.recent.iter().rev().take_while(|(count, _)| *count > judged);
        self.any > judged || since.any(|(_, taken)| rooms.iter().any(|room| **room == **taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_judged_before_is_stale_in_the_rooms_that_it_is_about() {
        let mut rights = Rights::default();
        let before = rights.count();
        rights.taken(Some(&rooms(&["a", "b"])));
        let between = rights.count();
        rights.taken(Some(&rooms(&["c"])));
        assert!(rights.is_stale(before, &rooms(&["x", "b"])) && rights.is_stale(before, &rooms(&["c"])));
        assert!(!rights.is_stale(before, &rooms(&["x"])) && !rights.is_stale(between, &rooms(&["a"])));
        assert!(rights.is_stale(between, &rooms(&["c"])) && !rights.is_stale(rights.count(), &rooms(&["c"])));
        rights.taken(None);
        assert!(rights.is_stale(between, &rooms(&["x"])) && !rights.is_stale(rights.count(), &rooms(&["x"])));
    }

    #[test]
    fn what_is_forgotten_counts_for_every_room() {
        let mut rights = Rights::default();
        let before = rights.count();
        for _ in 0..ROOMS_MAX {
            rights.taken(Some(&rooms(&["a"])));
        }
        assert!(!rights.is_stale(before, &rooms(&["x"])));
        rights.taken(Some(&rooms(&["a"])));
        assert!(rights.is_stale(before, &rooms(&["x"])));
        assert!(!rights.is_stale(before + 1, &rooms(&["x"])) && rights.recent.len() == ROOMS_MAX);
    }
}
