//! Presence and typing, as clients see them: several users, tabs and nodes.

mod nodes;
mod people;
mod statements;
mod typing;
mod ways;

use std::{collections::BTreeMap, time::Duration};

use crewcast::{
    app::Server,
    auth::{Claims, Role, Roles},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::support::{Client, PATIENCE, Stream, mint, number};

/// A manager of this `sub`, whose name is that in capitals.
fn person(server: &Server, sub: &str) -> Client {
    Client::new(server, &person_token(sub))
}

fn person_token(sub: &str) -> String {
    let exp = (OffsetDateTime::now_utc() + Duration::from_hours(1)).unix_timestamp();
    let claims = Claims::new(sub.parse().unwrap(), exp);
    mint(&Claims { name: Some(sub.to_uppercase()), roles: Roles::of([Role::Manager]), ..claims })
}

/// A stream, and what it was told of who is there.
struct Tab {
    stream: Stream,
    id: String,
    /// Status, viewing and editing of everybody in each room, as the frames say it.
    seen: BTreeMap<String, BTreeMap<String, (String, Value, Value)>>,
    /// What was told, in short.
    told: Vec<String>,
}

impl Tab {
    /// Opens one, and reads the snapshots of its rooms.
    async fn open(client: &Client, rooms: &str) -> Self {
        Self::resume(client, rooms, "").await
    }

    async fn resume(client: &Client, rooms: &str, last_event_id: &str) -> Self {
        let mut stream = client.stream(&format!("rooms={rooms}"), last_event_id).await;
        let (_, data) = stream.expect("stream:open").await;
        let id = data["streamId"].as_str().unwrap().to_owned();
        let mut tab = Self { stream, id, seen: BTreeMap::new(), told: Vec::new() };
        let shown = data["rooms"].as_array().unwrap().iter().filter(|room| !is_quiet(room.as_str().unwrap())).count();
        while tab.seen.len() < shown {
            tab.hear().await;
        }
        tab.told.clear();
        tab
    }

    /// Reads one frame about who is there or types.
    async fn hear(&mut self) -> String {
        loop {
            let frame = self.stream.next_of_all().await.expect("the stream goes on");
            let data: Value = serde_json::from_str(&frame.data).unwrap();
            let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
            let told = match frame.event.as_str() {
                "presence:snapshot" => {
                    let users = data["users"].as_array().unwrap().iter();
                    self.seen.insert(text("room"), users.map(|user| (id(user), shown(user))).collect());
                    format!("{} has {}", text("room"), data["total"])
                }
                "presence:change" => {
                    let room = self.seen.get_mut(&text("room")).expect("a snapshot comes before changes");
                    if data["status"] == "offline" {
                        assert!(room.remove(&id(&data)).is_some(), "{data}: was not there");
                    } else {
                        let was = room.insert(id(&data), shown(&data));
                        assert_ne!(was, Some(shown(&data)), "told what was known");
                    }
                    format!("{} {} {}", text("room"), id(&data), text("status"))
                }
                "presence:count" => format!("{} counts {}", text("room"), data["total"]),
                "typing:start" | "typing:stop" => format!("{} {} {}", frame.event, id(&data), text("field")),
                _ => continue,
            };
            self.told.push(told.clone());
            return told;
        }
    }

    /// Reads until this is told.
    async fn until(&mut self, told: &str) {
        let heard = async { while self.hear().await != told {} };
        timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("{told} was not told: {:?}", self.told));
    }

    /// Reads for a while; what was told.
    async fn listen(&mut self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut told = Vec::new();
        while let Ok(heard) = tokio::time::timeout_at(end, self.hear()).await {
            told.push(heard);
        }
        told
    }

    /// Says what its user does.
    async fn report(&self, client: &Client, body: Value) {
        let (status, answer) = client.send(Method::PUT, &format!("/v1/streams/{}/presence", self.id), body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
    }

    async fn end(&self, client: &Client) {
        let (status, _) = client.send(Method::DELETE, &format!("/v1/streams/{}", self.id), Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
}

fn is_quiet(room: &str) -> bool {
    room.starts_with("user:") || room.starts_with("topic:")
}

fn id(user: &Value) -> String {
    assert_eq!(user["name"], json!(user["userId"].as_str().unwrap().to_uppercase()));
    user["userId"].as_str().unwrap().to_owned()
}

fn shown(user: &Value) -> (String, Value, Value) {
    (user["status"].as_str().unwrap().to_owned(), user["viewing"].clone(), user["editing"].clone())
}

/// Who is in a room, as it is read.
pub async fn read(client: &Client, room: &str) -> Vec<String> {
    let request = client.request(Method::GET, &format!("/v1/presence?room={room}"));
    let snapshot: Value = request.send().await.unwrap().json().await.unwrap();
    let users: Vec<String> = snapshot["users"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(snapshot["total"], json!(users.len()));
    users
}

/// Asks until the room has exactly these users.
pub async fn until_read(client: &Client, room: &str, users: &[&str]) {
    let read_so = async { while read(client, room).await != users {} };
    timeout(PATIENCE, read_so).await.unwrap_or_else(|_| panic!("{room} never had {users:?}"));
}

/// Asks until so many streams are written.
async fn until_rows(conn: &mut PgConnection, rows: i64) {
    let written = async { while number(conn, "select count(*) from crewcast.presence").await < rows {} };
    timeout(PATIENCE, written).await.unwrap_or_else(|_| panic!("{rows} streams were never written"));
}

/// Asks until there is anything of what is counted.
async fn until_some(conn: &mut PgConnection, count: &str) {
    let is_there = async { while number(conn, count).await == 0 {} };
    timeout(PATIENCE, is_there).await.unwrap_or_else(|_| panic!("nothing was ever there: {count}"));
}
