//! Employees, assignments and the capacity that follows from them.

use crewcast::{app::Server, ids::Week};
use reqwest::{Method, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::{Client, Stream, connect, database, number, server};

/// Somebody of north with 40 hours a week, and a project of theirs.
struct Crew {
    server: Server,
    ana: Client,
    employee: String,
    project: String,
}

impl Crew {
    async fn new() -> Self {
        let server = server(&database().await, &[]).await;
        let ana = Client::admin(&server);
        let project = ana.project("north").await;
        let employee = ana.employee("north", 40.0).await;
        Self { server, ana, employee, project }
    }

    async fn assign(&self, week: &str, hours: f64) -> String {
        self.assign_to(&self.employee, week, hours).await
    }

    async fn assign_to(&self, employee: &str, week: &str, hours: f64) -> String {
        let body = json!({ "employeeId": employee, "projectId": self.project, "week": week, "hours": hours });
        self.ana.make("/v1/assignments", body).await
    }

    /// A stream of these rooms that has begun.
    async fn follow(&self, rooms: &str) -> Stream {
        self.ana.follow(&format!("rooms={rooms}&types=capacity,project")).await
    }

    async fn patch(&self, path: &str, body: Value) -> Value {
        let (status, now) = self.ana.send(Method::PATCH, path, body).await;
        assert_eq!(status, StatusCode::OK, "{now}");
        now
    }

    async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.ana.send(Method::DELETE, path, Value::Null).await
    }

    /// Changes something that is told to `company`, so that a stream which gets nothing before that had nothing to get.
    async fn mark(&self, stream: &mut Stream) {
        self.assign("2040-W01", 1.0).await;
        assert_eq!(capacity(stream).await["week"], "2040-W01");
    }
}

/// The next event of a stream, which is about capacity.
async fn capacity(stream: &mut Stream) -> Value {
    stream.expect("capacity:updated").await.1
}

/// The week that is so many weeks from now.
fn week(from_now: i64) -> String {
    Week::of((OffsetDateTime::now_utc() + Duration::weeks(from_now)).date()).to_string()
}

#[tokio::test]
async fn an_assignment_fills_its_week_and_everybody_is_told() {
    let crew = Crew::new().await;
    let mut stream = crew.follow("company,division:north").await;
    crew.assign("2026-W53", 34.0).await;
    let event = capacity(&mut stream).await;
    let Value::Object(mut data) = event else { panic!("an object") };
    let meta = data.remove("meta").unwrap();
    let expected = json!({
        "division": "north", "employeeId": crew.employee, "newUtilization": 0.85, "week": "2026-W53", "hours": 34,
        "weeklyHours": 40,
    });
    assert_eq!(Value::Object(data), expected);
    assert_eq!((&meta["rooms"], &meta["version"]), (&json!(["company", "division:north"]), &Value::Null));
    let (_, list) = crew.ana.read("/v1/capacity?division=north&week=2026-W53").await;
    let expected = json!({
        "employeeId": crew.employee, "division": "north", "week": "2026-W53", "hours": 34, "weeklyHours": 40,
        "utilization": 0.85,
    });
    assert_eq!(list, json!({ "items": [expected], "nextCursor": null }));
    crew.server.stop().await;
}

#[tokio::test]
async fn a_moved_assignment_tells_both_weeks_both_employees_and_both_divisions() {
    let crew = Crew::new().await;
    crew.ana.send(Method::PUT, "/v1/divisions/south", json!({ "name": "South" })).await;
    let other = crew.ana.employee("south", 20.0).await;
    let path = format!("/v1/assignments/{}", crew.assign("2026-W52", 10.0).await);
    let (mut north, mut south) = (crew.follow("division:north").await, crew.follow("division:south").await);

    crew.patch(&path, json!({ "week": "2026-W53" })).await;
    for (week, hours) in [("2026-W52", 0), ("2026-W53", 10)] {
        let event = capacity(&mut north).await;
        assert_eq!((&event["week"], &event["hours"]), (&json!(week), &json!(hours)));
    }
    let now = crew.patch(&path, json!({ "employeeId": other, "hours": 5 })).await;
    assert_eq!((&now["employeeId"], &now["version"]), (&json!(other), &json!(3)));
    let event = capacity(&mut north).await;
    assert_eq!((&event["employeeId"], &event["newUtilization"]), (&json!(crew.employee), &json!(0)));
    let event = capacity(&mut south).await;
    assert_eq!((&event["employeeId"], &event["newUtilization"]), (&json!(other), &json!(0.25)));
    assert_eq!(crew.delete(&path).await.0, StatusCode::NO_CONTENT);
    assert_eq!(capacity(&mut south).await["hours"], 0);
    crew.server.stop().await;
}

#[tokio::test]
async fn what_leaves_every_sum_as_it_was_tells_nobody() {
    let crew = Crew::new().await;
    let path = format!("/v1/assignments/{}", crew.assign("2026-W52", 10.0).await);
    let employee = format!("/v1/employees/{}", crew.employee);
    let mut stream = crew.follow("company,division:north").await;
    let other = crew.ana.project("north").await;
    stream.expect("project:created").await;
    let moved = crew.patch(&path, json!({ "projectId": other })).await;
    assert_eq!((&moved["projectId"], &moved["version"]), (&json!(other), &json!(2)));
    assert_eq!(crew.patch(&path, json!({ "hours": 10.0, "week": "2026-W52" })).await["version"], 2);
    assert_eq!(crew.patch(&employee, json!({ "name": "Mia Berg" })).await["version"], 2);
    assert_eq!(crew.patch(&employee, json!({ "weeklyHours": 40, "division": "north" })).await["version"], 2);
    crew.mark(&mut stream).await;
    crew.server.stop().await;
}

#[tokio::test]
async fn other_weekly_hours_tell_of_each_week_to_come_that_has_assignments() {
    let crew = Crew::new().await;
    for week in [week(-1), week(0), week(7)] {
        crew.assign(&week, 10.0).await;
    }
    let mut stream = crew.follow("company").await;
    let path = format!("/v1/employees/{}/capacity", crew.employee);
    for (weekly_hours, utilization) in [(json!(30), json!(0.3333)), (json!(0), Value::Null), (json!(8), json!(1.25))] {
        let (status, now) = crew.ana.send(Method::PUT, &path, json!({ "weeklyHours": weekly_hours })).await;
        assert_eq!((status, &now["weeklyHours"]), (StatusCode::OK, &weekly_hours));
        for week in [week(0), week(7)] {
            let event = capacity(&mut stream).await;
            assert_eq!((&event["week"], &event["newUtilization"]), (&json!(week), &utilization));
        }
    }
    crew.mark(&mut stream).await;
    crew.server.stop().await;
}

#[tokio::test]
async fn an_employee_who_changes_division_takes_the_weeks_to_come_along_and_both_are_told() {
    let crew = Crew::new().await;
    crew.ana.send(Method::PUT, "/v1/divisions/south", json!({ "name": "South" })).await;
    for week in [week(-1), week(0), week(7)] {
        crew.assign(&week, 10.0).await;
    }
    let (mut north, mut south) = (crew.follow("division:north").await, crew.follow("division:south").await);
    let path = format!("/v1/employees/{}", crew.employee);
    crew.patch(&path, json!({ "division": "south", "weeklyHours": 20 })).await;
    for stream in [&mut north, &mut south] {
        for week in [week(0), week(7)] {
            let event = capacity(stream).await;
            assert_eq!((&event["division"], &event["week"]), (&json!("south"), &json!(week)));
            assert_eq!(event["newUtilization"], 0.5);
            assert_eq!(event["meta"]["rooms"], json!(["company", "division:south", "division:north"]));
        }
    }
    crew.mark(&mut south).await;
    crew.server.stop().await;
}

#[tokio::test]
async fn sums_are_exact_and_utilization_has_four_decimals() {
    let crew = Crew::new().await;
    let other = crew.ana.project("north").await;
    crew.assign("2026-W53", 0.1).await;
    let body = json!({ "employeeId": crew.employee, "projectId": other, "week": "2026-W53", "hours": 0.2 });
    crew.ana.make("/v1/assignments", body).await;
    let (_, list) = crew.ana.read("/v1/capacity?week=2026-W53").await;
    let week = &list["items"][0];
    // 0.3 / 40 is 0.0075; 0.30000000000000004 would not be 0.3.
    assert_eq!((&week["hours"], &week["utilization"]), (&json!(0.3), &json!(0.0075)));
    crew.server.stop().await;
}

#[tokio::test]
async fn there_is_one_assignment_for_each_employee_project_and_week() {
    let crew = Crew::new().await;
    crew.assign("2026-W52", 8.0).await;
    let next = crew.assign("2026-W53", 8.0).await;
    let body = json!({ "employeeId": crew.employee, "projectId": crew.project, "week": "2026-W52", "hours": 1 });
    let (status, problem) = crew.ana.send(Method::POST, "/v1/assignments", body).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("already_exists")));
    let path = format!("/v1/assignments/{next}");
    let (status, problem) = crew.ana.send(Method::PATCH, &path, json!({ "week": "2026-W52" })).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("already_exists")));
    let request = crew.ana.request(Method::PATCH, &path).header("if-match", "\"7\"").json(&json!({ "hours": 2 }));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(response.json::<Value>().await.unwrap()["current"]["hours"], 8);
    crew.server.stop().await;
}

#[tokio::test]
async fn an_employee_with_planned_work_stays_and_past_work_goes_with_them() {
    let crew = Crew::new().await;
    crew.assign(&week(-1), 8.0).await;
    let planned = crew.assign(&week(0), 8.0).await;
    let path = format!("/v1/employees/{}", crew.employee);
    let (status, problem) = crew.delete(&path).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("in_use")));
    crew.delete(&format!("/v1/assignments/{planned}")).await;
    let mut stream = crew.follow("company").await;
    assert_eq!(crew.delete(&path).await.0, StatusCode::NO_CONTENT);
    let event = capacity(&mut stream).await;
    assert_eq!((&event["week"], &event["hours"]), (&json!(week(-1)), &json!(0)));
    assert_eq!(crew.delete(&path).await.0, StatusCode::NOT_FOUND);
    let (_, list) = crew.ana.read("/v1/assignments").await;
    assert_eq!(list["items"], json!([]));
    crew.server.stop().await;
}

#[tokio::test]
async fn lists_are_narrowed_by_every_filter_and_read_in_pages() {
    let crew = Crew::new().await;
    let other_project = crew.ana.project("south").await;
    let other = crew.ana.employee("south", 20.0).await;
    let of_mia = crew.assign("2026-W52", 8.0).await;
    let of_other = crew.assign_to(&other, "2026-W53", 8.0).await;
    let body = json!({ "employeeId": other, "projectId": other_project, "week": "2026-W52", "hours": 4 });
    let elsewhere = crew.ana.make("/v1/assignments", body).await;
    let ids = async |query: &str| {
        let (_, list) = crew.ana.read(&format!("/v1/assignments?{query}")).await;
        let ids = list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    let all = [of_mia.clone(), of_other, elsewhere];
    assert_eq!(ids("").await, all);
    assert_eq!(ids(&format!("employeeId={other}")).await, all[1..]);
    assert_eq!(ids(&format!("projectId={}", crew.project)).await, all[..2]);
    assert_eq!(ids("week=2026-W53").await, all[1..2]);
    assert_eq!(ids("division=north").await, all[..1]);
    assert_eq!(ids(&format!("division=south&week=2026-W52&projectId={other_project}")).await, all[2..]);
    assert_eq!(ids(&format!("limit=1&after={of_mia}")).await, all[1..2]);
    let (_, first) = crew.ana.read("/v1/capacity?week=2026-W52&limit=1").await;
    let (_, rest) =
        crew.ana.read(&format!("/v1/capacity?week=2026-W52&after={}", first["nextCursor"].as_str().unwrap())).await;
    assert_eq!((&first["items"][0]["hours"], &rest["items"][0]["hours"]), (&json!(8), &json!(4)));
    assert_eq!(rest["nextCursor"], Value::Null);
    let (_, list) = crew.ana.read("/v1/employees?division=south").await;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][0]["id"]), (1, &json!(other)));
    let (_, list) = crew.ana.read("/v1/capacity?division=south").await;
    assert_eq!((&list["items"][0]["week"], &list["items"][0]["hours"]), (&json!(week(0)), &json!(0)));
    crew.server.stop().await;
}

#[tokio::test]
async fn bad_weeks_and_hours_and_what_is_not_there_are_refused_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let ana = Client::admin(&server);
    let (project, mut conn) = (ana.project("north").await, connect(&url).await);
    let employee = ana.employee("north", 40.0).await;
    let good = json!({ "employeeId": employee, "projectId": project, "week": "2020-W53", "hours": 8 });
    let assignment = ana.make("/v1/assignments", good.clone()).await;
    let count =
        "select (select count(*) from crewcast.events) + (select sum(version) from crewcast.assignments)::bigint
        + (select sum(version) from crewcast.employees)::bigint";
    let before = number(&mut conn, count).await;
    let nobody = "\"0192f0c1-2b7a-7cc0-8a2e-0123456789ab\"";
    let fields = [
        ("week", "\"2025-W53\""),
        ("week", "\"2026-W54\""),
        ("week", "\"2026-48\""),
        ("week", "\"2026-11-23\""),
        ("week", "202648"),
        ("hours", "-1"),
        ("hours", "168.01"),
        ("hours", "7.333"),
        ("hours", "1e308"),
        ("hours", "\"8\""),
        ("hours", "null"),
        ("employeeId", nobody),
        ("employeeId", "7"),
        ("projectId", nobody),
        ("projectId", "\"x\""),
        ("projectId", "null"),
    ];
    let mut cases = Vec::new();
    for (field, value) in fields {
        let Value::Object(mut make) = good.clone() else { panic!("an object") };
        make.insert("week".to_owned(), json!("2020-W52"));
        make.insert(field.to_owned(), serde_json::from_str(value).unwrap_or(Value::Null));
        cases.push((Method::POST, "/v1/assignments".to_owned(), Value::Object(make).to_string(), field));
        cases.push((Method::PATCH, format!("/v1/assignments/{assignment}"), format!("{{\"{field}\":{value}}}"), field));
    }
    for value in ["-1", "169", "0.001", "\"40\"", "null"] {
        let body = format!("{{\"weeklyHours\":{value}}}");
        cases.push((Method::PATCH, format!("/v1/employees/{employee}"), body.clone(), "weeklyHours"));
        cases.push((Method::PUT, format!("/v1/employees/{employee}/capacity"), body, "weeklyHours"));
    }
    let body = json!({ "name": "Mia", "division": "nowhere", "weeklyHours": 40 }).to_string();
    cases.push((Method::POST, "/v1/employees".to_owned(), body, "division"));
    cases.push((
        Method::PATCH,
        format!("/v1/employees/{employee}"),
        r#"{"division":"nowhere"}"#.to_owned(),
        "division",
    ));
    for (method, path, body, field) in cases {
        let request = ana.request(method.clone(), &path).header(CONTENT_TYPE, "application/json").body(body.clone());
        let response = request.send().await.unwrap();
        let (status, problem) = (response.status(), response.json::<Value>().await.unwrap());
        let answer = (status, problem["errors"][0]["pointer"].as_str());
        assert_eq!(
            answer,
            (StatusCode::UNPROCESSABLE_ENTITY, Some(&*format!("/{field}"))),
            "{method} {body} {problem}"
        );
    }
    for query in [
        "assignments?week=2025-W53",
        "assignments?employeeId=x",
        "capacity?week=x",
        "capacity?division=X",
        "employees?after=x",
        "assignments?after=x",
        "capacity?after=1.2",
    ] {
        let response = ana.request(Method::GET, &format!("/v1/{query}")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(number(&mut conn, count).await, before);
    server.stop().await;
}
