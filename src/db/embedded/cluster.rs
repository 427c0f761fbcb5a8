//! One cluster in one folder: making it, starting a postmaster on it, and clearing up after one that was killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Options;
use super::account::Account;
use super::error::{StartError, last_lines};
use super::find::{self, Binaries, Search};
use super::folder::{self, Lock, SOCKET_NAME};
use super::leftover::{self, Leftover};

/// The log is cut when it is longer, in bytes. What it held goes to `postgres.log.1`.
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Above the service's own pools, with room for a few nodes on one machine and for `psql`.
const CONNECTIONS_MAX: u32 = 200;

/// A Postgres that an earlier server left behind gets this long for a fast shutdown, with its checkpoint.
const ORPHAN_FAST: Duration = Duration::from_secs(30);

/// And then this long for one without.
const ORPHAN_IMMEDIATE: Duration = Duration::from_secs(5);

/// How often a process that is asked to end is looked at.
const TICK: Duration = Duration::from_millis(5);

/// A cluster that is locked, made, and ready to be started.
#[derive(Debug)]
pub(super) struct Cluster {
    base: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    binaries: Binaries,
    account: Account,
    durable: bool,
    /// Last, so that it is released last.
    _lock: Lock,
}

impl Cluster {
    /// Locks the data folder, finds Postgres, makes the cluster if there is none, and clears up what a killed server
    /// left there.
    pub(super) fn prepare(
        options: Options,
        say: &dyn Fn(&str),
        stopping: &dyn Fn() -> bool,
    ) -> Result<Cluster, StartError> {
        let data_dir = folder::data_dir(&options.data_dir)?;
        let lock = Lock::take(&data_dir, &options.address)?;
        let (base, account) = folder::cluster(&data_dir, say)?;
        let data = base.join("data");
        let search = Search {
            bin_dir: options.bin_dir,
            places: find::places(),
            cache: super::fetch::cache(account, &data_dir),
            fetch: options.fetch,
            made_by: made_by(&data),
            data: data.clone(),
            account,
        };
        let binaries = search.run(say, stopping)?;
        let cluster = Cluster {
            socket: folder::socket(&base, account)?,
            log: base.join("postgres.log"),
            base,
            data,
            binaries,
            account,
            durable: options.durable,
            _lock: lock,
        };
        cluster.clear_leftovers(say)?;
        cluster.make()?;
        cluster.shorten_log(0);
        Ok(cluster)
    }

    /// The folder of the socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Postgres's log.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Runs `initdb` if there is no data yet, in a folder that gets its name when it is whole.
    fn make(&self) -> Result<(), StartError> {
        self.remove_half_made();
        if self.data.exists() {
            return Ok(());
        }
        let fresh = self.base.join(format!("data.tmp.{}", std::process::id()));
        let at = StartError::at(&fresh);
        fs::DirBuilder::new().mode(0o700).create(&fresh).and_then(|()| self.account.give(&fresh)).map_err(at)?;
        self.initdb(&fresh)?;
        let renamed = fs::rename(&fresh, &self.data).and_then(|()| File::open(&self.base)?.sync_all());
        renamed.map_err(StartError::at(&self.data))
    }

    /// Best effort: an `initdb` of a server that was killed just now may still write there, and the name of ours is
    /// another.
    fn remove_half_made(&self) {
        for entry in fs::read_dir(&self.base).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("data.tmp") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Anybody who reaches the socket may connect: its folder is the guard, and there is no other address.
    fn initdb(&self, folder: &Path) -> Result<(), StartError> {
        let program = self.binaries.dir.join("initdb");
        let mut command = self.account.command(&program, Signal::SIGKILL);
        command.arg("-D").arg(folder).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        ]);
        if !self.durable {
            command.arg("--no-sync");
        }
        let failed = |why| StartError::Initdb { program: program.clone(), why };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(last_lines(&String::from_utf8_lossy(&output.stderr), 3)))
    }

    /// Starts a postmaster. It is not ready yet.
    pub(super) fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.log)?;
        let mut command = self.account.command(&self.binaries.dir.join("postgres"), Signal::SIGINT);
        command.arg("-D").arg(&self.data).arg("-k").arg(quoted(&self.socket));
        command.args(["-c", "listen_addresses=", "-c", "port=5432"]);
        command.args(["-c", &format!("max_connections={CONNECTIONS_MAX}")]);
        // The log belongs to the supervisor, whatever the folder's own configuration says.
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        if self.durable {
            command.args(["-c", "fsync=on"]);
        } else {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        command.stdout(log.try_clone()?).stderr(log);
        // Of its own group: Ctrl-C in a terminal is for the server, which needs Postgres until it has drained.
        command.process_group(0).spawn()
    }

    /// Whether the postmaster `pid` takes connections. A file left over from a killed one says "ready" too.
    pub(super) fn is_ready(&self, pid: u32) -> bool {
        let file = fs::read_to_string(self.pid_file()).unwrap_or_default();
        let mut lines = file.lines().map(str::trim);
        lines.next() == Some(pid.to_string().as_str()) && lines.nth(6) == Some("ready")
    }

    fn pid_file(&self) -> PathBuf {
        self.data.join("postmaster.pid")
    }

    /// Stops a postmaster that outlived its server, and removes files that would keep a new one from starting.
    ///
    /// Postgres itself removes the files of a process that is gone. It does not when the process is a zombie that
    /// nobody reaps, as in many containers, or when its number went to another process; then it is done here. That
    /// backends may have survived their postmaster is no danger: Postgres refuses to start while they hold the shared
    /// memory, whose key comes from the data folder and not from these files.
    pub(super) fn clear_leftovers(&self, say: &dyn Fn(&str)) -> Result<(), StartError> {
        let Some(pid) = leftover::pid(&self.pid_file()) else {
            return Ok(());
        };
        if leftover::of(pid, &self.data) == Leftover::Postmaster {
            say(&format!("stopping Postgres process {pid}, which an earlier server left behind"));
            self.stop_orphan(pid)?;
        }
        if leftover::of(pid, &self.data) == Leftover::Stranger {
            let lock = self.socket.join(format!("{SOCKET_NAME}.lock"));
            for file in [self.pid_file(), self.socket.join(SOCKET_NAME), lock] {
                let _ = fs::remove_file(file);
            }
        }
        Ok(())
    }

    fn stop_orphan(&self, pid: i32) -> Result<(), StartError> {
        for (signal, patience) in [(Signal::SIGINT, ORPHAN_FAST), (Signal::SIGQUIT, ORPHAN_IMMEDIATE)] {
            let _ = kill(Pid::from_raw(pid), signal);
            let began = Instant::now();
            while began.elapsed() < patience {
                if leftover::of(pid, &self.data) != Leftover::Postmaster {
                    return Ok(());
                }
                #[expect(clippy::disallowed_methods, reason = "this is a thread of its own")]
                std::thread::sleep(TICK);
            }
        }
        Err(StartError::Orphan { pid })
    }

    /// Cuts the log when it is longer than `bytes`; what it held goes to `postgres.log.1`. It is copied, not renamed:
    /// Postgres has it open, and appends.
    fn shorten_log(&self, bytes: u64) {
        if self.log_length() > bytes && fs::copy(&self.log, self.base.join("postgres.log.1")).is_ok() {
            let _ = OpenOptions::new().write(true).open(&self.log).and_then(|log| log.set_len(0));
        }
    }

    /// Keeps the log of a running Postgres within its bound.
    pub(super) fn bound_log(&self) {
        self.shorten_log(LOG_BYTES_MAX);
    }

    /// Length of the log in bytes, to read on from later.
    pub(super) fn log_length(&self) -> u64 {
        self.log.metadata().map_or(0, |metadata| metadata.len())
    }

    /// What the log says after its first `from` bytes, at most the last 16 KiB of it.
    pub(super) fn log_since(&self, from: u64) -> String {
        const TAIL_BYTES: u64 = 16 * 1024;
        let mut bytes = Vec::new();
        let start = from.max(self.log_length().saturating_sub(TAIL_BYTES));
        let _ = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(start))?;
            log.take(TAIL_BYTES).read_to_end(&mut bytes)
        });
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        folder::leave_socket(&self.base, &self.socket);
    }
}

/// The major version that made `data`, if there is data.
fn made_by(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// `path` as one element of a list of folders in Postgres's configuration, where commas and spaces separate.
fn quoted(path: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut quoted = vec![b'"'];
    for &byte in path.as_os_str().as_bytes() {
        quoted.extend(std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
    }
    quoted.push(b'"');
    std::ffi::OsString::from_vec(quoted)
}
