//! Clients that report and report.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{open, presence_that};
use crate::hub::presence::{Status, Update, keeper::GATHER};

fn views(path: &str) -> Update {
    Update { viewing: Some(Some(path.into())), ..Update::default() }
}

#[test]
fn of_many_reports_at_once_the_others_hear_the_first_and_what_all_say_and_one_row_is_written() {
    let told = Arc::<Mutex<Vec<String>>>::default();
    let hears = told.clone();
    let presence = presence_that(move |whisper| {
        if whisper.kind == "presence:change" {
            hears.lock().unwrap().push(String::from_utf8_lossy(&whisper.frame).into_owned());
        }
    });
    let stream = open(&presence, Some("a"));
    presence.take_batch(false);
    told.lock().unwrap().clear();
    let began = Instant::now();
    assert!(presence.reported(stream, Update { status: Some(Status::Online), ..views("/first") }));
    for nth in 0..1000 {
        assert!(presence.reported(stream, views(&format!("/{nth}"))));
    }
    // A machine that is busy may take longer over them than they are gathered.
    presence.pass(Instant::now() + GATHER);
    let shown = std::mem::take(&mut *told.lock().unwrap());
    let turns = began.elapsed().as_millis() as usize / GATHER.as_millis() as usize;
    assert!(shown.len() <= 2 + turns, "{}", shown.len());
    assert!(shown.first().unwrap().contains("/first") && shown.last().unwrap().contains("/999"), "{shown:?}");
    assert_eq!(presence.take_batch(false).put.len(), 1);
    assert_eq!(presence.pass(Instant::now() + 2 * GATHER), None, "nothing is left of it");
}

#[test]
fn what_was_still_to_be_shown_of_a_stream_is_shown_before_it_ends() {
    let presence = presence_that(|_| ());
    let stream = open(&presence, Some("a"));
    presence.reported(stream, views("/first"));
    presence.reported(stream, Update { status: Some(Status::Idle), ..Update::default() });
    presence.closed(stream, Duration::from_secs(5));
    let batch = presence.take_batch(false);
    let [(_, facts)] = &batch.put[..] else { panic!("{batch:?}") };
    assert_eq!(facts.status, Status::Idle);
    assert_eq!(facts.report.as_ref().unwrap().viewing.as_deref(), Some("/first"));
}
