//! The user that Postgres runs as, and what that user can reach.
//!
//! Postgres refuses to run as root. A server that was started as root runs it as the owner of the data, or, for new
//! data, as `postgres` or `nobody`; any other server runs it as itself.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, getegid, geteuid};

use super::error::StartError;

/// Who runs Postgres.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
    /// Whether that is another user than the one of this process, which then is root.
    switches: bool,
}

impl Account {
    /// The user for the cluster at `data`, which need not exist yet.
    ///
    /// # Errors
    ///
    /// When the data belongs to somebody else, or root finds no user to run Postgres as.
    pub(super) fn for_data(data: &Path) -> Result<Account, StartError> {
        let owner = data.metadata().ok().map(|metadata| (metadata.uid(), metadata.gid()));
        let (me, my_group) = (geteuid().as_raw(), getegid().as_raw());
        match owner {
            Some((0, _)) if me == 0 => Err(foreign(data, 0, format!("`chown -R postgres {}`", data.display()))),
            Some((uid, gid)) if me == 0 => Ok(Account { uid, gid, switches: true }),
            None if me == 0 => {
                Account::named("postgres").or_else(|| Account::named("nobody")).ok_or(StartError::NoAccount)
            }
            Some((uid, _)) if uid != me => {
                Err(foreign(data, uid, "start as that user or as root, or choose another --data-dir".into()))
            }
            _ => Ok(Account { uid: me, gid: my_group, switches: false }),
        }
    }

    fn named(name: &str) -> Option<Account> {
        let user = User::from_name(name).ok().flatten()?;
        Some(Account { uid: user.uid.as_raw(), gid: user.gid.as_raw(), switches: true })
    }

    /// Whether this process is root and hands Postgres to another user.
    pub(super) fn switches(self) -> bool {
        self.switches
    }

    /// The user's name, or its number where it has none.
    pub(super) fn name(self) -> String {
        user_name(self.uid)
    }

    /// Whether the user owns what `path` is.
    pub(super) fn owns(self, metadata: &std::fs::Metadata) -> bool {
        metadata.uid() == self.uid
    }

    /// Gives `path` to the user.
    pub(super) fn give(self, path: &Path) -> io::Result<()> {
        if self.switches { chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// The first folder on the way to `folder` (itself included, absolute) that the user may not enter. Judged by the
    /// permission bits alone; access lists are not read.
    pub(super) fn barrier(self, folder: &Path) -> Option<PathBuf> {
        if !self.switches {
            return None;
        }
        let mut way: Vec<&Path> = folder.ancestors().collect();
        way.reverse();
        way.into_iter().find(|step| !self.may_enter(step)).map(Path::to_owned)
    }

    fn may_enter(self, folder: &Path) -> bool {
        folder.metadata().is_ok_and(|metadata| {
            let class = match () {
                () if metadata.uid() == self.uid => 6,
                () if metadata.gid() == self.gid => 3,
                () => 0,
            };
            metadata.mode() >> class & 1 == 1
        })
    }

    /// A command that runs as the user, in `/`, with nothing of this process's environment that it has no use for: no
    /// secrets, and none of the `PG*` variables that would change a server.
    ///
    /// On Linux the child gets `death` when the thread that spawns it ends.
    pub(super) fn command(self, program: &Path, death: Signal) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null()).env_clear().env("LC_ALL", "C");
        let kept = ["PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH"].into_iter();
        command.envs(kept.filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
        if self.switches {
            command.uid(self.uid).gid(self.gid);
        }
        die_with_parent(&mut command, death);
        command
    }
}

fn foreign(data: &Path, uid: u32, mend: String) -> StartError {
    StartError::Owner { folder: data.to_owned(), owner: user_name(uid), mend }
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Has the kernel send `signal` to the child when the spawning thread ends, however it ends.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the death signal can only be asked for between fork and exec, after the change of user, which clears it"
)]
fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::Pid::this();
    // SAFETY: after the fork the closure makes two system calls (prctl, getppid), which are async-signal-safe, and
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(signal)?;
            // The parent may have died before the call above: then no signal will ever come.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
}

/// Elsewhere no such signal exists: the next start takes over what was left behind.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _signal: Signal) {}
