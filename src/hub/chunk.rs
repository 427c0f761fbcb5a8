//! A chunk: what goes to a socket in one piece.

use bytes::{Bytes, BytesMut};
use time::OffsetDateTime;

/// Bytes that are handed over at once. A single larger frame goes out as it is.
pub(super) const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// Frames that go out together. One alone is shared with every stream that sends it; several are copied side by side,
/// which costs less than a call of the system for each.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    only: Bytes,
    joined: BytesMut,
    events: u64,
    appended: Option<OffsetDateTime>,
}

impl Chunk {
    /// Adds a frame, if there is room.
    pub(super) fn add(&mut self, frame: &Bytes) -> bool {
        let fits = self.is_empty() || self.len() + frame.len() <= CHUNK_BYTES_MAX;
        if !fits {
            return false;
        }
        if self.is_empty() {
            self.only = frame.clone();
            return true;
        }
        if self.joined.is_empty() {
            self.make_room(self.only.len() + frame.len());
            self.joined.extend_from_slice(&self.only);
        }
        self.make_room(frame.len());
        self.joined.extend_from_slice(frame);
        true
    }

    /// Grows in large steps: a few frames need little, and a replay fills the chunk.
    fn make_room(&mut self, bytes: usize) {
        let wanted = self.joined.len() + bytes;
        if wanted > self.joined.capacity() {
            self.joined.reserve((4 * wanted).min(CHUNK_BYTES_MAX) - self.joined.len());
        }
    }

    /// Adds an event's frame, if there is room.
    pub(super) fn add_event(&mut self, frame: &Bytes, appended: OffsetDateTime) -> bool {
        let fits = self.add(frame);
        if fits {
            self.events += 1;
            self.appended = Some(appended);
        }
        fits
    }

    /// Events in it, so without the stream's own frames.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// When its last event was appended to the log.
    pub(super) fn appended(&self) -> Option<OffsetDateTime> {
        self.appended
    }

    pub(super) fn len(&self) -> usize {
        self.only.len().max(self.joined.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.only.is_empty()
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.only } else { self.joined.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(frames: &[&Bytes]) -> (Chunk, Vec<bool>) {
        let mut chunk = Chunk::default();
        let added = frames.iter().map(|frame| chunk.add_event(frame, OffsetDateTime::UNIX_EPOCH)).collect();
        (chunk, added)
    }

    #[test]
    fn one_frame_is_shared_and_several_are_joined() {
        let (one, two) = (Bytes::from("one"), Bytes::from("two"));
        assert_eq!(chunk(&[&one]).0.into_bytes().as_ptr(), one.as_ptr());
        let (joined, _) = chunk(&[&one, &two, &one]);
        assert_eq!((joined.events(), joined.len()), (3, 9));
        assert_eq!(joined.into_bytes(), "onetwoone");
        assert!(Chunk::default().is_empty());
    }

    #[test]
    fn a_chunk_is_bounded_but_takes_one_frame_of_any_size() {
        let (small, large) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; CHUNK_BYTES_MAX]));
        assert_eq!(chunk(&[&large, &small]).1, [true, false]);
        assert_eq!(chunk(&[&small, &large]).1, [true, false]);
        assert_eq!(chunk(&[&small, &large]).0.events(), 1);
    }
}
