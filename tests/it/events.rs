//! Custom events by REST: posted by backends, seen by whoever is in the room.

use reqwest::{Method, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::support::{Client, connect, database, number, server};

#[tokio::test]
async fn an_event_that_is_posted_is_seen_as_it_was_written() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let mut stream = ana.follow("rooms=topic:erp").await;
    let raw = r#"{"type": "erp:synced", "data": {"b": 1.50, "a": [1, 2],  "text": "x  y\u00e9"} }"#;
    let request = ana.request(Method::POST, "/v1/rooms/topic:erp/events").header(CONTENT_TYPE, "application/json");
    let response = request.body(raw).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let seq = response.json::<Value>().await.unwrap()["seqs"][0].as_i64().unwrap();
    let (frame, data) = stream.expect("erp:synced").await;
    assert!(frame.data.starts_with(r#"{"b":1.50,"a":[1,2],"text":"x  y\u00e9","meta":{"#), "{}", frame.data);
    assert_eq!((&data["meta"]["seq"], &data["meta"]["rooms"]), (&json!(seq), &json!(["topic:erp"])));
    let (_, one) = {
        let response = ana.request(Method::GET, &format!("/v1/events/{seq}")).send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    assert_eq!((&one["event"], &one["data"]), (&json!("erp:synced"), &data));
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_events_commit_together_and_arrive_in_order() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let mut stream = ana.follow("rooms=company").await;
    let events: Vec<Value> = (0..100).map(|n| json!({ "type": "test:n", "data": { "n": n } })).collect();
    let (status, made) = ana.send(Method::POST, "/v1/rooms/company/events", json!({ "events": events })).await;
    assert_eq!((status, made["seqs"].as_array().unwrap().len()), (StatusCode::CREATED, 100));
    for n in 0..100 {
        let (_, data) = stream.expect("test:n").await;
        assert_eq!((&data["n"], &data["meta"]["seq"]), (&json!(n), &made["seqs"][n]));
    }
    server.stop().await;
}

#[tokio::test]
async fn what_a_reader_could_not_take_or_would_wrongly_trust_is_refused_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let many: Vec<Value> = (0..101).map(|_| json!({ "type": "a:b", "data": {} })).collect();
    for (body, pointer) in [
        (json!({}), ""),
        (json!({ "type": "a:b" }), ""),
        (json!({ "type": "a:b", "data": {}, "events": [] }), ""),
        (json!({ "events": [] }), "/events"),
        (json!({ "events": many }), "/events"),
        (json!({ "type": "ab", "data": {} }), "/type"),
        (json!({ "type": "A:b", "data": {} }), "/type"),
        (json!({ "type": "project:updated", "data": {} }), "/type"),
        (json!({ "type": "stream:open", "data": {} }), "/type"),
        (json!({ "type": "presence:other", "data": {} }), "/type"),
        (json!({ "type": format!("a:{}", "b".repeat(63)), "data": {} }), "/type"),
        (json!({ "type": "a:b", "data": [] }), "/data"),
        (json!({ "type": "a:b", "data": "{}" }), "/data"),
        (json!({ "type": "a:b", "data": { "meta": 1 } }), "/data"),
        (json!({ "type": "a:b", "data": { "x": ["\0"] } }), "/data"),
        (json!({ "type": "a:b", "data": { "\0": 1 } }), "/data"),
        (json!({ "events": [{ "type": "a:b", "data": {} }, { "type": "a:b", "data": 1 }] }), "/events/1/data"),
        (json!({ "type": "a:b", "data": {}, "rooms": ["company"] }), "/rooms"),
    ] {
        let (status, problem) = ana.send(Method::POST, "/v1/rooms/company/events", body.clone()).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{body} {problem}");
    }
    assert_eq!(number(&mut conn, "select count(*) from crewcast.events").await, 0);
    server.stop().await;
}
