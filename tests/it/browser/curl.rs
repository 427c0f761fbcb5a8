//! `curl -N` in a loop of the shell that sends the last id it saw.

use std::process::Stdio;

use crewcast::auth::Role;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::{
    cable::Cable,
    faults::{self, Postgres},
    numbers::ROOM,
    site::{Follower, Site},
};
use crate::support::{PATIENCE, database, token};

/// How curl ends with `--fail` where the status is 400 or more.
const HTTP_ERROR: i32 = 22;

/// The loop, and what it has printed.
struct Loop {
    shell: Child,
    output: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Loop {
    fn start(address: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/browser/follow.sh");
        let url = format!("http://{address}/events?rooms={ROOM}");
        let mut command = Command::new("bash");
        command.args([script, &url, &token("ana", &[Role::Admin])]).stdout(Stdio::piped());
        // With its curl: both end together.
        let mut shell = command.process_group(0).spawn().unwrap();
        let output = BufReader::new(shell.stdout.take().unwrap()).lines();
        Self { shell, output, seen: Vec::new() }
    }
}

impl Follower for Loop {
    async fn sees(&mut self, beginning: &str, times: usize) {
        let seeing = async {
            while self.seen.iter().filter(|line| line.starts_with(beginning)).count() < times {
                let line = self.output.next_line().await.unwrap();
                self.seen.push(line.expect("the loop goes on"));
            }
        };
        if timeout(PATIENCE, seeing).await.is_err() {
            panic!("not {times} of {beginning}: {:#?}", self.seen);
        }
    }

    async fn seen(&mut self) -> Vec<String> {
        self.seen.clone()
    }

    async fn is_turned_away(&mut self, _reason: &str) {
        self.sees_more(&format!("ended {HTTP_ERROR}"), 1).await;
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let group = self.shell.id().expect("it was not waited for");
        let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_a_loop_has_every_number_once_when_its_server_drains_and_starts_again() {
    let mut site = Site::start(database().await, &[]).await;
    let mut follower = Loop::start(&site.address);
    faults::ends_and_starts_again(Signal::SIGTERM, &mut site, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_a_loop_has_every_number_once_when_its_server_is_killed() {
    let mut site = Site::start(database().await, &[]).await;
    let mut follower = Loop::start(&site.address);
    faults::ends_and_starts_again(Signal::SIGKILL, &mut site, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_a_loop_has_every_number_once_when_postgres_goes_away() {
    let postgres = Postgres::start().await;
    let mut site = Site::start(postgres.url(), &[]).await;
    let cable = Cable::to(&site.address).await;
    let mut follower = Loop::start(&cable.address);
    faults::postgres_goes_away(postgres, &cable, &mut site, &mut follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_a_loop_has_every_number_once_when_its_node_is_full_for_a_while() {
    let mut site = Site::start(database().await, &["--streams-max=1"]).await;
    let cable = Cable::to(&site.address).await;
    let mut follower = Loop::start(&cable.address);
    faults::its_place_is_taken(&cable, &mut site, &mut follower).await;
}
