//! Each bound when it is full: it does what its policy says, and the figures say so.

use std::{collections::BTreeSet, time::Duration};

use crewcast::{app::Server, auth::Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Client, PATIENCE, Slow, Stream, config, connect, database, mint, publish, server, sql, token};

async fn expect_all(stream: &mut Stream, numbers: std::ops::RangeInclusive<i64>) {
    for n in numbers {
        assert_eq!(stream.expect("test:n").await.1["n"], json!(n));
    }
}

#[tokio::test]
async fn one_stream_more_than_fits_is_told_to_come_back_until_another_leaves() {
    let server = server(&database().await, &["--streams-max=3"]).await;
    let ana = Client::admin(&server);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = ana.stream("", "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    for refused in 1..=2 {
        let response = ana.request(Method::GET, "/events").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "overloaded");
        assert_eq!(ana.stats().await["streams"]["refused"], json!({ "overload": refused }));
    }
    streams.pop();
    let stats = ana.stats_when(|stats| stats["streams"]["open"] == 2).await;
    assert_eq!((&stats["streams"]["max"], &stats["streams"]["opened"]), (&json!(3), &json!(3)), "{stats}");
    ana.stream("", "").await.expect("stream:open").await;
    drop(streams);
    server.stop().await;
}

#[tokio::test]
async fn recent_events_take_no_more_memory_than_they_may_and_older_ones_come_from_postgres() {
    const EVENTS: i64 = 1000;
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--ring-bytes=256KiB"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.stream("rooms=topic:a", "").await;
    let mut ids = vec![live.expect("stream:open").await.0.id];
    for first in (1..=EVENTS).step_by(20) {
        publish(&mut conn, "topic:a", first..=first + 19, 1000).await;
        for n in first..first + 20 {
            let (frame, data) = live.expect("test:n").await;
            assert_eq!(data["n"], json!(n));
            ids.push(frame.id);
        }
        let ring = ana.metrics().await["crewcast_ring_bytes"];
        assert!(ring > 0.0 && ring <= f64::from(256 << 10), "{ring}");
    }
    for (seen, sources) in [(EVENTS - 100, json!({ "ring": 1 })), (100, json!({ "ring": 1, "log": 1 }))] {
        let mut resumed = ana.stream("rooms=topic:a", &ids[seen as usize]).await;
        resumed.expect("stream:open").await;
        expect_all(&mut resumed, seen + 1..=EVENTS).await;
        assert_eq!(ana.stats().await["replays"]["bySource"], sources, "behind event {seen}");
    }
    drop(live);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_take_turns_to_read_history_from_postgres() {
    const STREAMS: i64 = 30;
    const EVENTS: i64 = 600;
    let url = database().await;
    let mut config = config(&url, &["--poll=20ms", "--ring-bytes=1"]);
    // Requests have the other one.
    config.database.database_connections = 2;
    let server = Server::start(config, |_| {}).await.unwrap();
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.stream("rooms=topic:a", "").await;
    let (open, _) = live.expect("stream:open").await;
    publish(&mut conn, "topic:a", 1..=EVENTS, 100).await;
    expect_all(&mut live, 1..=EVENTS).await;
    // As long as nobody can read their events, the first waits for Postgres and the others for the first.
    sql(&mut conn, "begin").await;
    sql(&mut conn, "lock table crewcast.events, crewcast.event_rooms in access exclusive mode").await;
    let mut replays = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let (ana, id) = (ana.clone(), open.id.clone());
        replays.spawn(async move {
            let mut stream = ana.stream("rooms=topic:a", &id).await;
            assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
            expect_all(&mut stream, 1..=EVENTS).await;
        });
    }
    let held = ana.stats_when(|stats| stats["replays"]["waiting"] == STREAMS - 1).await;
    assert_eq!(held["replays"]["reading"], 1, "{held}");
    sql(&mut conn, "commit").await;
    while !replays.is_empty() {
        let metrics = ana.metrics().await;
        assert!(metrics["crewcast_replays_reading"] <= 1.0, "{metrics:?}");
        while let Some(replay) = replays.try_join_next() {
            replay.unwrap();
        }
    }
    let stats = ana.stats().await;
    assert_eq!((&stats["replays"]["waiting"], &stats["replays"]["reading"]), (&json!(0), &json!(0)));
    assert_eq!(stats["replays"]["bySource"], json!({ "log": STREAMS }));
    drop(live);
    server.stop().await;
}

#[tokio::test]
async fn a_body_and_a_list_of_rooms_may_be_as_long_as_they_may_be_and_no_longer() {
    let server = server(&database().await, &["--body-bytes-max=1KiB", "--rooms-max=3"]).await;
    let ana = Client::admin(&server);
    for (length, status) in [(1024, StatusCode::CREATED), (1025, StatusCode::PAYLOAD_TOO_LARGE)] {
        let body = format!("{:length$}", r#"{"name":"North"}"#);
        let request = ana.request(Method::PUT, "/v1/divisions/north").header("content-type", "application/json");
        assert_eq!(request.body(body).send().await.unwrap().status(), status, "{length} bytes");
    }
    for (rooms, status) in
        [("topic:a,topic:b,topic:c", StatusCode::OK), ("company,topic:a,topic:b,topic:c", StatusCode::BAD_REQUEST)]
    {
        let response = ana.request(Method::GET, &format!("/events?rooms={rooms}")).send().await.unwrap();
        assert_eq!(response.status(), status, "{rooms}");
    }
    let metrics = ana.metrics().await;
    for code in ["body_too_large", "too_many_rooms"] {
        assert_eq!(metrics[&format!("crewcast_problems_total{{code=\"{code}\"}}")], 1.0);
    }
    server.stop().await;
}

/// Sends the beginning of a request, then a byte now and then, until the server ends it: what it answered.
async fn trickle(server: &Server, beginning: &str) -> String {
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (mut reads, mut writes) = socket.into_split();
    writes.write_all(beginning.as_bytes()).await.unwrap();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let trickling = async {
        loop {
            pace.tick().await;
            if writes.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = vec![0; 4096];
    let answered = async {
        let read = tokio::time::timeout(PATIENCE, reads.read(&mut answer)).await.expect("the server ends it");
        read.unwrap_or(0)
    };
    let read = tokio::select! {
        () = trickling => unreachable!("it goes on for ever"),
        read = answered => read,
    };
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_request_that_trickles_in_is_ended() {
    let server = server(&database().await, &["--request-timeout=300ms"]).await;
    let head = format!(
        "PUT /v1/divisions/north HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n",
        token("ana", &[Role::Admin])
    );
    let body =
        trickle(&server, &format!("{head}Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{{")).await;
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    assert!(body.contains(r#""code":"timeout""#), "{body}");
    let head = trickle(&server, &format!("{head}X-More: ")).await;
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408 "), "{head}");
    let ana = Client::admin(&server);
    assert_eq!(ana.metrics().await["crewcast_problems_total{code=\"timeout\"}"], 1.0);
    // Only the one that asks is left.
    while ana.metrics().await["crewcast_connections"] > 1.0 {}
    server.stop().await;
}

/// More than sockets hold.
async fn fill(url: &str) {
    let mut conn = connect(url).await;
    for first in (1..=2500).step_by(100) {
        publish(&mut conn, "topic:a", first..=first + 99, 4000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_takes_nothing_is_cut_and_the_client_resumes() {
    let url = database().await;
    let server = server(&url, &["--stall-timeout=500ms"]).await;
    let ana = Client::admin(&server);
    let admin = token("ana", &[Role::Admin]);
    let mut slow = Slow::open(&server.address.to_string(), &admin, "rooms=topic:a", "").await;
    slow.raw = None;
    let mut id = slow.expect("stream:open").await.0.id;
    // One that has nothing to take is not stalled.
    let mut quiet = ana.stream("rooms=topic:quiet", "").await;
    quiet.expect("stream:open").await;
    fill(&url).await;
    let stats = ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    assert_eq!(stats["deliveries"]["stalledConnections"], 1, "{stats}");
    assert_eq!(stats["streams"]["closed"], json!({ "gone": 1 }), "{stats}");
    // What sockets held arrives; the rest comes after a resume.
    let mut seen = 0;
    while let Some(frame) = slow.next().await {
        seen += 1;
        assert!(frame.data.starts_with(&format!("{{\"n\":{seen},")), "{seen}");
        id = frame.id;
    }
    assert!((1..2500).contains(&seen), "{seen}");
    let mut resumed = ana.stream("rooms=topic:a", &id).await;
    resumed.expect("stream:open").await;
    expect_all(&mut resumed, seen + 1..=2500).await;
    let mut conn = connect(&url).await;
    publish(&mut conn, "topic:quiet", 1..=1, 1).await;
    expect_all(&mut quiet, 1..=1).await;
    drop((resumed, quiet));
    server.stop().await;
}

/// Reads for several times as long as a peer may acknowledge nothing. A kernel acknowledges in steps of up to all that it
/// takes ahead, so that the time must be enough to read that: here, and with the defaults, it is several times enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_slow_but_steady_is_not_cut() {
    let url = database().await;
    let server = server(&url, &["--stall-timeout=1500ms"]).await;
    let ana = Client::admin(&server);
    let admin = token("ana", &[Role::Admin]);
    let mut steady = Slow::open_ahead(32 * 1024, &server.address.to_string(), &admin, "rooms=topic:a", "").await;
    steady.raw = None;
    steady.expect("stream:open").await;
    // Nobody is steady who waits until all is there.
    let filling = tokio::spawn(async move { fill(&url).await });
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut n = 0;
    // The pace is what is tested: some 160 kB each second.
    while tokio::time::Instant::now() < until {
        pace.tick().await;
        for _ in 0..4 {
            n += 1;
            assert_eq!(steady.expect("test:n").await.1["n"], json!(n));
        }
    }
    let stats = ana.stats().await;
    assert_eq!(
        (&stats["streams"]["open"], &stats["deliveries"]["stalledConnections"]),
        (&json!(1), &json!(0)),
        "{stats}"
    );
    while n < 2500 {
        n += 1;
        assert_eq!(steady.expect("test:n").await.1["n"], json!(n));
    }
    filling.await.unwrap();
    drop(steady);
    server.stop().await;
}

/// The metrics that are declared, each with its type.
fn declared() -> Vec<(String, &'static str)> {
    let source = include_str!("../../src/metrics.rs");
    let (_, list) = source.split_once("\nmetrics! {").unwrap();
    let (list, _) = list.split_once("\n}").unwrap();
    let one = |line: &str| {
        let (name, rest) = line.trim().split_once(": ")?;
        let (kind, _) = rest.split_once(" = ")?;
        let (kind, unit) = kind
            .split_once(" in ")
            .map_or((kind, String::new()), |(kind, unit)| (kind, format!("_{}", unit.to_lowercase())));
        let kind = match kind {
            "Gauge" => "gauge",
            "Seconds" => "histogram",
            _ => "counter",
        };
        Some((format!("crewcast_{name}{unit}"), kind))
    };
    list.lines().filter_map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_figures_agree_with_what_happened_and_with_each_other_and_name_nobody() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--expiring-ahead=1ms"]).await;
    let (ana, mut conn) = (Client::new(&server, &token("clandestine-ana", &[Role::Admin])), connect(&url).await);
    ana.project("clandestine-north").await;
    let mut streams = Vec::new();
    for rooms in ["topic:clandestine-a", "topic:clandestine-a,topic:clandestine-b", "topic:clandestine-b"] {
        let mut stream = ana.stream(&format!("rooms={rooms}"), "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    for (room, first) in [("topic:clandestine-a", 1), ("topic:clandestine-b", 11)] {
        let call = format!("crewcast.publish('{{{room}}}', 'clandestine:n', json_build_object('n', n))");
        sql(&mut conn, &format!("select count({call}) from generate_series({first}, {first} + 9) n")).await;
    }
    for (stream, events) in streams.iter_mut().zip([10, 20, 10]) {
        for _ in 0..events {
            stream.expect("clandestine:n").await;
        }
    }
    for (id, reset) in [("nonsense", "malformed"), ("0ther-B", "foreign"), ("more nonsense", "malformed")] {
        let mut stream = ana.stream("rooms=topic:clandestine-a", id).await;
        stream.expect("stream:open").await;
        assert_eq!(stream.expect("stream:reset").await.1["reason"], reset);
    }
    // One stream's token ends at once; a stream has no leeway.
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() - 1;
    let ending = mint(&crewcast::auth::Claims::new("clandestine-eva".parse().unwrap(), exp));
    let mut expired = Client::new(&server, &ending).stream("", "").await;
    while expired.next().await.is_some() {}
    streams.pop();
    let bad = [
        ("/events?rooms=nowhere", StatusCode::BAD_REQUEST),
        ("/v1/projects/clandestine", StatusCode::BAD_REQUEST),
        ("/nowhere", StatusCode::NOT_FOUND),
    ];
    for (path, status) in bad {
        assert_eq!(ana.request(Method::GET, path).send().await.unwrap().status(), status, "{path}");
    }
    let stats = ana.stats_when(|stats| stats["streams"]["open"] == 2).await;
    let metrics = ana.metrics().await;
    let labelled =
        |name: &str, label: &str, value: &str| metrics[&format!("crewcast_{name}_total{{{label}=\"{value}\"}}")];
    let expected = [
        ("streams_closed", "reason", "gone", &stats["streams"]["closed"], 4.0),
        ("streams_closed", "reason", "expired", &stats["streams"]["closed"], 1.0),
        ("resets", "reason", "malformed", &stats["replays"]["resets"], 2.0),
        ("resets", "reason", "foreign", &stats["replays"]["resets"], 1.0),
        ("events", "type", "custom", &stats["events"], 20.0),
        ("events", "type", "project:created", &stats["events"], 1.0),
    ];
    for (name, label, value, said, n) in expected {
        assert_eq!((labelled(name, label, value), said[value].as_f64()), (n, Some(n)), "{name} {value}: {stats}");
    }
    for (code, n) in [("invalid_room", 1.0), ("invalid_path", 1.0), ("not_found", 1.0)] {
        assert_eq!(labelled("problems", "code", code), n, "{code}");
    }
    assert_eq!((labelled("requests", "status", "4xx")), 3.0);
    let same = [
        ("streams", &stats["streams"]["open"], Some(2.0)),
        ("streams_max", &stats["streams"]["max"], None),
        ("streams_opened_total", &stats["streams"]["opened"], Some(7.0)),
        // One's own room and the topics.
        ("rooms", &stats["rooms"], Some(3.0)),
        ("deliveries_total", &stats["deliveries"]["events"], Some(40.0)),
        ("delivered_bytes_total", &stats["deliveries"]["bytes"], None),
        ("writes_total", &stats["deliveries"]["writes"], None),
        ("connections_stalled_total", &stats["deliveries"]["stalledConnections"], Some(0.0)),
        ("queue_overflows_total", &stats["replays"]["queueOverflows"], Some(0.0)),
        ("hub_lagged_total", &stats["replays"]["routerLagged"], Some(0.0)),
        ("queued_events", &stats["queues"]["events"], Some(0.0)),
        ("queued_bytes", &stats["queues"]["bytes"], Some(0.0)),
        ("queue_longest_bytes", &stats["queues"]["longestBytes"], Some(0.0)),
        ("ring_events", &stats["ring"]["events"], Some(21.0)),
        ("ring_bytes", &stats["ring"]["bytes"], None),
        ("postgres_connections_max", &stats["postgres"]["max"], Some(10.0)),
        ("postgres_reachable", &json!(u8::from(stats["postgres"]["reachable"] == true)), Some(1.0)),
    ];
    for (name, said, n) in same {
        let metric = metrics[&format!("crewcast_{name}")];
        assert_eq!(Some(metric), said.as_f64(), "{name}: {stats}");
        assert!(n.is_none_or(|n| n == metric), "{name} is {metric}");
    }
    let text = ana.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    let declared = declared();
    assert!(declared.len() > 30, "{declared:?}");
    for (name, kind) in &declared {
        let has = |line: &str| text.lines().any(|found| found.starts_with(line));
        assert!(has(&format!("# HELP {name} ")) && has(&format!("# TYPE {name} {kind}")), "{name} is not in\n{text}");
    }
    let shown: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(shown, declared.iter().map(|(name, _)| name.as_str()).collect(), "each is declared");
    assert!(!text.contains("clandestine") && !stats.to_string().contains("clandestine"), "{text}{stats}");
    drop(streams);
    server.stop().await;
}
