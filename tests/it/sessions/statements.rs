//! The statements about sessions: few and fast.

use crewcast::auth::session::{BEGIN, END, LOOK, READ, RENEWED, REPLACE, SWEEP};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{own, sign_in, until, until_counted};
use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, connect, database, server, sql, token},
};

/// Whether a statement waits for the lock. Databases that are copies have their tables under the same numbers.
const IS_WAITED_FOR: &str = "exists (
    select from pg_locks join pg_database on pg_database.oid = database
    where not granted and relation = 'crewcast.sessions'::regclass and datname = current_database())";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_that_come_at_once_share_a_statement_and_one_too_many_is_told_to_come_back() {
    const BROWSERS: usize = 100;
    let url = database().await;
    let waiting = format!("--joins-waiting-max={}", BROWSERS - 1);
    let server = server(&url, &[&waiting, "--session-check=1h"]).await;
    let (mut lock, mut watch) = (connect(&url).await, connect(&url).await);
    let mut browsers = Vec::new();
    for nth in 0..BROWSERS {
        let cookie = sign_in(&Client::new(&server, &token(&format!("u{nth}"), &[])), "").await;
        browsers.push(own(&server, &cookie));
    }
    sql(&mut lock, "begin").await;
    sql(&mut lock, "lock table crewcast.sessions in access exclusive mode").await;
    let open = |nth: usize| {
        let browser = browsers[nth].clone();
        tokio::spawn(async move { browser.stream("", "").await.expect("stream:open").await.1["user"]["id"].clone() })
    };
    let mut streams = vec![open(0)];
    until(&mut watch, IS_WAITED_FOR).await;
    streams.extend((1..BROWSERS).map(open));
    let nobody = Client::nobody(&server);
    until_counted(&nobody, "crewcast_sessions_waiting", (BROWSERS - 1) as f64).await;
    let mut told = browsers[0].stream("", "").await;
    assert_eq!(told.expect("stream:closing").await.1["reason"], "overload");
    let (status, problem) = browsers[0].send(Method::GET, "/v1/me", Value::Null).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("overloaded")));
    sql(&mut lock, "rollback").await;
    for (nth, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.await.unwrap(), json!(format!("u{nth}")), "each gets its own");
    }
    assert_eq!(nobody.metrics().await["crewcast_session_statements_total"], 2.0);
    server.stop().await;
}

/// Sessions with the digests of the numbers from 1 to `n`, good for an hour.
async fn insert(conn: &mut PgConnection, n: usize) {
    let values = "sha256(n::text::bytea), md5(n::text)::uuid, 'u' || n, '{}', now() + interval '1 hour'";
    let columns = "(digest, id, sub, caller, ends_at)";
    sql(conn, &format!("insert into crewcast.sessions {columns} select {values} from generate_series(1, {n}) n")).await;
}

#[tokio::test]
async fn a_few_of_many_sessions_are_found_by_index() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let digests = "array[sha256('7'), sha256('77'), sha256('777'), sha256('unknown')]";
    let ids = "array[md5('7'), md5('77'), md5('777'), md5('unknown')]::uuid[]";
    let replace = "uuid, jsonb, timestamptz";
    let begin = |sub: &str, cookie: &str, most: i64, rows| {
        let new = format!("sha256('new'), md5('new')::uuid, '{sub}', '{{}}', now() + interval '1 hour'");
        let types = "bytea, uuid, text, jsonb, timestamptz, bytea, bigint";
        Statement::new(BEGIN, types, format!("{new}, {cookie}, {most}")).gives(rows)
    };
    let statements = [
        Statement::new(READ, "bytea[]", digests).gives(3),
        Statement::new(LOOK, "uuid[]", ids).gives(3),
        Statement::new(RENEWED, "uuid[]", ids).gives(3),
        Statement::new(REPLACE, replace, "md5('7')::uuid, '{}', now()").gives(1),
        Statement::new(REPLACE, replace, "md5('unknown')::uuid, '{}', now()").gives(0),
        Statement::new(END, "bytea[]", digests).gives(0),
        Statement::new(SWEEP, "float8, bigint", "3600, 10").gives(0),
        begin("u7", "null", 100, 1),
        begin("u7", "sha256('7')", 100, 1),
        begin("u8", "sha256('7')", 100, 1),
        begin("u7", "null", 1, 0),
    ];
    prepare(&mut conn, &statements).await;
    insert(&mut conn, 100_000).await;
    stay_on_indexes(&mut conn, &statements, "crewcast.sessions").await;
}
