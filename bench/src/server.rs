//! The servers: crewcast's own binary with its private Postgres, and the baselines, each a process of its own on the
//! server's core. Whatever ends the bench ends them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Lines},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    http::Http,
    machine::{self, LOAD_CORE, SERVER_CORE},
    sql::Sql,
};

/// Signs the tokens of a run.
pub(crate) const SECRET: &str = "a secret that only the bench knows, 32 bytes or more";

/// How long a server may take to end after it was told to.
const END_MAX: Duration = Duration::from_secs(60);

/// Processes that run now.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// Whether the bench was told to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What all servers of a run need.
pub(crate) struct Place {
    /// The folder of the run's data.
    pub(crate) folder: PathBuf,
    /// The `crewcast` binary.
    crewcast: PathBuf,
    /// A token that may do everything. It is a service's, so that no user is shown to have ten thousand tabs.
    pub(crate) token: String,
}

impl Place {
    /// Builds crewcast and makes a folder for its data.
    pub(crate) fn make() -> Result<Self> {
        let own = std::env::current_exe()?;
        let target = own.ancestors().nth(2).context("the bench runs from cargo's target folder")?;
        build(target)?;
        let folder = folder(&target.join("bench"))?;
        let crewcast = target.join("release/crewcast");
        let mut token = Command::new(&crewcast);
        token.args(["token", "--sub", "bench", "--role", "service"]).env("CREWCAST_JWT_SECRET", SECRET);
        let token = String::from_utf8(token.output()?.stdout)?.trim().to_owned();
        Ok(Self { folder, crewcast, token })
    }
}

/// A folder of this process's own. Those of runs that were killed are removed.
fn folder(all: &Path) -> Result<PathBuf> {
    fs::create_dir_all(all)?;
    for entry in fs::read_dir(all)?.flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            remove(&entry.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    fs::create_dir_all(&own)?;
    Ok(own)
}

/// The server that was built last is the one that is measured.
fn build(target: &Path) -> Result<()> {
    let arguments = ["build", "--release", "--locked", "-p", "crewcast", "--bin", "crewcast"];
    eprintln!("bench: cargo {}", arguments.join(" "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(arguments).arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cargo.status().context("running cargo")?.success() {
        bail!("crewcast does not build");
    }
    Ok(())
}

/// A process that is measured. Dropped, it ends.
pub(crate) struct Process {
    child: Child,
    /// Where it listens.
    pub(crate) address: String,
    /// Held open: a server that says something must find somebody to say it to.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts one on the server's core and waits until it says where it listens. What it logs goes to a file.
    fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        // This program again, which becomes the other once it has moved.
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("on-core").arg(SERVER_CORE.to_string()).arg(program).args(arguments);
        command.env("CREWCAST_JWT_SECRET", SECRET).env("RUST_LOG", "warn").env_remove("DATABASE_URL");
        // Ctrl-C in a terminal is for the bench, which ends its servers.
        command.stdout(Stdio::piped()).stderr(File::create(log)?).stdin(Stdio::null()).process_group(0);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("it was piped")?;
        running().push(child.id().cast_signed());
        let mut process = Self { child, address: String::new(), _output: BufReader::new(stdout).lines() };
        while process.address.is_empty() {
            let Some(line) = process._output.next() else {
                bail!("{} did not start: {}", program.display(), fs::read_to_string(log)?.trim());
            };
            if let Some((_, address)) = line?.split_once("listens on http://") {
                address.trim().clone_into(&mut process.address);
            }
        }
        Ok(process)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Processor time that it used so far, its children's not counted.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        machine::cpu(self.pid())
    }

    /// Bytes of memory that it holds.
    pub(crate) fn rss(&self) -> Result<u64> {
        machine::rss(self.pid())
    }

    /// Tells it to end.
    pub(crate) fn terminate(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?)
    }

    /// Its status if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(self.pid(), || !matches!(self.child.try_wait(), Ok(None)));
        running().retain(|pid| *pid != self.child.id().cast_signed());
    }
}

/// Ends a process: politely, then by force.
fn end(pid: i32, mut ended: impl FnMut() -> bool) {
    let began = Instant::now();
    if ended() {
        return;
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    while !ended() {
        if began.elapsed() > END_MAX {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        machine::pause(Duration::from_millis(5));
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends every server that runs now, for a bench that is interrupted.
pub(crate) fn end_all() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let pids = running().clone();
    for pid in pids {
        // Nobody reaps them any more: what has ended is a zombie, or gone.
        end(pid, || machine::arguments(pid).map_or(true, |arguments| arguments.concat().is_empty()));
    }
}

/// Does not return once [`end_all`] was called: what fails from then on fails because of that.
pub(crate) fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Becomes another program, on a core, that ends when the bench does.
pub(crate) fn become_program(core: usize, command: &[String]) -> Result<()> {
    machine::pin(0, core)?;
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    let (program, arguments) = command.split_first().context("on-core needs a program")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("running {program}"))
}

/// Every stream and write of the load is of one user at one address.
const UNLIMITED: [&str; 3] =
    ["--writes-per-minute=1000000000", "--connects-per-minute=1000000000", "--streams-per-user=1000000000"];

/// Crewcast with its private Postgres.
pub(crate) struct Ours {
    pub(crate) process: Process,
    /// The folder of Postgres's socket.
    pub(crate) socket: PathBuf,
    /// The folder of Postgres's programs.
    pub(crate) programs: PathBuf,
    /// Postgres's log.
    pub(crate) postgres_log: PathBuf,
}

impl Ours {
    /// Starts it on the data of this name, which are made if there are none, and moves Postgres to the load's core.
    pub(crate) fn start(place: &Place, data: &str, settings: &[&str]) -> Result<Self> {
        let folder = place.folder.join(data);
        let mut arguments = vec!["serve".to_owned(), "--listen=127.0.0.1:0".to_owned(), "--data-dir".to_owned()];
        arguments.push(folder.display().to_string());
        arguments.extend(UNLIMITED.iter().chain(settings).map(|setting| (*setting).to_owned()));
        let process = Process::start(&place.crewcast, &arguments, &place.folder.join(format!("{data}.log")))?;
        let postmaster = machine::children(process.pid())?;
        let postmaster = *postmaster.first().context("crewcast runs no Postgres of its own")?;
        machine::pin(postmaster, LOAD_CORE)?;
        // New ones are where their parent is.
        for child in machine::children(postmaster)? {
            // One that has just ended needs no move.
            let _ = machine::pin(child, LOAD_CORE);
        }
        let arguments = machine::arguments(postmaster)?;
        let value = |flag: &str| {
            let nth = arguments.iter().position(|argument| argument == flag)?;
            Some(PathBuf::from(arguments.get(nth + 1)?.trim_matches('"')))
        };
        let (data, socket) = (value("-D").context("no -D")?, value("-k").context("no -k")?);
        let programs = machine::program(postmaster)?.parent().context("a file has a folder")?.to_owned();
        Ok(Self { process, socket, programs, postgres_log: data.with_file_name("postgres.log") })
    }

    /// What it has counted so far.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = Http::connect(&self.process.address, "")?.send("GET", "/metrics", "")?;
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(sample.with_context(|| format!("no metric {name}"))?.parse()?)
    }

    /// A connection to its Postgres.
    pub(crate) fn sql(&self) -> Result<Sql> {
        Sql::connect(&self.socket)
    }
}

/// Starts a baseline: `plain` or `floor`.
pub(crate) fn baseline(place: &Place, name: &str) -> Result<Process> {
    Process::start(&std::env::current_exe()?, &[name.to_owned()], &place.folder.join(format!("{name}.log")))
}

/// Removes the data of a run, wherever Postgres kept them.
pub(crate) fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Root's Postgres may keep its data elsewhere.
        if let Ok(elsewhere) = fs::read_link(entry.path().join("postgres")) {
            let _ = fs::remove_dir_all(elsewhere);
        }
    }
    let _ = fs::remove_dir_all(folder);
}
