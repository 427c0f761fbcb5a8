//! A stranger holds a lock: whoever wants it is put off, and nobody else notices.

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::PgConnection;
use tokio::{task::JoinSet, time::timeout};

use crate::support::{Client, PATIENCE, connect, database, number, server, sql, token};

const WAITING: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and application_name = 'crewcast' and wait_event_type = 'Lock'";

/// A stranger's session that holds a project's row.
async fn hold(url: &str, project: &str) -> PgConnection {
    let mut stranger = connect(url).await;
    sql(&mut stranger, "begin").await;
    sql(&mut stranger, &format!("select id from crewcast.projects where id = '{project}' for update")).await;
    stranger
}

/// So many sessions of the service wait for a lock.
async fn has_waiting(conn: &mut PgConnection, is_so: impl Fn(i64) -> bool) {
    let looking = async { while !is_so(number(conn, WAITING).await) {} };
    timeout(PATIENCE, looking).await.expect("as many wait for the lock as should");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_changes_of_a_locked_row_hold_up_nobody_else_and_are_put_off() {
    let url = database().await;
    let server = server(&url, &["--database-connections=20", "--request-timeout=10s"]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let (mut stranger, mut conn) = (hold(&url, &project).await, connect(&url).await);
    let mut changes = JoinSet::new();
    for n in 0..40 {
        let change =
            ana.request(Method::PATCH, &format!("/v1/projects/{project}")).json(&json!({ "notes": n.to_string() }));
        changes.spawn(async move {
            let answer = change.send().await.unwrap();
            (answer.status(), answer.headers().get("retry-after").cloned())
        });
    }
    has_waiting(&mut conn, |waiting| waiting >= 10).await;
    let ben = Client::new(&server, &token("ben", &[]));
    for n in 0..10 {
        let made = ana.send(Method::POST, "/v1/projects", json!({ "name": n.to_string(), "division": "north" })).await;
        assert_eq!(made.0, StatusCode::CREATED, "{}", made.1);
        ana.read("/v1/divisions").await;
        // What ben may join is looked up.
        ben.stream(&format!("rooms=company,project:{project}"), "").await.expect("stream:open").await;
    }
    assert!(number(&mut conn, WAITING).await > 0, "nobody waits any more: the others were not held up by anything");
    for (status, after) in changes.join_all().await {
        assert_eq!((status, after.is_some()), (StatusCode::SERVICE_UNAVAILABLE, true));
    }
    sql(&mut stranger, "rollback").await;
    let (status, changed) = ana.send(Method::PATCH, &format!("/v1/projects/{project}"), json!({ "notes": "" })).await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_its_client_gave_up_is_given_up_in_postgres_while_the_row_is_still_locked() {
    let url = database().await;
    // Nothing else ends it.
    let server = server(&url, &["--request-timeout=10m"]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let (_stranger, mut conn) = (hold(&url, &project).await, connect(&url).await);
    let change = |n: u32| {
        let change =
            ana.request(Method::PATCH, &format!("/v1/projects/{project}")).json(&json!({ "notes": n.to_string() }));
        tokio::spawn(change.send())
    };
    let changes: Vec<_> = (0..3).map(change).collect();
    has_waiting(&mut conn, |waiting| waiting == 3).await;
    for change in changes {
        change.abort();
    }
    has_waiting(&mut conn, |waiting| waiting == 0).await;
    // One that still waits when the node stops is no reason to wait.
    let last = change(3);
    has_waiting(&mut conn, |waiting| waiting == 1).await;
    last.abort();
    timeout(PATIENCE, server.stop()).await.expect("the node ends while the row is locked");
    has_waiting(&mut conn, |waiting| waiting == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_said_everything_and_was_not_answered_is_not_blamed() {
    let url = database().await;
    let server = server(&url, &["--request-timeout=300ms"]).await;
    let ana = Client::admin(&server);
    let project = ana.project("north").await;
    let _stranger = hold(&url, &project).await;
    for _ in 0..3 {
        let (status, problem) =
            ana.send(Method::PATCH, &format!("/v1/projects/{project}"), json!({ "notes": "x" })).await;
        assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")), "{problem}");
    }
    server.stop().await;
}
