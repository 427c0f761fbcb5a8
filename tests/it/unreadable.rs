//! A row that cannot be read is not an outage: whatever lies beside it arrives, and whoever misses it is told.

use std::path::PathBuf;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::{
    Client, Stream, connect, database, folder, number, private_postgres, publish, server, spoil, sql, token, url,
};

/// The next event must be this one of `test:n`.
async fn expect_n(stream: &mut Stream, n: i64) {
    let (_, data) = stream.expect("test:n").await;
    assert_eq!(data["n"], json!(n));
}

async fn expect_unreadable(stream: &mut Stream) {
    let (frame, reset) = stream.expect("stream:reset").await;
    assert_eq!((&reset["reason"], &reset["cursor"]), (&json!("unreadable"), &json!(frame.id)));
}

/// Publishes an event and damages its row, in one transaction: its number.
async fn publish_damaged(conn: &mut PgConnection, room: &str, damage: &str) -> i64 {
    sql(conn, "begin").await;
    let seq = number(conn, &format!("select crewcast.publish('{{{room}}}', 'test:n', '{{\"n\": -1}}')")).await;
    sql(conn, &format!("update crewcast.events set {damage} where seq = {seq}")).await;
    sql(conn, "commit").await;
    seq
}

async fn ready(client: &Client) {
    let ready = client.request(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
}

/// A list without a name, and times that are no dates: each fails where it is decoded, not in Postgres.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_which_nothing_can_be_read_resets_its_readers_and_nobody_else() {
    for damage in ["rooms = '{null}'", "at = 'infinity'", "at = '20000-01-01'"] {
        let url = database().await;
        let node = server(&url, &["--poll=20ms", "--ring-bytes=1"]).await;
        let (ana, mut conn) = (Client::admin(&node), connect(&url).await);
        let (before, _) = ana.read("/v1/divisions").await;
        let mut streams = [ana.follow("rooms=topic:a").await, ana.follow("rooms=topic:a,topic:b").await];
        let mut others = ana.follow("rooms=topic:b").await;
        publish(&mut conn, "topic:a", 1..=1, 1).await;
        for stream in &mut streams {
            expect_n(stream, 1).await;
        }
        let seq = publish_damaged(&mut conn, "topic:a", damage).await;
        for stream in &mut streams {
            expect_unreadable(stream).await;
        }
        publish(&mut conn, "topic:a", 2..=2, 1).await;
        publish(&mut conn, "topic:b", 3..=3, 1).await;
        expect_n(&mut streams[0], 2).await;
        expect_n(&mut streams[1], 2).await;
        expect_n(&mut streams[1], 3).await;
        expect_n(&mut others, 3).await;
        // Who comes back from before it has what lies before it, and is then told.
        let mut late = ana.stream_opened("rooms=topic:a", &before).await;
        expect_n(&mut late, 1).await;
        expect_unreadable(&mut late).await;
        publish(&mut conn, "topic:a", 4..=4, 1).await;
        expect_n(&mut late, 4).await;
        // A page ends before it, the next says that it is there, and how to go on.
        let path = format!("/v1/rooms/topic:a/events?after={before}");
        let (_, page) = ana.read(&path).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 1, "{page}");
        let path = format!("/v1/rooms/topic:a/events?after={}", page["nextCursor"].as_str().unwrap());
        let (status, problem) = ana.send(Method::GET, &path, Value::Null).await;
        assert_eq!((status, &problem["code"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("internal")));
        let behind = problem["detail"].as_str().unwrap().split("after=").nth(1).unwrap().trim_end_matches('.');
        let (_, page) = ana.read(&format!("/v1/rooms/topic:a/events?after={behind}")).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 2, "{page}");
        let (status, _) = ana.send(Method::GET, &format!("/v1/events/{seq}"), Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "nobody knows who may read it");
        ready(&ana).await;
        assert!(ana.metrics().await["crewcast_unreadable_total{what=\"event\"}"] >= 3.0);
        node.stop().await;
    }
}

/// Events whose payload is large enough to be kept apart from their rows.
async fn publish_large(conn: &mut PgConnection, n: i64) {
    let text = "(select string_agg(gen_random_uuid()::text, '') from generate_series(1, 400))";
    let call = format!("select crewcast.publish('{{topic:a}}', 'test:n', json_build_object('n', {n}, 'text', {text}))");
    sql(conn, &call).await;
}

/// Where a table's bytes are.
async fn file_of(conn: &mut PgConnection, table: &str) -> PathBuf {
    let statement = format!("select current_setting('data_directory') || '/' || pg_relation_filepath({table})");
    let path: String = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(conn).await.unwrap();
    path.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_payload_the_disk_has_lost_goes_out_as_a_reference() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let url = url(&postgres.connect_options(), "crewcast");
    // It does not look before the damage is done.
    let node = server(&url, &["--poll=1h", "--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&node), connect(&url).await);
    let (before, _) = ana.read("/v1/divisions").await;
    let mut live = ana.stream_opened("rooms=topic:a", "").await;
    publish(&mut conn, "topic:a", 1..=1, 1).await;
    publish_large(&mut conn, 2).await;
    publish(&mut conn, "topic:a", 3..=3, 1).await;
    let seq = number(&mut conn, "select max(seq) - 1 from crewcast.events").await;
    let toast = "(select reltoastrelid from pg_class where oid = 'crewcast.events'::regclass)";
    let file = file_of(&mut conn, toast).await;
    drop(conn);
    postgres.stop().await;
    std::fs::write(&file, b"").unwrap();
    let postgres = private_postgres(folder.path().to_owned(), true).await;

    let as_reference = json!(format!("/v1/events/{seq}"));
    let mut late = ana.stream_when_there("rooms=topic:a", &before).await;
    for stream in [&mut live, &mut late] {
        expect_n(stream, 1).await;
        assert_eq!(stream.expect("test:n").await.1["ref"], as_reference);
        expect_n(stream, 3).await;
    }
    let (_, page) = ana.read(&format!("/v1/rooms/topic:a/events?after={before}")).await;
    let data = |nth: usize| &page["items"][nth]["data"];
    assert_eq!((&data(0)["n"], &data(1)["ref"], &data(2)["n"]), (&json!(1), &as_reference, &json!(3)), "{page}");
    let (status, problem) = ana.send(Method::GET, &format!("/v1/events/{seq}"), Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("internal")));
    let mia = Client::new(&node, &token("mia", &[]));
    let (status, _) = mia.send(Method::GET, &format!("/v1/events/{seq}"), Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "who may not read it is not told that it is there");
    ready(&ana).await;
    node.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_the_log_that_the_disk_has_spoiled_resets_its_readers_and_the_log_goes_on() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let url = url(&postgres.connect_options(), "crewcast");
    let node = server(&url, &["--poll=1h", "--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&node), connect(&url).await);
    let mut streams = [ana.stream_opened("rooms=topic:a", "").await, ana.stream_opened("rooms=topic:a", "").await];
    let mut others = ana.stream_opened("rooms=topic:b", "").await;
    // Several pages: the first one is lost, and takes no new rows.
    publish(&mut conn, "topic:a", 1..=100, 300).await;
    let file = file_of(&mut conn, "'crewcast.events'").await;
    drop(conn);
    postgres.stop().await;
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[..8192].fill(0xaa);
    std::fs::write(&file, bytes).unwrap();
    let postgres = private_postgres(folder.path().to_owned(), true).await;

    for stream in &mut streams {
        expect_unreadable(stream).await;
    }
    let mut conn = connect(&url).await;
    publish(&mut conn, "topic:a", 201..=201, 1).await;
    publish(&mut conn, "topic:b", 202..=202, 1).await;
    // The node looks when it is brought a position that it has not reached.
    let (cursor, _) = ana.read("/v1/divisions").await;
    drop(ana.stream_opened("", &cursor).await);
    for stream in &mut streams {
        expect_n(stream, 201).await;
    }
    expect_n(&mut others, 202).await;
    ready(&ana).await;
    node.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_another_node_that_cannot_be_read_hides_none_of_the_others() {
    let url = database().await;
    let (one, two) = (server(&url, &[]).await, server(&url, &[]).await);
    let mut conn = connect(&url).await;
    let ben = Client::new(&one, &token("ben", &[crewcast::auth::Role::Member]));
    let _bens = ben.stream_opened("rooms=company", "").await;
    let rows = "select count(*) from crewcast.presence where sub = 'ben'";
    while number(&mut conn, rows).await == 0 {}
    // Written again, as another batch of its node, and so that nobody can read it.
    sql(&mut conn, "update crewcast.presence set rooms = '{null}', batch = batch + 1 where sub = 'ben'").await;
    let mia = Client::new(&one, &token("mia", &[crewcast::auth::Role::Member]));
    let _mias = mia.stream_opened("rooms=company", "").await;
    let ana = Client::admin(&two);
    let here = async || ana.send(Method::GET, "/v1/presence?room=company", Value::Null).await.1.to_string();
    let shown = async { while !here().await.contains("\"mia\"") {} };
    tokio::time::timeout(crate::support::PATIENCE, shown).await.expect("mia is shown on the other node");
    assert!(ana.metrics().await["crewcast_unreadable_total{what=\"presence\"}"] >= 1.0);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_rights_cannot_be_read_loses_the_room_and_the_log_goes_on_for_all() {
    let url = database().await;
    let node = server(&url, &["--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&node), connect(&url).await);
    let project = ana.project("north").await;
    let (room, path) = (format!("project:{project}"), format!("/v1/projects/{project}/members"));
    for sub in ["ben", "mia", "zoe"] {
        let (status, _) = ana.send(Method::PUT, &format!("{path}/{sub}"), json!({ "role": "viewer" })).await;
        assert_eq!(status, StatusCode::OK);
    }
    let query = format!("rooms=company,{room}");
    let follow = async |sub| Client::new(&node, &token(sub, &[])).follow(&query).await;
    let (mut bens, mut mias) = (follow("ben").await, follow("mia").await);
    spoil(&mut conn, "members", "sub", "ben").await;
    let (status, _) = ana.send(Method::DELETE, &format!("{path}/zoe"), Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(bens.expect("stream:rooms").await.1["left"], json!([{ "room": room, "reason": "revoked" }]));
    assert_eq!(mias.expect("membership:changed").await.1["userId"], "zoe");
    publish(&mut conn, &room, 1..=1, 1).await;
    publish(&mut conn, "company", 2..=2, 1).await;
    expect_n(&mut mias, 1).await;
    expect_n(&mut mias, 2).await;
    expect_n(&mut bens, 2).await;
    ready(&ana).await;
    assert!(ana.metrics().await["crewcast_unreadable_total{what=\"right\"}"] >= 1.0);
    node.stop().await;
}
