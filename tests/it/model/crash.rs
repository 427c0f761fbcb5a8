//! Postgres is killed, with transaction ids in its memory that never reached the disk.
//!
//! After a crash Postgres hands out again the ids that its write-ahead log does not speak of. A position that had claimed
//! one of them would take the next event that gets it for seen.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

use crewcast::{app::Server, auth::Role, db::embedded::Embedded};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgConnection;

use super::{
    END, Rng, Run, eventually,
    reader::{Reader, Seen},
    writer::take_ids,
};
use crate::support::{Client, connect, private_postgres_of, server, sql, token, url};

/// A Postgres of one test's own.
pub(super) struct Cluster {
    pub(super) url: String,
    postgres: Embedded,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// With these settings, which may need a restart.
    pub(super) async fn start(durable: bool, settings: &[&str]) -> Self {
        Self::start_of(None, durable, settings).await
    }

    /// The same, of the programs in this folder.
    pub(super) async fn start_of(bin_dir: Option<PathBuf>, durable: bool, settings: &[&str]) -> Self {
        let open = std::fs::Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("crewcast-model-").permissions(open).tempdir().unwrap();
        let postgres = private_postgres_of(bin_dir, folder.path().to_owned(), durable).await;
        let url = url(&postgres.connect_options(), "crewcast");
        let cluster = Self { url, postgres, _folder: folder };
        let mut conn = connect(&cluster.url).await;
        for setting in settings {
            sql(&mut conn, &format!("alter system set {setting}")).await;
        }
        cluster.crash(Signal::SIGQUIT).await;
        cluster
    }

    /// Ends Postgres without a checkpoint and waits until it runs again.
    async fn crash(&self, signal: Signal) {
        let before = self.postmaster().await;
        send(before.cast_signed(), signal);
        self.restarted(before).await;
    }

    /// The same, for one whose WAL writer was stopped.
    pub(super) async fn crash_stopped(&self, wal_writer: i32) {
        let before = self.postmaster().await;
        send(before.cast_signed(), Signal::SIGKILL);
        send(wal_writer, Signal::SIGKILL);
        self.restarted(before).await;
    }

    async fn postmaster(&self) -> u32 {
        eventually(async || self.postgres.postmaster()).await.expect("Postgres does not run")
    }

    async fn restarted(&self, before: u32) {
        let again = eventually(async || self.postgres.postmaster().filter(|&pid| pid != before));
        again.await.expect("Postgres is not started again");
    }

    pub(super) async fn stop(self) {
        self.postgres.stop().await;
    }
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Keeps what is not flushed by a commit off the disk.
pub(super) async fn stop_wal_writer(conn: &mut PgConnection) -> i32 {
    let statement = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let pid = eventually(async || sqlx::query_scalar(statement).fetch_optional(&mut *conn).await.unwrap());
    let pid = pid.await.expect("Postgres has a WAL writer");
    send(pid, Signal::SIGSTOP);
    pid
}

/// The id that the next transaction is given.
async fn next_id(conn: &mut PgConnection) -> i64 {
    let statement = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    sqlx::query_scalar(statement).fetch_one(conn).await.unwrap()
}

/// Publishes one event under an id that was `taken` before the crash, and the end under a later one.
async fn publish_again(conn: &mut PgConnection, taken: i64) {
    let statement = "select pg_current_xact_id()::text::bigint from crewcast.publish('{topic:a}', 'test:count', '{}')";
    let id: i64 = sqlx::query_scalar(statement).fetch_one(&mut *conn).await.unwrap();
    assert!(id < taken, "{id} is to have been taken before, up to {taken}");
    take_ids(conn, 2000).await.unwrap();
    sql(conn, &format!("select crewcast.publish('{{topic:a}}', '{END}', '{{}}')")).await;
}

fn reader(node: &Server) -> Reader {
    let client = Client::new(node, &token("reader", &[Role::Service]));
    Reader::new(vec![client], &["topic:a"], Rng(1), false, Arc::default())
}

fn kinds(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|event| event.kind.as_str()).collect()
}

/// A position of every kind that a client can be given: of a read, of a stream's opening, of a heartbeat.
async fn positions(node: &Server, project: &str) -> [String; 3] {
    let ana = Client::admin(node);
    let (read, _) = ana.read(&format!("/v1/projects/{project}")).await;
    // The read's position makes the node look at the log again.
    let mut waits = ana.stream("rooms=topic:a", &read).await;
    waits.expect("stream:open").await;
    let mut stream = ana.stream("rooms=topic:a", "").await;
    let (open, _) = stream.expect("stream:open").await;
    let beat = stream.next_or_beat().await.unwrap();
    assert_eq!(beat.event, "heartbeat");
    [read, open.id, beat.id]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_a_crash_takes_back_is_in_no_position() {
    let cluster = Cluster::start(true, &[]).await;
    let node = server(&cluster.url, &["--heartbeat=100ms"]).await;
    let project = Client::admin(&node).project("north").await;
    let mut conn = connect(&cluster.url).await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    take_ids(&mut conn, 1000).await.unwrap();
    let taken = next_id(&mut conn).await;
    let positions = positions(&node, &project).await;
    node.stop().await;
    cluster.crash_stopped(wal_writer).await;
    publish_again(&mut connect(&cluster.url).await, taken).await;
    // Its first look comes after the count has passed where it was.
    let node = server(&cluster.url, &[]).await;
    for position in positions {
        assert_eq!(kinds(&reader(&node).read(&position).await), ["test:count"], "from {position}");
    }
    node.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_over_a_crash_that_takes_ids_back() {
    let cluster = Cluster::start(true, &[]).await;
    let nodes = [server(&cluster.url, &["--heartbeat=100ms"]).await, server(&cluster.url, &[]).await];
    let project = Client::admin(&nodes[0]).project("north").await;
    let mut conn = connect(&cluster.url).await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    take_ids(&mut conn, 1000).await.unwrap();
    let taken = next_id(&mut conn).await;
    let positions = positions(&nodes[0], &project).await;
    let streams = positions.clone().map(|position| {
        let reader = reader(&nodes[0]);
        tokio::spawn(async move { reader.read(&position).await })
    });
    cluster.crash_stopped(wal_writer).await;
    publish_again(&mut connect(&cluster.url).await, taken).await;
    for stream in streams {
        assert_eq!(kinds(&stream.await.unwrap()), ["test:count"]);
    }
    for position in positions {
        assert_eq!(kinds(&reader(&nodes[1]).read(&position).await), ["test:count"]);
    }
    for node in nodes {
        node.stop().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_seen_survives_whatever_its_publisher_said_of_synchronous_commit() {
    let cluster = Cluster::start(true, &["max_prepared_transactions = 20"]).await;
    let publish = |kind: &str| format!("select crewcast.publish('{{topic:a}}', 'test:{kind}', '{{}}')");
    let cases = [
        ("before", vec!["set synchronous_commit = off".to_owned(), publish("before")]),
        (
            "after",
            vec!["begin".to_owned(), publish("after"), "set synchronous_commit = off".to_owned(), "commit".to_owned()],
        ),
        (
            "prepared",
            vec![
                "begin".to_owned(),
                publish("prepared"),
                "prepare transaction 'one'".to_owned(),
                "set synchronous_commit = off".to_owned(),
                "commit prepared 'one'".to_owned(),
            ],
        ),
    ];
    for (kind, statements) in cases {
        let node = server(&cluster.url, &[]).await;
        let mut stream = Client::admin(&node).stream("rooms=topic:a", "").await;
        stream.expect("stream:open").await;
        let mut conn = connect(&cluster.url).await;
        let wal_writer = stop_wal_writer(&mut conn).await;
        for statement in statements {
            sql(&mut conn, &statement).await;
        }
        stream.expect(&format!("test:{kind}")).await;
        node.stop().await;
        cluster.crash_stopped(wal_writer).await;
        let found: i64 = sqlx::query_scalar("select count(*) from crewcast.events where type = 'test:' || $1")
            .bind(kind)
            .fetch_one(&mut connect(&cluster.url).await)
            .await
            .unwrap();
        assert_eq!(found, 1, "{kind}: it was seen, so it is on disk");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_may_be_killed_again_and_again() {
    let cluster = Cluster::start(true, &["max_prepared_transactions = 20", "wal_writer_delay = '10s'"]).await;
    let mut rng = Rng::seeded();
    let run = Run::start(&cluster.url, &mut rng, true).await;
    for _ in 0..3 {
        run.until_arrived(100 + rng.below(300) as u64).await;
        cluster.crash(if rng.one_in(2) { Signal::SIGQUIT } else { Signal::SIGKILL }).await;
        // And once with many ids in memory, positions that could claim them, and no commit that flushes.
        run.until_arrived(100).await;
        let quiet = run.gate.write().await;
        let mut conn = connect(&cluster.url).await;
        let wal_writer = stop_wal_writer(&mut conn).await;
        take_ids(&mut conn, 1000).await.unwrap();
        run.look().await;
        cluster.crash_stopped(wal_writer).await;
        drop(quiet);
    }
    run.until_arrived(200).await;
    run.finish(&mut rng).await;
    cluster.stop().await;
}
