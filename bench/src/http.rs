//! Requests over one connection that is kept: as cheap for the machine as a client can be, so that the figures are the
//! server's.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, bail};

/// A connection to a server.
pub(crate) struct Http {
    connection: BufReader<TcpStream>,
    /// The headers of every request, each line ended.
    headers: String,
}

impl Http {
    /// Connects; an empty token is none.
    pub(crate) fn connect(address: &str, token: &str) -> Result<Self> {
        let connection = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        connection.set_nodelay(true)?;
        let json = "Content-Type: application/json\r\n";
        let headers = match token {
            "" => format!("Host: bench\r\n{json}"),
            token => format!("Host: bench\r\n{json}Authorization: Bearer {token}\r\n"),
        };
        Ok(Self { connection: BufReader::new(connection), headers })
    }

    /// Sends a request and gives the answer's body.
    ///
    /// # Errors
    /// When the answer is none of 2xx.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\n{}Content-Length: {length}\r\n\r\n{body}", self.headers);
        self.connection.get_mut().write_all(request.as_bytes())?;
        let (status, length) = self.head()?;
        let mut body = vec![0; length];
        self.connection.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if !status.starts_with('2') {
            bail!("{method} {path}: {status} {body}");
        }
        Ok(body)
    }

    fn head(&mut self) -> Result<(String, usize)> {
        let (mut line, mut length) = (String::new(), 0);
        self.connection.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("the server closed the connection")?.to_owned();
        loop {
            line.clear();
            self.connection.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                return Ok((status, length));
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
    }
}

/// The request that opens a stream. Empty texts are left out.
pub(crate) fn events(rooms: &str, token: &str, last_event_id: &str) -> String {
    let line = |name: &str, value: &str| if value.is_empty() { String::new() } else { format!("{name}{value}\r\n") };
    let auth = line("Authorization: Bearer ", token);
    let id = line("Last-Event-ID: ", last_event_id);
    format!("GET /events?rooms={rooms} HTTP/1.1\r\nHost: bench\r\n{auth}{id}\r\n")
}
