//! From which pages one may write with a cookie, and sign in.

use crewcast::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{COOKIE, own, sign_in};
use crate::support::{Client, connect, database, number, server, token};

const APP: &str = "https://app.example.com";
const PUBLIC: &str = "https://crew.example.com";
const FOREIGN: [&str; 6] = [
    "https://evil.example",
    "https://app.example.com.evil.example",
    "http://app.example.com",
    "https://app.example.com:8443",
    "null",
    "",
];

/// Writes with a cookie and these headers; the status and the code.
async fn write(client: &Client, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let request = client.request(method.parse().unwrap(), path).json(&json!({ "name": "North" }));
    let response = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await;
    let response = response.unwrap();
    let status = response.status().as_u16();
    (status, response.json::<Value>().await.map_or(Value::Null, |problem| problem["code"].clone()))
}

fn refused() -> (u16, Value) {
    (403, json!("origin_not_allowed"))
}

#[tokio::test]
async fn a_write_with_a_cookie_is_for_own_and_named_pages_alone() {
    let url = database().await;
    let named = format!("--cors-origins={APP}");
    let server = server(&url, &[&named]).await;
    let cookie = sign_in(&Client::admin(&server), "").await;
    let nobody = Client::nobody(&server);
    let here = format!("http://{}", server.address);
    let division = async |headers: &[(&str, &str)]| {
        let headers = [&[("cookie", cookie.as_str())], headers].concat();
        write(&nobody, "PUT", "/v1/divisions/north", &headers).await
    };
    let mut conn = connect(&url).await;
    for origin in FOREIGN {
        assert_eq!(division(&[("origin", origin)]).await, refused(), "{origin}");
        assert_eq!(division(&[("origin", origin), ("sec-fetch-site", "same-site")]).await, refused(), "{origin}");
    }
    for headers in [
        &[][..],
        &[("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
        &[("origin", &here), ("sec-fetch-site", "cross-site")],
        &[("origin", &here), ("origin", APP)],
        &[("origin", APP), ("origin", APP)],
    ] {
        assert_eq!(division(headers).await, refused(), "{headers:?}");
    }
    // Whatever is asked for, also what is not there.
    for (method, path) in [
        ("POST", "/v1/projects"),
        ("PATCH", "/v1/projects/x"),
        ("DELETE", "/v1/projects/x"),
        ("POST", "/v1/stream-tickets"),
        ("POST", "/hooks/alerts"),
        ("DELETE", "/v1/session"),
        ("POST", "/v1/nowhere"),
    ] {
        let headers = [("cookie", cookie.as_str()), ("origin", "https://evil.example")];
        assert_eq!(write(&nobody, method, path, &headers).await, refused(), "{method} {path}");
    }
    assert_eq!(number(&mut conn, "select count(*) from crewcast.divisions").await, 0, "nothing was written");
    assert_eq!(number(&mut conn, "select count(*) from crewcast.sessions").await, 1, "nor ended");
    assert_eq!(division(&[("origin", &here), ("sec-fetch-site", "same-origin")]).await.0, 201);
    for headers in [
        &[("origin", here.as_str())][..],
        &[("origin", APP)],
        &[("origin", APP), ("sec-fetch-site", "same-site")],
        &[("origin", APP), ("sec-fetch-site", "cross-site")],
        // Behind a proxy that has another name, the browser says whose page it is.
        &[("origin", "https://behind.example"), ("sec-fetch-site", "same-origin")],
    ] {
        assert_eq!(division(headers).await.0, 200, "{headers:?}");
    }
    // Each refusal is one in the security log, said by the page's origin or by its absence.
    let suspicions = nobody.metrics().await["crewcast_suspicions_total{kind=\"bad_origin\"}"];
    assert_eq!(suspicions, (2 * FOREIGN.len() + 6 + 7) as f64);
    server.stop().await;
}

#[tokio::test]
async fn reads_and_callers_with_a_token_may_come_from_anywhere() {
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    let cookie = sign_in(&ana, "").await;
    let address = server.address.to_string();
    for origin in FOREIGN {
        let browser = Client::browser(&address, &cookie, origin);
        assert_eq!(
            super::me(&browser).await,
            Ok("ana".to_owned()),
            "what the page may read of it is the browser's to say"
        );
        browser.stream("", "").await.expect("stream:open").await;
        let headers = [("origin", origin), ("sec-fetch-site", "cross-site")];
        assert!(write(&ana, "PUT", "/v1/divisions/north", &headers).await.0 < 300, "{origin}");
        // No page can make a browser send a token: with one, the cookie says nothing.
        let headers = [&headers[..], &[("cookie", &cookie)]].concat();
        assert!(write(&ana, "PUT", "/v1/divisions/north", &headers).await.0 < 300, "{origin}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_servers_own_origin_is_the_one_that_is_set() {
    let server = server(&database().await, &["--public-url", PUBLIC]).await;
    let address = server.address.to_string();
    let cookie = sign_in(&Client::admin(&server), "").await;
    let body = json!({ "name": "North" });
    let write = async |origin: &str| {
        let browser = Client::browser(&address, &cookie, origin);
        browser.send(Method::PUT, "/v1/divisions/north", body.clone()).await.0
    };
    assert_eq!(write(PUBLIC).await, StatusCode::CREATED);
    for origin in [&format!("http://{address}"), "http://crew.example.com", "https://crew.example.com:444", APP] {
        assert_eq!(write(origin).await, StatusCode::FORBIDDEN, "{origin}");
    }
    let browser = Client::browser(&address, "", PUBLIC);
    let before = browser.metrics().await["crewcast_suspicions_total{kind=\"bad_origin\"}"];
    assert_eq!(before, 4.0);
    browser.send(Method::GET, "/v1/me", Value::Null).await;
    assert_eq!(browser.metrics().await["crewcast_suspicions_total{kind=\"bad_origin\"}"], before, "it is its own");
    server.stop().await;
}

#[tokio::test]
async fn a_page_of_another_origin_signs_nobody_in_or_out() {
    let url = database().await;
    let named = format!("--cors-origins={APP}");
    let server = server(&url, &[&named]).await;
    let ben = Client::new(&server, &token("ben", &[Role::Admin]));
    let session = async |method: &str, headers: &[(&str, &str)]| write(&ben, method, "/v1/session", headers).await;
    for origin in FOREIGN {
        assert_eq!(session("POST", &[("origin", origin)]).await, refused(), "{origin}");
        assert_eq!(session("DELETE", &[("origin", origin)]).await, refused(), "{origin}");
    }
    assert_eq!(session("POST", &[("sec-fetch-site", "cross-site")]).await, refused());
    let here = format!("http://{}", server.address);
    let mut conn = connect(&url).await;
    assert_eq!(number(&mut conn, "select count(*) from crewcast.sessions").await, 0);
    for headers in [&[][..], &[("origin", APP)], &[("origin", &here)], &[("sec-fetch-site", "none")]] {
        assert_eq!(session("POST", headers).await.0, 201, "{headers:?}");
    }
    // With a cookie it is the cookie's session that would end, whoever the header names.
    let cookie = sign_in(&Client::admin(&server), "").await;
    assert_eq!(session("DELETE", &[("cookie", &cookie)]).await, refused());
    assert_eq!(session("DELETE", &[("cookie", &cookie), ("origin", "https://evil.example")]).await, refused());
    assert_eq!(super::me(&own(&server, &cookie)).await, Ok("ana".to_owned()));
    assert_eq!(session("DELETE", &[("cookie", &cookie), ("origin", &here)]).await.0, 204);
    assert!(super::me(&own(&server, &cookie)).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_named_page_may_read_that_it_signed_in() {
    let named = format!("--cors-origins={APP}");
    let server = server(&database().await, &[&named]).await;
    let request = Client::admin(&server).request(Method::POST, "/v1/session").header("origin", APP);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["access-control-allow-origin"], APP);
    assert_eq!(answer.headers()["access-control-allow-credentials"], "true");
    assert!(answer.headers()["set-cookie"].to_str().unwrap().starts_with(COOKIE));
    server.stop().await;
}
