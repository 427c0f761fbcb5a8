//! The whole service against what it promises: many writers of every kind, readers that are cut at any byte and go on at
//! the other node, and at the end the log itself says what each of them must have seen.
//!
//! A run prints its seed; `CREWCAST_TEST_SEED` repeats its choices, though not how the tasks took turns.

mod crash;
mod cursor;
mod disk;
mod named;
mod reader;
mod together;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crewcast::{app::Server, auth::Role};
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    reader::{Reader, Seen},
    writer::{Writer, burn, patch},
};
use crate::support::{Client, PATIENCE, connect, server, sql, token};

const TOPICS: [&str; 3] = ["topic:a", "topic:b", "topic:c"];
/// Entities that every writer changes.
const SHARED: [&str; 5] = ["e0", "e1", "e2", "e3", "e4"];
/// Entities that only the writer of that name changes.
const WRITERS: [&str; 4] = ["w0", "w1", "w2", "w3"];
/// Entities of transactions that a test itself holds open.
const HELD: [&str; 3] = ["late", "prepared", "undone"];
/// The event that ends a run: it was published after all others had ended.
const END: &str = "test:end";

/// Choices that a seed repeats: xorshift64*.
struct Rng(u64);

impl Rng {
    /// From the environment or the clock; says which.
    fn seeded() -> Self {
        let given = std::env::var("CREWCAST_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| time::OffsetDateTime::now_utc().unix_timestamp_nanos() as u64);
        println!("CREWCAST_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Independent choices for another task.
    fn fork(&mut self) -> Self {
        Self(self.next() | 1)
    }
}

/// What became of the events that were published, as far as their writers know. Events are told apart by their marks.
#[derive(Default)]
struct Ledger {
    committed: BTreeSet<String>,
    rolled_back: BTreeSet<String>,
    /// The connection was lost while the commit was under way.
    unknown: BTreeSet<String>,
}

type Gate = Arc<tokio::sync::RwLock<()>>;

/// Writers and readers at work on two nodes.
struct Run {
    url: String,
    nodes: Vec<Server>,
    ledger: Arc<Mutex<Ledger>>,
    /// Events that arrived at all readers together.
    arrived: Arc<AtomicU64>,
    stop: CancellationToken,
    /// Held by each writer while it writes: who has it alone has quiet.
    gate: Gate,
    writers: JoinSet<()>,
    readers: Vec<(Vec<String>, JoinHandle<Vec<Seen>>)>,
    /// Where all readers begin.
    from: String,
}

impl Run {
    /// Starts everybody. With `losing`, writers live with lost connections; otherwise that fails the test.
    async fn start(url: &str, rng: &mut Rng, losing: bool) -> Self {
        let limits = ["--heartbeat=100ms", "--poll=50ms", "--floor-every=300ms"];
        let nodes = vec![server(url, &limits).await, server(url, &limits).await];
        let mut conn = connect(url).await;
        sql(&mut conn, "create table public.counters (entity text primary key, n bigint not null default 0)").await;
        for entity in SHARED.iter().chain(&WRITERS).chain(&HELD) {
            sql(&mut conn, &format!("insert into public.counters values ('{entity}')")).await;
        }
        let admin = Client::admin(&nodes[0]);
        let projects = [admin.project("north").await, admin.project("north").await];
        let (from, _) = admin.read(&format!("/v1/projects/{}", projects[0])).await;
        let mut run = Self {
            url: url.to_owned(),
            nodes,
            ledger: Arc::default(),
            arrived: Arc::default(),
            stop: CancellationToken::new(),
            gate: Gate::default(),
            writers: JoinSet::new(),
            readers: Vec::new(),
            from,
        };
        run.start_readers(rng, &projects);
        run.start_writers(rng, &projects, losing).await;
        run
    }

    fn start_readers(&mut self, rng: &mut Rng, projects: &[String; 2]) {
        let (one, other) = (format!("project:{}", projects[0]), format!("project:{}", projects[1]));
        let all = [TOPICS[0], TOPICS[1], TOPICS[2], &one, &other];
        let (first, second) = (self.clients("first"), self.clients("second"));
        let (both, third) = (self.clients("both"), self.clients("third"));
        // Two that are never cut, one at each node, and four that always are.
        self.start_reader(rng, first[..1].to_vec(), &all, false);
        self.start_reader(rng, second[1..].to_vec(), &all, false);
        self.start_reader(rng, both, &all, true);
        self.start_reader(rng, third, &[TOPICS[0], TOPICS[1]], true);
        self.start_reader(rng, self.clients("fourth"), &[TOPICS[2], &one], true);
        self.start_reader(rng, self.clients("fifth"), &[TOPICS[0], "division:north"], true);
    }

    fn start_reader(&mut self, rng: &mut Rng, clients: Vec<Client>, rooms: &[&str], cut: bool) {
        let reader = Reader::new(clients, rooms, rng.fork(), cut, self.arrived.clone());
        let from = self.from.clone();
        let rooms = rooms.iter().map(|&room| room.to_owned()).collect();
        self.readers.push((rooms, tokio::spawn(async move { reader.read(&from).await })));
    }

    async fn start_writers(&mut self, rng: &mut Rng, projects: &[String; 2], losing: bool) {
        for name in WRITERS {
            let writer = self.writer(name, rng).await;
            self.writers.spawn(writer.run(self.stop.clone(), self.gate.clone(), losing));
        }
        for (nth, project) in projects.iter().enumerate() {
            let (clients, ledger) = (self.clients(&format!("rest{nth}")), self.ledger.clone());
            self.writers.spawn(patch(
                clients,
                project.clone(),
                rng.fork(),
                ledger,
                self.stop.clone(),
                self.gate.clone(),
                losing,
            ));
        }
        self.writers.spawn(burn(self.url.clone(), self.stop.clone(), self.gate.clone(), losing));
    }

    /// A writer over a connection of its own.
    async fn writer(&self, name: &'static str, rng: &mut Rng) -> Writer {
        Writer::new(name, &self.url, rng.fork(), self.ledger.clone()).await
    }

    /// The same caller at each node.
    fn clients(&self, name: &str) -> Vec<Client> {
        self.nodes.iter().map(|node| Client::new(node, &token(name, &[Role::Service]))).collect()
    }

    /// Waits until the readers have got this many more events.
    async fn until_arrived(&self, more: u64) {
        let target = self.arrived.load(Ordering::Relaxed) + more;
        let arrived = eventually(async || (self.arrived.load(Ordering::Relaxed) >= target).then_some(()));
        arrived.await.expect("the readers get no more events");
    }

    /// Makes both nodes take a position that includes now.
    async fn look(&self) {
        let admins: Vec<Client> = self.nodes.iter().map(Client::admin).collect();
        for node in &admins {
            let read = answer(node, "/v1/projects", "").await;
            let cursor = read.headers()["crewcast-cursor"].to_str().unwrap();
            for node in &admins {
                // It answers when the node's own position has reached the cursor.
                answer(node, "/events", cursor).await;
            }
        }
    }

    /// Ends the writers, lets everybody read to the end, and compares with the log.
    async fn finish(mut self, rng: &mut Rng) {
        self.stop.cancel();
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
        let mut conn = connect(&self.url).await;
        sql(&mut conn, &format!("select crewcast.publish('{{{}}}', '{END}', '{{}}')", TOPICS.join(","))).await;
        // Who comes only now has it all replayed.
        let (rooms, _) = &self.readers[0];
        let rooms: Vec<String> = rooms.clone();
        let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
        let clients = self.clients("replayed");
        self.start_reader(rng, clients, &rooms, false);
        let log = log(&self.url).await;
        compare_with_writers(&log, &self.ledger.lock().unwrap());
        let mut texts = HashMap::new();
        for (nth, (rooms, reader)) in self.readers.into_iter().enumerate() {
            let seen = reader.await.unwrap();
            compare_with_reader(&format!("reader {nth} of {rooms:?}"), &log, &rooms, &seen, &mut texts);
        }
        println!("{} events in the log", log.len());
        for node in self.nodes {
            node.stop().await;
        }
    }
}

/// An event of the log, as its writer meant it.
struct Logged {
    rooms: Vec<String>,
    told: Told,
}

/// What an event says: change number `n` of this entity.
struct Told {
    entity: String,
    n: i64,
    mark: String,
}

impl Told {
    fn new(kind: &str, data: &Value, version: Option<i64>) -> Self {
        let text = |name| data[name].as_str().unwrap_or_else(|| panic!("{kind} without {name}: {data}"));
        if kind == "project:updated" {
            let mark = format!("{}/{}", text("newValue"), text("field"));
            return Self { entity: text("projectId").to_owned(), n: version.unwrap(), mark };
        }
        Self { entity: text("entity").to_owned(), n: data["n"].as_i64().unwrap(), mark: text("mark").to_owned() }
    }
}

/// The events of a run that are in the log, by seq.
async fn log(url: &str) -> BTreeMap<i64, Logged> {
    type Row = (i64, String, Vec<String>, Option<i64>, String);
    let rows: Vec<Row> = sqlx::query_as(
        "select seq, type, rooms, version, data::text from crewcast.events
         where type in ('test:count', 'project:updated')",
    )
    .fetch_all(&mut connect(url).await)
    .await
    .unwrap();
    let logged = rows.into_iter().map(|(seq, kind, rooms, version, data)| {
        let data = serde_json::from_str(&data).unwrap();
        (seq, Logged { rooms, told: Told::new(&kind, &data, version) })
    });
    logged.collect()
}

fn compare_with_writers(log: &BTreeMap<i64, Logged>, ledger: &Ledger) {
    let logged: BTreeSet<String> = log.values().map(|event| event.told.mark.clone()).collect();
    assert_eq!(logged.len(), log.len(), "every mark is in the log once");
    let missing: Vec<_> = ledger.committed.difference(&logged).collect();
    assert!(missing.is_empty(), "committed and not in the log: {missing:?}");
    let extra: Vec<_> = logged.iter().filter(|&mark| !ledger.committed.contains(mark)).collect();
    let extra: Vec<_> = extra.into_iter().filter(|&mark| !ledger.unknown.contains(mark)).collect();
    assert!(extra.is_empty(), "in the log and not committed: {extra:?}");
    assert!(ledger.rolled_back.is_disjoint(&logged), "what was rolled back is not in the log");
    println!(
        "{} committed, {} unknown, {} rolled back",
        ledger.committed.len(),
        ledger.unknown.len(),
        ledger.rolled_back.len()
    );
}

/// Exactly the events of the reader's rooms, each entity's in order, each text as everybody else got it.
fn compare_with_reader(
    who: &str,
    log: &BTreeMap<i64, Logged>,
    rooms: &[String],
    seen: &[Seen],
    texts: &mut HashMap<i64, String>,
) {
    let expected: BTreeSet<i64> = log
        .iter()
        .filter(|(_, event)| event.rooms.iter().any(|room| rooms.contains(room)))
        .map(|(&seq, _)| seq)
        .collect();
    let got: BTreeSet<i64> = seen.iter().map(|event| event.seq).collect();
    let lost: Vec<_> = expected.difference(&got).collect();
    let invented: Vec<_> = got.difference(&expected).collect();
    assert!(lost.is_empty() && invented.is_empty(), "{who}: lost {lost:?}, not in the log {invented:?}");
    assert_eq!(seen.len(), got.len(), "{who}: something came twice");
    let mut last: HashMap<&str, (i64, i64)> = HashMap::new();
    for event in seen {
        let told = &log[&event.seq].told;
        let before = last.insert(&told.entity, (told.n, event.seq));
        let now = (told.n, event.seq);
        assert!(before.is_none_or(|before| before < now), "{who}: {} after {before:?} came {now:?}", told.entity);
        let data: Value = serde_json::from_str(&event.data).unwrap();
        let said = Told::new(&event.kind, &data, data["meta"]["version"].as_i64());
        assert_eq!((&said.entity, said.n, &said.mark), (&told.entity, told.n, &told.mark), "{who}");
        let text = texts.entry(event.seq).or_insert_with(|| event.data.clone());
        assert_eq!(*text, event.data, "{who}: the same bytes for everybody");
    }
}

/// The answer of a node, which may have to notice first that its connections to Postgres were lost.
async fn answer(node: &Client, path: &str, last_event_id: &str) -> reqwest::Response {
    let answered = eventually(async || {
        let request = node.request(reqwest::Method::GET, path).header("last-event-id", last_event_id);
        request.send().await.unwrap().error_for_status().ok()
    });
    answered.await.unwrap_or_else(|| panic!("{path} is not answered any more"))
}

/// Asks until there is an answer; none only when the test has failed.
async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.ok()
}
