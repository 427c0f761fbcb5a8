//! Rooms that a stream joins and leaves.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{HOUR, ask, expect_n, member, moved, nodes, open, say, settle};
use crate::support::{Client, database, server, token};
use crewcast::auth::Role;

#[tokio::test]
async fn a_room_joined_later_brings_what_comes_then_until_it_is_left() {
    let [here, there] = nodes(&["--poll=50ms"]).await;
    for asked in [&here, &there] {
        let (ana, asking) = (Client::admin(&here), Client::admin(asked));
        let (mut stream, id) = open(&ana, "rooms=topic:a").await;
        say(&ana, "topic:b", 1).await;
        settle(&ana, &mut stream, "topic:a").await;
        let joined = moved(&asking, &id, json!({ "join": ["topic:b"] })).await;
        assert_eq!(joined, json!({ "joined": ["topic:b"], "left": [], "refused": [] }));
        assert_eq!(stream.expect("stream:rooms").await.1, joined);
        say(&ana, "topic:b", 2).await;
        say(&ana, "topic:a", 3).await;
        expect_n(&mut stream, 2).await;
        expect_n(&mut stream, 3).await;
        let left = moved(&asking, &id, json!({ "leave": ["topic:b", "topic:never"] })).await;
        let reason = json!([{ "room": "topic:b", "reason": "requested" }]);
        assert_eq!(left, json!({ "joined": [], "left": reason, "refused": [] }));
        assert_eq!(stream.expect("stream:rooms").await.1, left);
        say(&ana, "topic:b", 4).await;
        say(&ana, "topic:a", 5).await;
        expect_n(&mut stream, 5).await;
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn neither_joining_and_then_reading_nor_reading_and_then_joining_misses_anything() {
    let url = database().await;
    let server = server(&url, &["--poll=50ms"]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let (mut stream, id) = open(&ana, "rooms=topic:a").await;
    let rename = async |name: &str| {
        let (status, _) = ana.send(Method::PATCH, &format!("/v1/projects/{project}"), json!({ "name": name })).await;
        assert_eq!(status, StatusCode::OK);
    };
    rename("in the state").await;
    let (cursor, state) = ana.read(&format!("/v1/projects/{project}")).await;
    assert_eq!(state["name"], "in the state");
    rename("since then").await;
    settle(&ana, &mut stream, "topic:a").await;
    let room = format!("project:{project}");
    moved(&ana, &id, json!({ "join": [room], "after": cursor })).await;
    rename("live").await;
    let (frame, data) = stream.expect("project:updated").await;
    assert_eq!((data["newValue"].as_str(), data["meta"]["version"].as_i64()), (Some("since then"), Some(3)));
    assert_ne!(frame.id, cursor, "it has no id of its own");
    stream.expect("stream:rooms").await;
    let (live, data) = stream.expect("project:updated").await;
    assert_eq!(data["newValue"], "live");
    // What is resumed are the rooms of the URL; the others are joined again from there.
    drop(stream);
    rename("away").await;
    say(&ana, "topic:a", 1).await;
    let mut stream = ana.stream("rooms=topic:a", &live.id).await;
    let (_, data) = stream.expect("stream:open").await;
    assert_eq!((data["resume"].as_str(), data["rooms"].as_array().unwrap().len()), (Some("replayed"), 2));
    let id = data["streamId"].as_str().unwrap().to_owned();
    expect_n(&mut stream, 1).await;
    moved(&ana, &id, json!({ "join": [room], "after": live.id })).await;
    assert_eq!(stream.expect("project:updated").await.1["newValue"], "away");
    stream.expect("stream:rooms").await;
    server.stop().await;
}

#[tokio::test]
async fn what_was_missed_comes_from_postgres_as_well_and_nothing_twice() {
    let url = database().await;
    let server = server(&url, &["--poll=50ms", "--ring-bytes=1", "--queue-bytes=4KiB"]).await;
    let ana = Client::admin(&server);
    let (cursor, _) = ana.read("/v1/divisions").await;
    let (mut stream, id) = open(&ana, "rooms=topic:a").await;
    let mut conn = crate::support::connect(&url).await;
    for n in 1..=200 {
        let rooms = if n % 3 == 0 { "topic:a,topic:b" } else { "topic:b" };
        let data = format!(r#"{{"n":{n},"pad":"{}"}}"#, "x".repeat(100));
        crate::support::sql(&mut conn, &format!("select crewcast.publish('{{{rooms}}}', 'test:n', '{data}')")).await;
    }
    for n in (3..=200).step_by(3) {
        expect_n(&mut stream, n).await;
    }
    moved(&ana, &id, json!({ "join": ["topic:b"], "after": cursor })).await;
    for n in (1..=200).filter(|n| n % 3 != 0) {
        expect_n(&mut stream, n).await;
    }
    stream.expect("stream:rooms").await;
    say(&ana, "topic:b", 201).await;
    expect_n(&mut stream, 201).await;
    server.stop().await;
}

#[tokio::test]
async fn who_asks_for_what_they_may_not_have_is_told_and_gets_the_rest() {
    let [here, there] = nodes(&["--rooms-max=3"]).await;
    let ben = member("ben", &["north"], &["a", "b", "c", "d"], HOUR);
    for asked in [&here, &there] {
        let (ben, asking) = (Client::new(&here, &ben), Client::new(asked, &ben));
        let (mut stream, id) = open(&ben, "").await;
        let (status, problem) = ask(&asking, &id, json!({ "join": ["division:south"] })).await;
        assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
        let body = json!({ "join": ["topic:a", "division:south", "division:north"] });
        let moved_ = moved(&asking, &id, body).await;
        assert_eq!(moved_["joined"], json!(["topic:a", "division:north"]));
        assert_eq!(moved_["refused"], json!([{ "room": "division:south", "reason": "forbidden" }]));
        assert_eq!(stream.expect("stream:rooms").await.1, moved_);
        let full = moved(&asking, &id, json!({ "join": ["topic:b", "topic:a"] })).await;
        assert_eq!(full["joined"], json!(["topic:a"]));
        assert_eq!(full["refused"], json!([{ "room": "topic:b", "reason": "limit" }]));
        stream.expect("stream:rooms").await;
        let swapped = moved(&asking, &id, json!({ "join": ["topic:c"], "leave": ["topic:a"] })).await;
        assert_eq!((swapped["joined"].clone(), &swapped["left"][0]["room"]), (json!(["topic:c"]), &json!("topic:a")));
        stream.expect("stream:rooms").await;
        stream.expect("stream:rooms").await;
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_position_that_cannot_be_resumed_joins_nothing() {
    let url = database().await;
    let server = server(&url, &["--replay-events-max=3", "--poll=50ms"]).await;
    let ana = Client::admin(&server);
    let (cursor, _) = ana.read("/v1/divisions").await;
    let (mut stream, id) = open(&ana, "rooms=topic:a").await;
    for n in 0..4 {
        say(&ana, "topic:b", n).await;
    }
    settle(&ana, &mut stream, "topic:a").await;
    let foreign = cursor.replacen(cursor.split('-').next().unwrap(), "elsewhere", 1);
    for after in [cursor.as_str(), &foreign, "nonsense"] {
        let (status, problem) = ask(&ana, &id, json!({ "join": ["topic:b"], "after": after })).await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("cursor_not_resumable")), "{after}");
    }
    say(&ana, "topic:b", 4).await;
    say(&ana, "topic:a", 5).await;
    expect_n(&mut stream, 5).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stream_is_nobodys_but_its_owners() {
    let [here, there] = nodes(&[]).await;
    let (ana, bea) = (token("ana", &[Role::Admin]), token("bea", &[Role::Admin]));
    let (_stream, id) = open(&Client::new(&here, &ana), "").await;
    let gone = {
        let (stream, id) = open(&Client::new(&here, &ana), "").await;
        drop(stream);
        id
    };
    Client::new(&here, &ana).stats_when(|stats| stats["streams"]["open"] == 1).await;
    let nobodys = uuid::Uuid::now_v7().to_string();
    for (node, who, stream) in
        [(&here, &bea, &id), (&there, &bea, &id), (&here, &ana, &gone), (&there, &ana, &gone), (&here, &ana, &nobodys)]
    {
        let asking = Client::new(node, who);
        let (status, problem) = ask(&asking, stream, json!({ "join": ["topic:a"] })).await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
        let (status, _) = asking.send(Method::DELETE, &format!("/v1/streams/{stream}"), json!(null)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn what_is_asked_of_a_stream_counts_for_that_stream() {
    let url = database().await;
    let server = server(&url, &["--writes-per-minute=3"]).await;
    let ben = Client::new(&server, &member("ben", &[], &["a"], HOUR));
    let (_one, first) = open(&ben, "").await;
    let (_other, second) = open(&ben, "").await;
    for stream in [&first, &second] {
        for _ in 0..3 {
            moved(&ben, stream, json!({ "join": ["topic:a"] })).await;
        }
        let (status, problem) = ask(&ben, stream, json!({ "join": ["topic:a"] })).await;
        assert_eq!((status, &problem["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limited")));
    }
    // And nothing of it counts for what is saved; but inventing streams ends.
    let (status, _) = ben.send(Method::PUT, "/v1/me/preferences", json!({})).await;
    assert_ne!(status, StatusCode::TOO_MANY_REQUESTS);
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(ask(&ben, &uuid::Uuid::now_v7().to_string(), json!({ "join": ["topic:a"] })).await.0.as_u16());
    }
    assert_eq!(answers, [404, 404, 404, 429, 429]);
    server.stop().await;
}
