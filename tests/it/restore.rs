//! A log that was restored, moved to another cluster or set back goes on without a lost event, and everybody is told.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crewcast::{
    app::Server,
    log::{Position, epoch},
};
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::{
    Client, PATIENCE, Stream, burn, connect, database, folder, own, private_postgres, server, sql, url,
};

/// Publishes one event in the room `company`; its `(seq, xact)`.
async fn publish(conn: &mut PgConnection, n: i64) -> (i64, i64) {
    let statement = format!("select crewcast.publish('{{company}}', 'test:one', '{{\"n\": {n}}}')");
    let seq: i64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut *conn).await.unwrap();
    let xact = sqlx::query_scalar("select xact from crewcast.events where seq = $1").bind(seq).fetch_one(conn).await;
    (seq, xact.unwrap())
}

/// The next event must be this one; the position after it.
async fn expect(stream: &mut Stream, n: i64) -> Position {
    let (frame, data) = stream.expect("test:one").await;
    assert_eq!(data["n"], json!(n), "{data}");
    frame.id.parse().unwrap()
}

/// The next frame must say that the stream starts anew under another epoch than `before`'s.
async fn expect_reset(stream: &mut Stream, before: &str) {
    // Heartbeats go on for ever on a stream that is not told.
    let reset = tokio::time::timeout(PATIENCE, stream.expect("stream:reset"));
    let (frame, data) = reset.await.expect("the stream is told to start anew");
    assert_eq!((&data["reason"], &data["cursor"]), (&json!("foreign"), &json!(frame.id)));
    let (then, now): (Position, Position) = (before.parse().unwrap(), frame.id.parse().unwrap());
    assert_ne!(then.epoch(), now.epoch());
}

/// Who comes back with a position of before is told to start anew, and then gets what is published.
async fn expect_foreign(ana: &Client, before: &str) -> Stream {
    let mut stream = ana.stream("", before).await;
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["resume"], "reset");
    expect_reset(&mut stream, before).await;
    stream
}

/// Where a program of the newest installed Postgres is.
pub(crate) fn program(name: &str) -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    newest.max().map_or_else(|| name.into(), |(_, path)| path.join("bin").join(name))
}

fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    try_to_run(command, input).unwrap_or_else(|said| panic!("{command:?}: {said}"))
}

fn try_to_run(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that ends early says why; the pipe it left does not.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn move_by_script(from: &str, to: &str) {
    let dump = run(Command::new(program("pg_dump")).args(["--dbname", from]), &[]);
    run(Command::new(program("psql")).args(["-X", "-v", "ON_ERROR_STOP=1", "--dbname", to]), &dump);
}

fn move_by_archive(from: &str, to: &str) {
    let dump = run(Command::new(program("pg_dump")).args(["--format=custom", "--dbname", from]), &[]);
    run(Command::new(program("pg_restore")).args(["--exit-on-error", "--dbname", to]), &dump);
}

/// Moves a log into a cluster that counts from elsewhere.
async fn goes_on(burnt_before: u64, burnt_after: u64, restore: fn(&str, &str)) {
    let (old_folder, new_folder) = (folder(), folder());
    let old = private_postgres(old_folder.path().to_owned(), false).await;
    let new = private_postgres(new_folder.path().to_owned(), false).await;
    let (old_url, new_url) = (url(&old.connect_options(), "crewcast"), url(&new.connect_options(), "crewcast"));
    let first = server(&old_url, &["--poll=20ms"]).await;
    let mut conn = connect(&old_url).await;
    burn(&mut conn, burnt_before).await;
    let mut stream = Client::admin(&first).stream("", "").await;
    stream.expect("stream:open").await;
    // One stays open, so that the position has a hole, and is not in the dump.
    let mut open = connect(&old_url).await;
    sql(&mut open, "begin").await;
    publish(&mut open, 99).await;
    let mut top = (0, 0);
    for n in 0..3 {
        top = publish(&mut conn, n).await;
        expect(&mut stream, n).await;
    }
    let before = stream.last_id().to_owned();
    restore(&old_url, &new_url);
    first.stop().await;

    let mut conn = connect(&new_url).await;
    burn(&mut conn, burnt_after).await;
    let next: i64 = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(next < top.1, burnt_before > burnt_after, "{next} and {top:?}");
    let refused = sqlx::query("select crewcast.publish('{company}', 'test:one', '{}')").execute(&mut conn).await;
    let refused = refused.unwrap_err();
    let said = refused.as_database_error().unwrap().downcast_ref::<sqlx::postgres::PgDatabaseError>();
    assert_eq!(said.code(), "55000", "{said}");
    assert!(said.hint().unwrap().contains("adopts the log"), "{:?}", said.hint());
    // Has its id before the log is adopted, and publishes after.
    let mut early = connect(&new_url).await;
    sql(&mut early, "begin").await;
    sql(&mut early, "select pg_current_xact_id()").await;
    // Others that began later have ended: the next id is well above the open one.
    burn(&mut conn, 5).await;

    let second = server(&new_url, &["--poll=20ms"]).await;
    let ana = Client::admin(&second);
    let mut stream = expect_foreign(&ana, &before).await;
    let mut last: Position = stream.last_id().parse().unwrap();
    for n in 3..6 {
        let (seq, xact) = publish(&mut conn, n).await;
        assert!(seq > top.0 && xact > top.1, "{seq} {xact} after {top:?}");
        let position = expect(&mut stream, n).await;
        assert!(position.includes_position(&last) && position != last, "{last} then {position}");
        last = position;
    }
    let (seq, xact) = publish(&mut early, 6).await;
    assert!(seq > top.0 && xact > top.1, "{seq} {xact} after {top:?}");
    let id = stream.last_id().to_owned();
    drop(stream);
    sql(&mut early, "commit").await;
    let mut stream = ana.stream("", &id).await;
    let (_, opened) = stream.expect("stream:open").await;
    assert_eq!(opened["resume"], "replayed");
    assert!(expect(&mut stream, 6).await.includes_position(&last));
    publish(&mut conn, 7).await;
    expect(&mut stream, 7).await;
    // What was published before the move can still be read.
    for seq in 2..=top.0 {
        assert_eq!(ana.request(Method::GET, &format!("/v1/events/{seq}")).send().await.unwrap().status(), 200);
    }
    second.stop().await;
    // Adopted once: the epoch stays.
    let third = server(&new_url, &[]).await;
    let mut stream = Client::admin(&third).stream("", &id).await;
    stream.expect("stream:open").await;
    expect(&mut stream, 6).await;
    third.stop().await;
    old.stop().await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_restored_into_a_younger_cluster_goes_on_without_a_lost_event() {
    goes_on(4000, 0, move_by_script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_restored_into_an_older_cluster_goes_on_without_a_lost_event() {
    goes_on(0, 4000, move_by_archive).await;
}

fn dump(url: &str) -> Vec<u8> {
    run(Command::new(program("pg_dump")).args(["--format=custom", "--dbname", url]), &[])
}

fn restore(url: &str, dump: &[u8], options: &[&str]) {
    run(Command::new(program("pg_restore")).args(options).args(["--dbname", url]), dump);
}

/// The same while nodes look at the tables. As one transaction it may meet one of them in a deadlock, and has to come again.
fn restore_over_nodes(url: &str, dump: &[u8], options: &[&str]) {
    let mut pg_restore = Command::new(program("pg_restore"));
    pg_restore.args(options).args(["--dbname", url]);
    while let Err(said) = try_to_run(&mut pg_restore, dump) {
        assert!(said.contains("deadlock detected"), "{said}");
    }
}

fn psql(url: &str, statements: &[&str]) {
    let commands = statements.iter().flat_map(|statement| ["-c", statement]);
    run(Command::new(program("psql")).args(["-X", "-v", "ON_ERROR_STOP=1", "--dbname", url]).args(commands), &[]);
}

/// Publishes some, lets a client see them all, and has the state of before brought back. Whoever saw what is gone is told
/// so, also when as much was published since.
async fn is_noticed(take: fn(&str) -> Vec<u8>, bring_back: fn(&str, &str, &[u8]) -> &'static str) {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), false).await;
    let (here, admin) = (url(&postgres.connect_options(), "crewcast"), url(&postgres.connect_options(), "postgres"));
    let first = server(&here, &["--poll=20ms"]).await;
    let mut stream = Client::admin(&first).stream("", "").await;
    stream.expect("stream:open").await;
    let mut conn = connect(&here).await;
    for n in 0..3 {
        publish(&mut conn, n).await;
        expect(&mut stream, n).await;
    }
    let dump = take(&here);
    for n in 3..6 {
        publish(&mut conn, n).await;
        expect(&mut stream, n).await;
    }
    let before = stream.last_id().to_owned();
    drop((stream, conn));
    first.stop().await;
    let database = bring_back(&here, &admin, &dump);

    let there = url(&postgres.connect_options(), database);
    let mut conn = connect(&there).await;
    let refused = sqlx::query("select crewcast.publish('{company}', 'test:one', '{}')").execute(&mut conn).await;
    let refused = refused.expect_err("nothing is published to a copy that nobody has adopted");
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("55000"), "{refused}");
    let second = server(&there, &["--poll=20ms"]).await;
    let ana = Client::admin(&second);
    for n in 100..103 {
        publish(&mut conn, n).await;
    }
    let mut stream = expect_foreign(&ana, &before).await;
    publish(&mut conn, 103).await;
    loop {
        // What was published before may have been read in time or not.
        let (_, data) = stream.expect("test:one").await;
        if data["n"] == json!(103) {
            break;
        }
    }
    // Adopted once: the epoch stays.
    let id = stream.last_id().to_owned();
    second.stop().await;
    let third = server(&there, &[]).await;
    let (_, opened) = Client::admin(&third).stream("", &id).await.expect("stream:open").await;
    assert_eq!(opened["resume"], "replayed");
    third.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_into_a_new_database_of_the_old_name_is_noticed() {
    is_noticed(dump, |here, admin, dump| {
        psql(admin, &["drop database crewcast", "create database crewcast"]);
        restore(here, dump, &["--exit-on-error"]);
        "crewcast"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_over_the_old_objects_is_noticed() {
    is_noticed(dump, |here, _, dump| {
        restore(here, dump, &["--clean", "--if-exists"]);
        "crewcast"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_of_rows_alone_into_the_old_tables_is_noticed() {
    is_noticed(dump, |here, _, dump| {
        let empty = "do $$ declare tables text; begin
            select string_agg(oid::regclass::text, ', ') into tables from pg_class
                where relnamespace = 'crewcast'::regnamespace and relkind = 'r';
            execute 'truncate ' || tables;
        end $$";
        psql(here, &[empty]);
        restore(here, dump, &["--data-only", "--disable-triggers", "--exit-on-error"]);
        "crewcast"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_made_from_another_one_is_another_log() {
    is_noticed(
        |_| Vec::new(),
        |_, admin, _| {
            psql(admin, &["create database copy template crewcast"]);
            "copy"
        },
    )
    .await;
}

/// Streams of several nodes, which are told once each that the log was set back, and that by the same epoch.
async fn told_once(streams: &mut [Stream], befores: &[String], conn: &mut PgConnection, n: i64) {
    let mut epochs = Vec::new();
    for (stream, before) in streams.iter_mut().zip(befores) {
        expect_reset(stream, before).await;
        epochs.push(stream.last_id().split('-').next().unwrap().to_owned());
    }
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "one epoch for all: {epochs:?}");
    publish(conn, n).await;
    for stream in streams {
        expect(stream, n).await;
        assert!(stream.last_id().starts_with(&epochs[0]), "{} is of {}", stream.last_id(), epochs[0]);
    }
}

async fn follow_all(nodes: &[Server]) -> Vec<Stream> {
    let mut streams = Vec::new();
    for node in nodes {
        let mut stream = Client::admin(node).stream("", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    streams
}

async fn four_nodes(url: &str) -> Vec<Server> {
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(server(url, &["--poll=20ms"]).await);
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_set_back_under_four_nodes_begins_one_epoch_each_time() {
    let (folder, elsewhere) = (folder(), folder());
    let data = |folder: &Path| folder.join("postgres/data");
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        run(Command::new("cp").arg("-a").args([from, to]), &[]);
    };
    let start = || private_postgres(folder.path().to_owned(), false);
    let postgres = start().await;
    let url = url(&postgres.connect_options(), "crewcast");
    crewcast::app::migrate(&postgres.connect_options()).await.unwrap();
    publish(&mut connect(&url).await, 0).await;
    postgres.stop().await;
    copy(&data(folder.path()), &data(elsewhere.path()));

    let mut postgres = start().await;
    let nodes = four_nodes(&url).await;
    let mut streams = follow_all(&nodes).await;
    // The first time the copy is of the nodes' epoch, then it is of the one before.
    for n in 1..=3 {
        let mut conn = connect(&url).await;
        publish(&mut conn, 10 * n).await;
        for stream in &mut streams {
            expect(stream, 10 * n).await;
        }
        drop(conn);
        let befores: Vec<String> = streams.iter().map(|stream| stream.last_id().to_owned()).collect();
        postgres.stop().await;
        copy(&data(elsewhere.path()), &data(folder.path()));
        postgres = start().await;
        told_once(&mut streams, &befores, &mut connect(&url).await, 10 * n + 1).await;
    }
    for node in nodes {
        node.stop().await;
    }
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_run_on_through_a_restore_over_their_tables() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), false).await;
    let url = url(&postgres.connect_options(), "crewcast");
    let nodes = four_nodes(&url).await;
    let mut streams = follow_all(&nodes).await;
    let mut conn = connect(&url).await;
    // The second time nothing is lost, and nobody would notice by that.
    for (n, options) in [(0, vec!["--clean"]), (10, vec!["--clean", "--single-transaction"])] {
        let early = dump(&url);
        publish(&mut conn, n).await;
        for stream in &mut streams {
            expect(stream, n).await;
        }
        let late = dump(&url);
        for (m, dump) in [(n + 1, early), (n + 2, late)] {
            let befores: Vec<String> = streams.iter().map(|stream| stream.last_id().to_owned()).collect();
            restore_over_nodes(&url, &dump, &options);
            told_once(&mut streams, &befores, &mut conn, m).await;
        }
    }
    for node in nodes {
        node.stop().await;
    }
    postgres.stop().await;
}

/// A database that a running server uses is replaced by an earlier state of it, which has gone on by as many events as
/// the lost ones or not at all.
async fn set_back(goes_on_elsewhere: bool) {
    let (folder, elsewhere) = (folder(), folder());
    let data = |folder: &Path| folder.join("postgres/data");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        run(Command::new("cp").arg("-a").args([from, to]), &[]);
    };
    let start = |folder: PathBuf| private_postgres(folder, false);
    let postgres = start(folder.path().to_owned()).await;
    let url_here = url(&postgres.connect_options(), "crewcast");
    crewcast::app::migrate(&postgres.connect_options()).await.unwrap();
    let mut conn = connect(&url_here).await;
    for n in 0..3 {
        publish(&mut conn, n).await;
    }
    drop(conn);
    postgres.stop().await;
    copy(&data(folder.path()), &data(elsewhere.path()));

    let postgres = start(folder.path().to_owned()).await;
    let server = server(&url_here, &["--poll=20ms"]).await;
    let ana = Client::admin(&server);
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    let mut conn = connect(&url_here).await;
    let mut lost = Vec::new();
    for n in 3..8 {
        lost.push(publish(&mut conn, n).await);
        expect(&mut stream, n).await;
    }
    let before = stream.last_id().to_owned();
    drop(conn);
    postgres.stop().await;

    if goes_on_elsewhere {
        let other = start(elsewhere.path().to_owned()).await;
        let mut conn = connect(&url(&other.connect_options(), "crewcast")).await;
        for &(seq, xact) in &lost {
            // The worst case: even the numbers are the same.
            let next: i64 = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
                .fetch_one(&mut conn)
                .await
                .unwrap();
            burn(&mut conn, u64::try_from(xact - next).unwrap()).await;
            assert_eq!(publish(&mut conn, 100).await, (seq, xact));
        }
        drop(conn);
        other.stop().await;
    }
    std::fs::remove_dir_all(data(folder.path())).unwrap();
    copy(&data(elsewhere.path()), &data(folder.path()));
    let postgres = start(folder.path().to_owned()).await;
    expect_reset(&mut stream, &before).await;
    let mut conn = connect(&url_here).await;
    for n in 8..11 {
        publish(&mut conn, n).await;
        expect(&mut stream, n).await;
    }
    let mut again = expect_foreign(&ana, &before).await;
    publish(&mut conn, 11).await;
    expect(&mut again, 11).await;
    expect(&mut stream, 11).await;
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_set_back_is_noticed_by_a_running_server() {
    set_back(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_set_back_and_went_on_to_the_same_numbers_is_noticed() {
    set_back(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_reaches_the_streams_of_running_servers() {
    let url = database().await;
    let (one, two) = (server(&url, &["--poll=20ms"]).await, server(&url, &["--poll=20ms"]).await);
    let mut conn = connect(&url).await;
    let mut streams = Vec::new();
    for server in [&one, &two] {
        let mut stream = Client::admin(server).stream("", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    publish(&mut conn, 0).await;
    let mut own = own(&url).await;
    let old = epoch::identity(&mut own).await.unwrap().epoch;
    let new = epoch::renew(&mut own, &old).await.unwrap();
    assert_ne!(old, new);
    assert_eq!(epoch::renew(&mut own, &old).await.unwrap(), new, "who comes second changes nothing");
    publish(&mut conn, 1).await;
    for (stream, server) in streams.iter_mut().zip([&one, &two]) {
        // What was published before may have been read in time or not; a new epoch makes it state.
        let before = stream.last_id().to_owned();
        let mut frame = stream.next().await.unwrap();
        if frame.event == "test:one" {
            frame = stream.next().await.unwrap();
        }
        assert_eq!(frame.event, "stream:reset");
        let at: Position = frame.id.parse().unwrap();
        assert_eq!(at.epoch().as_str(), new);
        // Event 1 came before the new epoch was noticed, and is state as well, or comes now.
        let mut resumed = Client::admin(server).stream("", &frame.id).await;
        resumed.expect("stream:open").await;
        expect_foreign(&Client::admin(server), &before).await;
        publish(&mut conn, 2).await;
        for stream in [stream, &mut resumed] {
            loop {
                let (_, data) = stream.expect("test:one").await;
                if data["n"] == json!(2) {
                    break;
                }
                assert_eq!(data["n"], json!(1));
            }
        }
    }
    one.stop().await;
    two.stop().await;
}
