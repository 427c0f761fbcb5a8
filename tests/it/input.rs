//! Bad input is refused with a clear 4xx, and nothing is written.

use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::Value;

use crate::support::{Client, connect, database, number, server};

#[tokio::test]
async fn a_project_with_a_bad_field_is_refused_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let id = ana.project("north").await;
    let count = "select (select count(*) from crewcast.events) + (select count(*) from crewcast.projects)";
    let before = number(&mut conn, count).await;
    let mut wrong = Vec::new();
    let fields = [
        r#""startsOn":"-9999-01-01""#,
        r#""startsOn":"-4713-01-01""#,
        r#""startsOn":"+10000-01-01""#,
        r#""startsOn":"infinity""#,
        r#""startsOn":"2026-02-30""#,
        r#""startsOn":[2026,300]"#,
        r#""startsOn":20261123"#,
        r#""notes":"\u0000""#,
        r#""notes":"\ud800""#,
        r#""status":["done"]"#,
        r#""other":1"#,
    ];
    for field in fields {
        let make = format!(r#"{{"name":"x","division":"north",{field}}}"#);
        let change = format!("{{{field}}}");
        let change_path = format!("/v1/projects/{id}");
        for (method, path, body) in [(Method::POST, "/v1/projects", make), (Method::PATCH, &change_path, change)] {
            let request = ana.request(method.clone(), path).header(CONTENT_TYPE, "application/json");
            let response = request.body(body).send().await.unwrap();
            let (status, kind) = (response.status(), response.headers().get(CONTENT_TYPE).cloned());
            let problem: Value = response.json().await.unwrap();
            let is_problem = kind.is_some_and(|kind| kind == "application/problem+json");
            if !(status.is_client_error() && is_problem && problem["requestId"].is_string()) {
                wrong.push(format!("{method} {field}: {status} {problem}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(number(&mut conn, count).await, before);
    server.stop().await;
}
