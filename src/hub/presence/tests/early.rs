//! What is said before it is known of whom.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use uuid::Uuid;

use super::{presence_that, settings, who};
use crate::{
    hub::presence::{
        NotTyping, Presence, Whisper,
        early::EARLY_MAX,
        facts::{Facts, Status},
    },
    ids::NodeKey,
};

const ROOM: &str = "project:0192f0c1-2b7a-7cc0-8a2e-0123456789ab";

/// A node, what its streams were told, and a stream of another node.
struct Stage {
    presence: Presence,
    told: Arc<Mutex<Vec<&'static str>>>,
    other: NodeKey,
    stream: Uuid,
}

impl Stage {
    fn new() -> Self {
        let told = Arc::<Mutex<Vec<&'static str>>>::default();
        let hears = told.clone();
        let presence = presence_that(move |whisper: Whisper| hears.lock().unwrap().push(whisper.kind));
        let other = NodeKey::random();
        Self { presence, told, other, stream: other.stream() }
    }

    fn types(&self, stream: Uuid, field: &str, is_typing: bool) -> Result<(), NotTyping> {
        self.presence.typed(stream, ROOM, field, is_typing, || true)
    }

    /// The row of the other node's stream is read.
    fn learns_of(&self, rooms: &[&str]) {
        let rooms = rooms.iter().map(|room| (*room).into()).collect();
        let facts = Facts { who: Arc::new(who("a")), rooms, status: Status::Online, report: None, ends: None };
        self.presence.heard(vec![(self.stream, Some(facts))], 0);
    }

    fn told(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

#[test]
fn who_types_before_their_stream_is_known_is_shown_when_it_is() {
    let stage = Stage::new();
    stage.types(stage.stream, "name", true).unwrap();
    stage.types(stage.stream, "motto", true).unwrap();
    stage.types(stage.stream, "name", false).unwrap();
    assert_eq!(stage.told(), [""; 0]);
    stage.learns_of(&["company"]);
    assert_eq!(stage.told(), ["presence:change"], "they are not in the room yet");
    stage.learns_of(&["company", ROOM]);
    assert_eq!(stage.told(), ["presence:change", "typing:start"]);
    assert_eq!(stage.presence.state().early.len(), 0);
    stage.types(stage.stream, "motto", false).unwrap();
    assert_eq!(stage.told(), ["typing:stop"]);
}

#[test]
fn who_types_is_waited_for_no_longer_than_they_would_be_shown() {
    let stage = Stage::new();
    stage.types(stage.stream, "name", true).unwrap();
    let due = stage.presence.pass(Instant::now());
    assert!(due.is_some());
    assert_eq!(stage.presence.pass(Instant::now() + settings().typing_ttl), None);
    stage.learns_of(&[ROOM]);
    assert_eq!(stage.told(), ["presence:change"]);
}

#[test]
fn what_is_said_of_a_stream_that_has_gone_waits_for_nothing() {
    let stage = Stage::new();
    stage.learns_of(&["company"]);
    stage.types(stage.stream, "name", true).unwrap();
    stage.presence.heard(vec![(stage.stream, None)], 0);
    stage.presence.kept(stage.other, &[].into());
    assert_eq!(stage.told(), ["presence:change"], "they leave later");
    let own = stage.presence.node.stream();
    assert_eq!(stage.types(own, "name", true), Err(NotTyping::NotThere), "what is not known of one's own is not there");
    assert_eq!(stage.presence.typed(stage.stream, "company", "name", true, || true), Err(NotTyping::NotThere));
}

#[test]
fn only_so_many_wait() {
    let stage = Stage::new();
    for field in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
        stage.types(stage.stream, field, true).unwrap();
    }
    assert_eq!(stage.presence.state().early.len(), 8, "as many as a stream may type in");
    for _ in 0..EARLY_MAX {
        stage.types(stage.other.stream(), "name", true).unwrap();
    }
    assert_eq!(stage.presence.state().early.len(), EARLY_MAX);
    assert_eq!(stage.presence.metrics.typing_dropped.get(), 1 + 8);
}
