//! The load: thousands of streams read by one thread, each event of each checked against the one before it.
//!
//! Sockets are level-triggered: each turn reads every readable one once, into one large buffer.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{setsockopt, sockopt::RcvBuf},
};

use crate::{
    machine::now_ns,
    wire::{Scan, Wire, field},
};

/// Bytes taken from one socket in one turn at most.
const READ_BYTES: usize = 256 * 1024;

/// Streams that wait for their head at once while many are opened: less than any listener's backlog, since a SYN that
/// is dropped comes again a second later.
const OPENING_MAX: usize = 500;

/// One stream in so many gives its latencies.
const SAMPLED_EVERY: usize = 16;

/// Nothing that is waited for takes this long; it ends a run that has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the load tells the threads that publish.
#[derive(Default)]
pub(crate) struct Progress {
    /// Events that were delivered so far, over all streams.
    pub(crate) delivered: AtomicU64,
    /// Set when enough was published.
    pub(crate) stop: AtomicBool,
}

/// What has arrived so far, over all streams.
#[derive(Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) heads: usize,
    /// `stream:open` frames.
    pub(crate) opens: usize,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    /// Events that a stream did not get although it got a later one.
    pub(crate) lost: u64,
    /// Events that a stream had got before.
    pub(crate) doubled: u64,
    pub(crate) resets: u64,
    /// Of presence: users that came, went, or did something else.
    pub(crate) changes: u64,
    /// Connections that the server closed.
    pub(crate) ended: usize,
    /// Times a stream was told to come back later, and did so at once.
    pub(crate) refused: u64,
}

struct Stream {
    /// What opened it, to be sent again; empty where nothing is tried twice.
    request: String,
    socket: TcpStream,
    wire: Wire,
    /// The number that the next event must have; 0 takes any.
    next: u64,
    received: u64,
    id: Vec<u8>,
    sampled: bool,
}

/// Streams to one server.
pub(crate) struct Fleet {
    epoll: Epoll,
    streams: Vec<Stream>,
    scan: Scan,
    buffer: Vec<u8>,
    /// Whether each stream begins with `stream:open`.
    greeted: bool,
    keeps_ids: bool,
    /// Whether streams that are told to come back later do.
    persists: bool,
    address: String,
    pub(crate) totals: Totals,
    /// From the send of an event to its receipt, in nanoseconds, for a sample of the streams.
    pub(crate) latencies: Histogram<u64>,
    pub(crate) progress: Arc<Progress>,
}

impl Fleet {
    /// A fleet without streams. `needle` stands before an event's number; `greeted`: streams begin with `stream:open`.
    pub(crate) fn new(needle: &'static str, greeted: bool) -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            streams: Vec::new(),
            scan: Scan::new(needle),
            buffer: vec![0; READ_BYTES],
            greeted,
            keeps_ids: false,
            persists: false,
            address: String::new(),
            totals: Totals::default(),
            latencies: latencies()?,
            progress: Arc::default(),
        })
    }

    /// Keeps the last id of each stream.
    pub(crate) fn keeping_ids(mut self) -> Self {
        self.keeps_ids = true;
        self
    }

    /// Asks again, at once, where a server answers 429 or 503.
    pub(crate) fn persisting(mut self) -> Self {
        self.persists = true;
        self
    }

    /// Opens a stream for each request, and returns once all are open. Each must get event 1 first.
    pub(crate) fn open(&mut self, address: &str, requests: impl IntoIterator<Item = String>) -> Result<()> {
        address.clone_into(&mut self.address);
        for request in requests {
            self.connect(request)?;
            while self.streams.len() - self.totals.heads > OPENING_MAX {
                self.turn(Duration::from_millis(100))?;
            }
        }
        let count = self.streams.len();
        self.wait("every stream to open", |fleet| {
            fleet.totals.heads == count && (!fleet.greeted || fleet.totals.opens == count)
        })
    }

    fn connect(&mut self, request: String) -> Result<()> {
        let nth = self.streams.len();
        let socket = self.ask(nth, &request)?;
        let request = if self.persists { request } else { String::new() };
        let sampled = nth.is_multiple_of(SAMPLED_EVERY);
        self.streams.push(Stream { request, socket, wire: Wire::new(), next: 1, received: 0, id: Vec::new(), sampled });
        Ok(())
    }

    fn ask(&self, nth: usize, request: &str) -> Result<TcpStream> {
        let mut socket =
            TcpStream::connect(&self.address).with_context(|| format!("connecting to {}", self.address))?;
        socket.write_all(request.as_bytes())?;
        socket.set_nonblocking(true)?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, nth as u64))?;
        Ok(socket)
    }

    fn refused(&mut self, nth: usize, answer: &str) -> Result<()> {
        let later = answer.starts_with("HTTP/1.1 503") || answer.starts_with("HTTP/1.1 429");
        if !later || !self.persists {
            bail!("a stream was refused: {answer}");
        }
        self.totals.refused += 1;
        self.epoll.delete(&self.streams[nth].socket)?;
        self.streams[nth].socket = self.ask(nth, &self.streams[nth].request)?;
        self.streams[nth].wire = Wire::new();
        Ok(())
    }

    /// Reads what is there, waiting for at most `timeout`.
    pub(crate) fn turn(&mut self, timeout: Duration) -> Result<()> {
        let mut ready = [EpollEvent::empty(); 1024];
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &ready[..count] {
            self.read(usize::try_from(event.data())?)?;
        }
        self.progress.delivered.store(self.totals.deliveries, Ordering::Relaxed);
        Ok(())
    }

    fn read(&mut self, nth: usize) -> Result<()> {
        let Self { streams, buffer, totals, latencies, scan, keeps_ids, .. } = self;
        let stream = &mut streams[nth];
        let count = match stream.socket.read(buffer) {
            Ok(0) => return self.end(nth),
            Ok(count) => count,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return self.end(nth),
            Err(error) => return Err(error.into()),
        };
        let now = now_ns();
        let Stream { wire, next, received, id, sampled, .. } = stream;
        let was_open = wire.is_open();
        totals.bytes += count as u64;
        wire.push(&buffer[..count], scan, |frame| {
            match scan.number(frame) {
                Some((number, sent)) => {
                    *received += 1;
                    judge(totals, next, number);
                    if *sampled {
                        latencies.saturating_record(now.saturating_sub(sent));
                    }
                }
                None => other(totals, frame),
            }
            if *keeps_ids && let Some(now) = field(frame, "id") {
                id.clear();
                id.extend_from_slice(now);
            }
        })?;
        totals.heads += usize::from(!was_open && wire.is_open());
        let refusal = wire.refusal();
        refusal.map_or(Ok(()), |answer| self.refused(nth, &answer))
    }

    fn end(&mut self, nth: usize) -> Result<()> {
        self.epoll.delete(&self.streams[nth].socket)?;
        self.totals.ended += 1;
        Ok(())
    }

    /// Reads for this long.
    pub(crate) fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.turn(left.min(Duration::from_millis(20)))?;
        }
        Ok(())
    }

    /// Reads until something holds.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub(crate) fn wait(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !holds(self) {
            if began.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} for {what}: {}", self.state());
            }
            self.turn(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Waits until every stream got `events` events, or as good as: those that it lost count.
    pub(crate) fn wait_for_each(&mut self, events: u64) -> Result<()> {
        let all = events * self.streams.len() as u64;
        self.wait(&format!("{events} events on each stream"), |fleet| {
            fleet.totals.deliveries + fleet.totals.lost >= all
        })
    }

    fn state(&self) -> String {
        let Totals { heads, opens, deliveries, lost, doubled, resets, ended, refused, .. } = self.totals;
        let streams = self.streams.len();
        format!(
            "{streams} streams, {heads} heads, {opens} open, {ended} ended, {deliveries} deliveries, {lost} lost, \
             {doubled} doubled, {resets} resets, {refused} refused"
        )
    }

    /// How many streams got exactly `events` events.
    pub(crate) fn with_exactly(&self, events: u64) -> usize {
        self.streams.iter().filter(|stream| stream.received == events && stream.next == events + 1).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// The last id of each stream.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.streams.iter().map(|stream| String::from_utf8_lossy(&stream.id).into_owned()).collect()
    }

    /// Forgets the latencies so far.
    pub(crate) fn forget_latencies(&mut self) {
        self.latencies.reset();
    }

    /// Of these streams no latencies are taken, and their sockets take few bytes ahead.
    pub(crate) fn set_slow(&mut self, streams: usize) -> Result<()> {
        for (nth, stream) in self.streams.iter_mut().enumerate() {
            stream.sampled = nth >= streams;
            if nth < streams {
                setsockopt(&stream.socket, RcvBuf, &(64 * 1024))?;
            }
        }
        Ok(())
    }

    /// Reads nothing more from the first streams.
    pub(crate) fn pause(&self, streams: usize) -> Result<()> {
        self.streams[..streams].iter().try_for_each(|stream| Ok(self.epoll.delete(&stream.socket)?))
    }

    /// Reads on.
    pub(crate) fn resume(&self, streams: usize) -> Result<()> {
        let add = |(nth, stream): (usize, &Stream)| {
            Ok(self.epoll.add(&stream.socket, EpollEvent::new(EpollFlags::EPOLLIN, nth as u64))?)
        };
        self.streams[..streams].iter().enumerate().try_for_each(add)
    }
}

fn judge(totals: &mut Totals, next: &mut u64, number: u64) {
    totals.deliveries += 1;
    if number < *next {
        totals.doubled += 1;
        return;
    }
    totals.lost += number - *next;
    *next = number + 1;
}

fn other(totals: &mut Totals, frame: &[u8]) {
    match field(frame, "event") {
        Some(b"stream:open") => totals.opens += 1,
        Some(b"stream:reset") => totals.resets += 1,
        Some(b"presence:change") => totals.changes += 1,
        _ => {}
    }
}

/// Latencies in nanoseconds, to a minute, with two digits.
pub(crate) fn latencies() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1000, 60_000_000_000, 2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_missing_or_come_again_are_counted() {
        let (mut totals, mut next) = (Totals::default(), 1);
        for number in [1, 2, 5, 5, 6, 3] {
            judge(&mut totals, &mut next, number);
        }
        assert_eq!((totals.deliveries, totals.lost, totals.doubled, next), (6, 2, 2, 7));
    }
}
