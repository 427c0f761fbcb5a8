//! A position that cannot be resumed is told so in the stream, with the reason, and never silently skipped.

use crewcast::{
    auth::Role,
    log::{Snapshot, position::RawSnapshot},
    sse,
};
use reqwest::{Method, header};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::{Client, Process, Slow, Stream, burn, connect, database, number, publish, server, sql, token};

/// The cursor of now.
async fn cursor(client: &Client) -> String {
    client.read("/v1/divisions").await.0
}

/// Raises the log's floor to a position, as retention does before it deletes what lies below.
///
/// A node that has not read the log up to there would first say `replayed` and reset as soon as it reads on.
async fn raise_floor(client: &Client, conn: &mut PgConnection, cursor: &str) {
    client.stream("", cursor).await.expect("stream:open").await;
    let (_, snapshot) = cursor.split_once('-').unwrap();
    assert!(!snapshot.contains('~'), "a settled position");
    sql(conn, &format!("update crewcast.log set floor = '{snapshot}'")).await;
}

/// The stream begins with a reset for this reason; its cursor.
async fn expect_reset(stream: &mut Stream, reason: &str) -> String {
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["resume"], "reset", "{reason}");
    let (frame, reset) = stream.expect("stream:reset").await;
    assert_eq!((&reset["reason"], &reset["cursor"]), (&json!(reason), &json!(frame.id)));
    assert_eq!(stream.last_id(), frame.id);
    frame.id
}

async fn expect_n(stream: &mut Stream, n: i64) {
    let (_, data) = stream.expect("test:n").await;
    assert_eq!(data["n"], json!(n));
}

/// A position of this log that no transaction has reached yet.
fn of_the_future(epoch: &str) -> String {
    let snapshot = RawSnapshot::parse("4000000000:4000000000:", 0).unwrap().clamp(3_999_999_999).unwrap();
    format!("{epoch}-{snapshot}")
}

#[tokio::test]
async fn each_position_that_cannot_be_resumed_is_told_why_and_the_stream_goes_on() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let old = cursor(&ana).await;
    publish(&mut conn, "company", 1..=3, 1).await;
    let newer = cursor(&ana).await;
    publish(&mut conn, "company", 4..=4, 1).await;
    let (epoch, set) = newer.split_once('-').unwrap();
    raise_floor(&ana, &mut conn, &newer).await;
    // Event 4 has passed the node: a stream that begins anew does not meet it.
    ana.stream("", &cursor(&ana).await).await.expect("stream:open").await;
    let cases = [
        ("too_old", old.clone()),
        ("too_old", format!("{old}~{set}~C")),
        ("foreign", format!("0ther-{set}")),
        ("foreign", format!("0ther-{set}~{}~C", of_the_future("x").split_once('-').unwrap().1)),
        ("unknown", of_the_future(epoch)),
        ("unknown", format!("{newer}~{}~B", of_the_future("x").split_once('-').unwrap().1)),
        ("malformed", "17".to_owned()),
        ("malformed", "nonsense-".to_owned()),
        ("malformed", format!("{newer}~")),
        ("malformed", format!("{newer}~{set}~B")),
        ("malformed", format!("{newer}\u{7e}\u{7e}")),
        ("malformed", format!("{}-B", epoch.to_uppercase() + "X")),
        ("malformed", format!("{epoch}-{}", "B".repeat(5000))),
    ];
    let mut n = 4;
    for (reason, id) in &cases {
        for (query, header) in [(String::new(), id.as_str()), (format!("last_event_id={id}"), "")] {
            let mut stream = ana.stream(&query, header).await;
            let reset = expect_reset(&mut stream, reason).await;
            n += 1;
            publish(&mut conn, "company", n..=n, 1).await;
            expect_n(&mut stream, n).await;
            let mut again = ana.stream("", &reset).await;
            assert_eq!(again.expect("stream:open").await.1["resume"], "replayed", "a reset's cursor is good: {reason}");
            expect_n(&mut again, n).await;
        }
    }
    let mut stream = ana.stream("", &newer).await;
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["resume"], "replayed", "what is exactly at the floor has missed nothing that is gone");
    for n in 4..=n {
        expect_n(&mut stream, n).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_a_malformed_position() {
    let server = server(&database().await, &[]).await;
    let request = Client::admin(&server).request(Method::GET, "/events");
    let id = header::HeaderValue::from_bytes(b"\xff\xfe").unwrap();
    let mut response = request.header("last-event-id", id).send().await.unwrap();
    let mut body = String::new();
    while !body.contains("malformed") {
        body += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
    }
    drop(response);
    server.stop().await;
}

#[tokio::test]
async fn the_header_goes_before_the_parameter_and_an_empty_one_is_none() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = cursor(&ana).await;
    publish(&mut conn, "company", 1..=1, 1).await;
    for (query, header, resume) in [
        (format!("last_event_id={id}"), "", "replayed"),
        ("last_event_id=nonsense".to_owned(), id.as_str(), "replayed"),
        (format!("last_event_id={id}"), "nonsense", "reset"),
        ("last_event_id=".to_owned(), "", "live"),
        (String::new(), "", "live"),
    ] {
        let mut stream = ana.stream(&query, header).await;
        let (frame, open) = stream.expect("stream:open").await;
        assert_eq!(open["resume"], resume, "{query} {header}");
        match resume {
            "replayed" => {
                assert_eq!(frame.id, id, "the client's own position");
                expect_n(&mut stream, 1).await;
            }
            "reset" => assert_eq!(stream.expect("stream:reset").await.1["reason"], "malformed"),
            _ => assert!(!frame.id.is_empty()),
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn more_events_than_are_sent_one_by_one_are_a_reset_and_one_less_is_not() {
    let url = database().await;
    let server = server(&url, &["--replay-events-max=3"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = cursor(&ana).await;
    publish(&mut conn, "topic:other", 100..=110, 1).await;
    publish(&mut conn, "company", 1..=3, 1).await;
    let mut stream = ana.stream("rooms=company", &id).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed", "other rooms' events do not count");
    for n in 1..=3 {
        expect_n(&mut stream, n).await;
    }
    publish(&mut conn, "company", 4..=4, 1).await;
    expect_n(&mut stream, 4).await;
    expect_reset(&mut ana.stream("rooms=company&types=nothing", &id).await, "too_many").await;
    expect_reset(&mut ana.stream("rooms=company", &id).await, "too_many").await;
    let mut stream = ana.stream("rooms=company", stream.last_id()).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    server.stop().await;
}

#[tokio::test]
async fn a_position_with_more_gaps_than_can_be_looked_into_for_all_rooms_is_a_reset() {
    let url = database().await;
    let server = server(&url, &["--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    burn(&mut conn, 2000).await;
    publish(&mut conn, "topic:r7", 1..=1, 1).await;
    let cursor = cursor(&ana).await;
    let (epoch, set) = cursor.split_once('-').unwrap();
    // Every other one of the last transactions but the newest is said to have been open.
    let seen = set.parse::<Snapshot>().unwrap();
    let xmax = seen.xmax();
    let made_up = (1..=900).map(|nth| xmax - 2 * nth - 1..xmax - 2 * nth);
    // Those of other tests may be open.
    let open = seen.open().iter().cloned().chain(made_up).collect();
    let scattered = format!("{epoch}-{}", Snapshot::from_parts(xmax, open).unwrap());
    publish(&mut conn, "topic:r7", 2..=2, 1).await;
    let rooms = |rooms: i64| (0..rooms).map(|nth| format!("topic:r{nth}")).collect::<Vec<_>>();
    let mut stream = ana.stream(&format!("rooms={}", rooms(50).join(",")), &scattered).await;
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["resume"], "replayed");
    expect_n(&mut stream, 2).await;
    expect_reset(&mut ana.stream(&format!("rooms={}", rooms(100).join(",")), &scattered).await, "too_many").await;
    // A join from there as well.
    let path = format!("/v1/streams/{}/rooms", open["streamId"].as_str().unwrap());
    let more: Vec<String> = (100..190).map(|nth| format!("topic:r{nth}")).collect();
    let (status, problem) =
        ana.send(Method::POST, &path, json!({ "leave": rooms(50), "join": more, "after": scattered })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("cursor_not_resumable")));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_cut_between_the_first_frame_and_the_reset_hides_nothing() {
    let url = database().await;
    let server = server(&url, &["--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = cursor(&ana).await;
    publish(&mut conn, "company", 1..=1, 1).await;
    let newer = cursor(&ana).await;
    publish(&mut conn, "company", 2..=2, 1).await;
    raise_floor(&ana, &mut conn, &newer).await;
    let mut stream = Slow::open(&server.address.to_string(), &token("ana", &[Role::Admin]), "", &id).await;
    stream.expect("stream:open").await;
    let (reset, _) = stream.expect("stream:reset").await;
    let raw = String::from_utf8(stream.raw.take().unwrap()).unwrap();
    let (first, rest) = raw.split_once("\n\n").unwrap();
    assert!(first.contains("event: stream:open\n") && first.contains("\"resume\":\"reset\""), "{first}");
    assert!(!first.lines().any(|line| line.starts_with("id")), "the frame has no id of its own: {first}");
    assert!(rest.contains(&format!("id: {}\n", reset.id)), "{rest}");
    // What a browser knows that was cut at any byte before the reset was whole.
    let end = raw.len() - rest.len() + rest.find("\n\n").unwrap() + 2;
    for cut in 0..=end {
        let mut parser = sse::Parser::resuming(&id);
        parser.push(&raw.as_bytes()[..cut]);
        let expected = if cut < end { &id } else { &reset.id };
        assert_eq!(parser.last_id(), expected, "cut at {cut}");
    }
    expect_reset(&mut ana.stream("", &id).await, "too_old").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_that_passes_a_replay_resets_it_and_leaves_no_silent_gap() {
    const EVENTS: i64 = 6000;
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--ring-bytes=1"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = cursor(&ana).await;
    for first in (1..=EVENTS).step_by(500) {
        publish(&mut conn, "company", first..=first + 499, 4000).await;
    }
    let newer = cursor(&ana).await;
    let admin = token("ana", &[Role::Admin]);
    let mut stream = Slow::open(&server.address.to_string(), &admin, "rooms=company", &id).await;
    stream.raw = None;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    let (first, _) = stream.expect("test:n").await;
    raise_floor(&ana, &mut conn, &newer).await;
    sql(&mut conn, "delete from crewcast.events").await;
    sql(&mut conn, "delete from crewcast.event_rooms").await;
    let (mut seen, mut last) = (1, first.id);
    let reset = loop {
        let frame = stream.next().await.expect("the stream goes on");
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        if frame.event == "stream:reset" {
            assert_eq!(data["reason"], "too_old");
            break frame.id;
        }
        seen += 1;
        assert_eq!(data["n"], json!(seen), "no gap before the reset");
        last = frame.id;
    };
    assert!(seen < EVENTS, "the floor passed in the middle: {seen} events were on their way");
    publish(&mut conn, "company", 9001..=9001, 1).await;
    assert_eq!(stream.expect("test:n").await.1["n"], 9001, "what comes after the reset arrives");
    expect_reset(&mut ana.stream("", &last).await, "too_old").await;
    let mut resumed = ana.stream("", &reset).await;
    assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
    expect_n(&mut resumed, 9001).await;
    drop(stream);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_more_than_fits_memory_arrives_whole_in_bounded_memory() {
    const EVENTS: i64 = 20_000;
    const BOUND: u64 = 40 << 20;
    let url = database().await;
    let mut conn = connect(&url).await;
    let floor = format!("{}-B", number_epoch(&mut conn).await);
    for first in (1..=EVENTS).step_by(1000) {
        publish(&mut conn, "company", first..=first + 999, 4000).await;
    }
    assert!(number(&mut conn, "select sum(octet_length(data::text))::bigint from crewcast.events").await > 80_000_000);
    let server = Process::start(&url, &["--replay-events-max=1000000"]).await;
    let admin = token("ana", &[Role::Admin]);
    // Whatever a first request costs is no part of the replay.
    cursor(&Client::at(&server.address, &admin)).await;
    let before = server.memory();
    let mut stream = Slow::open(&server.address, &admin, "rooms=company", &floor).await;
    stream.raw = None;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    let mut most = before;
    for n in 1..=EVENTS {
        let frame = stream.next().await.expect("an event");
        assert!(frame.data.starts_with(&format!("{{\"n\":{n},")), "each once, in order: {n}, {}", &frame.data[..20]);
        if n % 250 == 0 {
            most = most.max(server.memory());
        }
    }
    assert!(most - before < BOUND, "the replay took {} MiB", (most - before) >> 20);
}

async fn number_epoch(conn: &mut PgConnection) -> String {
    sqlx::query_scalar("select epoch from crewcast.log").fetch_one(conn).await.unwrap()
}
