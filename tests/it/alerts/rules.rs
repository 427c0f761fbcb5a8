//! Accounts and their rules, and whom an alert reaches.

use std::collections::BTreeMap;

use crewcast::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::task::JoinSet;

use super::{member, raise};
use crate::support::{Client, connect, database, server, token};

async fn account(ana: &Client, id: &str) {
    let (status, account) = ana.send(Method::PUT, &format!("/v1/accounts/{id}"), json!({ "name": "Main" })).await;
    assert!(status.is_success(), "{account}");
}

/// Sets a balance: the account as it is then.
async fn balance(ana: &Client, id: &str, balance: f64) -> Value {
    let (status, account) =
        ana.send(Method::PUT, &format!("/v1/accounts/{id}/balance"), json!({ "balance": balance })).await;
    assert_eq!(status, StatusCode::OK, "{account}");
    account
}

async fn rule(ana: &Client, account: &str, below: f64, audience: &[&str]) -> String {
    let body = json!({ "accountId": account, "below": below, "severity": "critical", "audience": audience });
    ana.make("/v1/alert-rules", body).await
}

/// What the alerts of the log say, in the order of seq.
async fn raised(conn: &mut PgConnection) -> Vec<Value> {
    let statement = "select data::text from crewcast.events where type = 'alert:new' order by seq";
    let rows: Vec<String> = sqlx::query_scalar(statement).fetch_all(conn).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
}

#[tokio::test]
async fn accounts_are_made_and_changed_and_a_balance_comes_back_as_it_was_written() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    ana.project("north").await;
    let path = "/v1/accounts/main";
    let set = |name: &str, division: Value| ana.send(Method::PUT, path, json!({ "name": name, "division": division }));
    let (status, made) = set("Main", json!("north")).await;
    let expected = json!({ "id": "main", "name": "Main", "division": "north", "balance": 0, "version": 1 });
    assert_eq!((status, &made), (StatusCode::CREATED, &expected));
    assert_eq!(set("Main", json!("north")).await, (StatusCode::OK, expected), "the same again is no change");
    let (status, changed) = set("Main", Value::Null).await;
    assert_eq!((status, &changed["division"], &changed["version"]), (StatusCode::OK, &Value::Null, &json!(2)));
    let (status, problem) = set("Main", json!("nowhere")).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/division")));
    for (nth, text) in ["-0.01", "12.5", "999999999999.99", "-999999999999.99", "1000", "0.1"].into_iter().enumerate() {
        let body = format!(r#"{{"balance":{text}}}"#);
        let request = ana.request(Method::PUT, "/v1/accounts/main/balance").header("content-type", "application/json");
        let answer = request.body(body).send().await.unwrap().text().await.unwrap();
        let version = 3 + nth;
        assert!(answer.contains(&format!(r#""balance":{text},"version":{version}"#)), "{answer}");
        let read = ana.request(Method::GET, path).send().await.unwrap().text().await.unwrap();
        assert_eq!(read, answer);
    }
    for (body, detail) in [("0.001", "two decimals"), ("1000000000000", "two decimals"), ("\"1\"", "an amount")] {
        let request = ana.request(Method::PUT, "/v1/accounts/main/balance").header("content-type", "application/json");
        let answer = request.body(format!(r#"{{"balance":{body}}}"#)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 422);
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["errors"][0]["detail"].as_str().unwrap().contains(detail), "{problem}");
    }
    let (status, _) = ana.send(Method::PUT, "/v1/accounts/other/balance", json!({ "balance": 1 })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let stale =
        |path: &'static str, body: Value| ana.request(Method::PUT, path).header("if-match", "\"2\"").json(&body);
    let refused = stale("/v1/accounts/main/balance", json!({ "balance": 7 })).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
    let merged = stale(path, json!({ "name": "Current" })).send().await.unwrap();
    assert_eq!(merged.status(), StatusCode::OK, "only the balance has changed since");
    account(&ana, "second").await;
    let (_, first) = ana.read("/v1/accounts?limit=1").await;
    assert_eq!((&first["items"][0]["id"], &first["nextCursor"]), (&json!("main"), &json!("main")));
    let (_, rest) = ana.read("/v1/accounts?limit=1&after=main").await;
    assert_eq!((&rest["items"][0]["id"], &rest["nextCursor"]), (&json!("second"), &Value::Null));
    server.stop().await;
}

#[tokio::test]
async fn a_balance_that_falls_below_a_rule_is_told_once_until_it_was_at_or_above_again() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut stream = ana.follow("rooms=company").await;
    account(&ana, "main").await;
    balance(&ana, "main", 100.0).await;
    rule(&ana, "main", 50.0, &["company"]).await;
    rule(&ana, "main", 20.5, &["company"]).await;
    let mut expected = Vec::new();
    for (amount, below) in [
        (50.0, &[][..]),
        (49.99, &[50.0]),
        (30.0, &[]),
        (10.0, &[20.5]),
        (-5.0, &[]),
        (20.5, &[]),
        (20.49, &[20.5]),
        (50.0, &[]),
        (0.0, &[50.0, 20.5]),
        (0.0, &[]),
    ] {
        balance(&ana, "main", amount).await;
        expected.extend(below.iter().map(|below| (amount, *below)));
        let told = raised(&mut conn).await;
        let told: Vec<_> =
            told.iter().map(|alert| (alert["value"].as_f64().unwrap(), alert["threshold"].as_f64().unwrap())).collect();
        assert_eq!(told, expected, "after {amount}");
    }
    let (_, mut alert) = stream.expect("alert:new").await;
    for name in ["id", "createdAt", "meta"] {
        assert!(alert.as_object_mut().unwrap().remove(name).is_some(), "{name}");
    }
    let first = json!({
        "kind": "balance", "severity": "critical", "title": "Main fell below 50", "body": "The balance is 49.99.",
        "projectId": null, "division": null, "accountId": "main", "value": 49.99, "threshold": 50,
    });
    assert_eq!(alert, first);
    server.stop().await;
}

#[tokio::test]
async fn a_rule_that_begins_below_waits_for_the_balance_to_rise_first() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    account(&ana, "main").await;
    balance(&ana, "main", 10.0).await;
    let id = rule(&ana, "main", 50.0, &["company"]).await;
    let path = format!("/v1/alert-rules/{id}");
    let change = |body: Value| ana.send(Method::PATCH, &path, body);
    balance(&ana, "main", 5.0).await;
    assert_eq!(raised(&mut conn).await.len(), 0, "made while the balance was below");
    change(json!({ "below": 5 })).await;
    balance(&ana, "main", 4.0).await;
    assert_eq!(raised(&mut conn).await.len(), 1, "given a threshold that the balance was not below");
    change(json!({ "below": 4 })).await;
    change(json!({ "below": 50, "audience": ["topic:x", "company", "topic:x"] })).await;
    balance(&ana, "main", 3.0).await;
    assert_eq!(raised(&mut conn).await.len(), 1, "given one that it was below already");
    let (_, changed) = change(json!({ "severity": "info" })).await;
    let expected = json!({
        "id": id, "accountId": "main", "below": 50, "severity": "info", "audience": ["company", "topic:x"], "version": 5,
    });
    assert_eq!((&changed, &ana.read(&path).await.1), (&expected, &expected));
    balance(&ana, "main", 60.0).await;
    balance(&ana, "main", 3.0).await;
    assert_eq!(raised(&mut conn).await.len(), 2);
    for (body, pointer) in [
        (json!({ "audience": [] }), "/audience"),
        (json!({ "audience": ["kitchen"] }), "/audience/0"),
        (json!({ "audience": (0..21).map(|n| format!("topic:{n}")).collect::<Vec<_>>() }), "/audience"),
        (json!({ "accountId": "other" }), "/accountId"),
        (json!({ "below": null }), "/below"),
    ] {
        let (status, problem) = change(body.clone()).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{body} {problem}");
    }
    let body = json!({ "accountId": "other", "below": 1, "severity": "info", "audience": ["company"] });
    let (status, problem) = ana.send(Method::POST, "/v1/alert-rules", body).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/accountId")));
    account(&ana, "second").await;
    let other = rule(&ana, "second", 1.0, &["company"]).await;
    for (filter, ids) in [("", vec![&id, &other]), ("accountId=second", vec![&other]), ("accountId=third", vec![])] {
        let (_, rules) = ana.read(&format!("/v1/alert-rules?{filter}")).await;
        let found: Vec<_> =
            rules["items"].as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap()).collect();
        assert_eq!(found, ids, "{filter}");
    }
    assert_eq!(ana.send(Method::DELETE, &path, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ana.send(Method::GET, &path, Value::Null).await.0, StatusCode::NOT_FOUND);
    balance(&ana, "main", 60.0).await;
    balance(&ana, "main", 3.0).await;
    assert_eq!(raised(&mut conn).await.len(), 2, "a rule that is gone tells nothing");
    server.stop().await;
}

#[tokio::test]
async fn fifty_writers_at_once_on_two_nodes_raise_one_alert_for_each_crossing() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let admins = [Client::admin(&nodes[0]), Client::admin(&nodes[1])];
    account(&admins[0], "main").await;
    let first = balance(&admins[0], "main", 100.0).await;
    rule(&admins[0], "main", 50.0, &["company"]).await;
    let mut writers = JoinSet::new();
    for writer in 0..50_u32 {
        let admin = admins[writer as usize % 2].clone();
        writers.spawn(async move {
            let mut written = Vec::new();
            for nth in 0..4 {
                let amount = f64::from((writer * 7 + nth * 13) % 10) * 10.0 + f64::from(writer) / 100.0;
                let account = balance(&admin, "main", amount).await;
                written.push((account["version"].as_i64().unwrap(), account["balance"].as_f64().unwrap()));
            }
            written
        });
    }
    // A version is one write: they are the order of the commits.
    let written: BTreeMap<i64, f64> = writers.join_all().await.into_iter().flatten().collect();
    let (mut before, mut crossings) = (first["balance"].as_f64().unwrap(), Vec::new());
    for amount in written.into_values() {
        if before >= 50.0 && amount < 50.0 {
            crossings.push(amount);
        }
        before = amount;
    }
    let told = raised(&mut connect(&url).await).await;
    let told: Vec<f64> = told.iter().map(|alert| alert["value"].as_f64().unwrap()).collect();
    assert!(told.len() > 10, "{told:?}");
    assert_eq!(told, crossings);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn an_alert_reaches_exactly_its_audience() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let (ana, max) = (Client::admin(&nodes[0]), Client::new(&nodes[0], &token("max", &[Role::Manager])));
    let project = ana.project("north").await;
    ana.send(Method::PUT, &format!("/v1/projects/{project}/members/eva"), json!({ "role": "viewer" })).await;
    let (of_project, rooms) = (format!("project:{project}"), format!("rooms=project:{project}"));
    let (eva, nora) = (member(&nodes[0], "eva", &[]), member(&nodes[1], "nora", &["north"]));
    let erp = Client::new(&nodes[1], &token("erp", &[Role::Service]));
    // Who listens where, and the titles that they are to get.
    let mut listening = [
        (eva.follow("rooms=company").await, vec!["all", "two"]),
        (eva.follow(&rooms).await, vec!["project", "two"]),
        (nora.follow("rooms=company,division:north").await, vec!["all", "north", "two"]),
        (nora.follow(&rooms).await, vec!["project"]),
        (erp.follow("rooms=user:eva").await, vec!["two"]),
        (max.follow("rooms=division:south").await, vec!["south"]),
        (ana.follow("").await, vec!["all"]),
    ];
    raise(&max, "all", &["company"]).await;
    raise(&max, "north", &["division:north"]).await;
    raise(&erp, "project", &[&of_project]).await;
    raise(&ana, "south", &["division:south"]).await;
    raise(&max, "two", &["division:north", "user:eva", "division:north"]).await;
    let end = json!({ "type": "test:end", "data": {} });
    for room in ["company", "division:south", &of_project, "user:eva"] {
        let (status, _) = erp.send(Method::POST, &format!("/v1/rooms/{room}/events"), end.clone()).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    for (nth, (stream, expected)) in listening.iter_mut().enumerate() {
        let mut titles = Vec::new();
        loop {
            let frame = stream.next().await.unwrap();
            if frame.event == "test:end" {
                break;
            }
            let data: Value = serde_json::from_str(&frame.data).unwrap();
            assert!(data.get("audience").is_none() && !frame.data.contains("user:"), "{data}");
            titles.push(data["title"].as_str().unwrap().to_owned());
        }
        assert_eq!(titles, *expected, "stream {nth}");
    }
    for node in nodes {
        node.stop().await;
    }
}
