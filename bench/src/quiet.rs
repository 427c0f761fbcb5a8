//! A quiet room in a long log: coming back costs what was missed, not what was skipped.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    Bench,
    contest::{Contestant, publisher_sql},
    http,
    publish::room,
    server::Ours,
    sql::Sql,
    table::{Bar, Row, median, short},
};

/// Events of the quiet room that the client has missed.
const MISSED: u64 = 100;
/// Parts of the log, with some of the quiet room's events after each.
const PARTS: u64 = 10;
/// Events of one transaction of the busy room.
const TRANSACTION: u64 = 1000;
/// Transactions between two words about how far it is.
const TRANSACTIONS_SAID: u64 = 500;
const SHORT_LOG: u64 = 10_000;
const SAMPLES: usize = 30;

/// Time to come back to a quiet room of a long log, also beside a large transaction that is open, beside a short log.
pub(crate) fn quiet_room(bench: &Bench) -> Result<Vec<Row>> {
    let from_short = fill(bench, "short", SHORT_LOG)?;
    let from_long = fill(bench, "long", bench.log_events)?;
    // Nothing of what was missed is in the memory of servers that start only now.
    let short_log = Ours::start(&bench.place, "short", &[])?;
    let long_log = Ours::start(&bench.place, "long", &[])?;
    let both = [(&short_log, from_short.as_str()), (&long_log, from_long.as_str())];
    let idle = compare(bench, both)?;
    let open_events = (bench.log_events / 10).clamp(1, 1_000_000);
    let mut giant = open_transaction(bench, &long_log, open_events)?;
    let beside = compare(bench, both)?;
    giant.run("rollback")?;
    let row = |figure: &str, [short, long]: [f64; 2], note: String| Row {
        figure: figure.into(),
        unit: "ms",
        ours: long,
        baseline: Some(short),
        bar: Bar::RatioAtMost(1.5),
        note,
    };
    let samples = bench.samples(SAMPLES);
    let log = short(bench.log_events as f64);
    Ok(vec![
        row(
            "quiet room of a long log",
            idle,
            format!(
                "{MISSED} events missed among {log}, from request to last event, median of {samples}; \
                 baseline: a log of {}; servers just started",
                short(SHORT_LOG as f64)
            ),
        ),
        row(
            "quiet room, with a transaction open",
            beside,
            format!("the same beside {} uncommitted events of that room", short(open_events as f64)),
        ),
    ])
}

/// Makes a log: `events` of a busy room, and among them those of the quiet one. Returns an id from before all of it.
fn fill(bench: &Bench, data: &str, events: u64) -> Result<String> {
    // It need not look at what it is not asked for.
    let server = Ours::start(&bench.place, data, &["--poll=1h"])?;
    let mut fleet = Contestant::Ours.fleet()?.keeping_ids();
    fleet.open(&server.process.address, Contestant::Ours.requests(bench, 1, 1))?;
    let id = fleet.ids().concat();
    drop(fleet);
    let (mut sql, mut quiet) = (server.sql()?, publisher_sql(&server, 1, 60)?);
    let (began, mut filled) = (Instant::now(), 0);
    for part in 0..PARTS {
        let end = (part + 1) * events / PARTS / TRANSACTION;
        while filled < end {
            let transactions = (end - filled).min(TRANSACTIONS_SAID);
            sql.run(&busy(transactions))?;
            filled += transactions;
            if events > SHORT_LOG {
                let (done, time) = (short((filled * TRANSACTION) as f64), began.elapsed().as_secs());
                bench.say(&format!("quiet room: {done} of {} events after {time} s", short(events as f64)));
            }
        }
        quiet.publish(part * MISSED / PARTS, MISSED / PARTS)?;
    }
    // As it would be after a while; and nothing else then runs in the background.
    sql.run("vacuum analyze crewcast.commits, crewcast.events, crewcast.event_rooms")?;
    sql.run("checkpoint")?;
    Ok(id)
}

/// Fills the busy room. `crewcast.append` would do the same, many times slower.
fn busy(transactions: u64) -> String {
    format!(
        "do $$
         declare xid bigint;
         begin
             for n in 1..{transactions} loop
                 xid := pg_current_xact_id()::text::bigint + (select ofs from crewcast.cluster);
                 insert into crewcast.commits values (xid);
                 {};
                 commit;
             end loop;
         end $$",
        insert("topic:busy", TRANSACTION, "xid")
    )
}

fn insert(room: &str, events: u64, xid: &str) -> String {
    format!(
        "with made as (
             insert into crewcast.events
             select nextval('crewcast.event_seq'), {xid}, clock_timestamp(), 'bench:tick', '{{{room}}}',
                    '{{\"text\": \"as long as a small change of a project would be\"}}'
             from generate_series(1, {events})
             returning seq)
         insert into crewcast.event_rooms select hashtextextended('{room}', 0), {xid}, seq from made"
    )
}

/// Begins a transaction with events of the quiet room, and commits another one after it, so that it lies inside of what
/// has been seen.
fn open_transaction(bench: &Bench, server: &Ours, events: u64) -> Result<Sql> {
    bench.say(&format!("quiet room: a transaction with {} events", short(events as f64)));
    let mut giant = server.sql()?;
    giant.run("begin")?;
    let xid = giant.text("select (pg_current_xact_id()::text::bigint + ofs)::text from crewcast.cluster")?;
    giant.run(&format!("insert into crewcast.commits values ({xid})"))?;
    giant.run(&insert(&room(0), events, &xid))?;
    server.sql()?.run("select crewcast.publish('{topic:busy}', 'bench:tick', '{}')")?;
    Ok(giant)
}

/// Median milliseconds to come back to each, taken in turns.
fn compare(bench: &Bench, both: [(&Ours, &str); 2]) -> Result<[f64; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..bench.samples(SAMPLES) {
        for ((server, id), times) in both.iter().zip(&mut times) {
            times.push(come_back(bench, server, id)?.as_secs_f64() * 1000.0);
        }
    }
    let medians = times.map(median);
    bench.say(&format!("quiet room: {} ms, in the long log {} ms", short(medians[0]), short(medians[1])));
    Ok(medians)
}

fn come_back(bench: &Bench, server: &Ours, id: &str) -> Result<Duration> {
    let mut fleet = Contestant::Ours.fleet()?;
    let began = Instant::now();
    fleet.open(&server.process.address, [http::events(&room(0), &bench.place.token, id)])?;
    fleet.wait_for_each(MISSED)?;
    let time = began.elapsed();
    bench.count_faults(&fleet);
    Ok(time)
}
