//! The limit of open files, which decides how many connections and streams a node can have.

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are open besides connections: the log, the listener, the runtime's own, and some to spare.
const OTHERS: usize = 64;

/// Of sixteen connections one is for requests, so that a node full of streams still answers.
const REQUESTS_SHARE: usize = 16;

/// What the limit of open files leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// Connections at most.
    pub connections_max: usize,
    /// Streams at most.
    pub streams_max: usize,
}

impl Files {
    /// Raises this process's limit as far as it may, and shares it out.
    ///
    /// # Errors
    /// One line that says the mend, when it is too low for the streams that were asked for, or for any.
    pub fn open(database_connections: u32, streams_max: Option<u32>) -> anyhow::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files")?;
        // Where it cannot be raised, it stays what it was.
        let limit = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard);
        Self::share(usize::try_from(limit).unwrap_or(usize::MAX), database_connections, streams_max)
    }

    fn share(limit: usize, database_connections: u32, streams_max: Option<u32>) -> anyhow::Result<Self> {
        // A semaphore counts the connections, and cannot count to infinity.
        let limit = limit.min(tokio::sync::Semaphore::MAX_PERMITS);
        let connections_max = limit.saturating_sub(OTHERS + database_connections as usize);
        let fitting = connections_max - connections_max.div_ceil(REQUESTS_SHARE);
        let streams_max = streams_max.map_or(fitting, |streams| streams as usize);
        ensure!(
            (1..=fitting).contains(&streams_max),
            "--streams-max {} (CREWCAST_STREAMS_MAX) does not fit the limit of {limit} open files, which leaves {fitting}: \
             raise it with ulimit -n",
            streams_max.max(1)
        );
        Ok(Self { connections_max, streams_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_between_streams_requests_and_postgres() {
        let files = Files::share(20_000, 20, None).unwrap();
        assert_eq!(files, Files { connections_max: 19_916, streams_max: 18_671 });
        assert_eq!(Files::share(20_000, 20, Some(5)).unwrap().streams_max, 5);
        assert!(Files::share(usize::MAX, 20, None).unwrap().streams_max > 1_000_000);
    }

    #[test]
    fn a_limit_that_is_too_low_is_said_with_its_mend() {
        for refused in [Files::share(1024, 20, Some(1000)), Files::share(80, 20, None), Files::share(0, 20, None)] {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("ulimit -n") && message.contains("--streams-max"), "{message}");
        }
    }
}
