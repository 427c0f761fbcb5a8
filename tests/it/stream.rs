//! A stream from its first frame to its last: what it carries, how it keeps alive, and when it ends.

use std::collections::BTreeSet;

use crewcast::auth::{Claims, Role};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use time::OffsetDateTime;

use crate::support::{
    Client, Process, Slow, Stream, connect, database, mint, private_postgres, publish, server, sql, token, url,
};

/// The stream's next frame is a heartbeat; its id.
async fn beat(stream: &mut Stream) -> String {
    let frame = stream.next_or_beat().await.expect("the stream goes on");
    assert_eq!(frame.event, "heartbeat");
    let data: Value = serde_json::from_str(&frame.data).unwrap();
    OffsetDateTime::parse(data["at"].as_str().unwrap(), &time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(stream.last_id(), frame.id, "a heartbeat carries the id reached");
    frame.id
}

async fn expect_n(stream: &mut Stream, n: i64) {
    let (_, data) = stream.expect("test:n").await;
    assert_eq!(data["n"], json!(n));
}

#[tokio::test]
async fn a_quiet_streams_heartbeats_move_on_with_the_log_and_can_be_resumed_from() {
    let url = database().await;
    let server = server(&url, &["--heartbeat=200ms", "--poll=20ms", "--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut stream = ana.stream("rooms=topic:quiet", "").await;
    let (open, data) = stream.expect("stream:open").await;
    assert_eq!(data["heartbeatMs"], 200);
    assert_eq!(beat(&mut stream).await, open.id, "nothing happened");
    publish(&mut conn, "topic:loud", 1..=3, 1).await;
    let mut moved = beat(&mut stream).await;
    while moved == open.id {
        moved = beat(&mut stream).await;
    }
    publish(&mut conn, "topic:quiet", 4..=4, 1).await;
    expect_n(&mut stream, 4).await;
    for (query, expected) in [("rooms=topic:quiet", &[4][..]), ("rooms=topic:quiet,topic:loud", &[4])] {
        let mut resumed = ana.stream(query, &moved).await;
        assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
        for n in expected {
            expect_n(&mut resumed, *n).await;
        }
    }
    // The log lets go of what the heartbeat has passed: a stream that was quiet for long still resumes.
    let floor = moved.split_once('-').unwrap().1;
    sql(&mut conn, &format!("update crewcast.log set floor = '{floor}'")).await;
    let mut resumed = ana.stream("rooms=topic:quiet", &moved).await;
    assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
    expect_n(&mut resumed, 4).await;
    assert_eq!(ana.stream("", &open.id).await.expect("stream:open").await.1["resume"], "reset");
    server.stop().await;
}

#[tokio::test]
async fn types_are_names_and_prefixes_and_what_cannot_exist_is_refused() {
    let url = database().await;
    let server = server(&url, &["--heartbeat=100ms", "--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.stream("types=erp,test:yes", "").await;
    let (open, _) = live.expect("stream:open").await;
    for kind in ["test:no", "erpx:a", "erp:one", "test:yes", "test:yes2", "er:p", "erp:two"] {
        sql(&mut conn, &format!("select crewcast.publish('{{company}}', '{kind}', '{{}}')")).await;
    }
    let mut replayed = ana.stream("types=test:yes,,erp", &open.id).await;
    replayed.expect("stream:open").await;
    for stream in [&mut live, &mut replayed] {
        for kind in ["erp:one", "test:yes", "erp:two"] {
            stream.expect(kind).await;
        }
        beat(stream).await;
    }
    let mut none = ana.stream("types=project:updated", &open.id).await;
    none.expect("stream:open").await;
    let passed = beat(&mut none).await;
    assert_ne!(passed, open.id, "what the filter dropped was passed");
    for types in ["project:painted", "stream:x", "Project", "a%20b", "a:b:c", ":a", "a:", "a:%C3%A4", "erp:%0A"] {
        let response = ana.request(Method::GET, &format!("/events?types={types}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{types}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "invalid_query", "{types}");
    }
    server.stop().await;
    live.expect("stream:closing").await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does_and_is_told_before() {
    let server = server(&database().await, &["--expiring-ahead=1s"]).await;
    let claims = |left: i64| {
        let exp = OffsetDateTime::now_utc().unix_timestamp() + left;
        Claims::new("ana".parse().unwrap(), exp)
    };
    let ending = claims(3);
    let mut stream = Client::new(&server, &mint(&ending)).stream("", "").await;
    stream.expect("stream:open").await;
    let (_, expiring) = stream.expect("stream:expiring").await;
    let at = time::format_description::well_known::Rfc3339;
    let at = OffsetDateTime::parse(expiring["expiresAt"].as_str().unwrap(), &at).unwrap();
    assert_eq!(at.unix_timestamp(), ending.exp);
    let (closing, data) = stream.expect("stream:closing").await;
    assert_eq!((&data["reason"], data["reconnectInMs"].as_u64()), (&json!("expired"), closing.retry));
    assert!(OffsetDateTime::now_utc() >= at, "not before its time");
    assert!(stream.next().await.is_none());
    // The leeway is for tokens that arrive: a stream has none.
    let mut late = Client::new(&server, &mint(&claims(-1))).stream("", "").await;
    late.expect("stream:open").await;
    let mut frame = late.next().await.unwrap();
    if frame.event == "stream:expiring" {
        frame = late.next().await.unwrap();
    }
    assert!(frame.event == "stream:closing" && frame.data.contains("expired"), "{frame:?}");
    assert!(late.next().await.is_none());
    let response = Client::new(&server, &mint(&claims(-60))).request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "never anonymous");
    server.stop().await;
}

#[tokio::test]
async fn a_signal_ends_every_stream_and_the_process_ends_well() {
    let mut server = Process::start(&database().await, &[]).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = ana.stream("", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    kill(Pid::from_raw(server.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    for stream in &mut streams {
        let (closing, data) = stream.expect("stream:closing").await;
        assert_eq!((&data["reason"], data["reconnectInMs"].as_u64()), (&json!("draining"), closing.retry));
        assert!(stream.next().await.is_none());
    }
    assert!(server.child.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_lags_gets_everything_once_and_in_order() {
    const EVENTS: i64 = 6000;
    let url = database().await;
    let server = server(&url, &["--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let admin = token("ana", &[Role::Admin]);
    let mut lagging = Slow::open(&server.address.to_string(), &admin, "rooms=topic:a,topic:b", "").await;
    lagging.raw = None;
    lagging.expect("stream:open").await;
    let mut quick = ana.stream("rooms=topic:b", "").await;
    quick.expect("stream:open").await;
    // More than sockets hold, and then more than the channel does.
    for first in (1..=EVENTS).step_by(100) {
        let room = if first % 200 == 1 { "topic:a" } else { "topic:b" };
        publish(&mut conn, room, first..=first + 99, 4000).await;
        if room == "topic:b" {
            for n in first..first + 100 {
                expect_n(&mut quick, n).await;
            }
        }
    }
    for n in 1..=EVENTS {
        assert_eq!(lagging.expect("test:n").await.1["n"], json!(n));
    }
    publish(&mut conn, "topic:a", EVENTS + 1..=EVENTS + 1, 1).await;
    assert_eq!(lagging.expect("test:n").await.1["n"], json!(EVENTS + 1), "live again");
    let stats: Value = ana.request(Method::GET, "/stats").send().await.unwrap().json().await.unwrap();
    assert!(stats["replays"]["queueOverflows"].as_u64() > Some(0), "it did fall behind: {stats}");
    drop(lagging);
    server.stop().await;
}

#[tokio::test]
async fn ones_own_room_is_always_joined_and_refusals_are_listed() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--rooms-max=3"]).await;
    let (ben, mut conn) = (Client::new(&server, &token("ben", &[])), connect(&url).await);
    let mut stream = ben.stream("rooms=company,topic:secret,user:ana,company", "").await;
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["rooms"], json!(["company", "user:ben"]));
    let forbidden = |room: &str| json!({ "room": room, "reason": "forbidden" });
    assert_eq!(open["refused"], json!([forbidden("topic:secret"), forbidden("user:ana")]));
    for room in ["topic:secret", "user:ana", "user:ben"] {
        sql(&mut conn, &format!("select crewcast.publish('{{{room}}}', 'test:n', '{{\"n\":1}}')")).await;
    }
    sql(&mut conn, "select crewcast.publish('{company,user:ben,user:ana}', 'test:n', '{\"n\":2}')").await;
    sql(&mut conn, "select crewcast.publish('{company}', 'test:n', '{\"n\":3}')").await;
    expect_n(&mut stream, 1).await;
    let (_, both) = stream.expect("test:n").await;
    assert_eq!((&both["n"], &both["meta"]["rooms"]), (&json!(2), &json!(["company"])), "people's rooms stay unsaid");
    expect_n(&mut stream, 3).await;
    for (rooms, status) in [
        ("topic:secret", StatusCode::FORBIDDEN),
        ("topic:secret,user:ana", StatusCode::FORBIDDEN),
        ("company,company,topic:a,user:ben,topic:a", StatusCode::OK),
        ("company,division:a,topic:a,topic:b", StatusCode::BAD_REQUEST),
        ("company,nowhere", StatusCode::BAD_REQUEST),
        (",,", StatusCode::OK),
        ("user:ben", StatusCode::OK),
    ] {
        let response = ben.request(Method::GET, &format!("/events?rooms={rooms}")).send().await.unwrap();
        assert_eq!(response.status(), status, "{rooms}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_payload_goes_out_compact_with_meta_last_and_a_large_one_as_a_reference() {
    let url = database().await;
    let server = server(&url, &["--event-bytes-max=1KiB", "--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.stream("", "").await;
    let (open, _) = live.expect("stream:open").await;
    let odd = "{ \"b\" :\n\t[1.0, 1e2 ,\"x  \\n \\\" y\\\\\" ],\r\n \"a\":{ } , \"\u{2028}\":\"\\u2028\" }";
    let compact = "{\"b\":[1.0,1e2,\"x  \\n \\\" y\\\\\"],\"a\":{},\"\u{2028}\":\"\\u2028\",\"meta\":{\"seq\":";
    for data in [odd, "{ }"] {
        let statement = sqlx::query("select crewcast.publish('{company}', 'test:n', $1::text::json)");
        statement.bind(data).execute(&mut conn).await.unwrap();
    }
    // One byte below, at, and above the bound: `{"n" : 3, "pad" : ".."}`.
    for length in [1023, 1024, 1025] {
        publish(&mut conn, "company", 3..=3, length - r#"{"n" : 3, "pad" : ""}"#.len()).await;
    }
    let mut lines = Vec::new();
    for _ in 0..5 {
        lines.push(live.expect("test:n").await.0.data);
    }
    assert!(lines[0].starts_with(compact), "{}", lines[0]);
    assert!(lines[1].starts_with("{\"meta\":{\"seq\":2,\"at\":\""), "{}", lines[1]);
    for line in &lines {
        assert!(line.ends_with("\"rooms\":[\"company\"]}}"), "{line}");
    }
    assert!(lines[2].starts_with("{\"n\":3,\"pad\":\"x") && lines[3].starts_with("{\"n\":3,\"pad\":\"x"));
    assert!(lines[4].starts_with("{\"ref\":\"/v1/events/5\",\"meta\":{\"seq\":5,"), "{}", lines[4]);
    let (status, whole) = ana.send(Method::GET, "/v1/events/5", Value::Null).await;
    assert_eq!((status, &whole["event"]), (StatusCode::OK, &json!("test:n")));
    assert_eq!(whole["data"]["pad"].as_str().unwrap().len(), 1025 - r#"{"n" : 3, "pad" : ""}"#.len());
    let by_ref: Value = serde_json::from_str(&lines[4]).unwrap();
    assert_eq!(whole["data"]["meta"], by_ref["meta"]);
    let mut replayed = ana.stream("", &open.id).await;
    replayed.expect("stream:open").await;
    for line in lines {
        assert_eq!(replayed.expect("test:n").await.0.data, line, "byte for byte what went out live");
    }
    server.stop().await;
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    items: Vec<Item>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    event: String,
    data: Box<RawValue>,
}

async fn history(client: &Client, query: &str) -> (String, History) {
    let request = client.request(Method::GET, &format!("/v1/rooms/topic:a/events?{query}"));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let cursor = response.headers()["crewcast-cursor"].to_str().unwrap().to_owned();
    (cursor, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rooms_history_pages_to_the_whole_and_a_stream_goes_on_from_any_of_its_ids() {
    const EVENTS: i64 = 2600;
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--floor-every=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.stream("rooms=topic:a", "").await;
    live.expect("stream:open").await;
    let mut lines = Vec::new();
    for first in (1..=EVENTS).step_by(50) {
        publish(&mut conn, "topic:a", first..=first + 49, 1).await;
        publish(&mut conn, "topic:b", first..=first + 20, 1).await;
        for _ in 0..50 {
            lines.push(live.expect("test:n").await.0.data);
        }
    }
    for limit in [7, 200] {
        let (mut items, mut after, mut first) = (Vec::new(), String::new(), None);
        loop {
            let (cursor, page) = history(&ana, &format!("limit={limit}&after={after}")).await;
            first.get_or_insert(cursor);
            assert!(page.items.len() <= limit);
            items.extend(page.items);
            match page.next_cursor {
                Some(next) => after = next,
                None => break,
            }
        }
        assert!(items.iter().all(|item| item.event == "test:n"));
        assert!(items.iter().map(|item| item.data.get()).eq(lines.iter().map(String::as_str)), "each once, as it was");
        for at in [0, 6, 255, 256, 999, 1300, items.len() - 1] {
            let mut resumed = ana.stream("rooms=topic:a", &items[at].id).await;
            assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
            for line in &lines[at + 1..] {
                assert_eq!(&resumed.expect("test:n").await.0.data, line, "behind item {at} of pages of {limit}");
            }
        }
        let mut resumed = ana.stream("rooms=topic:a", &first.unwrap()).await;
        assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
    }
    let (_, page) = history(&ana, &format!("after={}", live.last_id())).await;
    assert!(page.items.is_empty() && page.next_cursor.is_none(), "a stream's id is a cursor too");
    server.stop().await;
}

/// Takes the next frame; an event's project is none that arrived before.
async fn take(stream: &mut Stream, arrived: &mut BTreeSet<String>) -> String {
    let frame = stream.next_or_beat().await.expect("the stream stays open");
    if frame.event != "heartbeat" {
        assert_eq!(frame.event, "project:created");
        let project: Value = serde_json::from_str(&frame.data).unwrap();
        assert!(arrived.insert(project["id"].as_str().unwrap().to_owned()), "twice: {project}");
    }
    frame.event
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_a_restart_of_postgres_and_miss_nothing() {
    let folder = tempfile::Builder::new().prefix("crewcast-restart-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let server = server(&url(&options, options.get_database().unwrap()), &["--heartbeat=200ms", "--poll=20ms"]).await;
    let ana = Client::admin(&server);
    ana.project("north").await;
    let mut stream = ana.stream("rooms=division:north", "").await;
    stream.expect("stream:open").await;
    let (mut promised, mut arrived) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..2 {
        let old = postgres.postmaster().expect("it runs");
        kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL).unwrap();
        let mut refused = 0;
        loop {
            let body = json!({ "name": "On the way", "division": "north" });
            let response = ana.request(Method::POST, "/v1/projects").json(&body).send().await.unwrap();
            if response.status() == StatusCode::CREATED {
                let project: Value = response.json().await.unwrap();
                promised.insert(project["id"].as_str().unwrap().to_owned());
                if refused > 0 || postgres.postmaster().is_some_and(|new| new != old) {
                    break;
                }
                continue;
            }
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!(after > 0);
            assert_eq!(response.json::<Value>().await.unwrap()["code"], "unavailable");
            refused += 1;
            // The stream is open and beats while writes are refused.
            while take(&mut stream, &mut arrived).await != "heartbeat" {}
        }
    }
    while !promised.is_subset(&arrived) {
        take(&mut stream, &mut arrived).await;
    }
    drop(stream);
    server.stop().await;
    postgres.stop().await;
}
