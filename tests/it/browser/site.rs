//! A server with numbers in one of its rooms, and who follows them.

use crewcast::auth::Role;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    cable::Port,
    numbers::{Numbers, published},
};
use crate::support::{Client, PATIENCE, Process, connect, token};

/// A server in a process of its own, which always comes back at the same address.
pub struct Site {
    /// Where it listens.
    pub address: String,
    url: String,
    arguments: Vec<String>,
    node: Process,
    numbers: Option<Numbers>,
    _port: Port,
}

impl Site {
    pub async fn start(url: String, arguments: &[&str]) -> Self {
        let port = Port::hold();
        let usual = ["--poll=20ms", "--heartbeat=200ms", "--drain-spread=100ms"].into_iter();
        let arguments: Vec<_> = usual.chain(arguments.iter().copied()).map(str::to_owned).collect();
        let node = node(&port, &url, &arguments).await;
        Self { address: port.address.clone(), url, arguments, node, numbers: None, _port: port }
    }

    /// An admin.
    pub fn ana(&self) -> Client {
        Client::at(&self.address, &token("ana", &[Role::Admin]))
    }

    /// Publishes numbers from now on.
    pub fn begin(&mut self) {
        self.numbers = Some(Numbers::begin(&self.url));
    }

    /// Returns once there are this many more numbers.
    pub async fn publishes(&self, more: i64) {
        let mut conn = connect(&self.url).await;
        let enough = published(&mut conn).await + more;
        while published(&mut conn).await < enough {}
    }

    /// Ends the server with a signal, and returns when its process is gone.
    pub async fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.node.child.id().unwrap().cast_signed()), signal).unwrap();
        tokio::time::timeout(PATIENCE, self.node.child.wait()).await.expect("the process ends").unwrap();
    }

    /// Starts the server again, at the same address.
    pub async fn start_again(&mut self) {
        self.node = node(&self._port, &self.url, &self.arguments).await;
    }

    /// Ends the numbers: how many there are, and what the follower has seen once it has seen the end.
    pub async fn ends(&mut self, follower: &mut impl Follower) -> (i64, Vec<String>) {
        let last = self.numbers.take().expect("they have begun").end().await;
        follower.sees("test:end", 1).await;
        (last, follower.seen().await)
    }

    /// Ends the numbers: the follower has seen each of them once and in order, and was never told to begin anew.
    pub async fn ends_well(&mut self, follower: &mut impl Follower) {
        let (last, seen) = self.ends(follower).await;
        assert_eq!(numbers(&seen), (1..=last).collect::<Vec<_>>());
        let resumes: Vec<_> = data(&seen, "stream:open").map(|open| open["resume"].clone()).collect();
        let (first, later) = resumes.split_first().unwrap();
        assert_eq!(first, "live");
        assert!(later.iter().all(|resume| resume == "replayed"), "{resumes:?}");
    }
}

async fn node(port: &Port, url: &str, arguments: &[String]) -> Process {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    Process::start_at(&port.address, url, &arguments).await
}

/// A client that follows a stream by itself. What it has seen are lines, each an event's type and its data.
pub trait Follower {
    /// Returns once it has seen this many lines that begin so.
    async fn sees(&mut self, beginning: &str, times: usize);

    /// All it has seen so far.
    async fn seen(&mut self) -> Vec<String>;

    /// Returns once the server has told it to come back later, and why.
    async fn is_turned_away(&mut self, reason: &str);

    /// Returns once it has seen this many lines more that begin so.
    async fn sees_more(&mut self, beginning: &str, more: usize) {
        let before = self.seen().await.iter().filter(|line| line.starts_with(beginning)).count();
        self.sees(beginning, before + more).await;
    }
}

/// The data of the events of a type.
pub fn data(seen: &[String], kind: &str) -> impl Iterator<Item = Value> {
    let pairs = seen.iter().filter_map(|line| line.split_once(' '));
    pairs.filter(move |(of, _)| *of == kind).map(|(_, data)| serde_json::from_str(data).unwrap())
}

/// The numbers, as they came.
pub fn numbers(seen: &[String]) -> Vec<i64> {
    data(seen, "test:n").map(|data| data["n"].as_i64().unwrap()).collect()
}
