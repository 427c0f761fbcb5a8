//! The connections: accepted one by one, each served by a task of its own.
//!
//! hyper's own HTTP/1 builder around the router, since a stream costs a third of the memory that it costs with
//! `axum::serve`. Every connection is bounded: its head and its buffers in bytes and time, and its socket in what the
//! kernel holds for it and in how long its peer may acknowledge nothing.

mod watched;

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
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, SemaphorePermit, futures::OwnedNotified, oneshot},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::TaskTracker;

use self::watched::{Stall, Watched, bound_buffers};
use super::address::Peer;
use crate::metrics::Metrics;

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
    /// The longest time for a peer to acknowledge not one byte of what waits for it.
    pub stall_timeout: Duration,
}

/// Accepts connections and serves them.
pub struct Acceptor {
    listener: TcpListener,
    router: Router,
    settings: AcceptSettings,
    stall: Arc<Stall>,
    shared: Arc<Shared>,
    connections: TaskTracker,
}

impl Acceptor {
    /// Serves `router` on `listener`.
    pub fn new(listener: TcpListener, router: Router, settings: AcceptSettings, metrics: Arc<Metrics>) -> Self {
        metrics.connections_max.set(settings.connections_max.try_into().unwrap_or(i64::MAX));
        if let Err(error) = bound_buffers(&listener) {
            tracing::warn!(%error, "cannot bound what the kernel holds for each connection");
        }
        let stall = Arc::new(Stall { timeout: settings.stall_timeout, cut: metrics.connections_stalled.clone() });
        let places = Semaphore::new(settings.connections_max);
        let shared = Arc::new(Shared { metrics, places, phase: Phase::default() });
        Self { listener, router, settings, stall, shared, connections: TaskTracker::new() }
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
        let (shared, connections) = (self.shared.clone(), self.connections.clone());
        if let Err(error) = self.serve_the_last() {
            tracing::warn!(%error, "connections that were made at the end are lost");
        }
        sleep(LINGER).await;
        shared.phase.enter(Phase::CLOSING);
        connections.close();
        let is_done = timeout_at(deadline, connections.wait()).await.is_ok();
        shared.phase.enter(Phase::CUT);
        connections.wait().await;
        is_done
    }

    /// Serves who was let in by the kernel, then stops listening. The kernel is asked itself: of a connection that was made
    /// just now the runtime learns only later.
    fn serve_the_last(self) -> io::Result<()> {
        let kernel = std::net::TcpListener::from(self.listener.as_fd().try_clone_to_owned()?);
        while let Ok(place) = self.shared.places.try_acquire() {
            match kernel.accept() {
                Ok((socket, peer)) => {
                    socket.set_nonblocking(true)?;
                    let place = Place::take(&self.shared, place);
                    self.serve((TcpStream::from_std(socket)?, Peer::at(peer), place));
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn accept(&self) -> (TcpStream, Peer, Place) {
        let place = self.shared.places.acquire().await.expect("nobody closes the semaphore");
        loop {
            match self.listener.accept().await {
                Ok((socket, peer)) => return (socket, Peer::at(peer), Place::take(&self.shared, place)),
                // The client was gone before it was accepted.
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn serve(&self, (socket, peer, place): (TcpStream, Peer, Place)) {
        self.shared.metrics.connections_accepted.inc();
        // Events are small and must not wait for more to fill a packet.
        let _ = socket.set_nodelay(true);
        let socket = Watched::new(socket, self.stall.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.settings.head_timeout).max_buf_size(BUFFER_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(socket), Routes { router: self.router.clone(), peer });
        let changed = self.shared.phase.changed.clone().notified_owned();
        self.connections.spawn(Serving { connection, changed, seen: Phase::OPEN, listens: false, place });
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
#[derive(Default)]
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

/// What all connections share.
struct Shared {
    metrics: Arc<Metrics>,
    places: Semaphore,
    phase: Phase,
}

/// A connection's place, counted for as long as it is taken.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>, place: SemaphorePermit<'_>) -> Self {
        place.forget();
        shared.metrics.connections.inc();
        Self(shared.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
        self.0.places.add_permits(1);
    }
}

pin_project! {
    /// Runs a connection to its end, or to that of its phase. Written by hand: an async block would hold the connection
    /// once for each function that it is handed to, and there are ten thousand.
    struct Serving {
        #[pin]
        connection: http1::Connection<TokioIo<Watched>, Routes>,
        // Made before the phase is looked at: a change in between is not missed.
        #[pin]
        changed: OwnedNotified,
        seen: u8,
        listens: bool,
        place: Place,
    }
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let phase = &this.place.0.phase;
        let now = phase.now();
        if now == Phase::CUT {
            return Poll::Ready(());
        }
        if now != *this.seen {
            *this.seen = now;
            this.connection.as_mut().graceful_shutdown();
            this.changed.set(phase.changed.clone().notified_owned());
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
