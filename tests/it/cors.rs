//! Pages of other origins: those that are named may call and read, all others get answers that their browser keeps.

use reqwest::{Method, Response, StatusCode, header::HeaderMap};
use serde_json::json;

use crate::support::{Client, database, server, token};

const APP: &str = "https://app.example.com";
const OPS: &str = "http://localhost:5173";

async fn preflight(client: &Client, origin: &str, method: &str, headers: &str) -> Response {
    let request = client.request(Method::OPTIONS, "/v1/projects").header("origin", origin);
    let request = request.header("access-control-request-method", method);
    request.header("access-control-request-headers", headers).send().await.unwrap()
}

fn allowed<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// Whether a list in a header has all of these.
fn lists(headers: &HeaderMap, name: &str, wanted: &[&str]) -> bool {
    let listed = allowed(headers, name).to_lowercase();
    wanted.iter().all(|wanted| listed.split(',').any(|item| item.trim() == *wanted))
}

#[tokio::test]
async fn a_page_of_a_named_origin_may_send_and_read_what_it_needs() {
    let origins = format!("--cors-origins={APP},{OPS}");
    let server = server(&database().await, &[&origins]).await;
    let ana = Client::admin(&server);
    for origin in [APP, OPS] {
        let needed = ["authorization", "content-type", "if-match", "last-event-id", "idempotency-key"];
        let answer = preflight(&ana, origin, "PATCH", &needed.join(",")).await;
        assert!(answer.status().is_success());
        let headers = answer.headers();
        assert_eq!(allowed(headers, "access-control-allow-origin"), origin);
        assert_eq!(allowed(headers, "access-control-allow-credentials"), "true");
        assert!(lists(headers, "access-control-allow-headers", &needed), "{headers:?}");
        assert!(lists(headers, "access-control-allow-methods", &["get", "post", "put", "patch", "delete"]));
        assert!(lists(headers, "vary", &["origin"]), "a cache must not give one origin's answer to another");
    }
    // Answers and problems alike, also those of a stream.
    let nobody = Client::new(&server, "nonsense");
    for (client, path, status) in [
        (&ana, "/v1/divisions", StatusCode::OK),
        (&ana, "/v1/nothing", StatusCode::NOT_FOUND),
        (&nobody, "/v1/divisions", StatusCode::UNAUTHORIZED),
        (&ana, "/events", StatusCode::OK),
        (&ana, "/events?rooms=nowhere", StatusCode::BAD_REQUEST),
    ] {
        let answer = client.request(Method::GET, path).header("origin", APP).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(allowed(answer.headers(), "access-control-allow-origin"), APP, "{path}");
        let exposed =
            ["etag", "location", "retry-after", "ratelimit", "ratelimit-policy", "crewcast-cursor", "x-request-id"];
        assert!(lists(answer.headers(), "access-control-expose-headers", &exposed), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_page_of_any_other_origin_is_told_nothing() {
    let origins = format!("--cors-origins={APP}");
    let url = database().await;
    let (named, none) = (server(&url, &[&origins]).await, server(&url, &[]).await);
    for server in [&named, &none] {
        let ana = Client::new(server, &token("ana", &[]));
        for origin in [OPS, "https://app.example.com.evil.example", "http://app.example.com", "null", "*"] {
            let asked = preflight(&ana, origin, "GET", "authorization").await;
            let read = ana.request(Method::GET, "/v1/divisions").header("origin", origin).send().await.unwrap();
            for answer in [asked, read] {
                assert_eq!(allowed(answer.headers(), "access-control-allow-origin"), "", "{origin}");
            }
        }
    }
    let body = json!({ "name": "North" });
    let (status, _) = Client::admin(&none).send(Method::PUT, "/v1/divisions/north", body).await;
    assert_eq!(status, StatusCode::CREATED, "without an origin nothing changes");
    named.stop().await;
    none.stop().await;
}
