//! Which published keys verify which tokens. How they are fetched is tested with the whole service.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

macro_rules! pem {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/it/keys/", $name, ".pem"))
    };
}

/// A private key, its algorithm, and its public half as it is published, with nothing that need not be there.
type Pair = (Algorithm, EncodingKey, Value);

fn pairs() -> [Pair; 3] {
    [
        (Algorithm::RS256, EncodingKey::from_rsa_pem(pem!("rsa")).unwrap()),
        (Algorithm::ES256, EncodingKey::from_ec_pem(pem!("ec")).unwrap()),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(pem!("ed")).unwrap()),
    ]
    .map(|(algorithm, key)| {
        let mut published = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        published.as_object_mut().unwrap().remove("alg");
        (algorithm, key, published)
    })
}

fn with(key: &Value, member: &str, value: Value) -> Value {
    let mut key = key.clone();
    key[member] = value;
    key
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::of(keys, &Checks::default())
}

fn token(algorithm: Algorithm, key: &EncodingKey) -> String {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 60;
    jsonwebtoken::encode(&Header::new(algorithm), &json!({"sub": "ana", "exp": exp}), key).unwrap()
}

#[test]
fn a_keys_kind_is_its_algorithm_and_no_other_is_taken() {
    for (which, (algorithm, _, published)) in pairs().iter().enumerate() {
        let named = with(published, "alg", json!(format!("{algorithm:?}")));
        for keys in [set(std::slice::from_ref(published)), set(&[named])] {
            let key = keys.find(None).unwrap();
            for (other, (algorithm, private, _)) in pairs().iter().enumerate() {
                assert_eq!(key.verify(&token(*algorithm, private)).is_ok(), which == other, "{which} {other}");
            }
        }
    }
    let [(_, rsa, published), ..] = pairs();
    let key = set(&[published]).find(None).unwrap();
    for other in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        assert!(key.verify(&token(other, &rsa)).is_err(), "{other:?}");
    }
}

#[test]
fn a_public_key_is_no_secret_of_tokens() {
    let [(_, _, published), ..] = pairs();
    let key = set(std::slice::from_ref(&published)).find(None).unwrap();
    let modulus = URL_SAFE_NO_PAD.decode(published["n"].as_str().unwrap()).unwrap();
    let secrets = [&pem!("rsa.pub")[..], &modulus, published["n"].as_str().unwrap().as_bytes()];
    for secret in secrets {
        let forged = token(Algorithm::HS256, &EncodingKey::from_secret(secret));
        let error = key.verify(&forged).unwrap_err();
        assert_eq!(error.problem().detail, "The token is not signed with RS256.");
    }
}

#[test]
fn keys_that_are_not_for_our_tokens_are_left_out_and_the_others_count() {
    let [(_, _, rsa), (_, _, ec), (_, _, ed)] = pairs();
    let zeros = format!("AAAA{}", rsa["n"].as_str().unwrap());
    for taken in [
        with(&rsa, "use", json!("sig")),
        with(&rsa, "key_ops", json!(["verify"])),
        with(&rsa, "n", json!(zeros)),
        with(&ec, "x5c", json!(["MIIB"])),
        with(&ed, "kid", json!("")),
    ] {
        assert!(!set(std::slice::from_ref(&taken)).is_empty(), "{taken}");
    }
    let short = URL_SAFE_NO_PAD.encode([0xff; 255]);
    let long = URL_SAFE_NO_PAD.encode([0xff; 1025]);
    let left_out = [
        json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "a"}),
        json!({"kty": "oct", "k": "c2VjcmV0", "alg": "RS256", "n": rsa["n"], "e": rsa["e"]}),
        json!({"kty": "EC", "crv": "P-384", "x": ec["x"], "y": ec["y"]}),
        json!({"kty": "OKP", "crv": "X25519", "x": ed["x"]}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
        json!({"kty": "RSA", "e": "AQAB"}),
        json!({}),
        json!(7),
        json!(null),
        with(&rsa, "use", json!("enc")),
        with(&rsa, "use", json!("tls")),
        with(&rsa, "key_ops", json!(["encrypt"])),
        with(&rsa, "key_ops", json!([])),
        with(&rsa, "alg", json!("RS512")),
        with(&rsa, "alg", json!("HS256")),
        with(&rsa, "alg", json!("none")),
        with(&rsa, "alg", json!("ES256")),
        with(&rsa, "kid", json!(7)),
        with(&rsa, "n", json!(short)),
        with(&rsa, "n", json!(long)),
        with(&rsa, "n", json!("not base64!")),
        with(&rsa, "d", json!("AAAA")),
        with(&ec, "x", json!("AAAA")),
        with(&ec, "d", json!("AAAA")),
        with(&ed, "x", json!("AAAA")),
    ];
    for key in &left_out {
        assert!(set(std::slice::from_ref(key)).is_empty(), "{key}");
    }
    let mut all = left_out.to_vec();
    all.push(with(&ed, "kid", json!("good")));
    assert_eq!(set(&all).names(), ["good"]);
}

#[test]
fn a_token_without_a_name_of_a_key_needs_a_document_with_one() {
    let [(_, _, rsa), (_, _, ec), _] = pairs();
    let (rsa, ec) = (with(&rsa, "kid", json!("one")), with(&ec, "kid", json!("two")));
    let symmetric = json!({"kty": "oct", "k": "c2VjcmV0"});
    assert!(set(&[]).find(None).is_none());
    let one = set(&[rsa.clone(), symmetric]);
    assert!(one.find(None).is_some() && one.find(Some("one")).is_some() && one.find(Some("two")).is_none());
    let two = set(&[rsa, ec]);
    assert!(two.find(None).is_none() && two.find(Some("one")).is_some() && two.find(Some("two")).is_some());
    assert!(two.find(Some("")).is_none() && two.find(Some("ONE")).is_none());
}

#[test]
fn a_documents_age_stays_within_bounds() {
    let timing = Timing::default();
    let minutes = |told: Option<u64>| timing.max_age(told.map(Duration::from_secs)).as_secs() / 60;
    assert_eq!([None, Some(0), Some(300), Some(86_400), Some(u64::MAX)].map(minutes), [10, 1, 5, 60, 60]);
}

proptest! {
    #[test]
    fn no_key_panics(
        kty in "RSA|EC|OKP|oct|.{0,4}", crv in "P-256|Ed25519|.{0,4}", text in "[A-Za-z0-9_-]{0,60}", kid in any::<Option<String>>(),
    ) {
        let key = json!({"kty": kty, "crv": crv, "x": text, "y": text, "n": text, "e": text, "kid": kid});
        let keys = set(&[key]);
        if let Some(key) = keys.find(None) {
            prop_assert!(key.verify("a.b.c").is_err());
        }
    }
}
