//! The program as a person uses it: start it, paste what it prints, kill it, start it again.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crewcast::sse::{Frame, Parser};

const CREWCAST: &str = env!("CARGO_BIN_EXE_crewcast");

/// The program, without settings of whoever runs the tests.
fn crewcast(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(CREWCAST);
    let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CREWCAST_"));
    for name in ours {
        command.env_remove(name);
    }
    command.env_remove("DATABASE_URL").current_dir(folder).args(arguments);
    command
}

/// A folder that the user who runs Postgres can reach.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// A running server and the two lines that it printed to be pasted.
struct Running {
    child: Child,
    follow: String,
    cause: String,
}

impl Running {
    fn start(folder: &Path) -> Self {
        let mut child = crewcast(folder, &["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut curl = || lines.find(|line| line.starts_with("  curl")).expect("a line to paste");
        let (follow, cause) = (curl(), curl());
        // What it prints from now on must not fill a pipe that nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, follow, cause }
    }

    /// Follows, from behind an event if one is given, until `n` events of projects came: their data, and the last id.
    fn events(&self, id: Option<&str>, n: usize, cause: bool) -> (Vec<String>, String) {
        let resume = id.map(|id| format!(" -H 'Last-Event-ID: {id}'")).unwrap_or_default();
        let mut curl = Command::new("bash")
            .args(["-c", &format!("exec {}{resume}", self.follow.trim_start().replace("curl -N", "curl -sN"))])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut out, mut parser, mut events) = (curl.stdout.take().unwrap(), Parser::default(), Vec::new());
        let mut last_id = String::new();
        let mut buffer = [0; 4096];
        while events.len() < n {
            let read = out.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream ended after {events:?}");
            for Frame { event, data, id, .. } in parser.push(&buffer[..read]) {
                match event.as_str() {
                    "stream:open" if cause => (0..n).for_each(|_| self.cause()),
                    "project:created" => events.push(data),
                    _ => {}
                }
                last_id = id;
            }
        }
        curl.kill().unwrap();
        curl.wait().unwrap();
        (events, last_id)
    }

    fn cause(&self) {
        let output = Command::new("bash").args(["-c", &self.cause]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

#[test]
fn what_start_prints_can_be_pasted_and_a_kill_loses_nothing() {
    let folder = folder();
    let server = Running::start(folder.path());
    let (seen, id) = server.events(None, 2, true);
    assert_eq!(seen.len(), 2);
    server.cause();
    server.cause();
    server.kill();
    let server = Running::start(folder.path());
    server.cause();
    // Two from before the kill, one from after it, each once.
    let (missed, last) = server.events(Some(&id), 3, false);
    assert!(missed.iter().all(|event| !seen.contains(event)));
    let (again, same) = server.events(Some(&id), 3, false);
    assert_eq!((missed, last), (again, same), "a replay is byte for byte the same");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_second_server_on_the_folder_is_one_line_that_names_the_first() {
    let folder = folder();
    let server = Running::start(folder.path());
    let error = refused(&crewcast(folder.path(), &["--listen", "127.0.0.1:0"]).output().unwrap());
    assert!(error.contains(&format!("process {}", server.child.id())), "{error}");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_wrong_setting_is_one_line_and_shows_no_secret() {
    let folder = folder();
    let url = "postgres://ana:hush-hush@127.0.0.1:1/crewcast";
    let key = "0123456789012345678901234567890123456789";
    let cases: [(&[&str], &str); 6] = [
        (&["--database-url", url], "CREWCAST_JWT_SECRET"),
        (&["--database-url", url, "--jwt-secret", key], "cannot be reached"),
        (&["--database-url", "hush-hush", "--jwt-secret", key], "DATABASE_URL is not"),
        (&["--database-url", url, "--jwt-secret", "hush-hush"], "32"),
        (&["--heartbeat", "soon"], "CREWCAST_HEARTBEAT"),
        (&["--pg-bin-dir", "/nowhere"], "PG_BIN_DIR"),
    ];
    for (arguments, expected) in cases {
        let error = refused(&crewcast(folder.path(), arguments).arg("--listen=127.0.0.1:0").output().unwrap());
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hush-hush") && !error.contains(key), "{error}");
    }
}

#[test]
fn a_minted_token_is_one_that_the_server_takes() {
    let folder = folder();
    let server = Running::start(folder.path());
    let token = crewcast(folder.path(), &["token", "--sub", "eva", "--division", "north"]).output().unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    let base = server.follow.split('\'').nth(1).unwrap().split("/events").next().unwrap().to_owned();
    let url = format!("{base}/v1/divisions");
    let auth = format!("Authorization: Bearer {}", token.trim());
    let curl = Command::new("curl").args(["-sS", "-w", "%{http_code}", "-H", &auth, &url]).output().unwrap();
    assert!(String::from_utf8_lossy(&curl.stdout).ends_with("200"), "{curl:?}");
    assert_eq!(server.terminate(), Some(0));
}

/// The one line that a refused start prints.
fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}
