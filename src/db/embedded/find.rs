//! Finds the `initdb` and `postgres` to run.
//!
//! In this order: `PG_BIN_DIR`; an installed Postgres 15 or newer, the newest first; one that was fetched earlier;
//! one fetched now. Data that exists already needs the major version that made it, so that one goes first.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::account::Account;
use super::error::{StartError, last_lines};
use super::fetch;

/// Oldest major version that the service runs on.
const MAJOR_MIN: u32 = 15;

/// Where package managers put Postgres. `*` stands for the rest of one path component.
const PLACES: [&str; 9] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/opt/local/lib/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// A Postgres that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    /// The folder with `initdb` and `postgres`.
    pub(super) dir: PathBuf,
    /// Its major version.
    pub(super) major: u32,
}

/// What to look for, and where.
#[derive(Debug)]
pub(super) struct Search {
    /// `PG_BIN_DIR`.
    pub(super) bin_dir: Option<PathBuf>,
    /// The folders to look into.
    pub(super) places: Vec<PathBuf>,
    /// Where fetched ones are kept.
    pub(super) cache: PathBuf,
    /// Whether one may be fetched.
    pub(super) fetch: bool,
    /// The folder with the data, for messages.
    pub(super) data: PathBuf,
    /// The major version that made the data, if there is data.
    pub(super) made_by: Option<u32>,
    /// Who will run it.
    pub(super) account: Account,
}

/// The folders where installed ones are, and those of `PATH`.
pub(super) fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = PLACES.iter().flat_map(|pattern| expand(pattern));
    known.chain(std::env::split_paths(&path)).collect()
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let (folder, prefix) = before.rsplit_once('/').expect("the patterns are absolute");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let matching = names.filter(|name| name.starts_with(prefix));
    matching.map(|name| PathBuf::from(format!("{folder}/{name}{after}"))).collect()
}

impl Search {
    /// Finds one, or fetches it.
    ///
    /// # Errors
    ///
    /// When `PG_BIN_DIR` is wrong, when nothing is found or fetched, and when what is found cannot open the data.
    pub(super) fn run(&self, say: &dyn Fn(&str), stopping: &dyn Fn() -> bool) -> Result<Binaries, StartError> {
        if let Some(dir) = &self.bin_dir {
            return self.given(dir);
        }
        let mut found = self.found();
        if let Some(at) = found.iter().position(|binaries| self.suits(binaries.major)) {
            return Ok(found.swap_remove(at));
        }
        let outcome = match self.made_by {
            Some(made_by) if made_by != fetch::MAJOR => {
                Err(StartError::NotFound { why: format!("{} was made by Postgres {made_by}", self.data.display()) })
            }
            _ => self.fetched(say, stopping),
        };
        match (outcome, self.made_by, found.first()) {
            (Err(StartError::NotFound { .. }), Some(made_by), Some(best)) => {
                Err(self.wrong_version(made_by, best.major))
            }
            (outcome, ..) => outcome,
        }
    }

    fn given(&self, dir: &Path) -> Result<Binaries, StartError> {
        let wrong = |why: String| StartError::BinDir { folder: dir.to_owned(), why };
        let dir = dir.canonicalize().map_err(|error| wrong(error.to_string()))?;
        let major = major(&dir, self.account).map_err(wrong)?;
        match self.made_by {
            _ if major < MAJOR_MIN => Err(wrong(format!("it is Postgres {major}"))),
            Some(made_by) if made_by != major => Err(self.wrong_version(made_by, major)),
            _ => Ok(Binaries { dir, major }),
        }
    }

    /// All that can run here: installed before fetched, then the newest first.
    fn found(&self) -> Vec<Binaries> {
        let mut installed = self.usable(&self.places);
        installed.extend(self.usable(&fetch::earlier(&self.cache)));
        installed
    }

    fn usable(&self, folders: &[PathBuf]) -> Vec<Binaries> {
        let candidates = folders.iter().filter(|dir| dir.join("postgres").exists() && dir.join("initdb").exists());
        let mut usable: Vec<Binaries> = candidates
            .filter_map(|dir| Some(Binaries { dir: dir.clone(), major: major(dir, self.account).ok()? }))
            .filter(|binaries| binaries.major >= MAJOR_MIN)
            .collect();
        usable.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        usable
    }

    fn suits(&self, major: u32) -> bool {
        self.made_by.is_none_or(|made_by| made_by == major)
    }

    fn fetched(&self, say: &dyn Fn(&str), stopping: &dyn Fn() -> bool) -> Result<Binaries, StartError> {
        if !self.fetch {
            return Err(StartError::NotFound { why: "none is installed, and --no-fetch forbids fetching one".into() });
        }
        let dir = fetch::fetch(&self.cache, self.account, say, stopping)?;
        let major = major(&dir, self.account).map_err(|why| StartError::NotFound {
            why: format!("the one fetched into {} does not run: {why}", dir.display()),
        })?;
        Ok(Binaries { dir, major })
    }

    fn wrong_version(&self, made_by: u32, found: u32) -> StartError {
        StartError::Version { folder: self.data.clone(), made_by, found }
    }
}

/// Asks the Postgres in `dir` for its major version, as the user who will run it, who may not reach it.
pub(super) fn major(dir: &Path, account: Account) -> Result<u32, String> {
    let program = dir.join("postgres");
    if !dir.join("initdb").exists() {
        return Err("it has no initdb".into());
    }
    let output = account.command(&program, Signal::SIGKILL).arg("--version").output();
    let output = output.map_err(|error| format!("{} as user {}: {error}", program.display(), account.name()))?;
    if !output.status.success() {
        return Err(last_lines(&String::from_utf8_lossy(&output.stderr), 2));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text).ok_or_else(|| format!("{} calls itself {:?}", program.display(), text.trim()))
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`, `.. 18beta1`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests;
