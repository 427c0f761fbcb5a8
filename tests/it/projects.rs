//! Projects that move to another division, and projects that are deleted.

use crewcast::auth::{Claims, Roles};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, database, mint, server, token};

#[tokio::test]
async fn a_moved_project_tells_both_divisions_and_later_changes_only_the_new_one() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    ana.project("south").await;
    let path = format!("/v1/projects/{project}");
    let (mut north, mut south) = (ana.follow("rooms=division:north").await, ana.follow("rooms=division:south").await);
    ana.send(Method::PATCH, &path, json!({ "name": "South tower", "division": "south" })).await;
    ana.send(Method::PATCH, &path, json!({ "notes": "x" })).await;
    // A change of north's own, behind which nothing of the project may have come.
    let own = ana.project("north").await;
    for stream in [&mut north, &mut south] {
        for field in ["name", "division"] {
            let (_, data) = stream.expect("project:updated").await;
            assert_eq!((&data["field"], &data["meta"]["version"]), (&json!(field), &json!(2)));
            let rooms = json!([format!("project:{project}"), "division:south", "division:north"]);
            assert_eq!(data["meta"]["rooms"], rooms);
        }
    }
    assert_eq!(south.expect("project:updated").await.1["field"], "notes");
    assert_eq!(north.expect("project:created").await.1["id"], json!(own));
    server.stop().await;
}

#[tokio::test]
async fn who_was_away_still_learns_that_a_project_was_deleted_and_can_read_it_no_more() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let path = format!("/v1/projects/{project}");
    let phase = ana.make(&format!("{path}/phases"), json!({ "name": "Shell" })).await;
    ana.send(Method::PUT, &format!("{path}/members/vera"), json!({ "role": "viewer" })).await;
    let vera = Client::new(&server, &token("vera", &[]));
    let (cursor, _) = vera.read(&path).await;
    let (status, _) = ana.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let mut stream = vera.stream(&format!("rooms=project:{project}"), &cursor).await;
    assert_eq!(stream.expect("stream:open").await.1["resume"], "replayed");
    let (_, deleted) = stream.expect("project:deleted").await;
    assert_eq!((&deleted["id"], &deleted["meta"]["version"]), (&json!(project), &json!(2)));
    for path in [path.clone(), format!("{path}/phases"), format!("{path}/phases/{phase}")] {
        for client in [&ana, &vera] {
            let response = client.request(Method::GET, &path).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
    assert_eq!(ana.send(Method::DELETE, &path, Value::Null).await.0, StatusCode::NOT_FOUND);
    let dora = Claims { divisions: vec!["north".parse().unwrap()], roles: Roles::default(), ..claims("dora") };
    let stranger = Client::new(&server, &token("otto", &[]));
    for (client, expected) in [(Client::new(&server, &mint(&dora)), StatusCode::OK), (stranger, StatusCode::FORBIDDEN)]
    {
        let request = client.request(Method::GET, &format!("/events?rooms=project:{project}"));
        assert_eq!(request.send().await.unwrap().status(), expected);
    }
    server.stop().await;
}

fn claims(sub: &str) -> Claims {
    Claims::new(sub.parse().unwrap(), time::OffsetDateTime::now_utc().unix_timestamp() + 3600)
}

#[tokio::test]
async fn the_room_of_a_deleted_project_closes_for_members_when_retention_has_passed() {
    let server = server(&database().await, &["--retention=1s"]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let path = format!("/v1/projects/{project}");
    ana.send(Method::PUT, &format!("{path}/members/vera"), json!({ "role": "viewer" })).await;
    ana.send(Method::DELETE, &path, Value::Null).await;
    let vera = Client::new(&server, &token("vera", &[]));
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let request = vera.request(Method::GET, &format!("/v1/rooms/project:{project}/events"));
        if request.send().await.unwrap().status() == StatusCode::FORBIDDEN {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the room stays open");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_deleted_project_gives_back_the_hours_that_were_planned_for_it() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let (project, other) = (ana.project("north").await, ana.project("north").await);
    let (mia, leo) = (ana.employee("north", 40.0).await, ana.employee("north", 40.0).await);
    let plan = [
        (&mia, &project, "2020-W10", 8),
        (&mia, &project, "2031-W10", 8),
        (&mia, &other, "2031-W10", 4),
        (&leo, &project, "2031-W10", 8),
        (&leo, &project, "2031-W11", 0),
    ];
    for (employee, project, week, hours) in plan {
        let body = json!({ "employeeId": employee, "projectId": project, "week": week, "hours": hours });
        ana.make("/v1/assignments", body).await;
    }
    let mut stream = ana.follow("rooms=company,division:north").await;
    ana.send(Method::DELETE, &format!("/v1/projects/{project}"), Value::Null).await;
    assert_eq!(stream.expect("project:deleted").await.1["id"], json!(project));
    for (employee, week, hours) in [(&mia, "2020-W10", 0), (&mia, "2031-W10", 4), (&leo, "2031-W10", 0)] {
        let (_, data) = stream.expect("capacity:updated").await;
        let told = (&data["employeeId"], &data["week"], &data["hours"]);
        assert_eq!(told, (&json!(employee), &json!(week), &json!(hours)));
    }
    let (_, left) = ana.read("/v1/assignments").await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    let body = json!({ "employeeId": mia, "projectId": project, "week": "2031-W12", "hours": 8 });
    let (status, problem) = ana.send(Method::POST, "/v1/assignments", body).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("/projectId")));
    let last = left["items"][0]["id"].as_str().unwrap();
    let (status, _) =
        ana.send(Method::PATCH, &format!("/v1/assignments/{last}"), json!({ "projectId": project })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    server.stop().await;
}
