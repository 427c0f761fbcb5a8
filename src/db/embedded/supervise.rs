//! The thread that starts Postgres, watches it, starts it again when it dies, and stops it.
//!
//! It is one thread of its own for the whole life of the cluster: on Linux Postgres is told to stop when its parent
//! *thread* ends, which is what stops it when this process is killed, and what would stop it early on a borrowed one.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::cluster::Cluster;
use super::error::{StartError, last_lines};
use crate::tasks;

/// How often a starting or stopping Postgres is looked at.
const START_TICK: Duration = Duration::from_millis(5);

/// How often a running one is: a death is noticed within this time.
const WATCH_TICK: Duration = Duration::from_millis(50);

/// How often the log's length is looked at, and how often a long start is spoken of.
const SELDOM: Duration = Duration::from_secs(10);

/// First and longest wait before a dead Postgres is started again; it doubles in between.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A Postgres that ran this long was healthy: the back-off begins anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// How long a start is tried again while backends of a killed postmaster hold on to its shared memory.
const BACKENDS_DEADLINE: Duration = Duration::from_secs(30);

/// A stop gets this long for a fast shutdown, with its checkpoint, unless whoever stops says otherwise; then
/// `STOP_IMMEDIATE` for one without.
const STOP_FAST: Duration = Duration::from_secs(30);

/// See [`STOP_FAST`]. After it the process is killed; the next start recovers.
const STOP_IMMEDIATE: Duration = Duration::from_secs(2);

/// A process that was killed is gone within this time, unless the system cannot let it go.
const STOP_KILLED: Duration = Duration::from_secs(2);

type Say = Box<dyn Fn(&str) + Send + Sync>;

/// What a started cluster tells its owner.
#[derive(Debug)]
pub(super) struct Started {
    /// The folder of the socket.
    pub(super) socket: PathBuf,
    /// Postgres's log.
    pub(super) log: PathBuf,
}

/// The owner's side of the thread. Dropping it stops Postgres and waits for its end.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// Nothing is ever sent: dropping it is the command to stop.
    stop: Option<mpsc::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
    /// Cancelled when the thread has ended: nothing keeps Postgres running any more.
    ended: CancellationToken,
    /// What a fast shutdown gets, in milliseconds. Read by the thread.
    patience: Arc<AtomicU64>,
    /// Process id of the postmaster while it takes connections, else 0. Written by the thread.
    pid: Arc<AtomicU32>,
}

impl Supervisor {
    /// Starts the thread. The receiver gets the outcome of the first start.
    pub(super) fn start(options: Options, say: Say) -> (Supervisor, oneshot::Receiver<Result<Started, StartError>>) {
        let (stop, stopped) = mpsc::channel();
        let (started, outcome) = oneshot::channel();
        let pid = Arc::new(AtomicU32::new(0));
        let patience = Arc::new(AtomicU64::new(millis(STOP_FAST)));
        let watch = Watch { stopped, say, pid: pid.clone(), patience: patience.clone() };
        let thread = tasks::thread("postgres", move || watch.run(options, started));
        let (thread, ended) = thread.expect("the system has a thread left at start");
        (Supervisor { stop: Some(stop), thread: Some(thread), ended, patience, pid }, outcome)
    }

    /// Cancelled when nothing keeps Postgres running any more.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// A stop gets this long for a fast shutdown.
    pub(super) fn be_patient_for(&self, patience: Duration) {
        self.patience.store(millis(patience), Ordering::Relaxed);
    }

    /// Process id of the postmaster, while it takes connections.
    pub(super) fn postmaster(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told already, and ended Postgres.
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Watch {
    stopped: mpsc::Receiver<Infallible>,
    say: Say,
    pid: Arc<AtomicU32>,
    patience: Arc<AtomicU64>,
}

impl Watch {
    fn run(self, options: Options, started: oneshot::Sender<Result<Started, StartError>>) {
        let prepared = Cluster::prepare(options, &self.say, &|| self.stops_within(Duration::ZERO));
        let first = prepared.and_then(|cluster| Ok((self.first(&cluster)?, cluster)));
        match first {
            Ok((child, cluster)) => {
                let told =
                    started.send(Ok(Started { socket: cluster.socket().to_owned(), log: cluster.log().to_owned() }));
                // Nobody to tell means that the owner is gone, and with it the sender: `keep` stops at once.
                drop(told);
                self.keep(&cluster, child);
            }
            Err(error) => drop(started.send(Err(error))),
        }
    }

    /// Waits for `time`; true when the command to stop came.
    fn stops_within(&self, time: Duration) -> bool {
        matches!(self.stopped.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
    }

    /// The first start. Only what will pass by itself is tried again.
    fn first(&self, cluster: &Cluster) -> Result<Child, StartError> {
        let began = Instant::now();
        let mut back_off = BACK_OFF.0;
        loop {
            match self.launch(cluster) {
                Err(StartError::Exited { why, .. })
                    if why.contains("still in use") && began.elapsed() < BACKENDS_DEADLINE =>
                {
                    if self.stops_within(back_off) {
                        return Err(StartError::Stopped);
                    }
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
                outcome => return outcome,
            }
        }
    }

    /// Starts Postgres and waits until it takes connections. Recovery after a crash takes as long as it takes.
    fn launch(&self, cluster: &Cluster) -> Result<Child, StartError> {
        let from = cluster.log_length();
        let mut child = cluster.spawn().map_err(StartError::at(cluster.log()))?;
        let mut spoke = Instant::now();
        while !cluster.is_ready(child.id()) {
            if let Some(status) = ended(&mut child) {
                let log = cluster.log_since(from);
                let why = if log.is_empty() { status.to_string() } else { last_lines(&log, 3) };
                return Err(StartError::Exited { why, log: cluster.log().to_owned() });
            }
            if self.stops_within(START_TICK) {
                self.shut_down(child);
                return Err(StartError::Stopped);
            }
            if spoke.elapsed() > SELDOM {
                spoke = Instant::now();
                (self.say)(&format!("Postgres is still starting: {}", last_lines(&cluster.log_since(from), 1)));
            }
        }
        self.pid.store(child.id(), Ordering::Relaxed);
        Ok(child)
    }

    /// Keeps Postgres running until the command to stop.
    fn keep(&self, cluster: &Cluster, mut child: Child) {
        let mut back_off = BACK_OFF.0;
        loop {
            let began = Instant::now();
            let Some(status) = self.end_of(cluster, &mut child) else {
                self.pid.store(0, Ordering::Relaxed);
                return self.shut_down(child);
            };
            self.pid.store(0, Ordering::Relaxed);
            (self.say)(&format!("Postgres process {} ended by itself ({status}): starting it again", child.id()));
            if began.elapsed() > HEALTHY {
                back_off = BACK_OFF.0;
            }
            match self.relaunch(cluster, &mut back_off) {
                Some(next) => child = next,
                None => return,
            }
        }
    }

    /// Waits for the end of a running Postgres; none when the command to stop came first.
    fn end_of(&self, cluster: &Cluster, child: &mut Child) -> Option<ExitStatus> {
        let mut looked = Instant::now();
        loop {
            if let Some(status) = ended(child) {
                return Some(status);
            }
            if self.stops_within(WATCH_TICK) {
                return None;
            }
            if looked.elapsed() > SELDOM {
                looked = Instant::now();
                cluster.bound_log();
            }
        }
    }

    /// Starts Postgres again, as often as it takes; none when the command to stop came.
    fn relaunch(&self, cluster: &Cluster, back_off: &mut Duration) -> Option<Child> {
        loop {
            if self.stops_within(*back_off) {
                return None;
            }
            *back_off = (*back_off * 2).min(BACK_OFF.1);
            cluster.bound_log();
            match cluster.clear_leftovers(&self.say).and_then(|()| self.launch(cluster)) {
                Ok(child) => {
                    (self.say)(&format!("Postgres runs again as process {}", child.id()));
                    return Some(child);
                }
                Err(StartError::Stopped) => return None,
                Err(error) => (self.say)(&error.to_string()),
            }
        }
    }

    /// Stops Postgres: fast, else without a checkpoint, else by force. Nothing that was committed is lost by any of them.
    fn shut_down(&self, mut child: Child) {
        let pid = Pid::from_raw(child.id().cast_signed());
        let fast = Duration::from_millis(self.patience.load(Ordering::Relaxed));
        let ways = [(Signal::SIGINT, fast), (Signal::SIGQUIT, STOP_IMMEDIATE), (Signal::SIGKILL, STOP_KILLED)];
        for (signal, patience) in ways {
            // Not reaped yet, so the number is still the child's.
            let _ = kill(pid, signal);
            let began = Instant::now();
            while began.elapsed() < patience {
                if ended(&mut child).is_some() {
                    return;
                }
                #[expect(clippy::disallowed_methods, reason = "this is a thread of its own")]
                std::thread::sleep(START_TICK);
            }
        }
    }
}

/// The child's status once it has ended, which also reaps it.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().expect("the child is ours and only this thread waits for it")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
