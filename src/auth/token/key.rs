//! One key, and what it accepts.
//!
//! The algorithm is the key's own and never the token's choice: a token that names another is refused before its signature
//! is looked at. A token is verified by the clock of this machine, with [`LEEWAY_S`] for clocks that disagree.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation};
use serde_json::{Map, Value};

use super::claims;
use crate::auth::Caller;
use crate::error::{Credentials, Error, Result};

/// Bytes of an HS256 secret, at least: as many as the hash has (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Seconds by which the issuer's clock and ours may disagree, for `exp` and `nbf`.
const LEEWAY_S: u64 = 5;

/// Bytes of an encoded RSA public key below which its modulus has less than 2048 bits.
const RSA_KEY_BYTES_MIN: usize = 256 + 8;

/// Bytes of an Ed25519 public key.
const ED25519_KEY_BYTES: usize = 32;

/// The curve of ES256, P-256, as a DER object identifier (RFC 5480, section 2.1.1.1).
const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// What is said of a token that cannot be read.
pub(super) const MALFORMED: &str = "The token is malformed, or its algorithm is unknown.";

/// Why a key cannot be used; one line, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKey {
    /// A secret that can be guessed.
    #[error(
        "CREWCAST_JWT_SECRET has {0} bytes, and HS256 needs at least {SECRET_BYTES_MIN}: \
         make one with `openssl rand -base64 48`"
    )]
    ShortSecret(usize),
    /// The private half, which does not belong on this server.
    #[error(
        "CREWCAST_JWT_PUBLIC_KEY holds a private key: \
         give its public half, `openssl pkey -in key.pem -pubout`"
    )]
    Private,
    /// Something else.
    #[error(
        "CREWCAST_JWT_PUBLIC_KEY is no public key for RS256 (RSA of 2048 bits or more), \
         ES256 (P-256) or EdDSA (Ed25519) in PEM form (-----BEGIN PUBLIC KEY-----)"
    )]
    Unusable,
    /// Only a secret can sign.
    #[error(
        "tokens can only be made with a secret (CREWCAST_JWT_SECRET), \
         as public keys verify and do not sign"
    )]
    CannotSign,
}

/// Claims that must have a certain value, besides those that every token has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Must be among `aud`, when set.
    pub audience: Option<String>,
    /// Must be `iss`, when set.
    pub issuer: Option<String>,
}

/// A key that tokens are verified with.
pub(crate) struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Key {
    /// Verifies tokens of this algorithm, which is that of the key.
    pub(crate) fn new(algorithm: Algorithm, key: DecodingKey, checks: &Checks) -> Self {
        Self { algorithm, key, validation: validation(algorithm, checks) }
    }

    /// Verifies HS256 tokens.
    ///
    /// # Errors
    /// When the secret has fewer than [`SECRET_BYTES_MIN`] bytes.
    pub(super) fn from_secret(secret: &[u8], checks: &Checks) -> Result<Self, InvalidKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(InvalidKey::ShortSecret(secret.len()));
        }
        Ok(Self::new(Algorithm::HS256, DecodingKey::from_secret(secret), checks))
    }

    /// Verifies RS256, ES256 or EdDSA tokens, as the kind of the public key says.
    ///
    /// # Errors
    /// When it is not a public key of these kinds in PEM form.
    pub(super) fn from_public_pem(pem: &[u8], checks: &Checks) -> Result<Self, InvalidKey> {
        let (algorithm, key) = public_key(pem)?;
        Ok(Self::new(algorithm, key, checks))
    }

    /// Who a token stands for.
    ///
    /// # Errors
    /// 401 that says what is wrong with it.
    pub(crate) fn verify(&self, token: &str) -> Result<Caller> {
        let data: TokenData<Map<String, Value>> =
            jsonwebtoken::decode(token, &self.key, &self.validation).map_err(|error| self.refusal(error.kind()))?;
        // What is critical must be understood (RFC 7515, section 4.1.11), and we know no extension.
        if data.header.crit.is_some() {
            return Err(Error::unauthorized("The token's header has `crit` extensions."));
        }
        claims::caller(&data.claims)
    }

    fn refusal(&self, kind: &ErrorKind) -> Error {
        let refusal = Error::unauthorized(self.reason(kind));
        // The library looks at the time after the signature: it was good once.
        let is_expired = matches!(kind, ErrorKind::ExpiredSignature);
        if is_expired { refusal.with_credentials(Credentials::Expired) } else { refusal }
    }

    /// What the client is told; never a part of the token.
    fn reason(&self, kind: &ErrorKind) -> String {
        let claim = match kind {
            ErrorKind::ExpiredSignature => return "The token has expired.".to_owned(),
            ErrorKind::ImmatureSignature => {
                return "The token is not valid yet (`nbf`).".to_owned();
            }
            ErrorKind::InvalidAlgorithm => {
                return format!("The token is not signed with {:?}.", self.algorithm);
            }
            ErrorKind::InvalidAudience => return "The token is for another audience.".to_owned(),
            ErrorKind::InvalidIssuer => return "The token is from another issuer.".to_owned(),
            ErrorKind::InvalidToken | ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => {
                return MALFORMED.to_owned();
            }
            ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => claim,
            _ => return "The token's signature does not match.".to_owned(),
        };
        format!("The token's claim `{claim}` is missing or has the wrong type.")
    }
}

/// The rules that `jsonwebtoken` checks for us; its defaults are other ones.
fn validation(algorithm: Algorithm, checks: &Checks) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY_S;
    validation.validate_nbf = true;
    let mut required = vec!["exp", "sub"];
    // Without one of ours configured, a token may be for anybody.
    validation.validate_aud = checks.audience.is_some();
    if let Some(audience) = &checks.audience {
        validation.set_audience(&[audience]);
        required.push("aud");
    }
    if let Some(issuer) = &checks.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// Which kind of public key this is.
fn public_key(pem: &[u8]) -> Result<(Algorithm, DecodingKey), InvalidKey> {
    let text = str::from_utf8(pem).map_err(|_| InvalidKey::Unusable)?.trim();
    if text.contains("PRIVATE KEY-----") {
        return Err(InvalidKey::Private);
    }
    // A certificate, too, would parse; the library would take the wrong bits of it.
    if !["PUBLIC", "RSA PUBLIC"].iter().any(|tag| text.starts_with(&format!("-----BEGIN {tag} KEY-----"))) {
        return Err(InvalidKey::Unusable);
    }
    let bytes = text.as_bytes();
    let named = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem(bytes)),
        (Algorithm::ES256, DecodingKey::from_ec_pem(bytes)),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(bytes)),
    ];
    named
        .into_iter()
        .find_map(|(algorithm, key)| Some((algorithm, key.ok()?)))
        .filter(|(algorithm, key)| is_strong(*algorithm, key, text))
        .ok_or(InvalidKey::Unusable)
}

/// Whether the algorithm works with this size or curve; else every token would be refused, later.
fn is_strong(algorithm: Algorithm, key: &DecodingKey, pem: &str) -> bool {
    let len = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match algorithm {
        Algorithm::RS256 => len >= RSA_KEY_BYTES_MIN,
        Algorithm::ES256 => der(pem).is_some_and(|der| der.windows(P256_OID.len()).any(|window| window == P256_OID)),
        _ => len == ED25519_KEY_BYTES,
    }
}

/// What stands between the first and the last line of a PEM text.
fn der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.lines().map(str::trim).filter(|line| !line.starts_with('-'));
    STANDARD.decode(body.collect::<String>()).ok()
}
