//! Measures crewcast, each figure beside its baseline, on one machine in one run.
//!
//! The server that is measured has a core of its own; the load, Postgres and all else share another one. Each figure
//! is the median of several rounds in which ours and the baseline's take turns.

mod contest;
mod fanout;
mod floor;
mod http;
mod load;
mod machine;
mod memory;
mod paced;
mod plain;
mod presence;
mod publish;
mod quiet;
mod retention;
mod server;
mod slow;
mod sql;
mod storm;
mod table;
mod wire;
mod writes;

use std::{
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

use crate::{
    load::Fleet,
    server::{Ours, Place},
    table::{Bar, Row},
};

type Figure = fn(&Bench) -> Result<Vec<Row>>;

/// Every figure: its name, what it is, how it is measured.
const FIGURES: [(&str, &str, Figure); 13] = [
    ("memory", "memory of an idle stream", memory::rss_per_stream),
    ("fanout", "deliveries a second to one room, as fast as it goes", fanout::saturated),
    ("load", "what the load itself can take", fanout::load_limit),
    ("single", "the same, one publication at a time", fanout::sequential),
    ("rooms", "deliveries for the same CPU with many rooms", fanout::many_rooms),
    ("steady", "CPU a delivery and latency at a steady pace", paced::steady),
    ("writes", "changes of projects a second", writes::writes),
    ("storm", "all streams cut at once come back", storm::storm),
    ("quiet", "coming back to a quiet room of a long log", quiet::quiet_room),
    ("slow", "streams that stop reading for a while", slow::slow_readers),
    ("presence", "ten thousand people in one room", presence::crowd),
    ("retention", "a log on disk that is deleted from as it grows", retention::retention),
    ("ten", "ten thousand streams get everything once and end well", memory::ten_thousand),
];

/// Measures crewcast beside what a plain server does on this machine.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// The figures to measure [default: all]
    names: Vec<String>,
    /// Name the figures and end
    #[arg(long)]
    list: bool,
    /// A tenth of the streams and of the time: to see that it works
    #[arg(long)]
    quick: bool,
    /// Events in the long log [default: 10,000,000; quick: 100,000]
    #[arg(long)]
    log_events: Option<u64>,
    /// Seconds that events are kept while retention is measured [default: 300; quick: 30]
    #[arg(long)]
    kept_seconds: Option<u64>,
    /// Seconds that each log is written to while retention is measured, all rounds together [default: 3600; quick: 360]
    #[arg(long)]
    written_seconds: Option<u64>,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// Write the table to BENCH.md
    #[arg(long, conflicts_with_all = ["names", "quick"])]
    write: bool,
}

/// What processes of the bench's own are.
#[derive(Subcommand)]
enum Part {
    /// The baseline: a plain server
    Plain,
    /// The floor: a loop of write()
    Floor,
    /// Run a program on a core
    #[command(hide = true)]
    OnCore {
        core: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// A run.
pub(crate) struct Bench {
    pub(crate) place: Place,
    quick: bool,
    rounds: u8,
    streams_max: usize,
    /// Events in the long log.
    pub(crate) log_events: u64,
    /// How long events are kept where retention is measured.
    pub(crate) kept: Duration,
    /// How long each log is written to there.
    pub(crate) written: Duration,
    began: Instant,
    /// Events that crewcast lost or doubled, and resets, over all figures.
    faults: AtomicU64,
}

impl Bench {
    /// How many streams to open where a whole run opens this many.
    pub(crate) fn streams(&self, whole: usize) -> usize {
        let wanted = if self.quick { whole.div_ceil(10).max(1000.min(whole)) } else { whole };
        wanted.min(self.streams_max)
    }

    /// How long to measure where a whole run measures this long.
    pub(crate) fn seconds(&self, whole: u64) -> Duration {
        Duration::from_secs(whole) / if self.quick { 4 } else { 1 }
    }

    /// How many samples to take where a whole run takes this many.
    pub(crate) fn samples(&self, whole: usize) -> usize {
        if self.quick { whole.div_ceil(5) } else { whole }
    }

    /// How often to measure.
    pub(crate) fn rounds(&self) -> usize {
        usize::from(self.rounds)
    }

    /// Tells how far it is.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("bench: {:>4} s  {what}", self.began.elapsed().as_secs());
    }

    /// Notes what a fleet of crewcast's has not got exactly.
    pub(crate) fn count_faults(&self, fleet: &Fleet) {
        let totals = fleet.totals;
        self.faults.fetch_add(totals.lost + totals.doubled + totals.resets, Ordering::Relaxed);
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every bar was cleared.
fn run(arguments: Arguments) -> Result<bool> {
    match &arguments.part {
        Some(Part::Plain) => plain::serve().map(|()| true),
        Some(Part::Floor) => floor::serve().map(|()| true),
        Some(Part::OnCore { core, command }) => server::become_program(*core, command).map(|()| true),
        None if arguments.list => {
            FIGURES.iter().for_each(|(name, what, _)| println!("{name:8} {what}"));
            Ok(true)
        }
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<bool> {
    let chosen = chosen(&arguments.names)?;
    machine::check_cores()?;
    let place = Place::make()?;
    let folder = place.folder.clone();
    end_on_signals(&folder)?;
    let bench = Bench {
        place,
        quick: arguments.quick,
        rounds: arguments.rounds,
        streams_max: streams_max()?,
        log_events: arguments.log_events.unwrap_or(if arguments.quick { 100_000 } else { 10_000_000 }),
        kept: Duration::from_secs(arguments.kept_seconds.unwrap_or(if arguments.quick { 30 } else { 300 })),
        written: Duration::from_secs(arguments.written_seconds.unwrap_or(if arguments.quick { 360 } else { 3600 })),
        began: Instant::now(),
        faults: AtomicU64::new(0),
    };
    machine::pin(0, machine::LOAD_CORE)?;
    let told = tell(&bench, &chosen, arguments.write);
    server::remove(&folder);
    told
}

fn chosen(names: &[String]) -> Result<Vec<(&'static str, Figure)>> {
    if let Some(name) = names.iter().find(|name| FIGURES.iter().all(|(known, ..)| known != name)) {
        bail!("there is no figure {name}: see --list");
    }
    let wanted = FIGURES.iter().filter(|(name, ..)| names.is_empty() || names.iter().any(|wanted| wanted == name));
    Ok(wanted.map(|(name, _, figure)| (*name, *figure)).collect())
}

fn streams_max() -> Result<usize> {
    let most = machine::raise_file_limit()?;
    if most < 10_000 {
        eprintln!(
            "bench: only {most} streams instead of 10,000: raise the hard limit of open files (ulimit -Hn 20000)"
        );
    }
    Ok(most)
}

/// Measures, prints the table and writes it if asked to.
fn tell(bench: &Bench, chosen: &[(&str, Figure)], write: bool) -> Result<bool> {
    let machine = describe(bench)?;
    eprintln!("bench: {machine}");
    eprintln!(
        "bench: the server runs on core {}; Postgres, the load and the publishers on core {}",
        machine::SERVER_CORE,
        machine::LOAD_CORE
    );
    let (mut rows, mut broken) = (Vec::new(), false);
    for (name, figure) in chosen {
        match figure(bench) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                server::wait_if_interrupted();
                bench.say(&format!("{name} failed: {error:#}"));
                broken = true;
            }
        }
    }
    rows.push(faults(bench));
    let table = table::markdown(&rows);
    let minutes = bench.began.elapsed().as_secs_f64() / 60.0;
    let text = format!("{machine}. The run took {minutes:.0} minutes.\n\n{table}");
    println!("{text}");
    if write {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../BENCH.md"), page(&text))?;
    }
    Ok(!broken && rows.iter().all(|row| row.passes() != Some(false)))
}

fn faults(bench: &Bench) -> Row {
    Row {
        figure: "events lost or doubled, and resets, in all of the above".into(),
        unit: "",
        ours: bench.faults.load(Ordering::Relaxed) as f64,
        baseline: None,
        bar: Bar::Exactly(0.0),
        note: "each event of each stream has a number, which is checked".into(),
    }
}

fn describe(bench: &Bench) -> Result<String> {
    let server = Ours::start(&bench.place, "data", &[])?;
    let version = server.sql()?.text("show server_version")?;
    Ok(format!("{}, Postgres {version}", machine::describe()?))
}

fn page(text: &str) -> String {
    format!(
        "# Figures\n\n\
         Measured by `cargo run --release -p crewcast-bench -- --write`: crewcast with its private Postgres, beside a\n\
         plain axum server (one broadcast channel, `bench/src/plain.rs`) and, where it says so, other baselines, on\n\
         one machine in one run. The server has a core of its own; Postgres, the load and the publishers share\n\
         another one. Medians of rounds in which both take turns. A ratio is crewcast's figure divided by the baseline's.\n\n{text}"
    )
}

/// Ctrl-C and SIGTERM end the servers and remove the data.
fn end_on_signals(folder: &Path) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = folder.to_owned();
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        });
        eprintln!("bench: ending the servers and removing the data");
        server::end_all();
        server::remove(&folder);
        std::process::exit(130);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("a thread")?;
    Ok(())
}
