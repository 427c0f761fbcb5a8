//! Phases of a project.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, connect, database, number, server};

#[tokio::test]
async fn a_phase_is_told_of_from_its_making_to_its_end() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let mut stream = ana.follow(&format!("rooms=project:{project}")).await;
    let phases = format!("/v1/projects/{project}/phases");
    let response = ana.request(Method::POST, &phases).json(&json!({ "name": "Shell" })).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let phase: Value = response.json().await.unwrap();
    let id = phase["id"].as_str().unwrap();
    assert_eq!(location, format!("{phases}/{id}"));
    let expected = json!({
        "id": id, "projectId": project, "name": "Shell", "status": "planned", "startsOn": null, "endsOn": null,
        "position": 0, "version": 1,
    });
    assert_eq!(phase, expected);
    let (cursor, read) = ana.read(&location).await;
    assert_eq!(read, phase);

    let change = json!({ "name": "Shell", "endsOn": "2026-12-06", "position": 3, "status": "active" });
    let (status, now) = ana.send(Method::PATCH, &location, change).await;
    assert_eq!((status, &now["version"]), (StatusCode::OK, &json!(2)));
    let request = ana.request(Method::PATCH, &location).header("if-match", "\"1\"");
    let response = request.json(&json!({ "status": "done" })).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(response.json::<Value>().await.unwrap()["current"], now);
    assert_eq!(ana.send(Method::PATCH, &location, json!({ "position": 3 })).await.1["version"], 2);
    assert_eq!(ana.send(Method::DELETE, &location, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ana.send(Method::DELETE, &location, Value::Null).await.0, StatusCode::NOT_FOUND);

    let told = without_meta(stream.expect("phase:created").await.1);
    assert_eq!(told, (expected, json!(1), json!([format!("project:{project}")])));
    // Who read the phase after it was made and follows from there gets exactly what came then.
    let mut resumed = ana.stream(&format!("rooms=project:{project}"), &cursor).await;
    resumed.expect("stream:open").await;
    for stream in [&mut stream, &mut resumed] {
        for (field, value) in [("status", json!("active")), ("endsOn", json!("2026-12-06")), ("position", json!(3))] {
            let (data, version, _) = without_meta(stream.expect("phase:updated").await.1);
            let expected =
                json!({ "projectId": project, "phaseId": id, "field": field, "newValue": value, "updatedBy": "ana" });
            assert_eq!((data, version), (expected, json!(2)));
        }
        let (data, version, _) = without_meta(stream.expect("phase:deleted").await.1);
        assert_eq!((&data["id"], &data["endsOn"], version), (&json!(id), &json!("2026-12-06"), json!(3)));
    }
    server.stop().await;
}

/// The payload, its version and its rooms.
fn without_meta(data: Value) -> (Value, Value, Value) {
    let Value::Object(mut data) = data else { panic!("an object") };
    let meta = data.remove("meta").unwrap();
    (Value::Object(data), meta["version"].clone(), meta["rooms"].clone())
}

#[tokio::test]
async fn phases_stand_by_position_and_a_new_one_at_the_end() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let phases = format!("/v1/projects/{project}/phases");
    for (name, position) in [("c", json!(7)), ("d", Value::Null), ("a", json!(0)), ("b", json!(0))] {
        ana.make(&phases, json!({ "name": name, "position": position })).await;
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = ana.read(&format!("{phases}?limit=3&after={after}")).await;
        names.extend(page["items"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap().to_owned()));
        match page["nextCursor"].as_str() {
            Some(cursor) => after = cursor.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c", "d"]);
    for place in [1_000_000, 1_000_000] {
        ana.make(&phases, json!({ "name": "z", "position": place })).await;
    }
    let last = ana.make(&phases, json!({ "name": "last" })).await;
    let (_, last) = ana.read(&format!("{phases}/{last}")).await;
    assert_eq!(last["position"], 1_000_000);
    server.stop().await;
}

#[tokio::test]
async fn phases_made_at_once_all_get_a_place_of_their_own() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let phases = format!("/v1/projects/{}/phases", ana.project("north").await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (ana, phases) = (ana.clone(), phases.clone());
        tasks.spawn(async move { ana.make(&phases, json!({ "name": n.to_string() })).await });
    }
    tasks.join_all().await;
    let (_, list) = ana.read(&phases).await;
    let positions: Vec<_> = list["items"].as_array().unwrap().iter().map(|phase| &phase["position"]).collect();
    assert_eq!(positions, (0..10).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test]
async fn a_phase_with_a_bad_field_or_of_another_project_is_refused_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ana = Client::admin(&server);
    let (project, other) = (ana.project("north").await, ana.project("north").await);
    let phases = format!("/v1/projects/{project}/phases");
    let phase = ana.make(&phases, json!({ "name": "Shell" })).await;
    let mut conn = connect(&url).await;
    let count = "select (select count(*) from crewcast.events) + (select sum(version) from crewcast.phases)::bigint";
    let before = number(&mut conn, count).await;
    let fields = [
        ("name", json!("")),
        ("name", Value::Null),
        ("status", json!("late")),
        ("status", Value::Null),
        ("startsOn", json!("2026-W48")),
        ("endsOn", json!("2026-02-30")),
        ("position", json!(-1)),
        ("position", json!(1_000_001)),
        ("position", json!(1e300)),
        ("position", json!(1.5)),
        ("projectId", json!(other)),
    ];
    for (field, value) in fields {
        let Value::Object(mut make) = json!({ "name": "x" }) else { panic!("an object") };
        make.insert(field.to_owned(), value.clone());
        for (method, path, body) in [
            (Method::POST, phases.clone(), Value::Object(make)),
            (Method::PATCH, format!("{phases}/{phase}"), json!({ field: value })),
        ] {
            let (status, problem) = ana.send(method.clone(), &path, body.clone()).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{method} {body} {problem}");
        }
    }
    let reversed = json!({ "name": "x", "startsOn": "2026-12-06", "endsOn": "2026-12-05" });
    let (status, problem) = ana.send(Method::POST, &phases, reversed).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("/endsOn")));
    let elsewhere = format!("/v1/projects/{other}/phases/{phase}");
    for (method, body) in [(Method::GET, Value::Null), (Method::PATCH, json!({})), (Method::DELETE, Value::Null)] {
        assert_eq!(ana.send(method, &elsewhere, body).await.0, StatusCode::NOT_FOUND);
    }
    for after in ["x", "1", "1.x", ".", "99999999999.0192f0c1-2b7a-7cc0-8a2e-0123456789ab"] {
        let response = ana.request(Method::GET, &format!("{phases}?after={after}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{after}");
    }
    assert_eq!(number(&mut conn, count).await, before);
    server.stop().await;
}
