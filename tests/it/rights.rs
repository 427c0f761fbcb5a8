//! Who may do what: what one may not read is not there, what one may read and not do is forbidden.

use crewcast::auth::{Claims, Role, Roles};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, database, mint, server, token};

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

#[tokio::test]
async fn every_route_answers_every_role_as_the_table_says() {
    let server = server(&database().await, &[]).await;
    let (ana, callers) = (Client::admin(&server), callers(&server));
    let (name, role) = (json!({ "name": "Other" }), json!({ "role": "viewer" }));
    let make = json!({ "name": "New", "division": "north" });
    // `{p}` is a project of north with its viewer and editor, `{d}` one that was deleted.
    let rows: Vec<(&str, &str, Value, [u16; 8])> = vec![
        ("GET", "/v1/divisions", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("PUT", "/v1/divisions/north", name.clone(), [403, 403, 403, 403, 200, 200, 200, 401]),
        ("GET", "/v1/projects", Value::Null, [200, 200, 200, 200, 200, 200, 200, 401]),
        ("POST", "/v1/projects", make, [403, 403, 403, 403, 201, 201, 201, 401]),
        ("GET", "/v1/projects/{p}", Value::Null, [200, 200, 200, 404, 200, 200, 200, 401]),
        ("PATCH", "/v1/projects/{p}", name.clone(), [403, 200, 403, 404, 200, 200, 200, 401]),
        ("GET", "/v1/projects/{d}", Value::Null, [404, 404, 404, 404, 404, 404, 404, 401]),
        ("PATCH", "/v1/projects/{d}", name, [404, 404, 404, 404, 404, 404, 404, 401]),
        ("PUT", "/v1/projects/{p}/members/vera", role, [403, 403, 403, 404, 200, 200, 200, 401]),
        ("DELETE", "/v1/projects/{p}/members/vera", Value::Null, [403, 403, 403, 404, 204, 204, 204, 401]),
        ("DELETE", "/v1/projects/{p}", Value::Null, [403, 403, 403, 404, 204, 204, 204, 401]),
        ("GET", "/events?rooms=project:{p}", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=project:{d}", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=division:north", Value::Null, [403, 403, 200, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=topic:x", Value::Null, [403, 403, 403, 403, 200, 200, 200, 401]),
        ("GET", "/events?rooms=user:eve", Value::Null, [403, 403, 403, 403, 403, 200, 200, 401]),
        ("GET", "/v1/rooms/project:{p}/events", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/v1/rooms/project:{d}/events", Value::Null, [200, 200, 200, 403, 200, 200, 200, 401]),
        ("GET", "/v1/rooms/user:eve/events", Value::Null, [403, 403, 403, 403, 403, 200, 200, 401]),
    ];
    for (method, path, body, expected) in rows {
        for (column, (caller, expected)) in callers.iter().zip(expected).enumerate() {
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
            let path = path.replace("{p}", &project).replace("{d}", &deleted);
            let mut request = caller.request(method.parse().unwrap(), &path);
            if !body.is_null() {
                request = request.json(&body);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), expected, "{method} {path}, column {column}");
        }
    }
    server.stop().await;
}
