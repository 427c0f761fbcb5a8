//! Rights that are lost while a stream is open.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{HOUR, expect_n, member, moved, nodes, open, say};
use crate::{
    presence::{read, until_read},
    support::{Client, PATIENCE, connect, database, number, server, sql},
};

async fn invite(admin: &Client, project: &str, sub: &str) {
    let path = format!("/v1/projects/{project}/members/{sub}");
    assert_eq!(admin.send(Method::PUT, &path, json!({ "role": "viewer" })).await.0, StatusCode::OK);
}

async fn remove(admin: &Client, project: &str, sub: &str) {
    let path = format!("/v1/projects/{project}/members/{sub}");
    assert_eq!(admin.send(Method::DELETE, &path, Value::Null).await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn who_is_no_member_any_more_loses_the_room_on_every_node_however_it_was_joined() {
    let [here, there] = nodes(&[]).await;
    let admin = Client::admin(&here);
    let project = admin.project("north").await;
    let room = format!("project:{project}");
    for node in [&here, &there] {
        invite(&admin, &project, "ben").await;
        let ben = Client::new(node, &member("ben", &[], &[], HOUR));
        let (mut by_url, _) = open(&ben, &format!("rooms=company,{room}")).await;
        let (mut joined, id) = open(&ben, "").await;
        moved(&ben, &id, json!({ "join": [room] })).await;
        joined.expect("stream:rooms").await;
        remove(&admin, &project, "ben").await;
        say(&admin, &room, 1).await;
        say(&admin, "company", 2).await;
        for stream in [&mut by_url, &mut joined] {
            let (_, rooms) = stream.expect("stream:rooms").await;
            assert_eq!(rooms["left"], json!([{ "room": room, "reason": "revoked" }]));
            // It is told by the room of its own, where it stays.
            assert_eq!(stream.expect("membership:changed").await.1["role"], json!(null));
            expect_n(stream, 2).await;
        }
        // Neither comes the history of it back.
        let (status, _) = ben.send(Method::GET, &format!("/v1/rooms/{room}/events"), Value::Null).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_project_that_moves_takes_its_room_from_those_of_its_old_division_alone() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let admin = Client::admin(&server);
    let project = admin.project("north").await;
    admin.send(Method::PUT, "/v1/divisions/south", json!({ "name": "South" })).await;
    invite(&admin, &project, "mia").await;
    let room = format!("project:{project}");
    let query = format!("rooms={room},company");
    let (mut loses, _) = open(&Client::new(&server, &member("ben", &["north"], &[], HOUR)), &query).await;
    let (mut both, _) = open(&Client::new(&server, &member("eva", &["north", "south"], &[], HOUR)), &query).await;
    let (mut invited, _) = open(&Client::new(&server, &member("mia", &["north"], &[], HOUR)), &query).await;
    let (mut admins, _) = open(&admin, &query).await;
    let moved = admin.send(Method::PATCH, &format!("/v1/projects/{project}"), json!({ "division": "south" })).await;
    assert_eq!(moved.0, StatusCode::OK);
    say(&admin, "company", 1).await;
    assert_eq!(loses.expect("stream:rooms").await.1["left"], json!([{ "room": room, "reason": "revoked" }]));
    expect_n(&mut loses, 1).await;
    for stream in [&mut both, &mut invited, &mut admins] {
        assert_eq!(stream.expect("project:updated").await.1["newValue"], "south");
        expect_n(stream, 1).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn the_room_of_a_deleted_project_stays_for_as_long_as_events_are_kept() {
    let url = database().await;
    let server = server(&url, &["--retention=2s", "--floor-every=10m"]).await;
    let admin = Client::admin(&server);
    let project = admin.project("north").await;
    let room = format!("project:{project}");
    let (mut stream, _) =
        open(&Client::new(&server, &member("ben", &["north"], &[], HOUR)), &format!("rooms={room}")).await;
    let (mut admins, _) = open(&admin, &format!("rooms={room}")).await;
    let deleted = admin.send(Method::DELETE, &format!("/v1/projects/{project}"), Value::Null).await;
    assert_eq!(deleted.0, StatusCode::NO_CONTENT);
    for stream in [&mut stream, &mut admins] {
        stream.expect("project:deleted").await;
        let (_, rooms) = stream.expect("stream:rooms").await;
        assert_eq!(rooms["left"], json!([{ "room": room, "reason": "deleted" }]));
    }
    server.stop().await;
}

#[tokio::test]
async fn requests_that_wait_for_a_row_keep_no_right_and_no_event_from_anybody() {
    let url = database().await;
    let settings = ["--database-connections=3", "--presence-lease=2s", "--presence-grace=200ms"];
    let (node, other) = (server(&url, &settings).await, server(&url, &settings).await);
    let admin = Client::admin(&node);
    let project = admin.project("north").await;
    let locked = admin.project("north").await;
    invite(&admin, &project, "ben").await;
    let room = format!("project:{project}");
    let (mut ben, _) =
        open(&Client::new(&node, &member("ben", &[], &[], HOUR)), &format!("rooms=company,{room}")).await;
    let watcher = Client::new(&other, &member("eva", &[], &[], HOUR));
    // Whoever comes to the second node sees ben, and goes on seeing him.
    until_read(&watcher, "company", &["ben"]).await;
    let (mut lock, mut watch) = (connect(&url).await, connect(&url).await);
    sql(&mut lock, "begin").await;
    sql(&mut lock, &format!("select from crewcast.projects where id = '{locked}' for update")).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (admin, path) = (admin.clone(), format!("/v1/projects/{locked}"));
        waiting.spawn(async move { admin.send(Method::PATCH, &path, json!({ "notes": "x" })).await.0 });
    }
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    while number(&mut watch, waits).await < 3 {}
    // All that requests have is taken. Somebody else's node takes the membership away, and more happens after that.
    remove(&Client::admin(&other), &project, "ben").await;
    say(&Client::admin(&other), &room, 1).await;
    say(&Client::admin(&other), "company", 2).await;
    let (_, rooms) = ben.expect("stream:rooms").await;
    assert_eq!(rooms["left"], json!([{ "room": room, "reason": "revoked" }]));
    ben.expect("membership:changed").await;
    expect_n(&mut ben, 2).await;
    // And longer than the lease: the node gives signs of life.
    let beat = format!("select beat from crewcast.nodes where key = {}", node.app.node.to_sql());
    let before = number(&mut watch, &beat).await;
    let beats = async { while number(&mut watch, &beat).await < before + 6 {} };
    tokio::time::timeout(PATIENCE, beats).await.expect("the node gives signs of life");
    assert_eq!(read(&watcher, "company").await, ["ben"]);
    sql(&mut lock, "rollback").await;
    waiting.join_all().await;
    node.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_revocation_at_the_end_of_a_long_transaction_holds_from_its_first_event_on() {
    let url = database().await;
    let server = server(&url, &["--poll=50ms"]).await;
    let admin = Client::admin(&server);
    let project = admin.project("north").await;
    invite(&admin, &project, "ben").await;
    let room = format!("project:{project}");
    let (mut ben, _) =
        open(&Client::new(&server, &member("ben", &[], &[], HOUR)), &format!("rooms=company,{room}")).await;
    let mut conn = connect(&url).await;
    sql(&mut conn, "begin").await;
    // More than a page of the log.
    crate::support::publish(&mut conn, &room, 1..=600, 10).await;
    sql(&mut conn, &format!("delete from crewcast.members where project_id = '{project}'")).await;
    let data = format!(r#"{{"projectId":"{project}","userId":"ben","role":null}}"#);
    let rooms = format!("'{{{room},user:ben}}', 'membership:changed', '{data}'");
    sql(&mut conn, &format!("select crewcast.append({rooms}, null, null)")).await;
    sql(&mut conn, "commit").await;
    say(&admin, "company", 1).await;
    assert_eq!(ben.expect("stream:rooms").await.1["left"], json!([{ "room": room, "reason": "revoked" }]));
    ben.expect("membership:changed").await;
    expect_n(&mut ben, 1).await;
    server.stop().await;
}
