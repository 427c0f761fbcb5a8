//! Tokens: what they are verified with, and what they say.
//!
//! A [`Verifier`] has one key, or the keys that an identity provider publishes (see [`jwks`](super::jwks)). Either way the
//! algorithm is the key's and never the token's choice. Neither a token nor a key is ever part of an error, a log line or
//! `Debug` output.

mod claims;
mod key;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use super::Caller;
use super::jwks::{Fetcher, InvalidAddress, Jwks, Timing};
use crate::error::{Error, Result};

pub use claims::Claims;
pub(super) use key::Key;
pub use key::{Checks, InvalidKey, SECRET_BYTES_MIN};

/// Bytes of a token, at most.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Verifies tokens, and makes them when it has the secret.
#[derive(Debug)]
pub struct Verifier {
    source: Source,
    checks: Checks,
}

/// Where the key of a token comes from.
#[derive(Debug)]
enum Source {
    /// A secret also makes tokens.
    Secret(Key, EncodingKey),
    Public(Key),
    Provider(Jwks),
}

impl Verifier {
    /// Verifies and makes HS256 tokens.
    ///
    /// # Errors
    /// When the secret has fewer than [`SECRET_BYTES_MIN`] bytes.
    pub fn from_secret(secret: &[u8], checks: Checks) -> Result<Self, InvalidKey> {
        let source = Source::Secret(Key::from_secret(secret, &checks)?, EncodingKey::from_secret(secret));
        Ok(Self { source, checks })
    }

    /// Verifies RS256, ES256 or EdDSA tokens, as the kind of the public key says.
    ///
    /// # Errors
    /// When it is not a public key of these kinds in PEM form.
    pub fn from_public_pem(pem: &[u8], checks: Checks) -> Result<Self, InvalidKey> {
        let source = Source::Public(Key::from_public_pem(pem, &checks)?);
        Ok(Self { source, checks })
    }

    /// Verifies RS256, ES256 and EdDSA tokens with the keys that are published at this address. It knows none until the
    /// [`Fetcher`] runs.
    ///
    /// # Errors
    /// When keys from that address could not be trusted.
    pub fn from_jwks(url: &str, timing: Timing, checks: Checks) -> Result<(Self, Fetcher), InvalidAddress> {
        let (jwks, fetcher) = Jwks::new(url, timing, checks.clone())?;
        Ok((Self { source: Source::Provider(jwks), checks }, fetcher))
    }

    /// Who a token stands for. It waits for a key only where the token names one that was not published when the keys were
    /// last fetched.
    ///
    /// # Errors
    /// 401 that says what is wrong with it; 503 when its key is not known and cannot be had now.
    pub async fn verify(&self, token: &str) -> Result<Caller> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::unauthorized("The token is longer than 8 KiB."));
        }
        match &self.source {
            Source::Secret(key, _) | Source::Public(key) => key.verify(token),
            Source::Provider(jwks) => jwks.key(key_id(token)?.as_deref()).await?.verify(token),
        }
    }

    /// Makes a token, for development and for the server's own first steps.
    ///
    /// # Errors
    /// When there is no secret.
    pub fn mint(&self, claims: &Claims) -> Result<String, InvalidKey> {
        let Source::Secret(_, key) = &self.source else {
            return Err(InvalidKey::CannotSign);
        };
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims::Checked::new(claims, &self.checks), key);
        Ok(token.expect("claims are JSON and the key is of the algorithm's kind"))
    }
}

/// The key that a token names: all that is believed of it before it is verified.
fn key_id(token: &str) -> Result<Option<String>> {
    let header = jsonwebtoken::decode_header(token);
    Ok(header.map_err(|_| Error::unauthorized(key::MALFORMED))?.kid)
}

/// A new secret for HS256: 32 bytes of the operating system's randomness, as base64url.
#[must_use]
pub fn generate_secret() -> String {
    let mut bytes = [0; SECRET_BYTES_MIN];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}
