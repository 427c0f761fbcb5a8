//! What one node shows of those who are on it.

use std::time::Duration;

use crewcast::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Tab, person, person_token, read, until_read, until_rows, until_some};
use crate::support::{Client, connect, database, number, server, sql, token};

const GRACE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn three_tabs_are_one_user() {
    let server = server(&database().await, &["--presence-grace=200ms"]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut watch = Tab::open(&ana, "company").await;
    let tabs = [Tab::open(&ben, "company").await, Tab::open(&ben, "company").await, Tab::open(&ben, "company").await];
    watch.until("company ben online").await;
    for (nth, tab) in tabs.iter().enumerate() {
        tab.report(&ben, json!({ "status": "idle" })).await;
        assert_eq!(read(&ana, "company").await, ["ana", "ben"], "{nth}");
    }
    watch.until("company ben idle").await;
    let [one, two, three] = tabs;
    drop(one);
    two.end(&ben).await;
    three.end(&ben).await;
    watch.until("company ben offline").await;
    assert_eq!(watch.told, ["company ben online", "company ben idle", "company ben offline"]);
    server.stop().await;
}

#[tokio::test]
async fn a_reconnect_inside_the_grace_shows_no_leave_and_a_closed_last_tab_shows_one_after_it() {
    let server = server(&database().await, &["--presence-grace=1s"]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut watch = Tab::open(&ana, "company").await;
    let tab = Tab::open(&ben, "company").await;
    tab.report(&ben, json!({ "status": "idle" })).await;
    watch.until("company ben idle").await;
    watch.told.clear();
    let mut last_id = tab.stream.last_id().to_owned();
    drop(tab);
    for _ in 0..3 {
        let tab = Tab::resume(&ben, "company", &last_id).await;
        last_id = tab.stream.last_id().to_owned();
        assert_eq!(watch.listen(GRACE / 2).await, [""; 0], "neither a leave nor an idle laptop that wakes");
    }
    let closed = Instant::now();
    watch.until("company ben offline").await;
    assert!(closed.elapsed() >= GRACE / 3, "{:?}", closed.elapsed());
    assert_eq!(watch.told, ["company ben offline"]);
    server.stop().await;
}

#[tokio::test]
async fn an_explicit_leave_waits_for_no_grace() {
    let server = server(&database().await, &["--presence-grace=10m"]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut watch = Tab::open(&ana, "company,division:north").await;
    let tab = Tab::open(&ben, "company,division:north").await;
    watch.until("division:north ben online").await;
    let path = format!("/v1/streams/{}/rooms", tab.id);
    let (status, _) = ben.send(Method::POST, &path, json!({ "leave": ["division:north"] })).await;
    assert_eq!(status, StatusCode::OK);
    watch.until("division:north ben offline").await;
    let (status, _) = ben.send(Method::POST, &path, json!({ "join": ["division:north"] })).await;
    assert_eq!(status, StatusCode::OK);
    watch.until("division:north ben online").await;
    tab.end(&ben).await;
    watch.until("division:north ben offline").await;
    assert_eq!(read(&ana, "company").await, ["ana"]);
    server.stop().await;
}

#[tokio::test]
async fn a_joined_room_is_shown_to_whoever_joins_it() {
    let server = server(&database().await, &[]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut tab = Tab::open(&ana, "company").await;
    let _there = Tab::open(&ben, "division:north").await;
    let (status, _) =
        ana.send(Method::POST, &format!("/v1/streams/{}/rooms", tab.id), json!({ "join": ["division:north"] })).await;
    assert_eq!(status, StatusCode::OK);
    tab.until("division:north has 2").await;
    assert_eq!(tab.seen["division:north"].keys().collect::<Vec<_>>(), ["ana", "ben"]);
    server.stop().await;
}

#[tokio::test]
async fn what_is_viewed_and_edited_is_seen_where_it_may_be() {
    let server = server(&database().await, &[]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let project = format!("project:{}", Client::admin(&server).project("north").await);
    let mut company = Tab::open(&ana, "company").await;
    let mut inside = Tab::open(&ana, &project).await;
    let tab = Tab::open(&ben, &format!("company,{project}")).await;
    let editing = json!({ "room": project, "field": "name" });
    tab.report(&ben, json!({ "viewing": project, "editing": editing })).await;
    tab.report(&ben, json!({ "status": "idle" })).await;
    company.until("company ben idle").await;
    inside.until(&format!("{project} ben idle")).await;
    assert_eq!(company.seen["company"]["ben"], ("idle".to_owned(), Value::Null, Value::Null));
    assert_eq!(inside.seen[&project]["ben"], ("idle".to_owned(), json!(project), editing));
    assert_eq!(read(&ana, &project).await, ["ben", "ana"], "who edits comes first");
    server.stop().await;
}

#[tokio::test]
async fn services_never_appear_and_see_who_is_there() {
    let server = server(&database().await, &[]).await;
    let erp = Client::new(&server, &token("erp", &[Role::Service]));
    let mut watch = Tab::open(&erp, "company").await;
    let _tab = Tab::open(&person(&server, "ben"), "company").await;
    watch.until("company ben online").await;
    assert_eq!(read(&erp, "company").await, ["ben"]);
    let path = format!("/v1/streams/{}/presence", watch.id);
    assert_eq!(erp.send(Method::PUT, &path, json!({})).await.0, StatusCode::FORBIDDEN);
    server.stop().await;
}

#[tokio::test]
async fn a_filter_keeps_presence_away() {
    let server = server(&database().await, &[]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut events = ana.stream("types=erp:synced", "").await;
    events.expect("stream:open").await;
    let _tab = Tab::open(&ben, "company").await;
    let admin = Client::admin(&server);
    let body = json!({ "type": "erp:synced", "data": {} });
    assert_eq!(admin.send(Method::POST, "/v1/rooms/company/events", body).await.0, StatusCode::CREATED);
    assert_eq!(events.next_of_all().await.unwrap().event, "erp:synced");
    server.stop().await;
}

#[tokio::test]
async fn a_large_room_is_told_counts() {
    let server = server(&database().await, &["--presence-users-max=3", "--presence-grace=10ms"]).await;
    let ana = person(&server, "ana");
    let mut watch = Tab::open(&ana, "company").await;
    let mut tabs = Vec::new();
    for sub in ["ben", "cy", "dora", "ed"] {
        tabs.push(Tab::open(&person(&server, sub), "company").await);
    }
    watch.until("company counts 5").await;
    assert!(!watch.told.contains(&"company ed online".to_owned()));
    tabs.truncate(1);
    watch.until("company has 2").await;
    until_read(&ana, "company", &["ana", "ben"]).await;
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_or_said_is_refused() {
    let server = server(&database().await, &[]).await;
    let ana = person(&server, "ana");
    for (room, code) in [("user:ana", "invalid_room"), ("topic:x", "invalid_room"), ("kitchen", "invalid_room")] {
        let (status, problem) = ana.send(Method::GET, &format!("/v1/presence?room={room}"), Value::Null).await;
        assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!(code)), "{room}");
    }
    let member = Client::new(&server, &token("mia", &[]));
    for room in ["division:north", "project:0192f0c1-2b7a-7cc0-8a2e-0123456789ab"] {
        let (status, _) = member.send(Method::GET, &format!("/v1/presence?room={room}"), Value::Null).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{room}");
    }
    let tab = Tab::open(&ana, "company").await;
    let path = format!("/v1/streams/{}/presence", tab.id);
    for body in [json!({ "viewing": "plan" }), json!({ "status": null }), json!({ "status": "away" })] {
        let (status, problem) = ana.send(Method::PUT, &path, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    }
    let (status, _) = member.send(Method::PUT, &path, json!({ "status": "idle" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "somebody else's stream");
    server.stop().await;
}

/// Has a stream go on with a token of its user, as a person or as a service.
async fn put_token(client: &Client, tab: &Tab, token: &str) {
    let path = format!("/v1/streams/{}/token", tab.id);
    let (status, answer) = client.send(Method::PUT, &path, json!({ "token": token })).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

#[tokio::test]
async fn a_stream_whose_token_makes_it_a_persons_appears_and_goes_when_it_is_a_services_again() {
    let url = database().await;
    let nodes = [server(&url, &["--presence-grace=200ms"]).await, server(&url, &["--presence-grace=200ms"]).await];
    let mut watches = Vec::new();
    for node in &nodes {
        watches.push(Tab::open(&person(node, "ana"), "company").await);
    }
    let (service, ben) = (token("ben", &[Role::Service]), person(&nodes[0], "ben"));
    let tab = Tab::open(&Client::new(&nodes[0], &service), "company").await;
    for _ in 0..2 {
        put_token(&ben, &tab, &person_token("ben")).await;
        for watch in &mut watches {
            watch.until("company ben online").await;
        }
        tab.report(&ben, json!({ "status": "idle" })).await;
        watches[1].until("company ben idle").await;
        put_token(&ben, &tab, &service).await;
        for watch in &mut watches {
            watch.until("company ben offline").await;
        }
        let path = format!("/v1/streams/{}/presence", tab.id);
        assert_eq!(ben.send(Method::PUT, &path, json!({ "status": "idle" })).await.0, StatusCode::NOT_FOUND);
    }
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test]
async fn whoever_was_a_service_again_before_they_were_written_is_written_as_themselves() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (mut conn, mut blocker) = (connect(&url).await, connect(&url).await);
    let ben = person(&server, "ben");
    // What comes while a batch waits for Postgres is gathered for the next one.
    sql(&mut blocker, "begin").await;
    sql(&mut blocker, "lock table crewcast.nodes in share mode").await;
    let waiting = "select count(*) from pg_locks where not granted and relation = 'crewcast.nodes'::regclass
                   and database = (select oid from pg_database where datname = current_database())";
    until_some(&mut conn, waiting).await;
    let tab = Tab::open(&ben, "company").await;
    put_token(&ben, &tab, &token("ben", &[Role::Service])).await;
    sql(&mut blocker, "commit").await;
    until_rows(&mut conn, 1).await;
    put_token(&ben, &tab, &person_token("ben")).await;
    let open = "select count(*) from crewcast.presence where ends_at is null";
    until_some(&mut conn, open).await;
    assert_eq!(number(&mut conn, &format!("{open} and sub = 'ben'")).await, 1);
    server.stop().await;
}
