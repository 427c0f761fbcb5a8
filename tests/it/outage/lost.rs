//! Postgres is frozen, cut off without a word, or behind a pooler that has no place left.

use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::wire::{Newcomers, Wire};
use crate::{
    joins::{family, signal},
    support::{Client, PATIENCE, connect, database, folder, private_postgres, publish, server, sql, token, url},
};

/// Every answer until the first that is as it should be; all others must be 503, and say when to come back.
async fn until_ok(client: &Client, method: Method, path: &str) {
    let asking = async {
        loop {
            let answer = client.request(method.clone(), path).send().await.unwrap();
            if answer.status().is_success() {
                return;
            }
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(answer.headers().contains_key("retry-after"), "{path}");
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} does not heal"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_postgres_puts_requests_of_every_kind_off_and_all_goes_on_by_itself() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    // Nothing but the breaker ends a request before the test's own patience.
    let arguments = ["--request-timeout=10m", "--heartbeat=100ms", "--database-connections=4"];
    let server = server(&url, &arguments).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let mut stream = ana.stream("rooms=topic:a", "").await;
    stream.expect("stream:open").await;
    let ben = Client::new(&server, &token("ben", &[]));
    // One waits inside a statement, for a lock, when it happens.
    let mut stranger = connect(&url).await;
    sql(&mut stranger, "begin").await;
    sql(&mut stranger, "select from crewcast.projects for update").await;

    let processes = family(postgres.postmaster().unwrap());
    signal(&processes, Signal::SIGSTOP);
    let requests = [
        ana.request(Method::PATCH, &format!("/v1/projects/{project}")).json(&json!({ "notes": "x" })),
        ana.request(Method::POST, "/v1/projects").json(&json!({ "name": "x", "division": "north" })),
        ana.request(Method::GET, "/v1/projects"),
        ana.request(Method::POST, "/v1/stream-tickets"),
        ana.request(Method::GET, "/v1/events/1"),
        ana.request(Method::GET, "/v1/rooms/company/events"),
        ana.request(Method::GET, "/v1/admin/streams"),
        ben.request(Method::GET, &format!("/events?rooms=project:{project}")),
    ];
    let mut asked = JoinSet::new();
    // Twice as many as there are connections: some wait for one.
    for request in requests {
        asked.spawn(
            async move { (request.try_clone().unwrap().build().unwrap().url().to_string(), request.send().await) },
        );
    }
    let answers = timeout(PATIENCE, asked.join_all()).await.expect("everybody is answered");
    for (address, answer) in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{address}");
        assert!(answer.headers().contains_key("retry-after"), "{address}");
    }
    assert_eq!(ana.stats().await["postgres"]["reachable"], false);
    assert_eq!(ana.request(Method::GET, "/readyz").send().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stream.next_or_beat().await.unwrap().event, "heartbeat", "streams stay open and beat");

    signal(&processes, Signal::SIGCONT);
    sql(&mut stranger, "rollback").await;
    until_ok(&ana, Method::GET, "/v1/projects").await;
    until_ok(&ana, Method::GET, "/readyz").await;
    publish(&mut connect(&url).await, "topic:a", 1..=1, 10).await;
    stream.expect("test:n").await;
    let (status, made) = ana.send(Method::POST, "/v1/projects", json!({ "name": "y", "division": "north" })).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    drop(stream);
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_without_a_word_heal_and_no_stream_falls_silent() {
    const STREAMS: usize = 8;
    let url = database().await;
    let wire = Wire::to(&url).await;
    // A small ring: streams that resume read the log.
    let arguments = ["--database-connections=25", "--ring-bytes=1", "--poll=20ms", "--request-timeout=10m"];
    let one = server(&wire.url, &arguments).await;
    let two = server(&url, &arguments).await;
    let (ana, far) = (Client::admin(&one), Client::admin(&two));
    ana.project("north").await;
    let mut conn = connect(&url).await;
    let (start, _) = ana.read("/v1/divisions").await;
    publish(&mut conn, "topic:a", 1..=2000, 1000).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = ana.stream("rooms=topic:a", &start).await;
        let open: serde_json::Value = serde_json::from_str(&stream.expect("stream:open").await.0.data).unwrap();
        streams.push((open["streamId"].as_str().unwrap().to_owned(), stream));
    }
    // As many readers as there are connections, so that all of them are open.
    for turn in 0..3 {
        let mut reading = JoinSet::new();
        for _ in 0..25 {
            let request = ana.request(Method::GET, "/v1/divisions");
            reading.spawn(async move { request.send().await.unwrap().status() });
        }
        if turn == 1 {
            wire.cut();
        }
        for status in timeout(PATIENCE, reading.join_all()).await.expect("everybody is answered") {
            assert!(matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE), "{status}");
        }
    }
    until_ok(&ana, Method::GET, "/v1/divisions").await;
    until_ok(&ana, Method::GET, "/readyz").await;
    publish(&mut conn, "topic:a", 2001..=2001, 10).await;
    for (_, stream) in &mut streams {
        for n in 1..=2001 {
            let (_, data) = stream.expect("test:n").await;
            assert_eq!(data["n"], n, "each once, in order, history and live");
        }
    }
    // The other node still knows this one, and reaches its streams.
    for (id, _) in &streams {
        let path = format!("/v1/streams/{id}/rooms");
        let asking = async {
            loop {
                let (status, answer) = far.send(Method::POST, &path, json!({ "join": ["topic:b"] })).await;
                match status {
                    StatusCode::OK => return,
                    StatusCode::SERVICE_UNAVAILABLE => {}
                    other => panic!("{other} {answer}"),
                }
            }
        };
        timeout(PATIENCE, asking).await.expect("the node is reached again");
    }
    drop(streams);
    timeout(PATIENCE, one.stop()).await.expect("it ends in time");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_without_a_place_left_puts_requests_off_and_no_end_is_held_up() {
    for newcomers in [Newcomers::Silent, Newcomers::Queued] {
        let wire = Wire::to(&database().await).await;
        let server = server(&wire.url, &["--database-connections=25", "--request-timeout=10m"]).await;
        let ana = Client::admin(&server);
        ana.project("north").await;
        wire.newcomers(newcomers);
        let mut writing = JoinSet::new();
        for n in 0..24 {
            let body = json!({ "name": n.to_string(), "division": "north" });
            let request = ana.request(Method::POST, "/v1/projects").json(&body);
            writing.spawn(async move { request.send().await.unwrap().status() });
        }
        let made = timeout(PATIENCE, writing.join_all()).await.expect("everybody is answered");
        assert!(made.iter().all(|status| matches!(status.as_u16(), 201 | 503)), "{made:?}");
        assert!(made.contains(&StatusCode::CREATED), "the places that there are go on working");
        timeout(Duration::from_secs(40), server.stop()).await.expect("it ends within its deadline");
    }
}
