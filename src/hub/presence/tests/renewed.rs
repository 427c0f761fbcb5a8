//! Streams that go on with another token.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{open, presence, who};
use crate::hub::presence::{Presence, Update, view::SETTLE};

fn renew(presence: &Presence, stream: Uuid, sub: Option<&str>) {
    presence.renewed(stream, sub.map(who), || vec!["company".to_owned()]);
}

/// How many are there once it is clear who has left.
fn total(presence: &Presence) -> usize {
    presence.pass(Instant::now() + SETTLE);
    presence.snapshot("company").total
}

#[test]
fn a_stream_that_becomes_somebodys_appears_and_one_that_becomes_nobodys_goes() {
    let presence = presence();
    let stream = open(&presence, None);
    assert_eq!(total(&presence), 0);
    for _ in 0..2 {
        renew(&presence, stream, Some("a"));
        assert_eq!(total(&presence), 1);
        assert!(presence.reported(stream, Update::default()));
        let batch = presence.take_batch(false);
        assert_eq!((batch.put.len(), batch.gone.len()), (1, 0));
        renew(&presence, stream, None);
        assert_eq!(total(&presence), 0);
        assert!(!presence.reported(stream, Update::default()));
        assert_eq!(presence.take_batch(false).gone, [stream]);
    }
}

#[test]
fn a_stream_that_has_ended_does_not_appear_any_more() {
    let presence = presence();
    for before in [None, Some("a")] {
        let stream = open(&presence, before);
        presence.closed(stream, Duration::ZERO);
        renew(&presence, stream, Some("a"));
        assert_eq!(total(&presence), 0, "it would stay for ever");
    }
}
