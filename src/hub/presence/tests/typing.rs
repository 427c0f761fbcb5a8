use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::hub::presence::{
    facts::Who,
    typing::{FIELDS_MAX, TYPISTS_MAX, Told, TooManyFields, Typing},
};

const TTL: Duration = Duration::from_secs(6);

struct Stage {
    typing: Typing,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        Self { typing: Typing::new(TTL), now: Instant::now() }
    }

    fn start(&mut self, stream: u128, sub: &str, room: &str, field: &str) -> Result<Option<Told>, TooManyFields> {
        let (room, field): (Arc<str>, Arc<str>) = (room.into(), field.into());
        self.typing.start(Uuid::from_u128(stream), &Who::new(sub, None, None), &room, &field, self.now)
    }
}

fn says(told: Option<Told>) -> Option<(bool, u128)> {
    told.map(|told| (told.is_typing, told.stream.as_u128()))
}

#[test]
fn two_tabs_that_type_in_one_field_are_one_typist() {
    let mut stage = Stage::new();
    assert_eq!(says(stage.start(1, "a", "project:x", "name").unwrap()), Some((true, 1)));
    assert_eq!(stage.start(2, "a", "project:x", "name"), Ok(None));
    assert_eq!(says(stage.start(3, "b", "project:x", "name").unwrap()), Some((true, 3)));
    assert_eq!(stage.typing.stop(Uuid::from_u128(1), "project:x", "name"), None);
    assert_eq!(says(stage.typing.stop(Uuid::from_u128(2), "project:x", "name")), Some((false, 2)));
    assert_eq!(stage.typing.stop(Uuid::from_u128(2), "project:x", "name"), None, "it is told once");
}

#[test]
fn typing_ends_by_itself_some_time_after_it_was_said_last() {
    let mut stage = Stage::new();
    stage.start(1, "a", "project:x", "name").unwrap();
    stage.now += TTL / 2;
    assert_eq!(stage.start(1, "a", "project:x", "name"), Ok(None), "a refresh is not told");
    stage.now += TTL / 2;
    assert_eq!(stage.typing.passed(stage.now), []);
    stage.now += TTL / 2;
    assert_eq!(stage.typing.next_due(), Some(stage.now));
    let told = stage.typing.passed(stage.now);
    assert_eq!(told.into_iter().map(|told| says(Some(told))).collect::<Vec<_>>(), [Some((false, 1))]);
    assert_eq!((stage.typing.next_due(), stage.typing.len()), (None, 0));
}

#[test]
fn whoever_leaves_the_room_does_not_type_in_it() {
    let mut stage = Stage::new();
    stage.start(1, "a", "project:x", "name").unwrap();
    stage.start(1, "a", "project:y", "name").unwrap();
    let left = stage.typing.keep_in(Uuid::from_u128(1), &["project:y"]);
    assert_eq!(left.iter().map(|told| &*told.place.room).collect::<Vec<_>>(), ["project:x"]);
    assert_eq!(stage.typing.keep_in(Uuid::from_u128(1), &[]).len(), 1, "a closed stream is in none");
    assert_eq!((stage.typing.next_due(), stage.typing.len()), (None, 0));
}

#[test]
fn a_stream_types_in_a_few_fields_at_once() {
    let mut stage = Stage::new();
    for field in 0..FIELDS_MAX {
        stage.start(1, "a", "project:x", &field.to_string()).unwrap();
    }
    assert_eq!(stage.start(1, "a", "project:x", "one more"), Err(TooManyFields));
    assert_eq!(stage.start(1, "a", "project:x", "0"), Ok(None));
    assert!(stage.start(2, "a", "project:x", "one more").is_ok());
}

#[test]
fn whoever_comes_is_told_of_the_typists_of_that_room_and_of_some_if_they_are_very_many() {
    let mut stage = Stage::new();
    for (stream, room) in ["project:w", "project:x", "project:xx", "project:y", "project:x"].into_iter().enumerate() {
        stage.start(stream as u128, &format!("u{stream}"), room, "name").unwrap();
    }
    let told = |stage: &Stage, room: &str| -> Vec<String> {
        stage.typing.in_room(room, Uuid::nil()).iter().map(|told| told.place.sub.to_string()).collect()
    };
    assert_eq!(told(&stage, "project:x"), ["u1", "u4"]);
    assert_eq!(told(&stage, "project:z"), [""; 0]);
    for stream in 10..70 {
        stage.start(stream, &format!("u{stream}"), "project:x", "name").unwrap();
    }
    assert_eq!(told(&stage, "project:x").len(), TYPISTS_MAX);
}

#[test]
fn who_types_elsewhere_costs_those_who_come_nothing() {
    let mut stage = Stage::new();
    for stream in 0..20_000 {
        stage.start(stream, &format!("u{stream}"), "project:elsewhere", "name").unwrap();
    }
    let begun = Instant::now();
    for _ in 0..10_000 {
        assert_eq!(stage.typing.in_room("project:here", Uuid::nil()), []);
    }
    println!("{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
