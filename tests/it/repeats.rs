//! A write that is asked for again by the same name is done once.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, connect, database, number, server, sql, token};

/// What a client reads of an answer.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    headers: Vec<Option<String>>,
    body: String,
}

/// The answer, and whether it was given before.
async fn ask(request: RequestBuilder) -> (Answer, bool) {
    let response = request.send().await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let replayed = header("idempotent-replayed").is_some_and(|value| value == "true");
    let headers = ["etag", "location", "content-type"].map(header).into();
    (Answer { status: response.status(), headers, body: response.text().await.unwrap() }, replayed)
}

fn named(client: &Client, method: Method, path: &str, key: &str) -> RequestBuilder {
    client.request(method, path).header("idempotency-key", key)
}

fn code(answer: &Answer) -> Value {
    serde_json::from_str::<Value>(&answer.body).unwrap_or_default()["code"].clone()
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_byte_for_byte_on_any_node_and_changes_nothing() {
    let url = database().await;
    let (here, there) = (server(&url, &[]).await, server(&url, &[]).await);
    let (ana, elsewhere) = (Client::admin(&here), Client::admin(&there));
    let id = ana.project("north").await;
    let phase = ana.make(&format!("/v1/projects/{id}/phases"), json!({ "name": "Shell" })).await;
    let employee = ana.employee("north", 40.0).await;
    ana.send(Method::PUT, "/v1/accounts/main", json!({ "name": "Main" })).await;
    let rule = json!({ "accountId": "main", "below": 5, "severity": "info", "audience": ["company"] });
    let alert = json!({ "kind": "x", "severity": "info", "title": "x", "body": "", "audience": ["company"] });
    let hook = json!({ "type": "alert", "timestamp": "2026-11-24T09:00:00Z", "data": alert });
    // Whoever reads their inbox for the first time opens it.
    ana.read("/v1/alerts").await;
    let acknowledged = ana.make("/v1/alerts", alert.clone()).await;
    let mut conn = connect(&url).await;
    let count = "select (select count(*) from crewcast.events) + (select count(*) from crewcast.projects)
                      + (select count(*) from crewcast.employees) + (select count(*) from crewcast.alert_rules)
                      + (select sum(version) from crewcast.accounts)::bigint";
    let assignment = json!({ "employeeId": employee, "projectId": id, "week": "2026-W48", "hours": 8 });
    for (nth, (method, path, body)) in [
        (Method::POST, "/v1/projects".to_owned(), json!({ "name": "New", "division": "north" })),
        (Method::PATCH, format!("/v1/projects/{id}"), json!({ "name": "South tower" })),
        // A change of nothing is an answer, too.
        (Method::PATCH, format!("/v1/projects/{id}"), json!({ "name": "South tower" })),
        (Method::PUT, "/v1/divisions/south".to_owned(), json!({ "name": "South" })),
        (Method::PUT, format!("/v1/projects/{id}/members/eva"), json!({ "role": "viewer" })),
        (Method::POST, "/v1/assignments".to_owned(), assignment),
        (Method::PUT, format!("/v1/employees/{employee}/capacity"), json!({ "weeklyHours": 20 })),
        (Method::PUT, "/v1/accounts/other".to_owned(), json!({ "name": "Other" })),
        (Method::PUT, "/v1/accounts/main/balance".to_owned(), json!({ "balance": 0.5 })),
        (Method::POST, "/v1/alert-rules".to_owned(), rule),
        (Method::POST, "/v1/alerts".to_owned(), alert),
        (Method::POST, format!("/v1/alerts/{acknowledged}/ack"), Value::Null),
        (Method::POST, "/hooks/alerts".to_owned(), hook),
        (Method::POST, "/v1/alerts/ack-all".to_owned(), Value::Null),
        (Method::DELETE, format!("/v1/projects/{id}/members/eva"), Value::Null),
        (Method::DELETE, format!("/v1/projects/{id}/phases/{phase}"), Value::Null),
        (Method::DELETE, format!("/v1/projects/{id}"), Value::Null),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key-{nth}");
        let request = |client: &Client| {
            let request = named(client, method.clone(), &path, &key);
            if body.is_null() { request } else { request.json(&body) }
        };
        let (first, replayed) = ask(request(&ana)).await;
        assert!(first.status.is_success() && !replayed, "{method} {path} {first:?}");
        let after = number(&mut conn, count).await;
        for client in [&ana, &elsewhere] {
            let (again, replayed) = ask(request(client)).await;
            assert!(replayed, "{method} {path}");
            assert_eq!(again, first);
        }
        assert_eq!(number(&mut conn, count).await, after, "{method} {path}");
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_key_stands_for_one_request_of_one_person() {
    let server = server(&database().await, &[]).await;
    let (ana, max) = (Client::admin(&server), Client::new(&server, &token("max", &[crewcast::auth::Role::Admin])));
    ana.project("north").await;
    let body = json!({ "name": "New", "division": "north" });
    let (first, _) = ask(named(&ana, Method::POST, "/v1/projects", "k").json(&body)).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let id = serde_json::from_str::<Value>(&first.body).unwrap()["id"].as_str().unwrap().to_owned();
    let other = json!({ "name": "Other", "division": "north" });
    for request in [
        named(&ana, Method::POST, "/v1/projects", "k").json(&other),
        named(&ana, Method::POST, "/v1/projects?x", "k").json(&body),
        named(&ana, Method::PATCH, &format!("/v1/projects/{id}"), "k").json(&json!({ "name": "x" })),
        named(&ana, Method::DELETE, &format!("/v1/projects/{id}"), "k"),
    ] {
        let (refused, replayed) = ask(request).await;
        assert_eq!(
            (refused.status, code(&refused), replayed),
            (422.try_into().unwrap(), json!("idempotency_key_reused"), false)
        );
    }
    let (of_max, replayed) = ask(named(&max, Method::POST, "/v1/projects", "k").json(&body)).await;
    assert!(of_max.status == StatusCode::CREATED && !replayed && of_max.body != first.body, "a key is a person's own");
    for bad in ["", "a b", &"k".repeat(129)] {
        let (refused, _) = ask(named(&ana, Method::POST, "/v1/projects", bad).json(&body)).await;
        assert_eq!((refused.status, code(&refused)), (StatusCode::BAD_REQUEST, json!("invalid_header")), "{bad}");
    }
    server.stop().await;
}

#[tokio::test]
async fn twenty_at_once_make_one_row() {
    let url = database().await;
    let (here, there) = (server(&url, &[]).await, server(&url, &[]).await);
    let clients = [Client::admin(&here), Client::admin(&there)];
    clients[0].project("north").await;
    let mut conn = connect(&url).await;
    let (projects, events) = ("select count(*) from crewcast.projects", "select count(*) from crewcast.events");
    let before = (number(&mut conn, projects).await, number(&mut conn, events).await);
    let body = json!({ "name": "New", "division": "north" });
    let asked = (0..20).map(|nth: usize| {
        let request = named(&clients[nth % 2], Method::POST, "/v1/projects", "k").json(&body);
        tokio::spawn(ask(request))
    });
    let mut made = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        match asked.await.unwrap() {
            (answer, _) if answer.status == StatusCode::CREATED => made.push(answer),
            (refused, _) => {
                assert_eq!((refused.status.as_u16(), code(&refused)), (409, json!("idempotency_in_progress")))
            }
        }
    }
    assert!(!made.is_empty() && made.iter().all(|answer| *answer == made[0]));
    assert_eq!((number(&mut conn, projects).await, number(&mut conn, events).await), (before.0 + 1, before.1 + 1));
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn while_the_first_runs_a_repeat_is_told_to_wait_and_then_gets_its_answer() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ana = Client::admin(&server);
    let id = ana.project("north").await;
    let request = || named(&ana, Method::PATCH, &format!("/v1/projects/{id}"), "k").json(&json!({ "name": "x" }));
    let (mut holder, mut watcher) = (connect(&url).await, connect(&url).await);
    sql(&mut holder, "begin").await;
    sql(&mut holder, "select from crewcast.projects for update").await;
    let first = tokio::spawn(ask(request()));
    let waiting =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    while number(&mut watcher, waiting).await == 0 {
        tokio::task::yield_now().await;
    }
    let (refused, _) = ask(request()).await;
    assert_eq!((refused.status.as_u16(), code(&refused)), (409, json!("idempotency_in_progress")));
    sql(&mut holder, "rollback").await;
    let (first, _) = first.await.unwrap();
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(ask(request()).await, (first, true));
    server.stop().await;
}

#[tokio::test]
async fn what_was_refused_is_tried_anew() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let request = || named(&ana, Method::POST, "/v1/projects", "k").json(&json!({ "name": "x", "division": "north" }));
    let (refused, _) = ask(request()).await;
    assert_eq!(refused.status.as_u16(), 422, "there is no such division yet");
    ana.project("north").await;
    let (made, replayed) = ask(request()).await;
    assert_eq!((made.status, replayed), (StatusCode::CREATED, false));
    server.stop().await;
}

#[tokio::test]
async fn the_events_of_a_change_name_its_request() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let id = ana.project("north").await;
    let mut stream = ana.follow(&format!("rooms=project:{id}")).await;
    let change = json!({ "name": "x", "status": "active" });
    ask(named(&ana, Method::PATCH, &format!("/v1/projects/{id}"), "mine").json(&change)).await;
    for _ in 0..2 {
        assert_eq!(stream.expect("project:updated").await.1["meta"]["mutationId"], "mine");
    }
    ana.send(Method::PATCH, &format!("/v1/projects/{id}"), json!({ "name": "y" })).await;
    assert_eq!(stream.expect("project:updated").await.1["meta"].get("mutationId"), None);
    server.stop().await;
}

#[tokio::test]
async fn an_answer_is_kept_for_as_long_as_the_setting_says() {
    let url = database().await;
    let server = server(&url, &["--idempotency-ttl=1h"]).await;
    let ana = Client::admin(&server);
    ana.project("north").await;
    let request = || named(&ana, Method::POST, "/v1/projects", "k").json(&json!({ "name": "x", "division": "north" }));
    let (first, _) = ask(request()).await;
    let mut conn = connect(&url).await;
    sql(&mut conn, "update crewcast.answers set made_at = made_at - interval '59 minutes'").await;
    assert_eq!(ask(request()).await, (first, true));
    sql(&mut conn, "update crewcast.answers set made_at = made_at - interval '2 minutes'").await;
    let (second, replayed) = ask(request()).await;
    assert_eq!((second.status, replayed), (StatusCode::CREATED, false));
    assert_eq!(ask(request()).await, (second, true), "the second answer is in the first one's place");
    let sweep = crewcast::web::IdempotencyTtl(std::time::Duration::from_secs(3600)).sweep();
    sql(
        &mut conn,
        "insert into crewcast.answers select 'ana', n, '', 200, null, null, '', now() - interval '2 hours'
                    from generate_series(1, 12000) n",
    )
    .await;
    sweep.all(&server.app.db).await.unwrap();
    assert_eq!(number(&mut conn, "select count(*) from crewcast.answers").await, 1);
    server.stop().await;
}
