//! Fan-out: how many deliveries a second, and how many for the same processor time.

use std::time::Duration;

use anyhow::Result;

use crate::{
    Bench,
    contest::{Contestant, Measured, Plan, publisher_floor, publisher_plain, publisher_rest, publisher_sql},
    http,
    load::Fleet,
    publish::{Pace, Publisher},
    server::{self, Ours, Process},
    table::{Bar, Row, median, short},
};

/// Events that are published ahead of the slowest stream: less than either server's channel holds, so that neither
/// has to skip, and enough that neither is ever idle.
const AHEAD: u64 = 500;

/// Bytes of text in an event from SQL, so that a delivery has about 230 bytes of payload on either server.
pub(crate) const PAD: (usize, usize) = (60, 74);

/// The same for a change by REST, whose event is longer.
pub(crate) const PAD_REST: (usize, usize) = (20, 184);

/// One room, as fast as it goes.
pub(crate) fn saturated(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(5000);
    let ours = Ours::start(&bench.place, "data", &["--poll=5ms"])?;
    let plain = server::baseline(&bench.place, "plain")?;
    let rounds = Rounds::run(bench, "fan-out", |contestant| {
        let mut fleet = contestant.fleet()?;
        let (process, publisher) = match contestant {
            Contestant::Ours => (&ours.process, publisher_sql(&ours, 1, PAD.0)?),
            _ => (&plain, publisher_plain(&plain, 1, PAD.1)?),
        };
        fleet.open(&process.address, contestant.requests(bench, streams, 1))?;
        one_room(bench, &mut fleet, process, publisher, 100)
    })?;
    Ok(vec![rounds.row(
        "fan-out at saturation",
        "deliveries/s",
        Measured::per_second,
        Bar::RatioAtLeast(3.0),
        &format!("1 room × {streams} streams; ours: SQL, 100 events a transaction; baseline: POST of 100 events"),
    )])
}

/// What the load takes when a server costs next to nothing: figures that are lower are the servers' own.
pub(crate) fn load_limit(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(5000);
    let floor = server::baseline(&bench.place, "floor")?;
    let mut fleet = Contestant::Floor.fleet()?;
    fleet.open(&floor.address, Contestant::Floor.requests(bench, streams, 1))?;
    let measured = one_room(bench, &mut fleet, &floor, publisher_floor(&floor, PAD.1)?, 100)?;
    Ok(vec![Row {
        figure: "what the load can take".into(),
        unit: "deliveries/s",
        ours: measured.per_second(),
        baseline: None,
        bar: Bar::None,
        note: format!(
            "no crewcast: bare write() of 100 events at a time to {streams} streams, {:.0} bytes a delivery; \
             the writer at {:.0} % of its core",
            measured.bytes_each,
            100.0 * measured.cpus()
        ),
    }])
}

/// One room, one publication under way at a time.
pub(crate) fn sequential(bench: &Bench) -> Result<Vec<Row>> {
    let streams = bench.streams(5000);
    let ours = Ours::start(&bench.place, "data", &[])?;
    let plain = server::baseline(&bench.place, "plain")?;
    let rounds = Rounds::run(bench, "one at a time", |contestant| {
        if contestant == Contestant::Ours {
            let (publisher, room) = publisher_rest(bench, &ours, PAD_REST.0)?;
            let mut fleet = Fleet::new(publisher.needle(), true)?;
            let requests = (0..streams).map(|_| http::events(&room, &bench.place.token, ""));
            fleet.open(&ours.process.address, requests)?;
            return one_room(bench, &mut fleet, &ours.process, publisher, 1);
        }
        let mut fleet = contestant.fleet()?;
        fleet.open(&plain.address, contestant.requests(bench, streams, 1))?;
        one_room(bench, &mut fleet, &plain, publisher_plain(&plain, 1, PAD_REST.1)?, 1)
    })?;
    Ok(vec![rounds.row(
        "fan-out, one publication at a time",
        "deliveries/s",
        Measured::per_second,
        Bar::RatioAtLeast(1.5),
        &format!("1 room × {streams} streams; ours: PATCH of a project; baseline: POST of 1 event"),
    )])
}

fn one_room(bench: &Bench, fleet: &mut Fleet, process: &Process, publisher: Publisher, batch: u64) -> Result<Measured> {
    let streams = fleet.len() as u64;
    let pace = Pace::Window { ahead: AHEAD, streams };
    let plan = Plan { batch, pace, reached: streams, warm: bench.seconds(2), time: bench.seconds(6) };
    let measured = plan.measure(fleet, process, publisher)?;
    bench.count_faults(fleet);
    Ok(measured)
}

/// Many rooms with few streams each: what it costs to find them.
pub(crate) fn many_rooms(bench: &Bench) -> Result<Vec<Row>> {
    const ROOMS: u64 = 1000;
    const BATCH: u64 = 20;
    const EVERY: Duration = Duration::from_millis(50);
    let streams = bench.streams(5000);
    let ours = Ours::start(&bench.place, "data", &["--poll=25ms"])?;
    let plain = server::baseline(&bench.place, "plain")?;
    let rounds = Rounds::run(bench, "many rooms", |contestant| {
        let mut fleet = contestant.fleet()?;
        let (process, publisher) = match contestant {
            Contestant::Ours => (&ours.process, publisher_sql(&ours, ROOMS, PAD.0)?),
            _ => (&plain, publisher_plain(&plain, ROOMS, PAD.1)?),
        };
        fleet.open(&process.address, contestant.requests(bench, streams, ROOMS))?;
        let (warm, time) = (bench.seconds(2), bench.seconds(8));
        let reached = streams as u64 / ROOMS;
        let measured = Plan { batch: BATCH, pace: Pace::Every(EVERY), reached, warm, time };
        let measured = measured.measure(&mut fleet, process, publisher)?;
        if contestant == Contestant::Ours {
            bench.count_faults(&fleet);
        }
        Ok(measured)
    })?;
    let load = BATCH as f64 / EVERY.as_secs_f64();
    Ok(vec![rounds.row(
        "many rooms",
        "deliveries a server-CPU-second",
        Measured::per_cpu_second,
        Bar::RatioAtLeast(3.0),
        &format!("{ROOMS} rooms × {} streams, {load} events/s to both; ours: SQL", streams as u64 / ROOMS),
    )])
}

/// The same measurement several times, ours and the baseline's in turns, so that what else the machine does hits both.
struct Rounds {
    ours: Vec<Measured>,
    plain: Vec<Measured>,
}

impl Rounds {
    fn run(bench: &Bench, name: &str, mut measure: impl FnMut(Contestant) -> Result<Measured>) -> Result<Self> {
        let mut rounds = Self { ours: Vec::new(), plain: Vec::new() };
        for round in 1..=bench.rounds() {
            for (who, contestant) in [("crewcast", Contestant::Ours), ("plain", Contestant::Plain)] {
                let measured = measure(contestant)?;
                bench.say(&format!(
                    "{name}, round {round}, {who}: {} deliveries/s, {} of a CPU, {:.0} bytes each",
                    short(measured.per_second()),
                    short(measured.cpus()),
                    measured.bytes_each
                ));
                if contestant == Contestant::Ours { &mut rounds.ours } else { &mut rounds.plain }.push(measured);
            }
        }
        Ok(rounds)
    }

    fn row(&self, figure: &str, unit: &'static str, value: fn(&Measured) -> f64, bar: Bar, note: &str) -> Row {
        let of = |rounds: &[Measured], value: fn(&Measured) -> f64| median(rounds.iter().map(value).collect());
        let bytes = [&self.ours, &self.plain].map(|rounds| of(rounds, |measured| measured.bytes_each));
        let busy = [&self.ours, &self.plain].map(|rounds| 100.0 * of(rounds, Measured::cpus));
        Row {
            figure: figure.into(),
            unit,
            ours: of(&self.ours, value),
            baseline: Some(of(&self.plain, value)),
            bar,
            note: format!(
                "{note}; {:.0} and {:.0} bytes a delivery; servers at {:.0} % and {:.0} % of their core",
                bytes[0], bytes[1], busy[0], busy[1]
            ),
        }
    }
}
