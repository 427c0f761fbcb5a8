//! Alerts: raised once for each crossing, told to exactly their audience, and counted exactly in each inbox.

use std::collections::{BTreeMap, BTreeSet};

use crewcast::{
    app::Server,
    auth::{Claims, Role, Roles},
    domain::alerts::{AlertRetention, COUNT, PAGE, SORT},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::task::JoinSet;

use crate::support::{Client, Stream, connect, database, mint, number, server, sql, token};

/// A member of these divisions.
fn member(server: &Server, sub: &str, divisions: &[&str]) -> Client {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let divisions = divisions.iter().map(|slug| slug.parse().unwrap()).collect();
    let claims = Claims { roles: Roles::default(), divisions, ..Claims::new(sub.parse().unwrap(), exp) };
    Client::new(server, &mint(&claims))
}

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

#[tokio::test]
async fn an_inbox_holds_what_one_may_read_now_since_one_was_first_seen() {
    let server = server(&database().await, &["--retention=1h"]).await;
    let (ana, max) = (Client::admin(&server), Client::new(&server, &token("max", &[Role::Manager])));
    let (eva, nora) = (member(&server, "eva", &[]), member(&server, "nora", &["north"]));
    raise(&max, "before", &["company", "user:eva"]).await;
    for (client, unread) in [(&eva, 0), (&nora, 0), (&ana, 0), (&max, 1)] {
        assert_eq!(inbox(client).await.1, unread, "only who raised it was seen before");
    }
    let project = ana.project("north").await;
    let of_project = format!("project:{project}");
    raise(&max, "all", &["company"]).await;
    raise(&max, "north", &["division:north"]).await;
    raise(&max, "project", &[&of_project, "topic:x"]).await;
    raise(&max, "eva", &["user:eva"]).await;
    raise(&max, "ana", &["user:ana"]).await;
    let titles = |wanted: &[&str]| {
        let titles: Vec<String> = wanted.iter().map(|title| (*title).to_owned()).collect();
        (titles, wanted.len() as i64)
    };
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    assert_eq!(inbox(&nora).await, titles(&["project", "north", "all"]));
    assert_eq!(inbox(&max).await, titles(&["project", "north", "all", "before"]));
    assert_eq!(inbox(&ana).await, titles(&["ana", "project", "north", "all"]), "nobody else's, not even for an admin");
    let path = format!("/v1/projects/{project}/members/eva");
    ana.send(Method::PUT, &path, json!({ "role": "viewer" })).await;
    assert_eq!(inbox(&eva).await, titles(&["eva", "project", "all"]), "also what was raised before they joined");
    ana.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    ana.send(Method::PUT, &path, json!({ "role": "viewer" })).await;
    ana.send(Method::DELETE, &format!("/v1/projects/{project}"), Value::Null).await;
    assert_eq!(
        inbox(&eva).await,
        titles(&["eva", "project", "all"]),
        "a deleted project keeps its readers for a while"
    );
    assert_eq!(inbox(&nora).await, titles(&["project", "north", "all"]));
    let mut conn = server.app.db.acquire().await.unwrap();
    sql(&mut conn, "update crewcast.projects set deleted_at = deleted_at - interval '2 hours'").await;
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    drop(conn);
    server.stop().await;
}

#[tokio::test]
async fn an_inbox_is_opened_between_alerts_and_not_beside_one_that_is_under_way() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, max) = (member(&server, "eva", &[]), Client::new(&server, &token("max", &[Role::Manager])));
    inbox(&max).await;
    let (mut raiser, mut watcher) = (connect(&url).await, connect(&url).await);
    sql(&mut raiser, "begin").await;
    sql(&mut raiser, "lock table crewcast.alert_turns in row exclusive mode").await;
    fill(&mut raiser, 1, "'company'").await;
    raise(&max, "first", &["company"]).await;
    // The alert that is under way has a lower number than the last one before eva was seen.
    let opening = tokio::spawn({
        let eva = eva.clone();
        async move { eva.read("/v1/alerts").await }
    });
    let waiting = "select count(*) from pg_locks where relation = 'crewcast.alert_turns'::regclass and not granted";
    while !opening.is_finished() && number(&mut watcher, waiting).await == 0 {
        tokio::task::yield_now().await;
    }
    let data = "json_build_object('id', gen_random_uuid())";
    sql(&mut raiser, &format!("select crewcast.append('{{company}}', 'alert:new', {data}, null, null)")).await;
    sql(&mut raiser, "commit").await;
    let (cursor, read) = opening.await.unwrap();
    let mut stream = eva.stream("types=alert,test", &cursor).await;
    stream.expect("stream:open").await;
    raise(&max, "second", &["company"]).await;
    let end = json!({ "type": "test:end", "data": {} });
    Client::admin(&server).send(Method::POST, "/v1/rooms/company/events", end).await;
    let mut counted = read["unread"].as_i64().unwrap();
    while stream.next().await.unwrap().event == "alert:new" {
        counted += 1;
    }
    assert_eq!((counted, inbox(&eva).await), (1, (vec!["second".to_owned()], 1)));
    server.stop().await;
}

#[tokio::test]
async fn what_is_acknowledged_leaves_the_inbox_and_the_persons_other_tabs_follow() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let max = Client::new(&nodes[0], &token("max", &[Role::Manager]));
    let (eva, there) = (member(&nodes[0], "eva", &[]), member(&nodes[1], "eva", &[]));
    let project = max.project("north").await;
    let secret = raise(&max, "secret", &["division:north"]).await;
    let early = raise(&max, "early", &["company"]).await;
    assert_eq!(inbox(&eva).await, (vec![], 0));
    let later = raise(&max, "project", &[&format!("project:{project}"), "company"]).await;
    let mut ids = Vec::new();
    for title in ["a", "b", "c"] {
        ids.push(raise(&max, title, &["company", "user:eva"]).await);
    }
    let (mut tab, mut other) = (there.follow("").await, max.follow("").await);
    for _ in 0..2 {
        assert_eq!(acknowledge(&eva, &ids[1]).await, (StatusCode::OK, json!({ "unread": 3 })));
    }
    let (_, told) = tab.expect("alert:acknowledged").await;
    assert_eq!((&told["alertIds"], &told["unread"], &told["meta"]["rooms"]), (&json!([ids[1]]), &json!(3), &json!([])));
    for not_readable in [secret.as_str(), "0192f0c1-2b7a-7cc0-8a2e-0123456789ab"] {
        assert_eq!(acknowledge(&eva, not_readable).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(acknowledge(&eva, &early).await, (StatusCode::OK, json!({ "unread": 3 })), "it never was in the inbox");
    assert_eq!(tab.expect("alert:acknowledged").await.1["alertIds"], json!([early]));
    assert_eq!(inbox(&there).await, (["c", "a", "project"].map(str::to_owned).into(), 3));
    for _ in 0..2 {
        assert_eq!(acknowledge(&there, "all").await, (StatusCode::OK, json!({ "unread": 0 })));
    }
    let (_, told) = tab.expect("alert:acknowledged").await;
    assert_eq!((&told["alertIds"], &told["unread"]), (&json!([later, ids[0], ids[2]]), &json!(0)));
    // What was acknowledged by one room is by all of them, also those that one may join only later.
    max.send(Method::PUT, &format!("/v1/projects/{project}/members/eva"), json!({ "role": "viewer" })).await;
    assert_eq!(tab.expect("membership:changed").await.1["userId"], "eva");
    assert_eq!(inbox(&eva).await, (vec![], 0));
    raise(&max, "d", &["company"]).await;
    assert_eq!(inbox(&eva).await, (vec!["d".to_owned()], 1));
    assert_eq!(other.expect("alert:new").await.1["title"], "d", "an acknowledgement is one's own");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn many_alerts_are_acknowledged_at_once_in_events_of_five_hundred() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, mut conn) = (member(&server, "eva", &[]), connect(&url).await);
    assert_eq!(inbox(&eva).await, (vec![], 0));
    fill(&mut conn, 1201, "'company'").await;
    let mut tab = eva.follow("").await;
    let (_, page) = eva.read("/v1/alerts?limit=2").await;
    assert_eq!((&page["unread"], &page["items"][0]["title"]), (&json!(1201), &json!("1201")));
    let (_, next) = eva.read(&format!("/v1/alerts?limit=2&after={}", page["nextCursor"].as_str().unwrap())).await;
    assert_eq!((&next["unread"], &next["items"][0]["title"]), (&json!(1201), &json!("1199")));
    assert_eq!(eva.send(Method::GET, "/v1/alerts?after=x", Value::Null).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(acknowledge(&eva, "all").await, (StatusCode::OK, json!({ "unread": 0 })));
    for expected in [500, 500, 201] {
        let (_, told) = tab.expect("alert:acknowledged").await;
        assert_eq!((told["alertIds"].as_array().unwrap().len(), &told["unread"]), (expected, &json!(0)));
    }
    server.stop().await;
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

#[tokio::test]
async fn alerts_go_when_their_time_has_passed_and_what_was_noted_of_them_with_them() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, mut conn) = (member(&server, "eva", &[]), connect(&url).await);
    let max = Client::new(&server, &token("max", &[Role::Manager]));
    inbox(&eva).await;
    fill(&mut conn, 12_000, "'company'").await;
    let id: String =
        sqlx::query_scalar("select id::text from crewcast.alerts limit 1").fetch_one(&mut conn).await.unwrap();
    acknowledge(&eva, &id).await;
    sql(&mut conn, "update crewcast.alerts set created_at = now() - interval '2 hours'").await;
    raise(&max, "young", &["company"]).await;
    assert_eq!(inbox(&eva).await.1, 12_000);
    for sweep in AlertRetention(std::time::Duration::from_secs(3600)).sweeps() {
        sweep.all(&server.app.db).await.unwrap();
        let (titles, unread) = inbox(&eva).await;
        assert_eq!((titles, unread), (vec!["young".to_owned()], 1));
    }
    let left = "select (select count(*) from crewcast.acknowledgements) + (select count(*) from crewcast.unread)
                     + (select count(*) from crewcast.sorted) + (select count(*) from crewcast.alert_rooms)";
    assert_eq!(number(&mut conn, left).await, 2, "the young alert's rooms");
    assert_eq!(acknowledge(&eva, &id).await.0, StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test]
async fn an_inbox_costs_what_is_unread_and_never_a_walk_through_all_alerts() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let eva = member(&server, "eva", &["north"]);
    inbox(&eva).await;
    let mut conn = connect(&url).await;
    // A project in ten is eva's; most alerts go to everybody.
    sql(&mut conn, "insert into crewcast.divisions values ('north', 'N'), ('south', 'S')").await;
    sql(
        &mut conn,
        "insert into crewcast.projects (id, name, division, status, notes)
         select gen_random_uuid(), 'x', case when n % 10 = 0 then 'north' else 'south' end, 'planned', ''
         from generate_series(1, 2000) n",
    )
    .await;
    let room = "case when n % 5 > 0 then 'company' when n % 2 = 0 then 'division:north' else 'division:south' end";
    fill(&mut conn, 100_000, room).await;
    // The person has acknowledged one by one all but ten, which lie anywhere.
    sql(
        &mut conn,
        "insert into crewcast.acknowledgements select 'eva', number from crewcast.alerts where number % 10000 <> 7",
    )
    .await;
    // Others have, too: the statistics must not be one person's.
    sql(
        &mut conn,
        "insert into crewcast.acknowledgements
         select 'person' || n, number from generate_series(1, 20) n, crewcast.alerts where number % 20 = n % 20",
    )
    .await;
    for statement in [
        "insert into crewcast.unread select 'person' || n % 20, 'company', n from generate_series(1, 10000) n",
        "insert into crewcast.sorted select 'person' || n, 'company', 100000 from generate_series(1, 20) n",
        "vacuum analyze",
    ] {
        sql(&mut conn, statement).await;
    }
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    let all = Explained::of(&mut conn, COUNT, "").await;
    all.assert_on_indexes();
    Explained::of(&mut conn, PAGE, ", 9223372036854775807, 51").await.assert_on_indexes();
    let sorting = Explained::of(&mut conn, SORT, "").await;
    sorting.assert_on_indexes();
    for (statement, rest) in [(COUNT, ""), (PAGE, ", 9223372036854775807, 51")] {
        let explained = Explained::of(&mut conn, statement, rest).await;
        explained.assert_on_indexes();
        assert!(explained.blocks < 2500, "{} blocks\n{:#}", explained.blocks, explained.plan);
        assert!(explained.blocks * 20 < all.blocks, "{} of {} blocks", explained.blocks, all.blocks);
    }
    assert_eq!(inbox(&eva).await.1, 10);
    server.stop().await;
}

/// How a statement about eva's inbox was run.
struct Explained {
    plan: Value,
    blocks: i64,
}

impl Explained {
    async fn of(conn: &mut PgConnection, statement: &str, rest: &str) -> Self {
        let types = if rest.is_empty() { "" } else { ", bigint, bigint" };
        let name = format!("inbox{}", uuid::Uuid::new_v4().simple());
        let prepare = format!("prepare {name} (text, text[], text[], float8{types}) as {statement}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *conn).await.unwrap();
        let call = format!("{name}('eva', '{{user:eva,company,division:north}}', '{{north}}', 3600{rest})");
        let explain = format!("explain (analyze, buffers, format json) execute {call}");
        let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *conn).await.unwrap();
        let plan: Value = sqlx::Row::get(&rows[0], 0);
        let blocks = |name: &str| plan[0]["Plan"][name].as_i64().unwrap();
        Self { blocks: blocks("Shared Hit Blocks") + blocks("Shared Read Blocks"), plan }
    }

    fn assert_on_indexes(&self) {
        fn scanned(plan: &Value, found: &mut BTreeSet<String>) {
            if plan["Node Type"] == "Seq Scan" {
                found.insert(plan["Relation Name"].as_str().unwrap().to_owned());
            }
            plan["Plans"].as_array().into_iter().flatten().for_each(|plan| scanned(plan, found));
        }
        let mut found = BTreeSet::new();
        scanned(&self.plan[0]["Plan"], &mut found);
        for table in ["alerts", "alert_rooms", "acknowledgements", "unread"] {
            assert!(!found.contains(table), "{table} is walked\n{:#}", self.plan);
        }
    }
}

/// A tab: what is unread by its own count, from a read and the events that followed.
struct Tab {
    unread: BTreeSet<String>,
    at: String,
}

/// The same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
}

impl Tab {
    async fn open(client: &Client) -> Self {
        let (at, inbox) = client.read("/v1/alerts?limit=200").await;
        let ids = inbox["items"].as_array().unwrap().iter().map(|alert| alert["id"].as_str().unwrap().to_owned());
        let unread: BTreeSet<String> = ids.collect();
        assert_eq!((unread.len(), &inbox["nextCursor"]), (inbox["unread"].as_u64().unwrap() as usize, &Value::Null));
        Self { unread, at }
    }

    /// Follows until the end is told, cut now and then and resumed on the other node.
    async fn follow(mut self, nodes: [Client; 2], rooms: String, seed: u64) -> usize {
        let mut random = Random(seed);
        for turn in 0.. {
            let mut stream = nodes[turn % 2].stream(&rooms, &self.at).await;
            stream.expect("stream:open").await;
            for _ in 0..random.below(12) {
                if self.is_at_end(&mut stream).await {
                    return self.unread.len();
                }
            }
        }
        unreachable!("the end is told")
    }

    async fn is_at_end(&mut self, stream: &mut Stream) -> bool {
        let frame = stream.next().await.unwrap();
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        self.at = frame.id;
        match frame.event.as_str() {
            "alert:new" => assert!(self.unread.insert(data["id"].as_str().unwrap().to_owned()), "told once"),
            "alert:acknowledged" => {
                for id in data["alertIds"].as_array().unwrap() {
                    assert!(self.unread.remove(id.as_str().unwrap()), "acknowledged after it was told, and once");
                }
                assert_eq!(data["unread"].as_u64().unwrap() as usize, self.unread.len(), "what a tab has counted");
            }
            "test:end" => return true,
            other => panic!("{other}: {data}"),
        }
        false
    }
}

#[tokio::test]
async fn every_tab_counts_what_is_unread_exactly_whatever_is_raised_and_acknowledged_meanwhile() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let (ana, max) = (Client::admin(&nodes[0]), token("max", &[Role::Manager]));
    let project = ana.project("north").await;
    ana.send(Method::PUT, &format!("/v1/projects/{project}/members/eva"), json!({ "role": "viewer" })).await;
    let evas = || [member(&nodes[0], "eva", &["west"]), member(&nodes[1], "eva", &["west"])];
    let (of_project, rooms) =
        (format!("project:{project}"), format!("rooms=company,division:west,project:{project}&types=alert,test"));
    let first = Tab::open(&evas()[0]).await;
    let mut tabs = JoinSet::new();
    tabs.spawn(first.follow(evas(), rooms.clone(), 1));
    let mut writers = JoinSet::new();
    for writer in 0..6_usize {
        let (max, project) = (Client::new(&nodes[writer % 2], &max), of_project.clone());
        writers.spawn(async move {
            let audiences: [&[&str]; 6] = [
                &["company"],
                &["division:west", "company"],
                &[&project],
                &["user:eva"],
                &["division:north", "user:eva", &project],
                &["division:north"],
            ];
            for nth in 0..40 {
                raise(&max, "x", audiences[(writer + nth) % audiences.len()]).await;
            }
        });
    }
    for tab in 0..4 {
        let (eva, mut random) = (evas()[tab % 2].clone(), Random(77 + tab as u64));
        writers.spawn(async move {
            for _ in 0..25 {
                let (_, inbox) = eva.read("/v1/alerts?limit=20").await;
                let items = inbox["items"].as_array().unwrap();
                let id = if random.below(8) == 0 || items.is_empty() {
                    "all"
                } else {
                    items[random.below(items.len())]["id"].as_str().unwrap()
                };
                assert_eq!(acknowledge(&eva, id).await.0, StatusCode::OK);
            }
        });
    }
    for seed in 2..7 {
        tabs.spawn(Tab::open(&evas()[0]).await.follow(evas(), rooms.clone(), seed));
        writers.join_next().await.unwrap().unwrap();
    }
    writers.join_all().await;
    let end = json!({ "type": "test:end", "data": {} });
    ana.send(Method::POST, "/v1/rooms/company/events", end).await;
    let counted = tabs.join_all().await;
    let (_, unread) = inbox(&evas()[1]).await;
    assert_eq!(counted, vec![unread as usize; 6]);
    let by_definition = "select count(distinct number) from crewcast.alert_rooms
        where room in ('company', 'division:west', 'user:eva', (select 'project:' || id from crewcast.projects))
          and number not in (select number from crewcast.acknowledgements where sub = 'eva')";
    assert_eq!(number(&mut connect(&url).await, by_definition).await, unread);
    for node in nodes {
        node.stop().await;
    }
}
