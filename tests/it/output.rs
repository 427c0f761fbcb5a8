//! What the program says: nobody has to read it, and whoever does gets no more than what it says.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
};

use crewcast::auth::Role;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    joins::signal,
    support::{Client, PATIENCE, Process, SECRET, database, folder, server, token},
};

/// Everything that the server and its libraries can log.
const ALL: &str = "trace";

/// A pipe that takes nothing more, as one whose reader hangs.
fn stuck() -> (File, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut writer = File::from(OwnedFd::from(writer));
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    for piece in [4096, 1] {
        while writer.write(&vec![b'\n'; piece]).is_ok() {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (OwnedFd::from(reader).into(), writer.into())
}

async fn ends_well(mut server: Process) {
    signal(&[server.child.id().unwrap()], Signal::SIGTERM);
    let ended = timeout(PATIENCE, server.child.wait()).await.expect("it ends");
    assert_eq!(ended.unwrap().code(), Some(0));
}

/// A request that logs a line is answered, a new stream opens, and an event arrives.
async fn serves(server: &Process) {
    timeout(PATIENCE, answers(server)).await.expect("nobody waits for the log");
}

async fn answers(server: &Process) {
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let nobody = Client::at(&server.address, "not.a.token");
    assert_eq!(nobody.send(Method::GET, "/v1/divisions", json!(null)).await.0, StatusCode::UNAUTHORIZED);
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    let event = json!({ "type": "test:n", "data": { "n": 1 } });
    assert_eq!(ana.send(Method::POST, "/v1/rooms/company/events", event).await.0, StatusCode::CREATED);
    stream.expect("test:n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_costs_no_request_and_no_stop() {
    for filter in ["info", "info,crewcast::events=debug", ALL] {
        let (reader, writer) = std::io::pipe().unwrap();
        let url = database().await;
        let server = Process::start_logging(&url, &[], filter, writer.into()).await;
        drop(reader);
        serves(&server).await;
        serves(&server).await;
        ends_well(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_the_log_that_hangs_costs_lines_and_is_told_how_many() {
    let (mut reader, writer) = stuck();
    let url = database().await;
    let server = Process::start_logging(&url, &["--drain-deadline=5s"], ALL, writer).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let dropped = async || ana.metrics().await["crewcast_log_lines_dropped_total"];
    while timeout(PATIENCE, dropped()).await.expect("nobody waits for the log") == 0.0 {
        serves(&server).await;
    }
    let reading = std::thread::spawn(move || {
        let (mut text, mut bytes) = (String::new(), [0; 64 * 1024]);
        while !text.contains(" lines were dropped\n") {
            let read = reader.read(&mut bytes).unwrap();
            assert!(read > 0, "it was not told");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        (reader, text)
    });
    while !reading.is_finished() {
        serves(&server).await;
    }
    let (reader, text) = reading.join().unwrap();
    assert!(!text.contains('\u{1b}'), "it is no terminal");
    // From here on nobody reads again, also while it ends.
    ends_well(server).await;
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_stdout_nobody_reads_starts_and_ends() {
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let (_hangs, stuck) = stuck();
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stdout in [Stdio::from(closed), stuck, full.into()] {
        // Where it listens is said on stdout alone.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (address, url) = (format!("127.0.0.1:{port}"), database().await);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
        command.args(["serve", "--listen", &address, "--database-url", &url, "--jwt-secret", SECRET]);
        let mut child = command.stdout(stdout).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let http = reqwest::Client::new();
        let ready = async {
            while http.get(format!("http://{address}/readyz")).send().await.is_err() {
                assert_eq!(child.try_wait().unwrap(), None, "it goes on");
            }
        };
        timeout(PATIENCE, ready).await.expect("it starts");
        signal(&[child.id().unwrap()], Signal::SIGTERM);
        assert_eq!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_refused_ends_although_nobody_reads_why() {
    let (_hangs, stuck) = stuck();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for stderr in [stuck, Stdio::from(closed)] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
        command.args(["--database-url=nonsense", "--listen=127.0.0.1:0", "--jwt-secret", SECRET]);
        let mut child = command.stderr(stderr).kill_on_drop(true).spawn().unwrap();
        assert_eq!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().code(), Some(1));
    }
}

/// The program, with these arguments, and its stdout there.
fn run(arguments: &[&str], stdout: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crewcast"));
    command.env_clear().current_dir("/").args(arguments).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_is_closed_is_the_end_of_a_command_and_a_full_disk_one_line() {
    let url = database().await;
    let commands: [&[&str]; 7] = [
        &["openapi"],
        &["token", "--jwt-secret", SECRET],
        &["--help"],
        &["serve", "--help"],
        &["--version"],
        &["migrate", "--database-url", &url],
        &["epoch", "--database-url", &url],
    ];
    for command in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(command, writer.into());
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr)),
            (Some(0), "".into()),
            "{command:?}"
        );
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = run(command, full.into());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {error}");
        assert!(error.lines().count() == 1 && error.contains("No space left"), "{command:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_events_ends_when_nobody_reads_them_any_more() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ana = Client::admin(&server);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let address = format!("http://{}", server.address);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
    command.args(["tail", "--url", &address, "--token", &token("ana", &[Role::Admin])]);
    let child = command.stdout(writer).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    drop(command);
    let read = tokio::task::spawn_blocking(move || reader.read(&mut [0; 4096]).unwrap());
    assert!(timeout(PATIENCE, read).await.expect("its first line").unwrap() > 0);
    let event = json!({ "type": "test:n", "data": { "n": 1 } });
    ana.send(Method::POST, "/v1/rooms/company/events", event).await;
    let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr)), (Some(0), "".into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_the_log_shows_what_strangers_sent_and_does_not_do_it() {
    let (log, url) = (tempfile::NamedTempFile::new().unwrap(), database().await);
    let server = Process::start_logging(&url, &[], ALL, log.reopen().unwrap().into()).await;
    // The path of an unknown route is in the request's span.
    let path = "/a\u{9b}2J\u{85}b\u{202e}c\u{2028}d";
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    ends_well(server).await;
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(text.contains("/a\\u009b2J\\u0085b\\u202ec\\u2028d"), "{text}");
    let is_obeyed = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2028}".contains(c);
    assert!(!text.contains(is_obeyed), "{text}");
    // Each event is one line: it begins with its time.
    let begins = |line: &&str| line.starts_with("20") && line.contains('Z');
    assert_eq!(text.lines().find(|line| !begins(line)), None);
}

#[test]
fn a_terminal_is_shown_colours_unless_it_wants_none() {
    let shown = |no_color: &str| {
        let server = env!("CARGO_BIN_EXE_crewcast");
        let refused = "--listen=127.0.0.1:0 --database-url=postgres://127.0.0.1:1/x";
        let command = format!("NO_COLOR={no_color} RUST_LOG=trace {server} {refused} --jwt-secret='{SECRET}'");
        let folder = folder();
        let output = Command::new("script").args(["-qec", &command, "/dev/null"]).current_dir(folder.path()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let (coloured, plain) = (shown(""), shown("1"));
    assert!(coloured.contains("\u{1b}["), "{coloured}");
    assert!(!plain.contains('\u{1b}') && plain.contains("cannot be reached"), "{plain}");
}
