use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    hub::presence::{Presence, PresenceSettings, Who},
    ids::NodeKey,
    metrics::Metrics,
};

fn presence() -> Presence {
    let settings = PresenceSettings {
        grace: Duration::from_secs(5),
        lease: Duration::from_secs(10),
        users_max: 200,
        typing_ttl: Duration::from_secs(6),
    };
    Presence::new(NodeKey::random(), settings, Arc::new(Metrics::default()), |_| ())
}

/// Opens a stream of this user.
fn open(presence: &Presence, sub: &str) -> Uuid {
    let stream = presence.node.stream();
    presence.opened(stream, Some(Who::new(sub, None, None)), || vec!["company".to_owned()], false);
    stream
}

#[test]
fn whoever_leaves_while_everything_is_written_again_is_written_once() {
    let presence = presence();
    let [stays, leaves, left] = ["a", "b", "c"].map(|sub| open(&presence, sub));
    presence.take_batch(false);
    presence.closed(left, Duration::ZERO);
    let mut batch = presence.take_batch(false);
    assert_eq!((batch.put.len(), &batch.gone), (0, &vec![left]));
    presence.closed(leaves, Duration::ZERO);
    presence.take_again(&mut batch);
    assert_eq!(batch.put.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), [stays]);
    batch.gone.sort_unstable();
    let mut gone = vec![leaves, left];
    gone.sort_unstable();
    assert_eq!(batch.gone, gone);
    assert!(!presence.take_batch(false).is_news());
}
