//! The statements about sessions: few and fast.

use crewcast::auth::session::{BEGIN, END, LOOK, READ, RENEWED, REPLACE, SWEEP};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{own, sign_in, until, until_counted};
use crate::support::{Client, connect, database, server, sql, token};

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
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    let digests = "array[sha256('7'), sha256('77'), sha256('777'), sha256('unknown')]";
    let ids = "array[md5('7'), md5('77'), md5('777'), md5('unknown')]::uuid[]";
    let begin = "bytea, uuid, text, jsonb, timestamptz, bytea, bigint";
    let new = "sha256('new'), md5('new')::uuid";
    let statements = [
        (READ, "bytea[]", digests.to_owned(), 3),
        (LOOK, "uuid[]", ids.to_owned(), 3),
        (RENEWED, "uuid[]", ids.to_owned(), 3),
        (REPLACE, "uuid, jsonb, timestamptz", "md5('7')::uuid, '{}', now()".to_owned(), 1),
        (REPLACE, "uuid, jsonb, timestamptz", "md5('unknown')::uuid, '{}', now()".to_owned(), 0),
        (END, "bytea[]", digests.to_owned(), 0),
        (SWEEP, "float8, bigint", "3600, 10".to_owned(), 0),
        (BEGIN, begin, format!("{new}, 'u7', '{{}}', now() + interval '1 hour', null, 100"), 1),
        (BEGIN, begin, format!("{new}, 'u7', '{{}}', now() + interval '1 hour', sha256('7'), 100"), 1),
        (BEGIN, begin, format!("{new}, 'u8', '{{}}', now() + interval '1 hour', sha256('7'), 100"), 1),
        (BEGIN, begin, format!("{new}, 'u7', '{{}}', now() + interval '1 hour', null, 1"), 0),
    ];
    // The plans are made while the table is empty, as a server's first ones are.
    for (nth, (statement, types, values, _)) in statements.iter().enumerate() {
        sql(&mut conn, &format!("prepare s{nth} ({types}) as {statement}")).await;
        sql(&mut conn, "begin").await;
        sql(&mut conn, &format!("explain analyze execute s{nth} ({values})")).await;
        sql(&mut conn, "rollback").await;
    }
    insert(&mut conn, 100_000).await;
    for analyzed in [false, true] {
        if analyzed {
            sql(&mut conn, "analyze crewcast.sessions").await;
        }
        for (nth, (statement, _, values, rows)) in statements.iter().enumerate() {
            sql(&mut conn, "begin").await;
            let explain = format!("explain (analyze, buffers, format json) execute s{nth} ({values})");
            let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut conn).await.unwrap();
            sql(&mut conn, "rollback").await;
            let root = &plan[0]["Plan"];
            assert_eq!(root["Actual Rows"], *rows, "{statement} {root:#}");
            let blocks = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| root[name].as_i64().unwrap());
            let blocks = blocks[0] + blocks[1];
            println!("{blocks} blocks, {} ms", plan[0]["Execution Time"]);
            assert!(blocks < 200 && !root.to_string().contains("Seq Scan"), "{blocks} {statement}\n{root:#}");
        }
    }
}
