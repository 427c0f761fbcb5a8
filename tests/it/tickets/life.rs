//! For how long a ticket is good.

use std::time::Duration;

use crewcast::auth::Claims;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use super::{RENEWED, expect_n, is_so, refused, until, until_counted};
use crate::support::{
    Client, Process, Stream, connect, database, folder, mint, number, private_postgres, publish, server, sql, url,
};

const SOME_ARE_GOOD: &str = "exists (select from crewcast.tickets where good_until > now())";
const NONE_IS_GOOD: &str = "not exists (select from crewcast.tickets where good_until > now())";

#[tokio::test]
async fn a_ticket_that_nobody_used_in_time_is_refused() {
    let url = database().await;
    let server = server(&url, &["--ticket-ttl=200ms"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let begun = Instant::now();
    let ticket = ana.ticket().await;
    until(&mut conn, NONE_IS_GOOD).await;
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let browser = Client::nobody(&server);
    refused(&browser, &ticket, "has expired").await;
    // Nor does asking again and again bring it back.
    refused(&browser, &ticket, "has expired").await;
    let metrics = browser.metrics().await;
    assert_eq!(metrics["crewcast_tickets_refused_total{reason=\"expired\"}"], 2.0);
    // It was good once: every laptop that wakes up has one.
    assert!(!metrics.contains_key("crewcast_suspicions_total{kind=\"bad_token\"}"), "{metrics:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_ticket_is_good_for_a_while_after_its_last_stream_and_no_longer() {
    const IDLE: Duration = Duration::from_secs(2);
    let url = database().await;
    let server = server(&url, &["--ticket-ttl=1h", "--ticket-idle=2s"]).await;
    let (browser, mut conn) = (Client::nobody(&server), connect(&url).await);
    let ticket = Client::admin(&server).ticket().await;
    let query = format!("ticket={ticket}");
    let mut streams = [browser.stream(&query, "").await, browser.stream(&query, "").await];
    for stream in &mut streams {
        stream.expect("stream:open").await;
    }
    let [first, last] = streams;
    drop(first);
    let renewed = browser.metrics().await[RENEWED];
    until_counted(&browser, RENEWED, renewed + 16.0).await;
    assert!(is_so(&mut conn, SOME_ARE_GOOD).await, "the other stream still holds it");
    let left = Instant::now();
    drop(last);
    until(&mut conn, NONE_IS_GOOD).await;
    assert!(left.elapsed() >= IDLE, "{:?}", left.elapsed());
    refused(&browser, &ticket, "has expired").await;
    server.stop().await;
}

#[tokio::test]
async fn a_ticket_outlives_its_times_with_a_stream_that_then_resumes_exactly_on_another_node() {
    let url = database().await;
    let settings = ["--ticket-ttl=2s", "--ticket-idle=2s", "--poll=20ms"];
    let (near, far) = (server(&url, &settings).await, server(&url, &settings).await);
    let mut conn = connect(&url).await;
    let ticket = Client::admin(&near).ticket().await;
    let query = format!("rooms=topic:a&ticket={ticket}");
    let mut stream = Client::nobody(&near).stream(&query, "").await;
    stream.expect("stream:open").await;
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        n += 1;
        publish(&mut conn, "topic:a", n..=n, 10).await;
        expect_n(&mut stream, n..=n).await;
        assert!(is_so(&mut conn, SOME_ARE_GOOD).await, "a moment without it would be the end of a client");
    }
    let seen = stream.last_id().to_owned();
    drop(stream);
    publish(&mut conn, "topic:a", n + 1..=n + 3, 10).await;
    // As an `EventSource` does by itself, and as one does that is made with a position.
    let browser = Client::nobody(&far);
    for (query, header) in [(query.clone(), seen.as_str()), (format!("{query}&last_event_id={seen}"), "")] {
        let mut resumed = browser.stream(&query, header).await;
        assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
        expect_n(&mut resumed, n + 1..=n + 3).await;
    }
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn no_ticket_is_good_beyond_its_token() {
    let url = database().await;
    let server = server(&url, &["--ticket-ttl=1h", "--ticket-idle=1h"]).await;
    let (browser, mut conn) = (Client::nobody(&server), connect(&url).await);
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3;
    let ana = Client::new(&server, &mint(&Claims::new("ana".parse().unwrap(), exp)));
    let (status, made) = ana.send(Method::POST, "/v1/stream-tickets", Value::Null).await;
    assert_eq!(status, StatusCode::CREATED);
    let expires_at = made["expiresAt"].as_str().unwrap();
    let expires_at = time::OffsetDateTime::parse(expires_at, &time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(expires_at.unix_timestamp(), exp);
    let ticket = made["ticket"].as_str().unwrap();
    let mut stream = browser.stream(&format!("ticket={ticket}"), "").await;
    stream.expect("stream:open").await;
    let end = loop {
        let frame = stream.next().await.expect("it is told why it ends");
        if frame.event == "stream:closing" {
            break frame;
        }
    };
    assert_eq!(serde_json::from_str::<Value>(&end.data).unwrap()["reason"], "expired");
    until(&mut conn, NONE_IS_GOOD).await;
    refused(&browser, ticket, "has expired").await;
    // A token has a leeway when it arrives. What it makes would have none.
    let (status, problem) = ana.send(Method::POST, "/v1/stream-tickets", Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_leaves_its_tickets_good() {
    let url = database().await;
    let settings = ["--ticket-ttl=2s", "--ticket-idle=3s", "--poll=20ms"];
    let (far, mut conn) = (server(&url, &settings).await, connect(&url).await);
    let mut near = Process::start(&url, &settings).await;
    let ticket = Client::admin(&far).ticket().await;
    let query = format!("rooms=topic:a&ticket={ticket}");
    let used = Instant::now();
    let mut stream = Client::at(&near.address, "").stream(&query, "").await;
    stream.expect("stream:open").await;
    // For longer than a use alone is good for.
    while used.elapsed() < Duration::from_secs(4) {
        assert!(is_so(&mut conn, SOME_ARE_GOOD).await);
    }
    near.child.kill().await.unwrap();
    assert_eq!(stream.next().await, None);
    let killed = Instant::now();
    publish(&mut conn, "topic:a", 1..=3, 10).await;
    let mut resumed = Client::nobody(&far).stream(&query, stream.last_id()).await;
    assert!(killed.elapsed() < Duration::from_secs(3), "a machine too busy for this test");
    assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");
    expect_n(&mut resumed, 1..=3).await;
    far.stop().await;
}

/// Comes back, as a browser would, until the stream opens.
async fn come_back(browser: &Client, query: &str, last_event_id: &str) -> Stream {
    loop {
        let mut stream = browser.stream(query, last_event_id).await;
        let frame = stream.next().await.expect("a first frame");
        if frame.event == "stream:open" {
            return stream;
        }
        assert_eq!((frame.event.as_str(), stream.next().await), ("stream:closing", None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_outlive_an_outage_of_postgres_that_is_longer_than_they_are_good() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    let settings = ["--poll=20ms", "--ticket-ttl=2s", "--ticket-idle=2s"];
    let (near, far) = (server(&url, &settings).await, server(&url, &settings).await);
    let ana = Client::admin(&near);
    let (kept, cut) = (ana.ticket().await, ana.ticket().await);
    let query = |ticket: &str| format!("rooms=topic:a&ticket={ticket}");
    let (kept, cut) = (query(&kept), query(&cut));
    let mut stays = Client::nobody(&near).stream(&kept, "").await;
    let mut leaves = Client::nobody(&near).stream(&cut, "").await;
    for stream in [&mut stays, &mut leaves] {
        stream.expect("stream:open").await;
    }
    postgres.stop().await;
    let begun = Instant::now();
    let seen = leaves.last_id().to_owned();
    drop(leaves);
    // Meanwhile its browser tries again and again, and is told to.
    let browser = Client::nobody(&far);
    while begun.elapsed() < Duration::from_secs(6) {
        let mut told = browser.stream(&cut, &seen).await;
        assert_eq!(told.expect("stream:closing").await.1["reason"], "unavailable");
        assert_eq!(told.next().await, None);
    }
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let mut leaves = come_back(&browser, &cut, &seen).await;
    let mut conn = connect(&url).await;
    publish(&mut conn, "topic:a", 1..=3, 10).await;
    for stream in [&mut stays, &mut leaves] {
        expect_n(stream, 1..=3).await;
    }
    // The one whose stream stayed was renewed, although it had run out.
    until(&mut conn, "2 = (select count(*) from crewcast.tickets where good_until > now())").await;
    let seen = stays.last_id().to_owned();
    drop(stays);
    come_back(&browser, &kept, &seen).await;
    far.stop().await;
    near.stop().await;
    postgres.stop().await;
}

#[tokio::test]
async fn a_ticket_is_renewed_although_it_ran_out_and_swept_away_only_long_after() {
    let url = database().await;
    let server = server(&url, &["--ticket-idle=400ms", "--ticket-ttl=1h"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let ticket = ana.ticket().await;
    let mut stream = Client::nobody(&server).stream(&format!("ticket={ticket}"), "").await;
    stream.expect("stream:open").await;
    sql(&mut conn, "update crewcast.tickets set good_until = now() - interval '20 hours'").await;
    until(&mut conn, SOME_ARE_GOOD).await;
    let old = "insert into crewcast.tickets (digest, sub, caller, good_until, ends_at)
               select sha256(n::text::bytea), 'old', '{}', now() - age, now() from generate_series(1, 2500) n";
    for (age, left) in [("23 hours", 2501), ("25 hours", 1)] {
        sql(&mut conn, "delete from crewcast.tickets where sub = 'old'").await;
        sql(&mut conn, &old.replace("age", &format!("interval '{age}'"))).await;
        crewcast::auth::ticket::sweep().all(&server.app.db).await.unwrap();
        assert_eq!(number(&mut conn, "select count(*) from crewcast.tickets").await, left, "{age}");
    }
    server.stop().await;
}
