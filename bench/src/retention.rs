//! Retention: what is old is deleted while events come at a steady pace, in turns with the same log that keeps everything.
//!
//! Each of the two has a Postgres of its own, which runs only in its turn: neither's vacuum is in the other's figures.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::{
    Bench,
    http::Http,
    load::latencies,
    machine::{now_ns, pause},
    paced::milliseconds,
    publish::room,
    server::Ours,
    sql::Sql,
    table::{Bar, Row, short},
};

/// Events of one transaction, and the time from one to the next: 1,000 events a second.
const BATCH: u64 = 10;
const EVERY: Duration = Duration::from_millis(10);

const ROOMS: u64 = 200;
const PAD: usize = 60;

/// Between two looks at a room's history and at the sizes on disk.
const LOOK: Duration = Duration::from_secs(5);

/// The log's tables. What is in them is all that grows with the events.
const TABLES: [&str; 3] = ["events", "event_rooms", "commits"];

/// What was seen of one of the two.
struct Seen {
    /// How long transactions took, in nanoseconds.
    commits: Histogram<u64>,
    /// The most that the tables and their indexes took, in bytes.
    bytes: f64,
    /// Scans of whole tables.
    scans: f64,
    published: u64,
}

/// Size on disk beside what is kept, and what deletion costs the writers.
pub(crate) fn retention(bench: &Bench) -> Result<Vec<Row>> {
    let kept = bench.kept;
    let turn = bench.written / u32::try_from(bench.rounds())?;
    ensure!(turn >= 2 * kept, "a turn of {} s must be twice as long as events are kept", turn.as_secs());
    let (age, every) = (format!("--retention={}s", kept.as_secs()), kept / 5);
    let every = format!("--floor-every={}ms", every.as_millis());
    let both = [("kept", [age.as_str(), &every]), ("grown", ["--retention=3650d", &every])];
    let mut seen = [Seen::new()?, Seen::new()?];
    let mut packed = f64::NAN;
    for round in 1..=bench.rounds() {
        for ((data, settings), seen) in both.iter().zip(&mut seen) {
            let server = Ours::start(&bench.place, data, settings)?;
            write(&server, bench, turn, kept, seen)?;
            let mut sql = server.sql()?;
            let is_last = round == bench.rounds() && *data == "kept";
            bench.say(&format!(
                "retention, round {round}, {data}: {} MB on disk, p50 {} ms, p99 {} ms, {} events deleted",
                short(size(&mut sql, "crewcast")? / 1e6),
                short(milliseconds(&seen.commits, 50.0)),
                short(milliseconds(&seen.commits, 99.0)),
                sql.text("select deleted::text from crewcast.retention")?,
            ));
            if is_last {
                packed = pack(&mut sql)?;
            }
        }
    }
    Ok(rows(&seen, packed, kept, turn))
}

fn rows([kept, grown]: &[Seen; 2], packed: f64, age: Duration, turn: Duration) -> Vec<Row> {
    let load = format!(
        "1,000 events/s from SQL, {BATCH} a transaction, events kept {} s, turns of {} s",
        age.as_secs(),
        turn.as_secs()
    );
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: figure.into(),
        unit,
        ours,
        baseline,
        bar,
        note,
    };
    let time = |percentile| (milliseconds(&kept.commits, percentile), Some(milliseconds(&grown.commits, percentile)));
    let ((p50, base50), (p99, base99)) = (time(50.0), time(99.0));
    vec![
        row(
            "retention: the log on disk",
            "MB",
            kept.bytes / 1e6,
            Some(packed / 1e6),
            Bar::RatioAtMost(1.6),
            format!(
                "tables and indexes, the most there ever was; baseline: what is above the floor, freshly loaded; {load}"
            ),
        ),
        row(
            "retention: a transaction, p50",
            "ms",
            p50,
            base50,
            Bar::None,
            format!(
                "baseline: without deletion; {} and {} events",
                short(kept.published as f64),
                short(grown.published as f64)
            ),
        ),
        row("retention: a transaction, p99", "ms", p99, base99, Bar::RatioAtMost(1.2), "the same".into()),
        row(
            "retention: whole tables read",
            "",
            kept.scans,
            None,
            Bar::Exactly(0.0),
            "by Postgres's own count, with a room's history every 5 s".into(),
        ),
    ]
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self { commits: latencies()?, bytes: 0.0, scans: 0.0, published: 0 })
    }
}

/// Publishes for the time of a turn. What is measured begins when events are as old as they get.
fn write(server: &Ours, bench: &Bench, turn: Duration, warm: Duration, seen: &mut Seen) -> Result<()> {
    let (mut writer, mut sql) = (server.sql()?, server.sql()?);
    let history = format!("/v1/rooms/{}/events?limit=100", room(0));
    let (began, mut looked, mut scans) = (Instant::now(), Instant::now(), None);
    let first = seen.published;
    while began.elapsed() < turn {
        let nth = u32::try_from((seen.published - first) / BATCH)?;
        pause((EVERY * nth).saturating_sub(began.elapsed()));
        let sent = Instant::now();
        writer.publish("topic:r", ROOMS, seen.published, BATCH, now_ns(), PAD)?;
        seen.published += BATCH;
        if began.elapsed() < warm {
            continue;
        }
        seen.commits.saturating_record(u64::try_from(sent.elapsed().as_nanos())?);
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            Http::connect(&server.process.address, &bench.place.token)?.send("GET", &history, "")?;
            seen.bytes = seen.bytes.max(size(&mut sql, "crewcast")?);
            scans.get_or_insert(scanned(&mut sql)?);
        }
    }
    seen.scans += scanned(&mut sql)? - scans.unwrap_or(0.0);
    Ok(())
}

/// Bytes of the log's tables in a schema, with their indexes.
fn size(sql: &mut Sql, schema: &str) -> Result<f64> {
    let each = TABLES.map(|table| format!("pg_total_relation_size('{schema}.{table}')"));
    Ok(sql.text(&format!("select ({})::text", each.join(" + ")))?.parse()?)
}

/// How often one of the log's tables was read from end to end.
fn scanned(sql: &mut Sql) -> Result<f64> {
    let names = TABLES.map(|table| format!("'{table}'")).join(", ");
    let scans = "select sum(seq_scan)::text from pg_stat_user_tables where schemaname = 'crewcast' and relname in";
    Ok(sql.text(&format!("{scans} ({names})"))?.parse()?)
}

/// Bytes of what is above the floor, loaded into tables of its own in the order that it came in.
fn pack(sql: &mut Sql) -> Result<f64> {
    sql.run("create schema packed")?;
    for (table, order) in TABLES.iter().zip(["seq", "seq", "xact"]) {
        sql.run(&format!(
            "create table packed.{table} (like crewcast.{table} including all);
             insert into packed.{table} select * from crewcast.{table} order by {order}"
        ))?;
    }
    // Some of it is below the floor, and waits to be deleted.
    let above = "select (1 - greatest(passed - deleted, 0)::float8 / (select count(*) from packed.events))::text
                 from crewcast.retention";
    let above: f64 = sql.text(above)?.parse()?;
    Ok(size(sql, "packed")? * above)
}
