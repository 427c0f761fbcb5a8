//! A thousand transactions that are open at once, each beside an id that is not: a position of theirs is too long for a
//! header, so that ids name it.

use crewcast::{
    app::Server,
    log::named::{FIND, KEEP, SWEEP},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::crash::Cluster;
use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, Stream, burn, connect, database, number, publish, server, sql},
};

/// Open transactions.
const OPEN: i64 = 1100;

const EVENTS: i64 = 12;

const FIRST: &str = "k-.ABCDEFGHIJKLMNOPQRSTUV";

async fn open(client: &Client, id: &str) -> (Stream, String) {
    let mut stream = client.stream("rooms=topic:a", id).await;
    let (frame, data) = stream.expect("stream:open").await;
    assert_eq!(data["resume"], if id.is_empty() { "live" } else { "replayed" }, "{id}");
    (stream, frame.id)
}

async fn has(stream: &mut Stream, numbers: std::ops::RangeInclusive<i64>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in numbers {
        let (frame, data) = stream.expect("test:n").await;
        assert_eq!(data["n"], json!(n));
        ids.push(frame.id);
    }
    ids
}

async fn is_reset(node: &Server, id: &str, reason: &str) {
    let mut stream = Client::admin(node).stream("rooms=topic:a", id).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "reset", "{id}");
    let (frame, data) = stream.expect("stream:reset").await;
    assert_eq!(data["reason"], reason);
    assert_eq!(data["cursor"], frame.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_thousand_scattered_writers_every_id_fits_and_is_good_on_every_node() {
    let cluster = Cluster::start(false, &["max_prepared_transactions = 1200"]).await;
    let nodes = [server(&cluster.url, &["--heartbeat=100ms"]).await, server(&cluster.url, &["--ring-bytes=1"]).await];
    let (ana, ben) = (Client::admin(&nodes[0]), Client::admin(&nodes[1]));
    let mut conn = connect(&cluster.url).await;
    for nth in 0..OPEN {
        sql(&mut conn, "begin").await;
        sql(&mut conn, "select pg_current_xact_id()").await;
        sql(&mut conn, &format!("prepare transaction 'open {nth}'")).await;
        burn(&mut conn, 1).await;
    }
    publish(&mut conn, "topic:b", 0..=0, 0).await;
    let (cursor, _) = ana.read("/v1/divisions").await;
    let (mut live, first) = open(&ana, &cursor).await;
    assert_eq!(first, cursor);
    publish(&mut conn, "topic:a", 1..=EVENTS, 0).await;
    let mut ids = has(&mut live, 1..=EVENTS).await;
    ids.insert(0, cursor);
    let is_named = |id: &&String| id.contains(".") && id.len() < 100;
    assert_eq!(ids.iter().filter(is_named).count(), ids.len(), "{ids:?}");
    // From memory and from the log, of this node and of another one, which was never at these places.
    for (behind, id) in ids.iter().enumerate() {
        for client in [&ana, &ben] {
            let (mut stream, _) = open(client, id).await;
            has(&mut stream, behind as i64 + 1..=EVENTS).await;
        }
    }
    let beat = loop {
        let frame = live.next_or_beat().await.unwrap();
        if frame.event == "heartbeat" {
            break frame.id;
        }
    };
    assert_eq!(Some(&beat), ids.last());
    // A room that is joined from there, and a history that goes on from there.
    let mut joins = ben.stream("rooms=topic:c", "").await;
    let stream_id = joins.expect("stream:open").await.1["streamId"].as_str().unwrap().to_owned();
    let join = json!({ "join": ["topic:a"], "after": ids[3] });
    assert_eq!(ben.send(Method::POST, &format!("/v1/streams/{stream_id}/rooms"), join).await.0, StatusCode::OK);
    has(&mut joins, 4..=EVENTS).await;
    joins.expect("stream:rooms").await;
    let (_, page) = ana.read("/v1/rooms/topic:a/events?limit=5").await;
    assert_eq!(page["items"][4]["data"]["n"], 5);
    let (mut stream, _) = open(&ben, page["items"][4]["id"].as_str().unwrap()).await;
    has(&mut stream, 6..=EVENTS).await;
    let (_, page) = ben.read(&format!("/v1/rooms/topic:a/events?after={}", page["nextCursor"].as_str().unwrap())).await;
    assert_eq!(page["items"].as_array().unwrap().len() as i64, EVENTS - 5);
    // One row for a place, whatever was there.
    let rows = number(&mut conn, "select count(*) from crewcast.snapshots").await;
    assert!(rows > 0 && rows < EVENTS, "{rows}");
    // They end, one has published, and what is open no more is named no more.
    for nth in 0..OPEN {
        sql(&mut conn, &format!("commit prepared 'open {nth}'")).await;
    }
    publish(&mut conn, "topic:a", EVENTS + 1..=EVENTS + 2, 0).await;
    let ends = has(&mut live, EVENTS + 1..=EVENTS + 2).await;
    assert!(!ends[1].contains('.'), "{ends:?}");
    let (mut stream, _) = open(&ben, &ids[7]).await;
    has(&mut stream, 8..=EVENTS + 2).await;
    // Who brings the name of what has gone, or of what never was, is told.
    sql(&mut conn, "delete from crewcast.snapshots").await;
    is_reset(&nodes[1], &ids[7], "too_old").await;
    is_reset(&nodes[0], FIRST, "too_old").await;
    let join = json!({ "join": ["topic:d"], "after": ids[3] });
    let (status, problem) = ben.send(Method::POST, &format!("/v1/streams/{stream_id}/rooms"), join).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("cursor_not_resumable")));
    let path = format!("/v1/rooms/topic:a/events?after={}", ids[3]);
    assert_eq!(ben.send(Method::GET, &path, Value::Null).await.0, StatusCode::CONFLICT);
    drop((live, stream, joins));
    for node in nodes {
        node.stop().await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_named_set_goes_when_the_floor_has_passed_it_and_is_found_by_index() {
    let mut conn = connect(&database().await).await;
    let statements = [
        Statement::new(FIND, "text[]", "'{n7,n8}'").gives(2),
        Statement::new(KEEP, "text[], text[]", "'{n7,x}', '{B,B}'"),
        // It reads the floor from the one row of the log.
        Statement::new(SWEEP, "float8, bigint", "60, 10").may_read_all(),
    ];
    prepare(&mut conn, &statements).await;
    // K to P are 10 to 15.
    let sets = "insert into crewcast.snapshots (name, snapshot, kept_at)
                select 'n' || n, translate((n % 6)::text, '012345', 'KLMNOP'), now() - n * interval '1 second'
                from generate_series(1, 20000) n";
    sql(&mut conn, sets).await;
    stay_on_indexes(&mut conn, &statements, "crewcast.snapshots").await;
    sql(&mut conn, "update crewcast.log set floor = 'NCB'").await;
    let sweep = SWEEP.replace("$1", "60").replace("$2", "100000");
    sql(&mut conn, &sweep).await;
    let left = "select count(*) from crewcast.snapshots where end_id < 13";
    assert_eq!(number(&mut conn, &format!("{left} and kept_at < now() - interval '60 seconds'")).await, 0);
    assert!(number(&mut conn, left).await > 20, "those that are young stay");
    assert_eq!(number(&mut conn, "select count(*) from crewcast.snapshots where end_id >= 13").await, 9999);
    for (text, xmax) in [("B", 1), ("11xBBibp6wBA", 50_869), ("____________HA8___________H", i64::MAX)] {
        assert_eq!(number(&mut conn, &format!("select crewcast.snapshot_xmax('{text}')")).await, xmax);
    }
}
