//! A node under load: readers that lag, a router that lags, and memory that stays bounded.

use crewcast::{app::Server, auth::Role, sse::Frame};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::{Client, Process, Slow, Stream, config, connect, database, publish, server, sql, token};

/// Bytes of an event's padding: some thousands of them are more than sockets hold.
const PAD: usize = 4000;

/// Sockets hold some 4 MiB for a reader that takes nothing: this many events are more than that.
const MORE_THAN_SOCKETS_HOLD: i64 = 2500;

async fn lagging(server: &Server, query: &str) -> Slow {
    let mut slow = Slow::open(&server.address.to_string(), &token("ana", &[Role::Admin]), query, "").await;
    slow.raw = None;
    slow.expect("stream:open").await;
    slow
}

/// Publishes these numbers to a room, a transaction for every hundred.
async fn publish_all(conn: &mut PgConnection, room: &str, numbers: std::ops::RangeInclusive<i64>) {
    for first in numbers.clone().step_by(100) {
        publish(conn, room, first..=(first + 99).min(*numbers.end()), PAD).await;
    }
}

/// The figures once the router has passed this many events of the publisher's own.
async fn routed(client: &Client, events: i64) -> Value {
    client.stats_when(|stats| stats["events"]["custom"].as_i64() >= Some(events)).await
}

async fn expect_n(stream: &mut Stream, n: i64) {
    assert_eq!(stream.expect("test:n").await.1["n"], json!(n));
}

/// The stream's next events have these numbers; their frames.
async fn expect_all(slow: &mut Slow, numbers: std::ops::RangeInclusive<i64>) -> Vec<Frame> {
    let mut frames = Vec::new();
    for n in numbers {
        let (frame, data) = slow.expect("test:n").await;
        assert_eq!(data["n"], json!(n), "each once, in order");
        frames.push(frame);
    }
    frames
}

/// A reader that takes nothing until everything was published, then reads on; and others that resume from its ids.
async fn a_lagging_reader_catches_up_from(source: &str, other: &str, arguments: &[&str]) {
    const EVENTS: i64 = MORE_THAN_SOCKETS_HOLD;
    let url = database().await;
    let server = server(&url, &[&["--poll=20ms", "--queue-bytes=64KiB"], arguments].concat()).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut slow = lagging(&server, "rooms=topic:a").await;
    publish_all(&mut conn, "topic:a", 1..=EVENTS).await;
    let behind = routed(&ana, EVENTS).await;
    assert!(behind["replays"]["queueOverflows"].as_u64() > Some(0), "it fell behind: {behind}");
    assert!(behind["queues"]["longestBytes"].as_u64() <= Some(64 << 10), "{behind}");
    let frames = expect_all(&mut slow, 1..=EVENTS).await;
    publish_all(&mut conn, "topic:a", EVENTS + 1..=EVENTS + 1).await;
    expect_all(&mut slow, EVENTS + 1..=EVENTS + 1).await;
    let stats = ana.stats().await;
    assert!(stats["replays"]["bySource"][source].as_u64() > Some(0), "{stats}");
    assert!(stats["replays"]["bySource"][other].is_null(), "{stats}");
    assert_eq!(stats["replays"]["resets"], json!({}), "{stats}");
    for seen in [0, 1, 700, 1100, 1101, 1700, EVENTS as usize - 2] {
        let mut resumed = ana.stream("rooms=topic:a", &frames[seen].id).await;
        assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
        for frame in &frames[seen + 1..] {
            assert_eq!(resumed.expect("test:n").await.0.data, frame.data, "behind event {seen}");
        }
        expect_n(&mut resumed, EVENTS + 1).await;
    }
    let stats = ana.stats().await;
    assert!(stats["replays"]["bySource"][other].is_null(), "{stats}");
    drop(slow);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_reader_catches_up_exactly_from_memory() {
    a_lagging_reader_catches_up_from("ring", "log", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_reader_catches_up_exactly_from_postgres() {
    a_lagging_reader_catches_up_from("log", "ring", &["--ring-bytes=1"]).await;
}

/// More events than a client may have missed when it connects are no reset for one that was connected all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_a_client_may_have_missed_is_judged_only_when_it_connects() {
    const EVENTS: i64 = MORE_THAN_SOCKETS_HOLD;
    for (source, ring) in [("ring", "--ring-bytes=64MiB"), ("log", "--ring-bytes=1")] {
        let url = database().await;
        let server = server(&url, &["--poll=20ms", "--queue-bytes=64KiB", "--replay-events-max=10", ring]).await;
        let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
        let mut slow = lagging(&server, "rooms=topic:a").await;
        publish_all(&mut conn, "topic:a", 1..=EVENTS).await;
        routed(&ana, EVENTS).await;
        let frames = expect_all(&mut slow, 1..=EVENTS).await;
        let stats = ana.stats().await;
        assert!(stats["replays"]["bySource"][source].as_u64() > Some(0), "{stats}");
        assert_eq!(stats["replays"]["resets"], json!({}), "{stats}");
        for (missed, resume) in [(10, "replayed"), (11, "reset")] {
            let id = &frames[frames.len() - 1 - missed].id;
            let mut stream = ana.stream("rooms=topic:a", id).await;
            assert_eq!(stream.expect("stream:open").await.1["resume"], resume, "{missed} missed, from the {source}");
        }
        assert_eq!(ana.stats().await["replays"]["resets"], json!({ "too_many": 1 }));
        drop(slow);
        server.stop().await;
    }
}

/// On one thread the pump sends a page without a pause, so that a channel of four overflows each time.
#[tokio::test]
async fn a_router_that_lags_costs_no_stream_an_event() {
    const TURNS: i64 = 12;
    const EACH: i64 = 100;
    let url = database().await;
    let mut config = config(&url, &["--poll=20ms"]);
    config.limits.channel_events = 4;
    let server = Server::start(config, |_| {}).await.unwrap();
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let rooms: [&[&str]; 5] = [&["a"], &["b"], &["a", "c"], &["a", "b", "c"], &["d"]];
    let (mut streams, mut frames) = (Vec::new(), vec![Vec::new(); rooms.len()]);
    for rooms in rooms {
        let mut stream = ana.stream(&query(rooms), "").await;
        frames[streams.len()].push(stream.expect("stream:open").await.0);
        streams.push(stream);
    }
    let mut published = vec![Vec::new(); rooms.len()];
    for turn in 0..TURNS {
        sql(&mut conn, "begin").await;
        for (nth, room) in ["a", "b", "c", "d"].into_iter().enumerate() {
            // The last room is quiet in most turns; every third turn is small enough for the channel.
            let events = if turn % 3 == 2 || room == "d" { i64::from(turn % 4 == 1 || room != "d") } else { EACH };
            let first = (turn * 4 + nth as i64) * EACH;
            publish(&mut conn, &format!("topic:{room}"), first..=first + events - 1, 1).await;
            for (to, _) in rooms.iter().enumerate().filter(|(_, rooms)| rooms.contains(&room)) {
                published[to].extend(first..first + events);
            }
        }
        sql(&mut conn, "commit").await;
        for ((stream, frames), published) in streams.iter_mut().zip(&mut frames).zip(&published) {
            while frames.len() <= published.len() {
                let (frame, data) = stream.expect("test:n").await;
                assert_eq!(data["n"], json!(published[frames.len() - 1]), "each once, in order");
                frames.push(frame);
            }
        }
    }
    let stats = ana.stats().await;
    assert!(stats["replays"]["routerLagged"].as_i64() >= Some(TURNS / 2), "the router lagged again and again: {stats}");
    assert_eq!(stats["replays"]["resets"], json!({}));
    for (rooms, frames) in rooms.iter().zip(&frames) {
        for cut in (0..frames.len()).step_by(37) {
            let mut resumed = ana.stream(&query(rooms), &frames[cut].id).await;
            resumed.expect("stream:open").await;
            for frame in &frames[cut + 1..] {
                assert_eq!(resumed.expect("test:n").await.0.data, frame.data, "behind event {cut} of {rooms:?}");
            }
        }
    }
    drop(streams);
    server.stop().await;
}

fn query(rooms: &[&str]) -> String {
    let rooms: Vec<String> = rooms.iter().map(|room| format!("topic:{room}")).collect();
    format!("rooms={}", rooms.join(","))
}

#[tokio::test]
async fn a_reader_that_takes_nothing_costs_the_others_nothing() {
    const EVENTS: i64 = MORE_THAN_SOCKETS_HOLD;
    let url = database().await;
    let server = server(&url, &["--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut slow = lagging(&server, "rooms=topic:a,topic:b").await;
    let mut others = Vec::new();
    for query in ["rooms=topic:a", "rooms=topic:a,topic:b", "rooms=topic:a&types=test"] {
        let mut other = ana.stream(query, "").await;
        other.expect("stream:open").await;
        others.push(other);
    }
    // Half of what a queue holds: a reader that reads never overflows it.
    for first in (1..=EVENTS).step_by(25) {
        publish(&mut conn, "topic:a", first..=first + 24, PAD).await;
        for other in &mut others {
            for n in first..first + 25 {
                expect_n(other, n).await;
            }
        }
    }
    let stats = ana.stats().await;
    assert_eq!(stats["replays"]["queueOverflows"], 1, "the one that takes nothing, once: {stats}");
    assert_eq!(stats["replays"]["bySource"], json!({}), "nobody read history: {stats}");
    assert_eq!((&stats["queues"]["events"], &stats["streams"]["open"]), (&json!(0), &json!(4)), "{stats}");
    expect_all(&mut slow, 1..=EVENTS).await;
    let stats = ana.stats().await;
    assert_eq!(stats["replays"]["queueOverflows"], 1, "{stats}");
    assert_eq!(stats["deliveries"]["events"], 4 * EVENTS, "{stats}");
    drop((slow, others));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_cost_no_more_memory_than_the_settings_say() {
    const ROOMS: i64 = 5;
    const STREAMS: i64 = 20;
    const EVENTS: i64 = 5000;
    const RING: u64 = 8 << 20;
    const QUEUE: u64 = 64 << 10;
    // What a connection may hold of its socket's, and the chunk that is on its way there.
    const CONNECTION: u64 = (64 + 32) << 10;
    // A full channel between pump and router is 4 MiB of these events, a page 1 MiB; the rest is the allocator's.
    const SLACK: u64 = 16 << 20;
    // A queue, and the history that was read to fill it.
    let bound = RING + STREAMS.unsigned_abs() * (2 * QUEUE + CONNECTION) + SLACK;
    let url = database().await;
    let mut conn = connect(&url).await;
    // They read nothing for as long as it takes to publish.
    let settings = ["--poll=20ms", "--queue-bytes=64KiB", "--ring-bytes=8MiB", "--stall-timeout=10m"];
    let server = Process::start(&url, &settings).await;
    let admin = token("ana", &[Role::Admin]);
    let ana = Client::at(&server.address, &admin);
    let mut streams = Vec::new();
    for nth in 0..STREAMS {
        let query = format!("rooms=topic:{}", nth % ROOMS);
        let mut slow = Slow::open(&server.address, &admin, &query, "").await;
        slow.raw = None;
        slow.expect("stream:open").await;
        streams.push(slow);
    }
    let (before, mut most) = (server.memory(), 0);
    for first in (1..=EVENTS).step_by(100) {
        for room in 0..ROOMS {
            publish(&mut conn, &format!("topic:{room}"), first..=first + 99, PAD).await;
            most = most.max(server.memory());
        }
    }
    let stats = routed(&ana, ROOMS * EVENTS).await;
    assert!(stats["replays"]["queueOverflows"].as_i64() >= Some(STREAMS), "all fell behind: {stats}");
    assert!(stats["ring"]["bytes"].as_u64() <= Some(RING), "{stats}");
    // All stop once more in the middle of what they have missed, then read on.
    for numbers in [1..=EVENTS / 2, EVENTS / 2 + 1..=EVENTS] {
        for slow in &mut streams {
            for n in numbers.clone() {
                let frame = slow.next().await.expect("an event");
                assert!(frame.data.starts_with(&format!("{{\"n\":{n},")), "{n}: {}", &frame.data[..20]);
            }
            most = most.max(server.memory());
        }
    }
    assert!(most - before < bound, "{} MiB of {} MiB", (most - before) >> 20, bound >> 20);
    eprintln!("grew by {} KiB of {} KiB", (most - before) >> 10, bound >> 10);
}
