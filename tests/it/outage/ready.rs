//! A node that is of no use is not ready, also where Postgres is there.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::PgConnection;
use tokio::time::timeout;

use crate::support::{Client, PATIENCE, connect, database, number, server, sql};

/// A role that may use everything, and whose connections are counted.
async fn counted(conn: &mut PgConnection) {
    sql(conn, "create role counted login").await;
    sql(conn, "grant usage on schema crewcast to counted").await;
    for kind in ["tables", "sequences", "functions"] {
        sql(conn, &format!("grant all on all {kind} in schema crewcast to counted")).await;
    }
}

/// What the probe says once it says this.
async fn probed(client: &Client, status: StatusCode) -> Value {
    let asking = async {
        loop {
            let (said, problem) = client.send(Method::GET, "/readyz", Value::Null).await;
            if said == status {
                return problem;
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("it never says {status}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_read_the_log_is_not_ready_until_it_can() {
    let url = database().await;
    let mut conn = connect(&url).await;
    counted(&mut conn).await;
    let node = server(&url.replace("user=postgres", "user=counted"), &["--poll=20ms"]).await;
    let ana = Client::admin(&node);
    let mut stream = ana.follow("rooms=division:north").await;
    // The pump's connection ends, and no other takes its place.
    sql(&mut conn, "alter role counted connection limit 0").await;
    let pump = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where usename = 'counted' and query like '%array(select fresh.xact%'";
    let disconnected = async {
        while ana.metrics().await["crewcast_pump_connected"] != 0.0 {
            number(&mut conn, pump).await;
        }
    };
    timeout(PATIENCE, disconnected).await.expect("the pump's connection ends");
    let problem = probed(&ana, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(problem["detail"].as_str().unwrap().contains("log is not read"), "{problem}");
    // Nothing else is wrong.
    ana.read("/v1/divisions").await;
    sql(&mut conn, "alter role counted connection limit -1").await;
    probed(&ana, StatusCode::OK).await;
    ana.project("north").await;
    stream.expect("project:created").await;
    node.stop().await;
}
