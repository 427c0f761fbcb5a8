//! Bad input is refused with a clear 4xx, and nothing is written.

use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::{
    openapi::{actions, is_of},
    support::{Client, connect, database, number, server},
};

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

/// What a request must leave as it was.
const EVERYTHING: &str = "select (select count(*) from crewcast.events) + (select count(*) from crewcast.commits)
    + (select count(*) from crewcast.divisions) + (select count(*) from crewcast.projects)
    + (select coalesce(sum(version), 0) from crewcast.projects)::bigint + (select count(*) from crewcast.members)
    + (select coalesce(sum(version), 0) from crewcast.phases)::bigint
    + (select coalesce(sum(version), 0) from crewcast.employees)::bigint
    + (select coalesce(sum(version), 0) from crewcast.assignments)::bigint
    + (select coalesce(sum(version), 0) from crewcast.accounts)::bigint
    + (select coalesce(sum(version), 0) from crewcast.alert_rules)::bigint + (select count(*) from crewcast.alerts)";

/// One raw HTTP/1.1 request, byte for byte: the status and the body of the answer.
async fn raw(server: &crewcast::app::Server, head: &str, body: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let token = crate::support::token("ana", &[crewcast::auth::Role::Admin]);
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let length = body.len();
    let head =
        format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\nAuthorization: Bearer {token}");
    // A server that refuses early may close before it has read everything.
    let _ = socket.write_all(&[head.as_bytes(), b"\r\n\r\n", body].concat()).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// The routes that take a body, for things that exist.
async fn routes(ana: &Client) -> Vec<(&'static str, String)> {
    let id = ana.project("north").await;
    let phase = ana.make(&format!("/v1/projects/{id}/phases"), json!({ "name": "Shell" })).await;
    let comment = ana.make(&format!("/v1/projects/{id}/comments"), json!({ "body": "Look." })).await;
    let employee = ana.employee("north", 40.0).await;
    let body = json!({ "employeeId": employee, "projectId": id, "week": "2020-W53", "hours": 8 });
    let assignment = ana.make("/v1/assignments", body).await;
    ana.send(Method::PUT, "/v1/accounts/main", json!({ "name": "Main" })).await;
    let body = json!({ "accountId": "main", "below": 5, "severity": "info", "audience": ["company"] });
    let rule = ana.make("/v1/alert-rules", body).await;
    // A body is judged before it is asked where the stream is.
    let stream = uuid::Uuid::now_v7();
    vec![
        ("PUT", "/v1/accounts/main".to_owned()),
        ("PUT", "/v1/accounts/main/balance".to_owned()),
        ("POST", "/v1/alert-rules".to_owned()),
        ("PATCH", format!("/v1/alert-rules/{rule}")),
        ("POST", "/v1/alerts".to_owned()),
        ("POST", "/hooks/alerts".to_owned()),
        ("PUT", "/v1/divisions/north".to_owned()),
        ("POST", "/v1/projects".to_owned()),
        ("POST", "/v1/rooms/company/events".to_owned()),
        ("PUT", "/v1/me/preferences".to_owned()),
        ("PATCH", format!("/v1/projects/{id}")),
        ("PUT", format!("/v1/projects/{id}/members/eva")),
        ("POST", format!("/v1/projects/{id}/phases")),
        ("POST", format!("/v1/projects/{id}/comments")),
        ("PATCH", format!("/v1/projects/{id}/comments/{comment}")),
        ("PATCH", format!("/v1/projects/{id}/phases/{phase}")),
        ("POST", "/v1/employees".to_owned()),
        ("PATCH", format!("/v1/employees/{employee}")),
        ("PUT", format!("/v1/employees/{employee}/capacity")),
        ("POST", "/v1/assignments".to_owned()),
        ("PATCH", format!("/v1/assignments/{assignment}")),
        ("POST", format!("/v1/streams/{stream}/rooms")),
        ("PUT", format!("/v1/streams/{stream}/token")),
        ("PUT", format!("/v1/streams/{stream}/presence")),
        ("PUT", format!("/v1/streams/{stream}/typing")),
    ]
}

/// Routes that take no body, whatever their method.
const BODILESS: [&str; 5] =
    ["/v1/admin/drain", "/v1/alerts/{id}/ack", "/v1/alerts/ack-all", "/v1/session", "/v1/stream-tickets"];

#[tokio::test]
async fn every_route_that_takes_a_body_gets_bad_ones() {
    let server = server(&database().await, &[]).await;
    let routes = routes(&Client::admin(&server)).await;
    server.stop().await;
    let taking = actions().into_iter().filter(|(method, _)| ["POST", "PUT", "PATCH"].contains(&method.as_str()));
    let is_tried = |(method, route): &(String, String)| {
        BODILESS.contains(&route.as_str()) || routes.iter().any(|(verb, path)| verb == method && is_of(path, route))
    };
    assert_eq!(taking.filter(|action| !is_tried(action)).collect::<Vec<_>>(), []);
}

const JSON: &str = "\r\nContent-Type: application/json";

#[tokio::test]
async fn a_bad_body_is_refused_by_every_route_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &["--body-bytes-max=64KiB"]).await;
    let (routes, mut conn) = (routes(&Client::admin(&server)).await, connect(&url).await);
    let before = number(&mut conn, EVERYTHING).await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let deep_field = format!(r#"{{"name":{}1{}}}"#, r#"{"a":"#.repeat(300), "}".repeat(300));
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(70 * 1024));
    let cases: [(&str, &[u8], u16, &str); 14] = [
        (JSON, b"", 400, "malformed_json"),
        (JSON, b"{", 400, "malformed_json"),
        (JSON, b"{} {}", 400, "malformed_json"),
        (JSON, b"{\"name\":\"\xff\"}", 400, "malformed_json"),
        (JSON, b"{\"name\":\"\\ud800\"}", 400, "malformed_json"),
        (JSON, b"{\"name\":\"a\nb\"}", 400, "malformed_json"),
        (JSON, deep.as_bytes(), 400, "malformed_json"),
        (JSON, deep_field.as_bytes(), 400, "malformed_json"),
        (JSON, b"[]", 422, "invalid_body"),
        (JSON, b"null", 422, "invalid_body"),
        (JSON, br#"{"nonsense":1}"#, 422, "invalid_body"),
        (JSON, large.as_bytes(), 413, "body_too_large"),
        ("\r\nContent-Type: text/plain", b"{}", 415, "unsupported_media_type"),
        ("", b"{}", 415, "unsupported_media_type"),
    ];
    for (method, path) in routes {
        for (header, body, expected, code) in &cases {
            let (status, answer) = raw(&server, &format!("{method} {path} HTTP/1.1{header}"), body).await;
            let problem: Value = serde_json::from_str(&answer).unwrap_or_default();
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert_eq!(
                (status, problem["code"].as_str()),
                (*expected, Some(*code)),
                "{method} {path} {shown} {answer}"
            );
            assert!(problem["requestId"].is_string() && problem["type"].is_string(), "{answer}");
        }
    }
    assert_eq!(number(&mut conn, EVERYTHING).await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_bad_address_is_refused_by_every_route() {
    let url = database().await;
    let server = server(&url, &["--rooms-max=3"]).await;
    let id = Client::admin(&server).project("north").await;
    let long = "x".repeat(300);
    let cases = [
        ("GET", "/v1/projects/1".to_owned(), 400, "invalid_path"),
        ("GET", "/v1/projects/%00".to_owned(), 400, "invalid_path"),
        ("GET", "/v1/projects/%ff".to_owned(), 400, "invalid_path"),
        ("DELETE", format!("/v1/projects/{long}"), 400, "invalid_path"),
        ("DELETE", format!("/v1/projects/{id}/members/a%20b"), 400, "invalid_path"),
        ("DELETE", format!("/v1/projects/{id}/members/{long}"), 400, "invalid_path"),
        ("GET", "/v1/events/x".to_owned(), 400, "invalid_path"),
        ("GET", "/v1/events/99999999999999999999".to_owned(), 400, "invalid_path"),
        ("GET", "/v1/events/-1".to_owned(), 404, "not_found"),
        ("GET", "/v1/rooms/nonsense/events".to_owned(), 400, "invalid_room"),
        ("GET", "/v1/rooms/division:%00/events".to_owned(), 400, "invalid_path"),
        ("GET", "/v1/rooms/company/events?after=nonsense".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/rooms/company/events?after=aaaa-B".to_owned(), 409, "cursor_not_resumable"),
        ("GET", "/v1/rooms/company/events?limit=0".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/projects?limit=1000".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/projects?limit=x".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/projects?after=x".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/divisions?after=%00".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/divisions?after=%ff".to_owned(), 400, "invalid_query"),
        ("GET", "/events?rooms=nonsense".to_owned(), 400, "invalid_room"),
        ("GET", "/events?rooms=project:X".to_owned(), 400, "invalid_room"),
        ("GET", "/events?rooms=topic:a,topic:b,topic:c,topic:d".to_owned(), 400, "too_many_rooms"),
        ("GET", "/events?types=project:nonsense".to_owned(), 400, "invalid_query"),
        ("GET", "/events?types=%00".to_owned(), 400, "invalid_query"),
        ("GET", "/events?x=eyJhbGci.eyJzdWIi.c2lnbmF0dXJl".to_owned(), 400, "token_in_query"),
        ("GET", "/nowhere".to_owned(), 404, "not_found"),
        ("TRACE", "/v1/projects".to_owned(), 405, "method_not_allowed"),
        ("DELETE", "/events".to_owned(), 405, "method_not_allowed"),
    ];
    for (method, path, expected, code) in cases {
        let (status, answer) = raw(&server, &format!("{method} {path} HTTP/1.1"), b"").await;
        let problem: Value = serde_json::from_str(&answer).unwrap_or_default();
        assert_eq!((status, problem["code"].as_str()), (expected, Some(code)), "{method} {path} {answer}");
    }
    let (status, answer) =
        raw(&server, &format!("GET /events HTTP/1.1\r\nLast-Event-ID: {}", "x".repeat(500_000)), b"").await;
    assert!((400..500).contains(&status), "{status} {answer}");
    server.stop().await;
}

#[tokio::test]
async fn whatever_bytes_are_sent_the_server_does_not_fail() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let routes = routes(&Client::admin(&server)).await;
    // Characters that JSON is made of, so that some of it parses; the same ones at every run.
    let alphabet = br#"{}[]":,\u00ed1e-. nametrue"#;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    for _ in 0..50 {
        for (method, path) in &routes {
            let length = random() % 40;
            let body: Vec<u8> = (0..length).map(|_| alphabet[random() % alphabet.len()]).collect();
            let (status, answer) = raw(&server, &format!("{method} {path} HTTP/1.1{JSON}"), &body).await;
            assert!((200..500).contains(&status), "{} {answer}", String::from_utf8_lossy(&body));
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn line_breaks_inside_values_arrive_as_they_were_sent() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let id = ana.project("north").await;
    let (cursor, _) = ana.read(&format!("/v1/projects/{id}")).await;
    let mut stream = ana.stream(&format!("rooms=project:{id}"), &cursor).await;
    stream.expect("stream:open").await;
    let notes = "a\r\nb\rc\nd\te\u{2028}f\u{2029}gh data: x\n\nevent: y \u{1f3d7} \"'\\";
    let (status, _) =
        ana.send(Method::PATCH, &format!("/v1/projects/{id}"), serde_json::json!({ "notes": notes })).await;
    assert_eq!(status, 200);
    assert_eq!(stream.expect("project:updated").await.1["newValue"], notes);
    server.stop().await;
}

#[tokio::test]
async fn publishing_from_sql_refuses_what_a_reader_could_not_take() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let before = number(&mut conn, EVERYTHING).await;
    let many: Vec<String> = (0..21).map(|n| format!("topic:{n}")).collect();
    let many = format!("'{{{}}}', 'a:b', '{{}}'", many.join(","));
    let large = r#"'{company}', 'a:b', json_build_object('x', repeat('x', 1048576))"#;
    let long = format!("'{{company}}', 'a:{}', '{{}}'", "b".repeat(63));
    let cases = [
        "null, 'a:b', '{}'",
        "'{}', 'a:b', '{}'",
        "'{null}', 'a:b', '{}'",
        "'{{company},{company}}', 'a:b', '{}'",
        "'{nonsense}', 'a:b', '{}'",
        "'{company,project:1}', 'a:b', '{}'",
        "array['company' || chr(10)], 'a:b', '{}'",
        "array['topic:a,b'], 'a:b', '{}'",
        "'{company}', null, '{}'",
        "'{company}', 'ab', '{}'",
        "'{company}', 'A:b', '{}'",
        "'{company}', 'a:b' || chr(10), '{}'",
        "'{company}', 'project:updated', '{}'",
        "'{company}', 'stream:open', '{}'",
        "'{company}', 'a:b', null",
        "'{company}', 'a:b', '[]'",
        "'{company}', 'a:b', '1'",
        r#"'{company}', 'a:b', '{"meta":1}'"#,
        r#"'{company}', 'a:b', '{"\u006deta":1}'"#,
        r#"'{company}', 'a:b', '{"x":"\u0000"}'"#,
        r#"'{company}', 'a:b', '{"x":[{"y":"\ud800"}]}'"#,
        &many,
        large,
        &long,
    ];
    for case in cases {
        let statement = sqlx::AssertSqlSafe(format!("select crewcast.publish({case})"));
        let error = sqlx::query(statement).execute(&mut conn).await.expect_err(case);
        let code = error.as_database_error().and_then(|db| db.code()).unwrap_or_default().into_owned();
        assert!(code.starts_with("22"), "{case}: {error}");
    }
    assert_eq!(number(&mut conn, EVERYTHING).await, before);
}
