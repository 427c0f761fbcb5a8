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

/// Memory that stalled readers cost, what they get when they read on, and what the others notice.
pub(crate) fn slow_readers(bench: &Bench) -> Result<Vec<Row>> {
    let server = Ours::start(&bench.place, "data", &["--poll=5ms"])?;
    let mut fleet = Contestant::Ours.fleet()?;
    fleet.open(&server.process.address, Contestant::Ours.requests(bench, STREAMS, 1))?;
    fleet.set_slow(STALLED)?;
    let pace = Pace::Every(EVERY);
    let publishing = publisher_sql(&server, 1, PAD)?.spawn(BATCH, pace, fleet.progress.clone());
    let time = bench.seconds(15);
    fleet.run(bench.seconds(5))?;
    fleet.forget_latencies();
    fleet.run(time)?;
    let before = milliseconds(&fleet.latencies, 99.0);
    fleet.forget_latencies();

    let memory = Watched::new(server.process.pid())?;
    let (bytes, delivered) = (fleet.totals.bytes, fleet.totals.deliveries);
    fleet.pause(STALLED)?;
    fleet.run(time)?;
    let grown = memory.grown()?;
    let rate = (fleet.totals.bytes - bytes) as f64 / (STREAMS - STALLED) as f64 / time.as_secs_f64() / 1000.0;
    bench.say(&format!("slow readers: {} KB/s for each that reads", short(rate)));
    fleet.resume(STALLED)?;
    fleet.run(bench.seconds(5))?;
    let during = milliseconds(&fleet.latencies, 99.0);
    let events = (fleet.totals.deliveries - delivered) / STREAMS as u64;
    let published = publishing.stop(&mut fleet)?.events;
    if let Err(error) = fleet.wait_for_each(published) {
        bench.say(&format!("slow readers: {error}"));
    }
    bench.count_faults(&fleet);
    let row = |figure: &str, unit, ours, baseline, bar, note: String| Row {
        figure: format!("slow readers: {figure}"),
        unit,
        ours,
        baseline,
        bar,
        note,
    };
    let load = format!("{STREAMS} streams × {} KB/s, {STALLED} stop for {} s", short(rate), time.as_secs());
    Ok(vec![
        row("growth of the server's memory", "MB", grown / 1e6, None, Bar::AtMost(10.0), load),
        row(
            "streams that got everything exactly once",
            "",
            fleet.with_exactly(published) as f64,
            None,
            Bar::Exactly(STREAMS as f64),
            format!(
                "{published} events of 4 KB, {} resets, about {events} of them while some stalled",
                fleet.totals.resets
            ),
        ),
        row(
            "latency p99 of the others",
            "ms",
            during,
            Some(before),
            Bar::RatioAtMost(1.2),
            "while some stall and catch up; baseline: the same streams before; ours from SQL, found within 5 ms".into(),
        ),
    ])
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
