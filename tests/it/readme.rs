//! README.md, run as a newcomer runs it: every shell block that it has, in its order, in a folder of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::support::{Client, PATIENCE, database, server, token};

/// The fenced blocks of a language in README.md, in their order.
pub fn blocks(language: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let blocks = readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

/// What is done with a block.
#[derive(Debug, PartialEq)]
enum Use {
    /// Starts the server, and runs until it is ended.
    Server,
    /// Runs until Ctrl-C.
    Interactive,
    /// Pasted into the newcomer's shell.
    Pasted,
    /// Runs the tests, of which this is one.
    Tests,
    /// For machines that a newcomer does not have: their names are made up.
    Production,
    /// For a server with a secret for webhooks; `hooks.rs` has one.
    Hooks,
}

fn used(block: &str) -> Use {
    match block {
        "cargo run\n" => Use::Server,
        "./test\n" => Use::Tests,
        _ if block.contains("db.internal") => Use::Production,
        _ if block.contains("CREWCAST_WEBHOOK_SECRET") => Use::Hooks,
        _ if block.starts_with("cargo run -q -- tail") => Use::Interactive,
        _ => Use::Pasted,
    }
}

/// A folder below the checkout, so that `cargo run` finds the package as it does for the newcomer.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/readme-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn bash(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("bash");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CREWCAST_") || name.starts_with("CARGO_")) {
        command.env_remove(name);
    }
    // A group of its own: what a block leaves running is ended with it.
    command.env_remove("DATABASE_URL").current_dir(folder).args(["-c", script]).process_group(0);
    command
}

/// A shell that still runs.
struct Running(Child);

impl Running {
    fn end(&mut self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), signal);
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
    }
}

/// Starts a block; it runs on once a line of its output satisfied `until`.
fn start(folder: &Path, block: &str, until: impl Fn(&str) -> bool) -> Running {
    let mut child = bash(folder, block).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let running = Running(child);
    let mut seen = String::new();
    let found = lines.by_ref().inspect(|line| seen.push_str(&format!("{line}\n"))).any(|line| until(&line));
    assert!(found, "it ended without what was waited for (is port 3001 taken?):\n{block}\n{seen}");
    std::thread::spawn(move || lines.for_each(drop));
    running
}

#[test]
fn a_newcomer_gets_through_the_readme() {
    let (folder, blocks) = (folder(), blocks("sh"));
    let of = |kind: Use| blocks.iter().filter(move |block| used(block) == kind);
    assert_eq!((of(Use::Server).count(), of(Use::Tests).count(), of(Use::Production).count()), (1, 1, 1));
    let _server = start(&folder, of(Use::Server).next().unwrap(), |line| line.contains(" listens on "));
    // One shell, as if pasted: what a block sets the next one has. Each block's output begins with a line of its own.
    let pasted = of(Use::Pasted).enumerate().map(|(nth, block)| format!("echo '<<<{nth}>>>'\n{block}"));
    let mut shell = bash(&folder, "bash -s 2>&1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(pasted.collect::<String>().as_bytes()).unwrap();
    let output = String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap();
    let of_block = |word: &str| {
        let nth =
            of(Use::Pasted).position(|block| block.contains(word)).unwrap_or_else(|| panic!("no block has {word}"));
        let rest = output.split(&format!("<<<{nth}>>>\n")).nth(1).unwrap_or_else(|| panic!("{word}: {output}"));
        rest.split("<<<").next().unwrap()
    };
    for (block, expected) in [
        ("stream.txt & STREAM", &[][..]),
        (
            "'If-Match: \"1\"'",
            &[
                "event: stream:open",
                "event: project:created",
                "event: project:updated",
                "\"endsOn\":\"2026-12-04\",\"notes\"",
            ],
        ),
        ("kill $STREAM", &["\"resume\":\"replayed\"", "\"newValue\":\"active\""]),
        ("CURSOR=$(", &["\"resume\":\"replayed\""]),
        ("create role erp", &["CREATE ROLE", "(1 row)"]),
    ] {
        let printed = of_block(block);
        for expected in expected {
            assert_eq!(printed.matches(expected).count(), 1, "{expected} of {block}:\n{printed}");
        }
        for wrong in ["command not found", "rror:", "\"code\":", "curl:"] {
            assert!(!printed.contains(wrong), "{block}:\n{printed}");
        }
    }
    for block in of(Use::Interactive) {
        start(&folder, block, |line| line.starts_with("stream:open")).end(Signal::SIGINT);
    }
    fs::remove_dir_all(folder).unwrap();
}

/// nginx with the lines that README gives for it, in front of a server.
struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
}

impl Nginx {
    fn start(upstream: &str) -> Self {
        let folder = crate::support::folder();
        let [location] = blocks("nginx").try_into().expect("README has one block for nginx");
        let location = location.replace("127.0.0.1:3001", upstream);
        let socket = folder.path().join("socket");
        let at = folder.path().display();
        let config = format!(
            "daemon off; pid {at}/pid; error_log stderr warn; events {{}}
             http {{
                 access_log off; gzip on; gzip_types application/json; proxy_temp_path {at}/proxy; client_body_temp_path {at}/body;
                 fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                 server {{ listen unix:{}; {location} }}
             }}",
            socket.display()
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let child = Command::new("nginx").arg("-p").arg(folder.path()).arg("-c").arg(file).spawn();
        let child = child.expect("nginx is needed: apt-get install nginx-light");
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn behind_nginx_each_event_comes_at_once() {
    let server = server(&database().await, &[]).await;
    let nginx = Nginx::start(&server.address.to_string());
    while !nginx.socket().exists() {
        tokio::task::yield_now().await;
    }
    let ana = token("ana", &[crewcast::auth::Role::Admin]);
    let client = reqwest::Client::builder().unix_socket(nginx.socket()).build().unwrap();
    let request = client.get("http://nginx/events?types=test").bearer_auth(&ana).header("accept-encoding", "gzip");
    let mut response = tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("content-encoding")), (200, None));
    let mut parser = crewcast::sse::Parser::default();
    let mut seen = Vec::new();
    // The next event is published when the one before has come through, so none can wait for another to push it on.
    while seen.len() < 5 {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("an event is held back").unwrap();
        for frame in parser.push(&chunk.expect("the stream goes on")) {
            seen.push(frame.event);
            let event = serde_json::json!({ "type": "test:n", "data": {} });
            Client::new(&server, &ana).send(reqwest::Method::POST, "/v1/rooms/company/events", event).await;
        }
    }
    assert_eq!(seen, ["stream:open", "test:n", "test:n", "test:n", "test:n"]);
    server.stop().await;
}
