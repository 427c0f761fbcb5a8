//! Who types.

use crewcast::app::Server;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Tab, person};
use crate::support::{Client, database, server};

async fn types(client: &Client, tab: &Tab, room: &str, typing: bool) -> (StatusCode, Value) {
    let body = json!({ "room": room, "field": "name", "typing": typing });
    client.send(Method::PUT, &format!("/v1/streams/{}/typing", tab.id), body).await
}

/// Somebody in the room on each of two nodes that know each other: a node that has just started is told nothing yet.
async fn watches(nodes: &[Server; 2], room: &str) -> [Tab; 2] {
    let mut here = Tab::open(&person(&nodes[0], "ana"), room).await;
    let mut there = Tab::open(&person(&nodes[1], "eva"), room).await;
    here.until(&format!("{room} eva online")).await;
    super::until_read(&person(&nodes[1], "eva"), room, &["ana", "eva"]).await;
    there.told.clear();
    [here, there]
}

#[tokio::test]
async fn typing_is_seen_by_the_others_on_every_node_and_ends_by_itself() {
    let url = database().await;
    let nodes = [server(&url, &["--typing-ttl=1s"]).await, server(&url, &["--typing-ttl=1s"]).await];
    let (ben, cy) = (person(&nodes[0], "ben"), person(&nodes[0], "cy"));
    let room = format!("project:{}", Client::admin(&nodes[0]).project("north").await);
    let tab = Tab::open(&ben, &room).await;
    let mut watches = Vec::new();
    for node in &nodes {
        watches.push(Tab::open(&person(node, "ana"), &room).await);
    }
    super::until_read(&person(&nodes[1], "ana"), &room, &["ana", "ben"]).await;
    for _ in 0..2 {
        assert_eq!(types(&ben, &tab, &room, true).await.0, StatusCode::NO_CONTENT);
        for watch in &mut watches {
            watch.until("typing:start ben name").await;
            watch.until("typing:stop ben name").await;
        }
    }
    types(&ben, &tab, &room, true).await;
    types(&ben, &tab, &room, false).await;
    watches[1].until("typing:stop ben name").await;
    types(&ben, &tab, &room, true).await;
    watches[1].until("typing:start ben name").await;
    drop(tab);
    watches[0].until("typing:stop ben name").await;
    assert_eq!(types(&cy, &watches[0], &room, true).await.0, StatusCode::NOT_FOUND, "not cy's stream");
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test]
async fn whoever_types_as_soon_as_their_stream_is_open_is_seen_on_every_node() {
    let url = database().await;
    // Nobody says it again.
    let nodes = [server(&url, &["--typing-ttl=10m"]).await, server(&url, &["--typing-ttl=10m"]).await];
    let ben = person(&nodes[0], "ben");
    let room = format!("project:{}", Client::admin(&nodes[0]).project("north").await);
    let mut watches = watches(&nodes, &room).await;
    for _ in 0..6 {
        let tab = Tab::open(&ben, &room).await;
        assert_eq!(types(&ben, &tab, &room, true).await.0, StatusCode::NO_CONTENT);
        for watch in &mut watches {
            watch.until("typing:start ben name").await;
        }
        drop(tab);
        for watch in &mut watches {
            watch.until("typing:stop ben name").await;
        }
    }
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test]
async fn whoever_types_in_a_room_as_soon_as_they_have_joined_it_is_seen_on_every_node() {
    let url = database().await;
    let nodes = [server(&url, &["--typing-ttl=10m"]).await, server(&url, &["--typing-ttl=10m"]).await];
    let ben = person(&nodes[0], "ben");
    let room = format!("project:{}", Client::admin(&nodes[0]).project("north").await);
    let mut watches = watches(&nodes, &room).await;
    let tab = Tab::open(&ben, "company").await;
    let path = format!("/v1/streams/{}/rooms", tab.id);
    for _ in 0..6 {
        let (status, answer) = ben.send(Method::POST, &path, json!({ "join": [room] })).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(types(&ben, &tab, &room, true).await, (StatusCode::NO_CONTENT, Value::Null));
        for watch in &mut watches {
            watch.until("typing:start ben name").await;
        }
        assert_eq!(ben.send(Method::POST, &path, json!({ "leave": [room] })).await.0, StatusCode::OK);
        for watch in &mut watches {
            watch.until("typing:stop ben name").await;
        }
    }
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test]
async fn whoever_comes_is_told_who_types() {
    let server = server(&database().await, &["--typing-ttl=10m"]).await;
    let ben = person(&server, "ben");
    let room = format!("project:{}", Client::admin(&server).project("north").await);
    let tab = Tab::open(&ben, &room).await;
    assert_eq!(types(&ben, &tab, &room, true).await.0, StatusCode::NO_CONTENT);
    let mut watch = Tab::open(&person(&server, "ana"), &room).await;
    assert_eq!(watch.hear().await, "typing:start ben name");
    server.stop().await;
}

#[tokio::test]
async fn one_types_in_projects_that_the_stream_is_in() {
    let server = server(&database().await, &[]).await;
    let ben = person(&server, "ben");
    let tab = Tab::open(&ben, "company").await;
    let elsewhere = format!("project:{}", Client::admin(&server).project("north").await);
    for room in ["company", &elsewhere] {
        assert_eq!(types(&ben, &tab, room, true).await.0, StatusCode::FORBIDDEN);
    }
    server.stop().await;
}
