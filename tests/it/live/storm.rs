//! Revocations under load: two hundred of them, on two nodes, while events come as fast as they are written.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{HOUR, member, moved, open};
use crate::support::{Client, connect, database, server, sql};

/// Revocations in all.
const TIMES: usize = 200;
/// Members at a time, each on a stream of theirs.
const AT_ONCE: usize = 8;

/// What is known of time: each event carries the next number, and so does the moment at which a revocation was done.
#[derive(Default)]
struct Clock(AtomicU64);

#[tokio::test]
async fn two_hundred_revocations_under_load_let_nothing_through() {
    let url = database().await;
    let nodes = [server(&url, &["--poll=20ms"]).await, server(&url, &["--poll=20ms"]).await];
    let admin = Client::admin(&nodes[0]);
    let project = admin.project("north").await;
    let clock = Arc::new(Clock::default());
    let stop = tokio_util::sync::CancellationToken::new();
    let mut writers = JoinSet::new();
    for _ in 0..2 {
        writers.spawn(write(url.clone(), format!("project:{project}"), clock.clone(), stop.clone()));
    }
    let mut lives = JoinSet::new();
    for nth in 0..AT_ONCE {
        let node = &nodes[nth % 2];
        let sub = format!("ben{nth}");
        let ben = Client::new(node, &member(&sub, &[], &[], HOUR));
        // The other node takes the membership away.
        let admin = Client::admin(&nodes[(nth + 1) % 2]);
        lives.spawn(lose_again_and_again(ben, admin, project.clone(), sub, clock.clone()));
    }
    let mut got = 0;
    for each in lives.join_all().await {
        got += each;
    }
    stop.cancel();
    writers.join_all().await;
    assert!(got > TIMES as u64, "there was load: {got} events");
    for node in nodes {
        node.stop().await;
    }
}

/// Publishes transactions of a few events, each of which says a number that was the newest before they committed.
async fn write(url: String, room: String, clock: Arc<Clock>, stop: tokio_util::sync::CancellationToken) {
    let mut conn = connect(&url).await;
    while !stop.is_cancelled() {
        let begun = clock.0.fetch_add(1, Ordering::SeqCst);
        let publish = format!("select crewcast.publish('{{{room}}}', 'test:n', json_build_object('n', {begun}))");
        sql(&mut conn, &format!("{publish} from generate_series(1, 3)")).await;
    }
}

/// Joins, loses the membership while events come, and sees what comes after; how many came before.
async fn lose_again_and_again(ben: Client, admin: Client, project: String, sub: String, clock: Arc<Clock>) -> u64 {
    let (room, path) = (format!("project:{project}"), format!("/v1/projects/{project}/members/{sub}"));
    let mut got = 0;
    for nth in 0..TIMES / AT_ONCE {
        admin.send(Method::PUT, &path, json!({ "role": "viewer" })).await;
        let query = if nth % 2 == 0 { format!("rooms={room},company") } else { "rooms=company".to_owned() };
        let (mut stream, id) = open(&ben, &query).await;
        if nth % 2 == 1 {
            moved(&ben, &id, json!({ "join": [room] })).await;
        }
        // Something has come: it is in the room.
        while stream.next().await.unwrap().event != "test:n" {}
        let (status, _) = admin.send(Method::DELETE, &path, Value::Null).await;
        assert_eq!(status.as_u16(), 204);
        // Whatever takes its number from now on begins, and commits, after the revocation was acknowledged.
        let after = clock.0.fetch_add(1, Ordering::SeqCst);
        loop {
            let frame = stream.next().await.unwrap();
            let data: Value = serde_json::from_str(&frame.data).unwrap();
            match frame.event.as_str() {
                "stream:rooms" if data["left"] != json!([]) => break,
                "test:n" => {
                    got += 1;
                    let n = data["n"].as_u64().unwrap();
                    assert!(n <= after, "event {n} committed after the revocation, which was done at {after}");
                }
                _ => {}
            }
        }
        // A while later there is still nothing of it.
        let (status, _) = admin
            .send(
                Method::POST,
                "/v1/rooms/company/events",
                json!({ "type": "end:n", "data": { "sub": sub, "nth": nth } }),
            )
            .await;
        assert_eq!(status.as_u16(), 201);
        loop {
            let frame = stream.next().await.unwrap();
            assert_ne!(frame.event, "test:n", "an event of the room after stream:rooms");
            let data: Value = serde_json::from_str(&frame.data).unwrap();
            if frame.event == "end:n" && data["sub"] == json!(sub) && data["nth"] == json!(nth) {
                break;
            }
        }
    }
    got
}
