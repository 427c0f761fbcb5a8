//! A change posted is a change seen, and a dropped stream resumes.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Client, connect, database, server, sql};

#[tokio::test]
async fn a_change_posted_is_a_change_seen() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let id = ana.project("north").await;
    let (cursor, _) = ana.read(&format!("/v1/projects/{id}")).await;
    let mut stream = ana.stream(&format!("rooms=project:{id}"), &cursor).await;
    let (_, open) = stream.expect("stream:open").await;
    assert_eq!(open["resume"], "replayed");
    assert_eq!(open["rooms"], json!([format!("project:{id}"), "user:ana"]));
    let change = json!({ "name": "South tower", "status": "active" });
    let (status, changed) = ana.send(Method::PATCH, &format!("/v1/projects/{id}"), change).await;
    assert_eq!((status, &changed["version"]), (StatusCode::OK, &json!(2)));
    for (field, value) in [("name", "South tower"), ("status", "active")] {
        let (_, event) = stream.expect("project:updated").await;
        assert_eq!((&event["field"], &event["newValue"]), (&json!(field), &json!(value)));
        assert_eq!((&event["updatedBy"], &event["meta"]["version"]), (&json!("ana"), &json!(2)));
    }
    server.stop().await;
    let (closing, data) = stream.expect("stream:closing").await;
    assert_eq!((data["reason"].as_str(), closing.retry), (Some("draining"), data["reconnectInMs"].as_u64()));
    assert!(stream.next().await.is_none(), "the stream ends with the server");
}

#[tokio::test]
async fn a_stream_resumes_on_another_node_with_what_it_missed() {
    let url = database().await;
    let (first, second) = (server(&url, &[]).await, server(&url, &[]).await);
    let (here, there) = (Client::admin(&first), Client::admin(&second));
    let mut stream = here.stream("", "").await;
    stream.expect("stream:open").await;
    let mut conn = connect(&url).await;
    sql(&mut conn, r#"select crewcast.publish('{company}', 'test:one', '{"n": 1}')"#).await;
    let (_, one) = stream.expect("test:one").await;
    assert_eq!((&one["n"], &one["meta"]["seq"]), (&json!(1), &json!(1)));
    let id = stream.last_id().to_owned();
    drop(stream);
    sql(&mut conn, r#"select crewcast.publish('{company}', 'test:two', '{}')"#).await;
    sql(&mut conn, r#"select crewcast.publish('{topic:other}', 'test:other', '{}')"#).await;
    let mut resumed = there.stream("", &id).await;
    let (open, data) = resumed.expect("stream:open").await;
    assert_eq!((open.id, &data["resume"]), (id, &json!("replayed")));
    resumed.expect("test:two").await;
    sql(&mut conn, r#"select crewcast.publish('{company}', 'test:three', '{}')"#).await;
    resumed.expect("test:three").await;
    first.stop().await;
    second.stop().await;
}
