//! What the tests share: one Postgres for all of them, a database and servers for each, and a client that reads streams.

use std::{path::PathBuf, sync::atomic::AtomicU32, sync::atomic::Ordering, time::Duration};

use clap::Parser;
use crewcast::{
    app::Server,
    auth::{Checks, Claims, Role, Roles, Verifier},
    config::Config,
    db::embedded::{Embedded, Options},
    log::epoch::{self, Failover},
    sse::{self, Frame},
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::OnceCell;

/// The secret of every test's tokens.
pub const SECRET: &str = "a secret that only tests know, 32 bytes or more";
/// Nothing that a test waits for takes this long on any machine; it only ends a test that has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Limits that no test runs into unless it sets its own.
const UNLIMITED: [&str; 4] = [
    "--writes-per-minute=1000000000",
    "--service-writes-per-minute=1000000000",
    "--connects-per-minute=1000000000",
    "--streams-per-user=1000000000",
];

const FOLDERS: &str = "/tmp/crewcast-it-";

/// The Postgres of this test binary: without fsync, gone with the process.
async fn postgres() -> &'static PgConnectOptions {
    static POSTGRES: OnceCell<(Embedded, PgConnectOptions)> = OnceCell::const_new();
    let start = || async {
        remove_leftovers();
        let postgres = private_postgres(own_folder(), false).await;
        let options = postgres.connect_options();
        // Migrated once; each test's database is a copy.
        crewcast::app::migrate(&options).await.unwrap();
        (postgres, options)
    };
    &POSTGRES.get_or_init(start).await.1
}

/// A Postgres of a test's own, for tests that kill or restore it.
pub async fn private_postgres(data_dir: PathBuf, durable: bool) -> Embedded {
    private_postgres_of(None, data_dir, durable).await
}

/// The same, of the programs in this folder.
pub async fn private_postgres_of(bin_dir: Option<PathBuf>, data_dir: PathBuf, durable: bool) -> Embedded {
    let options = Options { data_dir, bin_dir, fetch: true, durable, address: "a test".to_owned() };
    Embedded::start(options, |_| {}).await.unwrap()
}

/// The folder of this test run.
pub fn own_folder() -> PathBuf {
    PathBuf::from(format!("{FOLDERS}{}", std::process::id()))
}

/// Folders of test runs whose process is gone.
fn remove_leftovers() {
    for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
        let path = entry.path();
        let pid = path.to_str().and_then(|path| path.strip_prefix(FOLDERS)).map(str::to_owned);
        // Other folders that begin alike are in use by a test.
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// A new database with the schema, as the URL that a server is given.
pub async fn database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let options = postgres().await;
    let name = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = PgConnection::connect_with(&options.clone().database("postgres")).await.unwrap();
    let statement = format!("create database {name} template crewcast");
    // Two copies at once: the template must not be in use.
    while let Err(error) = sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut admin).await {
        assert_eq!(error.as_database_error().and_then(|db| db.code()).as_deref(), Some("55006"), "{error}");
    }
    let url = url(options, &name);
    // It takes the copy for what it is.
    epoch::verify(&mut own(&url).await, Failover::Lossy, None).await.unwrap();
    url
}

/// The URL of a database of the Postgres behind these options.
pub fn url(options: &PgConnectOptions, database: &str) -> String {
    format!("postgres:///{database}?host={}&user=postgres", options.get_socket().unwrap().display())
}

/// A connection to a test's database.
pub async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// One as the service's own are.
pub async fn own(url: &str) -> crewcast::db::Conn {
    crewcast::db::connect(&url.parse().unwrap()).await.unwrap()
}

/// Runs one statement.
pub async fn sql(conn: &mut PgConnection, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned())).execute(conn).await.unwrap();
}

/// A server, with the settings given as on a command line.
pub async fn server(url: &str, arguments: &[&str]) -> Server {
    Server::start(config(url, arguments), |_| {}).await.unwrap()
}

/// The settings of a server on this database.
pub fn config(url: &str, arguments: &[&str]) -> Config {
    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Arguments {
        #[command(flatten)]
        config: Config,
    }
    let fixed = ["crewcast", "--listen=127.0.0.1:0", "--database-connections=10", "--database-url", url];
    let fixed = fixed.into_iter().chain(["--jwt-secret", SECRET, "--drain-spread=1ms"]).chain(UNLIMITED);
    Arguments::parse_from(fixed.chain(arguments.iter().copied())).config
}

/// A token of these roles, good for an hour.
pub fn token(sub: &str, roles: &[Role]) -> String {
    let exp = (time::OffsetDateTime::now_utc() + Duration::from_secs(3600)).unix_timestamp();
    mint(&Claims { roles: Roles::of(roles.iter().copied()), ..Claims::new(sub.parse().unwrap(), exp) })
}

/// A token of these claims.
pub fn mint(claims: &Claims) -> String {
    Verifier::from_secret(SECRET.as_bytes(), Checks::default()).unwrap().mint(claims).unwrap()
}

/// Somebody who calls a server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    /// An admin named ana.
    pub fn admin(server: &Server) -> Self {
        Self::new(server, &token("ana", &[Role::Admin]))
    }

    /// Whoever the token says.
    pub fn new(server: &Server, token: &str) -> Self {
        Self { http: reqwest::Client::new(), base: format!("http://{}", server.address), token: token.to_owned() }
    }

    /// Whoever sends no `Authorization` header, as a browser's `EventSource` does.
    pub fn nobody(server: &Server) -> Self {
        Self::new(server, "")
    }

    /// A browser with this cookie, and a page of this origin.
    pub fn browser(address: &str, cookie: &str, origin: &str) -> Self {
        let headers = [("cookie", cookie), ("origin", origin)].into_iter().filter(|(_, value)| !value.is_empty());
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let http = reqwest::Client::builder().default_headers(headers).build().unwrap();
        Self { http, base: format!("http://{address}"), token: String::new() }
    }

    /// Whoever the token says, of a server in a process of its own.
    pub fn at(address: &str, token: &str) -> Self {
        Self { http: reqwest::Client::new(), base: format!("http://{address}"), token: token.to_owned() }
    }

    /// A request to build on.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// A new ticket for streams.
    pub async fn ticket(&self) -> String {
        loop {
            let (status, made) = self.send(Method::POST, "/v1/stream-tickets", Value::Null).await;
            // A Postgres that shares a busy machine may be out of reach for a moment.
            if status != StatusCode::SERVICE_UNAVAILABLE {
                assert_eq!(status, StatusCode::CREATED, "{made}");
                return made["ticket"].as_str().unwrap().to_owned();
            }
        }
    }

    /// Sends JSON; the status and the answer, null when it is empty.
    pub async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.request(method, path).json(&body).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Reads; the `Crewcast-Cursor` and the answer.
    pub async fn read(&self, path: &str) -> (String, Value) {
        let response = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let cursor = response.headers()["crewcast-cursor"].to_str().unwrap().to_owned();
        (cursor, response.json().await.unwrap())
    }

    /// What `/stats` says now.
    pub async fn stats(&self) -> Value {
        self.request(Method::GET, "/stats").send().await.unwrap().json().await.unwrap()
    }

    /// What `/stats` says once it says this.
    pub async fn stats_when(&self, mut said: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asking = async {
            while !said(&last) {
                last = self.stats().await;
            }
        };
        let asked = tokio::time::timeout(PATIENCE, asking).await;
        asked.unwrap_or_else(|_| panic!("not what was waited for: {last}"));
        last
    }

    /// What `/metrics` says now: each sample by its name and labels, as they stand in the text.
    pub async fn metrics(&self) -> std::collections::BTreeMap<String, f64> {
        let text = self.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, n)| (name.to_owned(), n.parse().unwrap()))
            .collect()
    }

    /// A new project in a division, which is made if need be: its id.
    pub async fn project(&self, division: &str) -> String {
        self.send(Method::PUT, &format!("/v1/divisions/{division}"), serde_json::json!({ "name": division })).await;
        let body = serde_json::json!({ "name": "North tower", "division": division });
        let (status, project) = self.send(Method::POST, "/v1/projects", body).await;
        assert_eq!(status, StatusCode::CREATED, "{project}");
        project["id"].as_str().unwrap().to_owned()
    }

    /// Makes something; its id.
    pub async fn make(&self, path: &str, body: Value) -> String {
        let (status, made) = self.send(Method::POST, path, body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// A new employee of a division that is there: their id.
    pub async fn employee(&self, division: &str, weekly_hours: f64) -> String {
        let body = serde_json::json!({ "name": "Mia", "division": division, "weeklyHours": weekly_hours });
        self.make("/v1/employees", body).await
    }

    /// A stream of what comes from now on, which has begun; `query` as in [`Client::stream`].
    pub async fn follow(&self, query: &str) -> Stream {
        // A stream without a position begins at the last read of the log, behind which some events may wait.
        let (cursor, _) = self.read("/v1/divisions").await;
        let mut stream = self.stream(query, &cursor).await;
        stream.expect("stream:open").await;
        stream
    }

    /// A stream from a position, which has begun; `query` as in [`Client::stream`].
    pub async fn stream_opened(&self, query: &str, last_event_id: &str) -> Stream {
        let mut stream = self.stream(query, last_event_id).await;
        stream.expect("stream:open").await;
        stream
    }

    /// The same, as soon as Postgres is back.
    pub async fn stream_when_there(&self, query: &str, last_event_id: &str) -> Stream {
        let status = async || self.request(Method::GET, "/readyz").send().await.unwrap().status();
        let ready = async { while status().await != StatusCode::OK {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("Postgres comes back");
        self.stream_opened(query, last_event_id).await
    }

    /// Opens a stream; `query` is what follows the question mark. An empty id is none.
    pub async fn stream(&self, query: &str, last_event_id: &str) -> Stream {
        let request = self.request(Method::GET, &format!("/events?{query}")).header("last-event-id", last_event_id);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Stream { response, parser: sse::Parser::resuming(last_event_id), frames: Default::default() }
    }
}

/// Whether a frame is of presence or typing, which are in no log.
fn is_whisper(frame: &Frame) -> bool {
    ["presence:", "typing:"].iter().any(|prefix| frame.event.starts_with(prefix))
}

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    parser: sse::Parser,
    frames: std::collections::VecDeque<Frame>,
}

impl Stream {
    /// The next frame that is neither a heartbeat nor about who is there; none at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = async {
            loop {
                let frame = self.next_or_beat().await?;
                if frame.event != "heartbeat" {
                    return Some(frame);
                }
            }
        };
        // A stream that does nothing else beats for ever.
        tokio::time::timeout(PATIENCE, next).await.expect("a stream that only beats")
    }

    /// The next frame that is not about who is there; none at the end of the stream.
    pub async fn next_or_beat(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next_of_all().await?;
            if !is_whisper(&frame) {
                return Some(frame);
            }
        }
    }

    /// The next frame; none at the end of the stream.
    pub async fn next_of_all(&mut self) -> Option<Frame> {
        while self.frames.is_empty() {
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("a silent stream");
            let frames = self.parser.push(&chunk.ok()??);
            self.frames.extend(frames);
        }
        self.frames.pop_front()
    }

    /// The next frame, which must be of this type, and its data.
    pub async fn expect(&mut self, kind: &str) -> (Frame, Value) {
        let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
        assert_eq!(frame.event, kind, "{}", frame.data);
        let data = serde_json::from_str(&frame.data).unwrap();
        (frame, data)
    }

    /// The id to resume from, as a browser would.
    pub fn last_id(&self) -> &str {
        self.parser.last_id()
    }
}

/// A folder for a private Postgres, which runs as another user when the tests run as root.
pub fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

/// Ends this many transactions that have an id and do nothing else.
pub async fn burn(conn: &mut PgConnection, transactions: u64) {
    let each = "perform pg_current_xact_id(); commit;";
    sql(conn, &format!("do $$ begin for n in 1..{transactions} loop {each} end loop; end $$")).await;
}

/// Whatever statement comes to the rows of this table that have this text in this column fails there, as it does where the
/// disk has spoiled them.
pub async fn spoil(conn: &mut PgConnection, table: &str, column: &str, value: &str) {
    let fails = "begin raise 'invalid page in block 0' using errcode = 'data_corrupted'; end";
    // So dear that it is asked last, and of no other row.
    let how = "returns bool language plpgsql cost 1000000";
    sql(conn, &format!("create function crewcast.is_fine(text) {how} as $$ {fails} $$")).await;
    sql(conn, &format!("alter table crewcast.{table} rename to spoilt")).await;
    let fine = format!("case when {column} = '{value}' then crewcast.is_fine({column}) else true end");
    sql(conn, &format!("create view crewcast.{table} as select * from crewcast.spoilt where {fine}")).await;
}

/// Publishes `test:n` with `{"n": .., "pad": ..}` for each of these numbers to a room, in one transaction.
pub async fn publish(conn: &mut PgConnection, room: &str, numbers: std::ops::RangeInclusive<i64>, pad: usize) {
    let (first, last) = (numbers.start(), numbers.end());
    let data = format!("json_build_object('n', n, 'pad', repeat('x', {pad}))");
    let calls = format!("select count(crewcast.publish('{{{room}}}', 'test:n', {data}))");
    sql(conn, &format!("{calls} from generate_series({first}, {last}) n")).await;
}

/// A number that a statement gives.
pub async fn number(conn: &mut PgConnection, statement: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).fetch_one(conn).await.unwrap()
}

/// A stream whose bytes are read when the test says so, and whose socket takes few of them ahead.
pub struct Slow {
    socket: tokio::net::TcpStream,
    parser: sse::Parser,
    frames: std::collections::VecDeque<Frame>,
    /// The bytes of the body so far, while the test wants them kept.
    pub raw: Option<Vec<u8>>,
}

impl Slow {
    /// Opens a stream. HTTP/1.0, so that the body comes without any framing of its own.
    pub async fn open(address: &str, token: &str, query: &str, last_event_id: &str) -> Self {
        Self::open_ahead(128 * 1024, address, token, query, last_event_id).await
    }

    /// Opens one whose socket takes so many bytes ahead, or twice as many.
    pub async fn open_ahead(bytes: u32, address: &str, token: &str, query: &str, last_event_id: &str) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        let mut socket = socket.connect(address.parse().unwrap()).await.unwrap();
        let head = format!("GET /events?{query} HTTP/1.0\r\nHost: test\r\nAuthorization: Bearer {token}\r\n");
        let id = if last_event_id.is_empty() { String::new() } else { format!("Last-Event-ID: {last_event_id}\r\n") };
        socket.write_all(format!("{head}{id}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(socket.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer));
        let parser = sse::Parser::resuming(last_event_id);
        Self { socket, parser, frames: Default::default(), raw: Some(Vec::new()) }
    }

    /// The next frame that is neither a heartbeat nor about who is there; none at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        use tokio::io::AsyncReadExt as _;
        loop {
            while let Some(frame) = self.frames.pop_front() {
                if frame.event != "heartbeat" && !is_whisper(&frame) {
                    return Some(frame);
                }
            }
            let mut bytes = vec![0; 64 * 1024];
            let read = tokio::time::timeout(PATIENCE, self.socket.read(&mut bytes)).await.expect("a silent stream");
            let bytes = &bytes[..read.ok().filter(|read| *read > 0)?];
            if let Some(raw) = &mut self.raw {
                raw.extend_from_slice(bytes);
            }
            self.frames.extend(self.parser.push(bytes));
        }
    }

    /// The next frame, which must be of this type, and its data.
    pub async fn expect(&mut self, kind: &str) -> (Frame, Value) {
        let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
        assert_eq!(frame.event, kind, "{}", frame.data);
        let data = serde_json::from_str(&frame.data).unwrap();
        (frame, data)
    }
}

/// A server in a process of its own: to be signalled, or to have its memory looked at.
pub struct Process {
    /// The process.
    pub child: tokio::process::Child,
    /// Where it listens.
    pub address: String,
    _output: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Process {
    /// Starts one, with the settings given as on a command line.
    pub async fn start(url: &str, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", url, arguments).await
    }

    /// Starts one that listens there.
    pub async fn start_at(address: &str, url: &str, arguments: &[&str]) -> Self {
        Self::launch(address, url, arguments, "error", std::process::Stdio::inherit()).await
    }

    /// Starts one that logs so much to there.
    pub async fn start_logging(url: &str, arguments: &[&str], filter: &str, log: std::process::Stdio) -> Self {
        Self::launch("127.0.0.1:0", url, arguments, filter, log).await
    }

    async fn launch(address: &str, url: &str, arguments: &[&str], filter: &str, log: std::process::Stdio) -> Self {
        use tokio::io::AsyncBufReadExt as _;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
        command.args(["serve", "--listen", address, "--database-url", url, "--jwt-secret", SECRET]);
        command.args(UNLIMITED).args(arguments);
        command.env("RUST_LOG", filter).stdout(std::process::Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut output = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = output.next_line().await.unwrap().expect("the server says where it listens");
            if let Some((_, address)) = line.split_once("listens on http://") {
                return Self { child, address: address.trim().to_owned(), _output: output };
            }
        }
    }

    /// Bytes of memory that the process holds now.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}
