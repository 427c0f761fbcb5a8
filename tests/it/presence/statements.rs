//! The statements of presence: few, and on indexes however they are planned.

use crewcast::hub::presence::{END, FORGET, GONE, NODE, NODES, PUT, ROWS, SWEEP};
use sqlx::PgConnection;

use super::{Tab, person, until_rows};
use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, connect, database, number, server, sql},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_connect_share_statements() {
    const PEOPLE: usize = 1000;
    let url = database().await;
    let server = server(&url, &[]).await;
    let first = Tab::open(&person(&server, "ana"), "company").await;
    let before = Client::nobody(&server).metrics().await["crewcast_presence_statements_total"];
    let begun = tokio::time::Instant::now();
    let opening = (0..PEOPLE).map(|nth| {
        let client = person(&server, &format!("u{nth}"));
        async move { client.stream("", "").await }
    });
    let mut opening: tokio::task::JoinSet<_> = opening.collect();
    let mut streams = Vec::new();
    while let Some(stream) = opening.join_next().await {
        streams.push(stream.unwrap());
    }
    let mut conn = connect(&url).await;
    until_rows(&mut conn, PEOPLE as i64 + 1).await;
    let after = Client::nobody(&server).metrics().await["crewcast_presence_statements_total"];
    let (statements, elapsed) = (after - before, begun.elapsed());
    println!("{statements} statements for {PEOPLE} streams in {elapsed:?}");
    assert!(statements < elapsed.as_secs_f64() * 10.0 + 5.0, "{statements} in {elapsed:?}");
    drop(first);
    server.stop().await;
}

/// Nodes with a thousand streams each.
async fn insert(conn: &mut PgConnection, nodes: i64) {
    let columns = "(key, name, beat, batch, ended, beat_at)";
    let beat_at = "now() - make_interval(secs => 1000 * (n % 2))";
    let values = format!("select n, 'x', 1, 1, false, {beat_at} from generate_series(1, {nodes}) n");
    sql(conn, &format!("insert into crewcast.nodes {columns} {values}")).await;
    let columns = "(stream, node, batch, sub, rooms, is_idle)";
    let stream = "lpad(to_hex(n * 1000 + m), 32, '0')::uuid";
    let from = format!("generate_series(1, {nodes}) n, generate_series(1, 1000) m");
    let values = format!("select {stream}, n, m, 'u' || m, '{{company}}', false from {from}");
    sql(conn, &format!("insert into crewcast.presence {columns} {values}")).await;
}

#[tokio::test]
async fn a_few_of_many_streams_are_found_by_index() {
    let url = database().await;
    let mut conn = connect(&url).await;
    let streams = "array['00000000-0000-0000-0000-000000002710', '00000000-0000-0000-0000-000000002711']::uuid[]";
    let one = "array[null]";
    let facts = format!("{streams}, '{{a,b}}', '{{a,b}}', '{{a,b}}', '{{\"\",\"\"}}', '{{t,f}}'");
    let facts = format!("{facts}, {one}::bigint[], {one}, {one}, {one}, {one}::float8[]");
    let types =
        "bigint, bigint, uuid[], text[], text[], text[], text[], bool[], bigint[], text[], text[], text[], float8[]";
    // Of the nodes, which are few, all are read.
    let statements = [
        Statement::new(NODE, "bigint, text, bigint, bigint, bool", "7, 'x', 1, 1, false"),
        Statement::new(PUT, types, format!("10, 9, {facts}")),
        Statement::new(GONE, "bigint, bigint, uuid[]", format!("10, 9, {streams}")),
        Statement::new(FORGET, "bigint, float8", "10, 60"),
        Statement::new(ROWS, "bigint, bigint", "10, 990"),
        Statement::new(END, "bigint, bigint", "100000, 9"),
        Statement::new(NODES, "bigint", "7").may_read_all(),
        Statement::new(SWEEP, "float8, bigint", "100000, 10").may_read_all(),
    ];
    sql(&mut conn, "insert into crewcast.nodes values (10, 'x', 1, 1, false)").await;
    prepare(&mut conn, &statements).await;
    sql(&mut conn, "delete from crewcast.nodes").await;
    sql(&mut conn, "delete from crewcast.presence").await;
    insert(&mut conn, 50).await;
    sql(&mut conn, "insert into crewcast.nodes values (100000, 'x', 1, 1, false)").await;
    stay_on_indexes(&mut conn, &statements, "crewcast.nodes, crewcast.presence").await;
}

#[tokio::test]
async fn a_dead_node_is_swept_with_all_that_it_wrote() {
    let url = database().await;
    let mut conn = connect(&url).await;
    insert(&mut conn, 4).await;
    let sweep = sqlx::query(SWEEP).bind(300_f64).bind(5000_i64);
    assert_eq!(sweep.execute(&mut conn).await.unwrap().rows_affected(), 2);
    assert_eq!(number(&mut conn, "select count(*) from crewcast.nodes").await, 2);
    assert_eq!(number(&mut conn, "select count(distinct node) from crewcast.presence").await, 2);
}
