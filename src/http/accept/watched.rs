//! A socket that breaks once its peer has acknowledged not one byte of what waits for it for too long.
//!
//! What the kernel takes is no sign of life: it takes bytes into a buffer of its own, also when nobody reads them. So the
//! peer's acknowledgements are looked at, which the kernel counts ("TCP_INFO" in tcp(7)). The answer to a probe of a shut
//! window acknowledges nothing. A receiver that reads slowly opens its window in large steps, and Linux acknowledges up to
//! its whole receive buffer at once: that is what a client reads in `stall-timeout` at least to be called steady.
//!
//! `TCP_USER_TIMEOUT` is no substitute: with a shut window it counts from the first probe until the window has room for the
//! *whole* first segment in the queue (`tcp_ack_probe` and `tcp_probe_timer` in Linux). Under Linux 6.18 it ended
//! connections whose peer acknowledged 4 kB each second and a half.
//!
//! There is no timer but while a write waits, and no look but at a write, once in `stall-timeout`. A stream on which nothing
//! happens is written to at each heartbeat.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep, sleep},
};

use crate::metrics::Counter;

/// What the kernel takes for one connection before it calls the socket full; Linux doubles it for what it needs itself. Of a
/// client that reads nothing half a megabyte waits so, and one that is 100 ms away can still be sent 4 MB each second.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Bounds what the kernel holds for each connection that is accepted from now on: they take it over from their listener.
pub(super) fn bound_buffers(listener: &TcpListener) -> io::Result<()> {
    Ok(setsockopt(listener, SndBuf, &SEND_BUFFER_BYTES)?)
}

/// What a peer has acknowledged, and whether anything waits for it to.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    bytes: u64,
    waits: bool,
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::{getsockopt_impl, libc, sockopt_impl, sys::socket::getsockopt};

    use super::{Acknowledged, TcpStream, io};

    /// The beginning of what the kernel says of a connection: `struct tcp_info` in linux/tcp.h up to what is of interest.
    #[derive(Debug, Clone, Copy)]
    #[repr(C)]
    #[expect(unreachable_pub, reason = "the macro makes a `pub` type of the option, whose value this is")]
    pub struct TcpInfo {
        _states: [u8; 8],
        _times: [u32; 4],
        /// Segments that were sent and not acknowledged.
        unacked: u32,
        _more: [u32; 19],
        _rates: [u64; 2],
        bytes_acked: u64,
        _bytes_received: u64,
        _segments: [u32; 2],
        /// Bytes that were not sent yet.
        unsent_bytes: u32,
        _min_rtt: u32,
    }

    sockopt_impl!(
        /// What the kernel says of a connection.
        Connection, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfo
    );

    /// What the peer of this socket has acknowledged.
    pub(super) fn acknowledged(socket: &TcpStream) -> io::Result<Acknowledged> {
        let info = getsockopt(socket, Connection)?;
        Ok(Acknowledged { bytes: info.bytes_acked, waits: info.unacked > 0 || info.unsent_bytes > 0 })
    }
}
#[cfg(target_os = "linux")]
use linux::acknowledged;

/// Other systems, on which crewcast is developed and not run, count otherwise: there nobody is cut.
#[cfg(not(target_os = "linux"))]
fn acknowledged(_: &TcpStream) -> io::Result<Acknowledged> {
    Ok(Acknowledged { bytes: 0, waits: false })
}

/// What is the same for every socket.
pub(super) struct Stall {
    /// How long a peer may acknowledge nothing.
    pub(super) timeout: Duration,
    /// Counts those that did so for longer.
    pub(super) cut: Counter,
}

/// What the peer had acknowledged when something was written.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    bytes_acked: u64,
}

pub(super) struct Watched {
    socket: TcpStream,
    stall: Arc<Stall>,
    /// Of a write that is no older than `stall-timeout`, or was the last one.
    mark: Option<Mark>,
    /// Set while a write waits for the socket: a socket that takes all has no timer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(socket: TcpStream, stall: Arc<Stall>) -> Self {
        Self { socket, stall, mark: None, timer: None }
    }

    /// Writes, and is an error when what was written before, or waits, was acknowledged by nobody for too long.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.look()?;
        let written = write(Pin::new(&mut self.socket), cx);
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        loop {
            let left = self.left();
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            self.look()?;
        }
    }

    /// Looks at the peer's acknowledgements, if the time is up, and makes a mark for the next time. Something is written
    /// or waits at this moment: if it is not acknowledged until then, nothing is.
    fn look(&mut self) -> io::Result<()> {
        if self.mark.is_some() && !self.left().is_zero() {
            return Ok(());
        }
        let Acknowledged { bytes, waits } = acknowledged(&self.socket)?;
        if waits && self.mark.is_some_and(|mark| mark.bytes_acked == bytes) {
            self.stall.cut.inc();
            // What waits in the kernel would stay there for minutes.
            self.socket.set_zero_linger()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer acknowledged nothing for stall-timeout"));
        }
        self.mark = Some(Mark { at: Instant::now(), bytes_acked: bytes });
        Ok(())
    }

    /// How long it is until the next look.
    fn left(&self) -> Duration {
        self.stall.timeout.saturating_sub(self.mark.map_or(Duration::ZERO, |mark| mark.at.elapsed()))
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
        self.write(cx, |socket, cx| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut joined = [0; JOINED_BYTES_MAX];
        self.write(cx, |socket, cx| match join(bytes, &mut joined) {
            Some(joined) => socket.poll_write(cx, joined),
            None => socket.poll_write_vectored(cx, bytes),
        })
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
