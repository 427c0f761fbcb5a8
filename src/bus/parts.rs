//! Letters as text. A notification of Postgres takes less than 8,000 bytes: a longer letter goes in parts, which come in
//! their order, since one connection sends them in one statement.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Letter;
use crate::ids::NodeKey;

/// Bytes of one text: JSON may write each of them as two, once more.
const PART_BYTES_MAX: usize = 3500;

/// Bytes of a whole letter.
pub(super) const LETTER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(Letter),
    Part { from: NodeKey, part: usize, of: usize, text: String },
}

/// The texts of a letter; none when it is too long for any.
pub(super) fn texts(letter: Letter) -> Vec<String> {
    let from = letter.from;
    let whole = serde_json::to_string(&letter).expect("names and JSON");
    if whole.len() <= 2 * PART_BYTES_MAX {
        return vec![whole];
    }
    if whole.len() > LETTER_BYTES_MAX {
        return Vec::new();
    }
    let pieces = pieces(&whole);
    let of = pieces.len();
    let text = |(part, text): (usize, &str)| Text::Part { from, part, of, text: text.to_owned() };
    pieces.into_iter().enumerate().map(|piece| serde_json::to_string(&text(piece)).expect("names and text")).collect()
}

/// Cut where characters end.
fn pieces(whole: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), whole);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.floor_char_boundary(PART_BYTES_MAX));
        pieces.push(piece);
        rest = later;
    }
    pieces
}

/// Puts letters together again. Bounded: one for each node that sends, of [`LETTER_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Assembly(HashMap<NodeKey, (usize, String)>);

impl Assembly {
    /// A letter, once all of it has come. What is none is another version's, or nonsense: both are ignored.
    pub(super) fn take(&mut self, text: &str) -> Option<Letter> {
        match serde_json::from_str(text).ok()? {
            Text::Whole(letter) => Some(letter),
            Text::Part { from, part, of, text } => self.join(from, part, of, &text),
        }
    }

    fn join(&mut self, from: NodeKey, part: usize, of: usize, text: &str) -> Option<Letter> {
        let (next, whole) = self.0.entry(from).or_default();
        if part == 0 {
            (*next, *whole) = (0, String::new());
        }
        if part != *next || whole.len() + text.len() > LETTER_BYTES_MAX {
            // Its beginning was lost.
            self.0.remove(&from);
            return None;
        }
        *next += 1;
        whole.push_str(text);
        if *next < of {
            return None;
        }
        let (_, whole) = self.0.remove(&from)?;
        serde_json::from_str(&whole).ok()
    }

    /// Something may have been lost.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Message, *};

    fn letter(text: &str) -> Letter {
        Letter { from: NodeKey::random(), to: Some(NodeKey::random()), message: Message::Reply(7, text.into()) }
    }

    proptest! {
        #[test]
        fn a_letter_of_any_length_comes_as_it_was(text in "\\PC{0,3}", times in 0_usize..4000) {
            let letter = letter(&text.repeat(times));
            let texts = texts(letter.clone());
            prop_assert!(texts.iter().all(|text| text.len() < 8000), "Postgres takes each of them");
            let mut assembly = Assembly::default();
            let mut come: Vec<Letter> = texts.iter().filter_map(|text| assembly.take(text)).collect();
            prop_assert_eq!(come.pop(), Some(letter));
            prop_assert!(come.is_empty() && assembly.0.is_empty());
        }
    }

    #[test]
    fn a_letter_that_lost_a_part_is_lost_and_the_next_one_is_not() {
        let (one, other) = (texts(letter(&"ab".repeat(9000))), letter(&"x".repeat(20_000)));
        let mut assembly = Assembly::default();
        for lost in 0..one.len() {
            let others = one.iter().enumerate().filter(|(nth, _)| *nth != lost);
            assert!(others.filter_map(|(_, text)| assembly.take(text)).next().is_none(), "{lost}");
        }
        let come: Vec<Letter> = texts(other.clone()).iter().filter_map(|text| assembly.take(text)).collect();
        assert_eq!(come, [other]);
    }

    #[test]
    fn what_is_too_long_or_nonsense_is_no_letter() {
        assert!(texts(letter(&"x".repeat(LETTER_BYTES_MAX))).is_empty());
        let mut assembly = Assembly::default();
        for nonsense in ["", "{}", "7", r#"{"from":"x","message":"log"}"#, r#"{"from":"00000001","message":"later"}"#] {
            assert!(assembly.take(nonsense).is_none(), "{nonsense}");
        }
    }
}
