//! SIGTERM: nothing that a client was promised is lost, and the process ends in time.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::Arc,
};

use crewcast::auth::Role;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};

use crate::{
    joins::family,
    support::{Client, PATIENCE, Process, Slow, connect, database, folder, number, publish, sql, token},
};

fn signal(server: &Process) {
    kill(Pid::from_raw(server.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
}

async fn ended(server: &mut Process) -> std::process::ExitStatus {
    tokio::time::timeout(PATIENCE, server.child.wait()).await.expect("the process ends").unwrap()
}

/// A stream whose socket takes nothing more, with events waiting for it.
async fn stuck(url: &str, server: &Process, ana: &Client) -> Slow {
    let mut slow = Slow::open(&server.address, &token("ana", &[Role::Admin]), "rooms=topic:stuck", "").await;
    slow.raw = None;
    slow.expect("stream:open").await;
    let mut conn = connect(url).await;
    for first in (1..=2500).step_by(100) {
        publish(&mut conn, "topic:stuck", first..=first + 99, 4000).await;
    }
    // Nothing goes out any more, whatever else the node does: there is more, and no socket takes it.
    let (mut delivered, mut same) = (Value::Null, 0);
    let is_stuck = |stats: &Value| {
        let now = stats["deliveries"]["bytes"].clone();
        same = if now == delivered { same + 1 } else { 0 };
        delivered = now;
        stats["events"]["custom"] == 2500 && same >= 8
    };
    let stats = ana.stats_when(is_stuck).await;
    assert!(stats["deliveries"]["events"].as_u64() < Some(2000), "{stats}");
    slow
}

/// A connection of HTTP/1.1 that knows what became of each request.
struct Connection {
    socket: BufReader<TcpStream>,
    address: String,
}

/// An answer that came as a whole.
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Value,
}

impl Answer {
    fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value == "close")
    }
}

impl Connection {
    async fn open(address: &str) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        Ok(Self { socket: BufReader::new(socket), address: address.to_owned() })
    }

    /// Makes a project. An error is a request that was sent and not answered.
    async fn post(&mut self, token: &str, name: &str, close: bool) -> io::Result<Answer> {
        let body = json!({ "name": name, "division": "north" }).to_string();
        let (address, length) = (&self.address, body.len());
        let close = if close { "Connection: close\r\n" } else { "" };
        let head = format!("POST /v1/projects HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n{close}");
        let request = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        self.socket.write_all(request.as_bytes()).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.socket.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let pairs = lines.iter().filter_map(|line| line.split_once(": "));
        let headers: HashMap<String, String> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        self.socket.read_exact(&mut body).await?;
        Ok(Answer { status, headers, body: serde_json::from_slice(&body).unwrap() })
    }
}

/// What a client has been answered until connections were refused.
#[derive(Debug, Default)]
struct Posted {
    made: BTreeSet<String>,
    /// Answers that told the client to use another connection.
    told: usize,
    lost: Vec<String>,
}

/// Makes projects, one after the other, until the server takes no connection. `each_anew` takes a connection for every
/// request; else one is used until an answer closes it.
async fn post(address: String, token: String, each_anew: bool, made: Arc<Notify>) -> Posted {
    let mut posted = Posted::default();
    let mut kept = None;
    for n in 0.. {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match Connection::open(&address).await {
                Ok(connection) => connection,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return posted,
                Err(error) => panic!("{error}"),
            },
        };
        match connection.post(&token, &format!("number {n}"), each_anew).await {
            Ok(answer) => {
                assert_eq!(answer.status, 201, "{}", answer.body);
                posted.made.insert(answer.body["id"].as_str().unwrap().to_owned());
                made.notify_one();
                posted.told += usize::from(answer.closes() && !each_anew);
                kept = Some(connection).filter(|_| !answer.closes());
            }
            Err(error) => posted.lost.push(format!("request {n}: {error}")),
        }
    }
    unreachable!("the server ends before the numbers do")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_under_load_loses_no_request_and_sends_the_streams_away_one_by_one() {
    const STREAMS: usize = 12;
    let url = database().await;
    let mut server = Process::start(&url, &["--drain-spread=6s"]).await;
    let admin = token("ana", &[Role::Admin]);
    let ana = Client::at(&server.address, &admin);
    let first = ana.project("north").await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = ana.stream("rooms=topic:quiet", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    let (mut posting, made) = (JoinSet::new(), Arc::new(Notify::new()));
    for nth in 0..6 {
        posting.spawn(post(server.address.clone(), admin.clone(), nth % 2 == 0, made.clone()));
    }
    made.notified().await;
    signal(&server);
    // The streams are told one after the other: while the others wait, the node answers whatever it is asked.
    let told_some = |stats: &Value| stats["streams"]["closed"]["draining"].as_u64() > Some(0);
    let stats = ana.stats_when(told_some).await;
    assert!(stats["streams"]["open"].as_u64() > Some(0), "not all at once: {stats}");
    for path in ["/readyz", "/events"] {
        let response = ana.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(
            (&response.headers()["retry-after"], &response.headers()["connection"]),
            (&"1".parse().unwrap(), &"close".parse().unwrap())
        );
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "draining");
    }
    let alive = ana.request(Method::GET, "/healthz").send().await.unwrap();
    assert_eq!((alive.status(), &alive.headers()["connection"]), (StatusCode::OK, &"close".parse().unwrap()));
    let stats = ana.stats().await;
    assert_eq!(stats["streams"]["refused"], json!({ "draining": 1 }), "{stats}");
    // Connections are taken until the last stream has gone: everybody makes another project.
    for _ in 0..12 {
        tokio::time::timeout(PATIENCE, made.notified()).await.expect("another project");
    }
    let mut returns = BTreeSet::new();
    for stream in &mut streams {
        let (closing, data) = stream.expect("stream:closing").await;
        assert_eq!((&data["reason"], data["reconnectInMs"].as_u64()), (&json!("draining"), closing.retry));
        returns.insert(closing.retry.unwrap());
        assert!(stream.next().await.is_none(), "a stream ends with its closing");
    }
    assert_eq!(returns.len(), STREAMS, "no two come back at once: {returns:?}");
    assert!(returns.first() >= Some(&1000) && returns.last() <= Some(&3000), "{returns:?}");
    let (mut promised, mut told) = (BTreeSet::from([first]), 0);
    for posted in posting.join_all().await {
        assert_eq!(posted.lost, Vec::<String>::new(), "sent and not answered");
        promised.extend(posted.made);
        told += posted.told;
    }
    assert!(told > 0, "kept connections were told to close");
    assert_eq!(ended(&mut server).await.code(), Some(0));
    let kept: Vec<String> =
        sqlx::query_scalar("select id::text from crewcast.projects").fetch_all(&mut connect(&url).await).await.unwrap();
    assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), promised, "what was answered is kept, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_process_although_a_stream_takes_nothing() {
    let url = database().await;
    let arguments = ["--drain-spread=1h", "--drain-deadline=1h", "--stall-timeout=1h"];
    let mut server = Process::start(&url, &arguments).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let stuck = stuck(&url, &server, &ana).await;
    // The second stream's turn comes in half an hour.
    let mut quiet = ana.stream("rooms=topic:quiet", "").await;
    quiet.expect("stream:open").await;
    signal(&server);
    while ana.request(Method::GET, "/readyz").send().await.unwrap().status() != StatusCode::SERVICE_UNAVAILABLE {}
    assert!(server.child.try_wait().unwrap().is_none(), "it waits for the stream");
    signal(&server);
    assert_eq!(ended(&mut server).await.code(), Some(0));
    assert_eq!(quiet.next().await, None);
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_drain_deadline_a_stream_that_takes_nothing_is_cut() {
    let url = database().await;
    let arguments = ["--drain-spread=1h", "--drain-deadline=500ms", "--stall-timeout=1h"];
    let mut server = Process::start(&url, &arguments).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let mut stuck = stuck(&url, &server, &ana).await;
    // The streams' ends are spread over half of the deadline, whatever the spread: this one is told in time.
    let mut quiet = ana.stream("rooms=topic:quiet", "").await;
    quiet.expect("stream:open").await;
    signal(&server);
    assert_eq!(ended(&mut server).await.code(), Some(0));
    quiet.expect("stream:closing").await;
    assert_eq!(quiet.next().await, None);
    // What the sockets held arrives.
    let mut seen = 0;
    while let Some(frame) = stuck.next().await {
        seen += i64::from(frame.event == "test:n");
    }
    assert!((1..2500).contains(&seen), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_drains_a_node_as_a_signal_does_and_nobody_else_does() {
    let url = database().await;
    let mut server = Process::start(&url, &["--drain-spread=1s", "--heartbeat=100ms"]).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = ana.stream("rooms=topic:quiet", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    let drain = "/v1/admin/drain";
    for roles in [&[][..], &[Role::Manager], &[Role::Service]] {
        let other = Client::at(&server.address, &token("ben", roles));
        assert_eq!(other.send(Method::POST, drain, Value::Null).await.0, StatusCode::FORBIDDEN, "{roles:?}");
    }
    let ready = async || ana.request(Method::GET, "/readyz").send().await.unwrap().status();
    assert_eq!(ready().await, StatusCode::OK);
    for stream in &mut streams {
        assert_eq!(stream.next_or_beat().await.unwrap().event, "heartbeat", "nothing ends");
    }
    let begun = ana.request(Method::POST, drain).send().await.unwrap();
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    assert_eq!(ready().await, StatusCode::SERVICE_UNAVAILABLE, "at once");
    for stream in &mut streams {
        let (closing, data) = stream.expect("stream:closing").await;
        assert_eq!((&data["reason"], data["reconnectInMs"].as_u64()), (&json!("draining"), closing.retry));
        assert_eq!(stream.next().await, None);
    }
    assert_eq!(ended(&mut server).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_waits_for_a_strangers_lock_holds_up_no_signal() {
    let url = database().await;
    let arguments = ["--drain-deadline=2s", "--drain-spread=1ms", "--request-timeout=1h"];
    let mut server = Process::start(&url, &arguments).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let project = ana.project("north").await;
    let mut stranger = connect(&url).await;
    sql(&mut stranger, "begin").await;
    sql(&mut stranger, &format!("select from crewcast.projects where id = '{project}' for update")).await;
    let waiting = tokio::spawn({
        let (ana, path) = (ana.clone(), format!("/v1/projects/{project}"));
        async move { ana.request(Method::PATCH, &path).json(&json!({ "notes": "one" })).send().await }
    });
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let mut looking = connect(&url).await;
    while number(&mut looking, waits).await == 0 {}
    signal(&server);
    // While the lock is held.
    assert_eq!(ended(&mut server).await.code(), Some(0));
    sql(&mut stranger, "rollback").await;
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stands_still_holds_up_no_signal() {
    let folder = folder();
    let data_dir = folder.path().join("data");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
    child.args(["serve", "--listen=127.0.0.1:0", "--drain-deadline=2s", "--data-dir"]).arg(&data_dir);
    child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).kill_on_drop(true);
    let mut child = child.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("it says where it listens").contains("listens on") {}
    let pid_file = std::fs::read_to_string(data_dir.join("postgres/data/postmaster.pid")).unwrap();
    let processes = family(pid_file.lines().next().unwrap().parse().unwrap());
    crate::joins::signal(&processes, Signal::SIGSTOP);
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    // The deadline, and the nine seconds that a private Postgres gets.
    let status = tokio::time::timeout(PATIENCE / 2, child.wait()).await.expect("the process ends").unwrap();
    assert_eq!(status.code(), Some(0));
    for process in processes {
        let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
    }
}
