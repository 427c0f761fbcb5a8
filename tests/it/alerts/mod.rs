//! Alerts: raised once for each crossing, told to exactly their audience, and counted exactly in each inbox.

mod cost;
mod inbox;
mod rules;
mod tabs;

use crewcast::{
    app::Server,
    auth::{Claims, Roles},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::{Client, mint, sql};

/// A member of these divisions.
fn member(server: &Server, sub: &str, divisions: &[&str]) -> Client {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let divisions = divisions.iter().map(|slug| slug.parse().unwrap()).collect();
    let claims = Claims { roles: Roles::default(), divisions, ..Claims::new(sub.parse().unwrap(), exp) };
    Client::new(server, &mint(&claims))
}

/// Raises an alert by hand: its id.
async fn raise(max: &Client, title: &str, audience: &[&str]) -> String {
    let body = json!({ "kind": "note", "severity": "info", "title": title, "body": "", "audience": audience });
    max.make("/v1/alerts", body).await
}

/// The titles in an inbox, newest first, and what it says is unread.
async fn inbox(client: &Client) -> (Vec<String>, i64) {
    let (_, inbox) = client.read("/v1/alerts?limit=200").await;
    let titles = inbox["items"].as_array().unwrap().iter().map(|alert| alert["title"].as_str().unwrap().to_owned());
    (titles.collect(), inbox["unread"].as_i64().unwrap())
}

async fn acknowledge(client: &Client, id: &str) -> (StatusCode, Value) {
    let path = if id == "all" { "/v1/alerts/ack-all".to_owned() } else { format!("/v1/alerts/{id}/ack") };
    client.send(Method::POST, &path, Value::Null).await
}

/// Alerts by the hand of SQL, titled by their number, to a room that is written as SQL of `n`.
async fn fill(conn: &mut PgConnection, alerts: u32, room: &str) {
    let statement = format!(
        "with raised as (
             insert into crewcast.alerts (id, kind, severity, title, body)
             select gen_random_uuid(), 'note', 'info', n, '' from generate_series(1, {alerts}) n
             returning number, title::int as n)
         insert into crewcast.alert_rooms (room, number)
         select room, number from raised, unnest(array[{room}, '*']) as room"
    );
    sql(conn, &statement).await;
}
