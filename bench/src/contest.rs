//! Who is measured, and one measurement: a fleet reads, a publisher publishes, the server's time is taken in between.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{
    Bench,
    http::{self, Http},
    load::Fleet,
    publish::{Pace, Publisher, room},
    server::{Ours, Process},
};

/// What stands before the number of an event that was published with one.
pub(crate) const TICK: &str = "{\"n\":";

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contestant {
    Ours,
    Plain,
    Floor,
}

impl Contestant {
    /// A fleet for events that are published with a number.
    pub(crate) fn fleet(self) -> Result<Fleet> {
        Fleet::new(TICK, self == Self::Ours)
    }

    /// Requests for streams, each in one room, which take turns.
    pub(crate) fn requests(self, bench: &Bench, streams: usize, rooms: u64) -> Vec<String> {
        let token = if self == Self::Ours { bench.place.token.as_str() } else { "" };
        (0..streams as u64).map(|nth| http::events(&room(nth % rooms), token, "")).collect()
    }
}

/// Publishes to crewcast from SQL.
pub(crate) fn publisher_sql(server: &Ours, rooms: u64, pad: usize) -> Result<Publisher> {
    Ok(Publisher::Sql { sql: server.sql()?, rooms, pad })
}

/// Publishes to the plain server.
pub(crate) fn publisher_plain(server: &Process, rooms: u64, pad: usize) -> Result<Publisher> {
    Ok(Publisher::Plain { http: Http::connect(&server.address, "")?, rooms, pad })
}

/// Publishes to the floor.
pub(crate) fn publisher_floor(server: &Process, pad: usize) -> Result<Publisher> {
    Ok(Publisher::Floor { http: Http::connect(&server.address, "")?, pad })
}

/// Changes a new project of crewcast's; its room is the second.
pub(crate) fn publisher_rest(bench: &Bench, server: &Ours, pad: usize) -> Result<(Publisher, String)> {
    let mut http = Http::connect(&server.process.address, &bench.place.token)?;
    http.send("PUT", "/v1/divisions/bench", &json!({ "name": "Bench" }).to_string())?;
    let body = json!({ "name": "North tower", "division": "bench" }).to_string();
    let project: Value = serde_json::from_str(&http.send("POST", "/v1/projects", &body)?)?;
    let project = project["id"].as_str().context("a project has an id")?.to_owned();
    let room = format!("project:{project}");
    Ok((Publisher::Rest { http, project, pad }, room))
}

/// What was seen in a span of time.
pub(crate) struct Measured {
    pub(crate) deliveries: f64,
    pub(crate) seconds: f64,
    /// Of the server's processor time.
    pub(crate) cpu_seconds: f64,
    /// Bytes of a delivery on the wire, all framing included.
    pub(crate) bytes_each: f64,
    /// From the send of an event to its receipt, in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// How long each publication took, in nanoseconds.
    pub(crate) publications: Histogram<u64>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.deliveries / self.seconds
    }

    /// Of the server's core, 1 at most.
    pub(crate) fn cpus(&self) -> f64 {
        self.cpu_seconds / self.seconds
    }

    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.deliveries / self.cpu_seconds
    }
}

/// What is published in a measurement, and for how long.
pub(crate) struct Plan {
    pub(crate) batch: u64,
    pub(crate) pace: Pace,
    /// Streams that each event goes to.
    pub(crate) reached: u64,
    pub(crate) warm: Duration,
    pub(crate) time: Duration,
}

impl Plan {
    /// Measures one server with the fleet's streams open, then waits until all that was published has arrived.
    pub(crate) fn measure(self, fleet: &mut Fleet, process: &Process, publisher: Publisher) -> Result<Measured> {
        let publishing = publisher.spawn(self.batch, self.pace, fleet.progress.clone());
        fleet.run(self.warm)?;
        fleet.forget_latencies();
        let (before, cpu, began) = (fleet.totals, process.cpu()?, Instant::now());
        fleet.run(self.time)?;
        let (after, cpu_after, seconds) = (fleet.totals, process.cpu()?, began.elapsed().as_secs_f64());
        let latencies = fleet.latencies.clone();
        let published = publishing.stop(fleet)?;
        let all = published.events * self.reached;
        fleet.wait("what was published", |fleet| fleet.totals.deliveries + fleet.totals.lost >= all)?;
        let deliveries = (after.deliveries - before.deliveries) as f64;
        Ok(Measured {
            deliveries,
            seconds,
            cpu_seconds: (cpu_after - cpu).as_secs_f64(),
            bytes_each: (after.bytes - before.bytes) as f64 / deliveries,
            latencies,
            publications: published.times,
        })
    }
}
