//! People as their tokens name them, and how they want to be told of things.

use crewcast::{
    app::Server,
    auth::{Claims, Role, Roles},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, connect, database, mint, number, server, sql, token};

#[tokio::test]
async fn the_server_says_who_it_takes_a_caller_for() {
    let server = server(&database().await, &[]).await;
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let claims = Claims {
        name: Some("Ana Ruiz".to_owned()),
        roles: Roles::of([Role::Manager]),
        divisions: vec!["north".parse().unwrap()],
        ..Claims::new("ana".parse().unwrap(), exp)
    };
    let (status, me) = Client::new(&server, &mint(&claims)).send(Method::GET, "/v1/me", Value::Null).await;
    let expires = time::OffsetDateTime::from_unix_timestamp(exp).unwrap();
    let expires = expires.format(&time::format_description::well_known::Rfc3339).unwrap();
    let expected = json!({
        "id": "ana", "name": "Ana Ruiz", "avatarUrl": null, "roles": ["manager"],
        "divisions": ["north"], "topics": [], "expiresAt": expires,
    });
    assert_eq!((status, me), (StatusCode::OK, expected));
    server.stop().await;
}

#[tokio::test]
async fn people_are_noted_as_their_last_token_names_them_and_services_are_not() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let mut conn = connect(&url).await;
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let eva = |name: &str, division: &str| Claims {
        name: Some(name.to_owned()),
        divisions: vec![division.parse().unwrap()],
        ..Claims::new("eva".parse().unwrap(), exp)
    };
    let said = |claims: Claims| {
        let client = Client::new(&server, &mint(&claims));
        async move { client.send(Method::GET, "/v1/me", Value::Null).await.0 }
    };
    let erp = Claims { sub: "erp".parse().unwrap(), roles: Roles::of([Role::Service]), ..eva("ERP", "north") };
    assert_eq!(said(erp).await, StatusCode::OK);
    for (name, division) in [("Eva", "north"), ("Eva Luna", "south")] {
        assert_eq!(said(eva(name, division)).await, StatusCode::OK);
        let is_noted = format!(
            "select count(*) from crewcast.people
             where sub = 'eva' and name = '{name}' and divisions = '{{{division}}}' and roles = '{{member}}'
               and first_seen <= last_seen and last_seen > now() - interval '1 minute'"
        );
        while number(&mut conn, &is_noted).await == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(number(&mut conn, "select count(*) from crewcast.people").await, 1);
    server.stop().await;
}

fn preferences() -> Value {
    json!({
        "alerts": [
            { "kind": "cash", "severity": "critical", "toast": true, "sound": true, "desktop": true, "badge": true },
            { "kind": null, "severity": null, "toast": true, "sound": false, "desktop": false, "badge": true },
        ],
        "mutedProjects": ["0192f0c1-2b7a-7cc0-8a2e-0123456789ab"],
        "mutedDivisions": ["north"],
        "quietHours": { "from": "18:00", "to": "07:00", "timeZone": "Europe/Berlin" },
    })
}

#[tokio::test]
async fn preferences_are_set_as_a_whole_and_the_persons_other_tabs_follow() {
    let server = server(&database().await, &[]).await;
    let (eva, max) = (Client::new(&server, &token("eva", &[])), Client::new(&server, &token("max", &[])));
    let path = "/v1/me/preferences";
    let (_, none) = eva.read(path).await;
    assert_eq!(
        none,
        json!({ "alerts": [], "mutedProjects": [], "mutedDivisions": [], "quietHours": null, "version": 1 })
    );
    let (mut tab, mut other) = (eva.follow("").await, max.follow("").await);
    let (status, set) = eva.send(Method::PUT, path, preferences()).await;
    let mut expected = preferences();
    expected["version"] = json!(2);
    assert_eq!((status, &set), (StatusCode::OK, &expected));
    assert_eq!(eva.read(path).await.1, expected);
    assert_eq!(eva.send(Method::PUT, path, preferences()).await.1, expected, "the same again is no change");
    let (_, mut told) = tab.expect("preferences:updated").await;
    let meta = told.as_object_mut().unwrap().remove("meta").unwrap();
    assert_eq!((told, &meta["version"]), (expected, &json!(2)));
    let stale = eva.request(Method::PUT, path).header("if-match", "\"1\"").json(&json!({})).send().await.unwrap();
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    let (_, emptied) = eva.send(Method::PUT, path, json!({})).await;
    assert_eq!((&emptied["alerts"], &emptied["version"]), (&json!([]), &json!(3)));
    assert_eq!(max.read(path).await.1["version"], 1);
    max.send(Method::PUT, path, preferences()).await;
    assert_eq!(other.expect("preferences:updated").await.1["meta"]["version"], 2, "and of nobody else's");
    server.stop().await;
}

#[tokio::test]
async fn preferences_that_no_client_could_follow_are_refused_and_nothing_is_written() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, mut conn) = (Client::new(&server, &token("eva", &[])), connect(&url).await);
    let quiet = |from: &str, zone: &str| json!({ "quietHours": { "from": from, "to": "07:00", "timeZone": zone } });
    let many: Vec<String> = (0..201).map(|n| format!("d{n}")).collect();
    for (body, pointer) in [
        (quiet("25:00", "Europe/Berlin"), "/quietHours/from"),
        (quiet("18:00", "Europe/Atlantis"), "/quietHours/timeZone"),
        (quiet("18:00", "CET+99 x"), "/quietHours/timeZone"),
        (json!({ "quietHours": { "from": "18:00" } }), "/quietHours"),
        (json!({ "mutedDivisions": ["North"] }), "/mutedDivisions/0"),
        (json!({ "mutedDivisions": many }), "/mutedDivisions"),
        (json!({ "mutedProjects": ["x"] }), "/mutedProjects/0"),
        (json!({ "alerts": [{ "kind": "cash" }] }), "/alerts/0"),
        (
            json!({ "alerts": [{ "severity": "loud", "toast": true, "sound": true, "desktop": true, "badge": true }] }),
            "/alerts/0/severity",
        ),
        (json!({ "version": 3 }), "/version"),
    ] {
        let (status, problem) = eva.send(Method::PUT, "/v1/me/preferences", body.clone()).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{body} {problem}");
    }
    let rows = "select (select count(*) from crewcast.preferences) + (select count(*) from crewcast.events)";
    assert_eq!(number(&mut conn, rows).await, 0);
    server.stop().await;
}

/// Somebody with these roles and this name.
fn named(server: &Server, sub: &str, roles: &[Role], name: &str) -> Client {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let roles = Roles::of(roles.iter().copied());
    let claims = Claims { name: Some(name.to_owned()), roles, ..Claims::new(sub.parse().unwrap(), exp) };
    Client::new(server, &mint(&claims))
}

#[tokio::test]
async fn of_what_two_nodes_say_of_somebody_the_later_written_holds_whatever_their_clocks_say() {
    let url = database().await;
    let (one, two) = (server(&url, &[]).await, server(&url, &[]).await);
    let (admin, mut conn) = (Client::admin(&one), connect(&url).await);
    let project = admin.project("north").await;
    named(&one, "eva", &[Role::Manager], "Eva").read("/v1/alerts").await;
    // As a node would have written it whose clock is ahead.
    let ahead =
        "update crewcast.people set first_seen = now() + interval '1 hour', last_seen = now() + interval '1 hour'";
    sql(&mut conn, ahead).await;
    named(&two, "eva", &[], "Eva").read("/v1/alerts").await;
    let comment = json!({ "body": "@eva", "mentions": ["eva"] });
    admin.make(&format!("/v1/projects/{project}/comments"), comment).await;
    let told = "select count(*) from crewcast.alert_rooms where room = 'user:eva'";
    assert_eq!(number(&mut conn, told).await, 0, "she is no manager any more, and the project is 404 for her");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn people_are_written_in_one_order_so_that_two_nodes_never_wait_for_each_other() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (mut conn, mut first, mut second) = (connect(&url).await, connect(&url).await, connect(&url).await);
    let subs = ["a", "b", "c", "x"];
    for sub in subs {
        named(&server, sub, &[], "before").read("/v1/alerts").await;
    }
    // Whoever comes while x is waited for is written with the others.
    for (lock, sub) in [(&mut first, "x"), (&mut second, "b")] {
        sql(lock, "begin").await;
        sql(lock, &format!("select from crewcast.people where sub = '{sub}' for update")).await;
    }
    let waits = "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock' and query like '%crewcast.people%'";
    for sub in ["x", "b", "c", "a"] {
        let noted = named(&server, sub, &[], "after").send(Method::GET, "/v1/me", Value::Null).await;
        assert_eq!(noted.0, StatusCode::OK);
        while number(&mut conn, waits).await == 0 {}
    }
    sql(&mut first, "rollback").await;
    while number(&mut conn, "select count(*) from crewcast.people where sub = 'x' and name = 'after'").await == 0 {}
    while number(&mut conn, waits).await == 0 {}
    let free =
        "select count(*) from (select from crewcast.people where sub in ('a', 'c') for update skip locked) as free";
    assert_eq!(number(&mut conn, free).await, 1, "a is written, b is waited for, and c comes after that");
    sql(&mut second, "rollback").await;
    while number(&mut conn, "select count(*) from crewcast.people where name = 'after'").await < 4 {}
    server.stop().await;
}
