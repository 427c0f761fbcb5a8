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

/// One contestant: in each round, then the medians of all.
#[derive(Default)]
struct Seen<T> {
    /// Microseconds of processor time a delivery.
    cpu: T,
    bytes: T,
    /// Events a second that were published: fewer than wanted on a machine that is too busy.
    rate: T,
    /// Milliseconds from send to receipt, of which half and 99 % are at most that.
    p50: T,
    p99: T,
}

/// CPU a delivery and latency at 1,000 streams and 100 events a second.
pub(crate) fn steady(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(STREAMS);
    let ours = Ours::start(&bench.place, "data", &[])?;
    let plain = server::baseline(&bench.place, "plain")?;
    let floor = server::baseline(&bench.place, "floor")?;
    let mut seen = CONTESTANTS.map(|_| Seen::<Vec<f64>>::default());
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
            seen.push(&measured, streams);
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

fn rows(seen: [Seen<Vec<f64>>; 3], commit: f64, streams: usize) -> Vec<Row> {
    let [ours, plain, floor] = seen.map(Seen::medians);
    let load = format!(
        "{streams} streams × {} events/s ({} and {} were reached)",
        1.0 / EVERY.as_secs_f64(),
        short(ours.rate),
        short(plain.rate)
    );
    let bytes = format!("{:.0} and {:.0} bytes a delivery", ours.bytes, plain.bytes);
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: figure.into(),
        unit,
        ours,
        baseline: Some(baseline),
        bar,
        note,
    };
    let cpu_note = format!("{load}; ours: PATCH of a project; {bytes}");
    let floor_note = "the floor: nothing but the kernel".to_owned();
    let p50_note = format!("from the request's send to the client's receipt; {load}");
    let p99_note = format!("the same; bar: twice the baseline's and one commit ({} ms)", short(commit));
    let p99_bar = Bar::RatioAtMost((2.0 * plain.p99 + commit) / plain.p99);
    vec![
        row("CPU a delivery", "µs", ours.cpu, plain.cpu, Bar::RatioAtMost(0.85), cpu_note),
        row("CPU a delivery, beside bare write()", "µs", ours.cpu, floor.cpu, Bar::None, floor_note),
        row("latency p50", "ms", ours.p50, plain.p50, Bar::None, p50_note),
        row("latency p99", "ms", ours.p99, plain.p99, p99_bar, p99_note),
    ]
}

impl Seen<Vec<f64>> {
    fn push(&mut self, measured: &Measured, streams: usize) {
        self.cpu.push(measured.cpu_seconds * 1e6 / measured.deliveries);
        self.bytes.push(measured.bytes_each);
        self.rate.push(measured.per_second() / streams as f64);
        self.p50.push(milliseconds(&measured.latencies, 50.0));
        self.p99.push(milliseconds(&measured.latencies, 99.0));
    }

    fn medians(self) -> Seen<f64> {
        let Self { cpu, bytes, rate, p50, p99 } = self;
        Seen { cpu: median(cpu), bytes: median(bytes), rate: median(rate), p50: median(p50), p99: median(p99) }
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
