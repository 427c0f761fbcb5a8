//! Streams of a ticket, of a cookie and of a token: to the others in a room they are the same.

use serde_json::json;

use super::{Tab, person};
use crate::support::{Client, database, server};
use reqwest::{Method, StatusCode};

#[tokio::test]
async fn a_user_is_joined_seen_and_gone_alike_by_ticket_and_by_token() {
    let server = server(&database().await, &["--presence-grace=200ms"]).await;
    let (ana, ben) = (person(&server, "ana"), person(&server, "ben"));
    let mut watch = Tab::open(&ana, "company,division:north").await;
    for by_ticket in [true, false] {
        // A page follows by its ticket, and asks with its token.
        let tab = if by_ticket {
            Tab::open(&Client::nobody(&server), &format!("company&ticket={}", ben.ticket().await)).await
        } else {
            Tab::open(&ben, "company").await
        };
        let mut tab = tab;
        watch.until("company ben online").await;
        let path = format!("/v1/streams/{}/rooms", tab.id);
        let (status, answer) = ben.send(Method::POST, &path, json!({ "join": ["division:north"] })).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        watch.until("division:north ben online").await;
        tab.until("division:north has 2").await;
        tab.report(&ben, json!({ "status": "idle", "viewing": "/plan" })).await;
        watch.until("division:north ben idle").await;
        assert_eq!(watch.seen["company"]["ben"], ("idle".to_owned(), json!("/plan"), json!(null)));
        assert_eq!(ben.send(Method::POST, &path, json!({ "leave": ["division:north"] })).await.0, StatusCode::OK);
        watch.until("division:north ben offline").await;
        drop(tab);
        watch.until("company ben offline").await;
    }
    let told = std::mem::take(&mut watch.told);
    let (by_ticket, by_token) = told.split_at(told.len() / 2);
    assert_eq!(by_ticket, by_token);
    server.stop().await;
}
