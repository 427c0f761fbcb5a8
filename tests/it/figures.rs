//! The figures: `/stats` and `/metrics` say the same.

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::{Client, Stream, connect, database, mint, publish, server};

/// What `/stats` counts by the values of a label, and where `/metrics` does.
const LABELLED: [(&str, &str, &str); 5] = [
    ("/streams/closed", "streams_closed", "reason"),
    ("/streams/refused", "streams_refused", "reason"),
    ("/events", "events", "type"),
    ("/replays/bySource", "replays", "source"),
    ("/replays/resets", "resets", "reason"),
];

/// What one of them says, by the label's value.
fn counted(stats: &Value, pointer: &str) -> BTreeMap<String, f64> {
    let counts = stats.pointer(pointer).unwrap().as_object().unwrap();
    counts.iter().map(|(value, count)| (value.clone(), count.as_f64().unwrap())).collect()
}

/// The same of the other.
fn labelled(metrics: &BTreeMap<String, f64>, name: &str, label: &str) -> BTreeMap<String, f64> {
    let prefix = format!("crewcast_{name}_total{{{label}=\"");
    let value = |sample: &str| Some(sample.strip_prefix(&prefix)?.strip_suffix("\"}")?.to_owned());
    metrics.iter().filter_map(|(sample, count)| Some((value(sample)?, *count))).collect()
}

/// Reads a stream to its end.
async fn end(mut stream: Stream) {
    while stream.next().await.is_some() {}
}

/// A browser that has signed in with a page of the server's own.
async fn signed_in(ana: &Client, address: &str) -> Client {
    let response = ana.request(Method::POST, "/v1/session").send().await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    Client::browser(address, &cookie, &format!("http://{address}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_counted_by_a_label_is_the_same_in_stats_and_metrics_for_each_value() {
    let url = database().await;
    let settings = ["--poll=20ms", "--session-check=20ms", "--streams-per-user=2", "--expiring-ahead=1ms"];
    let server = server(&url, &settings).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let mut live = ana.follow("rooms=topic:a").await;
    let began = live.last_id().to_owned();
    publish(&mut conn, "topic:a", 1..=3, 10).await;
    live.expect("test:n").await;
    ana.project("north").await;
    for id in [&*began, "nonsense", "0ther-B"] {
        ana.stream("rooms=topic:a", id).await.expect("stream:open").await;
        ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    }
    // One ends as its owner wants, one as its user signs out, and one with its token.
    let mut ended = ana.stream("", "").await;
    let id = ended.expect("stream:open").await.1["streamId"].as_str().unwrap().to_owned();
    let refused = ana.request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ana.send(Method::DELETE, &format!("/v1/streams/{id}"), Value::Null).await.0, StatusCode::NO_CONTENT);
    end(ended).await;
    let browser = signed_in(&ana, &server.address.to_string()).await;
    let mut signed_out = browser.stream("", "").await;
    signed_out.expect("stream:open").await;
    assert_eq!(browser.send(Method::DELETE, "/v1/session", Value::Null).await.0, StatusCode::NO_CONTENT);
    end(signed_out).await;
    let past = time::OffsetDateTime::now_utc().unix_timestamp() - 1;
    let eva = Client::new(&server, &mint(&crewcast::auth::Claims::new("eva".parse().unwrap(), past)));
    end(eva.stream("", "").await).await;
    drop(live);

    let stats = ana.stats_when(|stats| stats["streams"]["open"] == 0).await;
    let metrics = ana.metrics().await;
    for (pointer, name, label) in LABELLED {
        assert_eq!(counted(&stats, pointer), labelled(&metrics, name, label), "{pointer}");
    }
    let values = |pointer: &str| counted(&stats, pointer).into_keys().collect::<Vec<_>>();
    assert_eq!(values("/streams/closed"), ["ended", "expired", "gone", "signed_out"]);
    assert_eq!(values("/streams/refused"), ["limit"]);
    assert_eq!(values("/replays/resets"), ["foreign", "malformed"]);
    assert_eq!(values("/events"), ["custom", "project:created"]);
    assert_eq!(values("/replays/bySource"), ["ring"]);
    server.stop().await;
}
