//! Tickets: what a browser's `EventSource` says in place of a header, where that is good, and for how long.

mod come_back;
mod life;
mod statements;

use std::time::Duration;

use crewcast::auth::Claims;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::timeout;

use crate::{
    openapi::actions,
    support::{Client, PATIENCE, Stream, connect, database, mint, server, sql, token},
};

/// The status of an attempt to open a stream, and the answer when that is a problem.
async fn attempt(client: &Client, query: &str) -> (StatusCode, Value) {
    let response = client.request(Method::GET, &format!("/events?{query}")).send().await.unwrap();
    let status = response.status();
    if status.is_success() {
        return (status, Value::Null);
    }
    (status, response.json().await.unwrap())
}

/// An attempt that is refused for good, with a sentence that has this in it.
async fn refused(client: &Client, ticket: &str, why: &str) {
    let (status, problem) = attempt(client, &format!("ticket={ticket}")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    assert!(ticket.is_empty() || !problem.to_string().contains(ticket), "{problem}");
}

async fn expect_n(stream: &mut Stream, numbers: std::ops::RangeInclusive<i64>) {
    for n in numbers {
        assert_eq!(stream.expect("test:n").await.1["n"], json!(n));
    }
}

/// Whether what a statement asks is so.
async fn is_so(conn: &mut PgConnection, question: &str) -> bool {
    sqlx::query_scalar(AssertSqlSafe(format!("select {question}"))).fetch_one(conn).await.unwrap()
}

/// Returns once it is so.
async fn until(conn: &mut PgConnection, question: &str) {
    let asking = async { while !is_so(conn, question).await {} };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {question}"));
}

/// Returns once a figure of the node is as high.
async fn until_counted(client: &Client, name: &str, least: f64) {
    let asking = async { while client.metrics().await[name] < least {} };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {name} at {least}"));
}

const RENEWED: &str = "crewcast_tickets_renewed_total";

#[tokio::test]
async fn a_ticket_opens_streams_on_any_node_for_the_claims_it_was_made_with() {
    let url = database().await;
    let (near, far) = (server(&url, &[]).await, server(&url, &[]).await);
    let (ana, browser) = (Client::admin(&near), Client::nobody(&far));
    let project = ana.project("north").await;
    let exp = (time::OffsetDateTime::now_utc() + Duration::from_secs(3600)).unix_timestamp();
    let divisions = vec!["south".parse().unwrap()];
    let ben = Client::new(&near, &mint(&Claims { divisions, ..Claims::new("ben".parse().unwrap(), exp) }));
    let made = ben.request(Method::POST, "/v1/stream-tickets").send().await.unwrap();
    assert_eq!((made.status(), &made.headers()["cache-control"]), (StatusCode::CREATED, &"no-store".parse().unwrap()));
    let made: Value = made.json().await.unwrap();
    assert_eq!(made.as_object().unwrap().keys().collect::<Vec<_>>(), ["expiresAt", "ticket"]);
    let ticket = made["ticket"].as_str().unwrap();
    let query = format!("rooms=company,division:south,division:north,project:{project}&ticket={ticket}");
    let (_, open) = browser.stream(&query, "").await.expect("stream:open").await;
    assert_eq!(open["user"]["id"], "ben");
    assert_eq!(open["rooms"], json!(["company", "division:south", "user:ben"]));
    // What it may join is judged anew at each use.
    let rooms = format!("rooms=project:{project}&ticket={ticket}");
    assert_eq!(attempt(&browser, &rooms).await.0, StatusCode::FORBIDDEN);
    let path = format!("/v1/projects/{project}/members/ben");
    assert_eq!(ana.send(Method::PUT, &path, json!({ "role": "viewer" })).await.0, StatusCode::OK);
    browser.stream(&rooms, "").await.expect("stream:open").await;
    assert_eq!(ana.send(Method::DELETE, &path, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(attempt(&browser, &rooms).await.0, StatusCode::FORBIDDEN);
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn a_ticket_is_good_for_nothing_but_streams() {
    let server = server(&database().await, &[]).await;
    let (ana, browser) = (Client::admin(&server), Client::nobody(&server));
    let ticket = ana.ticket().await;
    // Signing out asks for nobody.
    let is_closed = |(method, route): &(String, String)| {
        route.starts_with("/v1/") && (method.as_str(), route.as_str()) != ("DELETE", "/v1/session")
    };
    let closed: Vec<_> = actions().into_iter().filter(is_closed).collect();
    assert!(closed.len() > 20, "{closed:?}");
    for (method, route) in closed {
        let path = route.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let path = format!("{}?ticket={ticket}", path.collect::<Vec<_>>().join("/"));
        let (status, problem) = browser.send(method.parse().unwrap(), &path, json!({})).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {route}: {problem}");
        assert!(!problem.to_string().contains(&ticket), "{problem}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_header_goes_before_a_ticket_whatever_it_says() {
    let server = server(&database().await, &[]).await;
    let ticket = Client::admin(&server).ticket().await;
    let query = format!("ticket={ticket}");
    let ben = Client::new(&server, &token("ben", &[]));
    let (_, open) = ben.stream(&query, "").await.expect("stream:open").await;
    assert_eq!(open["user"]["id"], "ben");
    let nonsense = Client::new(&server, "nonsense");
    let (status, problem) = attempt(&nonsense, &query).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_ticket_is_refused_and_not_repeated() {
    let server = server(&database().await, &[]).await;
    let browser = Client::nobody(&server);
    let ticket = Client::admin(&server).ticket().await;
    let unknown = format!("{}{}", &ticket[..ticket.len() - 4], "AAAA");
    for (ticket, why) in [
        ("nonsense", "not one that this server makes"),
        (&ticket[1..], "not one that this server makes"),
        (&format!("{ticket}&ticket={ticket}"), "not one that this server makes"),
        (&unknown, "no such ticket"),
        ("", "or the parameter `ticket`"),
    ] {
        refused(&browser, ticket, why).await;
    }
    let metrics = browser.metrics().await;
    let counted = |reason: &str| metrics[&format!("crewcast_tickets_refused_total{{reason=\"{reason}\"}}")];
    assert_eq!((counted("malformed"), counted("unknown")), (3.0, 1.0));
    // What is bad about the rest of the address is said to browsers as well.
    for (query, code) in
        [("rooms=nonsense", "invalid_room"), ("types=nonsense:", "invalid_query"), ("x=%ff", "invalid_query")]
    {
        let (status, problem) = attempt(&browser, &format!("{query}&ticket={ticket}")).await;
        assert_eq!((status, problem["code"].as_str()), (StatusCode::BAD_REQUEST, Some(code)), "{query}");
    }
    server.stop().await;
}

#[tokio::test]
async fn making_a_ticket_takes_no_body_and_minds_none() {
    let server = server(&database().await, &["--body-bytes-max=1KiB"]).await;
    let ana = Client::admin(&server);
    for body in ["", "{}", "null", "nonsense", &"x".repeat(2000)] {
        for kind in ["application/json", "text/plain"] {
            let request = ana.request(Method::POST, "/v1/stream-tickets").header("content-type", kind);
            let status = request.body(body.to_owned()).send().await.unwrap().status();
            assert_eq!(status, StatusCode::CREATED, "{kind} {body}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_user_has_no_more_good_tickets_than_they_may() {
    let url = database().await;
    let server = server(&url, &["--tickets-per-user=3", "--ticket-ttl=1h"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    for _ in 0..3 {
        ana.ticket().await;
    }
    let refused = ana.request(Method::POST, "/v1/stream-tickets").send().await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"3600".parse().unwrap())
    );
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "rate_limited");
    Client::new(&server, &token("ben", &[])).ticket().await;
    sql(&mut conn, "update crewcast.tickets set good_until = now() where sub = 'ana'").await;
    ana.ticket().await;
    assert_eq!(ana.metrics().await["crewcast_tickets_made_total"], 5.0);
    server.stop().await;
}

#[tokio::test]
async fn the_database_has_of_a_ticket_only_what_cannot_be_used() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let mut conn = connect(&url).await;
    let ticket = Client::admin(&server).ticket().await;
    Client::nobody(&server).stream(&format!("ticket={ticket}"), "").await.expect("stream:open").await;
    let rows: Vec<String> =
        sqlx::query_scalar("select ticket::text from crewcast.tickets ticket").fetch_all(&mut conn).await.unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert!(!row.contains(ticket.trim_start_matches("cct_")), "{row}");
    assert!(is_so(&mut conn, &format!("digest = sha256('{ticket}') from crewcast.tickets")).await);
    // It could not be used either.
    let digest: String =
        sqlx::query_scalar("select encode(digest, 'hex') from crewcast.tickets").fetch_one(&mut conn).await.unwrap();
    refused(&Client::nobody(&server), &digest, "not one that this server makes").await;
    server.stop().await;
}
