//! The floor: what the kernel alone costs. It answers each `GET` with a head and keeps the socket; of each `POST` it
//! writes the body, as it came, to every socket. No server can deliver the same bytes to as many sockets one event at a
//! time with less.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};

type Sockets = Arc<Mutex<Vec<TcpStream>>>;

/// Serves until the process is ended.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("the floor listens on http://{}", listener.local_addr()?);
    let sockets = Sockets::default();
    for socket in listener.incoming() {
        let (requests, sockets) = (BufReader::new(socket?), sockets.clone());
        std::thread::spawn(move || connection(requests, &sockets));
    }
    Ok(())
}

/// A stream's connection is kept and has no thread any more; a publisher's has one for as long as it lasts.
fn connection(mut requests: BufReader<TcpStream>, sockets: &Sockets) -> Result<()> {
    let (line, mut body) = request(&mut requests)?;
    if line.starts_with("GET") {
        let mut socket = requests.into_inner();
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        lock(sockets).push(socket);
        return Ok(());
    }
    loop {
        // A socket whose stream has ended takes nothing, and is forgotten.
        lock(sockets).retain_mut(|socket| socket.write_all(&body).is_ok());
        requests.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        body = request(&mut requests)?.1;
    }
}

fn lock(sockets: &Sockets) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next request's first line and body.
fn request(requests: &mut BufReader<TcpStream>) -> Result<(String, Vec<u8>)> {
    let (mut first, mut length) = (String::new(), 0);
    ensure!(requests.read_line(&mut first)? > 0, "the connection was closed");
    loop {
        let mut line = String::new();
        requests.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().context("a length that is no number")?;
        }
    }
    let mut body = vec![0; length];
    requests.read_exact(&mut body)?;
    Ok((first, body))
}
