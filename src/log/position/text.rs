//! Numbers as they stand in a position's text, and what can be wrong with such a text.
//!
//! A number is written like those of JavaScript source maps (VLQ), with the URL-safe alphabet of RFC 4648, section 5, and no
//! sign: each digit holds five bits, lowest first, and a sixth that says that another digit follows. So numbers need no
//! separator, and small ones, which is what run lengths are, take one character.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The largest number of bytes that is parsed as a position. Proxies take headers of 8 KiB.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The largest text of a set in a position: two fit, with the epoch and a number. A longer one has a name.
pub const SET_BYTES_MAX: usize = 2000;

/// What stands before a name: no set's text has it.
pub(super) const NAMED: char = '.';

/// Characters of a name, six bits each.
const NAME_CHARS: usize = 22;

/// No number and no id is larger: they are stored as `bigint`.
pub(super) const NUMBER_MAX: u64 = i64::MAX as u64;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Bits of the number in one digit.
const DIGIT_BITS: u32 = 5;

/// The bit of a digit that says that another one follows.
const MORE: u64 = 1 << DIGIT_BITS;

/// The shift of the last digit that a number up to [`NUMBER_MAX`] can have.
const SHIFT_MAX: u32 = 60;

/// Why a text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is longer than [`TEXT_BYTES_MAX`].
    #[error("longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// It has not the parts of a position.
    #[error("neither epoch-A nor epoch-A~B~k")]
    Parts,
    /// What stands before the first `-` is not an epoch.
    #[error("an epoch is 1 to 16 of a-z and 0-9")]
    Epoch,
    /// A number is missing or cut off, has a foreign character or a superfluous digit, or is past 63 bits.
    #[error("malformed number")]
    Number,
    /// The runs lead below the first id, or the set ends before it.
    #[error("runs past the first id")]
    Runs,
    /// A set is named that is not known here.
    #[error("a set that is not known by its name")]
    Named,
    /// `A~B~k` where `B` does not hold all of `A` and more, or `k` is 0.
    #[error("not inside a read")]
    Read,
}

/// Writes `number` (at most [`NUMBER_MAX`]) in its one form.
pub(super) fn write_number(out: &mut impl fmt::Write, mut number: u64) -> fmt::Result {
    while number >= MORE {
        out.write_char(digit((number % MORE) | MORE))?;
        number /= MORE;
    }
    out.write_char(digit(number))
}

/// Takes one number, at most [`NUMBER_MAX`], off the front of `text`.
pub(super) fn take_number(text: &mut &[u8]) -> Result<u64, ParseError> {
    let mut number = 0;
    let mut shift = 0;
    while let Some((&byte, rest)) = text.split_first() {
        *text = rest;
        let digit = value(byte).ok_or(ParseError::Number)?;
        let (bits, more) = (digit % MORE, digit >= MORE);
        if shift > SHIFT_MAX || bits > NUMBER_MAX >> shift {
            return Err(ParseError::Number);
        }
        number |= bits << shift;
        if !more {
            // A last digit of 0 adds nothing: the same number has a shorter form.
            let shortest = bits > 0 || shift == 0;
            return shortest.then_some(number).ok_or(ParseError::Number);
        }
        shift += DIGIT_BITS;
    }
    Err(ParseError::Number)
}

/// Reads a text that is one number and nothing else.
pub(super) fn whole_number(text: &str) -> Result<u64, ParseError> {
    let mut rest = text.as_bytes();
    let number = take_number(&mut rest)?;
    rest.is_empty().then_some(number).ok_or(ParseError::Number)
}

/// The name of a text: 128 bits of its SHA-256.
pub(super) fn name(text: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let bits = digest.iter().take(16).fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    (0..NAME_CHARS).map(|nth| digit((bits >> (6 * nth)) as u64 % 64)).collect()
}

/// Whether a text can be a name.
pub(super) fn is_name(text: &str) -> bool {
    text.len() == NAME_CHARS && text.bytes().all(|byte| value(byte).is_some())
}

fn digit(value: u64) -> char {
    let place = usize::try_from(value).expect("six bits");
    char::from(DIGITS[place])
}

fn value(byte: u8) -> Option<u64> {
    let (first, base) = match byte {
        b'A'..=b'Z' => (b'A', 0),
        b'a'..=b'z' => (b'a', 26),
        b'0'..=b'9' => (b'0', 52),
        b'-' => (b'-', 62),
        b'_' => (b'_', 63),
        _ => return None,
    };
    Some(u64::from(byte - first) + base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(number: u64) -> String {
        let mut text = String::new();
        write_number(&mut text, number).unwrap();
        text
    }

    #[test]
    fn numbers_have_these_texts() {
        let texts =
            [(0, "A"), (1, "B"), (31, "f"), (32, "gB"), (1023, "_f"), (1024, "ggB"), (NUMBER_MAX, "____________H")];
        for (number, text) in texts {
            assert_eq!(written(number), text);
            assert_eq!(whole_number(text), Ok(number));
        }
    }

    #[test]
    fn a_number_has_one_form_and_63_bits() {
        for text in [
            "",
            "g",
            "gA",
            "BA",
            "fA",
            "A=",
            "+",
            "ä",
            "____________I",
            "____________f",
            "____________nB",
            "gggggggggggggB",
            "ggggggggggggggggggggggggggggB",
        ] {
            assert_eq!(whole_number(text), Err(ParseError::Number), "{text}");
        }
    }

    #[test]
    fn every_bit_survives_the_text() {
        for bit in 0..63 {
            for number in [1_u64 << bit, (1_u64 << bit) - 1, NUMBER_MAX - (1 << bit)] {
                assert_eq!(whole_number(&written(number)), Ok(number));
            }
        }
    }
}
