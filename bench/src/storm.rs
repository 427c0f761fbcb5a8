//! A storm: every stream of a room is cut at once, events go by, and all come back with the id that they saw last.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    Bench,
    contest::{Contestant, publisher_sql},
    http,
    load::Fleet,
    machine::pause,
    publish::room,
    server::Ours,
    table::{Bar, Row, median, short},
};

const EVENTS: u64 = 100;
/// For the server to have noticed the cut, and to have routed what was published meanwhile.
const AWAY: Duration = Duration::from_secs(2);

/// Makes Postgres log each statement with the name of who sent it.
const LOGGING: [&str; 3] =
    ["alter system set log_statement = 'all'", "alter system set log_line_prefix = '%a|'", "select pg_reload_conf()"];
/// Undoes that.
const SILENT: [&str; 2] = ["alter system reset all", "select pg_reload_conf()"];

/// Time until all have come back with what they missed, beside coming back without ids.
pub(crate) fn storm(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(5000);
    let server = Ours::start(&bench.place, "data", &[])?;
    let (mut resumed, mut opened) = (Vec::new(), Vec::new());
    let (mut whole, mut resets, mut refused) = (usize::MAX, 0, 0);
    for round in 1..=bench.rounds() {
        let ids = cut(bench, &server, streams)?;
        let (seconds, fleet) = come_back(bench, &server, &ids, EVENTS)?;
        whole = whole.min(fleet.with_exactly(EVENTS));
        resets += fleet.totals.resets;
        refused += fleet.totals.refused;
        resumed.push(seconds * 1000.0);
        drop(fleet);
        pause(AWAY);
        let (seconds, fleet) = come_back(bench, &server, &vec![String::new(); streams], 0)?;
        opened.push(seconds * 1000.0);
        drop(fleet);
        bench.say(&format!(
            "storm, round {round}: {} ms, without ids {} ms",
            short(resumed[round - 1]),
            short(opened[round - 1])
        ));
    }
    let statements = statements(bench, &server, streams)?;
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: figure.into(),
        unit,
        ours,
        baseline,
        bar,
        note,
    };
    Ok(vec![
        row(
            "storm: all back with what they missed",
            "ms",
            median(resumed),
            Some(median(opened)),
            Bar::RatioAtMost(2.0),
            format!(
                "{streams} streams, {EVENTS} events missed; baseline: the same reconnect without ids, to stream:open"
            ),
        ),
        row(
            "storm: streams that got each missed event exactly once",
            "",
            whole as f64,
            None,
            Bar::Exactly(streams as f64),
            format!("the fewest of all rounds; {resets} resets, {refused} told to come back later, who did so at once"),
        ),
        row(
            "storm: statements that Postgres ran for the server",
            "",
            statements,
            None,
            Bar::AtMost(streams as f64 / 10.0),
            "from Postgres's log, in a round of its own; looking at the log four times a second is in it".into(),
        ),
    ])
}

/// Opens streams, cuts them, publishes; the ids to come back with.
fn cut(bench: &Bench, server: &Ours, streams: usize) -> Result<Vec<String>> {
    let mut fleet = Contestant::Ours.fleet()?.keeping_ids();
    fleet.open(&server.process.address, Contestant::Ours.requests(bench, streams, 1))?;
    let ids = fleet.ids();
    drop(fleet);
    publisher_sql(server, 1, 60)?.publish(0, EVENTS)?;
    pause(AWAY);
    Ok(ids)
}

/// Comes back with these ids; the time until each stream is open and has `events` events.
fn come_back(bench: &Bench, server: &Ours, ids: &[String], events: u64) -> Result<(f64, Fleet)> {
    let mut fleet = Contestant::Ours.fleet()?.persisting();
    let requests: Vec<String> = ids.iter().map(|id| http::events(&room(0), &bench.place.token, id)).collect();
    let began = Instant::now();
    fleet.open(&server.process.address, requests)?;
    if let Err(error) = fleet.wait_for_each(events) {
        bench.say(&format!("storm: {error}"));
    }
    let seconds = began.elapsed().as_secs_f64();
    // Long enough for an event too many to arrive.
    fleet.run(Duration::from_millis(500))?;
    Ok((seconds, fleet))
}

/// Statements that Postgres runs for the server while all come back, as its own log says.
fn statements(bench: &Bench, server: &Ours, streams: usize) -> Result<f64> {
    let ids = cut(bench, server, streams)?;
    let mut sql = server.sql()?;
    // One at a time: several at once would be one transaction, which this may not be in.
    for statement in LOGGING {
        sql.run(statement)?;
    }
    pause(AWAY);
    let before = fs::metadata(&server.postgres_log)?.len();
    come_back(bench, server, &ids, EVENTS)?;
    let log = fs::read(&server.postgres_log)?;
    for statement in SILENT {
        sql.run(statement)?;
    }
    let log = String::from_utf8_lossy(&log[usize::try_from(before)?.min(log.len())..]).into_owned();
    Ok(log.lines().filter(|line| line.starts_with("crewcast|LOG:  ")).count() as f64)
}
