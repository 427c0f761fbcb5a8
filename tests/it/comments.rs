//! Comments on projects, and who is told that they are mentioned.

use crewcast::auth::{Claims, Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, database, mint, server, token};

/// The payload without what the server adds.
fn told(mut data: Value) -> Value {
    data.as_object_mut().unwrap().remove("meta");
    data
}

#[tokio::test]
async fn a_comment_is_told_of_from_its_making_to_its_end() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let path = format!("/v1/projects/{project}/comments");
    let mut stream = ana.follow(&format!("rooms=project:{project}")).await;
    let id = ana.make(&path, json!({ "body": "The crane\nis late.", "mentions": ["ben", "ben"] })).await;
    let one = format!("{path}/{id}");
    let (_, comment) = ana.read(&one).await;
    assert_eq!((&comment["body"], &comment["authorId"]), (&json!("The crane\nis late."), &json!("ana")));
    assert_eq!((&comment["mentions"], &comment["version"]), (&json!(["ben"]), &json!(1)));
    assert_eq!(ana.read(&path).await.1["items"], json!([comment]));
    let (status, changed) = ana.send(Method::PATCH, &one, json!({ "body": "It came." })).await;
    assert_eq!((status, &changed["version"]), (StatusCode::OK, &json!(2)));
    assert_eq!(ana.send(Method::DELETE, &one, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ana.send(Method::GET, &one, Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(told(stream.expect("comment:new").await.1), comment);
    assert_eq!(told(stream.expect("comment:updated").await.1), changed);
    let (_, deleted) = stream.expect("comment:deleted").await;
    assert_eq!((&deleted["id"], &deleted["meta"]["version"]), (&json!(id), &json!(3)));
    server.stop().await;
}

#[tokio::test]
async fn authors_change_and_delete_their_own_and_managers_delete_any() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    for sub in ["vera", "ed"] {
        ana.send(Method::PUT, &format!("/v1/projects/{project}/members/{sub}"), json!({ "role": "viewer" })).await;
    }
    let [vera, ed, max] = [("vera", &[][..]), ("ed", &[]), ("max", &[Role::Manager])]
        .map(|(sub, roles)| Client::new(&server, &token(sub, roles)));
    let path = format!("/v1/projects/{project}/comments");
    for (deleter, status) in [(&ed, 403), (&max, 204), (&vera, 204)] {
        let one = format!("{path}/{}", vera.make(&path, json!({ "body": "x" })).await);
        for (changer, status) in [(&ed, 403), (&max, 403), (&vera, 200)] {
            assert_eq!(changer.send(Method::PATCH, &one, json!({ "body": "y" })).await.0.as_u16(), status);
        }
        assert_eq!(deleter.send(Method::DELETE, &one, Value::Null).await.0.as_u16(), status);
    }
    server.stop().await;
}

#[tokio::test]
async fn whoever_is_mentioned_and_may_read_the_project_gets_one_alert_and_nobody_else_does() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    ana.send(Method::PUT, &format!("/v1/projects/{project}/members/vera"), json!({ "role": "viewer" })).await;
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let of_north = Claims { divisions: vec!["north".parse().unwrap()], ..Claims::new("dora".parse().unwrap(), exp) };
    let readers = [token("vera", &[]), mint(&of_north), token("max", &[Role::Manager])];
    let others = [token("otto", &[])];
    let client = |token: &String| Client::new(&server, token);
    // They are judged by what they were last seen with: each has been here, and has an inbox.
    for who in readers.iter().chain(&others).map(client) {
        assert_eq!(who.read("/v1/alerts").await.1["unread"], 0);
    }
    let path = format!("/v1/projects/{project}/comments");
    let everybody = json!(["vera", "dora", "max", "otto", "nobody", "ana"]);
    let id = ana.make(&path, json!({ "body": "Look at this.", "mentions": everybody })).await;
    // Who is mentioned already is not told again.
    let again = json!({ "mentions": ["vera", "max", "otto"], "body": "Look again." });
    assert_eq!(ana.send(Method::PATCH, &format!("{path}/{id}"), again).await.0, StatusCode::OK);
    for who in readers.iter().map(client) {
        let (_, inbox) = who.read("/v1/alerts").await;
        assert_eq!((&inbox["unread"], &inbox["items"][0]["kind"]), (&json!(1), &json!("mention")), "{inbox}");
        assert_eq!(
            (&inbox["items"][0]["projectId"], &inbox["items"][0]["body"]),
            (&json!(project), &json!("Look at this."))
        );
    }
    for who in others.iter().map(client).chain([ana.clone()]) {
        assert_eq!(who.read("/v1/alerts").await.1["unread"], 0);
    }
    server.stop().await;
}
