//! The bus: what the nodes of one database tell each other, at once and kept nowhere.
//!
//! It carries bells (look at the log, at who is there, at who is signed in), what is gone in a moment (who types), and
//! commands for a stream that another node holds, with their replies. It may lose and repeat: a bell is covered by a look
//! now and then, a command by its reply, and typing ends by itself. Nothing that must arrive goes this way.

mod postgres;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{db::Db, ids::NodeKey, metrics::Metrics, tasks::Tasks};

/// Messages that wait to be sent; one more is dropped.
const WAITING_MAX: usize = 4096;

/// What a node tells others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The log has grown.
    Log,
    /// Somebody came, went or does something else.
    Presence,
    /// Somebody signed out.
    Sessions,
    /// Somebody types, or no longer.
    Typing(Value),
    /// To be done by the node that it is for, which replies with this number.
    Command(u64, Value),
    /// What became of a command.
    Reply(u64, Value),
}

impl Message {
    /// The name of a bell, of which one says as much as several; none of what has more to say.
    fn bell(&self) -> Option<&'static str> {
        match self {
            Self::Log => Some("log"),
            Self::Presence => Some("presence"),
            Self::Sessions => Some("sessions"),
            Self::Typing(_) | Self::Command(..) | Self::Reply(..) => None,
        }
    }

    /// The bell of that name.
    fn of_bell(name: &str) -> Option<Self> {
        [Self::Log, Self::Presence, Self::Sessions].into_iter().find(|bell| bell.bell() == Some(name))
    }
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq)]
struct Letter {
    from: NodeKey,
    /// For one node; none is for all.
    to: Option<NodeKey>,
    message: Message,
}

/// Why a node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silent;

/// Where to tell the others. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: NodeKey,
    waiting: mpsc::Sender<Letter>,
    /// Commands that were sent and not answered. Bounded by the requests that wait for them.
    asked: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    numbers: AtomicU64,
    /// Whether there is no other node: nobody needs to be told anything.
    is_alone: AtomicBool,
    metrics: Arc<Metrics>,
}

/// What comes from another node, and who says it. `None` says that something may have been lost.
pub type Come = Option<(NodeKey, Message)>;

/// What comes from other nodes.
pub type Heard = mpsc::Receiver<Come>;

pub use postgres::{READ, SWEEP, TELL, sweep};

impl Bus {
    /// A bus over Postgres's `NOTIFY`, and what it hears.
    pub fn over_postgres(
        db: &Db,
        node: NodeKey,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> (Self, Heard) {
        let (waiting, letters) = mpsc::channel(WAITING_MAX);
        let (tell, heard) = mpsc::channel(WAITING_MAX);
        let (asked, numbers, is_alone) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        let bus = Self(Arc::new(Shared { node, waiting, asked, numbers, is_alone, metrics }));
        tasks.part("bus: telling", postgres::tell(db.clone(), letters, bus.clone(), stop.clone()));
        tasks.part("bus: listening", postgres::listen(db.clone(), bus.clone(), tell, stop));
        (bus, heard)
    }

    /// Tells every other node, if there are any.
    pub fn tell(&self, message: Message) {
        if !self.0.is_alone.load(Ordering::Relaxed) {
            self.send(None, message);
        }
    }

    /// Says whether there are other nodes. One that has just begun and is not known yet looks for itself.
    pub fn set_alone(&self, is_alone: bool) {
        self.0.is_alone.store(is_alone, Ordering::Relaxed);
    }

    /// Tells of each commit of this node, until `stop`.
    pub async fn echo(self, commits: Arc<Notify>, stop: CancellationToken) {
        while stop.run_until_cancelled(commits.notified()).await.is_some() {
            self.tell(Message::Log);
        }
    }

    /// Replies to a command.
    pub fn reply(&self, to: NodeKey, number: u64, reply: Value) {
        self.send(Some(to), Message::Reply(number, reply));
    }

    /// Has another node do something, and waits for its reply.
    ///
    /// # Errors
    /// When none came in time: nobody knows whether it was done.
    pub async fn ask(&self, to: NodeKey, command: Value, patience: Duration) -> Result<Value, Silent> {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        self.asked().insert(number, reply);
        let _asked = Asked { bus: self, number };
        self.send(Some(to), Message::Command(number, command));
        let replied = timeout(patience, replied).await;
        replied.ok().and_then(Result::ok).ok_or(Silent)
    }

    fn send(&self, to: Option<NodeKey>, message: Message) {
        let letter = Letter { from: self.0.node, to, message };
        if self.0.waiting.try_send(letter).is_err() {
            self.0.metrics.bus_dropped.inc();
        }
    }

    /// A letter has come; what is to be made of it here.
    fn open(&self, letter: Letter) -> Option<(NodeKey, Message)> {
        let Letter { from, to, message } = letter;
        let is_ours = from != self.0.node && to.is_none_or(|to| to == self.0.node);
        self.0.metrics.bus_heard.inc_by(u64::from(is_ours));
        match message {
            _ if !is_ours => None,
            Message::Reply(number, reply) => {
                // Whoever asked may have gone, or heard it before.
                let asked = self.asked().remove(&number);
                let _ = asked.map(|asked| asked.send(reply));
                None
            }
            message => Some((from, message)),
        }
    }

    /// Each change is one call of the map: nothing is half done when a panic comes.
    fn asked(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Value>>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command that waits for its reply, for as long as somebody waits.
struct Asked<'a> {
    bus: &'a Bus,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.bus.asked().remove(&self.number);
    }
}
