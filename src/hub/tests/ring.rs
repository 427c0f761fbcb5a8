//! The moments at which a stream meets the router that have a name. In all of them the log has [`EVENTS`]: the
//! node reads it twice, and what another node read ends between the two.

#![expect(clippy::single_range_in_vec_init, reason = "a list of one range of ids is what is meant")]

use std::task::{Context, Waker};

use super::{
    super::{
        frames::Reset,
        mailbox::Taken,
        ring::Delivery,
        ring::Ring,
        seat::{Attached, Seat},
    },
    node::{Node, Sizes},
    *,
};
use crate::{
    ids::TypeFilter,
    log::{
        Reading,
        position::tests::{epoch, set},
    },
};

/// Transactions 10 to 15 have published. 11 was open for long, so the first read ends without it.
const EVENTS: [(u64, i64, &[&str]); 7] = [
    (10, 1, &["a"]),
    (12, 3, &["a", "b"]),
    (11, 2, &["a"]),
    (13, 5, &["a", "b", "c"]),
    (14, 4, &["b"]),
    (15, 6, &["a"]),
    (15, 7, &["a"]),
];

/// Where the node begins.
fn start() -> Snapshot {
    set(10, &[])
}

/// The end of the node's first read: 11 is open.
fn first() -> Snapshot {
    set(13, &[11..12])
}

/// The end of a read of another node: 11 has ended, 14 has not begun.
fn between() -> Snapshot {
    set(14, &[])
}

/// The end of the node's second read.
fn second() -> Snapshot {
    set(16, &[])
}

fn at(seen: Snapshot) -> Position {
    Position::settled(epoch(), seen)
}

fn inside(from: Snapshot, to: Snapshot, k: i64) -> Position {
    Reading::new(epoch(), from, to).unwrap().at(k)
}

/// The events of a read with the positions after them.
fn read(from: &Snapshot, to: &Snapshot) -> Vec<(Event, Position)> {
    let reading = Reading::new(epoch(), from.clone(), to.clone()).unwrap();
    let is_new = |(xact, ..): &&(u64, i64, &[&str])| to.contains(*xact) && !from.contains(*xact);
    let mut events: Vec<_> = EVENTS.iter().filter(is_new).collect();
    events.sort_by_key(|(_, seq, _)| *seq);
    let last = events.last().unwrap().1;
    let at = |seq| if seq == last { reading.end() } else { reading.at(seq) };
    events.iter().map(|(xact, seq, rooms)| (event(*xact, *seq, "alert:new", rooms), at(*seq))).collect()
}

/// A node that has routed its first read.
fn settled_at_first(sizes: Sizes) -> Node {
    let mut node = Node::new(sizes, start(), Snapshot::empty());
    node.read(&first(), &Snapshot::empty(), read(&start(), &first()));
    node.finish();
    node
}

/// A node that has routed so many events of its second read, which begins with 2, 4 and 5.
fn inside_the_second(sizes: Sizes, events: usize) -> Node {
    let mut node = settled_at_first(sizes);
    node.read(&second(), &Snapshot::empty(), read(&first(), &second()));
    node.go(2 + events);
    node
}

/// A node that has routed both.
fn settled_at_second(sizes: Sizes) -> Node {
    let mut node = inside_the_second(sizes, 0);
    node.finish();
    node
}

fn seat(node: &Node, rooms: &[&str]) -> Seat {
    sit(&node.hub, rooms, TypeFilter::default())
}

/// The seqs that come from the ring; none when the log is to be read.
fn missed(attached: &Attached) -> Option<Vec<i64>> {
    match attached {
        Attached::Ring { missed, more: false } => Some(missed.iter().map(|delivery| delivery.live.seq).collect()),
        Attached::Log => None,
        other => panic!("{other:?}"),
    }
}

fn positions(attached: Attached) -> Vec<Position> {
    match attached {
        Attached::Ring { missed, .. } => missed.iter().map(|delivery| delivery.at().clone()).collect(),
        other => panic!("{other:?}"),
    }
}

/// What has come into a mailbox, which is open.
fn came(seat: &Seat) -> Vec<i64> {
    let mut seqs = Vec::new();
    let taken = seat.mailbox.take(&Context::from_waker(Waker::noop()), |live| {
        seqs.push(live.seq);
        true
    });
    assert!(matches!(taken, Taken::All));
    seqs
}

/// What a client gets from the ring at this moment, and then what comes while the node finishes its read.
fn resume(node: &mut Node, at: &Position, rooms: &[&str]) -> (Option<Vec<i64>>, Vec<i64>) {
    let seat = seat(node, rooms);
    let attached = seat.attach(at, None).1;
    node.finish();
    (missed(&attached), came(&seat))
}

#[test]
fn at_an_end_of_our_own_all_that_follows_is_shared() {
    let node = settled_at_second(Sizes::AMPLE);
    for (from, seqs) in [(start(), vec![1, 3, 2, 5, 6, 7]), (first(), vec![2, 5, 6, 7]), (second(), vec![])] {
        let (_, attached) = seat(&node, &["a"]).attach(&at(from), None);
        assert_eq!(missed(&attached), Some(seqs));
        let Attached::Ring { missed, .. } = attached else { panic!("the ring") };
        let is_shared = |delivery: &Delivery| delivery.frame().as_ptr() == delivery.live.encoded.bytes().as_ptr();
        assert!(missed.iter().all(is_shared));
    }
}

#[test]
fn inside_a_read_of_our_own_its_rest_follows() {
    let mut node = settled_at_second(Sizes::AMPLE);
    assert_eq!(resume(&mut node, &inside(start(), first(), 1), &["a"]).0, Some(vec![3, 2, 5, 6, 7]));
    assert_eq!(resume(&mut node, &inside(first(), second(), 4), &["a", "b"]).0, Some(vec![5, 6, 7]));
}

#[test]
fn where_another_node_was_the_events_are_cut_to_what_it_had() {
    let node = settled_at_second(Sizes::AMPLE);
    let (_, attached) = seat(&node, &["a", "b"]).attach(&at(between()), None);
    assert_eq!(missed(&attached), Some(vec![4, 6, 7]));
    let ours = Reading::new(epoch(), between(), second()).unwrap();
    assert_eq!(positions(attached), [ours.at(4), ours.at(6), ours.end()]);
}

#[test]
fn inside_a_read_of_another_node_its_rest_comes_first() {
    let node = settled_at_second(Sizes::AMPLE);
    let theirs = Reading::new(epoch(), start(), between()).unwrap();
    let (_, attached) = seat(&node, &["a"]).attach(&theirs.at(1), None);
    assert_eq!(missed(&attached), Some(vec![2, 3, 5, 6, 7]), "by seq, as the other node's own read went on");
    let ours = Reading::new(epoch(), between(), second()).unwrap();
    assert_eq!(positions(attached), [theirs.at(2), theirs.at(3), theirs.end(), ours.at(6), ours.end()]);
}

#[test]
fn between_two_events_of_a_read_the_ring_has_those_before_and_the_mailbox_those_after() {
    for pushed in 0..=5 {
        let mut node = inside_the_second(Sizes::AMPLE, pushed);
        let all = [2, 4, 5, 6, 7];
        let (past, live) = resume(&mut node, &at(first()), &["a", "b"]);
        assert_eq!((past.unwrap(), live), (all[..pushed].to_vec(), all[pushed..].to_vec()));
    }
}

#[test]
fn inside_the_unfinished_read_its_rest_is_partly_in_the_ring() {
    let mut node = inside_the_second(Sizes::AMPLE, 3);
    assert_eq!(resume(&mut node, &inside(first(), second(), 2), &["a", "b"]), (Some(vec![4, 5]), vec![6, 7]));
}

#[test]
fn who_knows_more_of_the_unfinished_read_than_was_routed_reads_the_log() {
    for (pushed, k) in [(0, 2), (1, 2), (1, 5), (2, 6), (3, 7)] {
        let mut node = inside_the_second(Sizes::AMPLE, pushed);
        assert_eq!(resume(&mut node, &inside(first(), second(), k), &["a", "b"]), (None, vec![]));
    }
}

#[test]
fn who_has_all_of_the_unfinished_read_ignores_it() {
    for pushed in 0..=5 {
        let mut node = inside_the_second(Sizes::AMPLE, pushed);
        assert_eq!(resume(&mut node, &at(second()), &["a", "b"]), (Some(vec![]), vec![]));
    }
}

#[test]
fn a_stream_without_a_position_begins_behind_the_unfinished_read() {
    let mut node = inside_the_second(Sizes::AMPLE, 2);
    let seat = seat(&node, &["a", "b"]);
    assert_eq!(seat.begin().at, at(second()));
    node.finish();
    assert!(came(&seat).is_empty());
}

#[test]
fn who_was_elsewhere_gets_the_settled_reads_cut_and_the_unfinished_one_as_it_is() {
    let mut node = inside_the_second(Sizes::AMPLE, 2);
    let theirs = Reading::new(epoch(), start(), set(11, &[])).unwrap();
    let seat = seat(&node, &["a", "b"]);
    let (_, attached) = seat.attach(&theirs.end(), None);
    assert_eq!(missed(&attached), Some(vec![3, 2, 4]));
    let ours = Reading::new(epoch(), first(), second()).unwrap();
    assert_eq!(positions(attached), [at(first()), ours.at(2), ours.at(4)]);
    node.finish();
    assert_eq!(came(&seat), [5, 6, 7]);
}

#[test]
fn who_was_elsewhere_inside_the_unfinished_read_reads_the_log() {
    for theirs in [at(between()), inside(first(), between(), 2), inside(start(), between(), 3)] {
        let mut node = inside_the_second(Sizes::AMPLE, 3);
        assert_eq!(resume(&mut node, &theirs, &["a", "b"]), (None, vec![]), "{theirs}");
    }
}

/// The bytes that the ring takes from before this many of the second read's events are in it.
fn without_the_oldest(events: usize) -> Sizes {
    let ring_bytes = inside_the_second(Sizes::AMPLE, events).hub.state().ring.bytes() - 1;
    Sizes { ring_bytes, ..Sizes::AMPLE }
}

#[test]
fn a_read_that_lost_an_event_is_history_as_a_whole() {
    let mut node = inside_the_second(without_the_oldest(5), 5);
    node.finish();
    for lost in [at(start()), inside(start(), first(), 1)] {
        assert_eq!(resume(&mut node, &lost, &["a", "b"]), (None, vec![]));
    }
    assert_eq!(resume(&mut node, &at(first()), &["a", "b"]).0, Some(vec![2, 4, 5, 6, 7]));
    assert_eq!(resume(&mut node, &at(between()), &["a", "b"]).0, Some(vec![4, 6, 7]));
}

#[test]
fn an_unfinished_read_that_lost_an_event_is_history_as_a_whole() {
    // There is room for two events.
    let bytes = inside_the_second(Sizes::AMPLE, 5).hub.state().ring.bytes() / 8;
    let mut node = inside_the_second(Sizes { ring_bytes: 3 * bytes, ..Sizes::AMPLE }, 4);
    let seats = [at(first()), inside(first(), second(), 4), inside(first(), second(), 6)].map(|behind| {
        let seat = seat(&node, &["a", "b"]);
        assert_eq!(missed(&seat.attach(&behind, None).1), None, "{behind}");
        seat
    });
    node.finish();
    assert!(seats.iter().all(|seat| came(seat).is_empty()));
    assert_eq!(resume(&mut node, &at(second()), &["a", "b"]), (Some(vec![]), vec![]));
    let third = set(17, &[]);
    let next = event(16, 8, "alert:new", &["b"]);
    node.read(&third, &Snapshot::empty(), vec![(next, at(third.clone()))]);
    node.finish();
    assert_eq!(resume(&mut node, &at(second()), &["a", "b"]).0, Some(vec![8]), "it begins anew behind it");
}

#[test]
fn an_event_for_several_of_a_streams_rooms_comes_once() {
    let mut node = inside_the_second(Sizes::AMPLE, 0);
    let (past, live) = resume(&mut node, &at(start()), &["c", "b", "a"]);
    assert_eq!((past.unwrap(), live), (vec![1, 3], vec![2, 4, 5, 6, 7]));
    assert_eq!(resume(&mut node, &at(start()), &["c", "b", "a"]).0, Some(vec![1, 3, 2, 4, 5, 6, 7]));
}

#[test]
fn a_router_that_lagged_begins_behind_the_read_that_was_announced_last() {
    for acts in 6..=8 {
        let mut node = settled_at_first(Sizes { channel_events: 4, ..Sizes::AMPLE });
        let live = seat(&node, &["a", "b"]);
        live.attach(&at(first()), None);
        node.read(&second(), &Snapshot::empty(), read(&first(), &second()));
        // More than the channel holds, and the router did not get to it.
        (0..acts).for_each(|_| node.act());
        node.route();
        assert!(!live.mailbox.is_drained() && live.reached(0).is_none());
        let held = node.hub.state().ring.len();
        assert_eq!(held, 0);
        for _ in 0..2 {
            assert_eq!(resume(&mut node, &at(first()), &["a", "b"]), (None, vec![]), "what is left of it is ignored");
        }
        assert_eq!(resume(&mut node, &at(second()), &["a", "b"]), (Some(vec![]), vec![]));
        let held = node.hub.state().ring.len();
        assert_eq!(held, 0, "neither does the ring take it");
    }
}

#[test]
fn over_what_the_pump_jumps_the_streams_read_the_log() {
    let mut node = inside_the_second(Sizes::AMPLE, 2);
    let live = seat(&node, &["a"]);
    live.attach(&at(second()), None);
    node.jump(&set(20, &[]), &Snapshot::empty());
    node.finish();
    assert!(live.reached(0).is_none(), "it has to look first");
    for behind in [at(first()), inside(first(), second(), 2), at(second())] {
        assert_eq!(resume(&mut node, &behind, &["a"]), (None, vec![]));
    }
    assert_eq!(resume(&mut node, &at(set(20, &[])), &["a"]), (Some(vec![]), vec![]));
}

/// A node that has routed a read of so many events, all in one room.
fn with_many(events: i64, sizes: Sizes) -> Node {
    with_many_in(&["a"], events, sizes)
}

fn with_many_in(rooms: &[&str], events: i64, sizes: Sizes) -> Node {
    let mut node = Node::new(sizes, start(), Snapshot::empty());
    let reading = Reading::new(epoch(), start(), first()).unwrap();
    let position = |seq| if seq == events { reading.end() } else { reading.at(seq) };
    let events = (1..=events).map(|seq| (event(10, seq, "alert:new", rooms), position(seq)));
    node.read(&first(), &Snapshot::empty(), events.collect());
    node.finish();
    node
}

/// How many events come from the ring at each look, until the stream is live.
fn looks(node: &Node) -> Vec<usize> {
    let (seat, mut from, mut looks) = (seat(node, &["a"]), at(start()), Vec::new());
    loop {
        let Attached::Ring { missed, more } = seat.attach(&from, None).1 else { panic!("the ring") };
        looks.push(missed.len());
        assert_eq!(seat.mailbox.is_drained(), !more, "it takes events once there is no more to look for");
        if !more {
            return looks;
        }
        from = missed.last().unwrap().at().clone();
    }
}

#[test]
fn a_stream_looks_as_often_as_it_takes() {
    assert_eq!(looks(&with_many(1023, Sizes::AMPLE)), [1023]);
    assert_eq!(looks(&with_many(1024, Sizes::AMPLE)), [1024, 0]);
    assert_eq!(looks(&with_many(2500, Sizes::AMPLE)), [1024, 1024, 452]);
}

#[test]
fn a_look_takes_no_more_than_a_mailbox_would_but_always_one() {
    let frame = with_many(1, Sizes::AMPLE).hub.state().ring.since(&at(start()), &first(), &["a".to_owned()], 1);
    let bytes = frame.unwrap()[0].frame().len();
    // The id of the last one is shorter than those inside the read.
    let queue_bytes = 3 * bytes;
    let parts = looks(&with_many(6, Sizes { queue_bytes, ..Sizes::AMPLE }));
    assert!(
        parts.len() > 1 && parts.iter().sum::<usize>() == 6 && parts.iter().all(|part| part * bytes <= queue_bytes)
    );
    assert_eq!(looks(&with_many(3, Sizes { queue_bytes: 1, ..Sizes::AMPLE })), [1, 1, 1]);
}

#[test]
fn a_stream_that_missed_too_much_is_told() {
    let node = with_many(5, Sizes::AMPLE);
    let attach = |most| seat(&node, &["a"]).attach(&at(start()), Some(most)).1;
    assert!(matches!(attach(4), Attached::Reset(Reset::TooMany)));
    assert_eq!(missed(&attach(5)), Some(vec![1, 2, 3, 4, 5]));
}

#[test]
fn what_was_missed_is_counted_beyond_one_look_and_an_event_of_several_rooms_once() {
    let node = with_many_in(&["a", "b"], 2500, Sizes::AMPLE);
    for rooms in [&["a"][..], &["a", "b"], &["c", "b", "a"]] {
        let attach = |most| seat(&node, rooms).attach(&at(start()), Some(most)).1;
        for most in [1023, 1024, 2499] {
            assert!(matches!(attach(most), Attached::Reset(Reset::TooMany)), "{most}");
        }
        for most in [2500, 4999, i64::MAX] {
            let Attached::Ring { missed, more: true } = attach(most) else { panic!("a look, and more") };
            assert_eq!(missed.len(), 1024);
        }
    }
    let inside = inside(start(), first(), 1000);
    let attach = |most| seat(&node, &["b"]).attach(&inside, Some(most)).1;
    assert!(matches!(attach(1499), Attached::Reset(Reset::TooMany)));
    assert!(matches!(attach(1500), Attached::Ring { more: true, .. }));
}

#[test]
fn a_position_that_was_made_up_takes_no_more_out_of_the_ring_than_one_look() {
    // As if one of the transactions had been open, which it was for nobody.
    let made_up = at(set(13, &[10..12]));
    for (events, expected) in [(1023, Some(1023)), (1024, None), (5000, None)] {
        let node = with_many_in(&["a", "b"], events, Sizes::AMPLE);
        let (_, attached) = seat(&node, &["a", "b"]).attach(&made_up, Some(i64::MAX));
        assert_eq!(missed(&attached).map(|missed| missed.len()), expected, "{events}");
    }
}

#[test]
fn what_the_log_no_longer_promises_is_refused_though_the_ring_has_it() {
    let mut node = settled_at_second(Sizes::AMPLE);
    let attach = |node: &Node, from: &Position| seat(node, &["a"]).attach(from, None).1;
    let foreign: Position = at(start()).to_string().replace(epoch().as_str(), "another").parse().unwrap();
    assert!(matches!(attach(&node, &foreign), Attached::Reset(Reset::Foreign)));
    assert!(matches!(attach(&node, &at(set(17, &[]))), Attached::Reset(Reset::Unknown)));
    assert!(matches!(attach(&node, &inside(second(), set(17, &[]), 8)), Attached::Reset(Reset::Unknown)));
    // The pump looked, and nothing was new but the floor.
    node.read(&second(), &first(), Vec::new());
    node.finish();
    assert!(matches!(attach(&node, &at(start())), Attached::Reset(Reset::TooOld)));
    assert_eq!(missed(&attach(&node, &at(first()))), Some(vec![2, 5, 6, 7]));
}

#[test]
fn a_heartbeat_claims_a_read_once_it_was_routed_as_a_whole() {
    // At the beginning of the unfinished read, inside it, behind it, and from the log.
    for from in [at(first()), inside(first(), second(), 2), at(second()), at(between())] {
        let mut node = inside_the_second(Sizes::AMPLE, 2);
        let seat = seat(&node, &["c"]);
        let (tail, _) = seat.attach(&from, None);
        assert_eq!(seat.reached(tail.read), None, "{from}");
        while node.acts.len() > 1 {
            node.go(1);
            came(&seat);
            assert_eq!(seat.reached(tail.read), None, "{from}");
        }
        node.finish();
        assert_eq!(seat.reached(tail.read), Some(at(second())), "{from}");
    }
}

#[test]
fn a_heartbeat_claims_nothing_that_waits_in_the_mailbox() {
    let mut node = inside_the_second(Sizes::AMPLE, 0);
    let seat = seat(&node, &["c"]);
    let (tail, _) = seat.attach(&at(first()), None);
    node.finish();
    assert_eq!(seat.reached(tail.read), None);
    assert_eq!(came(&seat), [5]);
    assert_eq!(seat.reached(tail.read), Some(at(second())));
}

#[test]
fn reads_without_events_are_forgotten_too() {
    let mut ring = Ring::new(1 << 24, set(10, &[]));
    let reads = 70_000;
    for xmax in 10..10 + reads {
        ring.begin(set(xmax, &[]), set(xmax + 1, &[]));
    }
    let end = set(10 + reads, &[]);
    assert!(ring.since(&at(set(10, &[])), &end, &[], 9).is_none());
    assert!(ring.since(&at(set(10 + reads - 60_000, &[])), &end, &[], 9).is_some());
    let mut small = Ring::new(1000, set(10, &[]));
    (10..10 + reads).for_each(|xmax| small.begin(set(xmax, &[]), set(xmax + 1, &[])));
    assert!(small.bytes() <= 1000);
}
