//! A session's streams: they live with it, and end with it, on whatever node it was ended.

use crewcast::auth::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{own, sign_in, until, until_counted, with_seconds_left};
use crate::support::{
    Client, PATIENCE, Process, Stream, connect, database, folder, private_postgres, publish, server, sql, token, url,
};

const OPEN: &str = "crewcast_sessions_open";

async fn opened(browser: &Client, query: &str) -> Stream {
    let mut stream = browser.stream(query, "").await;
    stream.expect("stream:open").await;
    stream
}

async fn sign_out(browser: &Client) {
    let (status, problem) = browser.send(Method::DELETE, "/v1/session", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{problem}");
}

/// A stream that does not end would beat for ever.
async fn ends(stream: &mut Stream, reason: &str) {
    let closing = timeout(PATIENCE, stream.expect("stream:closing")).await.expect("it ends");
    assert_eq!(closing.1["reason"], reason);
    assert!(stream.next().await.is_none(), "it is the last event");
}

#[tokio::test]
async fn signing_out_ends_the_sessions_streams_on_every_node_and_no_others() {
    let url = database().await;
    // The node that is asked does not wait for its time to look, and the other one does.
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=50ms"]).await);
    let ana = Client::admin(&near);
    let (cookie, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    let mut ending = Vec::new();
    let mut staying = vec![ana.follow("rooms=topic:a").await];
    for server in [&near, &near, &far] {
        ending.push(opened(&own(server, &cookie), "rooms=topic:a").await);
        staying.push(opened(&own(server, &other), "rooms=topic:a").await);
    }
    staying.push(opened(&Client::nobody(&far), &format!("rooms=topic:a&ticket={}", ana.ticket().await)).await);
    sign_out(&own(&near, &cookie)).await;
    for stream in &mut ending {
        ends(stream, "signed_out").await;
    }
    publish(&mut connect(&url).await, "topic:a", 1..=1, 10).await;
    for stream in &mut staying {
        stream.expect("test:n").await;
    }
    let refused = own(&far, &cookie).request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "who signed out must not come back");
    assert_eq!(ana.metrics().await["crewcast_session_streams_ended_total"], 2.0);
    assert_eq!(Client::nobody(&far).metrics().await["crewcast_session_streams_ended_total"], 1.0);
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn other_nodes_hear_of_it_at_once() {
    let url = database().await;
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=1h"]).await);
    let cookie = sign_in(&Client::admin(&near), "").await;
    let mut stream = opened(&own(&far, &cookie), "").await;
    sign_out(&own(&near, &cookie)).await;
    ends(&mut stream, "signed_out").await;
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn streams_lose_what_a_new_token_does_not_give() {
    let url = database().await;
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=50ms"]).await);
    let old = sign_in(&Client::admin(&near), "").await;
    let query = "rooms=company,topic:board";
    let mut streams = [opened(&own(&near, &old), query).await, opened(&own(&far, &old), query).await];
    let new = sign_in(&Client::new(&near, &token("ana", &[])), &old).await;
    let mut conn = connect(&url).await;
    for stream in &mut streams {
        let (_, told) = timeout(PATIENCE, stream.expect("stream:rooms")).await.expect("it is told");
        assert_eq!(told["left"], json!([{ "room": "topic:board", "reason": "revoked" }]));
    }
    publish(&mut conn, "topic:board", 1..=1, 10).await;
    publish(&mut conn, "company", 2..=2, 10).await;
    for stream in &mut streams {
        assert_eq!(stream.expect("test:n").await.1["n"], 2);
    }
    sign_out(&own(&near, &new)).await;
    for stream in &mut streams {
        ends(stream, "signed_out").await;
    }
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn streams_live_on_when_their_user_signs_in_again_and_end_with_the_new_token() {
    let url = database().await;
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=50ms"]).await);
    let old_end = time::OffsetDateTime::now_utc().unix_timestamp() + 3;
    let old = sign_in(&with_seconds_left(&near, "ana", 3), "").await;
    let mut streams = Vec::new();
    for server in [&near, &far] {
        let mut stream = own(server, &old).stream("rooms=company", "").await;
        stream.expect("stream:open").await;
        stream.expect("stream:expiring").await;
        streams.push(stream);
    }
    let new = sign_in(&with_seconds_left(&near, "ana", 3600), &old).await;
    // Past the end of the old token.
    let mut conn = connect(&url).await;
    until(&mut conn, &format!("now() > to_timestamp({old_end}) + interval '500 ms'")).await;
    publish(&mut conn, "company", 1..=1, 10).await;
    for stream in &mut streams {
        stream.expect("test:n").await;
    }
    sign_out(&own(&near, &new)).await;
    for stream in &mut streams {
        ends(stream, "signed_out").await;
    }
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn streams_end_when_somebody_else_signs_in_with_their_cookie() {
    let url = database().await;
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=50ms"]).await);
    let old = sign_in(&Client::admin(&near), "").await;
    let mut streams = [opened(&own(&near, &old), "").await, opened(&own(&far, &old), "").await];
    let new = sign_in(&Client::new(&near, &token("ben", &[])), &old).await;
    let mut bens = opened(&own(&near, &new), "").await;
    for stream in &mut streams {
        ends(stream, "signed_out").await;
    }
    publish(&mut connect(&url).await, "company", 1..=1, 10).await;
    bens.expect("test:n").await;
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn a_node_knows_which_sessions_have_streams() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let (one, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    let streams = [
        opened(&own(&server, &one), "").await,
        opened(&own(&server, &one), "").await,
        opened(&own(&server, &other), "").await,
    ];
    assert_eq!(ana.metrics().await[OPEN], 2.0);
    // A stream that is not opened leaves nothing behind.
    let refused = own(&server, &sign_in(&ana, "").await).request(Method::GET, "/events?rooms=x").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(ana.metrics().await[OPEN], 2.0);
    drop(streams);
    let gone = async { while ana.metrics().await[OPEN] > 0.0 {} };
    timeout(PATIENCE, gone).await.unwrap();
    server.stop().await;
}

/// A browser is told in a stream to come back, and why.
async fn told(browser: &Client, reason: &str) {
    let response = browser.request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (StatusCode::OK, &"text/event-stream".parse().unwrap())
    );
    let text = response.text().await.unwrap();
    let frames = crewcast::sse::Parser::default().push(text.as_bytes());
    let [frame] = &frames[..] else { panic!("{reason}: {text}") };
    let data: Value = serde_json::from_str(&frame.data).unwrap();
    assert_eq!((frame.event.as_str(), data["reason"].as_str()), ("stream:closing", Some(reason)), "{text}");
    assert_eq!(frame.retry, data["reconnectInMs"].as_u64(), "{text}");
}

#[tokio::test]
async fn a_browser_that_is_only_to_wait_is_told_so_in_a_stream() {
    let url = database().await;
    let full = server(&url, &["--streams-max=1"]).await;
    let limited = server(&url, &["--streams-per-user=1"]).await;
    let cookie = sign_in(&Client::admin(&full), "").await;
    for (server, reason) in [(&full, "overload"), (&limited, "limit")] {
        let stream = opened(&own(server, &cookie), "").await;
        told(&own(server, &cookie), reason).await;
        drop(stream);
    }
    // What is wrong for good is said all the same.
    let refused = own(&full, &cookie).request(Method::GET, "/events?rooms=nonsense").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let near = Process::start(&url, &["--drain-spread=1h", "--drain-deadline=2h"]).await;
    let browser = Client::browser(&near.address, &cookie, "");
    // The second one's turn comes in half an hour.
    let mut streams = [opened(&browser, "").await, opened(&browser, "").await];
    kill(Pid::from_raw(near.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    ends(&mut streams[0], "draining").await;
    told(&browser, "draining").await;
    limited.stop().await;
    full.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_no_stream_ends_and_nobody_is_told_that_their_cookie_is_bad() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    let server = server(&url, &["--poll=20ms", "--session-check=50ms"]).await;
    let ana = Client::admin(&server);
    let browser = own(&server, &sign_in(&ana, "").await);
    let mut stream = opened(&browser, "rooms=topic:a").await;
    postgres.stop().await;
    let status = async |method: Method, path: &str| browser.send(method, path, Value::Null).await.0;
    while status(Method::GET, "/v1/me").await == StatusCode::OK {}
    assert_eq!(status(Method::GET, "/v1/me").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status(Method::DELETE, "/v1/session").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ana.send(Method::POST, "/v1/session", Value::Null).await.0, StatusCode::SERVICE_UNAVAILABLE);
    // What asks for nobody asks nothing of Postgres either.
    for path in ["/healthz", "/metrics", "/docs"] {
        assert_eq!(status(Method::GET, path).await, StatusCode::OK, "{path}");
    }
    told(&browser, "unavailable").await;
    let nonsense = own(&server, "__Host-crewcast=nonsense").send(Method::GET, "/v1/me", Value::Null).await;
    assert_eq!(nonsense.0, StatusCode::UNAUTHORIZED, "that needs no Postgres");

    let postgres = private_postgres(folder.path().to_owned(), true).await;
    while status(Method::GET, "/v1/me").await != StatusCode::OK {}
    publish(&mut connect(&url).await, "topic:a", 1..=1, 10).await;
    stream.expect("test:n").await;
    until_counted(&ana, OPEN, 1.0).await;
    sign_out(&browser).await;
    ends(&mut stream, "signed_out").await;
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test]
async fn a_cookie_is_in_no_line_of_the_log_however_much_is_logged() {
    let (url, log) = (database().await, tempfile::NamedTempFile::new().unwrap());
    let settings = ["--poll=20ms", "--session-check=20ms", "--streams-max=1"];
    let mut server = Process::start_logging(&url, &settings, "trace", log.reopen().unwrap().into()).await;
    let ana = Client::at(&server.address, &token("ana", &[Role::Admin]));
    let origin = format!("http://{}", server.address);
    let first = sign_in(&ana, "").await;
    let cookie = sign_in(&ana, &first).await;
    let browser = Client::browser(&server.address, &cookie, &origin);
    let stream = opened(&browser, "").await;
    told(&browser, "overload").await;
    // Each with another end: fine, refused, twice, spoilt, from elsewhere.
    let bad = [first.clone(), format!("{cookie}; {cookie}"), format!("{cookie}x")];
    let elsewhere = Client::browser(&server.address, &cookie, "https://evil.example");
    let browsers = bad.iter().map(|bad| Client::browser(&server.address, bad, &origin)).chain([elsewhere]);
    for browser in browsers {
        let (status, problem) = browser.send(Method::POST, "/v1/projects", Value::Null).await;
        assert!(status.is_client_error() && !problem.to_string().contains("ccs_"), "{status} {problem}");
    }
    // And with a cause that is logged.
    let mut conn = connect(&url).await;
    sql(&mut conn, "alter table crewcast.sessions rename to mislaid").await;
    assert_eq!(browser.send(Method::GET, "/v1/me", Value::Null).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ana.send(Method::POST, "/v1/session", Value::Null).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    sql(&mut conn, "alter table crewcast.mislaid rename to sessions").await;
    sign_out(&browser).await;
    drop(stream);
    kill(Pid::from_raw(server.child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    timeout(PATIENCE, server.child.wait()).await.expect("the process ends").unwrap();
    let log = std::fs::read_to_string(log.path()).unwrap();
    let signs = ["insert into crewcast.sessions", "from crewcast.sessions where digest", "bad_origin", "stream opened"];
    for sign in signs {
        assert!(log.contains(sign), "a log that tells little: {sign} is not in it");
    }
    let causes = log.lines().filter(|line| line.contains("request failed") && line.contains("does not exist"));
    assert!(causes.count() >= 2, "what Postgres said is told for both");
    for cookie in [&first, &cookie] {
        let secret = cookie.split_once("ccs_").unwrap().1;
        let shown: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
        assert_eq!(shown, [""; 0]);
    }
}
