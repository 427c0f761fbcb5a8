//! What happens to a stream, whoever follows it.

use crewcast::db::embedded::Embedded;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{
    cable::Cable,
    site::{Follower, Site, data},
};
use crate::support::{folder, private_postgres, url};

/// Numbers that are published between two faults.
pub const SOME: usize = 20;

/// Ends the server with a signal and starts it again, twice.
pub async fn ends_and_starts_again(signal: Signal, site: &mut Site, follower: &mut impl Follower) {
    follower.sees("stream:open", 1).await;
    site.begin();
    for starts in 2..=3 {
        follower.sees_more("test:n", SOME).await;
        site.end(signal).await;
        // Missed by whoever follows: nobody serves.
        site.publishes(SOME as i64).await;
        site.start_again().await;
        follower.sees("stream:open", starts).await;
    }
    follower.sees_more("test:n", SOME).await;
    site.ends_well(follower).await;
}

/// A Postgres of a test's own, which goes away and comes back.
pub struct Postgres {
    folder: TempDir,
    running: Option<Embedded>,
}

impl Postgres {
    pub async fn start() -> Self {
        let folder = folder();
        let running = private_postgres(folder.path().to_owned(), true).await;
        Self { folder, running: Some(running) }
    }

    /// Its database.
    pub fn url(&self) -> String {
        let options = self.running.as_ref().unwrap().connect_options();
        url(&options, options.get_database().unwrap())
    }

    /// Kills it; whoever started it starts it again.
    fn kill(&self) {
        let postmaster = self.running.as_ref().unwrap().postmaster().unwrap();
        kill(Pid::from_raw(postmaster.cast_signed()), Signal::SIGKILL).unwrap();
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    async fn start_again(&mut self) {
        self.running = Some(private_postgres(self.folder.path().to_owned(), true).await);
    }
}

/// Kills Postgres, then takes it away for longer: what is open stays open, and who comes meanwhile is told to come back.
pub async fn postgres_goes_away(mut postgres: Postgres, cable: &Cable, site: &mut Site, follower: &mut impl Follower) {
    follower.sees("stream:open", 1).await;
    site.begin();
    follower.sees_more("test:n", SOME).await;
    postgres.kill();
    follower.sees_more("test:n", 2 * SOME).await;
    postgres.stop().await;
    follower.sees_more("heartbeat", 3).await;
    assert_eq!(data(&follower.seen().await, "stream:open").count(), 1, "what is open stays open");
    cable.pull();
    cable.plug();
    follower.is_turned_away("unavailable").await;
    postgres.start_again().await;
    follower.sees("stream:open", 2).await;
    follower.sees_more("test:n", SOME).await;
    site.ends_well(follower).await;
    site.end(Signal::SIGTERM).await;
}

/// Cuts the stream of a node that takes one, and gives its place to somebody else for a while.
pub async fn its_place_is_taken(cable: &Cable, site: &mut Site, follower: &mut impl Follower) {
    follower.sees("stream:open", 1).await;
    site.begin();
    follower.sees_more("test:n", SOME).await;
    cable.pull();
    let ana = site.ana();
    ana.stats_when(|stats| stats["streams"]["open"] == 0).await;
    let mut other = ana.stream("rooms=topic:quiet", "").await;
    other.expect("stream:open").await;
    cable.plug();
    follower.is_turned_away("overload").await;
    drop(other);
    follower.sees("stream:open", 2).await;
    follower.sees_more("test:n", SOME).await;
    site.ends_well(follower).await;
}
