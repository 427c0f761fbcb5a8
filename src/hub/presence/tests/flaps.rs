//! A user who is always somewhere, and what a node makes of it that learns of each node's streams when it does.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    hub::presence::{
        facts::{Facts, ShownStatus, Status, Who},
        view::{News, View},
    },
    ids::NodeKey,
};

const ROOM: &str = "company";

/// What becomes of a stream when another one has opened.
#[derive(Debug, Clone, Copy)]
enum Way {
    Idles,
    LeavesTheRoom,
    Ends,
}

/// The user opens another stream, and the one of before goes some way, all at one moment.
#[derive(Debug, Clone, Copy)]
struct Handover {
    node: usize,
    way: Way,
    /// How long it is since the last one.
    after_ms: u64,
    /// How long it takes until it is known, unless it is of the node that looks.
    lags_ms: [u64; 3],
}

fn any_handover() -> impl Strategy<Value = Handover> {
    let way = prop_oneof![Just(Way::Idles), Just(Way::LeavesTheRoom), Just(Way::Ends)];
    let lags = [0_u64..1, 0..1000, 0..1000];
    (0_usize..3, way, 500_u64..3000, lags).prop_map(|(node, way, after_ms, lags_ms)| Handover {
        node,
        way,
        after_ms,
        lags_ms,
    })
}

fn facts(status: Status, rooms: &[&str]) -> Facts {
    let rooms = rooms.iter().map(|room| (*room).into()).collect();
    Facts { who: Arc::new(Who::new("ana", None, None)), rooms, status, report: None, ends: None }
}

type Heard = (Instant, Vec<(Uuid, Option<Facts>)>);

/// What is heard when, if the streams of each node are known in the order in which they changed.
fn timeline(handovers: &[Handover]) -> Vec<Heard> {
    let nodes = [NodeKey::random(), NodeKey::random(), NodeKey::random()];
    let mut now = Instant::now();
    let (mut known_at, mut open) = ([now; 3], nodes[0].stream());
    let mut heard: Vec<Heard> = vec![(now, vec![(open, Some(facts(Status::Online, &[ROOM])))])];
    for handover in handovers {
        now += Duration::from_millis(handover.after_ms);
        for (at, lag) in known_at.iter_mut().zip(handover.lags_ms) {
            *at = (*at).max(now + Duration::from_millis(lag));
        }
        let gone = match handover.way {
            Way::Idles => Some(facts(Status::Idle, &[ROOM])),
            Way::LeavesTheRoom => Some(facts(Status::Online, &[])),
            Way::Ends => None,
        };
        let was = nodes.iter().position(|node| *node == NodeKey::of(open)).unwrap();
        heard.push((known_at[was], vec![(open, gone)]));
        open = nodes[handover.node].stream();
        let opened = (open, Some(facts(Status::Online, &[ROOM])));
        // In one batch the rows come in any order.
        match heard.last_mut().filter(|_| was == handover.node) {
            Some((_, batch)) => batch.push(opened),
            None => heard.push((known_at[handover.node], vec![opened])),
        }
    }
    heard.sort_by_key(|(at, _)| *at);
    heard
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn whoever_goes_from_stream_to_stream_over_nodes_is_never_shown_idle_or_gone(
        handovers in prop::collection::vec(any_handover(), 1..10)
    ) {
        let mut view = View::new(10);
        let mut last = Instant::now();
        for (at, facts) in timeline(&handovers) {
            let mut news = view.passed(at);
            news.extend(view.heard(facts, at));
            for news in news {
                let News::Changed(shown) = news else { panic!("{news:?}") };
                prop_assert_eq!(shown.status, ShownStatus::Online);
            }
            last = at;
        }
        let news = view.passed(last + Duration::from_secs(10));
        prop_assert!(news.is_empty(), "{news:?}");
        prop_assert_eq!(view.snapshot(ROOM, last).total, 1);
    }
}
