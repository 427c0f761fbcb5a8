//! Texts of positions, good and hostile. What positions mean is tested in [`sets`], over all ids, and in [`cluster`], against
//! transactions that begin, publish, end and crash.

#![expect(clippy::single_range_in_vec_init, reason = "a list of one range of ids is what is meant")]

pub(crate) mod cluster;
mod sets;

use std::ops::Range;

use proptest::{prelude::*, sample::Index};

use super::*;

pub(crate) fn epoch() -> Epoch {
    "k3f9".parse().unwrap()
}

pub(crate) fn set(xmax: u64, open: &[Range<u64>]) -> Snapshot {
    Snapshot::from_parts(xmax, open.to_vec()).unwrap()
}

/// Whatever the parsers take, they took in its one form.
fn assert_exact(text: &str) {
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string(), text);
    }
    if let Ok(snapshot) = text.parse::<Snapshot>() {
        assert_eq!(snapshot.to_string(), text);
    }
    if let Ok(epoch) = text.parse::<Epoch>() {
        assert_eq!(epoch.to_string(), text);
    }
}

/// A position of a busy log: ids and gaps as they are, up to 40 open ranges, settled or inside a read.
fn any_position() -> impl Strategy<Value = Position> {
    let gaps = prop::collection::vec((1_u64..2000, 1_u64..200), 0..40);
    (1_u64..1 << 40, gaps, any::<bool>(), 1..=i64::MAX).prop_map(|(first, gaps, settled, k)| {
        let mut next = first;
        let mut open = Vec::new();
        for (length, seen) in gaps {
            open.push(next..next + length);
            next += length + seen;
        }
        let a = set(next + 1, &open);
        let b = set(next + 70, &open.split_off(open.len() / 2));
        let settled_a = Position::settled(epoch(), a.clone());
        if settled { settled_a } else { Position::within(epoch(), a, b, k).unwrap() }
    })
}

#[test]
fn positions_have_these_texts() {
    let a = set(10, &[5..7]);
    let b = set(50_869, &[5..6, 50_000..50_867]);
    for (snapshot, text) in [
        // Nothing: xmax 1.
        (Snapshot::empty(), "B"),
        // 1 to 9.
        (set(10, &[]), "K"),
        // From 9 down, 3 are seen (C), 2 open (B); the rest is seen and not said.
        (a.clone(), "KCB"),
        // The first id is open.
        (set(10, &[1..2]), "KHA"),
        // 2 seen, 867 open, 49,994 seen, 1 open.
        (b.clone(), "11xBBibp6wBA"),
    ] {
        assert_eq!(snapshot.to_string(), text);
        assert_eq!(text.parse(), Ok(snapshot));
    }
    let reading = Reading::new(epoch(), set(5, &[2..3]), a.clone()).unwrap();
    for (position, text) in [
        (Position::settled(epoch(), a), "k3f9-KCB"),
        (reading.at(0), "k3f9-FBA"),
        (reading.at(1), "k3f9-FBA~KCB~B"),
        (reading.at(1043), "k3f9-FBA~KCB~zgB"),
        (reading.end(), "k3f9-KCB"),
        (reading.at(i64::MAX), "k3f9-FBA~KCB~____________H"),
    ] {
        assert_eq!(position.to_string(), text);
        assert_eq!(text.parse(), Ok(position));
    }
    assert_eq!(reading.id(1), "k3f9-FBA~KCB~B");
}

#[test]
fn other_texts_are_refused() {
    for (text, error) in [
        ("", ParseError::Parts),
        ("k3f9", ParseError::Parts),
        ("k3f9-K~L", ParseError::Parts),
        ("k3f9-K~L~B~", ParseError::Parts),
        ("-K", ParseError::Epoch),
        ("K3f9-K", ParseError::Epoch),
        ("k3f9k3f9k3f9k3f9x-K", ParseError::Epoch),
        ("k3f9-", ParseError::Number),
        (" k3f9-K", ParseError::Epoch),
        ("k3f9-K ", ParseError::Number),
        ("k3f9-K.L", ParseError::Number),
        ("k3f9-KÄ", ParseError::Number),
        // A seen run without an open one, a superfluous digit, a digit that is not followed.
        ("k3f9-KC", ParseError::Number),
        ("k3f9-qA", ParseError::Number),
        ("k3f9-q", ParseError::Number),
        ("k3f9-K~L~", ParseError::Number),
        ("k3f9-K~L~BB", ParseError::Number),
        // No id 0, neither as xmax - 1 nor in a run.
        ("k3f9-A", ParseError::Runs),
        ("k3f9-KIA", ParseError::Runs),
        ("k3f9-KIAAA", ParseError::Runs),
        // B is A, B is before A, k is 0.
        ("k3f9-K~K~B", ParseError::Read),
        ("k3f9-L~K~B", ParseError::Read),
        ("k3f9-K~LCA~B", ParseError::Read),
        ("k3f9-K~L~A", ParseError::Read),
        // Names, and what can be none.
        ("k3f9-.", ParseError::Number),
        ("k3f9-.ABCDEFGHIJKLMNOPQRSTU", ParseError::Number),
        ("k3f9-.ABCDEFGHIJKLMNOPQRSTU.", ParseError::Number),
        ("k3f9-.ABCDEFGHIJKLMNOPQRSTUV", ParseError::Named),
        ("k3f9-K~.ABCDEFGHIJKLMNOPQRSTUV~B", ParseError::Named),
    ] {
        assert_eq!(text.parse::<Position>(), Err(error), "{text}");
    }
    let longest = format!("k-{}", "gB".repeat(SET_BYTES_MAX / 2));
    assert_eq!(longest.parse::<Position>(), Err(ParseError::Runs));
    assert_eq!(format!("{longest}A").parse::<Position>(), Err(ParseError::TooLong));
    let longest = "k~".repeat(TEXT_BYTES_MAX / 2);
    assert_eq!(longest.parse::<Position>(), Err(ParseError::Parts));
    assert_eq!(format!("{longest}A").parse::<Position>(), Err(ParseError::TooLong));
}

/// A set with so many open ids that lie apart.
fn scattered(open: u64) -> Snapshot {
    let ids: Vec<_> = (1..=open).map(|place| 2 * place..2 * place + 1).collect();
    set(2 * open + 2, &ids)
}

#[test]
fn a_set_that_is_too_long_for_an_id_has_a_name_and_all_others_are_written_out() {
    // 4 characters for xmax, 2 for each open id.
    let (longest, longer) = (scattered(998), scattered(999));
    assert_eq!((longest.to_string().len(), longer.to_string().len()), (SET_BYTES_MAX - 1, SET_BYTES_MAX + 1));
    assert_eq!(longest.name(), None);
    let name = longer.name().unwrap();
    assert_eq!(name.len(), 22);
    let settled = |set: &Snapshot| Position::settled(epoch(), set.clone());
    let known = |asked: &str| (asked == name).then(|| longer.clone());
    assert_eq!(settled(&longest).to_string(), format!("k3f9-{longest}"));
    assert_eq!(settled(&longest).to_string().parse(), Ok(settled(&longest)));
    assert_eq!(settled(&longer).to_string(), format!("k3f9-.{name}"));
    assert_eq!(settled(&longer).to_string().parse::<Position>(), Err(ParseError::Named));
    assert_eq!(Position::parse(&settled(&longer).to_string(), known), Ok(settled(&longer)));
    // No text but its own is taken for a set: neither it written out nor a name that stands for a short one.
    assert_eq!(format!("k3f9-{longer}").parse::<Position>(), Err(ParseError::TooLong));
    assert_eq!(Position::parse(&format!("k3f9-.{name}"), |_| Some(longest.clone())), Err(ParseError::Named));
    let inside = Reading::new(epoch(), Snapshot::empty(), longer.clone()).unwrap().at(7);
    assert_eq!(inside.to_string(), format!("k3f9-B~.{name}~H"));
    assert_eq!(names(&inside.to_string()), [&name]);
    assert_eq!(Position::parse(&inside.to_string(), known), Ok(inside));
    let beyond = set(longer.xmax() + 7, longer.open());
    let inside = Reading::new(epoch(), longer.clone(), beyond.clone()).unwrap().at(i64::MAX);
    assert_eq!(names(&inside.to_string()), [name.clone(), beyond.name().unwrap()]);
    assert!(inside.to_string().len() < 80);
}

#[test]
fn hostile_run_lengths_neither_overflow_nor_cost_memory() {
    let end = u64::try_from(i64::MAX).unwrap();
    let lone = set(end, &[1..end - 1]);
    // xmax 2^63 - 1, one seen, all others open.
    assert_eq!(lone.to_string(), "____________HA8___________H");
    assert_eq!(lone.to_string().parse(), Ok(lone.clone()));
    assert!(lone.contains(end - 1) && !lone.contains(end - 2) && !lone.contains(end) && !lone.contains(u64::MAX));
    assert_eq!(lone.minus(&Snapshot::empty()), [end - 1..end]);
    assert_eq!(lone.beyond(), [1..end - 1]);
    let all = set(end, &[]);
    assert_eq!(all.beyond(), []);
    assert_eq!(all.minus(&lone), [1..end - 1]);
    assert!(all.includes(&lone) && !lone.includes(&all));
    for runs in ["A9___________H", "A____________H", "____________HA", "____________H____________H", "AA____________HA"]
    {
        let text = format!("____________H{runs}");
        assert_eq!(text.parse::<Snapshot>(), Err(ParseError::Runs), "{text}");
    }
    // The longest text there is, all of it runs of one id.
    let text = format!("____________H{}", "A".repeat(4080));
    let scattered = text.parse::<Snapshot>().unwrap();
    assert_eq!(scattered.open().len(), 2040);
    assert_eq!(scattered.minus(&Snapshot::empty()).len(), 2041);
}

#[test]
fn an_epoch_is_1_to_16_of_small_letters_and_digits() {
    for text in ["0", "k3f9", "abcdefghijklmn09"] {
        assert_eq!(text.parse::<Epoch>().unwrap().as_str(), text);
    }
    for text in ["", "K", "k-", "k~", "ä", " k", "abcdefghijklmn090"] {
        assert_eq!(text.parse::<Epoch>(), Err(ParseError::Epoch));
    }
}

proptest! {
    #[test]
    fn a_text_is_read_back_as_the_position_it_was(position in any_position()) {
        let text = position.to_string();
        prop_assert_eq!(text.parse(), Ok(position));
    }

    #[test]
    fn however_scattered_the_open_ids_are_a_text_fits_and_is_read_back(
        lengths in prop::collection::vec((1_u64..1 << 20, 1_u64..1 << 20), 0..1500),
        k in 1..=i64::MAX,
    ) {
        let (mut next, mut open) = (1, Vec::new());
        for (length, seen) in lengths {
            open.push(next..next + length);
            next += length + seen;
        }
        let a = set(next + 1, &open);
        let b = set(next + 70, &open.split_off(open.len() / 2));
        let find = |name: &str| [&a, &b].into_iter().find(|set| set.name().is_some_and(|own| own == name)).cloned();
        for position in [Position::settled(epoch(), a.clone()), Position::within(epoch(), a.clone(), b.clone(), k).unwrap()] {
            let text = position.to_string();
            prop_assert!(text.len() <= TEXT_BYTES_MAX);
            prop_assert!(names(&text).len() <= 2);
            prop_assert_eq!(Position::parse(&text, find), Ok(position));
        }
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in any::<String>(), offset: i64) {
        assert_exact(&text);
        assert_exact(&format!("k3f9-{text}"));
        let _ = RawSnapshot::parse(&text, offset);
    }

    #[test]
    fn texts_of_the_right_characters_are_taken_in_one_form_only(
        text in "[a-z0-9]{1,3}-[A-Za-z0-9_-]{1,20}(~[A-Za-f]{1,9}~[A-Zg-z]{1,4})?",
    ) {
        assert_exact(&text);
        assert_exact(text.split_once('-').unwrap().1);
    }

    #[test]
    fn a_text_cut_or_changed_anywhere_is_another_position_or_none(
        position in any_position(),
        place: Index,
        byte in 0_u8..128,
    ) {
        let text = position.to_string();
        for end in 0..text.len() {
            assert_exact(&text[..end]);
            assert_exact(&text[end..]);
            prop_assert_ne!(text[..end].parse(), Ok(position.clone()));
        }
        let place = place.index(text.len());
        let (before, after) = text.split_at(place);
        let byte = char::from(byte);
        for changed in [format!("{before}{byte}{}", &after[1..]), format!("{before}{byte}{after}"), format!("{before}{}", &after[1..])] {
            assert_exact(&changed);
            if changed != text {
                prop_assert_ne!(changed.parse(), Ok(position.clone()));
            }
        }
    }

    #[test]
    fn the_text_of_a_postgres_snapshot_never_overflows(xmin: u64, xmax: u64, xip: Vec<u64>, offset: i64) {
        let xip: Vec<_> = xip.iter().map(u64::to_string).collect();
        let _ = RawSnapshot::parse(&format!("{xmin}:{xmax}:{}", xip.join(",")), offset);
    }
}

#[test]
fn a_postgres_snapshot_is_read_with_the_offset_on_each_id() {
    let raw = RawSnapshot::parse("10:20:10,14,15", 100).unwrap();
    assert_eq!((raw.xmin(), raw.xmax(), raw.xip()), (110, 120, [110, 114, 115].as_slice()));
    let idle = RawSnapshot::parse("20:20:", -19).unwrap();
    assert_eq!((idle.xmin(), idle.xmax(), idle.xip()), (1, 1, [].as_slice()));
}

#[test]
fn what_is_no_postgres_snapshot_is_refused() {
    for text in ["", "::", "10:20", "10:20:10,", "10:20:,", "10:20:10:", "10:20:x", "-1:20:", "20:10:"] {
        assert_eq!(RawSnapshot::parse(text, 0), Err(NotASnapshot), "{text}");
    }
    for text in ["10:20:9", "10:20:20", "10:20:12,11", "10:20:11,11", "10:18446744073709551616:"] {
        assert_eq!(RawSnapshot::parse(text, 0), Err(NotASnapshot), "{text}");
    }
    for offset in [i64::MIN, -10, i64::MAX, i64::MAX - 19] {
        assert_eq!(RawSnapshot::parse("10:20:", offset), Err(NotASnapshot), "{offset}");
    }
    assert!(RawSnapshot::parse("10:20:", i64::MAX - 20).is_ok());
}

#[test]
fn a_position_claims_nothing_above_the_highest_event_that_shows() {
    let raw = RawSnapshot::parse("742:750:742,743,747", 0).unwrap();
    assert_eq!(raw.clamp(749), Ok(set(750, &[742..744, 747..748])));
    assert_eq!(raw.clamp(746), Ok(set(747, &[742..744])));
    assert_eq!(raw.clamp(744), Ok(set(745, &[742..744])));
    assert_eq!(raw.clamp(741), Ok(set(742, &[])));
    assert_eq!(raw.clamp(0), Ok(Snapshot::empty()));
}

#[test]
fn a_log_that_is_ahead_of_the_cluster_is_an_error() {
    let raw = RawSnapshot::parse("742:750:742,743,747", 0).unwrap();
    for top in [742, 747, 750, 751, 50_868, u64::MAX] {
        assert_eq!(raw.clamp(top), Err(LogAhead { top, xmax: 750 }));
    }
}
