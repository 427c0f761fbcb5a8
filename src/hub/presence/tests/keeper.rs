use std::time::Duration;

use super::{open, presence};

#[test]
fn whoever_leaves_while_everything_is_written_again_is_written_once() {
    let presence = presence();
    let [stays, leaves, left] = ["a", "b", "c"].map(|sub| open(&presence, Some(sub)));
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
