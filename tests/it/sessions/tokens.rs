//! A token that is put on a stream which was opened with the cookie.

use std::time::Instant;

use crewcast::auth::Claims;
use reqwest::{Method, StatusCode, header::SET_COOKIE};
use serde_json::json;
use tokio::time::timeout;

use super::{kept, me, own, sign_in, with_seconds_left};
use crate::support::{Client, PATIENCE, Stream, connect, database, mint, publish, server, token};

/// A stream, and its id.
async fn opened(browser: &Client, query: &str) -> (Stream, String) {
    let mut stream = browser.stream(query, "").await;
    let (_, open) = stream.expect("stream:open").await;
    (stream, open["streamId"].as_str().unwrap().to_owned())
}

/// Puts a token on a stream; the answer.
async fn put_token(request: reqwest::RequestBuilder, token: &str) -> reqwest::Response {
    let response = request.json(&json!({ "token": token })).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response
}

fn path(stream: &str) -> String {
    format!("/v1/streams/{stream}/token")
}

#[tokio::test]
async fn a_session_goes_on_with_the_token_that_is_put_on_one_of_its_streams() {
    let url = database().await;
    // The nodes hear of it, and do not wait for their time to look.
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=1h"]).await);
    let ana = with_seconds_left(&near, "ana", 3);
    let (cookie, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    let (one, _) = opened(&own(&near, &cookie), "").await;
    let (another, _) = opened(&own(&near, &cookie), "").await;
    let (elsewhere, id) = opened(&own(&far, &cookie), "").await;
    let (mut others, _) = opened(&own(&far, &other), "").await;
    let asked = own(&near, &cookie).request(Method::PUT, &path(&id));
    let begun = Instant::now();
    let renewed = put_token(asked, &token("ana", &[])).await;
    // Whole seconds of an hour, less those that the answer took.
    let good_for = 3599 - begun.elapsed().as_secs()..=3600;
    let (again, attributes) = kept(renewed.headers());
    assert_eq!(again, cookie, "its value stays, also for what else uses it");
    let max_age = attributes[0].strip_prefix("Max-Age=").and_then(|seconds| seconds.parse().ok());
    assert!(max_age.is_some_and(|max_age| good_for.contains(&max_age)), "{attributes:?} {good_for:?}");
    assert_eq!(renewed.headers()["cache-control"], "no-store");
    // That is past the end of the token of before.
    others.expect("stream:expiring").await;
    assert_eq!(others.expect("stream:closing").await.1["reason"], "expired");
    publish(&mut connect(&url).await, "company", 1..=1, 10).await;
    let mut streams = [one, another, elsewhere];
    for stream in &mut streams {
        stream.expect("stream:expiring").await;
        stream.expect("test:n").await;
    }
    // And a browser that comes back by itself finds that it may.
    drop(streams);
    for server in [&near, &far] {
        opened(&own(server, &cookie), "").await;
        assert_eq!(me(&own(server, &cookie)).await, Ok("ana".to_owned()));
    }
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn a_token_with_less_takes_rooms_from_all_streams_of_the_session() {
    let url = database().await;
    let (near, far) = (server(&url, &["--session-check=1h"]).await, server(&url, &["--session-check=1h"]).await);
    // Both end at the same time: only their claims differ.
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let less = Claims::new("ben".parse().unwrap(), exp);
    let more = mint(&Claims { topics: vec!["a".parse().unwrap()], ..less.clone() });
    let cookie = sign_in(&Client::new(&near, &more), "").await;
    let mut streams = Vec::new();
    for server in [&near, &near, &far] {
        streams.push(opened(&own(server, &cookie), "rooms=company,topic:a").await);
    }
    put_token(own(&far, &cookie).request(Method::PUT, &path(&streams[0].1)), &mint(&less)).await;
    for (stream, _) in &mut streams {
        let (_, rooms) = timeout(PATIENCE, stream.expect("stream:rooms")).await.expect("a room is taken away");
        assert_eq!(rooms["left"], json!([{ "room": "topic:a", "reason": "revoked" }]));
    }
    let refused = own(&near, &cookie).request(Method::GET, "/events?rooms=topic:a").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn only_who_brings_the_sessions_cookie_is_given_it_again() {
    let server = server(&database().await, &[]).await;
    let ana = Client::new(&server, &token("ana", &[]));
    let (cookie, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    let (_bound, bound) = opened(&own(&server, &cookie), "").await;
    let (_free, free) = opened(&ana, "").await;
    let cookies = [String::new(), other, format!("{cookie}; {cookie}"), "__Host-crewcast=x".to_owned()];
    let unbound = [(&free, cookie.clone())];
    for (stream, brought) in cookies.into_iter().map(|cookie| (&bound, cookie)).chain(unbound) {
        let request = ana.request(Method::PUT, &path(stream)).header("cookie", &brought);
        let renewed = put_token(request, &token("ana", &[])).await;
        assert!(!renewed.headers().contains_key(SET_COOKIE), "{brought}");
    }
    let request = ana.request(Method::PUT, &path(&bound)).header("cookie", &cookie);
    assert_eq!(kept(put_token(request, &token("ana", &[])).await.headers()).0, cookie);
    server.stop().await;
}
