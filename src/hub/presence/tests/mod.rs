//! Presence without Postgres and without a clock.

mod early;
mod flaps;
mod keeper;
mod leases;
mod model;
mod renewed;
mod reports;
mod typing;
mod view;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Presence, PresenceSettings, Whisper, Who};
use crate::{ids::NodeKey, metrics::Metrics};

fn settings() -> PresenceSettings {
    PresenceSettings {
        grace: Duration::from_secs(5),
        lease: Duration::from_secs(10),
        users_max: 200,
        typing_ttl: Duration::from_secs(6),
    }
}

fn presence() -> Presence {
    presence_that(|_| ())
}

/// One that tells it to this.
fn presence_that(deliver: impl Fn(Whisper) + Send + Sync + 'static) -> Presence {
    Presence::new(NodeKey::random(), settings(), Arc::new(Metrics::default()), deliver)
}

fn who(sub: &str) -> Who {
    Who::new(sub, None, None)
}

/// Opens a stream of this user, if it is one who appears.
fn open(presence: &Presence, sub: Option<&str>) -> Uuid {
    let stream = presence.node.stream();
    presence.opened(stream, sub.map(who), || vec!["company".to_owned()], false);
    stream
}

#[test]
fn a_panic_under_the_pictures_lock_takes_nobody_along_and_is_told() {
    let presence = Presence { deliver: Box::new(|_| panic!("on purpose")), ..presence() };
    let opens = || open(&presence, Some("ana"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(opens)).is_err());
    presence.measure();
    assert!(presence.broken.is_cancelled(), "the node is to end");
}
