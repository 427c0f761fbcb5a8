//! Open transactions, rolled back ones and careless ones hold nobody up and lose nothing.

use std::collections::HashSet;

use crewcast::log::Position;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::{Client, PATIENCE, Stream, connect, database, folder, private_postgres, server, sql, url};

/// Publishes one event with the number `n` in the room `company`.
async fn publish(conn: &mut PgConnection, kind: &str, n: i64) {
    sql(conn, &format!("select crewcast.publish('{{company}}', '{kind}', '{{\"n\": {n}}}')")).await;
}

/// The next events must be these, by type and number.
async fn expect_all(stream: &mut Stream, kind: &str, numbers: impl IntoIterator<Item = i64>) {
    for n in numbers {
        let (_, data) = stream.expect(kind).await;
        assert_eq!(data["n"], json!(n), "{data}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_stay_open_hold_up_nobody_and_arrive_once_when_they_commit() {
    const GIANT: i64 = 5000;
    let url = database().await;
    let server = server(&url, &["--poll=20ms"]).await;
    let ana = Client::admin(&server);
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    let mut others = connect(&url).await;
    let (mut open, mut stranger, mut giant) = (connect(&url).await, connect(&url).await, connect(&url).await);
    sql(&mut open, "begin").await;
    publish(&mut open, "test:open", 1).await;
    sql(&mut stranger, "begin").await;
    sql(&mut stranger, "select pg_current_xact_id()").await;
    sql(&mut giant, "begin").await;
    for part in 0..50 {
        let (from, to) = (part * GIANT / 50 + 1, (part + 1) * GIANT / 50);
        let statement = "count(crewcast.publish('{company}', 'test:giant', json_build_object('n', n)))";
        sql(&mut giant, &format!("select {statement} from generate_series({from}, {to}) n")).await;
        // Numbers of everybody else lie between those of the giant; each arrives while all three are open.
        publish(&mut others, "test:other", part).await;
        expect_all(&mut stream, "test:other", [part]).await;
    }
    let while_open = stream.last_id().to_owned();
    publish(&mut open, "test:open", 2).await;
    sql(&mut open, "commit").await;
    expect_all(&mut stream, "test:open", [1, 2]).await;
    sql(&mut giant, "commit").await;
    publish(&mut others, "test:other", 50).await;
    // The other may be read together with the giant, and has the highest number then: it comes last in any case.
    expect_all(&mut stream, "test:giant", 1..=GIANT).await;
    expect_all(&mut stream, "test:other", [50]).await;
    // Who was cut off while they were open is sent them as well, and once.
    let mut resumed = ana.stream("", &while_open).await;
    let (_, opened) = resumed.expect("stream:open").await;
    assert_eq!(opened["resume"], "replayed");
    let mut late = Vec::new();
    for _ in 0..GIANT + 3 {
        let frame = resumed.next().await.unwrap();
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        late.push((frame.event, data["n"].as_i64().unwrap()));
    }
    assert_eq!(late.iter().collect::<HashSet<_>>().len(), late.len(), "an event came twice");
    let of = |kind: &str| late.iter().filter(|(name, _)| name == kind).map(|(_, n)| *n).collect::<Vec<_>>();
    assert_eq!((of("test:open"), of("test:other")), (vec![1, 2], vec![50]));
    assert_eq!(of("test:giant"), (1..=GIANT).collect::<Vec<_>>());
    // The stranger ends last and is nobody's concern; the fence shows that nothing else was on its way.
    sql(&mut stranger, "commit").await;
    publish(&mut others, "test:fence", 0).await;
    expect_all(&mut stream, "test:fence", [0]).await;
    expect_all(&mut resumed, "test:fence", [0]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_rollbacks_beside_an_open_writer_hold_up_nobody() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms"]).await;
    let ana = Client::admin(&server);
    let mut stream = ana.stream("", "").await;
    stream.expect("stream:open").await;
    let (mut open, mut others) = (connect(&url).await, connect(&url).await);
    sql(&mut open, "begin").await;
    publish(&mut open, "test:open", 1).await;
    let mut failing = Vec::new();
    for _ in 0..4 {
        let mut conn = connect(&url).await;
        failing.push(tokio::spawn(async move {
            let each = "perform crewcast.publish('{company}', 'test:never', '{}'); rollback;";
            sql(&mut conn, &format!("do $$ begin for n in 1..1250 loop {each} end loop; end $$")).await;
        }));
    }
    for n in 0..50 {
        publish(&mut others, "test:other", n).await;
        expect_all(&mut stream, "test:other", [n]).await;
        assert!(stream.last_id().len() < 1024, "{}", stream.last_id());
    }
    for task in failing {
        task.await.unwrap();
    }
    publish(&mut others, "test:other", 50).await;
    expect_all(&mut stream, "test:other", [50]).await;
    // Two distances and one open transaction: what was rolled back takes no room.
    let id = stream.last_id();
    assert!(id.len() < 40, "{id}");
    sql(&mut open, "commit").await;
    expect_all(&mut stream, "test:open", [1]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_stays_under_a_kilobyte_with_a_hundred_writers_at_once() {
    const WRITERS: usize = 100;
    const TURNS: i64 = 500;
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), false).await;
    let url = url(&postgres.connect_options(), "crewcast");
    let server = server(&url, &["--poll=10ms"]).await;
    let mut stream = Client::admin(&server).stream("", "").await;
    stream.expect("stream:open").await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(connect(&url).await);
    }
    let mut published = 0;
    for conn in &mut writers {
        sql(conn, "begin").await;
        publish(conn, "test:one", published).await;
        published += 1;
    }
    let watched = tokio::spawn(async move {
        let (mut seen, mut longest, mut inside) = (Vec::new(), 0, 0);
        let mut last: Option<Position> = None;
        loop {
            let (frame, data) = stream.expect("test:one").await;
            let position: Position = frame.id.parse().unwrap();
            assert!(last.is_none_or(|last| position.includes_position(&last)), "positions only grow");
            inside += usize::from(position.rest().is_some());
            longest = longest.max(frame.id.len());
            last = Some(position);
            match data["n"].as_i64().unwrap() {
                -1 => break (seen, longest, inside),
                n => seen.push(n),
            }
        }
    });
    // Whoever's turn it is commits and begins anew: there are always a hundred, of every age.
    let mut random: u64 = 0x5eed;
    for _ in 0..TURNS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let conn = &mut writers[(random >> 33) as usize % WRITERS];
        sql(conn, "commit").await;
        sql(conn, "begin").await;
        publish(conn, "test:one", published).await;
        published += 1;
    }
    for conn in &mut writers {
        sql(conn, "commit").await;
    }
    publish(&mut writers[0], "test:one", -1).await;
    let (mut seen, longest, inside) = watched.await.unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..published).collect::<Vec<_>>(), "each exactly once");
    assert!(inside > 0, "no id was inside a read: the longest form was not seen");
    assert!((100..1024).contains(&longest), "{longest}");
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_anybody_saw_survives_a_crash_of_postgres_whatever_the_publisher_set() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let url = url(&postgres.connect_options(), "crewcast");
    let mut conn = connect(&url).await;
    // Nobody flushes for others: a commit that does not wait for its flush is lost in the crash.
    sql(&mut conn, "alter system set wal_writer_delay = '10s'").await;
    sql(&mut conn, "alter system set autovacuum = off").await;
    let server = server(&url, &["--poll=10ms"]).await;
    sql(&mut conn, "create table control (n int)").await;
    sql(
        &mut conn,
        "create function careless(n bigint) returns bigint language sql set synchronous_commit = off
         as $$ select crewcast.publish('{company}', 'test:one', json_build_object('n', n)) $$",
    )
    .await;
    let mut stream = Client::admin(&server).stream("", "").await;
    stream.expect("stream:open").await;
    crash(&postgres).await;
    let one = "select crewcast.publish('{company}', 'test:one', '{\"n\": $N}')";
    let ways: [&[&str]; 6] = [
        &["set synchronous_commit = off", one],
        &["begin", "set local synchronous_commit = off", one, "commit"],
        &["begin", one, "set local synchronous_commit = off", "commit"],
        &["set synchronous_commit = off", "select careless($N)"],
        &["set synchronous_commit = off", "begin", "savepoint s", one, "rollback to s", one, "commit"],
        &["begin", "savepoint s", one, "release s", "set synchronous_commit = off", "commit"],
    ];
    let mut lost = 0;
    for (n, way) in ways.iter().enumerate() {
        let mut publisher = connect(&url).await;
        let mut control = connect(&url).await;
        for statement in *way {
            sql(&mut publisher, &statement.replace("$N", &n.to_string())).await;
        }
        expect_all(&mut stream, "test:one", [n as i64]).await;
        sql(&mut control, "set synchronous_commit = off").await;
        sql(&mut control, &format!("insert into control values ({n})")).await;
        crash(&postgres).await;
        let mut after = connect(&url).await;
        let count: i64 = sqlx::query_scalar("select count(*) from crewcast.events where data ->> 'n' = $1")
            .bind(n.to_string())
            .fetch_one(&mut after)
            .await
            .unwrap();
        assert_eq!(count, 1, "what {way:?} published was seen, and is gone");
        let kept: bool = sqlx::query_scalar("select exists (select from control where n = $1)")
            .bind(n as i32)
            .fetch_one(&mut after)
            .await
            .unwrap();
        lost += usize::from(!kept);
    }
    assert!(lost > 0, "no crash lost anything: the test shows nothing");
    // Neither was any stream told to start anew.
    publish(&mut connect(&url).await, "test:fence", 0).await;
    expect_all(&mut stream, "test:fence", [0]).await;
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test]
async fn a_position_that_cannot_be_noted_holds_up_no_event() {
    let url = database().await;
    let (mut lock, mut conn) = (connect(&url).await, connect(&url).await);
    sql(&mut lock, "begin").await;
    sql(&mut lock, "lock table crewcast.marks in access exclusive mode").await;
    let server = server(&url, &["--poll=20ms"]).await;
    let mut stream = Client::admin(&server).stream("", "").await;
    stream.expect("stream:open").await;
    for n in 1..=3 {
        publish(&mut conn, "test:one", n).await;
        let arrived = tokio::time::timeout(PATIENCE, expect_all(&mut stream, "test:one", [n]));
        arrived.await.expect("it arrives");
    }
    sql(&mut lock, "rollback").await;
    drop(stream);
    server.stop().await;
}

/// Stops Postgres without a flush, and waits until it runs again by itself.
async fn crash(postgres: &crewcast::db::embedded::Embedded) {
    let pid = postgres.postmaster().unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGQUIT).unwrap();
    let again = async {
        while postgres.postmaster().is_none_or(|now| now == pid) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("Postgres starts again");
}
