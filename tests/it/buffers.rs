//! The log's statements read a bounded number of blocks, whatever plan Postgres keeps: however long the log is, and
//! whatever an open transaction holds.

use std::ops::Range;

use crewcast::db::Conn;
use crewcast::log::{
    self, BODIES, FRESH_MAX, KEYS, LOOKED_MAX, NOW, NUMBERS, OF_KINDS, PAGE_MAX, Reader, Reading, STRIP, STRIPS, Scope,
    Snapshot, TRANSACTIONS,
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::support::{connect, database, own, sql};

/// A connection with generic plans, made while the log is empty as a server's first ones are.
async fn reader(url: &str) -> PgConnection {
    let mut conn = connect(url).await;
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    sql(&mut conn, &format!("prepare now (bigint[], bigint[], bigint) as {NOW}")).await;
    sql(&mut conn, &format!("prepare keys (bigint[], bigint[], text[], bigint, bigint, bigint) as {KEYS}")).await;
    sql(&mut conn, &format!("prepare bodies (bigint, bigint[]) as {BODIES}")).await;
    sql(&mut conn, &format!("prepare transactions (bigint, bigint[], bigint, bigint) as {TRANSACTIONS}")).await;
    sql(&mut conn, &format!("prepare kinds (bigint, bigint[], text[], bigint, bigint) as {OF_KINDS}")).await;
    sql(&mut conn, &format!("prepare numbers (bigint[], bigint[], bigint) as {NUMBERS}")).await;
    let strips = "bigint[], bigint[], text[], bigint, bigint, bigint";
    sql(&mut conn, &format!("prepare strips ({strips}) as {STRIPS}")).await;
    let strip = "bigint[], bigint[], bigint[], bigint[], bigint[]";
    sql(&mut conn, &format!("prepare strip ({strip}) as {STRIP}")).await;
    let range = std::slice::from_ref(&(1..2));
    let of_rooms = [keys(range, "topic:quiet", 1), strips_of(range, "a"), strip_of("a", (1, 1), 2)];
    let of_all = [now(range), bodies(&[1]), transactions(&[1]), numbers(&[1]), kinds(&[1])];
    let calls = of_rooms.into_iter().chain(of_all);
    for call in calls {
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

fn strips_of(ranges: &[Range<u64>], room: &str) -> String {
    let (lo, hi) = bounds(ranges);
    format!("strips({lo}, {hi}, '{{{room}}}', 0, 4096, {})", i64::MAX)
}

/// So many events of a room from this one on, which is a transaction and a number.
fn strip_of(room: &str, (xact, seq): (i64, i64), events: i64) -> String {
    let columns = [xact, seq, events, 0].map(|value| list([value])).join(", ");
    format!("strip(array[hashtextextended('{room}', 0)], {columns})")
}

fn numbers(xacts: &[i64]) -> String {
    let afters = list(xacts.iter().map(|_| 0));
    format!("numbers({}, {afters}, {})", list(xacts.iter().copied()), 32_768 / xacts.len())
}

fn kinds(xacts: &[i64]) -> String {
    format!(
        "kinds(65536, {}, '{{membership:changed,project:updated}}', 1000, {LOOKED_MAX})",
        list(xacts.iter().copied())
    )
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
    let (mut conn, mut own) = (reader(&url).await, own(&url).await);
    let mut others = connect(&url).await;
    let one = "select crewcast.publish('{topic:quiet}', 'test:one', '{}')";
    sql(&mut others, one).await;
    let before = log::look(&mut own, &[]).await.unwrap().on_disk().snapshot;
    let mut giant = connect(&url).await;
    sql(&mut giant, "begin").await;
    fill(&mut giant, 1000..1_001_000, "'topic:quiet'", "pg_current_xact_id()::text::bigint").await;
    for _ in 0..100 {
        sql(&mut others, one).await;
    }
    for state in ["open", "rolled back"] {
        // As a pump would that has not looked since.
        let seen = log::look(&mut own, &before.beyond()).await.unwrap().on_disk();
        assert_eq!(seen.fresh.len(), 100);
        touches(&mut conn, &now(&before.beyond()), 60).await;
        touches(&mut conn, &now(&seen.snapshot.beyond()), 60).await;
        touches(&mut conn, &transactions(&seen.fresh), 3000).await;
        touches(&mut conn, &numbers(&seen.fresh), 1000).await;
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
            let _ = log::look(&mut own, &before.beyond()).await.unwrap();
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
    let (mut conn, mut own) = (reader(&url).await, own(&url).await);
    let mut others = connect(&url).await;
    // A log that was adopted: the ids of its past are all below those of this cluster.
    sql(&mut others, &format!("update crewcast.cluster set ofs = {OFFSET}, written = pg_current_xact_id()::xid")).await;
    // Three events a transaction, every 10,000th in the quiet room; then one transaction of 50,000.
    let rooms = "case when seq % 10000 = 0 then 'topic:quiet' else 'topic:hot' end";
    fill(&mut others, 1..EVENTS + 1, rooms, "(seq / 3 + 1)").await;
    fill(&mut others, EVENTS + 1..EVENTS + 50_001, "'topic:hot'", &OFFSET.to_string()).await;
    sql(&mut others, "select crewcast.publish('{topic:hot}', 'test:one', '{}')").await;
    let seen = log::look(&mut own, &[]).await.unwrap().on_disk().snapshot;
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
        touches(&mut conn, &numbers(&fresh), 3000).await;
        let many: Vec<i64> = (90_000..94_096).collect();
        touches(&mut conn, &numbers(&many), 20_000).await;
        // The index of a million events, and of it a few thousand.
        touches(&mut conn, &strips_of(&seen.minus(&empty), "topic:hot"), 20_000).await;
        touches(&mut conn, &strips_of(&seen.minus(&empty), "topic:quiet"), 300).await;
        touches(&mut conn, &strip_of("topic:hot", (100_000, 299_999), 4096), 300).await;
        touches(&mut conn, &strip_of("topic:hot", (OFFSET, EVENTS + 30_000), 4096), 300).await;
    }
}

#[tokio::test]
async fn a_transaction_of_many_events_is_not_looked_through_for_what_some_of_them_say() {
    const EVENTS: i64 = 3 * LOOKED_MAX;
    let url = database().await;
    let (mut conn, mut own) = (reader(&url).await, own(&url).await);
    let mut others = connect(&url).await;
    fill(&mut others, 1..EVENTS + 1, "'topic:hot'", "7").await;
    let one_in = |xact: i64, seq: i64| {
        format!(
            "insert into crewcast.events values ({seq}, {xact}, now(), 'membership:changed', '{{topic:hot}}', '{{}}')"
        )
    };
    sql(&mut others, &one_in(7, EVENTS + 1)).await;
    sql(&mut others, &one_in(8, EVENTS + 2)).await;
    // A third of what there is to look at.
    touches(&mut conn, &kinds(&[7]), LOOKED_MAX / 20).await;
    let kinds = ["membership:changed"];
    let found = log::of_kinds(&mut own, &[8, 9], &kinds, 65_536, 1000).await.unwrap().unwrap();
    assert_eq!(found.iter().map(|event| event.seq).collect::<Vec<_>>(), [EVENTS + 2]);
    assert_eq!(log::of_kinds(&mut own, &[9], &kinds, 65_536, 1000).await.unwrap(), Some(Vec::new()));
    for fresh in [&[7][..], &[8, 7]] {
        assert_eq!(log::of_kinds(&mut own, fresh, &kinds, 65_536, 1000).await.unwrap(), None, "it is not known");
    }
    assert_eq!(
        log::of_kinds(&mut own, &[8], &kinds, 65_536, 1).await.unwrap(),
        None,
        "as many as may be told, or more"
    );
}

/// How often an index was asked, and how much it said.
async fn asked(conn: &mut Conn, index: &str) -> (i64, i64) {
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut *conn).await.unwrap();
    let statement = "select idx_scan, idx_tup_read from pg_stat_user_indexes where indexrelname = $1";
    sqlx::query_as(statement).bind(index).fetch_one(conn).await.unwrap()
}

/// The numbers of all that there is to read, in order.
async fn read(reader: &mut Reader, conn: &mut Conn) -> Vec<i64> {
    let mut read = Vec::new();
    loop {
        let page = reader.page(conn).await.unwrap();
        read.extend(page.events.iter().map(|event| event.seq));
        if page.last {
            return read;
        }
    }
}

/// A read of all transactions up to an id, of a log that was adopted: this cluster's own are all above it.
async fn from_the_beginning(conn: &mut Conn, xmax: u64) -> Reading {
    let adopted = format!("update crewcast.cluster set ofs = {xmax}, written = pg_current_xact_id()::xid");
    sqlx::query(AssertSqlSafe(adopted)).execute(&mut *conn).await.unwrap();
    let to = Snapshot::from_parts(xmax, Vec::new()).unwrap();
    Reading::new(log::look(conn, &[]).await.unwrap().on_disk().epoch, Snapshot::empty(), to).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_of_a_room_goes_through_its_index_three_times_however_long_it_is() {
    const EVENTS: i64 = 250_000;
    let url = database().await;
    let (mut conn, mut own) = (connect(&url).await, own(&url).await);
    // One transaction was open all the time, and each tenth event is in another room as well.
    fill(&mut conn, 1..EVENTS + 1, "'topic:hot'", "(case when seq % 1000 = 0 then 500 else 1000 + seq / 2 end)").await;
    let other = "insert into crewcast.event_rooms select hashtextextended('topic:other', 0), xact, seq from crewcast.events where seq % 10 = 0";
    sql(&mut conn, other).await;
    sql(&mut conn, "update crewcast.events set rooms = '{topic:hot,topic:other}' where seq % 10 = 0").await;
    sql(&mut conn, "vacuum analyze crewcast.events, crewcast.event_rooms").await;
    let reading = from_the_beginning(&mut own, 1_000_000).await;
    let rooms = ["topic:hot", "topic:other"].map(str::to_owned);
    let mut reader = Reader::resume(reading, 100, Scope::Rooms(rooms.to_vec()), 65_536);
    let before = asked(&mut own, "event_rooms_pkey").await;
    let numbers = read(&mut reader, &mut own).await;
    assert!(numbers.iter().copied().eq(101..=EVENTS), "{} of {EVENTS}", numbers.len());
    let after = asked(&mut own, "event_rooms_pkey").await;
    let said = after.1 - before.1;
    assert!(said <= 3 * (EVENTS + EVENTS / 10), "{said}");
}

#[tokio::test]
async fn catching_up_asks_for_each_transaction_and_each_event_about_once_however_many_there_are() {
    let url = database().await;
    let (mut conn, mut own) = (connect(&url).await, own(&url).await);
    let mut seq = 1;
    // Many small ones, few large ones, and both, each the other way round as well.
    for (first, xact, transactions, events) in [
        (1_000, "1000 + seq % 12000", 12_000, 12_000),
        (20_000, "20000 + seq % 3", 3, 30_000),
        (30_000, "30000 + seq * 3 / 31000 % 3", 3, 30_000),
        (40_000, "case when seq % 2 = 0 then 40000 else 40001 + seq / 2 % 5000 end", 5001, 20_000),
        (50_000, "50000 + seq % 400", 400, 20_000),
    ] {
        fill(&mut conn, seq..seq + events, "'topic:hot'", &format!("({xact})")).await;
        let fresh: Vec<i64> = sqlx::query_scalar("select xact from crewcast.commits where xact >= $1 order by xact")
            .bind(first)
            .fetch_all(&mut conn)
            .await
            .unwrap();
        assert!(fresh.len().abs_diff(transactions) <= 1, "{} of {transactions}", fresh.len());
        let reading = from_the_beginning(&mut own, 100_000).await;
        let mut reader = Reader::new(reading, Scope::All(fresh), 65_536);
        let before = asked(&mut own, "events_by_xact").await;
        let numbers = read(&mut reader, &mut own).await;
        assert!(numbers.iter().copied().eq(seq..seq + events), "{xact}: {} of {events}", numbers.len());
        let after = asked(&mut own, "events_by_xact").await;
        let (asked, said) = (after.0 - before.0, after.1 - before.1);
        println!("{xact}: asked {asked}, said {said}");
        let most = transactions as i64 + events / 4;
        assert!(asked <= most && said <= 2 * events, "{xact}: asked {asked} times, which said {said}");
        seq += events;
    }
}
