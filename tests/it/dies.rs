//! What panics or ends where nothing should: it is noticed, named, and takes nobody else along.

use std::{
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use crewcast::{
    app::{App, Server},
    auth::Role,
    cli::{
        log,
        serve::{Signals, keep},
    },
    db::{Conn, Db},
    http::{
        self,
        accept::{AcceptSettings, Acceptor},
    },
    hub::{
        Holder, HubSettings, Judging, Opening, Pump, PumpSettings, Session, Suspect, Warden, presence::PresenceSettings,
    },
    ids::{NodeKey, TypeFilter},
    log::epoch::Failover,
    metrics::Metrics,
    output,
    tasks::Tasks,
};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    joins::signal,
    support::{Client, PATIENCE, config, connect, database, folder, publish, server, token},
};

/// Set in a child process: the database of the server that it is to run.
const CHILD_DATABASE: &str = "CREWCAST_TEST_DIES";

/// What a test's code panics with.
const ON_PURPOSE: &str = "on purpose: \u{1b}[2J\nnothing else";

/// The same in a line of the log.
const SHOWN: &str = "on purpose: \\u{1b}[2J\\nnothing else";

/// A server in a process of its own, with a part that dies and a second listener for what panics.
struct Mortal {
    child: Child,
    /// Open for as long as the test wants the process.
    stdin: ChildStdin,
    address: String,
    odd: String,
    log: tempfile::NamedTempFile,
    _output: Lines<BufReader<ChildStdout>>,
}

impl Mortal {
    async fn start(url: &str) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "dies::child", "--nocapture", "--test-threads=1"]).kill_on_drop(true);
        command.env(CHILD_DATABASE, url).env("RUST_LOG", "info").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.reopen().unwrap());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = output.next_line().await.unwrap().expect("the child says where it listens");
            if let Some((_, addresses)) = line.split_once("LISTENS ") {
                let (address, odd) = addresses.split_once(' ').unwrap();
                return Self { child, stdin, address: address.to_owned(), odd: odd.to_owned(), log, _output: output };
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// The one line of the log about a panic, once it is there.
    async fn panic(&self) -> String {
        let looking = async {
            loop {
                let log = self.log();
                let mut lines = log.lines().filter(|line| line.contains("crewcast::panic"));
                if let Some(line) = lines.next() {
                    assert!(line.contains(SHOWN) && lines.next().is_none(), "{log}");
                    assert!(!log.contains("panicked at") && !log.contains("backtrace"), "{log}");
                    return line.to_owned();
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, looking).await.expect("a line")
    }
}

/// The server process of the other tests: nothing by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(url) = std::env::var(CHILD_DATABASE) else { return };
    log::note_panics();
    log::start();
    let signals = Signals::listen().unwrap();
    let server = server(&url, &[]).await;
    let (listener, (tell, told)) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), oneshot::channel());
    println!("LISTENS {} {}", server.address, listener.local_addr().unwrap());
    let (_stop, stopped) = oneshot::channel();
    tokio::spawn(odd(&server.app, listener).run(stopped));
    std::thread::spawn(move || match std::io::stdin().lines().next() {
        Some(_) => tell.send(()).unwrap(),
        // The test is gone.
        None => std::process::exit(2),
    });
    server.app.tasks.part("made to die", async {
        told.await.unwrap();
        panic!("{ON_PURPOSE}");
    });
    let code = match keep(server, signals).await {
        Ok(()) => 0,
        Err(error) => {
            output::stderr().say(format_args!("crewcast: {error:#}"));
            1
        }
    };
    output::stderr().flush(PATIENCE);
    std::process::exit(code);
}

/// Takes connections to routes that panic, inside all of the server's layers.
fn odd(app: &App, listener: TcpListener) -> Acceptor {
    async fn panics() {
        panic!("{ON_PURPOSE}");
    }
    let opened = app.clone();
    let breaks = || async move { Body::new(Breaks(open(&opened, Odd { is_broken: false }).await)) };
    let others = Router::new().route("/panics", get(panics)).route("/fine", get(|| async { "fine" }));
    let streams = Router::new().route("/panics/stream", get(panics)).route("/breaks", get(breaks));
    let settings =
        AcceptSettings { connections_max: 100, head_timeout: PATIENCE, stall_timeout: Duration::from_secs(3600) };
    Acceptor::new(listener, http::layered(streams, others, app.clone()), settings, app.metrics.clone())
}

/// Somebody whose name cannot be told, if they are broken.
#[derive(Debug)]
struct Odd {
    is_broken: bool,
}

impl Holder for Odd {
    fn id(&self) -> &str {
        assert!(!self.is_broken, "{ON_PURPOSE}");
        "odd"
    }
    fn name(&self) -> Option<&str> {
        None
    }
    fn avatar_url(&self) -> Option<&str> {
        None
    }
    fn is_seen(&self) -> bool {
        false
    }
}

async fn open(app: &App, holder: Odd) -> Session {
    let opening = Opening {
        stream_id: app.node.stream(),
        holder: Arc::new(holder),
        rooms: vec!["company".to_owned(), "user:odd".to_owned()],
        judged: app.hub.rights(),
        refused: Vec::new(),
        types: TypeFilter::default(),
        last_event_id: None,
        expires_at: time::OffsetDateTime::now_utc() + PATIENCE * 60,
    };
    Session::open(&app.hub, opening).await.expect("a place")
}

/// A stream that panics with the first event of the log.
struct Breaks(Session);

impl http_body::Body for Breaks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        assert!(!bytes.is_some_and(|bytes| bytes.windows(6).any(|part| part == b"test:n")), "{ON_PURPOSE}");
        Poll::Ready(frame)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_dies_ends_the_server_in_order_with_its_name_and_an_exit_code() {
    let url = database().await;
    let mut server = Mortal::start(&url).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    server.stdin.write_all(b"die\n").await.unwrap();
    let (_, data) = stream.expect("stream:closing").await;
    assert_eq!(data["reason"], "draining");
    assert_eq!(stream.next().await, None);
    let status = timeout(PATIENCE, server.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(1));
    let panic = server.panic().await;
    assert!(panic.contains("task=\"made to die\"") && panic.contains("tests/it/dies.rs"), "{panic}");
    let log = server.log();
    let died = log.lines().find(|line| line.contains("a part of the server died")).unwrap();
    assert!(died.contains("part=\"made to die\"") && died.contains("on purpose"), "{died}");
    assert!(log.lines().last().unwrap().starts_with("crewcast: the part \"made to die\" died"), "{log}");
}

/// Sends a request, and reads the answer as a whole.
async fn ask(socket: &mut BufReader<TcpStream>, path: &str) -> (String, Vec<u8>) {
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(socket.read_line(&mut head).await.unwrap() > 0, "the connection ended after {head:?}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).await.unwrap();
    (head, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_panics_answers_500_and_its_connection_goes_on() {
    let url = database().await;
    let server = Mortal::start(&url).await;
    let mut socket = BufReader::new(TcpStream::connect(&server.odd).await.unwrap());
    let (head, body) = ask(&mut socket, "/panics").await;
    assert!(head.starts_with("HTTP/1.1 500") && head.contains("application/problem+json"), "{head}");
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("internal"), &json!(500)));
    assert!(!problem.to_string().contains("purpose"), "{problem}");
    let line = server.panic().await;
    assert!(line.contains(problem["requestId"].as_str().unwrap()), "{line}");
    let (head, body) = ask(&mut socket, "/fine").await;
    assert!(head.starts_with("HTTP/1.1 200") && body == b"fine", "{head}");
    // An `EventSource` would give up for ever.
    let ticket = format!("/panics/stream?ticket=cct_{}", "A".repeat(43));
    let (head, body) = ask(&mut socket, &ticket).await;
    assert!(head.starts_with("HTTP/1.1 200") && body.starts_with(b"retry: "), "{head}");
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    assert_eq!(ana.metrics().await["crewcast_panics_total"], 2.0);
    assert_eq!(ana.request(Method::GET, "/readyz").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_body_panics_leaves_its_seat_and_the_others_go_on() {
    let url = database().await;
    let mut server = Mortal::start(&url).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    let mut breaks = Client::at(&server.odd, "").request(Method::GET, "/breaks").send().await.unwrap();
    assert!(breaks.chunk().await.unwrap().is_some(), "it begins");
    ana.stats_when(|stats| stats["streams"]["open"] == 2).await;
    publish(&mut connect(&url).await, "company", 1..=1, 0).await;
    timeout(PATIENCE, async { while let Ok(Some(_)) = breaks.chunk().await {} }).await.expect("it ends");
    stream.expect("test:n").await;
    ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    publish(&mut connect(&url).await, "company", 2..=2, 0).await;
    stream.expect("test:n").await;
    assert!(server.panic().await.contains("tests/it/dies.rs"));
    signal(&[server.child.id().unwrap()], Signal::SIGTERM);
    stream.expect("stream:closing").await;
    assert_eq!(timeout(PATIENCE, server.child.wait()).await.expect("it ends").unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_under_the_hubs_lock_ends_every_stream_and_the_node() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let mut stream = Client::admin(&server).stream("", "").await;
    stream.expect("stream:open").await;
    // The hub asks whose a stream is while it holds what all streams share.
    let app = server.app.clone();
    let opened = tokio::spawn(async move { drop(open(&app, Odd { is_broken: true }).await) }).await;
    assert!(opened.is_err_and(|error| error.is_panic()));
    let (_, data) = stream.expect("stream:closing").await;
    assert_eq!(data["reason"], "draining");
    assert_eq!(stream.next().await, None);
    assert_eq!(timeout(PATIENCE, server.app.tasks.died()).await.expect("it is noticed").part, "hub");
    let refused = Client::admin(&server).request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.stop().await;
}

/// A warden that panics when it is asked.
#[derive(Debug)]
struct Panics;

impl Warden for Panics {
    fn takes_rights(&self, _: &str, _: &str) -> bool {
        panic!("{ON_PURPOSE}");
    }
    fn is_revocable(&self, _: &str) -> bool {
        false
    }
    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }
    fn judge<'a>(&'a self, _: &'a mut Conn, _: Vec<Suspect>) -> Judging<'a> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[tokio::test]
async fn a_pump_that_panics_is_a_part_that_died() {
    let url = database().await;
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    let db = Db::new(url.parse().unwrap(), 2, PATIENCE, Arc::default());
    let (metrics, warden) = (Arc::new(Metrics::default()), Arc::new(Panics));
    let (pump, _hub) = Pump::prime(db, pump_settings(), hub_settings(), metrics, warden).await.unwrap();
    tasks.part("pump", pump.run(stop));
    publish(&mut connect(&url).await, "company", 1..=1, 0).await;
    let dead = timeout(PATIENCE, tasks.died()).await.expect("it is noticed");
    assert!(dead.part == "pump" && dead.why.contains("on purpose"), "{dead}");
}

fn pump_settings() -> PumpSettings {
    PumpSettings { poll: Duration::from_millis(20), event_bytes_max: 65_536, failover: Failover::Lossy }
}

fn hub_settings() -> HubSettings {
    let second = Duration::from_secs(1);
    HubSettings {
        heartbeat: second,
        expiring_ahead: second,
        replay_events_max: 100,
        event_bytes_max: 65_536,
        ring_bytes: 1 << 20,
        queue_bytes: 1 << 20,
        streams_max: 10,
        streams_per_user: 10,
        replays_max: 1,
        channel_events: 100,
        node: "test".to_owned(),
        key: NodeKey::random(),
        presence: PresenceSettings { grace: second, lease: second, users_max: 10, typing_ttl: second },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_postgres_that_nobody_keeps_running_is_a_part_that_died() {
    let folder = folder();
    let dir = folder.path().to_str().unwrap();
    let mut config = config("", &["--data-dir", dir]);
    config.database.database_url = None;
    // The thread that keeps it running says what it does.
    let say = |line: &str| assert!(!line.contains("ended by itself"), "{ON_PURPOSE}");
    let server = Server::start(config, say).await.unwrap();
    signal(&[server.postmaster().unwrap()], Signal::SIGKILL);
    assert_eq!(timeout(PATIENCE, server.app.tasks.died()).await.expect("it is noticed").part, "postgres");
    server.stop().await;
}
