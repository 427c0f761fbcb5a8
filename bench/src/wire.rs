//! Reads an HTTP/1.1 answer that is a stream of events: the head, the chunks of the body, the frames in them.
//!
//! Frames that arrive whole are looked at where they lie in the read buffer; only what a read or a chunk cut in two is
//! copied.

use anyhow::{Context as _, Result, bail};
use memchr::memmem::{self, Finder};

/// What a frame's numbers stand behind, and where frames end.
pub(crate) struct Scan {
    end: Finder<'static>,
    number: Finder<'static>,
}

impl Scan {
    /// For events whose payload has `needle` right before the event's number and the time of its sending.
    pub(crate) fn new(needle: &'static str) -> Self {
        Self { end: Finder::new(b"\n\n"), number: Finder::new(needle) }
    }

    /// The number and the time of sending in an event of the bench; none in any other frame.
    pub(crate) fn number(&self, frame: &[u8]) -> Option<(u64, u64)> {
        let at = self.number.find(frame)? + self.number.needle().len();
        let (number, rest) = digits(&frame[at..]);
        let gap = rest.iter().position(u8::is_ascii_digit)?;
        Some((number, digits(&rest[gap..]).0))
    }
}

fn digits(bytes: &[u8]) -> (u64, &[u8]) {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if !byte.is_ascii_digit() {
            return (value, &bytes[at..]);
        }
        value = value * 10 + u64::from(byte - b'0');
    }
    (value, &[])
}

/// A field of a frame, such as `id`.
pub(crate) fn field<'a>(frame: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = frame.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b": "))
}

/// Where in the answer a stream is.
enum Phase {
    Head,
    /// In the size of a chunk, as far as it was read.
    Size(usize),
    /// Behind the size, before the end of its line.
    Extension(usize),
    Chunk(usize),
    /// Before the end of the line that ends a chunk: so many bytes are left of it.
    ChunkEnd(usize),
    /// A body without chunks lasts as long as the connection.
    Whole,
    Ended,
    /// The answer was none of 200; all of it is in `carry`.
    Refused,
}

/// One answer, as far as it has been read.
pub(crate) struct Wire {
    phase: Phase,
    /// The beginning of a head or of a frame whose end has not come yet.
    carry: Vec<u8>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self { phase: Phase::Head, carry: Vec::new() }
    }

    /// Whether the head has come, and said 200.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Head | Phase::Refused)
    }

    /// The answer as far as it has come, when it is another one than 200.
    pub(crate) fn refusal(&self) -> Option<String> {
        matches!(self.phase, Phase::Refused).then(|| String::from_utf8_lossy(&self.carry).into_owned())
    }

    /// Takes bytes that were read, and gives each frame that is complete, with its empty line.
    ///
    /// # Errors
    /// When the answer is not HTTP/1.1.
    pub(crate) fn push(&mut self, mut bytes: &[u8], scan: &Scan, mut frame: impl FnMut(&[u8])) -> Result<()> {
        while let Some(&first) = bytes.first() {
            match self.phase {
                Phase::Head => bytes = self.head(bytes)?,
                Phase::Size(size) => {
                    bytes = &bytes[1..];
                    self.phase = match (first as char).to_digit(16) {
                        Some(digit) => Phase::Size(size * 16 + digit as usize),
                        None if first == b'\r' || first == b';' => Phase::Extension(size),
                        None => bail!("a chunk whose size has the byte {first}"),
                    };
                }
                Phase::Extension(size) => {
                    bytes = &bytes[1..];
                    if first == b'\n' {
                        self.phase = if size == 0 { Phase::Ended } else { Phase::Chunk(size) };
                    }
                }
                Phase::Chunk(left) => {
                    let (now, later) = bytes.split_at(left.min(bytes.len()));
                    self.payload(now, scan, &mut frame);
                    self.phase = if now.len() == left { Phase::ChunkEnd(2) } else { Phase::Chunk(left - now.len()) };
                    bytes = later;
                }
                Phase::ChunkEnd(left) => {
                    bytes = &bytes[1..];
                    self.phase = if left == 1 { Phase::Size(0) } else { Phase::ChunkEnd(left - 1) };
                }
                Phase::Whole => {
                    self.payload(bytes, scan, &mut frame);
                    return Ok(());
                }
                Phase::Ended | Phase::Refused => return Ok(()),
            }
        }
        Ok(())
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let before = self.carry.len();
        self.carry.extend_from_slice(bytes);
        let Some(end) = memmem::find(&self.carry, b"\r\n\r\n") else { return Ok(&[]) };
        let head = String::from_utf8_lossy(&self.carry[..end]).to_ascii_lowercase();
        if head.split(' ').nth(1).context("an answer without a status")? != "200" {
            self.phase = Phase::Refused;
            return Ok(&[]);
        }
        self.phase = if head.contains("transfer-encoding: chunked") { Phase::Size(0) } else { Phase::Whole };
        self.carry = Vec::new();
        Ok(&bytes[end + 4 - before..])
    }

    fn payload(&mut self, mut bytes: &[u8], scan: &Scan, frame: &mut impl FnMut(&[u8])) {
        if !self.carry.is_empty() {
            let halved = self.carry.ends_with(b"\n") && bytes.starts_with(b"\n");
            let end = if halved { Some(1) } else { scan.end.find(bytes).map(|at| at + 2) };
            self.carry.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            let Some(end) = end else { return };
            frame(&self.carry);
            self.carry.clear();
            bytes = &bytes[end..];
        }
        while let Some(at) = scan.end.find(bytes) {
            let (whole, rest) = bytes.split_at(at + 2);
            frame(whole);
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: [&str; 3] = [
        "retry: 2000\nevent: stream:open\nid: a-1\ndata: {}\n\n",
        "event: bench:tick\nid: a-2\ndata: {\"n\":17,\"t\":42,\"text\":\"x\"}\n\n",
        "event: project:updated\nid: a-3\ndata: {\"newValue\":\"18 43 x\"}\n\n",
    ];

    fn read(answer: &[u8], piece: usize) -> Vec<String> {
        let (mut wire, scan, mut frames) = (Wire::new(), Scan::new("\"n\":"), Vec::new());
        for bytes in answer.chunks(piece) {
            wire.push(bytes, &scan, |frame| frames.push(String::from_utf8(frame.to_vec()).unwrap())).unwrap();
        }
        frames
    }

    #[test]
    fn frames_arrive_whole_however_reads_and_chunks_cut_them() {
        let body = FRAMES.concat();
        for chunk in [1, 7, 50, 1000] {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for bytes in body.as_bytes().chunks(chunk) {
                answer.extend(format!("{:x}\r\n", bytes.len()).bytes());
                answer.extend([bytes, b"\r\n"].concat());
            }
            answer.extend(b"0\r\n\r\n");
            for piece in [1, 2, 3, 64, 5000] {
                assert_eq!(read(&answer, piece), FRAMES, "chunks of {chunk}, reads of {piece}");
            }
        }
        let whole = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
        assert_eq!(read(whole.as_bytes(), 5), FRAMES);
    }

    #[test]
    fn numbers_and_ids_are_found_in_both_kinds_of_events() {
        assert_eq!(Scan::new("{\"n\":").number(FRAMES[1].as_bytes()), Some((17, 42)));
        assert_eq!(Scan::new("\"newValue\":\"").number(FRAMES[2].as_bytes()), Some((18, 43)));
        assert_eq!(Scan::new("{\"n\":").number(FRAMES[0].as_bytes()), None);
        assert_eq!(field(FRAMES[0].as_bytes(), "id"), Some(&b"a-1"[..]));
    }

    #[test]
    fn an_answer_other_than_200_is_no_open_stream_and_can_be_shown() {
        let (mut wire, scan) = (Wire::new(), Scan::new("n"));
        wire.push(b"HTTP/1.1 403 Forbidden\r\n\r\nnot you", &scan, |_| ()).unwrap();
        assert!(!wire.is_open());
        assert_eq!(wire.refusal().as_deref(), Some("HTTP/1.1 403 Forbidden\r\n\r\nnot you"));
        assert!(Wire::new().push(b"nonsense\r\n\r\n", &scan, |_| ()).is_err());
    }
}
