//! Tokens whose keys an identity provider publishes: new keys, wrong keys, and a provider that fails.

use std::{
    convert::Infallible,
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Response, StatusCode},
    routing::get,
};
use crewcast::{
    app::Server,
    auth::{Verifier, jwks::Timing},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::support::{PATIENCE, config, database};

/// Longer than any test: what happens only after this long does not happen.
const NEVER: Duration = Duration::from_hours(1);
/// Sooner than any test looks.
const SOON: Duration = Duration::from_millis(5);

/// Fetches only when it must.
fn timing() -> Timing {
    Timing {
        timeout: PATIENCE,
        refetch_every: NEVER,
        retry_every: NEVER,
        max_age_default: NEVER,
        max_age_min: NEVER,
        max_age_max: NEVER,
    }
}

/// Fetches all the time, as the provider wants it.
fn restless() -> Timing {
    Timing { retry_every: SOON, max_age_min: SOON, ..timing() }
}

/// What the provider answers with.
#[derive(Clone)]
enum Answer {
    Keys(Vec<Value>),
    Text(String),
    Status(StatusCode, Option<String>),
    /// Never anything.
    Silence,
    /// A head, a byte, and then never anything more.
    Trickle,
    /// Bytes without an end.
    Flood,
}

/// An identity provider, of which only the keys are there.
#[derive(Clone)]
struct Provider {
    url: String,
    answer: Arc<Mutex<Answer>>,
    asked: watch::Sender<usize>,
}

impl Provider {
    async fn start(answer: Answer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks?key=hush", listener.local_addr().unwrap());
        let provider = Self { url, answer: Arc::new(Mutex::new(answer)), asked: watch::Sender::new(0) };
        let router = Router::new().route("/jwks", get(Self::reply)).with_state(provider.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        provider
    }

    async fn of(keys: &[&Pair]) -> Self {
        Self::start(Answer::keys(keys)).await
    }

    async fn reply(State(provider): State<Self>) -> Response<Body> {
        let answer = {
            let answer = provider.answer.lock().unwrap();
            provider.asked.send_modify(|asked| *asked += 1);
            answer.clone()
        };
        match answer {
            Answer::Keys(keys) => {
                let body = json!({ "keys": keys }).to_string().into();
                Response::builder().header("cache-control", "public, max-age=0").body(body).unwrap()
            }
            Answer::Text(text) => Response::new(text.into()),
            Answer::Status(status, location) => {
                let location = location.unwrap_or_default();
                // A document that is not an answer to what was asked.
                Response::builder().status(status).header("location", location).body(r#"{"keys":[]}"#.into()).unwrap()
            }
            Answer::Silence => std::future::pending().await,
            Answer::Trickle => {
                let byte = tokio_stream::once(Ok::<_, Infallible>(Bytes::from_static(b"{")));
                Response::new(Body::from_stream(byte.chain(tokio_stream::pending())))
            }
            Answer::Flood => {
                let spaces = std::iter::repeat(Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096])));
                Response::new(Body::from_stream(tokio_stream::iter(spaces)))
            }
        }
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// Waits until it was asked this often.
    async fn was_asked(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        let wait = asked.wait_for(|asked| *asked >= times);
        tokio::time::timeout(PATIENCE, wait).await.expect("nobody asks").unwrap();
    }

    /// Waits until a fetch that began after this call is done: one at a time, so the second one tells of the first.
    async fn was_asked_anew(&self) {
        self.was_asked(self.asked() + 2).await;
    }
}

impl Answer {
    fn keys(keys: &[&Pair]) -> Self {
        Self::Keys(keys.iter().map(|pair| pair.published.clone()).collect())
    }
}

/// A key and its public half.
struct Pair {
    kid: String,
    algorithm: Algorithm,
    private: EncodingKey,
    published: Value,
}

impl Pair {
    fn of(kid: &str, algorithm: Algorithm, private: EncodingKey) -> Self {
        let mut published = serde_json::to_value(Jwk::from_encoding_key(&private, algorithm).unwrap()).unwrap();
        (published["kid"], published["use"]) = (json!(kid), json!("sig"));
        Self { kid: kid.to_owned(), algorithm, private, published }
    }

    /// A new Ed25519 key.
    fn new(kid: &str) -> Self {
        // RFC 8410, section 7: what stands before the 32 bytes of every private key.
        let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        der.resize(48, 0);
        getrandom::fill(&mut der[16..]).unwrap();
        Self::of(kid, Algorithm::EdDSA, EncodingKey::from_ed_der(&der))
    }

    fn rsa(kid: &str) -> Self {
        Self::of(kid, Algorithm::RS256, EncodingKey::from_rsa_pem(include_bytes!("keys/rsa.pem")).unwrap())
    }

    fn ec(kid: &str) -> Self {
        Self::of(kid, Algorithm::ES256, EncodingKey::from_ec_pem(include_bytes!("keys/ec.pem")).unwrap())
    }

    fn token(&self) -> String {
        sign(self.algorithm, &self.private, Some(&self.kid), &claims())
    }
}

fn claims() -> Value {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    json!({ "sub": "ana", "exp": exp, "aud": "crewcast", "iss": "https://id" })
}

fn sign(algorithm: Algorithm, key: &EncodingKey, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

/// A server that fetches its keys.
async fn server(provider: &Provider, timing: Timing) -> Server {
    let mut config = config(&database().await, &["--jwt-audience=crewcast", "--jwt-issuer=https://id"]);
    (config.keys.jwt_secret, config.keys.jwks_url, config.keys.jwks_timing) =
        (None, Some(provider.url.clone()), timing);
    let warnings = Arc::new(Mutex::new(Vec::<String>::new()));
    let said = warnings.clone();
    let server = Server::start(config, move |line| said.lock().unwrap().push(line.to_owned())).await.unwrap();
    assert_eq!(*warnings.lock().unwrap(), [""; 0]);
    server
}

/// The status that a token gets, and `Retry-After`.
async fn answer(server: &Server, token: &str) -> (u16, Option<String>) {
    let request = reqwest::Client::new().get(format!("http://{}/v1/divisions", server.address)).bearer_auth(token);
    let response = request.send().await.unwrap();
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), retry_after)
}

async fn status(server: &Server, token: &str) -> u16 {
    answer(server, token).await.0
}

/// The statuses of these tokens, all sent at once.
async fn statuses(server: &Server, tokens: impl IntoIterator<Item = String>) -> Vec<u16> {
    let http = reqwest::Client::new();
    let url = format!("http://{}/v1/divisions", server.address);
    let sent: Vec<_> = tokens.into_iter().map(|token| tokio::spawn(http.get(&url).bearer_auth(token).send())).collect();
    let mut statuses = Vec::new();
    for one in sent {
        statuses.push(one.await.unwrap().unwrap().status().as_u16());
    }
    statuses
}

#[tokio::test]
async fn published_keys_of_three_kinds_verify_tokens() {
    let (rsa, ec, ed) = (Pair::rsa("r"), Pair::ec("e"), Pair::new("d"));
    let provider = Provider::of(&[&rsa, &ec, &ed]).await;
    let server = server(&provider, timing()).await;
    for pair in [&rsa, &ec, &ed] {
        assert_eq!(status(&server, &pair.token()).await, 200, "{:?}", pair.algorithm);
        // One key's token under another's name.
        let other = if pair.kid == "r" { "e" } else { "r" };
        assert_eq!(status(&server, &sign(pair.algorithm, &pair.private, Some(other), &claims())).await, 401);
    }
    let with = |claim: &str, value: Value| {
        let mut claims = claims();
        claims[claim] = value;
        sign(Algorithm::EdDSA, &ed.private, Some("d"), &claims)
    };
    for (claim, value, expected) in [
        ("aud", json!(["x", "crewcast"]), 200),
        ("aud", json!("x"), 401),
        ("aud", Value::Null, 401),
        ("iss", json!("https://other"), 401),
        ("iss", Value::Null, 401),
        ("exp", json!(1), 401),
    ] {
        assert_eq!(status(&server, &with(claim, value.clone())).await, expected, "{claim} {value}");
    }
    assert_eq!(provider.asked(), 1, "every key was known from the start");
    server.stop().await;
}

#[tokio::test]
async fn a_new_key_is_fetched_once_for_all_who_bring_it() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let provider = Provider::of(&[&old]).await;
    // Not the pause keeps the other forty-nine from asking, too.
    let server = server(&provider, Timing { refetch_every: Duration::ZERO, ..timing() }).await;
    assert_eq!((status(&server, &old.token()).await, provider.asked()), (200, 1));
    provider.answers(Answer::keys(&[&old, &new]));
    assert_eq!(statuses(&server, (0..50).map(|_| new.token())).await, [200; 50]);
    assert_eq!(status(&server, &old.token()).await, 200);
    assert_eq!(provider.asked(), 2);
    server.stop().await;
}

#[tokio::test]
async fn tokens_of_keys_that_are_nowhere_do_not_make_the_server_ask_again_and_again() {
    let (key, stranger) = (Pair::new("key"), Pair::new("stranger"));
    let provider = Provider::of(&[&key]).await;
    let server = server(&provider, timing()).await;
    assert_eq!(status(&server, &key.token()).await, 200);
    let name = |n: usize| sign(Algorithm::EdDSA, &stranger.private, Some(&format!("kid-{n}")), &claims());
    assert_eq!(statuses(&server, (0..200).map(name)).await, [401; 200]);
    assert_eq!(status(&server, &key.token()).await, 200);
    assert_eq!(provider.asked(), 2, "the start, and one for two hundred tokens");
    server.stop().await;
}

#[tokio::test]
async fn after_its_pause_an_unknown_key_is_asked_for_again() {
    let (key, stranger) = (Pair::new("key"), Pair::new("stranger"));
    let provider = Provider::of(&[&key]).await;
    let server = server(&provider, Timing { refetch_every: Duration::ZERO, ..timing() }).await;
    assert_eq!(status(&server, &key.token()).await, 200);
    for times in 2..5 {
        assert_eq!(status(&server, &stranger.token()).await, 401);
        assert_eq!(provider.asked(), times);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_withdrawn_key_is_gone_when_the_document_is_due() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let provider = Provider::of(&[&old]).await;
    let server = server(&provider, restless()).await;
    assert_eq!(status(&server, &old.token()).await, 200);
    provider.answers(Answer::keys(&[&new]));
    provider.was_asked_anew().await;
    assert_eq!(statuses(&server, [old.token(), new.token()]).await, [401, 200]);
    provider.answers(Answer::keys(&[]));
    provider.was_asked_anew().await;
    assert_eq!(status(&server, &new.token()).await, 401, "a document without keys is taken at its word");
    server.stop().await;
}

#[tokio::test]
async fn known_keys_outlive_the_providers_failures_and_others_are_put_off() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let provider = Provider::of(&[&old]).await;
    let elsewhere = Provider::of(&[&new]).await;
    let server = server(&provider, restless()).await;
    assert_eq!(status(&server, &old.token()).await, 200);
    for failure in [
        Answer::Status(StatusCode::INTERNAL_SERVER_ERROR, None),
        Answer::Status(StatusCode::FOUND, Some(elsewhere.url.clone())),
        Answer::Text("<html>Maintenance</html>".to_owned()),
        Answer::Text(format!("{{\"keys\": [{}]}}", ["7"; 101].join(","))),
        Answer::Text(format!("{{\"keys\": []}}{}", " ".repeat(256 * 1024))),
        Answer::Flood,
    ] {
        provider.answers(failure);
        provider.was_asked_anew().await;
        assert_eq!(status(&server, &old.token()).await, 200);
        let (status, retry_after) = answer(&server, &new.token()).await;
        assert_eq!((status, retry_after.as_deref()), (503, Some("3600")));
    }
    assert_eq!(elsewhere.asked(), 0, "redirects are not followed");
    provider.answers(Answer::keys(&[&new]));
    provider.was_asked_anew().await;
    assert_eq!(statuses(&server, [old.token(), new.token()]).await, [401, 200]);
    server.stop().await;
}

#[tokio::test]
async fn a_provider_that_does_not_answer_keeps_nobody_waiting_for_long() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let brief = Timing { timeout: Duration::from_millis(100), ..timing() };
    for silence in [Answer::Silence, Answer::Trickle] {
        let provider = Provider::of(&[&old]).await;
        let server = server(&provider, brief).await;
        assert_eq!(status(&server, &old.token()).await, 200);
        provider.answers(silence);
        assert_eq!(statuses(&server, (0..50).map(|_| new.token())).await, [503; 50]);
        assert_eq!((status(&server, &old.token()).await, provider.asked()), (200, 2));
        server.stop().await;
    }
}

#[tokio::test]
async fn known_tokens_do_not_wait_for_a_fetch_and_a_stop_ends_it() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let provider = Provider::of(&[&old]).await;
    let server = server(&provider, timing()).await;
    assert_eq!(status(&server, &old.token()).await, 200);
    provider.answers(Answer::Silence);
    let url = format!("http://{}/v1/divisions", server.address);
    let waiting = tokio::spawn(reqwest::Client::new().get(url).bearer_auth(new.token()).send());
    provider.was_asked(2).await;
    assert_eq!(status(&server, &old.token()).await, 200);
    waiting.abort();
    assert!(waiting.await.is_err());
    // The fetch would go on for as long as the test may take.
    server.stop().await;
}

#[tokio::test]
async fn a_server_starts_without_its_provider_and_serves_when_it_is_there() {
    let key = Pair::new("key");
    let provider = Provider::start(Answer::Status(StatusCode::BAD_GATEWAY, None)).await;
    let server = server(&provider, restless()).await;
    provider.was_asked_anew().await;
    assert_eq!(status(&server, &key.token()).await, 503);
    let nameless = sign(key.algorithm, &key.private, None, &claims());
    assert_eq!(status(&server, &nameless).await, 503);
    assert_eq!(status(&server, "no.token.atall").await, 401);
    provider.answers(Answer::keys(&[&key]));
    provider.was_asked_anew().await;
    assert_eq!(statuses(&server, [key.token(), nameless]).await, [200, 200]);
    server.stop().await;
}

#[tokio::test]
async fn the_algorithm_is_the_published_keys_and_never_the_tokens() {
    let (rsa, ec) = (Pair::rsa("r"), Pair::ec("e"));
    let secret = b"a published secret, 32 bytes long";
    let symmetric = json!({ "kty": "oct", "kid": "s", "alg": "HS256", "use": "sig", "k": "YSBwdWJsaXNoZWQgc2VjcmV0LCAzMiBieXRlcyBsb25n" });
    let mut encryption = Pair::new("x");
    encryption.published["use"] = json!("enc");
    let keys = [&rsa, &ec, &encryption].map(|pair| pair.published.clone()).into_iter().chain([symmetric]);
    let provider = Provider::start(Answer::Keys(keys.collect())).await;
    let server = server(&provider, timing()).await;
    let hs256 = |secret: &[u8], kid| sign(Algorithm::HS256, &EncodingKey::from_secret(secret), kid, &claims());
    let modulus = rsa.published["n"].as_str().unwrap().as_bytes();
    for (why, forged) in [
        ("the public key as a secret", hs256(include_bytes!("keys/rsa.pub.pem"), Some("r"))),
        ("its modulus as a secret", hs256(modulus, Some("r"))),
        ("its text as a secret", hs256(rsa.published.to_string().as_bytes(), Some("r"))),
        ("a symmetric key", hs256(secret, Some("s"))),
        ("another hash", sign(Algorithm::RS512, &rsa.private, Some("r"), &claims())),
        ("another padding", sign(Algorithm::PS256, &rsa.private, Some("r"), &claims())),
        ("a key for encryption", encryption.token()),
        ("no name among several keys", sign(Algorithm::RS256, &rsa.private, None, &claims())),
    ] {
        assert_eq!(status(&server, &forged).await, 401, "{why}");
    }
    assert_eq!(statuses(&server, [rsa.token(), ec.token()]).await, [200, 200]);
    server.stop().await;
}

#[tokio::test]
async fn tokens_of_other_services_and_addresses_not_to_be_trusted_are_told_at_the_start() {
    let provider = Provider::of(&[]).await;
    for (arguments, expected) in [
        (&[][..], "set CREWCAST_JWT_AUDIENCE and CREWCAST_JWT_ISSUER"),
        (&["--jwt-audience=crewcast"], "set CREWCAST_JWT_ISSUER"),
        (&["--jwt-issuer=https://id"], "set CREWCAST_JWT_AUDIENCE"),
    ] {
        let mut config = config(&database().await, arguments);
        (config.keys.jwt_secret, config.keys.jwks_url) = (None, Some(provider.url.clone()));
        let (say, said) = std::sync::mpsc::channel();
        let server = Server::start(config.clone(), move |line| say.send(line.to_owned()).unwrap()).await.unwrap();
        assert!(said.recv().unwrap().ends_with(expected));
        server.stop().await;
        config.keys.jwks_url = Some(provider.url.replace("127.0.0.1", "id.example.com"));
        let refused = Server::start(config, |_| {}).await.err().unwrap().to_string();
        assert!(refused.contains("CREWCAST_JWKS_URL must be https://") && !refused.contains("hush"), "{refused}");
    }
}

#[test]
fn the_command_line_takes_one_source_of_keys_and_mints_with_none_of_a_provider() {
    let url = "--jwks-url=https://id.example.com/jwks";
    let nowhere = "--database-url=postgres://127.0.0.1:1/none";
    let secret = "--jwt-secret=hush-hush-hush-hush-hush-hush-hush";
    for (arguments, expected) in [
        (&["serve", url, secret][..], "--jwks-url"),
        (&["serve", url, "--jwt-public-key=key.pem"], "--jwks-url"),
        (&["serve", "--jwks-url=http://id.example.com/jwks", "--listen=127.0.0.1:0", nowhere], "must be https://"),
        (&["token", url], "CREWCAST_JWT_SECRET"),
        (&["tail", url], "CREWCAST_JWT_SECRET"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crewcast"));
        let output = command.env_clear().current_dir("/").args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.lines().count() == 1, "{error}");
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}

/// Everything that is logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn count(&self, text: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(text).count()
    }
}

#[tokio::test]
async fn the_log_has_one_line_for_each_change_and_no_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // With only one subscriber, a thread that has none would switch off for all what it is the first to log.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _guard = tracing::subscriber::set_default(subscriber);
    let key = Pair::new("key-of-march");
    let provider = Provider::of(&[&key]).await;
    // Everything runs in this test's thread, so that the log is heard.
    let (verifier, fetcher) = Verifier::from_jwks(&provider.url, restless(), Default::default()).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let fetching = tokio::spawn(fetcher.run(stop.clone()));
    for outages in 1..=2 {
        assert!(verifier.verify(&key.token()).await.is_ok());
        provider.answers(Answer::Status(StatusCode::BAD_GATEWAY, None));
        provider.was_asked_anew().await;
        provider.was_asked_anew().await;
        assert!(verifier.verify(&Pair::new("other").token()).await.is_err());
        assert_eq!(log.count("cannot be fetched"), outages);
        provider.answers(Answer::keys(&[&key]));
        provider.was_asked_anew().await;
        provider.was_asked_anew().await;
        assert_eq!(log.count("tokens are verified with"), outages + 1);
    }
    stop.cancel();
    fetching.await.unwrap();
    assert_eq!(log.count("key-of-march"), 3);
    assert_eq!(log.count("502 Bad Gateway"), 2);
    assert!(log.count("/jwks") > 0 && log.count("hush") == 0 && log.count("eyJ") == 0);
    assert!(verifier.verify(&Pair::new("other").token()).await.is_err(), "nobody fetches any more, and nobody waits");
}
