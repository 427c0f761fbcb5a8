//! The keys in the document: which of them verify tokens here, and with which algorithm.
//!
//! A document often has keys for other things than our tokens, so a key that is not understood is left out and the others
//! count (RFC 7517, section 5). Left out are symmetric keys, which are no secret once they are published, keys whose private
//! half is there, keys that are not for signatures, and those that are too small.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::auth::token::{Checks, Key};

/// Bytes of an RSA modulus: 2048 to 8192 bits.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Bytes of a coordinate on P-256, and of an Ed25519 key.
const COORDINATE_BYTES: usize = 32;

/// Keys that verify tokens, each with the name that tokens call it by.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<(Option<String>, Arc<Key>)>);

impl KeySet {
    /// Those of these keys that verify tokens.
    pub(super) fn of(keys: &[Value], checks: &Checks) -> Self {
        Self(keys.iter().filter_map(|key| verifying(key, checks)).collect())
    }

    /// The key of this name, the first where a document has several. A token may leave the name out where there is just one
    /// key.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<Arc<Key>> {
        let found = match (kid, &self.0[..]) {
            (None, [(_, only)]) => Some(only),
            (None, _) => None,
            (kid, keys) => keys.iter().find(|(name, _)| name.as_deref() == kid).map(|(_, key)| key),
        };
        found.cloned()
    }

    /// Whether no token can be verified.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in the document's order.
    pub(super) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_deref().unwrap_or_default()).collect()
    }
}

/// A key as it is published (RFC 7517, section 4, and RFC 7518, section 6).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private half.
    d: Option<IgnoredAny>,
}

fn verifying(key: &Value, checks: &Checks) -> Option<(Option<String>, Arc<Key>)> {
    let jwk = Jwk::deserialize(key).ok().filter(Jwk::is_for_signatures)?;
    let (algorithm, key) = jwk.public_key()?;
    Some((jwk.kid, Arc::new(Key::new(algorithm, key, checks))))
}

impl Jwk {
    fn is_for_signatures(&self) -> bool {
        let verifies = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        self.d.is_none()
            && self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(verifies)
    }

    /// The key, and the one algorithm that its kind has here; none where the document says that it is for another.
    fn public_key(&self) -> Option<(Algorithm, DecodingKey)> {
        let (algorithm, name, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => (Algorithm::RS256, "RS256", self.rsa()?),
            ("EC", Some("P-256")) => (Algorithm::ES256, "ES256", self.p256()?),
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, "EdDSA", self.ed25519()?),
            _ => return None,
        };
        self.alg.as_deref().is_none_or(|alg| alg == name).then_some((algorithm, key))
    }

    fn rsa(&self) -> Option<DecodingKey> {
        let (n, e) = (bytes(self.n.as_ref())?, bytes(self.e.as_ref())?);
        let zeros = n.iter().take_while(|byte| **byte == 0).count();
        RSA_MODULUS_BYTES.contains(&(n.len() - zeros)).then(|| DecodingKey::from_rsa_raw_components(&n[zeros..], &e))
    }

    fn p256(&self) -> Option<DecodingKey> {
        let (x, y) = (self.x.as_ref(), self.y.as_ref());
        let whole = |coordinate| bytes(coordinate).is_some_and(|bytes| bytes.len() == COORDINATE_BYTES);
        (whole(x) && whole(y)).then(|| DecodingKey::from_ec_components(x?, y?).ok()).flatten()
    }

    fn ed25519(&self) -> Option<DecodingKey> {
        let x = self.x.as_ref();
        bytes(x).filter(|x| x.len() == COORDINATE_BYTES)?;
        DecodingKey::from_ed_components(x?).ok()
    }
}

fn bytes(text: Option<&String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}
