//! Opaque credentials, which tickets and session cookies are: random text that only its client has. Postgres has its
//! SHA-256, so that nobody who reads the table can use one.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// Random bytes of one.
const BYTES: usize = 32;

/// What is known of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest(pub(super) [u8; 32]);

impl Digest {
    /// Of this text.
    pub(super) fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// A new one, of the operating system's randomness. It begins so, that people and scanners know one when they see it.
pub(super) fn random(prefix: &str) -> String {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Whether a text can be one that begins so.
pub(super) fn is_one(prefix: &str, text: &str) -> bool {
    let bytes = text.strip_prefix(prefix).and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok());
    bytes.is_some_and(|bytes| bytes.len() == BYTES)
}
