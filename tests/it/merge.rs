//! Two people change one thing: different fields go together, the same field is a conflict that says so.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, database, server};

async fn patch(client: &Client, path: &str, known: &str, change: &Value) -> (StatusCode, Value) {
    let request = client.request(Method::PATCH, path).header("if-match", known).json(change);
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

/// A thing, two changes of different fields, and a field of the first one with another value.
async fn things(ana: &Client) -> Vec<(String, Value, Value, Value)> {
    let project = ana.project("north").await;
    let phase = ana.make(&format!("/v1/projects/{project}/phases"), json!({ "name": "Shell" })).await;
    let employee = ana.employee("north", 40.0).await;
    let body = json!({ "employeeId": employee, "projectId": project, "week": "2026-W48", "hours": 8 });
    let assignment = ana.make("/v1/assignments", body).await;
    let (name, other, status) = (json!({ "name": "a" }), json!({ "name": "b" }), json!({ "status": "active" }));
    let hours = json!({ "weeklyHours": 20 });
    vec![
        (format!("/v1/projects/{project}"), name.clone(), status.clone(), other.clone()),
        (format!("/v1/projects/{project}/phases/{phase}"), name.clone(), status, other.clone()),
        (format!("/v1/employees/{employee}"), name, hours, other),
        (
            format!("/v1/assignments/{assignment}"),
            json!({ "hours": 4 }),
            json!({ "week": "2026-W49" }),
            json!({ "hours": 5 }),
        ),
    ]
}

#[tokio::test]
async fn different_fields_are_merged_and_the_same_field_is_a_conflict() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    for (path, first, second, clash) in things(&ana).await {
        let (status, one) = patch(&ana, &path, "\"1\"", &first).await;
        assert_eq!((status, &one["version"]), (StatusCode::OK, &json!(2)), "{path}");
        let (status, both) = patch(&ana, &path, "\"1\"", &second).await;
        assert_eq!((status, &both["version"]), (StatusCode::OK, &json!(3)), "{path} {both}");
        for changes in [&first, &second] {
            for (field, value) in changes.as_object().unwrap() {
                assert_eq!(&both[field], value, "{path}");
            }
        }
        let mut lost = clash.clone();
        lost.as_object_mut().unwrap().extend(second.as_object().unwrap().clone());
        for known in ["\"1\"", "\"7\"", "\"nonsense\""] {
            let (status, refused) = patch(&ana, &path, known, &lost).await;
            let fields: Vec<&String> = clash.as_object().unwrap().keys().collect();
            assert_eq!((status.as_u16(), &refused["code"]), (412, &json!("version_conflict")), "{path} {known}");
            assert_eq!(refused["conflictingFields"], json!(fields), "{path} {known}");
            assert_eq!((&refused["current"], &refused["currentVersion"]), (&both, &json!(3)), "{path} {known}");
        }
        let (status, _) = patch(&ana, &path, "\"1\", \"2\"", &clash).await;
        assert_eq!(status, StatusCode::OK, "{path}: the field has not changed since 2");
        let (status, _) = patch(&ana, &path, "\"3\"", &first).await;
        assert_eq!(status.as_u16(), 412, "{path}: it has changed since 3");
        let (status, _) = patch(&ana, &path, "*", &first).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        let (status, _) = patch(&ana, &path, "\"1\"", &first).await;
        assert_eq!(status, StatusCode::OK, "{path}: it is what it should be already");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_thing_that_changed_is_not_deleted_unseen() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    for (path, first, ..) in things(&ana).await.into_iter().rev() {
        patch(&ana, &path, "*", &first).await;
        let delete = |known: &str| ana.request(Method::DELETE, &path).header("if-match", known).send();
        let refused = delete("\"1\"").await.unwrap();
        assert_eq!(refused.status().as_u16(), 412, "{path}");
        let problem: Value = refused.json().await.unwrap();
        let fields: Vec<&String> = first.as_object().unwrap().keys().collect();
        assert_eq!((&problem["currentVersion"], &problem["conflictingFields"]), (&json!(2), &json!(fields)), "{path}");
        assert_eq!(delete("\"2\"").await.unwrap().status(), StatusCode::NO_CONTENT, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn people_who_change_different_fields_at_once_lose_nothing() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let path = format!("/v1/projects/{}", ana.project("north").await);
    let mut stream = ana.follow(&format!("rooms={}", path.replace("/v1/projects/", "project:"))).await;
    let changes = [
        json!({ "name": "a" }),
        json!({ "status": "done" }),
        json!({ "notes": "n" }),
        json!({ "endsOn": "2026-12-04" }),
    ];
    let asked = changes.iter().cloned().map(|change| {
        let (ana, path) = (ana.clone(), path.clone());
        tokio::spawn(async move { patch(&ana, &path, "\"1\"", &change).await.0 })
    });
    for asked in asked.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap(), StatusCode::OK);
    }
    let (_, project) = ana.read(&path).await;
    assert_eq!(project["version"], 5);
    for (field, value) in changes.iter().flat_map(|change| change.as_object().unwrap()) {
        assert_eq!(&project[field], value);
    }
    for version in 2..=5 {
        assert_eq!(stream.expect("project:updated").await.1["meta"]["version"], version);
    }
    server.stop().await;
}
