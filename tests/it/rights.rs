//! Who may do what: what one may not read is not there, what one may read and not do is forbidden.

use std::collections::BTreeSet;

use crewcast::auth::{Claims, Role, Roles};
use reqwest::{Method, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::{
    openapi::{Document, actions, is_of},
    support::{Client, database, mint, server, token},
};

/// The columns: viewer, editor, member of the division, outsider, manager, admin, service, expired.
fn callers(server: &crewcast::app::Server) -> Vec<Client> {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let of_division = Claims {
        divisions: vec!["north".parse().unwrap()],
        roles: Roles::default(),
        ..Claims::new("dora".parse().unwrap(), now + 3600)
    };
    let expired = Claims { roles: Roles::of([Role::Admin]), ..Claims::new("ana".parse().unwrap(), now - 60) };
    let tokens = [
        token("vera", &[]),
        token("ed", &[]),
        mint(&of_division),
        token("otto", &[]),
        token("max", &[Role::Manager]),
        token("ana", &[Role::Admin]),
        token("erp", &[Role::Service]),
        mint(&expired),
    ];
    tokens.iter().map(|token| Client::new(server, token)).collect()
}

/// What the paths of the table stand for. `{p}` is a project of north with its viewer and editor and `{d}` one that was
/// deleted; `{f}` and `{a}` are a phase of `{p}` and an assignment to it, `{s}` is the event that told of the phase.
/// `{e}` is an employee with that assignment, long past, and `{g}` is one without any, for whom the table makes one.
/// `{n}` is no stream. `{c}` is ana's comment on `{p}`, `{r}` is a rule about the account `main`, and `{l}` an alert to those who may join the room of `{p}`.
struct Things(Vec<(&'static str, String)>);

impl Things {
    async fn make(ana: &Client) -> Self {
        let (project, deleted) = (ana.project("north").await, ana.project("north").await);
        for id in [&project, &deleted] {
            for (sub, role) in [("vera", "viewer"), ("ed", "editor")] {
                let path = format!("/v1/projects/{id}/members/{sub}");
                let (status, _) = ana.send(Method::PUT, &path, json!({ "role": role })).await;
                assert_eq!(status, StatusCode::OK);
            }
        }
        let (status, _) = ana.send(Method::DELETE, &format!("/v1/projects/{deleted}"), Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        let phase = ana.make(&format!("/v1/projects/{project}/phases"), json!({ "name": "Shell" })).await;
        let comment = ana.make(&format!("/v1/projects/{project}/comments"), json!({ "body": "Look." })).await;
        let (_, events) = ana.read(&format!("/v1/rooms/project:{project}/events?limit=200")).await;
        let seq = events["items"].as_array().unwrap().last().unwrap()["data"]["meta"]["seq"].to_string();
        let (employee, free) = (ana.employee("north", 40.0).await, ana.employee("north", 40.0).await);
        let body = json!({ "employeeId": employee, "projectId": project, "week": "2020-W53", "hours": 8 });
        let assignment = ana.make("/v1/assignments", body).await;
        ana.send(Method::PUT, "/v1/accounts/main", json!({ "name": "Main" })).await;
        let rule = ana.make("/v1/alert-rules", rule()).await;
        let alert = ana.make("/v1/alerts", alert(&format!("project:{project}"))).await;
        let nobodys = uuid::Uuid::now_v7().to_string();
        let names = ["{p}", "{d}", "{f}", "{a}", "{s}", "{e}", "{g}", "{r}", "{l}", "{c}", "{n}"];
        let things = [project, deleted, phase, assignment, seq, employee, free, rule, alert, comment, nobodys];
        Self(names.into_iter().zip(things).collect())
    }

    fn put_into(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id))
    }
}

fn rule() -> Value {
    json!({ "accountId": "main", "below": 5, "severity": "info", "audience": ["company"] })
}

fn alert(room: &str) -> Value {
    json!({ "kind": "note", "severity": "info", "title": "x", "body": "", "audience": [room] })
}

type Row = (&'static str, &'static str, Value, [u16; 8]);

fn table() -> Vec<Row> {
    let (name, role) = (json!({ "name": "Other" }), json!({ "role": "viewer" }));
    let make = json!({ "name": "New", "division": "north" });
    let employee = json!({ "name": "New", "division": "north", "weeklyHours": 40 });
    let assignment = json!({ "employeeId": "{g}", "projectId": "{p}", "week": "2020-W53", "hours": 8 });
    let typing = json!({ "room": "project:{p}", "field": "name", "typing": true });
    let hook = json!({ "type": "alert", "timestamp": "2026-11-24T09:00:00Z", "data": alert("company") });
    // Of open streams the table knows none: what their owners may do with them is in live/ and presence/.
    let (nobodys, nobodys_but_a_persons) =
        ([404, 404, 404, 404, 404, 404, 404, 401], [404, 404, 404, 404, 404, 404, 403, 401]);
    let of_ana = token("ana", &[Role::Admin]);
    let kept_by_managers = [404, 404, 404, 404, 200, 200, 200, 401];
    vec![
        ("GET", "/v1/accounts", Value::Null, kept_by_managers),
        ("GET", "/v1/accounts/main", Value::Null, kept_by_managers),
        ("PUT", "/v1/accounts/main", name.clone(), kept_by_managers),
        ("PUT", "/v1/accounts/main/balance", json!({ "balance": 7 }), kept_by_managers),
        ("GET", "/v1/alert-rules", Value::Null, kept_by_managers),
        ("POST", "/v1/alert-rules", rule(), [404, 404, 404, 404, 201, 201, 201, 401]),
        ("GET", "/v1/alert-rules/{r}", Value::Null, kept_by_managers),
        ("PATCH", "/v1/alert-rules/{r}", json!({ "below": 7 }), kept_by_managers),
        ("DELETE", "/v1/alert-rules/{r}", Value::Null, [404, 404, 404, 404, 204, 204, 204, 401]),
        ("GET", "/v1/alerts", Value::Null, [200, 200, 200, 200, 200, 200, 403, 401]),
        ("POST", "/v1/alerts", alert("company"), [403, 403, 403, 403, 201, 201, 201, 401]),
        ("POST", "/v1/alerts/{l}/ack", Value::Null, [200, 200, 200, 404, 200, 200, 403, 401]),
        ("POST", "/v1/alerts/ack-all", Value::Null, [200, 200, 200, 200, 200, 200, 403, 401]),
        ("POST", "/hooks/alerts", hook, [403, 403, 403, 403, 403, 201, 201, 401]),
        ("POST", "/v1/streams/{n}/rooms", json!({ "join": ["company"] }), nobodys),
        ("PUT", "/v1/streams/{n}/token", json!({ "token": of_ana }), [403, 403, 403, 403, 403, 404, 403, 401]),
        ("PUT", "/v1/streams/{n}/presence", json!({ "status": "idle" }), nobodys_but_a_persons),
        ("PUT", "/v1/streams/{n}/typing", typing, nobodys_but_a_persons),
        ("DELETE", "/v1/streams/{n}", Value::Null, nobodys),
        ("GET", "/v1/presence?room=company", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("GET", "/v1/presence?room=project:{p}", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/v1/presence?room=division:south", Value::Null, [403, 403, 403, 403, 200, 200, 200, 401]),
        ("GET", "/v1/admin/streams", Value::Null, [403, 403, 403, 403, 403, 200, 403, 401]),
        ("DELETE", "/v1/admin/streams/{n}", Value::Null, [403, 403, 403, 403, 403, 404, 403, 401]),
        ("POST", "/v1/admin/drain", Value::Null, [403, 403, 403, 403, 403, 202, 403, 401]),
        ("GET", "/v1/divisions", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("PUT", "/v1/divisions/north", name.clone(), [403, 403, 403, 403, 200, 200, 200, 401]),
        ("GET", "/v1/projects", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("POST", "/v1/projects", make, [403, 403, 403, 403, 201, 201, 201, 401]),
        ("GET", "/v1/projects/{p}", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("PATCH", "/v1/projects/{p}", name.clone(), [403, 200, 403, 404, 200, 200, 200, 401]),
        ("GET", "/v1/projects/{d}", Value::Null, [404, 404, 404, 404, 404, 404, 404, 401]),
        ("PATCH", "/v1/projects/{d}", name.clone(), [404, 404, 404, 404, 404, 404, 404, 401]),
        ("PUT", "/v1/projects/{p}/members/vera", role, [403, 403, 403, 404, 200, 200, 200, 401]),
        ("DELETE", "/v1/projects/{p}/members/vera", Value::Null, [403, 403, 403, 404, 204, 204, 204, 401]),
        ("DELETE", "/v1/projects/{p}", Value::Null, [403, 403, 403, 404, 204, 204, 204, 401]),
        ("GET", "/v1/projects/{p}/phases", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("POST", "/v1/projects/{p}/phases", name.clone(), [403, 201, 403, 404, 201, 201, 201, 401]),
        ("GET", "/v1/projects/{p}/phases/{f}", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("PATCH", "/v1/projects/{p}/phases/{f}", name.clone(), [403, 200, 403, 404, 200, 200, 200, 401]),
        ("DELETE", "/v1/projects/{p}/phases/{f}", Value::Null, [403, 204, 403, 404, 204, 204, 204, 401]),
        ("GET", "/v1/projects/{p}/comments", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("POST", "/v1/projects/{p}/comments", json!({ "body": "x" }), [201, 201, 201, 404, 201, 201, 403, 401]),
        ("GET", "/v1/projects/{p}/comments/{c}", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("PATCH", "/v1/projects/{p}/comments/{c}", json!({ "body": "y" }), [403, 403, 403, 404, 403, 200, 403, 401]),
        ("DELETE", "/v1/projects/{p}/comments/{c}", Value::Null, [403, 403, 403, 404, 204, 204, 403, 401]),
        ("POST", "/v1/projects/{d}/comments", json!({ "body": "x" }), [404, 404, 404, 404, 404, 404, 403, 401]),
        ("GET", "/v1/projects/{d}/phases", Value::Null, [404, 404, 404, 404, 404, 404, 404, 401]),
        ("POST", "/v1/projects/{d}/phases", name.clone(), [404, 404, 404, 404, 404, 404, 404, 401]),
        ("GET", "/v1/employees", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("POST", "/v1/employees", employee, [403, 403, 403, 403, 201, 201, 201, 401]),
        ("GET", "/v1/employees/{e}", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("PATCH", "/v1/employees/{e}", name, [403, 403, 403, 403, 200, 200, 200, 401]),
        ("PUT", "/v1/employees/{e}/capacity", json!({ "weeklyHours": 20 }), [403, 403, 403, 403, 200, 200, 200, 401]),
        ("DELETE", "/v1/employees/{e}", Value::Null, [403, 403, 403, 403, 204, 204, 204, 401]),
        ("GET", "/v1/assignments", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("POST", "/v1/assignments", assignment, [403, 403, 403, 403, 201, 201, 201, 401]),
        ("GET", "/v1/assignments/{a}", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("PATCH", "/v1/assignments/{a}", json!({ "hours": 4 }), [403, 403, 403, 403, 200, 200, 200, 401]),
        ("DELETE", "/v1/assignments/{a}", Value::Null, [403, 403, 403, 403, 204, 204, 204, 401]),
        ("GET", "/v1/me", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("GET", "/v1/me/preferences", Value::Null, [200, 200, 200, 200, 200, 200, 403, 401]),
        ("PUT", "/v1/me/preferences", json!({}), [200, 200, 200, 200, 200, 200, 403, 401]),
        ("GET", "/v1/capacity", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("POST", "/v1/stream-tickets", Value::Null, [201, 201, 201, 201, 201, 201, 201, 401]),
        ("POST", "/v1/session", Value::Null, [201, 201, 201, 201, 201, 201, 201, 401]),
        ("DELETE", "/v1/session", Value::Null, [204; 8]),
        ("GET", "/v1/events/{s}", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("GET", "/events?rooms=project:{p}", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=project:{d}", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=division:north", Value::Null, [403, 403, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=topic:x", Value::Null, [403, 403, 403, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=user:eve", Value::Null, [403, 403, 403, 403, 403, 200, 200, 401]),
        ("GET", "/v1/rooms/project:{p}/events", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        (
            "POST",
            "/v1/rooms/topic:x/events",
            json!({ "type": "a:b", "data": {} }),
            [403, 403, 403, 403, 403, 201, 201, 401],
        ),
        ("GET", "/v1/rooms/project:{d}/events", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/v1/rooms/user:eve/events", Value::Null, [403, 403, 403, 403, 403, 200, 200, 401]),
    ]
}

#[tokio::test]
async fn every_route_answers_every_role_as_the_table_says() {
    let server = server(&database().await, &[]).await;
    let (ana, callers) = (Client::admin(&server), callers(&server));
    let (shared, document) = (Things::make(&ana).await, Document::made());
    for (method, path, body, expected) in table() {
        for (column, (caller, expected)) in callers.iter().zip(expected).enumerate() {
            // What may be changed is each cell's own.
            let own = if method == "GET" { None } else { Some(Things::make(&ana).await) };
            let things = own.as_ref().unwrap_or(&shared);
            let path = things.put_into(path);
            let mut request = caller.request(method.parse().unwrap(), &path);
            if !body.is_null() {
                request = request.header("content-type", "application/json").body(things.put_into(&body.to_string()));
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), expected, "{method} {path}, column {column}");
            let (status, media_type) = (response.status(), response.headers().get(CONTENT_TYPE).cloned());
            let media_type = media_type.as_ref().map_or("", |media_type| media_type.to_str().unwrap());
            // A stream has no end.
            let is_stream = media_type == "text/event-stream";
            let body = if is_stream { Default::default() } else { response.bytes().await.unwrap() };
            document.check(method, &path, (status, media_type, &body));
        }
    }
    server.stop().await;
}

/// Routes that take no token, so that nobody has a right to them.
const OPEN: [&str; 12] = [
    "/docs",
    "/docs/api",
    "/docs/hooks",
    "/docs/optimistic-updates",
    "/docs/problems",
    "/docs/problems/{code}",
    "/docs/stream",
    "/healthz",
    "/metrics",
    "/openapi.yaml",
    "/readyz",
    "/stats",
];

#[test]
fn the_document_says_of_no_other_route_that_it_takes_no_token() {
    assert_eq!(Document::made().open(), BTreeSet::from(OPEN.map(str::to_owned)));
}

#[test]
fn the_table_has_every_route() {
    let table = table();
    let is_judged = |(method, route): &(String, String)| {
        OPEN.contains(&route.as_str()) || table.iter().any(|(verb, path, ..)| verb == method && is_of(path, route))
    };
    let missing: Vec<_> = actions().into_iter().filter(|action| !is_judged(action)).collect();
    assert_eq!(missing, []);
}
