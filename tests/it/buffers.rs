//! The log's statements read a bounded number of blocks, whatever plan Postgres keeps: however long the log is, and
//! whatever an open transaction holds.

use std::ops::Range;

use crewcast::log::{self, BODIES, FRESH_MAX, KEYS, NOW, OF_KINDS, PAGE_MAX, Snapshot, TRANSACTIONS};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::support::{connect, database, sql};

/// A connection with generic plans, made while the log is empty as a server's first ones are.
async fn reader(url: &str) -> PgConnection {
    let mut conn = connect(url).await;
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    sql(&mut conn, &format!("prepare now (bigint[], bigint[], bigint) as {NOW}")).await;
    sql(&mut conn, &format!("prepare keys (bigint[], bigint[], text[], bigint, bigint, bigint) as {KEYS}")).await;
    sql(&mut conn, &format!("prepare bodies (bigint, bigint[]) as {BODIES}")).await;
    sql(&mut conn, &format!("prepare transactions (bigint, bigint[], bigint, bigint) as {TRANSACTIONS}")).await;
    sql(&mut conn, &format!("prepare kinds (bigint, bigint[], text[], bigint) as {OF_KINDS}")).await;
    let range = std::slice::from_ref(&(1..2));
    for call in [&now(range), &keys(range, "topic:quiet", 1), &bodies(&[1]), &transactions(&[1]), &kinds(&[1])] {
        sql(&mut conn, &format!("execute {call}")).await;
    }
    conn
}

fn list(numbers: impl IntoIterator<Item = i64>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|n| n.to_string()).collect();
    format!("'{{{}}}'", numbers.join(","))
}

fn bounds(ranges: &[Range<u64>]) -> (String, String) {
    let ends = |end: fn(&Range<u64>) -> u64| list(ranges.iter().map(|range| end(range).cast_signed()));
    (ends(|range| range.start), ends(|range| range.end))
}

fn now(ranges: &[Range<u64>]) -> String {
    let (lo, hi) = bounds(ranges);
    format!("now({lo}, {hi}, {})", FRESH_MAX + 1)
}

fn keys(ranges: &[Range<u64>], room: &str, limit: i64) -> String {
    let (lo, hi) = bounds(ranges);
    format!("keys({lo}, {hi}, '{{{room}}}', 0, {limit}, {limit})")
}

fn bodies(seqs: &[i64]) -> String {
    format!("bodies(65536, {})", list(seqs.iter().copied()))
}

fn transactions(xacts: &[i64]) -> String {
    format!("transactions(65536, {}, 0, {PAGE_MAX})", list(xacts.iter().copied()))
}

fn kinds(xacts: &[i64]) -> String {
    format!("kinds(65536, {}, '{{membership:changed,project:updated}}', 1000)", list(xacts.iter().copied()))
}

/// Fails unless the call touches at most this many blocks and scans no table of the log's from end to end.
async fn touches(conn: &mut PgConnection, call: &str, most: i64) {
    let statement = format!("explain (analyze, buffers, format json) execute {call}");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(conn).await.unwrap();
    let root = &plan[0]["Plan"];
    let blocks = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| root[name].as_i64().unwrap());
    let name = &call[..call.len().min(40)];
    println!("{} blocks of {most}: {name}", blocks[0] + blocks[1]);
    assert!(blocks[0] + blocks[1] <= most, "{blocks:?}, more than {most}: {name}\n{root:#}");
    walked(root, name);
}

fn walked(node: &Value, name: &str) {
    let of_log = ["commits", "events", "event_rooms"].iter().any(|table| node["Relation Name"] == *table);
    assert!(!of_log || node["Node Type"] != "Seq Scan", "{name}: {node:#}");
    for child in node["Plans"].as_array().into_iter().flatten() {
        walked(child, name);
    }
}

async fn found(conn: &mut PgConnection, call: &str) -> Vec<i64> {
    let rows = sqlx::query(AssertSqlSafe(format!("execute {call}"))).fetch_one(conn).await.unwrap();
    rows.get("keys")
}

/// Events `from` to `to` of the room, `each` a transaction, with transaction ids from `xact` on. `append` would do the
/// same, many times slower.
async fn fill(conn: &mut PgConnection, seqs: Range<i64>, room: &str, xact: &str) {
    let (from, to) = (seqs.start, seqs.end - 1);
    let each = format!("from generate_series({from}, {to}) seq");
    sql(conn, &format!("insert into crewcast.commits select distinct {xact} {each} on conflict do nothing")).await;
    sql(
        conn,
        &format!(
            "insert into crewcast.events
             select seq, {xact}, clock_timestamp(), 'test:one', array[{room}], '{{\"n\": 1, \"text\": \"some\"}}' {each}"
        ),
    )
    .await;
    let hash = format!("hashtextextended({room}, 0)");
    sql(conn, &format!("insert into crewcast.event_rooms select {hash}, {xact}, seq {each}")).await;
    sql(conn, &format!("select setval('crewcast.event_seq', {to})")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_with_a_million_events_costs_the_readers_nothing() {
    let url = database().await;
    let mut conn = reader(&url).await;
    let mut others = connect(&url).await;
    let one = "select crewcast.publish('{topic:quiet}', 'test:one', '{}')";
    sql(&mut others, one).await;
    let before = log::look(&mut conn, &[]).await.unwrap().on_disk().snapshot;
    let mut giant = connect(&url).await;
    sql(&mut giant, "begin").await;
    fill(&mut giant, 1000..1_001_000, "'topic:quiet'", "pg_current_xact_id()::text::bigint").await;
    for _ in 0..100 {
        sql(&mut others, one).await;
    }
    for state in ["open", "rolled back"] {
        // As a pump would that has not looked since.
        let seen = log::look(&mut conn, &before.beyond()).await.unwrap().on_disk();
        assert_eq!(seen.fresh.len(), 100);
        touches(&mut conn, &now(&before.beyond()), 60).await;
        touches(&mut conn, &now(&seen.snapshot.beyond()), 60).await;
        touches(&mut conn, &transactions(&seen.fresh), 3000).await;
        touches(&mut conn, &kinds(&seen.fresh), 3000).await;
        let ranges = seen.snapshot.minus(&before);
        let call = keys(&ranges, "topic:quiet", 10_001);
        let quiet = found(&mut conn, &call).await;
        assert_eq!(quiet.len(), 100);
        touches(&mut conn, &bodies(&quiet), 1500).await;
        if state == "open" {
            touches(&mut conn, &call, 60).await;
            sql(&mut giant, "rollback").await;
            // The first reads after it clean up.
            let _ = log::look(&mut conn, &before.beyond()).await.unwrap();
        } else {
            // `found` above was the first read of the room after the rollback: it marked a million index entries as
            // dead. What is left, until vacuum takes them, is their index's pages, not their rows.
            touches(&mut conn, &call, 20_000).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_costs_a_reader_what_is_new_to_it() {
    const EVENTS: i64 = 1_000_000;
    const OFFSET: i64 = 1_000_000;
    let url = database().await;
    let mut conn = reader(&url).await;
    let mut others = connect(&url).await;
    // A log that was adopted: the ids of its past are all below those of this cluster.
    sql(&mut others, &format!("update crewcast.cluster set ofs = {OFFSET}, written = pg_current_xact_id()::xid")).await;
    // Three events a transaction, every 10,000th in the quiet room; then one transaction of 50,000.
    let rooms = "case when seq % 10000 = 0 then 'topic:quiet' else 'topic:hot' end";
    fill(&mut others, 1..EVENTS + 1, rooms, "(seq / 3 + 1)").await;
    fill(&mut others, EVENTS + 1..EVENTS + 50_001, "'topic:hot'", &OFFSET.to_string()).await;
    sql(&mut others, "select crewcast.publish('{topic:hot}', 'test:one', '{}')").await;
    let seen = log::look(&mut conn, &[]).await.unwrap().on_disk().snapshot;
    let empty = Snapshot::empty();
    // Two hundred writers were open when the client left, each at another place in the log.
    let scattered = (0..200).map(|n| 50_000 + n * 200..50_001 + n * 200).collect();
    let scattered = Snapshot::from_parts(90_000, scattered).unwrap();
    let idle = seen.beyond();
    for analyzed in [false, true] {
        if analyzed {
            sql(&mut others, "analyze crewcast.events, crewcast.commits, crewcast.event_rooms").await;
        }
        touches(&mut conn, &now(&idle), 60).await;
        let holes: Vec<_> = scattered.beyond().into_iter().take(200).collect();
        touches(&mut conn, &now(&holes), 3000).await;
        let whole = keys(&seen.minus(&empty), "topic:quiet", 10_001);
        assert_eq!(found(&mut conn, &whole).await.len(), 100);
        touches(&mut conn, &whole, 300).await;
        let missed = keys(&seen.minus(&scattered), "topic:quiet", 10_001);
        let quiet = found(&mut conn, &missed).await;
        assert!((10..=100).contains(&quiet.len()), "{}", quiet.len());
        touches(&mut conn, &missed, 3000).await;
        touches(&mut conn, &bodies(&quiet), 1500).await;
        touches(&mut conn, &keys(&seen.minus(&empty), "topic:hot", 10_001), 500).await;
        let mut fresh: Vec<i64> = (90_000..90_200).collect();
        touches(&mut conn, &transactions(&fresh), 6000).await;
        touches(&mut conn, &kinds(&fresh), 6000).await;
        fresh.push(OFFSET);
        touches(&mut conn, &transactions(&fresh), 6000).await;
    }
}
