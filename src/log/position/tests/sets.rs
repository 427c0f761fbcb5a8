//! Snapshots and positions against plain sets of numbers, over every id.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Ids are below this one, so few that sets meet often.
const END: u64 = 24;

/// The highest `k`, and one more than that for an event that none has seen.
const K_MAX: i64 = 4;

fn any_set() -> impl Strategy<Value = BTreeSet<u64>> {
    let dense = prop::collection::btree_set(1..END, 0..24);
    let sparse = prop::collection::btree_set(1_u64..6, 0..6);
    let full_but =
        prop::collection::btree_set(1..END, 0..6).prop_map(|open| (1..END).filter(|id| !open.contains(id)).collect());
    prop_oneof![dense, sparse, full_but]
}

fn snapshot(ids: &BTreeSet<u64>) -> Snapshot {
    let xmax = ids.last().map_or(1, |last| last + 1);
    let open = (1..xmax).filter(|id| !ids.contains(id)).map(|id| id..id + 1).collect();
    Snapshot::from_parts(xmax, open).unwrap()
}

/// A position inside a read when the second set adds to the first, settled otherwise.
fn any_place() -> impl Strategy<Value = Position> {
    (any_set(), any_set(), 1..=K_MAX).prop_map(|(a, more, k)| {
        let b = a.union(&more).copied().collect();
        let a = snapshot(&a);
        Position::within(epoch(), a.clone(), snapshot(&b), k).unwrap_or_else(|NotARead| Position::settled(epoch(), a))
    })
}

/// The ids of ranges up to `end`, which must be ascending, and neither empty nor touching.
fn ids(ranges: &[Range<u64>], end: u64) -> BTreeSet<u64> {
    assert!(ranges.iter().all(|range| range.start < range.end), "{ranges:?}");
    assert!(ranges.is_sorted_by(|one, next| one.end < next.start), "{ranges:?}");
    ranges.iter().flat_map(|range| range.start..range.end.min(end)).collect()
}

fn assert_normal(snapshot: &Snapshot) {
    ids(snapshot.open(), END);
    assert!(snapshot.xmax() == 1 || snapshot.contains(snapshot.xmax() - 1), "{snapshot:?}");
    assert!(snapshot.open().iter().all(|open| 1 <= open.start && open.end < snapshot.xmax()), "{snapshot:?}");
    assert_eq!(snapshot.to_string().parse().as_ref(), Ok(snapshot));
}

fn seen(snapshot: &Snapshot) -> BTreeSet<u64> {
    (0..2 * END).filter(|&id| snapshot.contains(id)).collect()
}

#[test]
fn bounds_of_no_set_are_refused() {
    for (xmax, open) in [(0, vec![]), (1 << 63, vec![]), (u64::MAX, vec![])] {
        assert_eq!(Snapshot::from_parts(xmax, open), Err(NotASet), "{xmax}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a reversed range is one of those that are refused")]
    for open in [0..1, 3..3, 4..3, 9..11, 10..10, 3..u64::MAX] {
        assert_eq!(Snapshot::from_parts(10, vec![open.clone()]), Err(NotASet), "{open:?}");
    }
}

#[test]
fn an_open_top_lowers_xmax() {
    assert_eq!(set(10, &[8..10, 5..8, 2..4, 3..4]), set(5, &[2..4]));
    assert_eq!(set(10, &[1..10]), Snapshot::empty());
}

proptest! {
    #[test]
    fn a_snapshot_has_exactly_its_ids(ids in any_set()) {
        let snapshot = snapshot(&ids);
        assert_normal(&snapshot);
        prop_assert_eq!(seen(&snapshot), ids);
    }

    #[test]
    fn any_bounds_give_the_normal_form_of_their_set(xmax in 1..END, open in prop::collection::vec((1..END, 1..END), 0..6)) {
        let open: Vec<_> = open.into_iter().map(|(one, other)| one.min(other)..one.max(other)).collect();
        let ids: BTreeSet<_> = (1..xmax).filter(|id| !open.iter().any(|range| range.contains(id))).collect();
        let is_valid = open.iter().all(|range| !range.is_empty() && range.end <= xmax);
        let parts = Snapshot::from_parts(xmax, open);
        prop_assert_eq!(parts.is_ok(), is_valid);
        if let Ok(parts) = parts {
            prop_assert_eq!(parts, snapshot(&ids));
        }
    }

    #[test]
    fn inclusion_is_that_of_the_sets(one in any_set(), other in any_set()) {
        prop_assert_eq!(snapshot(&one).includes(&snapshot(&other)), one.is_superset(&other));
        let both = one.union(&other).copied().collect();
        prop_assert!(snapshot(&both).includes(&snapshot(&one)));
        prop_assert_eq!(snapshot(&one).includes(&snapshot(&both)), one == both);
    }

    #[test]
    fn differences_are_those_of_the_sets(one in any_set(), other in any_set()) {
        let difference = snapshot(&one).minus(&snapshot(&other));
        prop_assert_eq!(ids(&difference, END), &one - &other);
    }

    #[test]
    fn beyond_a_set_is_every_other_id(set in any_set()) {
        let beyond = snapshot(&set).beyond();
        prop_assert_eq!(ids(&beyond, 2 * END), (1..2 * END).filter(|id| !set.contains(id)).collect::<BTreeSet<_>>());
        prop_assert_eq!(beyond.last().map(|last| last.end), u64::try_from(i64::MAX).ok());
    }

    #[test]
    fn equal_sets_and_no_others_have_equal_texts(one in any_set(), other in any_set()) {
        let (one_text, other_text) = (snapshot(&one).to_string(), snapshot(&other).to_string());
        prop_assert_eq!(one_text == other_text, one == other);
        prop_assert_eq!(snapshot(&one) == snapshot(&other), one == other);
    }

    #[test]
    fn a_clamped_position_is_what_ended_up_to_the_top(open in prop::collection::btree_set(1..END, 0..12), xmax in 1..END, top in 0..END) {
        let open: BTreeSet<_> = open.into_iter().filter(|&id| id < xmax).collect();
        let list: Vec<_> = open.iter().map(u64::to_string).collect();
        let xmin = open.first().copied().unwrap_or(xmax);
        let raw = RawSnapshot::parse(&format!("{xmin}:{xmax}:{}", list.join(",")), 0).unwrap();
        let is_seen = top < xmax && !open.contains(&top);
        let clamped = raw.clamp(top);
        prop_assert_eq!(clamped.is_ok(), is_seen);
        if let Ok(clamped) = clamped {
            assert_normal(&clamped);
            prop_assert_eq!(seen(&clamped), (1..=top).filter(|id| !open.contains(id)).collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn a_position_has_all_of_a_and_of_b_what_is_up_to_k(place in any_place(), xact in 0..2 * END, seq in 1..=K_MAX + 1) {
        let of_b = place.rest().is_some_and(|(b, k)| b.contains(xact) && seq <= k);
        prop_assert_eq!(place.contains(xact, seq), place.base().contains(xact) || of_b);
        prop_assert!(place.reach().includes(place.base()));
    }

    #[test]
    fn inclusion_of_positions_is_that_of_all_their_possible_events(one in any_place(), other in any_place()) {
        let events = |place: &Position| -> BTreeSet<(u64, i64)> {
            let all = (1..END).flat_map(|xact| (1..=K_MAX + 1).map(move |seq| (xact, seq)));
            all.filter(|&(xact, seq)| place.contains(xact, seq)).collect()
        };
        let (one_events, other_events) = (events(&one), events(&other));
        prop_assert_eq!(one.includes_position(&other), one_events.is_superset(&other_events));
        let whole = Position::settled(epoch(), other.base().clone());
        prop_assert_eq!(one.includes(other.base()), one_events.is_superset(&events(&whole)));
    }
}

#[test]
fn positions_of_different_epochs_never_include_each_other() {
    let other = Position::settled("k3fa".parse().unwrap(), Snapshot::empty());
    assert!(!Position::settled(epoch(), set(10, &[])).includes_position(&other));
}

#[test]
fn only_a_counts_for_the_floor_and_all_of_b_for_who_takes_over() {
    let inside = Position::within(epoch(), set(10, &[5..7]), set(20, &[5..6]), 99).unwrap();
    assert!(inside.includes(&set(10, &[5..7])) && !inside.includes(&set(10, &[5..6])));
    assert_eq!(inside.reach(), &set(20, &[5..6]));
    let settled = Position::settled(epoch(), set(10, &[5..7]));
    assert_eq!(settled.reach(), settled.base());
}
