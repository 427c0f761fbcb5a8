//! Every task and thread of a server: named, watched, and ended in order.
//!
//! - A **part** runs until the stop. A node without one of its parts would give signs of life, pass its probe and deliver
//!   nothing. So the first part that ends before the stop, however it ends, is [`Tasks::dead`]: the log has its name, and
//!   whoever runs the server stops it.
//! - An **errand** does one thing and ends, such as a command's answer. Its panic is its own: it is counted and logged, and
//!   the node goes on.
//!
//! Nothing else spawns, with two exceptions that watch for themselves: the connections, of which there are ten thousand,
//! are tracked by their acceptor, and what one request asks of several nodes is joined by that request.

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    thread::JoinHandle,
};

use tokio::{
    task::JoinError,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

tokio::task_local! {
    /// What the task that runs is called.
    static NAME: &'static str;
}

/// The name of the task that runs, if it was spawned here.
pub fn name() -> Option<&'static str> {
    NAME.try_with(|name| *name).ok()
}

/// A part that ended before the stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the part {part:?} died ({why}): without it the server is none")]
pub struct Dead {
    /// Its name.
    pub part: &'static str,
    /// How it ended.
    pub why: String,
}

/// The tasks of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Cancelled when the parts are to end.
    stop: CancellationToken,
    /// Cancelled when those that have not are dropped where they wait.
    cut: CancellationToken,
    tracker: TaskTracker,
    /// How many run, by name.
    running: Mutex<BTreeMap<&'static str, usize>>,
    /// The first part that died.
    dead: OnceLock<Dead>,
    died: CancellationToken,
}

impl Tasks {
    /// None yet; parts are to end once `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        let (cut, died) = (CancellationToken::new(), CancellationToken::new());
        let (tracker, running, dead) = (TaskTracker::new(), Mutex::default(), OnceLock::new());
        Self(Arc::new(Shared { stop, cut, tracker, running, dead, died }))
    }

    /// Starts a part, which ends after the stop and not before.
    pub fn part(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let part = tokio::spawn(self.named(name, part));
        let tasks = self.clone();
        self.0.tracker.spawn(async move { tasks.ended(name, part.await) });
    }

    /// Starts what does one thing and ends.
    pub fn errand(&self, name: &'static str, errand: impl Future<Output = ()> + Send + 'static) {
        self.0.tracker.spawn(self.named(name, errand));
    }

    /// Waits until a part has died, which may be never.
    pub async fn died(&self) -> &Dead {
        self.0.died.cancelled().await;
        self.0.dead.get().expect("it is set before anybody is told")
    }

    /// The first part that has died, if one has.
    pub fn dead(&self) -> Option<&Dead> {
        self.0.dead.get()
    }

    /// Has every task end, and waits until they have. At the deadline what is left is dropped where it waits; the names of
    /// those.
    pub async fn end(&self, deadline: Instant) -> Vec<&'static str> {
        self.0.stop.cancel();
        self.0.tracker.close();
        if timeout_at(deadline, self.0.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let left = self.running().keys().copied().collect();
        self.0.cut.cancel();
        left
    }

    /// A task that is counted under its name for as long as it is there.
    fn named(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (running, cut) = (Running::begin(self.clone(), name), self.0.cut.clone());
        NAME.scope(name, async move {
            let _running = running;
            let _ = cut.run_until_cancelled(task).await;
        })
    }

    fn ended(&self, part: &'static str, ended: Result<(), JoinError>) {
        if ended.is_ok() && self.0.stop.is_cancelled() {
            return;
        }
        let why = ended.map_or_else(|error| error.to_string(), |()| "it returned".to_owned());
        tracing::error!(part, why, "a part of the server died: the node ends");
        // Of several the first is the cause, most likely.
        let _ = self.0.dead.set(Dead { part, why });
        self.0.died.cancel();
    }

    /// Each change is one call of the map: nothing is half done when a panic comes.
    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more task of a name, until it is dropped.
struct Running {
    tasks: Tasks,
    name: &'static str,
}

impl Running {
    fn begin(tasks: Tasks, name: &'static str) -> Self {
        *tasks.running().entry(name).or_default() += 1;
        Self { tasks, name }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.tasks.running();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// Starts a thread, and says by a token when it has ended, however it ends.
///
/// # Errors
/// When the system has no thread left.
pub fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<(JoinHandle<()>, CancellationToken)> {
    let ended = CancellationToken::new();
    let tells = ended.clone().drop_guard();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _tells = tells;
        body();
    });
    Ok((thread?, ended))
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics since [`on_panic`] was called first, in whatever task or thread of the process.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Has every panic of the process counted, and told by `tell` where Rust would print it.
pub fn on_panic(tell: impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tell(panic);
    }));
}

/// A future whose panic is its result, and nobody else's. What it shares with others must be whole after a panic, or say
/// that it is not.
///
/// # Errors
/// What it panicked with.
pub async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    fn tasks() -> (Tasks, CancellationToken) {
        let stop = CancellationToken::new();
        (Tasks::new(stop.clone()), stop)
    }

    #[tokio::test]
    async fn a_part_that_ends_before_the_stop_is_dead_by_its_name_however_it_ends() {
        let (returns, _) = tasks();
        returns.part("returns", async {});
        assert_eq!(*returns.died().await, Dead { part: "returns", why: "it returned".to_owned() });
        let (panics, _) = tasks();
        panics.part("whole", pending());
        panics.part("panics", async { panic!("on purpose") });
        let dead = panics.died().await;
        assert!(dead.part == "panics" && dead.why.contains("on purpose"), "{dead}");
        panics.part("later", async {});
        assert_eq!(panics.end(Instant::now() + Duration::from_millis(10)).await, ["whole"]);
        assert_eq!(panics.dead().map(|dead| dead.part), Some("panics"), "the first one stays");
    }

    #[tokio::test]
    async fn a_part_that_ends_with_the_stop_and_an_errand_that_panics_are_nobodys_death() {
        let (tasks, stop) = tasks();
        tasks.part("part", async move { stop.cancelled().await });
        tasks.errand("errand", async {
            assert_eq!(name(), Some("errand"));
            panic!("on purpose");
        });
        assert_eq!(tasks.end(Instant::now() + Duration::from_secs(60)).await, [""; 0]);
        assert_eq!(tasks.dead(), None);
    }

    #[tokio::test]
    async fn what_does_not_end_is_named_and_dropped() {
        let (tasks, _) = tasks();
        let dropped = CancellationToken::new();
        let guard = dropped.clone().drop_guard();
        tasks.part("stuck", async move {
            let _guard = guard;
            pending().await
        });
        assert_eq!(tasks.end(Instant::now() + Duration::from_millis(10)).await, ["stuck"]);
        dropped.cancelled().await;
        assert_eq!(tasks.dead(), None, "it was dropped after the stop");
    }

    #[tokio::test]
    async fn a_panic_is_the_result_of_what_is_caught() {
        assert_eq!(caught(async { 1 }).await.ok(), Some(1));
        let panic = caught(async { panic!("on purpose") as u8 }).await.expect_err("it panics");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    }

    #[test]
    fn the_end_of_a_thread_is_told_also_when_it_panics() {
        let (thread, ended) = thread("panics", || panic!("on purpose")).expect("a thread");
        assert!(thread.join().is_err() && ended.is_cancelled());
    }
}
