//! State that was read and the stream from its cursor make the state that is read later.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Rng, eventually, writer::burn};
use crate::support::{Client, connect, database, server, sql, token};

const FIELDS: [&str; 2] = ["name", "notes"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_and_the_stream_from_its_cursor_make_the_later_state() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let mut rng = Rng::seeded();
    let caller = |name: &str| {
        let token = token(name, &[crewcast::auth::Role::Service]);
        nodes.each_ref().map(|node| Client::new(node, &token))
    };
    let readers = caller("reader");
    let path = format!("/v1/projects/{}", Client::admin(&nodes[0]).project("north").await);
    let room = path.replace("/v1/projects/", "rooms=project:");
    let stop = CancellationToken::new();
    let mut open = connect(&url).await;
    sql(&mut open, "begin").await;
    sql(&mut open, "select pg_current_xact_id()").await;
    let mut writers = tokio::task::JoinSet::new();
    writers.spawn(burn(url.clone(), stop.clone(), Default::default(), false));
    for (nth, client) in caller("writer").into_iter().enumerate() {
        writers.spawn(write(client, path.clone(), nth, stop.clone()));
    }
    for _ in 0..100 {
        let (here, there) = (&readers[rng.below(2)], &readers[rng.below(2)]);
        let (cursor, mut state) = here.read(&path).await;
        let mut stream = there.stream(&room, &cursor).await;
        let (_, opened) = stream.expect("stream:open").await;
        assert_eq!(opened["resume"], "replayed");
        let later = eventually(async || {
            let (_, later) = there.read(&path).await;
            (later["version"].as_i64() > state["version"].as_i64()).then_some(later)
        });
        let later = later.await.expect("nobody writes any more");
        // Each version changes both fields and has an event for each.
        for version in state["version"].as_i64().unwrap() + 1..=later["version"].as_i64().unwrap() {
            for field in FIELDS {
                let (_, event) = stream.expect("project:updated").await;
                assert_eq!((&event["meta"]["version"], &event["field"]), (&json!(version), &json!(field)));
                state[field] = event["newValue"].clone();
            }
            state["version"] = json!(version);
        }
        assert_eq!(without_time(state), without_time(later));
    }
    stop.cancel();
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    for node in nodes {
        node.stop().await;
    }
}

async fn write(client: Client, path: String, writer: usize, stop: CancellationToken) {
    for n in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let text = format!("{writer}-{n}");
        let (status, answer) = client.send(Method::PATCH, &path, json!({ "name": text, "notes": text })).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}

/// `updatedAt` is not in the events.
fn without_time(mut project: Value) -> Value {
    project.as_object_mut().unwrap().remove("updatedAt");
    project
}
