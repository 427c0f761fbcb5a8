//! Slow readers: some streams stop reading for a while, then read on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::{
    Bench,
    contest::{Contestant, publisher_sql},
    machine::{pause, rss},
    paced::milliseconds,
    publish::Pace,
    server::Ours,
    table::{Bar, Row, short},
};

const STREAMS: usize = 200;
const STALLED: usize = 20;
/// Four events in one transaction, 50 times a second: 800 KB/s for each stream.
const BATCH: u64 = 4;
const EVERY: Duration = Duration::from_millis(20);
const PAD: usize = 3900;
/// Full before anybody stalls, so that what grows then is what the stalled ones cost, and as the default would be, large
/// enough for what they miss.
const RING: &str = "--ring-bytes=16MiB";
/// Longer than what the sockets' buffers hold at that rate.
const STALL_SECONDS: u64 = 15;

/// What was seen of one run.
struct Seen {
    /// Bytes by which the server grew while some streams stalled.
    grown: f64,
    /// Bytes a second that each other stream read then.
    rate: f64,
    /// Milliseconds that 99 % of the others' events took at most, before, and while some stalled and caught up.
    p99: [f64; 2],
    published: u64,
    /// Streams that got each event exactly once.
    whole: usize,
}

/// Memory that stalled readers cost, what they get when they read on, and what the others notice.
pub(crate) fn slow_readers(bench: &Bench) -> Result<Vec<Row>> {
    let seen = stall(bench)?;
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: format!("slow readers: {figure}"),
        unit,
        ours,
        baseline,
        bar,
        note,
    };
    let seconds = bench.seconds(STALL_SECONDS).as_secs();
    let load = format!(
        "{STREAMS} streams × {} KB/s, {STALLED} stop for {seconds} s; {RING}, full before",
        short(seen.rate / 1e3)
    );
    let others = "while some stall and catch up; baseline: the same streams before; from SQL, found within 5 ms";
    Ok(vec![
        row("growth of the server's memory", "MB", seen.grown / 1e6, None, Bar::AtMost(10.0), load),
        row(
            "streams that got everything exactly once",
            "",
            seen.whole as f64,
            None,
            Bar::Exactly(STREAMS as f64),
            format!("{} events of 4 KB", seen.published),
        ),
        row(
            "latency p99 of the others",
            "ms",
            seen.p99[1],
            Some(seen.p99[0]),
            Bar::RatioAtMost(1.2),
            others.to_owned(),
        ),
    ])
}

fn stall(bench: &Bench) -> Result<Seen> {
    let server = Ours::start(&bench.place, "data", &["--poll=5ms", RING])?;
    let mut fleet = Contestant::Ours.fleet()?;
    fleet.open(&server.process.address, Contestant::Ours.requests(bench, STREAMS, 1))?;
    fleet.set_slow(STALLED)?;
    let publisher = publisher_sql(&server, 1, PAD)?;
    let publishing = publisher.spawn(BATCH, Pace::Every(EVERY), fleet.progress.clone());
    let time = bench.seconds(STALL_SECONDS);
    fleet.run(bench.seconds(5))?;
    fleet.forget_latencies();
    fleet.run(time)?;
    let before = milliseconds(&fleet.latencies, 99.0);
    fleet.forget_latencies();

    let (memory, bytes) = (Watched::new(server.process.pid())?, fleet.totals.bytes);
    fleet.pause(STALLED)?;
    fleet.run(time)?;
    let grown = memory.grown()?;
    let rate = (fleet.totals.bytes - bytes) as f64 / (STREAMS - STALLED) as f64 / time.as_secs_f64();
    fleet.resume(STALLED)?;
    fleet.run(bench.seconds(5))?;
    let during = milliseconds(&fleet.latencies, 99.0);
    let published = publishing.stop(&mut fleet)?.events;
    if let Err(error) = fleet.wait_for_each(published) {
        bench.say(&format!("slow readers: {error}"));
    }
    bench.count_faults(&fleet);
    Ok(Seen { grown, rate, p99: [before, during], published, whole: fleet.with_exactly(published) })
}

/// A process whose memory is looked at a hundred times a second.
struct Watched {
    before: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Watched {
    fn new(pid: i32) -> Result<Self> {
        let before = rss(pid)?;
        let (most, stop) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let seen = (most.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !seen.1.load(Ordering::Relaxed) {
                seen.0.fetch_max(rss(pid)?, Ordering::Relaxed);
                pause(Duration::from_millis(10));
            }
            Ok(())
        });
        Ok(Self { before, most, stop, thread })
    }

    /// Bytes by which it was larger at most than at the beginning.
    fn grown(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a watcher panicked"))??;
        Ok((self.most.load(Ordering::Relaxed) - self.before) as f64)
    }
}
