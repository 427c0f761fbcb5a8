//! Streams that are ended, and what admins see of them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{HOUR, member, nodes, open};
use crate::support::Client;

#[tokio::test]
async fn an_owner_ends_a_stream_and_an_admin_ends_anybodys() {
    let [here, there] = nodes(&[]).await;
    for asked in [&here, &there] {
        let token = member("ben", &[], &[], HOUR);
        let ben = Client::new(&here, &token);
        for (asking, path) in [(Client::new(asked, &token), "/v1/streams"), (Client::admin(asked), "/v1/admin/streams")]
        {
            let (mut stream, id) = open(&ben, "").await;
            let (status, _) = asking.send(Method::DELETE, &format!("{path}/{id}"), Value::Null).await;
            assert_eq!(status, StatusCode::NO_CONTENT);
            assert_eq!(stream.expect("stream:closing").await.1["reason"], "ended");
            assert!(stream.next().await.is_none());
        }
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn admins_see_the_streams_of_all_nodes_page_by_page() {
    let [here, there] = nodes(&["--node=west", "--poll=50ms"]).await;
    let mut open_streams = Vec::new();
    for n in 0..5 {
        let node = if n % 2 == 0 { &here } else { &there };
        let sub = format!("user{n}");
        open_streams.push((open(&Client::new(node, &member(&sub, &[], &["a"], HOUR)), "rooms=topic:a").await, sub));
    }
    let admin = Client::admin(&there);
    let (mut after, mut seen) = (String::new(), Vec::<Value>::new());
    loop {
        let request = admin.request(Method::GET, &format!("/v1/admin/streams?limit=2&after={after}"));
        let page: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(page["silentNodes"], json!([]));
        seen.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["nextCursor"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    let expected: Vec<(&str, &str)> = open_streams.iter().map(|((_, id), sub)| (id.as_str(), sub.as_str())).collect();
    let found: Vec<(&str, &str)> =
        seen.iter().map(|item| (item["id"].as_str().unwrap(), item["userId"].as_str().unwrap())).collect();
    assert_eq!(found, expected);
    assert_eq!(seen[0]["rooms"], json!(["topic:a", "user:user0"]));
    assert_eq!((&seen[0]["lagEvents"], &seen[0]["lagBytes"], &seen[0]["node"]), (&json!(0), &json!(0), &json!("west")));
    here.stop().await;
    there.stop().await;
}
