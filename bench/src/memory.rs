//! Memory of idle streams, and ten thousand streams as a check of their own.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    Bench,
    contest::{Contestant, publisher_sql},
    machine::pause,
    server::{self, Ours, Process},
    table::{Bar, Row, median},
};

/// Until allocators and kernel have settled.
const SETTLED: Duration = Duration::from_secs(2);

/// Resident memory a stream: with all of them idle minus with none, divided by their number.
pub(crate) fn rss_per_stream(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(10_000);
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds() {
        let server = Ours::start(&bench.place, "data", &[])?;
        ours.push(grown(bench, &server.process, Contestant::Ours, streams)?);
        drop(server);
        plain.push(grown(bench, &server::baseline(&bench.place, "plain")?, Contestant::Plain, streams)?);
        bench.say(&format!("memory, round {}: {:.2} and {:.2} KB a stream", round + 1, ours[round], plain[round]));
    }
    Ok(vec![Row {
        figure: "memory a stream".into(),
        unit: "KB",
        ours: median(ours),
        baseline: Some(median(plain)),
        bar: Bar::AtMost(8.0),
        note: format!("{streams} idle streams, VmRSS of the server, 1 KB = 1,000 bytes"),
    }])
}

fn grown(bench: &Bench, process: &Process, contestant: Contestant, streams: usize) -> Result<f64> {
    pause(SETTLED);
    let before = process.rss()?;
    let mut fleet = contestant.fleet()?;
    fleet.open(&process.address, contestant.requests(bench, streams, 1))?;
    fleet.run(SETTLED)?;
    Ok((process.rss()? as f64 - before as f64) / streams as f64 / 1000.0)
}

/// Ten thousand streams get each of ten events once, and end with the server, which ends well.
pub(crate) fn ten_thousand(bench: &Bench) -> Result<Vec<Row>> {
    const EVENTS: u64 = 10;
    let streams = bench.streams(10_000);
    let mut server = Ours::start(&bench.place, "data", &["--poll=5ms"])?;
    let mut fleet = Contestant::Ours.fleet()?;
    fleet.open(&server.process.address, Contestant::Ours.requests(bench, streams, 1))?;
    let mut publisher = publisher_sql(&server, 1, 0)?;
    for nth in 0..EVENTS {
        publisher.publish(nth, 1)?;
    }
    fleet.wait_for_each(EVENTS)?;
    let exactly = fleet.with_exactly(EVENTS);
    drop(publisher);
    server.process.terminate()?;
    let began = Instant::now();
    let status = loop {
        fleet.turn(Duration::from_millis(5))?;
        if let Some(status) = server.process.ended()? {
            break status;
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let code = status.code().map_or(-1.0, f64::from);
    let row = |figure: &str, ours, bar, note: String| Row {
        figure: figure.into(),
        unit: "",
        ours,
        baseline: None,
        bar,
        note,
    };
    Ok(vec![
        row(
            "ten thousand streams: got each event exactly once",
            exactly as f64,
            Bar::Exactly(streams as f64),
            format!("{streams} streams, {EVENTS} events, {} deliveries", fleet.totals.deliveries),
        ),
        row(
            "ten thousand streams: exit code after SIGTERM",
            code,
            Bar::Exactly(0.0),
            format!("the process ended after {seconds:.2} s with the streams open"),
        ),
    ])
}
