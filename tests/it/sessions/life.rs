//! How a session goes on, and how it ends.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{COOKIE, is_refused, is_so, kept, me, own, sign_in, until, with_seconds_left};
use crate::support::{Client, connect, database, number, server, sql, token};

const SESSIONS: &str = "select count(*) from crewcast.sessions";

async fn id_of(conn: &mut sqlx::PgConnection) -> String {
    sqlx::query_scalar("select string_agg(id::text, ' ') from crewcast.sessions").fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn who_signs_in_again_has_the_same_session_and_another_cookie() {
    let url = database().await;
    let (near, far) = (server(&url, &[]).await, server(&url, &[]).await);
    let (member, mut conn) = (Client::new(&near, &token("ana", &[])), connect(&url).await);
    let old = sign_in(&member, "").await;
    let id = id_of(&mut conn).await;
    let (status, _) = own(&far, &old).send(Method::PUT, "/v1/divisions/north", json!({ "name": "North" })).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let new = sign_in(&Client::admin(&far), &old).await;
    assert_ne!(old, new);
    assert_eq!(id_of(&mut conn).await, id);
    for server in [&near, &far] {
        assert_eq!(me(&own(server, &new)).await, Ok("ana".to_owned()));
        is_refused(&own(server, &old), "no such session").await;
        // It has the claims of the last token.
        let named = own(server, &new).send(Method::PUT, "/v1/divisions/north", json!({ "name": "North" })).await;
        assert!(named.0.is_success(), "{named:?}");
    }
    // The old cookie, which somebody may have stolen, brings nobody into the session.
    sign_in(&member, &old).await;
    assert_eq!(number(&mut conn, SESSIONS).await, 2);
    assert_eq!(me(&own(&near, &new)).await, Ok("ana".to_owned()));
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn who_signs_in_as_somebody_else_ends_the_session_that_was_there() {
    let url = database().await;
    let server = server(&url, &["--sessions-per-user=1"]).await;
    let (ana, ben) = (Client::admin(&server), Client::new(&server, &token("ben", &[])));
    let mut conn = connect(&url).await;
    let old = sign_in(&ana, "").await;
    let new = sign_in(&ben, &old).await;
    assert_eq!(me(&own(&server, &new)).await, Ok("ben".to_owned()));
    is_refused(&own(&server, &old), "no such session").await;
    assert_eq!(number(&mut conn, SESSIONS).await, 1);
    // Where no session begins, none ends.
    let other = sign_in(&ana, "").await;
    let refused = ben.request(Method::POST, "/v1/session").header("cookie", &other).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!refused.headers().contains_key("set-cookie"));
    assert_eq!(me(&own(&server, &other)).await, Ok("ana".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn a_cookie_that_is_none_of_ours_is_no_hindrance_to_signing_in() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ana = Client::admin(&server);
    let (one, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    // Of two nobody knows which one is meant: both stay what they are.
    for old in [format!("{COOKIE}=nonsense"), format!("{COOKIE}=ccs_{}", "A".repeat(43)), format!("{one}; {other}")] {
        let new = sign_in(&ana, &old).await;
        for cookie in [&one, &other, &new] {
            assert_eq!(me(&own(&server, cookie)).await, Ok("ana".to_owned()), "{old}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let mut conn = connect(&url).await;
    let cookie = sign_in(&with_seconds_left(&server, "ana", 2), "").await;
    let browser = own(&server, &cookie);
    assert_eq!(me(&browser).await, Ok("ana".to_owned()));
    let mut stream = browser.stream("", "").await;
    stream.expect("stream:open").await;
    stream.expect("stream:expiring").await;
    assert_eq!(stream.expect("stream:closing").await.1["reason"], "expired");
    until(&mut conn, "ends_at <= now() from crewcast.sessions").await;
    is_refused(&browser, "has expired").await;
    // It was good once: every laptop that wakes up has one.
    assert!(!browser.metrics().await.contains_key("crewcast_suspicions_total{kind=\"bad_token\"}"));
    // Who signs in again begins anew.
    let new = sign_in(&Client::admin(&server), &cookie).await;
    assert_eq!(me(&own(&server, &new)).await, Ok("ana".to_owned()));
    assert_eq!(number(&mut conn, SESSIONS).await, 2);
    server.stop().await;
}

#[tokio::test]
async fn signing_out_ends_the_session_and_takes_the_cookie() {
    let url = database().await;
    let (near, far) = (server(&url, &[]).await, server(&url, &[]).await);
    let (ana, mut conn) = (Client::admin(&near), connect(&url).await);
    let (cookie, other) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    // Once more, and without any, it is the same.
    for cookie in [&cookie, &cookie, "", &format!("{COOKIE}=nonsense")] {
        let response = own(&far, cookie).request(Method::DELETE, "/v1/session").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{cookie}");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (cleared, attributes) = kept(response.headers());
        assert_eq!(cleared, "__Host-crewcast=");
        assert_eq!(attributes, ["Max-Age=0", "Path=/", "HttpOnly", "Secure", "SameSite=Strict"]);
    }
    for server in [&near, &far] {
        is_refused(&own(server, &cookie), "was signed out of").await;
        assert_eq!(me(&own(server, &other)).await, Ok("ana".to_owned()));
    }
    // Of several that are one's own, all end.
    let (one, two) = (sign_in(&ana, "").await, sign_in(&ana, "").await);
    let status =
        own(&near, &format!("{one}; {COOKIE}=x; {two}")).send(Method::DELETE, "/v1/session", Value::Null).await.0;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(number(&mut conn, SESSIONS).await, 1);
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn a_user_has_no_more_sessions_than_they_may() {
    let url = database().await;
    let server = server(&url, &["--sessions-per-user=3"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut cookie = String::new();
    for _ in 0..3 {
        cookie = sign_in(&ana, "").await;
    }
    let refused = ana.request(Method::POST, "/v1/session").send().await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"60".parse().unwrap())
    );
    assert!(!refused.headers().contains_key("set-cookie"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "rate_limited");
    // Who has one may go on with it, and others are not counted.
    cookie = sign_in(&ana, &cookie).await;
    sign_in(&Client::new(&server, &token("ben", &[])), "").await;
    own(&server, &cookie).send(Method::DELETE, "/v1/session", Value::Null).await;
    sign_in(&ana, "").await;
    sql(&mut conn, "update crewcast.sessions set ends_at = now() where sub = 'ana'").await;
    sign_in(&ana, "").await;
    server.stop().await;
}

#[tokio::test]
async fn sessions_that_ended_long_ago_are_swept_and_no_others() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    for age in ["25 hours", "23 hours", "0"] {
        sign_in(&ana, "").await;
        let set = format!("update crewcast.sessions set ends_at = now() - interval '{age}' where ends_at > now()");
        sql(&mut conn, &set).await;
    }
    sign_in(&ana, "").await;
    let sweep = crewcast::auth::session::sweep();
    assert_eq!(sweep.age, Duration::from_hours(24));
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    sweep.all(&crewcast::db::Db::new(options, 1, Duration::from_secs(30), Default::default())).await.unwrap();
    assert_eq!(number(&mut conn, SESSIONS).await, 3);
    assert!(is_so(&mut conn, "min(ends_at) > now() - interval '24 hours' from crewcast.sessions").await);
    server.stop().await;
}
