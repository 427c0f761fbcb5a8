//! Tokens: the key that they are verified with, and what they say.
//!
//! The algorithm is the configured key's and never the token's choice: a token that names another
//! is refused before its signature is looked at. A token is verified by the clock of this machine,
//! with [`LEEWAY_S`] for clocks that disagree. Neither a token nor a key is ever part of an error,
//! a log line or `Debug` output.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, TokenData, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Caller, Roles};
use crate::error::{Error, Result};
use crate::ids::{Slug, Sub, TopicName};

/// Bytes of an HS256 secret, at least: as many as the hash has (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Bytes of a token, at most.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Seconds by which the issuer's clock and ours may disagree, for `exp` and `nbf`.
const LEEWAY_S: u64 = 5;

/// Bytes of an encoded RSA public key below which its modulus has less than 2048 bits.
const RSA_KEY_BYTES_MIN: usize = 256 + 8;

/// Bytes of an Ed25519 public key.
const ED25519_KEY_BYTES: usize = 32;

/// The curve of ES256, P-256, as a DER object identifier (RFC 5480, section 2.1.1.1).
const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

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
         as a public key verifies and does not sign"
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

/// Verifies tokens, and makes them when it has the secret.
pub struct Verifier {
    algorithm: Algorithm,
    key: DecodingKey,
    signing_key: Option<EncodingKey>,
    validation: Validation,
    checks: Checks,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("algorithm", &self.algorithm)
            .field("checks", &self.checks)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Verifies and makes HS256 tokens.
    ///
    /// # Errors
    /// When the secret has fewer than [`SECRET_BYTES_MIN`] bytes.
    pub fn from_secret(secret: &[u8], checks: Checks) -> Result<Self, InvalidKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(InvalidKey::ShortSecret(secret.len()));
        }
        let key = DecodingKey::from_secret(secret);
        let signing_key = Some(EncodingKey::from_secret(secret));
        Ok(Self::new(Algorithm::HS256, key, signing_key, checks))
    }

    /// Verifies RS256, ES256 or EdDSA tokens, as the kind of the public key says.
    ///
    /// # Errors
    /// When it is not a public key of these kinds in PEM form.
    pub fn from_public_pem(pem: &[u8], checks: Checks) -> Result<Self, InvalidKey> {
        let (algorithm, key) = public_key(pem)?;
        Ok(Self::new(algorithm, key, None, checks))
    }

    fn new(algorithm: Algorithm, key: DecodingKey, signing_key: Option<EncodingKey>, checks: Checks) -> Self {
        let validation = validation(algorithm, &checks);
        Self { algorithm, key, signing_key, validation, checks }
    }

    /// Who a token stands for.
    ///
    /// # Errors
    /// 401 that says what is wrong with it.
    pub fn verify(&self, token: &str) -> Result<Caller> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::unauthorized("The token is longer than 8 KiB."));
        }
        let data: TokenData<Map<String, Value>> = jsonwebtoken::decode(token, &self.key, &self.validation)
            .map_err(|error| Error::unauthorized(self.reason(error.kind())))?;
        // What is critical must be understood (RFC 7515, section 4.1.11), and we know no extension.
        if data.header.crit.is_some() {
            return Err(Error::unauthorized("The token's header has `crit` extensions."));
        }
        caller(&data.claims)
    }

    /// Makes a token, for development and for the server's own first steps.
    ///
    /// # Errors
    /// When there is only a public key.
    pub fn mint(&self, claims: &Claims) -> Result<String, InvalidKey> {
        let key = self.signing_key.as_ref().ok_or(InvalidKey::CannotSign)?;
        let checked = Checked { claims, aud: self.checks.audience.as_deref(), iss: self.checks.issuer.as_deref() };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &checked, key);
        Ok(token.expect("claims are JSON and the key is of the algorithm's kind"))
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
                return "The token is malformed, or its algorithm is unknown.".to_owned();
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

/// A caller by the claims of a verified token.
fn caller(claims: &Map<String, Value>) -> Result<Caller> {
    let sub = string(claims, "sub")?.and_then(|sub| sub.parse::<Sub>().ok());
    let sub = sub.ok_or_else(|| {
        Error::unauthorized("The token's claim `sub` must have 1 to 128 characters of A-Z a-z 0-9 . _ @ | : + ~ -.")
    })?;
    let roles = strings(claims, "roles")?;
    let divisions = strings(claims, "divisions")?;
    let topics = strings(claims, "topics")?;
    Ok(Caller {
        sub,
        name: string(claims, "name")?.and_then(printable),
        avatar_url: string(claims, "avatarUrl")?.and_then(printable),
        roles: Roles::named(roles),
        divisions: divisions.filter_map(|slug| slug.parse::<Slug>().ok()).collect(),
        topics: topics.filter_map(|name| name.parse::<TopicName>().ok()).collect(),
        expires_at: expiry(claims)?,
    })
}

fn wrong_type(claim: &str, expected: &str) -> Error {
    Error::unauthorized(format!("The token's claim `{claim}` must be {expected}."))
}

/// A claim that is text; `null` is as absent.
fn string<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<Option<&'a str>> {
    match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type(claim, "a string")),
    }
}

/// A claim that is a list of text; `null` is as absent.
fn strings<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<impl Iterator<Item = &'a str>> {
    let items = match claims.get(claim) {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => items,
        Some(_) => return Err(wrong_type(claim, "a list of strings")),
    };
    Ok(items.iter().filter_map(Value::as_str))
}

/// Text that can be stored and shown: without control characters.
fn printable(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

/// When the token ends; what lies beyond the calendar ends with it.
fn expiry(claims: &Map<String, Value>) -> Result<OffsetDateTime> {
    let exp = claims.get("exp").and_then(Value::as_f64);
    let exp = exp.ok_or_else(|| wrong_type("exp", "a number of seconds"))?;
    let last = time::Date::MAX.midnight().assume_utc();
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds; a cast saturates")]
    let seconds = (exp as i64).min(last.unix_timestamp());
    Ok(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(last))
}

/// What a token of ours says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who it stands for.
    pub sub: Sub,
    /// What they are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What they are.
    #[serde(default)]
    pub roles: Roles,
    /// The divisions that they belong to.
    #[serde(default)]
    pub divisions: Vec<Slug>,
    /// The topics that they may join.
    #[serde(default)]
    pub topics: Vec<TopicName>,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
}

impl Claims {
    /// Claims of a plain member.
    #[must_use]
    pub fn new(sub: Sub, exp: i64) -> Self {
        Self { sub, name: None, roles: Roles::default(), divisions: Vec::new(), topics: Vec::new(), exp }
    }
}

/// Claims, with those that this server checks: it takes the tokens that it makes.
#[derive(Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    claims: &'a Claims,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// A new secret for HS256: 32 bytes of the operating system's randomness, as base64url.
#[must_use]
pub fn generate_secret() -> String {
    let mut bytes = [0; SECRET_BYTES_MIN];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::auth::Role;
    use crate::error::Code;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    macro_rules! key {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/it/keys/", $name, ".pem"))
        };
    }

    fn now() -> i64 {
        OffsetDateTime::now_utc().unix_timestamp()
    }

    fn verifier() -> Verifier {
        Verifier::from_secret(SECRET, Checks::default()).unwrap()
    }

    fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn hs256(claims: &Value) -> String {
        sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET), claims)
    }

    /// A token of parts as they are, signed by nobody.
    fn raw(header: &str, claims: &str, signature: &str) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        format!("{header}.{claims}.{signature}")
    }

    #[track_caller]
    fn refused(verifier: &Verifier, token: &str) -> String {
        let error = verifier.verify(token).unwrap_err();
        assert_eq!(error.code(), Code::Unauthorized);
        let detail = error.problem().detail.clone();
        assert!(token.len() < 10 || !format!("{error:?}").contains(token), "shows the token");
        detail
    }

    #[test]
    fn a_tokens_claims_are_the_caller() {
        let exp = now() + 60;
        let caller = verifier()
            .verify(&hs256(&json!({
                "sub": "auth0|ana", "exp": exp, "name": "Ana\u{0} M.", "avatarUrl": "https://x/a.png",
                "roles": ["manager", "cook"], "divisions": ["nord", "Not A Slug"],
                "topics": ["canteen", ""], "aud": "somebody", "more": {"a": 1},
            })))
            .unwrap();
        assert_eq!(caller.sub.as_str(), "auth0|ana");
        assert_eq!(caller.name.as_deref(), Some("Ana M."));
        assert_eq!(caller.avatar_url.as_deref(), Some("https://x/a.png"));
        assert_eq!(caller.roles, Roles::of([Role::Manager]));
        assert_eq!(caller.divisions, ["nord".parse().unwrap()]);
        assert_eq!(caller.topics, ["canteen".parse().unwrap()]);
        assert_eq!(caller.expires_at.unix_timestamp(), exp);
    }

    #[test]
    fn nobodys_role_is_member() {
        for roles in [json!(null), json!([]), json!(["cook"])] {
            let token = hs256(&json!({"sub": "ana", "exp": now() + 60, "roles": roles}));
            assert_eq!(verifier().verify(&token).unwrap().roles, Roles::of([Role::Member]));
        }
    }

    #[test]
    fn a_minted_token_is_taken_by_its_maker() {
        let checks = Checks { audience: Some("crew".into()), issuer: Some("us".into()) };
        let verifier = Verifier::from_secret(generate_secret().as_bytes(), checks).unwrap();
        let claims = Claims {
            name: Some("Ana".into()),
            roles: Roles::of([Role::Admin]),
            ..Claims::new("ana".parse().unwrap(), now() + 60)
        };
        let caller = verifier.verify(&verifier.mint(&claims).unwrap()).unwrap();
        assert_eq!((caller.name, caller.roles), (claims.name, claims.roles));
    }

    #[test]
    fn times_are_checked_with_five_seconds_of_leeway() {
        let verify = |exp: i64, nbf: i64| {
            let token = hs256(&json!({"sub": "ana", "exp": now() + exp, "nbf": now() + nbf}));
            verifier().verify(&token).map_err(|error| error.problem().detail.clone())
        };
        assert!(verify(60, 0).is_ok());
        assert!(verify(-3, -60).is_ok());
        assert!(verify(60, 3).is_ok());
        assert_eq!(verify(-8, -60).unwrap_err(), "The token has expired.");
        assert_eq!(verify(60, 8).unwrap_err(), "The token is not valid yet (`nbf`).");
    }

    #[test]
    fn a_wrong_claim_is_named() {
        let exp = now() + 60;
        for (claims, claim) in [
            (json!({"sub": "ana"}), "`exp`"),
            (json!({"sub": "ana", "exp": "soon"}), "`exp`"),
            (json!({"sub": "ana", "exp": null}), "`exp`"),
            (json!({"sub": "ana", "exp": -5}), "`exp`"),
            (json!({"sub": "ana", "exp": exp, "nbf": "now"}), "`nbf`"),
            (json!({"exp": exp}), "`sub`"),
            (json!({"sub": 7, "exp": exp}), "`sub`"),
            (json!({"sub": "", "exp": exp}), "`sub`"),
            (json!({"sub": "ana maria", "exp": exp}), "`sub`"),
            (json!({"sub": "a".repeat(129), "exp": exp}), "`sub`"),
            (json!({"sub": "ana", "exp": exp, "name": 7}), "`name`"),
            (json!({"sub": "ana", "exp": exp, "avatarUrl": {}}), "`avatarUrl`"),
            (json!({"sub": "ana", "exp": exp, "roles": "admin"}), "`roles`"),
            (json!({"sub": "ana", "exp": exp, "roles": ["admin", 1]}), "`roles`"),
            (json!({"sub": "ana", "exp": exp, "divisions": "nord"}), "`divisions`"),
            (json!({"sub": "ana", "exp": exp, "topics": {}}), "`topics`"),
        ] {
            let detail = refused(&verifier(), &hs256(&claims));
            assert!(detail.contains(claim), "{claims}: {detail}");
        }
    }

    #[test]
    fn a_token_that_never_ends_ends_with_the_calendar() {
        for exp in [json!(u64::MAX), json!(1e18), json!(253_402_300_800_i64)] {
            let token = hs256(&json!({"sub": "ana", "exp": exp}));
            assert_eq!(verifier().verify(&token).unwrap().expires_at.year(), 9999, "{exp}");
        }
    }

    #[test]
    fn audience_and_issuer_are_checked_when_they_are_set() {
        let checks = Checks { audience: Some("crew".into()), issuer: Some("us".into()) };
        let verifier = Verifier::from_secret(SECRET, checks).unwrap();
        let base = |aud: Value, iss: Value| hs256(&json!({"sub": "ana", "exp": now() + 60, "aud": aud, "iss": iss}));
        assert!(verifier.verify(&base(json!("crew"), json!("us"))).is_ok());
        assert!(verifier.verify(&base(json!(["other", "crew"]), json!("us"))).is_ok());
        for (aud, iss, expected) in [
            (json!("other"), json!("us"), "audience"),
            (json!(["other"]), json!("us"), "audience"),
            (json!([]), json!("us"), "audience"),
            (json!(null), json!("us"), "`aud`"),
            (json!(7), json!("us"), "`aud`"),
            (json!("crew"), json!("them"), "issuer"),
            (json!("crew"), json!(null), "`iss`"),
        ] {
            let detail = refused(&verifier, &base(aud, iss));
            assert!(detail.contains(expected), "{detail}");
        }
    }

    #[test]
    fn public_keys_of_three_kinds_verify_their_own_tokens_only() {
        let exp = now() + 60;
        let claims = json!({"sub": "ana", "exp": exp});
        let rsa = EncodingKey::from_rsa_pem(key!("rsa")).unwrap();
        let ec = EncodingKey::from_ec_pem(key!("ec")).unwrap();
        let ed = EncodingKey::from_ed_pem(key!("ed")).unwrap();
        let tokens = [
            sign(Algorithm::RS256, &rsa, &claims),
            sign(Algorithm::ES256, &ec, &claims),
            sign(Algorithm::EdDSA, &ed, &claims),
            hs256(&claims),
        ];
        let pems: [&[u8]; 3] = [key!("rsa.pub"), key!("ec.pub"), key!("ed.pub")];
        for (which, pem) in pems.into_iter().enumerate() {
            let verifier = Verifier::from_public_pem(pem, Checks::default()).unwrap();
            for (other, token) in tokens.iter().enumerate() {
                assert_eq!(verifier.verify(token).is_ok(), which == other, "{which} {other}");
            }
            assert!(matches!(verifier.mint(&Claims::new("ana".parse().unwrap(), exp)), Err(InvalidKey::CannotSign)));
        }
        let pkcs1 = Verifier::from_public_pem(key!("rsa.pkcs1.pub"), Checks::default()).unwrap();
        assert!(pkcs1.verify(&tokens[0]).is_ok());
        assert!(pkcs1.verify(&sign(Algorithm::PS256, &rsa, &claims)).is_err());
    }

    #[test]
    fn the_algorithm_is_the_keys_and_never_the_tokens() {
        let claims = json!({"sub": "ana", "exp": now() + 60, "roles": ["admin"]});
        // Alg confusion: the public key, which everybody has, taken for an HMAC secret.
        let rs256 = Verifier::from_public_pem(key!("rsa.pub"), Checks::default()).unwrap();
        for secret in [&key!("rsa.pub")[..], key!("rsa.pub").trim_ascii()] {
            let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(secret), &claims);
            assert_eq!(refused(&rs256, &forged), "The token is not signed with RS256.");
        }
        let longer = sign(Algorithm::HS512, &EncodingKey::from_secret(SECRET), &claims);
        assert_eq!(refused(&verifier(), &longer), "The token is not signed with HS256.");
        for alg in ["none", "None", "NONE", ""] {
            let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
            for signature in ["", "AAAA"] {
                refused(&verifier(), &raw(&header, &claims.to_string(), signature));
                refused(&rs256, &raw(&header, &claims.to_string(), signature));
            }
        }
    }

    #[test]
    fn a_signature_of_another_key_or_text_is_refused() {
        let claims = json!({"sub": "ana", "exp": now() + 60});
        let other = EncodingKey::from_secret(b"another secret of thirty-two bytes");
        let detail = refused(&verifier(), &sign(Algorithm::HS256, &other, &claims));
        assert_eq!(detail, "The token's signature does not match.");
        let token = hs256(&claims);
        let (_, signature) = token.rsplit_once('.').unwrap();
        let admin = json!({"sub": "ana", "exp": now() + 60, "roles": ["admin"]}).to_string();
        refused(&verifier(), &raw(r#"{"alg":"HS256"}"#, &admin, signature));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let claims = json!({"sub": "ana", "exp": now() + 60});
        let good = hs256(&claims);
        for token in ["", ".", "..", "a.b.c", "é.ü.ö", &good[1..], &good.replace('.', ""), &format!("{good}=")] {
            refused(&verifier(), token);
        }
        let long = hs256(&json!({"sub": "ana", "exp": now() + 60, "x": "x".repeat(8_192)}));
        assert_eq!(refused(&verifier(), &long), "The token is longer than 8 KiB.");
        refused(&verifier(), &hs256(&json!([1, 2])));
    }

    #[test]
    fn critical_extensions_are_refused() {
        let mut header = Header::new(Algorithm::HS256);
        header.crit = Some(vec!["b64".to_owned()]);
        let claims = json!({"sub": "ana", "exp": now() + 60});
        let key = EncodingKey::from_secret(SECRET);
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        assert!(refused(&verifier(), &token).contains("crit"));
    }

    #[test]
    fn a_key_that_cannot_work_is_refused_at_the_start_in_one_line() {
        let short = Verifier::from_secret(&SECRET[1..], Checks::default()).unwrap_err();
        assert!(short.to_string().starts_with("CREWCAST_JWT_SECRET has 31 bytes"), "{short}");
        let pems: [&[u8]; 8] = [
            b"",
            b"\xff",
            b"secret",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            key!("p384.pub"),
            key!("rsa1024.pub"),
            b"-----BEGIN PUBLIC KEY-----",
        ];
        for pem in pems {
            let error = Verifier::from_public_pem(pem, Checks::default()).unwrap_err();
            assert!(matches!(error, InvalidKey::Unusable), "{error}");
            assert!(!error.to_string().contains('\n'));
        }
        for private in [&key!("rsa")[..], key!("ec"), key!("ed")] {
            let error = Verifier::from_public_pem(private, Checks::default()).unwrap_err();
            assert!(matches!(error, InvalidKey::Private), "{error}");
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?}", verifier());
        assert!(!shown.contains("0123456789abcdef") && !shown.contains("48, 49"), "{shown}");
    }

    #[test]
    fn secrets_are_long_and_never_the_same() {
        let (one, other) = (generate_secret(), generate_secret());
        assert_ne!(one, other);
        assert_eq!(URL_SAFE_NO_PAD.decode(one).unwrap().len(), SECRET_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn no_token_panics(token in any::<String>(), parts in "[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}") {
            prop_assert!(verifier().verify(&token).is_err());
            prop_assert!(verifier().verify(&parts).is_err());
        }

        #[test]
        fn no_claims_panic(name in any::<String>(), exp in any::<f64>(), sub in ".{0,20}") {
            let claims = json!({"sub": sub, "exp": exp, "name": name});
            let _ = verifier().verify(&hs256(&claims));
        }

        #[test]
        fn no_key_panics(pem in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Verifier::from_public_pem(&pem, Checks::default());
        }
    }
}
