//! What the log lets go of: when, how, and that nobody is held up or misses anything because of it.

use crewcast::{
    auth::Role,
    log::{
        position::RawSnapshot,
        retention::{self, COUNT, DELETE, FORGET},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, PATIENCE, Process, Slow, burn, connect, database, number, publish, server, sql, token},
};

/// Marks are noted all the time and become old only when a test says so.
const SETTINGS: [&str; 3] = ["--poll=20ms", "--floor-every=20ms", "--retention=1h"];

const EVENTS: &str = "select count(*) from crewcast.events";
const MARKED: &str = "select sum(events)::bigint from crewcast.marks";
const DELETED: &str = "select deleted from crewcast.retention";

/// Waits until a statement gives this number.
async fn until(conn: &mut PgConnection, statement: &str, expected: i64) {
    let mut last = None;
    let asking = async {
        while last != Some(expected) {
            last = Some(number(conn, statement).await);
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    asked.unwrap_or_else(|_| panic!("{last:?} and not {expected}: {statement}"));
}

/// What was noted until now was noted two hours ago.
async fn age(conn: &mut PgConnection) {
    sql(conn, "update crewcast.marks set at = at - interval '2 hours'").await;
}

/// Waits until this many events are in marks, and has them grow old.
async fn grow_old(conn: &mut PgConnection, events: i64) {
    until(conn, MARKED, events).await;
    age(conn).await;
}

/// Waits until retention has looked at the log as it is now.
async fn rounds(conn: &mut PgConnection) {
    const AT: &str = "select (extract(epoch from at) * 1000000)::bigint from crewcast.retention";
    for _ in 0..4 {
        let at = number(conn, AT).await;
        until(conn, &format!("select (({AT}) > {at})::int::bigint"), 1).await;
    }
}

/// Nothing of the events that were deleted is left in any table.
async fn leaves_nothing(conn: &mut PgConnection) {
    let orphans = "select (select count(*) from crewcast.event_rooms r
                           where not exists (select from crewcast.events where seq = r.seq))
                        + (select count(*) from crewcast.commits c
                           where not exists (select from crewcast.events where xact = c.xact))";
    until(conn, orphans, 0).await;
}

#[tokio::test]
async fn what_is_old_is_deleted_and_what_a_long_transaction_brings_late_is_kept_its_full_time() {
    let url = database().await;
    let server = server(&url, &SETTINGS).await;
    let (ana, mut conn, mut long) = (Client::admin(&server), connect(&url).await, connect(&url).await);
    sql(&mut long, "begin").await;
    publish(&mut long, "company", 1000..=1000, 1).await;
    for n in 1..=20 {
        publish(&mut conn, "company", n..=n, 1).await;
    }
    grow_old(&mut conn, 20).await;
    until(&mut conn, EVENTS, 0).await;
    let before = ana.read("/v1/divisions").await.0;
    sql(&mut long, "commit").await;
    publish(&mut conn, "company", 21..=21, 1).await;
    until(&mut conn, MARKED, 2).await;
    // Whatever was noted before the commit grows old once more.
    sql(&mut conn, "update crewcast.marks set at = at - interval '2 hours' where events = 0").await;
    rounds(&mut conn).await;
    assert_eq!(number(&mut conn, EVENTS).await, 2);
    let mut stream = ana.stream("", &before).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    assert_eq!(stream.expect("test:n").await.1["n"], 1000, "it came late and is young");
    assert_eq!(stream.expect("test:n").await.1["n"], 21);
    age(&mut conn).await;
    until(&mut conn, EVENTS, 0).await;
    leaves_nothing(&mut conn).await;
    let stats = ana.stats_when(|stats| stats["log"]["overdue"] == 0 && stats["log"]["deleted"] == 22).await;
    assert!(stats["log"]["floorAgeSeconds"].as_i64().unwrap() > 7000, "{stats}");
    let mut stream = ana.stream("", &before).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "reset");
    assert_eq!(stream.expect("stream:reset").await.1["reason"], "too_old");
    server.stop().await;
}

#[tokio::test]
async fn more_events_than_are_kept_are_let_go_however_young() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--floor-every=20ms", "--retention-events=50"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    for n in 1..=10 {
        publish(&mut conn, "company", n * 10..=n * 10 + 9, 1).await;
        let noted = "select passed + (select sum(events) from crewcast.marks)::bigint from crewcast.retention";
        until(&mut conn, noted, n * 10).await;
    }
    until(&mut conn, EVENTS, 50).await;
    leaves_nothing(&mut conn).await;
    let stats = ana.stats_when(|stats| stats["log"]["events"] == 50).await;
    assert_eq!(stats["log"]["eventsMax"], 50, "{stats}");
    let (_, page) = ana.read("/v1/rooms/company/events?limit=100").await;
    let first = page["items"][0]["data"]["n"].as_i64();
    assert_eq!((first, page["items"].as_array().unwrap().len()), (Some(60), 50), "the history begins at the floor");
    server.stop().await;
}

#[tokio::test]
async fn a_transaction_of_thousands_of_events_goes_in_parts_and_nothing_of_it_stays() {
    let url = database().await;
    let server = server(&url, &SETTINGS).await;
    let mut conn = connect(&url).await;
    let rooms = "array['company', 'topic:' || n, 'topic:all']";
    publish(&mut conn, "topic:before", 1..=3, 1).await;
    sql(
        &mut conn,
        &format!("select count(crewcast.publish({rooms}, 'test:n', '{{}}')) from generate_series(1, 1000) n"),
    )
    .await;
    publish(&mut conn, "topic:after", 1..=3, 1).await;
    grow_old(&mut conn, 1006).await;
    until(&mut conn, DELETED, 1006).await;
    leaves_nothing(&mut conn).await;
    assert_eq!(number(&mut conn, "select count(*) from crewcast.event_rooms").await, 0);
    assert_eq!(number(&mut conn, "select passed - deleted from crewcast.retention").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn deletion_goes_on_beside_open_transactions_and_rows_that_somebody_has_locked_hold_up_no_event() {
    let url = database().await;
    let server = server(&url, &SETTINGS).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let (mut writer, mut reader, mut lock) = (connect(&url).await, connect(&url).await, connect(&url).await);
    publish(&mut conn, "company", 1..=300, 1).await;
    sql(&mut reader, "begin isolation level repeatable read").await;
    assert_eq!(number(&mut reader, EVENTS).await, 300);
    sql(&mut writer, "begin").await;
    publish(&mut writer, "company", 900..=999, 1).await;
    grow_old(&mut conn, 300).await;
    until(&mut conn, EVENTS, 0).await;
    assert_eq!(number(&mut reader, EVENTS).await, 300, "a snapshot stays what it was");
    let mut stream = ana.follow("").await;
    for table in ["log", "retention"] {
        publish(&mut conn, "company", 1..=1, 1).await;
        stream.expect("test:n").await;
        let before = number(&mut conn, DELETED).await;
        until(&mut conn, MARKED, 1).await;
        sql(&mut lock, "begin").await;
        sql(&mut lock, &format!("select from crewcast.{table} for update")).await;
        age(&mut conn).await;
        for n in 2..=4 {
            publish(&mut conn, "company", n..=n, 1).await;
            assert_eq!(stream.expect("test:n").await.1["n"], n, "while crewcast.{table} is locked");
        }
        assert_eq!(number(&mut conn, DELETED).await, before, "nothing is deleted that the floor has not passed");
        sql(&mut lock, "rollback").await;
        until(&mut conn, MARKED, 3).await;
        age(&mut conn).await;
        until(&mut conn, DELETED, before + 4).await;
    }
    sql(&mut writer, "rollback").await;
    sql(&mut reader, "rollback").await;
    leaves_nothing(&mut conn).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_replays_while_the_log_is_deleted_below_it_is_reset_and_misses_nothing_silently() {
    const COUNT: i64 = 6000;
    let url = database().await;
    let server = server(&url, &[&SETTINGS[..], &["--ring-bytes=1"]].concat()).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = ana.read("/v1/divisions").await.0;
    for first in (1..=COUNT).step_by(500) {
        publish(&mut conn, "company", first..=first + 499, 4000).await;
    }
    until(&mut conn, MARKED, COUNT).await;
    let admin = token("ana", &[Role::Admin]);
    let mut stream = Slow::open(&server.address.to_string(), &admin, "rooms=company", &id).await;
    stream.raw = None;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    stream.expect("test:n").await;
    age(&mut conn).await;
    until(&mut conn, "select (deleted > 0)::int::bigint from crewcast.retention", 1).await;
    let mut seen = 1;
    loop {
        let frame = stream.next().await.expect("the stream goes on");
        let data: serde_json::Value = serde_json::from_str(&frame.data).unwrap();
        if frame.event == "stream:reset" {
            assert_eq!(data["reason"], "too_old");
            break;
        }
        seen += 1;
        assert_eq!(data["n"], json!(seen), "no gap before the reset");
    }
    assert!(seen < COUNT, "the floor passed in the middle: {seen} events were on their way");
    publish(&mut conn, "company", 9001..=9001, 1).await;
    assert_eq!(stream.expect("test:n").await.1["n"], 9001);
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_stood_still_while_the_log_was_deleted_resets_its_streams() {
    let url = database().await;
    let one = server(&url, &SETTINGS).await;
    let two = Process::start(&url, &["--poll=20ms", "--floor-every=1h"]).await;
    let mut conn = connect(&url).await;
    let mut stream = Client::at(&two.address, &token("ana", &[Role::Admin])).follow("").await;
    publish(&mut conn, "company", 1..=1, 1).await;
    stream.expect("test:n").await;
    let process = Pid::from_raw(two.child.id().unwrap().cast_signed());
    kill(process, Signal::SIGSTOP).unwrap();
    publish(&mut conn, "company", 2..=300, 1).await;
    grow_old(&mut conn, 300).await;
    until(&mut conn, EVENTS, 0).await;
    leaves_nothing(&mut conn).await;
    kill(process, Signal::SIGCONT).unwrap();
    assert_eq!(stream.expect("stream:reset").await.1["reason"], "too_old");
    publish(&mut conn, "company", 301..=301, 1).await;
    assert_eq!(stream.expect("test:n").await.1["n"], 301);
    one.stop().await;
}

#[tokio::test]
async fn marks_of_the_future_stop_neither_marks_nor_floor() {
    let url = database().await;
    let server = server(&url, &SETTINGS).await;
    let mut conn = connect(&url).await;
    publish(&mut conn, "company", 1..=5, 1).await;
    until(&mut conn, MARKED, 5).await;
    // The server's clock was a year ahead, and somebody set it right.
    sql(&mut conn, "update crewcast.marks set at = at + interval '1 year'").await;
    sql(&mut conn, "update crewcast.retention set at = at + interval '1 year'").await;
    publish(&mut conn, "company", 6..=8, 1).await;
    until(&mut conn, MARKED, 8).await;
    sql(&mut conn, "update crewcast.marks set at = at - interval '2 hours' where at < now()").await;
    until(&mut conn, EVENTS, 0).await;
    // A position that no transaction has reached: whatever is noted would have to include it.
    let future = RawSnapshot::parse("4000000000:4000000000:", 0).unwrap().clamp(3_999_999_999).unwrap();
    let mark = format!("insert into crewcast.marks (at, position, events) values (now(), '{future}', 0)");
    sql(&mut conn, &mark).await;
    publish(&mut conn, "company", 9..=9, 1).await;
    grow_old(&mut conn, 1).await;
    until(&mut conn, EVENTS, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn one_node_deletes_and_another_takes_over_when_it_is_gone() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let first = Process::start(&url, &SETTINGS).await;
    publish(&mut conn, "company", 1..=700, 1).await;
    grow_old(&mut conn, 700).await;
    until(&mut conn, DELETED, 700).await;
    let second = server(&url, &SETTINGS).await;
    let node = "select node from crewcast.retention";
    let whose = number(&mut conn, node).await;
    publish(&mut conn, "company", 1..=700, 1).await;
    grow_old(&mut conn, 700).await;
    until(&mut conn, "select (deleted > 700)::int::bigint from crewcast.retention", 1).await;
    drop(first);
    until(&mut conn, DELETED, 1400).await;
    until(&mut conn, &format!("select (node <> {whose})::int::bigint from crewcast.retention"), 1).await;
    assert_eq!(number(&mut conn, EVENTS).await, 0);
    leaves_nothing(&mut conn).await;
    second.stop().await;
}

#[tokio::test]
async fn a_deletion_whose_connection_is_cut_goes_on_where_it_was() {
    let url = database().await;
    let server = server(&url, &SETTINGS).await;
    let (mut conn, mut admin) = (connect(&url).await, connect(&url).await);
    for n in 1..=20 {
        publish(&mut conn, "company", n * 100..=n * 100 + 99, 1).await;
    }
    grow_old(&mut conn, 2000).await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where application_name = 'crewcast' and datname = current_database()";
    for deleted in [250, 1000] {
        until(&mut conn, &format!("select (deleted >= {deleted})::int::bigint from crewcast.retention"), 1).await;
        number(&mut admin, cut).await;
    }
    until(&mut conn, DELETED, 2000).await;
    assert_eq!(number(&mut conn, EVENTS).await, 0);
    leaves_nothing(&mut conn).await;
    server.stop().await;
}

#[tokio::test]
async fn a_role_that_may_only_use_the_tables_keeps_the_log_short() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let role = format!(
        "worker{}",
        number(&mut conn, "select oid::bigint from pg_database where datname = current_database()").await
    );
    sql(&mut conn, &format!("create role {role} login")).await;
    for grant in [
        "usage on schema crewcast",
        "select, insert, update, delete on all tables in schema crewcast",
        "execute on all functions in schema crewcast",
    ] {
        sql(&mut conn, &format!("grant {grant} to {role}")).await;
    }
    let server = server(&url.replace("user=postgres", &format!("user={role}")), &SETTINGS).await;
    let ana = Client::admin(&server);
    let mut stream = ana.follow("rooms=division:north").await;
    ana.project("north").await;
    stream.expect("project:created").await;
    publish(&mut conn, "company", 1..=600, 1).await;
    grow_old(&mut conn, 601).await;
    until(&mut conn, EVENTS, 0).await;
    leaves_nothing(&mut conn).await;
    server.stop().await;
    sql(&mut conn, &format!("drop owned by {role}")).await;
    sql(&mut conn, &format!("drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_deletes_stays_on_indexes_and_begins_in_no_rows_that_it_has_deleted() {
    let url = database().await;
    let (mut conn, mut old) = (connect(&url).await, connect(&url).await);
    sql(&mut conn, retention::PLANNING).await;
    let at = |xact: i64| Statement::new(DELETE, "bigint, bigint, bigint, bigint", format!("{xact}, 100000, 0, 100"));
    let statements = |xact: i64| {
        [
            at(xact).within(1200),
            Statement::new(FORGET, "bigint, bigint, bigint", format!("{xact}, {}, 100", xact + 10)).within(200),
            Statement::new(COUNT, "bigint[], bigint[], bigint", format!("'{{{xact}}}', '{{{}}}', 1000", xact + 10)),
        ]
    };
    prepare(&mut conn, &statements(1)).await;
    sql(&mut old, "begin isolation level repeatable read").await;
    number(&mut old, EVENTS).await;
    burn(&mut conn, 10).await;
    for statement in [
        "insert into crewcast.commits select generate_series(1, 50000)",
        "insert into crewcast.events select seq, (seq + 9) / 10, now(), 'test:one', array['topic:' || seq % 100, 'company'], '{}'
         from generate_series(1, 500000) seq",
        "insert into crewcast.event_rooms select hashtextextended(room, 0), xact, seq
         from crewcast.events, unnest(rooms) room",
    ] {
        sql(&mut conn, statement).await;
    }
    stay_on_indexes(&mut conn, &statements(2000), "crewcast.events, crewcast.event_rooms, crewcast.commits").await;
    // Under a snapshot from before, not one of these rows can be cleaned up.
    sql(&mut conn, "delete from crewcast.commits where xact < 40000").await;
    sql(&mut conn, "delete from crewcast.events where xact < 40000").await;
    stay_on_indexes(&mut conn, &statements(40_000), "crewcast.events, crewcast.event_rooms, crewcast.commits").await;
    sql(&mut old, "rollback").await;
}
