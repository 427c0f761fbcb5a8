//! The wire format of Server-Sent Events: pure bytes in and out.
//!
//! The format is the WHATWG HTML standard's, section 9.2: lines of `field: value`, an empty line ends an event, and a
//! line that begins with a colon is a comment. A value must not contain a line break: `data` is JSON on one line, ids and
//! names are made of visible ASCII; each function says so with an assertion rather than escaping.

use bytes::Bytes;

/// One event. `id` is the position a client resumes from once it has read the whole frame.
///
/// # Panics
/// When a value holds a line break or NUL.
pub fn event(kind: &str, id: Option<&str>, data: &str) -> Bytes {
    assert!(one_line(kind) && id.is_none_or(one_line) && one_line(data), "a field of an event is one line");
    let mut frame = String::with_capacity(kind.len() + id.map_or(0, str::len) + data.len() + 24);
    frame.extend(["event: ", kind, "\n"]);
    if let Some(id) = id {
        frame.extend(["id: ", id, "\n"]);
    }
    frame.extend(["data: ", data, "\n\n"]);
    Bytes::from(frame)
}

/// An event encoded once for everybody, whose id alone can be exchanged.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: Bytes,
    /// Where the id stands.
    id: std::ops::Range<usize>,
}

impl Encoded {
    /// As [`event`].
    ///
    /// # Panics
    /// As [`event`].
    pub fn new(kind: &str, id: &str, data: &str) -> Self {
        let start = "event: ".len() + kind.len() + "\nid: ".len();
        Self { bytes: event(kind, Some(id), data), id: start..start + id.len() }
    }

    /// The frame.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The frame with another id.
    ///
    /// # Panics
    /// As [`event`].
    pub fn with_id(&self, id: &str) -> Bytes {
        assert!(one_line(id), "an id is one line");
        let (head, tail) = (&self.bytes[..self.id.start], &self.bytes[self.id.end..]);
        Bytes::from([head, id.as_bytes(), tail].concat())
    }

    /// The frame without an id: whoever reads it resumes from where it did before.
    pub fn without_id(&self) -> Bytes {
        let line = self.id.start - "id: ".len()..self.id.end + "\n".len();
        Bytes::from([&self.bytes[..line.start], &self.bytes[line.end..]].concat())
    }
}

/// Tells the client how long to wait before it connects again, in milliseconds. Not a frame of its own: it goes before
/// one.
pub fn retry(milliseconds: u64) -> Bytes {
    Bytes::from(format!("retry: {milliseconds}\n"))
}

/// A comment: bytes that keep a connection alive and that no script sees.
///
/// # Panics
/// When the text holds a line break or NUL.
pub fn comment(text: &str) -> Bytes {
    assert!(one_line(text), "a comment is one line");
    Bytes::from(format!(": {text}\n\n"))
}

fn one_line(value: &str) -> bool {
    !value.bytes().any(|byte| matches!(byte, b'\n' | b'\r' | 0))
}

/// A frame as a client reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// The event's name; empty when the frame named none.
    pub event: String,
    /// The last id the stream has set, in this frame or before it.
    pub id: String,
    /// The data lines, joined by line feeds.
    pub data: String,
    /// The reconnection time that stood before this frame, in milliseconds.
    pub retry: Option<u64>,
}

/// Reads frames from a body that arrives in pieces cut anywhere, as the standard says a browser must.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    last_id: String,
    pending: Frame,
    has_data: bool,
}

impl Parser {
    /// A parser for a stream that is asked to resume from this id; empty for none.
    pub fn resuming(last_id: &str) -> Self {
        let pending = Frame { id: last_id.to_owned(), ..Frame::default() };
        Self { last_id: last_id.to_owned(), pending, ..Self::default() }
    }

    /// The complete frames in what has arrived so far.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.buffer.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut start = 0;
        while let Some((line, next)) = take_line(&self.buffer, start) {
            let line = String::from_utf8_lossy(&self.buffer[line]).into_owned();
            start = next;
            frames.extend(self.line(&line));
        }
        self.buffer.drain(..start);
        frames
    }

    /// The id to resume from: that of the last complete frame which had one.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    fn line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.pending.event = value.to_owned(),
            "id" if !value.contains('\0') => self.pending.id = value.to_owned(),
            "retry" => self.pending.retry = value.parse().ok(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.pending.data.push('\n');
                }
                self.pending.data.push_str(value);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Frame> {
        let frame = std::mem::take(&mut self.pending);
        self.last_id.clone_from(&frame.id);
        self.pending.id.clone_from(&frame.id);
        std::mem::take(&mut self.has_data).then_some(frame)
    }
}

/// The next line from `start`, without its end, and where the one after it begins. A line ends with LF, CR or CR LF; a
/// CR that is the last byte so far may be half of CR LF, so it waits.
fn take_line(buffer: &[u8], start: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let end = start + buffer[start..].iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    let next = match (buffer[end], buffer.get(end + 1)) {
        (b'\r', None) => return None,
        (b'\r', Some(b'\n')) => end + 2,
        _ => end + 1,
    };
    Some((start..end, next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_event_id_data_and_an_empty_line() {
        assert_eq!(event("a:b", Some("k-9"), "{}"), "event: a:b\nid: k-9\ndata: {}\n\n");
        assert_eq!(event("heartbeat", None, "{}"), "event: heartbeat\ndata: {}\n\n");
    }

    #[test]
    fn an_id_can_be_exchanged_and_nothing_else_changes() {
        let encoded = Encoded::new("a:b", "k-9", "{}");
        assert_eq!(encoded.bytes(), &event("a:b", Some("k-9"), "{}"));
        assert_eq!(encoded.with_id("k-10~3"), event("a:b", Some("k-10~3"), "{}"));
    }

    #[test]
    #[should_panic(expected = "one line")]
    fn a_line_break_in_a_value_is_a_bug_of_ours() {
        event("a:b", Some("k\n9"), "{}");
    }

    #[test]
    fn retry_and_comments_are_no_frames() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&comment("hello")), []);
        assert_eq!(parser.push(&retry(2000)), []);
        let frames = parser.push(&event("a:b", None, "{}"));
        assert_eq!(frames[0].retry, Some(2000));
    }

    #[test]
    fn an_id_lasts_until_the_next_one() {
        let mut parser = Parser::default();
        parser.push(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n");
        assert_eq!(parser.last_id(), "1", "the third frame is not complete yet");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in prop::collection::vec(("[a-z]{1,5}:[a-z]{1,5}", prop::option::of("[a-z0-9~-]{1,20}"), "[^\\r\\n\\x00]{1,40}"), 1..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, id, data)| event(kind, id.as_deref(), data)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let read: Vec<Frame> = cuts.windows(2).flat_map(|cut| parser.push(&bytes[cut[0]..cut[1]])).collect();
            prop_assert_eq!(read.len(), frames.len());
            for (read, (kind, id, data)) in read.iter().zip(&frames) {
                prop_assert_eq!((&read.event, &read.data), (kind, data));
                if let Some(id) = id {
                    prop_assert_eq!(&read.id, id);
                }
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Parser::default().push(&bytes);
        }
    }
}
