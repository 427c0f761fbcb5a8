//! Ten thousand people in one room: what it costs to show them to each other.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use crewcast::auth::{Checks, Claims, Verifier};

use crate::{
    Bench,
    contest::Contestant,
    http,
    server::{Ours, SECRET},
    table::{Bar, Row, median},
};

/// Until the last of them was counted.
const SETTLED: Duration = Duration::from_secs(3);

/// What connecting so many cost.
struct Crowd {
    /// Of the server's processor time, a stream.
    cpu_us: f64,
    /// Bytes that each stream was sent.
    kilobytes: f64,
    /// Changes of single users, a stream.
    changes: f64,
    /// Statements that wrote who is where.
    statements: f64,
}

/// All of them in `company`, beside the same streams without presence, and beside half of them.
pub(crate) fn crowd(bench: &Bench) -> Result<Vec<Row>> {
    let people = bench.streams(10_000);
    let requests = |query: &str| requests(people, query);
    let (shown, hidden) = (requests("company")?, requests("company&types=test")?);
    let (mut all, mut half, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds() {
        all.push(connect(bench, &shown)?);
        half.push(connect(bench, &shown[..people / 2])?);
        without.push(connect(bench, &hidden)?);
        let of = |crowds: &[Crowd]| crowds.last().map_or(0.0, |crowd| crowd.cpu_us);
        let (all, half, without) = (of(&all), of(&half), of(&without));
        bench.say(&format!("presence, round {round}: {all:.0}, {half:.0} and {without:.0} µs a stream"));
    }
    let middle = |crowds: &[Crowd], figure: fn(&Crowd) -> f64| median(crowds.iter().map(figure).collect());
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: figure.into(),
        unit,
        ours,
        baseline,
        bar,
        note,
    };
    let cpu = middle(&all, |crowd| crowd.cpu_us);
    Ok(vec![
        row(
            "presence: CPU to connect, beside half as many",
            "µs",
            cpu,
            Some(middle(&half, |crowd| crowd.cpu_us)),
            Bar::RatioAtMost(1.5),
            format!("a stream, of {people} users in one room; baseline: {} users", people / 2),
        ),
        row(
            "presence: CPU to connect, beside none",
            "µs",
            cpu,
            Some(middle(&without, |crowd| crowd.cpu_us)),
            Bar::None,
            "the same streams with a filter that keeps presence away; what is sent is in it".into(),
        ),
        row(
            "presence: sent to a stream until all are there",
            "KB",
            middle(&all, |crowd| crowd.kilobytes),
            None,
            Bar::AtMost(50.0),
            "a snapshot of at most 200 users, and a count a second".into(),
        ),
        row(
            "presence: changes told to a stream",
            "",
            middle(&all, |crowd| crowd.changes),
            None,
            Bar::AtMost(10.0),
            "while the room was small; later there are counts".into(),
        ),
        row(
            "presence: statements that wrote it",
            "",
            middle(&all, |crowd| crowd.statements),
            None,
            Bar::AtMost(people as f64 / 20.0),
            format!("for {people} streams that came"),
        ),
    ])
}

/// A stream of its own user each.
fn requests(people: usize, query: &str) -> Result<Vec<String>> {
    let verifier = Verifier::from_secret(SECRET.as_bytes(), Checks::default())?;
    let exp = UNIX_EPOCH.elapsed()?.as_secs().cast_signed() + 24 * 3600;
    let request = |nth: usize| {
        let claims = Claims { name: Some(format!("User {nth}")), ..Claims::new(format!("user{nth}").parse()?, exp) };
        Ok(http::events(query, &verifier.mint(&claims).context("a token")?, ""))
    };
    (0..people).map(request).collect()
}

/// Connects all of them, to a server of their own.
fn connect(bench: &Bench, requests: &[String]) -> Result<Crowd> {
    let server = Ours::start(&bench.place, "data", &[])?;
    let before = server.process.cpu()?;
    let mut fleet = Contestant::Ours.fleet()?;
    fleet.open(&server.process.address, requests.iter().cloned())?;
    fleet.run(SETTLED)?;
    let cpu = server.process.cpu()?.checked_sub(before).context("time goes on")?;
    let streams = requests.len() as f64;
    let (cpu_us, kilobytes) = (cpu.as_secs_f64() * 1e6 / streams, fleet.totals.bytes as f64 / streams / 1000.0);
    let changes = fleet.totals.changes as f64 / streams;
    let statements = server.metric("crewcast_presence_statements_total")?;
    Ok(Crowd { cpu_us, kilobytes, changes, statements })
}
