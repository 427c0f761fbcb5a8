//! Limits by caller and by address, when they are reached: who is refused, who is not, and what is said about it.
//!
//! Minutes go by a clock that the tests turn.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use crewcast::{
    app::Server,
    auth::{Claims, Role},
    http::buckets::Time,
};
use governor::clock::FakeRelativeClock;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::support::{Client, Stream, config, database, mint, token};

/// A server whose minutes the test turns.
async fn server(url: &str, arguments: &[&str]) -> (Server, FakeRelativeClock) {
    let (mut config, clock) = (config(url, arguments), FakeRelativeClock::default());
    config.limits.time = Time::ByHand(clock.clone());
    (Server::start(config, |_| {}).await.unwrap(), clock)
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// A write that changes nothing after the first time.
fn write(client: &Client) -> RequestBuilder {
    client.request(Method::PUT, "/v1/divisions/north").json(&json!({ "name": "North" }))
}

/// The code of a refusal, its `Retry-After`, its policy and what is left.
async fn refusal(response: Response) -> (Value, String, String, String) {
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(response.headers(), "content-type"), "application/problem+json");
    let [after, policy, left] =
        ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| header(response.headers(), name).to_owned());
    (response.json::<Value>().await.unwrap()["code"].clone(), after, policy, left)
}

#[tokio::test]
async fn a_members_101st_write_is_refused_and_a_services_is_not() {
    let (server, clock) =
        server(&database().await, &["--writes-per-minute=100", "--service-writes-per-minute=6000"]).await;
    let (ben, erp) = (Client::new(&server, &token("ben", &[])), Client::new(&server, &token("erp", &[Role::Service])));
    for taken in 1..=100 {
        let answer = write(&ben).send().await.unwrap();
        // A write that one may not do is one, too.
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{taken}");
        assert_eq!(header(answer.headers(), "ratelimit-policy"), r#""writes";q=100;w=60"#);
        let full_in = (taken * 600_u32).div_ceil(1000);
        assert_eq!(header(answer.headers(), "ratelimit"), format!(r#""writes";r={};t={full_in}"#, 100 - taken));
    }
    let (code, after, policy, left) = refusal(write(&ben).send().await.unwrap()).await;
    assert_eq!((code, after.as_str(), policy.as_str()), (json!("rate_limited"), "1", r#""writes";q=100;w=60"#));
    assert_eq!(left, r#""writes";r=0;t=1"#);
    for taken in 1..=101 {
        let answer = write(&erp).send().await.unwrap();
        assert!(answer.status().is_success(), "{taken}");
        assert_eq!(header(answer.headers(), "ratelimit-policy"), r#""writes";q=6000;w=60"#);
    }
    // One comes back every 600 ms.
    clock.advance(Duration::from_millis(599));
    assert_eq!(status(write(&ben)).await, StatusCode::TOO_MANY_REQUESTS);
    clock.advance(Duration::from_millis(1));
    assert_eq!(status(write(&ben)).await, StatusCode::FORBIDDEN);
    assert_eq!(status(write(&ben)).await, StatusCode::TOO_MANY_REQUESTS);
    let metrics = erp.metrics().await;
    assert_eq!(metrics[r#"crewcast_limited_total{limit="writes"}"#], 3.0);
    assert_eq!(metrics["crewcast_limit_keys"], 3.0, "ben, erp, and whom the log told of");
    server.stop().await;
}

#[tokio::test]
async fn every_way_to_write_counts_reads_do_not_and_callers_do_not_share() {
    let (server, _clock) = server(&database().await, &["--writes-per-minute=4"]).await;
    let (ana, eva) = (Client::admin(&server), Client::new(&server, &token("eva", &[Role::Admin])));
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = ana.request(method.clone(), "/v1/projects/nonsense").send().await.unwrap();
        assert!(answer.status().is_client_error() && answer.headers().contains_key("ratelimit"), "{method}");
    }
    assert_eq!(status(write(&ana)).await, StatusCode::TOO_MANY_REQUESTS);
    for _ in 0..10 {
        let answer = ana.request(Method::GET, "/v1/divisions").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(!answer.headers().contains_key("ratelimit"));
        assert_eq!(status(ana.request(Method::HEAD, "/v1/divisions")).await, StatusCode::OK);
    }
    // Another token of ana is ana, and eva is not.
    let again = Client::new(&server, &token("ana", &[]));
    assert_eq!(status(write(&again)).await, StatusCode::TOO_MANY_REQUESTS);
    assert!(status(write(&eva)).await.is_success());
    // Nothing was written by who was refused.
    let (_, divisions) = ana.read("/v1/divisions").await;
    assert_eq!(divisions["items"][0]["version"], 1, "{divisions}");
    server.stop().await;
}

/// A request from another address of this machine.
fn from(address: [u8; 4], server: &Server, token: &str) -> RequestBuilder {
    let http = reqwest::Client::builder().local_address(IpAddr::from(Ipv4Addr::from(address)));
    http.build().unwrap().get(format!("http://{}/events", server.address)).bearer_auth(token)
}

const PROXY: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 3];

#[tokio::test]
async fn an_address_may_open_so_many_streams_a_minute_and_only_a_trusted_proxy_speaks_for_others() {
    let arguments = ["--connects-per-minute=3", "--trusted-proxies=127.0.0.2,fd00::/8"];
    let (server, clock) = server(&database().await, &arguments).await;
    let ana = token("ana", &[]);
    let ask = async |peer: [u8; 4], said: &str| {
        let request = from(peer, &server, &ana);
        if said.is_empty() { status(request).await } else { status(request.header("x-forwarded-for", said)).await }
    };
    let (ok, refused) = (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
    for expected in [ok, ok, ok, refused] {
        assert_eq!(ask(PROXY, "203.0.113.1").await, expected);
    }
    assert_eq!(ask(PROXY, "203.0.113.2").await, ok, "another address");
    assert_eq!(ask(PROXY, "203.0.113.2, 203.0.113.1").await, refused, "what the client invents is to the left");
    assert_eq!(ask(PROXY, "203.0.113.1, fd00::7").await, refused, "a proxy behind another");
    // Of IPv6 a whole /64 is one.
    for (last, expected) in [("1", ok), ("2", ok), ("ffff:0:0:3", ok), ("4", refused)] {
        assert_eq!(
            ask(PROXY, &format!("2001:db8:0:1:{}{last}", if last.len() > 1 { "" } else { ":" })).await,
            expected
        );
    }
    assert_eq!(ask(PROXY, "2001:db8:0:2::1").await, ok, "the next one is another");
    // Whatever a stranger says, it is the stranger who asks.
    for (said, expected) in [("203.0.113.77", ok), ("203.0.113.78", ok), ("", ok), ("203.0.113.79", refused)] {
        assert_eq!(ask(STRANGER, said).await, expected);
    }
    let (code, after, policy, left) = refusal(from(STRANGER, &server, &ana).send().await.unwrap()).await;
    assert_eq!((code, after.as_str(), policy.as_str()), (json!("rate_limited"), "20", r#""connects";q=3;w=60"#));
    assert_eq!(left, r#""connects";r=0;t=20"#);
    // Only streams are refused, and one more is let in when its time has come.
    let read = format!("http://{}/v1/divisions", server.address);
    let http = reqwest::Client::builder().local_address(IpAddr::from(Ipv4Addr::from(STRANGER))).build().unwrap();
    assert_eq!(status(http.get(read).bearer_auth(&ana)).await, ok);
    clock.advance(Duration::from_secs(20));
    assert_eq!((ask(STRANGER, "").await, ask(STRANGER, "").await), (ok, refused));
    server.stop().await;
}

#[tokio::test]
async fn attempts_count_before_credentials_are_judged() {
    let (server, _clock) = server(&database().await, &["--connects-per-minute=5"]).await;
    let ana = token("ana", &[]);
    for (token, expected) in [("nonsense", 401), (&ana, 200), ("", 401), (&ana, 200), ("nonsense", 401), (&ana, 429)] {
        assert_eq!(status(from(STRANGER, &server, token)).await, expected);
    }
    let (code, _, policy, _) = refusal(from(STRANGER, &server, "nonsense").send().await.unwrap()).await;
    assert_eq!((code, policy.as_str()), (json!("rate_limited"), r#""connects";q=5;w=60"#));
    assert_eq!(status(from(PROXY, &server, &ana)).await, StatusCode::OK, "another address");
    server.stop().await;
}

#[tokio::test]
async fn who_tries_tokens_is_soon_not_answered_any_more_not_even_for_a_good_one() {
    let (server, clock) = server(&database().await, &["--connects-per-minute=60"]).await;
    let guess = async |nth: u32| {
        let client = Client::new(&server, &format!("nonsense{nth}"));
        let path = ["/v1/divisions", "/v1/projects", "/events"][nth as usize % 3];
        client.request(Method::GET, path).send().await.unwrap()
    };
    for nth in 0..60 {
        assert_eq!(guess(nth).await.status(), StatusCode::UNAUTHORIZED, "{nth}");
    }
    for nth in 0..6 {
        let (code, after, policy, _) = refusal(guess(nth).await).await;
        assert_eq!((code, after.as_str(), policy.as_str()), (json!("rate_limited"), "1", r#""failures";q=60;w=60"#));
    }
    let ana = Client::admin(&server);
    for path in ["/v1/divisions", "/events"] {
        assert_eq!(status(ana.request(Method::GET, path)).await, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    // Probes need no credentials.
    for path in ["/healthz", "/readyz", "/stats"] {
        assert_eq!(status(ana.request(Method::GET, path)).await, StatusCode::OK, "{path}");
    }
    // One more is borne each second; good ones use up nothing.
    clock.advance(Duration::from_secs(1));
    for _ in 0..5 {
        assert_eq!(status(ana.request(Method::GET, "/v1/divisions")).await, StatusCode::OK);
    }
    assert_eq!(guess(0).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(guess(0).await.status(), StatusCode::TOO_MANY_REQUESTS);
    server.stop().await;
}

async fn opened(client: &Client) -> Stream {
    let mut stream = client.stream("", "").await;
    stream.expect("stream:open").await;
    stream
}

#[tokio::test]
async fn a_user_has_so_many_streams_at_once_and_others_in_their_room_are_not_counted() {
    let (server, _clock) = server(&database().await, &["--streams-per-user=2"]).await;
    let (ana, ben) = (Client::admin(&server), Client::new(&server, &token("ben", &[])));
    // Ana watches ben.
    let mut watching = ana.stream("rooms=user:ben", "").await;
    watching.expect("stream:open").await;
    let mut streams = vec![opened(&ben).await, opened(&ben).await];
    let response = ben.request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(response.headers(), "retry-after"), "10");
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "too_many_streams");
    let _second = opened(&ana).await;
    let stats = ana.stats().await;
    assert_eq!(stats["streams"]["refused"], json!({ "limit": 1 }), "{stats}");
    streams.pop();
    ana.stats_when(|stats| stats["streams"]["open"] == 3).await;
    streams.push(opened(&ben).await);
    server.stop().await;
}

/// Beside it the one that captures is not the only one: of a line that another thread reaches first, an only one would never
/// be asked.
static BESIDE: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Takes what this thread, and with it the server of a test, logs from now on.
    fn capture(filter: &str) -> (Self, tracing::subscriber::DefaultGuard) {
        LazyLock::force(&BESIDE);
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines of the security log that say this.
    fn lines(&self, said: &str) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter(|line| line.contains(" crewcast::security: ") && line.contains(said));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn the_security_log_tells_what_is_suspicious_and_shows_no_secret() {
    let (log, _guard) = Log::capture("crewcast=trace");
    let limits = ["--connects-per-minute=8", "--writes-per-minute=2", "--streams-per-user=1"];
    let arguments = [&limits[..], &["--cors-origins=https://app.example.com"]].concat();
    let (server, clock) = server(&database().await, &arguments).await;
    let ben_token = token("ben", &[]);
    let ben = Client::new(&server, &ben_token);
    // A token that somebody changed, and one that has expired.
    let (head, signature) = ben_token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let expired = mint(&Claims::new("ben".parse().unwrap(), time::OffsetDateTime::now_utc().unix_timestamp() - 60));
    let mut id = String::new();
    for token in [&forged, &expired] {
        let request = Client::new(&server, token).request(Method::GET, "/v1/divisions?secretive=yes");
        let answer = request.header("idempotency-key", "secretive").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        if id.is_empty() {
            id = header(answer.headers(), "x-request-id").to_owned();
        }
    }
    let bad = log.lines(r#"kind="bad_token" address=127.0.0.1"#);
    assert_eq!(bad.len(), 1, "{}", log.text());
    assert!(bad[0].contains("WARN") && bad[0].contains(&format!("request_id={id}")), "{}", bad[0]);
    let expected = log.lines(r#"kind="expired_token" address=127.0.0.1"#);
    assert!(expected.len() == 1 && expected[0].contains("DEBUG"), "{}", log.text());
    // Who sends no credentials pretends nothing.
    let lines = log.lines("").len();
    let anonymous = reqwest::get(format!("http://{}/v1/divisions", server.address)).await.unwrap();
    assert_eq!((anonymous.status(), log.lines("").len()), (StatusCode::UNAUTHORIZED, lines));
    // Pages: a named one, the server's own and what is no page are fine. One line a minute for the others, preflights too.
    let own = format!("http://{}", server.address);
    for origin in ["https://app.example.com", &own] {
        assert_eq!(status(ben.request(Method::GET, "/v1/divisions").header("origin", origin)).await, StatusCode::OK);
    }
    let proxied = ben.request(Method::GET, "/v1/divisions").header("origin", "https://push.example.com");
    assert_eq!(status(proxied.header("sec-fetch-site", "same-origin")).await, StatusCode::OK);
    assert_eq!(log.lines("bad_origin"), [""; 0]);
    for (method, origin) in
        [(Method::GET, "https://secretive.example.com"), (Method::OPTIONS, "null"), (Method::GET, "x")]
    {
        ben.request(method, "/v1/divisions").header("origin", origin).send().await.unwrap();
    }
    assert_eq!(log.lines(r#"kind="bad_origin" address=127.0.0.1"#).len(), 1, "{}", log.text());
    for _ in 0..5 {
        write(&ben).send().await.unwrap();
    }
    assert_eq!(log.lines(r#"kind="write_burst" address=127.0.0.1 sub=ben"#).len(), 1, "{}", log.text());
    let _stream = opened(&ben).await;
    for _ in 0..10 {
        assert_eq!(status(ben.request(Method::GET, "/events")).await, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(log.lines(r#"kind="too_many_streams" address=127.0.0.1 sub=ben"#).len(), 1, "{}", log.text());
    assert_eq!(log.lines(r#"kind="connection_burst" address=127.0.0.1"#).len(), 1, "{}", log.text());
    // Again in the next minute, also where a limit is reached by the same address at once.
    clock.advance(Duration::from_secs(60));
    for _ in 0..10 {
        Client::new(&server, &forged).request(Method::GET, "/v1/divisions").send().await.unwrap();
        write(&ben).send().await.unwrap();
    }
    assert_eq!(log.lines("write_burst").len(), 2, "{}", log.text());
    assert_eq!((log.lines("bad_token").len(), log.lines("token_guessing").len()), (9, 1), "{}", log.text());
    let metrics = ben.metrics().await;
    let suspicions = |kind: &str| metrics[&format!("crewcast_suspicions_total{{kind=\"{kind}\"}}")];
    for (kind, n) in [("bad_token", 9.0), ("bad_origin", 3.0), ("too_many_streams", 7.0), ("connection_burst", 3.0)] {
        assert_eq!(suspicions(kind), n, "{kind}");
    }
    let text = log.text();
    let secrets = [&ben_token, signature, &forged, &expired, head, "secretive", "push.example.com", "Bearer"];
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in\n{text}");
    }
    server.stop().await;
}
