//! What changes on a stream while it is open: its rooms, its token, its rights, its end. Whatever is asked for is asked on
//! the node that holds the stream and on one that does not.

mod bus;
mod ends;
mod revoked;
mod rooms;
mod storm;
mod tokens;

use std::time::Duration;

use crewcast::{
    app::Server,
    auth::{Claims, Role, Roles},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Client, Stream, database, mint, server};

/// Two nodes of one database.
async fn nodes(arguments: &[&str]) -> [Server; 2] {
    let url = database().await;
    [server(&url, arguments).await, server(&url, arguments).await]
}

/// A plain member of these divisions and topics, whose name is the `sub` in capitals.
fn member(sub: &str, divisions: &[&str], topics: &[&str], lasts: Duration) -> String {
    let exp = (OffsetDateTime::now_utc() + lasts).unix_timestamp();
    let divisions = divisions.iter().map(|slug| slug.parse().unwrap()).collect();
    let topics = topics.iter().map(|name| name.parse().unwrap()).collect();
    let (name, roles) = (Some(sub.to_uppercase()), Roles::of([Role::Member]));
    mint(&Claims { name, roles, divisions, topics, ..Claims::new(sub.parse().unwrap(), exp) })
}

const HOUR: Duration = Duration::from_hours(1);

/// A stream that has begun, and its id.
async fn open(client: &Client, query: &str) -> (Stream, String) {
    // A stream without a position begins at the last read of the log, behind which some events may wait.
    let (cursor, _) = client.read("/v1/divisions").await;
    open_at(client, query, &cursor).await
}

/// The same from a position, for whoever has a ticket alone.
async fn open_at(client: &Client, query: &str, cursor: &str) -> (Stream, String) {
    let mut stream = client.stream(query, cursor).await;
    let (_, data) = stream.expect("stream:open").await;
    let id = data["streamId"].as_str().unwrap().to_owned();
    (stream, id)
}

/// Asks for other rooms.
async fn ask(client: &Client, stream: &str, body: Value) -> (StatusCode, Value) {
    client.send(Method::POST, &format!("/v1/streams/{stream}/rooms"), body).await
}

/// Asks for other rooms, and gets them.
async fn moved(client: &Client, stream: &str, body: Value) -> Value {
    let (status, moved) = ask(client, stream, body).await;
    assert_eq!(status, StatusCode::OK, "{moved}");
    moved
}

/// Publishes `{"n": n}` to rooms.
async fn say(client: &Client, room: &str, n: u64) {
    let body = json!({ "type": "test:n", "data": { "n": n } });
    let (status, said) = client.send(Method::POST, &format!("/v1/rooms/{room}/events"), body).await;
    assert_eq!(status, StatusCode::CREATED, "{said}");
}

/// All that was said until now has been routed on the stream's node, which is in this room.
async fn settle(client: &Client, stream: &mut Stream, room: &str) {
    say(client, room, 0).await;
    while stream.next().await.unwrap().event != "test:n" {}
}

async fn expect_n(stream: &mut Stream, n: u64) -> String {
    let (frame, data) = stream.expect("test:n").await;
    assert_eq!(data["n"], json!(n));
    frame.id
}
