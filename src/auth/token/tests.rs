//! What is refused of tokens and keys, and what is made of those that are taken.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;
use crate::auth::{Role, Roles};
use crate::error::Code;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

macro_rules! key {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/it/keys/", $name, ".pem"))
    };
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn key() -> Key {
    Key::from_secret(SECRET, &Checks::default()).unwrap()
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
fn refused(key: &Key, token: &str) -> String {
    let error = key.verify(token).unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized);
    let detail = error.problem().detail.clone();
    assert!(token.len() < 10 || !format!("{error:?}").contains(token), "shows the token");
    detail
}

#[test]
fn a_tokens_claims_are_the_caller() {
    let exp = now() + 60;
    let caller = key()
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
        assert_eq!(key().verify(&token).unwrap().roles, Roles::of([Role::Member]));
    }
}

#[tokio::test]
async fn a_minted_token_is_taken_by_its_maker() {
    let checks = Checks { audience: Some("crew".into()), issuer: Some("us".into()) };
    let verifier = Verifier::from_secret(generate_secret().as_bytes(), checks).unwrap();
    let claims = Claims {
        name: Some("Ana".into()),
        roles: Roles::of([Role::Admin]),
        ..Claims::new("ana".parse().unwrap(), now() + 60)
    };
    let caller = verifier.verify(&verifier.mint(&claims).unwrap()).await.unwrap();
    assert_eq!((caller.name, caller.roles), (claims.name, claims.roles));
}

#[test]
fn times_are_checked_with_five_seconds_of_leeway() {
    let verify = |exp: i64, nbf: i64| {
        let token = hs256(&json!({"sub": "ana", "exp": now() + exp, "nbf": now() + nbf}));
        key().verify(&token).map_err(|error| error.problem().detail.clone())
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
        let detail = refused(&key(), &hs256(&claims));
        assert!(detail.contains(claim), "{claims}: {detail}");
    }
}

#[test]
fn a_token_that_never_ends_ends_with_the_calendar() {
    for exp in [json!(u64::MAX), json!(1e18), json!(253_402_300_800_i64)] {
        let token = hs256(&json!({"sub": "ana", "exp": exp}));
        assert_eq!(key().verify(&token).unwrap().expires_at.year(), 9999, "{exp}");
    }
}

#[test]
fn audience_and_issuer_are_checked_when_they_are_set() {
    let checks = Checks { audience: Some("crew".into()), issuer: Some("us".into()) };
    let key = Key::from_secret(SECRET, &checks).unwrap();
    let base = |aud: Value, iss: Value| hs256(&json!({"sub": "ana", "exp": now() + 60, "aud": aud, "iss": iss}));
    assert!(key.verify(&base(json!("crew"), json!("us"))).is_ok());
    assert!(key.verify(&base(json!(["other", "crew"]), json!("us"))).is_ok());
    for (aud, iss, expected) in [
        (json!("other"), json!("us"), "audience"),
        (json!(["other"]), json!("us"), "audience"),
        (json!([]), json!("us"), "audience"),
        (json!(null), json!("us"), "`aud`"),
        (json!(7), json!("us"), "`aud`"),
        (json!("crew"), json!("them"), "issuer"),
        (json!("crew"), json!(null), "`iss`"),
        (json!("crew"), json!(["us", "them"]), "`iss`"),
        (json!("crew"), json!([]), "issuer"),
        (json!("crew"), json!(7), "`iss`"),
        (json!("Crew"), json!("us"), "audience"),
        (json!("crew"), json!("us/"), "issuer"),
    ] {
        let detail = refused(&key, &base(aud, iss));
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
        let key = Key::from_public_pem(pem, &Checks::default()).unwrap();
        let verifier = Verifier::from_public_pem(pem, Checks::default()).unwrap();
        for (other, token) in tokens.iter().enumerate() {
            assert_eq!(key.verify(token).is_ok(), which == other, "{which} {other}");
        }
        assert!(matches!(verifier.mint(&Claims::new("ana".parse().unwrap(), exp)), Err(InvalidKey::CannotSign)));
    }
    let pkcs1 = Key::from_public_pem(key!("rsa.pkcs1.pub"), &Checks::default()).unwrap();
    assert!(pkcs1.verify(&tokens[0]).is_ok());
    assert!(pkcs1.verify(&sign(Algorithm::PS256, &rsa, &claims)).is_err());
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    let claims = json!({"sub": "ana", "exp": now() + 60, "roles": ["admin"]});
    // Alg confusion: the public key, which everybody has, taken for an HMAC secret.
    let rs256 = Key::from_public_pem(key!("rsa.pub"), &Checks::default()).unwrap();
    for secret in [&key!("rsa.pub")[..], key!("rsa.pub").trim_ascii()] {
        let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(secret), &claims);
        assert_eq!(refused(&rs256, &forged), "The token is not signed with RS256.");
    }
    let longer = sign(Algorithm::HS512, &EncodingKey::from_secret(SECRET), &claims);
    assert_eq!(refused(&key(), &longer), "The token is not signed with HS256.");
    for alg in ["none", "None", "NONE", ""] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        for signature in ["", "AAAA"] {
            refused(&key(), &raw(&header, &claims.to_string(), signature));
            refused(&rs256, &raw(&header, &claims.to_string(), signature));
        }
    }
}

#[test]
fn a_signature_of_another_key_or_text_is_refused() {
    let claims = json!({"sub": "ana", "exp": now() + 60});
    let other = EncodingKey::from_secret(b"another secret of thirty-two bytes");
    let detail = refused(&key(), &sign(Algorithm::HS256, &other, &claims));
    assert_eq!(detail, "The token's signature does not match.");
    let token = hs256(&claims);
    let (_, signature) = token.rsplit_once('.').unwrap();
    let admin = json!({"sub": "ana", "exp": now() + 60, "roles": ["admin"]}).to_string();
    refused(&key(), &raw(r#"{"alg":"HS256"}"#, &admin, signature));
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let claims = json!({"sub": "ana", "exp": now() + 60});
    let good = hs256(&claims);
    for token in ["", ".", "..", "a.b.c", "é.ü.ö", &good[1..], &good.replace('.', ""), &format!("{good}=")] {
        refused(&key(), token);
    }
    let long = hs256(&json!({"sub": "ana", "exp": now() + 60, "x": "x".repeat(8_192)}));
    let verifier = Verifier::from_secret(SECRET, Checks::default()).unwrap();
    assert_eq!(verifier.verify(&long).await.unwrap_err().problem().detail, "The token is longer than 8 KiB.");
    refused(&key(), &hs256(&json!([1, 2])));
}

#[test]
fn critical_extensions_are_refused() {
    let mut header = Header::new(Algorithm::HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let claims = json!({"sub": "ana", "exp": now() + 60});
    let secret = EncodingKey::from_secret(SECRET);
    let token = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    assert!(refused(&key(), &token).contains("crit"));
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
    let shown = format!("{:?} {:?}", Verifier::from_secret(SECRET, Checks::default()), key());
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
        prop_assert!(key().verify(&token).is_err());
        prop_assert!(key().verify(&parts).is_err());
    }

    #[test]
    fn no_claims_panic(name in any::<String>(), exp in any::<f64>(), sub in ".{0,20}") {
        let claims = json!({"sub": sub, "exp": exp, "name": name});
        let _ = key().verify(&hs256(&claims));
    }

    #[test]
    fn no_key_panics(pem in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Verifier::from_public_pem(&pem, Checks::default());
    }
}
