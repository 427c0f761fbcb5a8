//! A stream whose token ends, or is replaced.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{HOUR, expect_n, member, nodes, open, open_at, say};
use crate::support::{Client, database, server};

async fn put_token(client: &Client, stream: &str, token: &str) -> (StatusCode, Value) {
    client.send(Method::PUT, &format!("/v1/streams/{stream}/token"), json!({ "token": token })).await
}

#[tokio::test]
async fn another_token_carries_a_stream_past_the_end_of_the_first() {
    let [here, there] = nodes(&["--expiring-ahead=2s"]).await;
    for asked in [&here, &there] {
        let short = member("ben", &[], &["a"], Duration::from_secs(3));
        let (ben, asking) = (Client::new(&here, &short), Client::new(asked, &member("ben", &[], &[], HOUR)));
        let (mut stream, id) = open(&ben, "rooms=topic:a").await;
        let (_, expiring) = stream.expect("stream:expiring").await;
        let (status, renewed) = put_token(&asking, &id, &member("ben", &[], &["a"], Duration::from_secs(6))).await;
        assert_eq!(status, StatusCode::OK, "{renewed}");
        assert!(renewed["expiresAt"].as_str() > expiring["expiresAt"].as_str());
        // It is told of the new end, too, and only then it ends.
        let (_, again) = stream.expect("stream:expiring").await;
        assert_eq!(again["expiresAt"], renewed["expiresAt"]);
        say(&Client::admin(&here), "topic:a", 1).await;
        expect_n(&mut stream, 1).await;
        assert_eq!(stream.expect("stream:closing").await.1["reason"], "expired");
        assert!(stream.next().await.is_none());
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_token_with_less_takes_the_rooms_away_that_it_does_not_give() {
    let [here, there] = nodes(&[]).await;
    let admin = Client::admin(&here);
    let project = admin.project("north").await;
    for asked in [&here, &there] {
        let ben = Client::new(&here, &member("ben", &["north"], &["a", "b"], HOUR));
        let query = format!("rooms=company,division:north,topic:a,topic:b,project:{project}");
        let (mut stream, id) = open(&ben, &query).await;
        let less = member("ben", &[], &["b"], HOUR);
        assert_eq!(put_token(&Client::new(asked, &less), &id, &less).await.0, StatusCode::OK);
        let (_, rooms) = stream.expect("stream:rooms").await;
        let mut left: Vec<&str> =
            rooms["left"].as_array().unwrap().iter().map(|left| left["room"].as_str().unwrap()).collect();
        left.sort_unstable();
        assert_eq!(left, ["division:north", &format!("project:{project}"), "topic:a"]);
        assert!(rooms["left"].as_array().unwrap().iter().all(|left| left["reason"] == "revoked"));
        say(&admin, "topic:a", 1).await;
        say(&admin, "topic:b", 2).await;
        expect_n(&mut stream, 2).await;
        // What the old one gave is not to be had again.
        let (status, _) = super::ask(&Client::new(asked, &less), &id, json!({ "join": ["topic:a"] })).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn nothing_but_a_good_token_of_the_same_user_goes_on_a_stream() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ben = Client::new(&server, &member("ben", &[], &["a"], HOUR));
    let (mut stream, id) = open(&ben, "rooms=topic:a").await;
    let (status, _) = put_token(&ben, &id, &member("mia", &[], &["a"], HOUR)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let good = member("ben", &[], &[], HOUR);
    let tampered = format!("{}x", &good[..good.len() - 1]);
    for bad in ["", "nonsense", &tampered, &member("ben", &[], &[], Duration::ZERO)] {
        let (status, problem) = put_token(&ben, &id, bad).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("/token")));
        assert!(bad.is_empty() || !problem.to_string().contains(bad), "nothing of it is repeated");
    }
    say(&Client::admin(&server), "topic:a", 1).await;
    expect_n(&mut stream, 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_ticket_goes_on_with_the_token_that_is_put_on_its_stream() {
    let url = database().await;
    let server = server(&url, &["--expiring-ahead=1s"]).await;
    let ben = Client::new(&server, &member("ben", &[], &["a"], Duration::from_secs(3)));
    let ticket = ben.ticket().await;
    let browser = Client::nobody(&server);
    let query = format!("rooms=topic:a&ticket={ticket}");
    let (mut stream, id) = open_at(&browser, &query, "").await;
    let longer = member("ben", &[], &["a"], HOUR);
    assert_eq!(put_token(&Client::new(&server, &longer), &id, &longer).await.0, StatusCode::OK);
    // Longer than the first token was good for: the stream lives, and its browser may come back with the same address.
    let mut other = Client::new(&server, &member("ben", &[], &[], Duration::from_secs(3))).stream("", "").await;
    other.expect("stream:open").await;
    other.expect("stream:expiring").await;
    assert_eq!(other.expect("stream:closing").await.1["reason"], "expired");
    say(&Client::admin(&server), "topic:a", 1).await;
    expect_n(&mut stream, 1).await;
    drop(stream);
    open_at(&browser, &query, "").await;
    server.stop().await;
}
