//! The statements about tickets: few, fast, and never in each other's way.

use crewcast::auth::ticket::{MAKE, RENEW, REPLACE, SWEEP, USE};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::PgConnection;
use tokio::time::timeout;

use super::{until, until_counted};
use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, PATIENCE, connect, database, server, sql, token},
};

/// Holds up every statement about tickets, until the transaction ends.
async fn lock_tickets(conn: &mut PgConnection) {
    sql(conn, "begin").await;
    sql(conn, "lock table crewcast.tickets in access exclusive mode").await;
}

/// Whether a statement waits for that. Databases that are copies have their tables under the same numbers.
const IS_WAITED_FOR: &str = "exists (
    select from pg_locks join pg_database on pg_database.oid = database
    where not granted and relation = 'crewcast.tickets'::regclass and datname = current_database())";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_that_come_at_once_share_a_statement_and_one_too_many_is_told_to_come_back() {
    const BROWSERS: usize = 100;
    let url = database().await;
    let waiting = format!("--joins-waiting-max={}", BROWSERS - 1);
    let server = server(&url, &[&waiting]).await;
    let (mut lock, mut watch) = (connect(&url).await, connect(&url).await);
    let browser = Client::nobody(&server);
    let mut tickets = Vec::new();
    for nth in 0..BROWSERS {
        tickets.push(Client::new(&server, &token(&format!("u{nth}"), &[])).ticket().await);
    }
    lock_tickets(&mut lock).await;
    let open = |nth: usize| {
        let (browser, query) = (browser.clone(), format!("ticket={}", tickets[nth]));
        tokio::spawn(
            async move { browser.stream(&query, "").await.expect("stream:open").await.1["user"]["id"].clone() },
        )
    };
    let mut streams = vec![open(0)];
    until(&mut watch, IS_WAITED_FOR).await;
    streams.extend((1..BROWSERS).map(open));
    until_counted(&browser, "crewcast_tickets_waiting", (BROWSERS - 1) as f64).await;
    let mut told = browser.stream(&format!("ticket={}", tickets[0]), "").await;
    assert_eq!(told.expect("stream:closing").await.1["reason"], "overload");
    sql(&mut lock, "rollback").await;
    for (nth, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.await.unwrap(), json!(format!("u{nth}")), "each gets its own");
    }
    assert_eq!(browser.metrics().await["crewcast_ticket_statements_total"], 2.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_waits_for_no_ticket() {
    let url = database().await;
    let server = server(&url, &["--request-timeout=10m", "--drain-deadline=200ms"]).await;
    let (mut lock, mut watch) = (connect(&url).await, connect(&url).await);
    let query = format!("/events?ticket={}", Client::admin(&server).ticket().await);
    lock_tickets(&mut lock).await;
    let browser = Client::nobody(&server);
    // It comes back for as long as it is told to; at the end it is cut, or told so once more.
    let asking = tokio::spawn(async move {
        while let Ok(told) = browser.request(Method::GET, &query).send().await {
            assert_eq!(told.status(), StatusCode::OK);
        }
    });
    until(&mut watch, IS_WAITED_FOR).await;
    timeout(PATIENCE, server.stop()).await.expect("no statement is waited for");
    timeout(PATIENCE, asking).await.expect("nobody listens any more").unwrap();
}

/// Tickets with the digests of the numbers from 1 to `n`, good for an hour.
async fn insert(conn: &mut PgConnection, n: usize) {
    let columns = "(digest, sub, caller, good_until, ends_at)";
    let values = "sha256(n::text::bytea), 'u' || n, '{}', now() + interval '1 hour', now() + interval '1 day'";
    sql(conn, &format!("insert into crewcast.tickets {columns} select {values} from generate_series(1, {n}) n")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_use_and_renew_the_same_tickets_never_wait_for_each_other_in_a_circle() {
    const TICKETS: usize = 50;
    const TURNS: usize = 60;
    let url = database().await;
    let mut conn = connect(&url).await;
    insert(&mut conn, TICKETS).await;
    let digests: Vec<Vec<u8>> =
        sqlx::query_scalar("select digest from crewcast.tickets").fetch_all(&mut conn).await.unwrap();
    let nodes = (0..4).map(|node| {
        let (url, mut digests) = (url.clone(), digests.clone());
        async move {
            let mut conn = connect(&url).await;
            for turn in 0..TURNS {
                digests.rotate_left((node * 31 + turn) % TICKETS);
                if node % 2 == 0 {
                    digests.reverse();
                }
                let renew = sqlx::query(RENEW).bind(&digests).bind(600_f64);
                renew.execute(&mut conn).await.unwrap();
                let using = sqlx::query(USE).bind(&digests).bind(600_f64).bind(0_f64);
                assert_eq!(using.fetch_all(&mut conn).await.unwrap().len(), TICKETS);
            }
        }
    });
    nodes.collect::<tokio::task::JoinSet<()>>().join_all().await;
}

#[tokio::test]
async fn a_few_of_many_tickets_are_found_by_index() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let digests = "array[sha256('7'), sha256('77'), sha256('777'), sha256('unknown')]";
    let make = "bytea, text, jsonb, float8, timestamptz, bigint";
    let statements = [
        Statement::new(USE, "bytea[], float8, float8", format!("{digests}, 600, 0")).gives(3),
        Statement::new(RENEW, "bytea[], float8", format!("{digests}, 600")).gives(0),
        Statement::new(REPLACE, "bytea, jsonb, timestamptz, float8", "sha256('7'), '{}', now(), 600").gives(0),
        Statement::new(SWEEP, "float8, bigint", "3600, 10").gives(0),
        Statement::new(MAKE, make, "sha256('new'), 'u7', '{}', 60, now(), 1000").gives(1),
    ];
    prepare(&mut conn, &statements).await;
    insert(&mut conn, 100_000).await;
    stay_on_indexes(&mut conn, &statements, "crewcast.tickets").await;
}
