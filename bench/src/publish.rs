//! Publishing at a pace, from a thread of its own.

use std::{
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use hdrhistogram::Histogram;
use serde_json::json;

use crate::{
    http::Http,
    load::{Fleet, Progress, latencies},
    machine::{now_ns, pause},
    sql::Sql,
};

/// The rooms that are published to: `{prefix}0` and so on.
const PREFIX: &str = "topic:r";

/// How often a publisher that is far enough ahead looks again.
const LOOK: Duration = Duration::from_micros(200);
/// Within this time a waiting publisher sees that it is to stop.
const STOP_SEEN: Duration = Duration::from_millis(50);

/// Who publishes, and how.
pub(crate) enum Publisher {
    /// Changes a project's notes by REST: one `project:updated`.
    Rest { http: Http, project: String, pad: usize },
    /// `crewcast.publish` in one statement, one transaction.
    Sql { sql: Sql, rooms: u64, pad: usize },
    /// A list, or one event, to the plain server.
    Plain { http: Http, rooms: u64, pad: usize },
    /// Frames as they go out, to the floor.
    Floor { http: Http, pad: usize },
}

/// When the next events are published.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// As fast as it goes, with at most `ahead` events that not all of `streams` have got.
    Window { ahead: u64, streams: u64 },
    /// Each at its time. One that is late is not skipped.
    Every(Duration),
}

impl Pace {
    /// How long to wait before more is published, at least; then it is asked again.
    fn wait(self, published: u64, batch: u64, began: Instant, progress: &Progress) -> Duration {
        match self {
            Self::Window { ahead, streams } => {
                let behind = (published * streams).saturating_sub(progress.delivered.load(Ordering::Relaxed));
                if behind > ahead * streams { LOOK } else { Duration::ZERO }
            }
            Self::Every(every) => {
                let nth = u32::try_from(published / batch).unwrap_or(u32::MAX);
                (every * nth).saturating_sub(began.elapsed()).min(STOP_SEEN)
            }
        }
    }
}

/// What a publisher has done.
pub(crate) struct Published {
    pub(crate) events: u64,
    /// How long each request or transaction took, in nanoseconds.
    pub(crate) times: Histogram<u64>,
}

/// A room of the bench.
pub(crate) fn room(nth: u64) -> String {
    format!("{PREFIX}{nth}")
}

impl Publisher {
    /// What stands before an event's number.
    pub(crate) fn needle(&self) -> &'static str {
        if matches!(self, Self::Rest { .. }) { "\"newValue\":\"" } else { "{\"n\":" }
    }

    /// Publishes events `first` and on (from 0): event `i` goes to room `i mod rooms` as number `i / rooms + 1`.
    pub(crate) fn publish(&mut self, first: u64, count: u64) -> Result<()> {
        let sent = now_ns();
        match self {
            Self::Rest { http, project, pad } => {
                assert_eq!(count, 1, "a change is one event");
                let body = json!({ "notes": format!("{} {sent} {}", first + 1, "x".repeat(*pad)) });
                http.send("PATCH", &format!("/v1/projects/{project}"), &body.to_string())?;
            }
            Self::Sql { sql, rooms, pad } => sql.publish(PREFIX, *rooms, first, count, sent, *pad)?,
            Self::Plain { http, rooms, pad } => {
                let ticks: Vec<String> = (first..first + count).map(|i| tick(i, *rooms, sent, *pad)).collect();
                let body = if count == 1 { ticks.concat() } else { format!("[{}]", ticks.join(",")) };
                http.send("POST", "/publish", &body)?;
            }
            Self::Floor { http, pad } => {
                // A chunk for each, as most servers send them.
                let chunk = |i| {
                    let frame = format!("event: bench:tick\nid: {}\ndata: {}\n\n", i + 1, tick(i, 1, sent, *pad));
                    format!("{:x}\r\n{frame}\r\n", frame.len())
                };
                http.send("POST", "/publish", &(first..first + count).map(chunk).collect::<String>())?;
            }
        }
        Ok(())
    }

    /// Publishes `batch` events at a time from a thread of its own until the fleet says stop.
    pub(crate) fn spawn(mut self, batch: u64, pace: Pace, progress: Arc<Progress>) -> Publishing {
        Publishing(std::thread::spawn(move || self.keep_on(batch, pace, &progress)))
    }

    fn keep_on(&mut self, batch: u64, pace: Pace, progress: &Progress) -> Result<Published> {
        let mut published = Published { events: 0, times: latencies()? };
        let began = Instant::now();
        while !progress.stop.load(Ordering::Relaxed) {
            let wait = pace.wait(published.events, batch, began, progress);
            if !wait.is_zero() {
                pause(wait);
                continue;
            }
            let sent = Instant::now();
            self.publish(published.events, batch)?;
            published.times.saturating_record(u64::try_from(sent.elapsed().as_nanos())?);
            published.events += batch;
        }
        Ok(published)
    }
}

/// An event as JSON; the number stands first, as the load expects it.
fn tick(i: u64, rooms: u64, sent: u64, pad: usize) -> String {
    let (n, seq, room, text) = (i / rooms + 1, i + 1, room(i % rooms), "x".repeat(pad));
    let meta = format!(r#"{{"seq":{seq},"at":"2026-11-23T09:00:00.123Z","rooms":["{room}"]}}"#);
    format!(r#"{{"n":{n},"t":{sent},"text":"{text}","meta":{meta}}}"#)
}

/// Publishing under way.
pub(crate) struct Publishing(JoinHandle<Result<Published>>);

impl Publishing {
    /// Ends it, while the fleet reads on.
    pub(crate) fn stop(self, fleet: &mut Fleet) -> Result<Published> {
        fleet.progress.stop.store(true, Ordering::Relaxed);
        while !self.0.is_finished() {
            fleet.turn(Duration::from_millis(5))?;
        }
        fleet.progress.stop.store(false, Ordering::Relaxed);
        self.0.join().map_err(|_| anyhow!("a publisher panicked"))?.context("publishing")
    }
}
