//! Who is to come back: an `EventSource` is told in a stream, since it gives up on any other answer; a caller with a header
//! is told by the status.

use crewcast::auth::{Claims, Role};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    joins::{family, signal},
    support::{
        Client, PATIENCE, Process, connect, database, folder, private_postgres, publish, server, sql, token, url,
    },
};

fn seconds(headers: &HeaderMap) -> u64 {
    headers["retry-after"].to_str().unwrap().parse().unwrap()
}

/// A browser is told so, and no more than that; in how many milliseconds it comes back.
async fn told(browser: &Client, query: &str, last_event_id: &str, reason: &str) -> u64 {
    let request = browser.request(Method::GET, &format!("/events?{query}")).header("last-event-id", last_event_id);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{reason}");
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/event-stream", "{reason}");
    assert_eq!(headers["cache-control"], "no-cache, no-transform", "{reason}");
    let text = response.text().await.unwrap();
    let frames = crewcast::sse::Parser::default().push(text.as_bytes());
    let [frame] = &frames[..] else { panic!("{reason}: {text}") };
    let data: Value = serde_json::from_str(&frame.data).unwrap();
    assert_eq!((frame.event.as_str(), &data["reason"]), ("stream:closing", &json!(reason)), "{text}");
    let reconnect_ms = data["reconnectInMs"].as_u64().unwrap();
    assert_eq!(frame.retry, Some(reconnect_ms), "what a browser heeds by itself: {text}");
    assert_eq!(frame.id, "", "the position stays what it was: {text}");
    assert_eq!(seconds(&headers), reconnect_ms.div_ceil(1000), "{reason}");
    reconnect_ms
}

/// The honest answer to the same question.
async fn honest(caller: &Client, query: &str, last_event_id: &str) -> (u16, String, Option<u64>) {
    let request = caller.request(Method::GET, &format!("/events?{query}")).header("last-event-id", last_event_id);
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let problem: Value = response.json().await.unwrap();
    let after = headers.contains_key("retry-after").then(|| seconds(&headers));
    (status, problem["code"].as_str().unwrap().to_owned(), after)
}

#[tokio::test]
async fn a_node_with_as_many_streams_as_it_may_have_sends_browsers_away_for_longer() {
    let server = server(&database().await, &["--streams-max=1"]).await;
    let (ana, browser) = (Client::admin(&server), Client::nobody(&server));
    let query = format!("ticket={}", ana.ticket().await);
    let mut stream = browser.stream(&query, "").await;
    stream.expect("stream:open").await;
    assert_eq!(honest(&ana, "", "").await, (503, "overloaded".to_owned(), Some(5)));
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(told(&browser, &query, "", "overload").await);
    }
    assert!(times.iter().all(|time| (5000..=15_000).contains(time)), "{times:?}");
    times.sort_unstable();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] > 500), "not at once: {times:?}");
    // What is wrong for good is said all the same.
    for (query, status) in [
        (format!("rooms=nonsense&{query}"), StatusCode::BAD_REQUEST),
        (format!("x=eyJhbGci.eyJzdWIi.c2lnbmF0dXJl&{query}"), StatusCode::BAD_REQUEST),
        ("ticket=nonsense".to_owned(), StatusCode::UNAUTHORIZED),
    ] {
        let response = browser.request(Method::GET, &format!("/events?{query}")).send().await.unwrap();
        assert_eq!(response.status(), status, "{query}");
    }
    let metrics = ana.metrics().await;
    assert_eq!(metrics["crewcast_come_backs_total{reason=\"overload\"}"], 5.0);
    assert_eq!(metrics["crewcast_streams_refused_total{reason=\"overload\"}"], 6.0);
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn who_has_reached_a_limit_comes_back_when_it_lets_them() {
    let url = database().await;
    let server = server(&url, &["--streams-per-user=1", "--connects-per-minute=6"]).await;
    let (ana, browser) = (Client::admin(&server), Client::nobody(&server));
    let query = format!("ticket={}", ana.ticket().await);
    let mut stream = browser.stream(&query, "").await;
    stream.expect("stream:open").await;
    assert_eq!(honest(&ana, "", "").await, (429, "too_many_streams".to_owned(), Some(10)));
    let reconnect_ms = told(&browser, &query, "", "limit").await;
    assert!((10_000..=20_000).contains(&reconnect_ms), "{reconnect_ms}");
    // The address has three left, which others use up.
    for _ in 0..3 {
        Client::new(&server, &token("ben", &[])).request(Method::GET, "/events").send().await.unwrap();
    }
    assert_eq!(honest(&ana, "", "").await, (429, "rate_limited".to_owned(), Some(10)));
    let reconnect_ms = told(&browser, &query, "", "limit").await;
    assert!((10_000..=20_000).contains(&reconnect_ms), "{reconnect_ms}");
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_shuts_down_sends_browsers_to_the_next() {
    let url = database().await;
    let far = server(&url, &[]).await;
    let near = Process::start(&url, &["--drain-spread=1h", "--drain-deadline=2h"]).await;
    let ana = Client::at(&near.address, &token("ana", &[Role::Admin]));
    let browser = Client::at(&near.address, "");
    let query = format!("ticket={}", ana.ticket().await);
    // The second one's turn comes in half an hour.
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = browser.stream(&query, "").await;
        stream.expect("stream:open").await;
        streams.push(stream);
    }
    kill(Pid::from_raw(near.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    streams[0].expect("stream:closing").await;
    assert_eq!(honest(&ana, "", "").await, (503, "draining".to_owned(), Some(1)));
    let reconnect_ms = told(&browser, &query, "", "draining").await;
    assert!((1000..=3000).contains(&reconnect_ms), "{reconnect_ms}");
    Client::nobody(&far).stream(&query, "").await.expect("stream:open").await;
    drop(streams);
    far.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_browsers_come_back_until_it_is_there() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    // A statement may take a minute: that Postgres is out of reach is what ends it.
    let server = server(&url, &["--poll=20ms", "--request-timeout=60s"]).await;
    let (ana, browser) = (Client::admin(&server), Client::nobody(&server));
    let query = format!("rooms=topic:a&ticket={}", ana.ticket().await);
    let mut stream = browser.stream(&query, "").await;
    stream.expect("stream:open").await;
    let seen = stream.last_id().to_owned();

    // It hangs: nothing is answered and nothing is refused.
    let processes = family(postgres.postmaster().unwrap());
    signal(&processes, Signal::SIGSTOP);
    let waiting: Vec<JoinHandle<u64>> = (0..3)
        .map(|_| {
            let (browser, query) = (browser.clone(), query.clone());
            tokio::spawn(async move { told(&browser, &query, "", "unavailable").await })
        })
        .collect();
    for told in waiting {
        let reconnect_ms = timeout(PATIENCE / 2, told).await.unwrap().unwrap();
        assert!((1000..=3000).contains(&reconnect_ms), "{reconnect_ms}");
    }
    // Who needs no judging is let in until the pump has noticed, too.
    while honest_status(&ana).await == StatusCode::OK {}
    assert_eq!(honest(&ana, "", "").await, (503, "unavailable".to_owned(), Some(1)));
    signal(&processes, Signal::SIGCONT);
    while browser.stream(&query, "").await.next().await.unwrap().event != "stream:open" {}

    // It is gone. Who brings a ticket that is well made cannot be judged; who brings none can.
    postgres.stop().await;
    while honest_status(&ana).await == StatusCode::OK {}
    told(&browser, &query, "", "unavailable").await;
    told(&browser, &format!("ticket=cct_{}", "A".repeat(43)), "", "unavailable").await;
    assert_eq!(honest(&ana, "", "").await, (503, "unavailable".to_owned(), Some(1)));
    let response = browser.request(Method::GET, "/events?ticket=nonsense").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);

    let postgres = private_postgres(folder.path().to_owned(), true).await;
    while browser.stream(&query, "").await.next().await.unwrap().event != "stream:open" {}
    publish(&mut connect(&url).await, "topic:a", 1..=1, 10).await;
    stream.expect("test:n").await;
    browser.stream(&query, &seen).await.expect("stream:open").await;
    drop(stream);
    server.stop().await;
    postgres.stop().await;
}

async fn honest_status(caller: &Client) -> StatusCode {
    caller.request(Method::GET, "/events").send().await.unwrap().status()
}

#[tokio::test]
async fn a_stream_that_opens_too_slowly_and_a_mistake_of_ours_send_browsers_away_for_a_while() {
    let url = database().await;
    let server = server(&url, &["--poll=20ms", "--ring-bytes=1", "--request-timeout=500ms"]).await;
    let (ana, browser, mut conn) = (Client::admin(&server), Client::nobody(&server), connect(&url).await);
    let ticket = ana.ticket().await;
    let query = format!("rooms=topic:a&ticket={ticket}");
    let mut live = browser.stream(&query, "").await;
    let (open, _) = live.expect("stream:open").await;
    publish(&mut conn, "topic:a", 1..=3, 10).await;
    for _ in 0..3 {
        live.expect("test:n").await;
    }
    // What was missed cannot be counted as long as this is held.
    sql(&mut conn, "begin").await;
    sql(&mut conn, "lock table crewcast.event_rooms in access exclusive mode").await;
    told(&browser, &query, &open.id, "unavailable").await;
    assert_eq!(honest(&ana, "rooms=topic:a", &open.id).await, (503, "unavailable".to_owned(), Some(1)));
    sql(&mut conn, "rollback").await;
    let mut resumed = browser.stream(&query, &open.id).await;
    assert_eq!(resumed.expect("stream:open").await.1["resume"], "replayed");

    let project = ana.project("north").await;
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let ben = Client::new(&server, &crate::support::mint(&Claims::new("ben".parse().unwrap(), exp)));
    let (room, ticket) = (format!("rooms=project:{project}"), ben.ticket().await);
    sql(&mut conn, "alter table crewcast.members rename to mislaid").await;
    told(&browser, &format!("{room}&ticket={ticket}"), "", "unavailable").await;
    assert_eq!(honest(&ben, &room, "").await, (500, "internal".to_owned(), None));
    drop((live, resumed));
    server.stop().await;
}

#[tokio::test]
async fn a_ticket_is_in_no_line_of_the_log_however_much_is_logged() {
    let (url, log) = (database().await, tempfile::NamedTempFile::new().unwrap());
    let settings = ["--poll=20ms", "--ticket-idle=400ms", "--streams-max=1"];
    let mut server = Process::start_logging(&url, &settings, "trace", log.reopen().unwrap().into()).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let browser = Client::at(&server.address, "");
    let ticket = ana.ticket().await;
    let query = format!("ticket={ticket}");
    let mut stream = browser.stream(&query, "").await;
    stream.expect("stream:open").await;
    while ana.metrics().await["crewcast_tickets_renewed_total"] < 2.0 {}
    // Each with another end: refused for a while, elsewhere, in a path, nowhere, twice, spoilt, beside nonsense.
    told(&browser, &query, "", "overload").await;
    for path in [
        format!("/v1/projects?{query}"),
        format!("/v1/projects/{ticket}?{query}"),
        format!("/nowhere?{query}"),
        format!("/events?{query}&{query}"),
        format!("/events?{query}x"),
        format!("/events?rooms=nonsense&{query}"),
        format!("/events?x=%ff&{query}"),
    ] {
        let (status, problem) = browser.send(Method::GET, &path, Value::Null).await;
        assert!(status.is_client_error() && !problem.to_string().contains(&ticket), "{status} {problem}");
    }
    // And with a cause that is logged.
    let mut conn = connect(&url).await;
    sql(&mut conn, "alter table crewcast.tickets rename to mislaid").await;
    told(&browser, &query, "", "unavailable").await;
    assert_eq!(ana.send(Method::POST, "/v1/stream-tickets", Value::Null).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    sql(&mut conn, "alter table crewcast.mislaid rename to tickets").await;
    drop(stream);
    kill(Pid::from_raw(server.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    timeout(PATIENCE, server.child.wait()).await.expect("the process ends").unwrap();
    let log = std::fs::read_to_string(log.path()).unwrap();
    for sign in
        ["insert into crewcast.tickets", "update crewcast.tickets", "request failed", "put off", "stream opened"]
    {
        assert!(log.contains(sign), "a log that tells little: {sign} is not in it");
    }
    let secret = ticket.trim_start_matches("cct_");
    let shown: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
    assert_eq!(shown, [""; 0]);
}
