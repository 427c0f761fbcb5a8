//! What a stream finds in its mailbox, and when it is woken.

use std::task::Context;

use super::{
    super::{Closing, frames::ClosingReason, mailbox::Taken},
    *,
};
use crate::log::position::tests::epoch;

const CLOSING: Closing = Closing { reason: ClosingReason::Draining, reconnect_ms: 7 };

fn live(read: u64, seq: i64, kind: &str) -> Arc<Live> {
    let at = Position::settled(epoch(), Snapshot::empty());
    Arc::new(Live::new(read, event(9, seq, kind, &["a", "b"]), at))
}

fn updated(seq: i64) -> Arc<Live> {
    live(1, seq, "project:updated")
}

fn new(types: TypeFilter, bytes_max: usize) -> Mailbox {
    Mailbox::new(NodeKey::random().stream(), Arc::new(Ana), &["a".to_owned(), "b".to_owned()], types, bytes_max)
}

/// What a test wants to know of why nothing more was taken.
#[derive(Debug, PartialEq)]
enum Then {
    Enough,
    All,
    Behind,
    Closing(Option<Closing>),
    Catch,
}

impl From<Taken> for Then {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Enough => Self::Enough,
            Taken::All => Self::All,
            Taken::Behind => Self::Behind,
            Taken::Told(told) => Self::Closing(told.closing),
            Taken::Catch(_) => Self::Catch,
        }
    }
}

/// A mailbox that takes `events` of this size.
fn mailbox(events: usize) -> Mailbox {
    let mailbox = new(TypeFilter::default(), events * updated(1).encoded.bytes().len());
    mailbox.open(0);
    mailbox
}

/// Takes up to `most` events.
fn take(mailbox: &Mailbox, wakes: &Arc<Wakes>, most: usize) -> (Vec<i64>, Then) {
    let (waker, mut seqs) = (wakes.waker(), Vec::new());
    let taken = mailbox.take(&Context::from_waker(&waker), |live| {
        let wants = seqs.len() < most;
        seqs.extend(wants.then_some(live.seq));
        wants
    });
    (seqs, taken.into())
}

fn take_all(mailbox: &Mailbox) -> (Vec<i64>, Then) {
    take(mailbox, &Arc::default(), usize::MAX)
}

#[test]
fn an_event_that_comes_from_several_rooms_is_there_once() {
    let mailbox = mailbox(9);
    for seq in [1, 1, 2, 2, 2, 3] {
        assert!(mailbox.put(&updated(seq)));
    }
    assert_eq!(take_all(&mailbox), (vec![1, 2, 3], Then::All));
    assert!(mailbox.put(&updated(3)));
    assert_eq!(take_all(&mailbox), (vec![], Then::All), "also when the first was taken before the second came");
}

#[test]
fn a_log_that_was_set_back_may_count_as_before() {
    let mailbox = mailbox(9);
    mailbox.put(&updated(5));
    mailbox.open(1);
    mailbox.put(&live(2, 5, "project:updated"));
    assert_eq!(take_all(&mailbox), (vec![5], Then::All));
}

#[test]
fn a_full_mailbox_is_emptied_and_takes_nothing_until_it_is_opened() {
    let (mailbox, wakes) = (mailbox(2), Arc::default());
    assert_eq!(take(&mailbox, &wakes, 9), (vec![], Then::All));
    assert!(mailbox.put(&updated(1)) && mailbox.put(&updated(2)));
    assert!(!mailbox.put(&updated(3)));
    assert_eq!((mailbox.depth(), wakes.count()), (None, 1));
    assert!(mailbox.put(&updated(4)), "it overflows once");
    assert_eq!(take(&mailbox, &wakes, 9), (vec![], Then::Behind));
    mailbox.open(0);
    mailbox.put(&updated(5));
    assert_eq!(take(&mailbox, &wakes, 9), (vec![5], Then::All));
}

#[test]
fn who_waits_is_woken_when_the_mailbox_overflows() {
    let (mailbox, wakes) = (mailbox(1), Arc::<Wakes>::default());
    take(&mailbox, &wakes, 9);
    mailbox.put(&updated(1));
    assert_eq!((take(&mailbox, &wakes, 9), wakes.count()), ((vec![1], Then::All), 1));
    mailbox.shut();
    assert_eq!((take(&mailbox, &wakes, 9), wakes.count()), ((vec![], Then::Behind), 2));
}

#[test]
fn one_event_always_fits() {
    let mailbox = mailbox(0);
    assert!(mailbox.put(&updated(1)));
    assert!(!mailbox.put(&updated(2)));
}

#[test]
fn what_was_taken_makes_room() {
    let mailbox = mailbox(2);
    assert!(mailbox.put(&updated(1)) && mailbox.put(&updated(2)));
    assert_eq!(take(&mailbox, &Arc::default(), 1), (vec![1], Then::Enough));
    assert_eq!(mailbox.depth().unwrap().0, 1);
    assert!(mailbox.put(&updated(3)) && !mailbox.put(&updated(4)));
}

#[test]
fn types_that_nobody_wants_take_no_room() {
    let mailbox = new(TypeFilter::parse("alert").unwrap(), 1);
    mailbox.open(0);
    for (seq, kind) in [(1, "project:updated"), (2, "alert:new"), (3, "project:updated")] {
        assert!(mailbox.put(&live(1, seq, kind)));
    }
    assert_eq!(take_all(&mailbox), (vec![2], Then::All));
}

#[test]
fn reads_of_history_stay_out() {
    let mailbox = mailbox(9);
    mailbox.open(4);
    for read in 3..6 {
        mailbox.put(&live(read, read.cast_signed(), "project:updated"));
    }
    assert_eq!(take_all(&mailbox), (vec![5], Then::All));
}

#[test]
fn closing_is_told_once_before_anything_else_whatever_is_in_the_mailbox() {
    let (empty, waiting, shut) = (mailbox(9), mailbox(9), mailbox(9));
    waiting.put(&updated(1));
    shut.shut();
    for (mailbox, then) in [(empty, Then::All), (waiting, Then::All), (shut, Then::Behind)] {
        mailbox.close(CLOSING);
        assert_eq!(take_all(&mailbox), (vec![], Then::Closing(Some(CLOSING))));
        assert_eq!(take_all(&mailbox).1, then);
    }
}

#[test]
fn who_reads_history_is_woken_to_close() {
    let (mailbox, wakes) = (mailbox(9), Arc::<Wakes>::default());
    mailbox.shut();
    let waker = wakes.waker();
    let cx = Context::from_waker(&waker);
    assert!(mailbox.told(&cx).is_none());
    mailbox.close(CLOSING);
    let told = mailbox.told(&cx).unwrap();
    assert_eq!((told.closing, wakes.count()), (Some(CLOSING), 1));
}

#[test]
fn each_wait_ends_with_one_wake() {
    let (mailbox, wakes) = (mailbox(9), Arc::<Wakes>::default());
    for round in 1_i64..4 {
        assert_eq!(take(&mailbox, &wakes, 9).1, Then::All);
        assert_eq!(wakes.count(), (round - 1).cast_unsigned());
        mailbox.put(&updated(2 * round));
        mailbox.put(&updated(2 * round + 1));
        assert_eq!(wakes.count(), round.cast_unsigned(), "nobody waits for the second");
        assert_eq!(take(&mailbox, &wakes, 9).0, [2 * round, 2 * round + 1]);
    }
}

#[test]
fn the_task_that_asked_last_is_woken() {
    let (mailbox, before, now) = (mailbox(9), Arc::<Wakes>::default(), Arc::<Wakes>::default());
    take(&mailbox, &before, 9);
    take(&mailbox, &now, 9);
    mailbox.put(&updated(1));
    assert_eq!((before.count(), now.count()), (0, 1));
}

#[test]
fn a_mailbox_whose_holder_panics_is_shut_and_opens_again() {
    let (mailbox, wakes) = (mailbox(10), Arc::<Wakes>::default());
    (1..=3).for_each(|seq| assert!(mailbox.put(&updated(seq))));
    let waker = wakes.waker();
    let panics = || mailbox.take(&Context::from_waker(&waker), |_| panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert!(mailbox.put(&updated(4)), "nobody else panics");
    assert_eq!(take(&mailbox, &wakes, 10), (vec![], Then::Behind), "what it held is history");
    mailbox.open(0);
    assert!(mailbox.put(&updated(5)));
    assert_eq!(take(&mailbox, &wakes, 10), (vec![5], Then::All));
}
