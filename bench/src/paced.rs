//! A steady pace that no server has trouble with: what a delivery costs, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::{
    Bench,
    contest::{Contestant, Measured, Plan, publisher_floor, publisher_plain, publisher_rest},
    fanout::PAD_REST,
    http,
    load::{Fleet, latencies},
    machine::now_ns,
    publish::{Pace, Publisher},
    server::{self, Ours, Process},
    table::{Bar, Row, median, short},
};

const STREAMS: usize = 1000;
const EVERY: Duration = Duration::from_millis(10);
const CONTESTANTS: [(&str, Contestant); 3] =
    [("crewcast", Contestant::Ours), ("plain", Contestant::Plain), ("write()", Contestant::Floor)];

/// One contestant over the rounds.
struct Seen {
    /// Microseconds of processor time a delivery.
    cpu: Vec<f64>,
    bytes: Vec<f64>,
    /// Milliseconds from send to receipt, of which half and 99 % are at most that.
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// CPU a delivery and latency at 1,000 streams and 100 events a second.
pub(crate) fn steady(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(STREAMS);
    let ours = Ours::start(&bench.place, "data", &[])?;
    let plain = server::baseline(&bench.place, "plain")?;
    let floor = server::baseline(&bench.place, "floor")?;
    let mut seen = CONTESTANTS.map(|_| Seen { cpu: vec![], bytes: vec![], p50: vec![], p99: vec![] });
    let mut commits = latencies()?;
    for round in 1..=bench.rounds() {
        for ((name, contestant), seen) in CONTESTANTS.iter().zip(&mut seen) {
            let measured = match contestant {
                Contestant::Ours => {
                    let measured = by_rest(bench, &ours, streams)?;
                    time_commits(&ours, &mut commits)?;
                    measured
                }
                Contestant::Plain => by_number(bench, &plain, streams, publisher_plain(&plain, 1, PAD_REST.1)?)?,
                Contestant::Floor => by_number(bench, &floor, streams, publisher_floor(&floor, PAD_REST.1)?)?,
            };
            seen.push(&measured);
            let last = |values: &[f64]| short(values.last().copied().unwrap_or(f64::NAN));
            bench.say(&format!(
                "steady pace, round {round}, {name}: {} µs a delivery, p50 {} ms, p99 {} ms, publication {} ms, {:.0} bytes",
                last(&seen.cpu),
                last(&seen.p50),
                last(&seen.p99),
                short(milliseconds(&measured.publications, 50.0)),
                measured.bytes_each,
            ));
        }
    }
    Ok(rows(seen, milliseconds(&commits, 50.0), streams))
}

fn rows(seen: [Seen; 3], commit: f64, streams: usize) -> Vec<Row> {
    let [ours, plain, floor] = seen.map(|seen| [seen.cpu, seen.bytes, seen.p50, seen.p99].map(median));
    let load = format!("{streams} streams × {} events/s", 1.0 / EVERY.as_secs_f64());
    let sent = "from the request's send to the client's receipt";
    let row = |figure: &str, unit, nth: usize, baseline, bar, note: String| Row {
        figure: figure.into(),
        unit,
        ours: ours[nth],
        baseline: Some(baseline),
        bar,
        note,
    };
    let bar = (2.0 * plain[3] + commit) / plain[3];
    vec![
        row(
            "CPU a delivery",
            "µs",
            0,
            plain[0],
            Bar::RatioAtMost(0.85),
            format!("{load}; ours: PATCH of a project; {:.0} and {:.0} bytes a delivery", ours[1], plain[1]),
        ),
        row(
            "CPU a delivery, beside bare write()",
            "µs",
            0,
            floor[0],
            Bar::None,
            "the floor: nothing but the kernel".into(),
        ),
        row("latency p50", "ms", 2, plain[2], Bar::None, format!("{sent}; {load}")),
        row(
            "latency p99",
            "ms",
            3,
            plain[3],
            Bar::RatioAtMost(bar),
            format!("the same; bar: twice the baseline's and one commit ({} ms)", short(commit)),
        ),
    ]
}

impl Seen {
    fn push(&mut self, measured: &Measured) {
        self.cpu.push(measured.cpu_seconds * 1e6 / measured.deliveries);
        self.bytes.push(measured.bytes_each);
        self.p50.push(milliseconds(&measured.latencies, 50.0));
        self.p99.push(milliseconds(&measured.latencies, 99.0));
    }
}

fn by_rest(bench: &Bench, server: &Ours, streams: usize) -> Result<Measured> {
    let (publisher, room) = publisher_rest(bench, server, PAD_REST.0)?;
    let mut fleet = Fleet::new(publisher.needle(), true)?;
    let requests = (0..streams).map(|_| http::events(&room, &bench.place.token, ""));
    fleet.open(&server.process.address, requests)?;
    let measured = plan(bench, streams).measure(&mut fleet, &server.process, publisher)?;
    bench.count_faults(&fleet);
    Ok(measured)
}

fn by_number(bench: &Bench, server: &Process, streams: usize, publisher: Publisher) -> Result<Measured> {
    let mut fleet = Contestant::Plain.fleet()?;
    fleet.open(&server.address, Contestant::Plain.requests(bench, streams, 1))?;
    plan(bench, streams).measure(&mut fleet, server, publisher)
}

fn plan(bench: &Bench, streams: usize) -> Plan {
    let (warm, time) = (bench.seconds(2), bench.seconds(10));
    Plan { batch: 1, pace: Pace::Every(EVERY), reached: streams as u64, warm, time }
}

/// How long Postgres takes to commit one event, without a server in between.
fn time_commits(server: &Ours, commits: &mut Histogram<u64>) -> Result<()> {
    let mut sql = server.sql()?;
    for nth in 0..100 {
        let began = Instant::now();
        sql.publish("topic:nobody", 1, nth, 1, now_ns(), 60)?;
        commits.saturating_record(u64::try_from(began.elapsed().as_nanos())?);
    }
    Ok(())
}

/// A percentile in milliseconds.
pub(crate) fn milliseconds(latencies: &Histogram<u64>, percentile: f64) -> f64 {
    latencies.value_at_percentile(percentile) as f64 / 1e6
}
