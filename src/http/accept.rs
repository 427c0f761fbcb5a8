//! The connections: accepted one by one, each served by a task of its own.
//!
//! hyper's own HTTP/1 builder around the router, since a stream costs a third of the memory that it costs with
//! `axum::serve`. Every connection is bounded: its head and its buffers in bytes and time, and its socket in how long it may
//! take nothing.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, response::Response, routing::future::RouteFuture};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::OwnedNotified, oneshot},
    time::{Instant, Sleep, sleep, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::address::Peer;
use crate::metrics::{Counter, Gauge, Metrics};

/// What hyper may hold for one connection: of its requests' heads, and of what its socket did not take yet.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long a request that was on its way when the last stream ended has to arrive.
const LINGER: Duration = Duration::from_millis(100);

/// The wait after an error that another try would meet at once, such as too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What bounds the connections.
#[derive(Debug, Clone, Copy)]
pub struct AcceptSettings {
    /// Connections at most; more wait in the kernel's queue.
    pub connections_max: usize,
    /// The longest time for a request's head to arrive.
    pub head_timeout: Duration,
    /// The longest time for a socket to take not one byte of what waits for it.
    pub stall_timeout: Duration,
}

/// Accepts connections and serves them.
pub struct Acceptor {
    listener: TcpListener,
    router: Router,
    settings: AcceptSettings,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    stall: Arc<Stall>,
    phase: Arc<Phase>,
    connections: TaskTracker,
}

impl Acceptor {
    /// Serves `router` on `listener`.
    pub fn new(listener: TcpListener, router: Router, settings: AcceptSettings, metrics: Arc<Metrics>) -> Self {
        metrics.connections_max.set(settings.connections_max.try_into().unwrap_or(i64::MAX));
        let places = Arc::new(Semaphore::new(settings.connections_max));
        let stall = Arc::new(Stall { timeout: settings.stall_timeout, cut: metrics.connections_stalled.clone() });
        let (phase, connections) = (Arc::default(), TaskTracker::new());
        Self { listener, router, settings, metrics, places, stall, phase, connections }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until `stop` gives a deadline, then finishes the requests under way and cuts what is left at the deadline.
    /// Returns whether nothing had to be cut.
    pub async fn run(self, mut stop: oneshot::Receiver<Instant>) -> bool {
        let deadline = loop {
            tokio::select! {
                deadline = &mut stop => break deadline.unwrap_or_else(|_| Instant::now()),
                accepted = self.accept() => self.serve(accepted),
            }
        };
        let (phase, connections) = (self.phase.clone(), self.connections.clone());
        if let Err(error) = self.serve_the_last() {
            tracing::warn!(%error, "connections that were made at the end are lost");
        }
        sleep(LINGER).await;
        phase.enter(Phase::CLOSING);
        connections.close();
        let is_done = timeout_at(deadline, connections.wait()).await.is_ok();
        phase.enter(Phase::CUT);
        connections.wait().await;
        is_done
    }

    /// Serves who was let in by the kernel, then stops listening. The kernel is asked itself: of a connection that was made
    /// just now the runtime learns only later.
    fn serve_the_last(self) -> io::Result<()> {
        let kernel = std::net::TcpListener::from(self.listener.as_fd().try_clone_to_owned()?);
        while let Ok(place) = self.places.clone().try_acquire_owned() {
            match kernel.accept() {
                Ok((socket, peer)) => {
                    socket.set_nonblocking(true)?;
                    self.serve((TcpStream::from_std(socket)?, Peer::at(peer), place));
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn accept(&self) -> (TcpStream, Peer, OwnedSemaphorePermit) {
        let place = self.places.clone().acquire_owned().await.expect("nobody closes the semaphore");
        loop {
            match self.listener.accept().await {
                Ok((socket, peer)) => return (socket, Peer::at(peer), place),
                // The client was gone before it was accepted.
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn serve(&self, (socket, peer, place): (TcpStream, Peer, OwnedSemaphorePermit)) {
        self.metrics.connections_accepted.inc();
        // Events are small and must not wait for more to fill a packet.
        let _ = socket.set_nodelay(true);
        let socket = Watched::new(socket, self.stall.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.settings.head_timeout).max_buf_size(BUFFER_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(socket), Routes { router: self.router.clone(), peer });
        let changed = self.phase.changed.clone().notified_owned();
        let phase = self.phase.clone();
        let open = Open::new(self.metrics.connections.clone(), place);
        self.connections.spawn(Serving { connection, phase, changed, seen: Phase::OPEN, listens: false, open });
    }
}

/// What serves the requests of one connection.
struct Routes {
    router: Router,
    peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Routes {
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        tower::Service::call(&mut self.router.clone(), request)
    }
}

/// What every connection is told. Looking costs one load: ten thousand connections look whenever an event goes out.
#[derive(Debug, Default)]
struct Phase {
    now: AtomicU8,
    changed: Arc<Notify>,
}

impl Phase {
    /// Requests are taken.
    const OPEN: u8 = 0;
    /// A connection ends with the request that it is in.
    const CLOSING: u8 = 1;
    /// A connection ends now.
    const CUT: u8 = 2;

    fn enter(&self, phase: u8) {
        self.now.store(phase, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    fn now(&self) -> u8 {
        self.now.load(Ordering::SeqCst)
    }
}

/// A connection's place, counted for as long as it is taken.
struct Open {
    gauge: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(gauge: Gauge, place: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

pin_project! {
    /// Runs a connection to its end, or to that of its phase. Written by hand: an async block would hold the connection
    /// once for each function that it is handed to, and there are ten thousand.
    struct Serving {
        #[pin]
        connection: http1::Connection<TokioIo<Watched>, Routes>,
        phase: Arc<Phase>,
        // Made before the phase is looked at: a change in between is not missed.
        #[pin]
        changed: OwnedNotified,
        seen: u8,
        listens: bool,
        open: Open,
    }
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let now = this.phase.now();
        if now == Phase::CUT {
            return Poll::Ready(());
        }
        if now != *this.seen {
            *this.seen = now;
            this.connection.as_mut().graceful_shutdown();
            this.changed.set(this.phase.changed.clone().notified_owned());
            *this.listens = false;
        }
        if !std::mem::replace(this.listens, true) && this.changed.poll(cx).is_ready() {
            // It changed once more just now: look again.
            cx.waker().wake_by_ref();
        }
        let ended = ready!(this.connection.poll(cx));
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
        Poll::Ready(())
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A socket that breaks once it has taken not one byte for too long of what was there to write.
///
/// The kernel takes bytes into its own buffers first, some megabytes of them, so that only what comes after those is
/// seen to wait.
struct Watched {
    socket: TcpStream,
    stall: Arc<Stall>,
    /// Set while a write waits for the socket: a socket that takes all has no timer.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What is the same for every socket.
struct Stall {
    /// How long one may take nothing.
    timeout: Duration,
    /// Counts those that took nothing for longer.
    cut: Counter,
}

impl Watched {
    fn new(socket: TcpStream, stall: Arc<Stall>) -> Self {
        Self { socket, stall, stalled: None }
    }

    /// What became of a write of `bytes`: one that waits for too long is an error.
    fn watch(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall.timeout)));
        ready!(stalled.as_mut().poll(cx));
        self.stalled = None;
        match self.write_unasked(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stall.cut.inc();
                let message = "the socket took nothing for stall-timeout";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
            written => Poll::Ready(written),
        }
    }

    /// Writes to a socket that the kernel does not call writable: it waits with that until a third of its buffer is free,
    /// which a client that reads slowly may need minutes for, and takes single bytes long before.
    fn write_unasked(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.socket, bytes)?)
    }
}

/// Pieces that are written as one when they have no more bytes: copying so few costs less than the system's call for many.
const JOINED_BYTES_MAX: usize = 512;

/// The pieces one after the other, if they fit.
fn join<'a>(pieces: &[io::IoSlice<'_>], joined: &'a mut [u8; JOINED_BYTES_MAX]) -> Option<&'a [u8]> {
    let mut end = 0;
    for piece in pieces {
        joined.get_mut(end..end + piece.len())?.copy_from_slice(piece);
        end += piece.len();
    }
    Some(&joined[..end])
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.watch(cx, bytes, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut joined = [0; JOINED_BYTES_MAX];
        if let Some(joined) = join(bytes, &mut joined) {
            return self.poll_write(cx, joined);
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        let first = bytes.iter().find(|bytes| !bytes.is_empty()).map_or(&[][..], |bytes| &**bytes);
        self.watch(cx, first, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection's task is 112 bytes larger than this, in steps of 128. The allocator's classes are as far apart, so one
    /// byte more would cost ten thousand streams 1.3 MB.
    #[test]
    fn a_connection_takes_no_more_memory_than_seven_steps() {
        assert!(size_of::<Serving>() <= 7 * 128 - 112, "{}", size_of::<Serving>());
    }
}
