//! Sessions: what a browser's cookie is good for, from which pages, and for how long.

mod life;
mod pages;
mod statements;
mod streams;
mod tokens;

use crewcast::{
    app::Server,
    auth::{Claims, Role},
};
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, SET_COOKIE},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::timeout;

use crate::{
    openapi::actions,
    support::{Client, PATIENCE, connect, database, mint, number, server, token},
};

const COOKIE: &str = "__Host-crewcast";

/// What a browser keeps of an answer's one cookie: its name and value, and its attributes.
fn kept(headers: &HeaderMap) -> (String, Vec<String>) {
    let [cookie] = headers.get_all(SET_COOKIE).iter().collect::<Vec<_>>().try_into().expect("one cookie is set");
    let mut parts = cookie.to_str().unwrap().split(';').map(|part| part.trim().to_owned());
    (parts.next().unwrap(), parts.collect())
}

/// Signs in; the cookie, as a browser sends it.
async fn sign_in(client: &Client, old: &str) -> String {
    let request = client.request(Method::POST, "/v1/session");
    let request = if old.is_empty() { request } else { request.header("cookie", old) };
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    kept(response.headers()).0
}

/// A browser with a page of the server's own.
fn own(server: &Server, cookie: &str) -> Client {
    let address = server.address.to_string();
    Client::browser(&address, cookie, &format!("http://{address}"))
}

/// Somebody with so many seconds left.
fn with_seconds_left(server: &Server, sub: &str, seconds: i64) -> Client {
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + seconds;
    Client::new(server, &mint(&Claims::new(sub.parse().unwrap(), exp)))
}

/// Whom the server takes a client for, or the sentence with which it is refused.
async fn me(client: &Client) -> Result<String, String> {
    let (status, answer) = client.send(Method::GET, "/v1/me", Value::Null).await;
    if status == StatusCode::OK {
        return Ok(answer["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    Err(answer["detail"].as_str().unwrap().to_owned())
}

async fn is_refused(client: &Client, why: &str) {
    let refusal = me(client).await.unwrap_err();
    assert!(refusal.contains(why), "{refusal}");
}

/// Whether what a statement asks is so.
async fn is_so(conn: &mut PgConnection, question: &str) -> bool {
    sqlx::query_scalar(AssertSqlSafe(format!("select {question}"))).fetch_one(conn).await.unwrap()
}

/// Returns once it is so.
async fn until(conn: &mut PgConnection, question: &str) {
    let asking = async { while !is_so(conn, question).await {} };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {question}"));
}

/// Returns once a figure of the node is that.
async fn until_counted(client: &Client, name: &str, n: f64) {
    let asking = async { while client.metrics().await[name] < n {} };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {name} at {n}"));
}

#[tokio::test]
async fn signing_in_sets_a_cookie_that_only_the_browser_has_until_the_token_ends() {
    let server = server(&database().await, &[]).await;
    let exp = time::OffsetDateTime::now_utc().unix_timestamp() + 3600;
    let name = Some("Ana".to_owned());
    let ana = Client::new(&server, &mint(&Claims { name, ..Claims::new("ana".parse().unwrap(), exp) }));
    let response = ana.request(Method::POST, "/v1/session").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let (cookie, attributes) = kept(response.headers());
    let value = cookie.strip_prefix("__Host-crewcast=ccs_").unwrap();
    assert_eq!(value.len(), 43, "32 bytes: {value}");
    let [age, rest @ ..] = &attributes[..] else { panic!("{attributes:?}") };
    let seconds: i64 = age.strip_prefix("Max-Age=").unwrap().parse().unwrap();
    assert!((3590..=3600).contains(&seconds), "{seconds}");
    assert_eq!(rest, ["Path=/", "HttpOnly", "Secure", "SameSite=Strict"]);
    let body: Value = response.json().await.unwrap();
    let ends = time::OffsetDateTime::from_unix_timestamp(exp).unwrap();
    let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(body, json!({ "expiresAt": ends, "user": { "id": "ana", "name": "Ana" } }));
    assert_ne!(sign_in(&ana, "").await, cookie);
    server.stop().await;
}

#[tokio::test]
async fn the_cookie_names_the_caller_on_every_route_and_every_node() {
    let url = database().await;
    let (near, far) = (server(&url, &[]).await, server(&url, &[]).await);
    let cookie = sign_in(&Client::admin(&near), "").await;
    for server in [&near, &far] {
        let browser = own(server, &cookie);
        assert_eq!(me(&browser).await, Ok("ana".to_owned()));
        // Its rights are those of the token.
        browser.project("north").await;
        let nobody = own(server, "");
        // Signing in and out is judged by itself, and a drain would end the server.
        let apart = ["/v1/session", "/v1/admin/drain"];
        let is_judged = |route: &str| route.starts_with("/v1/") && !apart.contains(&route);
        let actions = actions().into_iter().filter(|(_, route)| is_judged(route));
        for (method, route) in actions {
            let path = route.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
            let path = path.collect::<Vec<_>>().join("/");
            let status = async |client: &Client| client.send(method.parse().unwrap(), &path, json!({})).await.0;
            assert_eq!(status(&nobody).await, StatusCode::UNAUTHORIZED, "{method} {path}");
            let status = status(&browser).await;
            assert!(![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status), "{method} {path}: {status}");
        }
        let (_, open) = browser.stream("", "").await.expect("stream:open").await;
        assert_eq!(open["user"]["id"], "ana");
    }
    far.stop().await;
    near.stop().await;
}

#[tokio::test]
async fn a_cookie_has_the_rights_of_its_token_and_no_more() {
    let server = server(&database().await, &[]).await;
    let ben = own(&server, &sign_in(&Client::new(&server, &token("ben", &[])), "").await);
    let (status, problem) = ben.send(Method::PUT, "/v1/divisions/north", json!({ "name": "North" })).await;
    assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")));
    let refused = ben.request(Method::GET, "/events?rooms=topic:x").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    server.stop().await;
}

#[tokio::test]
async fn a_header_goes_before_a_ticket_and_that_before_a_cookie() {
    let server = server(&database().await, &[]).await;
    let [ana, ben, eva] = ["ana", "ben", "eva"].map(|sub| Client::new(&server, &token(sub, &[])));
    let cookie = sign_in(&ana, "").await;
    let with_cookie = |request: reqwest::RequestBuilder| request.header("cookie", &cookie);
    let who = async |request: reqwest::RequestBuilder| {
        let mut response = request.send().await.unwrap();
        let status = response.status();
        let chunk = response.chunk().await.unwrap().unwrap_or_default();
        let text = String::from_utf8(chunk.to_vec()).unwrap();
        ["ana", "ben", "eva"].into_iter().find(|sub| text.contains(&format!("\"id\":\"{sub}\""))).ok_or(status)
    };
    let ticket = format!("/events?ticket={}", eva.ticket().await);
    let nobody = Client::nobody(&server);
    assert_eq!(who(with_cookie(ben.request(Method::GET, &ticket))).await, Ok("ben"));
    assert_eq!(who(with_cookie(nobody.request(Method::GET, &ticket))).await, Ok("eva"));
    assert_eq!(who(with_cookie(nobody.request(Method::GET, "/events"))).await, Ok("ana"));
    assert_eq!(who(with_cookie(ben.request(Method::GET, "/v1/me"))).await, Ok("ben"));
    // Whatever they say: what goes first is not passed over because it is bad.
    let unauthorized = Err(StatusCode::UNAUTHORIZED);
    let nonsense = Client::new(&server, "nonsense");
    assert_eq!(who(with_cookie(nonsense.request(Method::GET, "/v1/me"))).await, unauthorized);
    assert_eq!(who(with_cookie(nonsense.request(Method::GET, &ticket))).await, unauthorized);
    assert_eq!(who(with_cookie(nobody.request(Method::GET, "/events?ticket=nonsense"))).await, unauthorized);
    // Elsewhere a ticket is nothing.
    let me = format!("/v1/me?{}", ticket.trim_start_matches("/events?"));
    assert_eq!(who(with_cookie(nobody.request(Method::GET, &me))).await, Ok("ana"));
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_cookie_of_a_session_is_refused_and_not_repeated() {
    let server = server(&database().await, &[]).await;
    let cookie = sign_in(&Client::admin(&server), "").await;
    let unknown = format!("{}{}", &cookie[..cookie.len() - 4], "AAAA");
    for (cookie, why) in [
        (format!("{COOKIE}=nonsense"), "not one that this server makes"),
        (format!("{COOKIE}="), "not one that this server makes"),
        (format!("{cookie}; {cookie}"), "more than once"),
        (format!("{cookie}; {COOKIE}=x"), "more than once"),
        (unknown.clone(), "no such session"),
        (cookie.replace(COOKIE, "crewcast"), "it is missing"),
        (cookie.replace(COOKIE, "__host-crewcast"), "it is missing"),
    ] {
        let browser = own(&server, &cookie);
        is_refused(&browser, why).await;
        let (status, problem) = browser.send(Method::POST, "/v1/projects", json!({})).await;
        // What is well made may be a session's: its write must say where it is from, and does.
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
        assert!(!problem.to_string().contains("ccs_"), "{problem}");
        let stream = browser.request(Method::GET, "/events").send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(me(&own(&server, &format!("a=b; {cookie}; c"))).await, Ok("ana".to_owned()));
    let metrics = own(&server, "").metrics().await;
    let counted = |reason: &str| metrics[&format!("crewcast_sessions_refused_total{{reason=\"{reason}\"}}")];
    assert_eq!((counted("malformed"), counted("unknown")), (12.0, 3.0));
    server.stop().await;
}

#[tokio::test]
async fn a_session_is_begun_with_a_token_and_with_nothing_else() {
    let url = database().await;
    let server = server(&url, &["--body-bytes-max=1KiB"]).await;
    let (ana, mut conn) = (Client::admin(&server), connect(&url).await);
    let cookie = sign_in(&ana, "").await;
    for browser in [own(&server, &cookie), own(&server, ""), own(&server, &format!("{COOKIE}=x"))] {
        let (status, problem) = browser.send(Method::POST, "/v1/session", Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
    }
    // Within the leeway a token is good, and no session begins with it.
    let late = with_seconds_left(&server, "ben", -2);
    assert_eq!(late.send(Method::GET, "/v1/me", Value::Null).await.0, StatusCode::OK);
    let (status, problem) = late.send(Method::POST, "/v1/session", Value::Null).await;
    assert_eq!((status, &problem["detail"]), (StatusCode::UNAUTHORIZED, &json!("The token has expired.")));
    assert_eq!(number(&mut conn, "select count(*) from crewcast.sessions").await, 1);
    for body in ["", "{}", "nonsense", &"x".repeat(2000)] {
        let request = ana.request(Method::POST, "/v1/session").header("content-type", "text/plain");
        assert_eq!(request.body(body.to_owned()).send().await.unwrap().status(), StatusCode::CREATED, "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_database_has_of_a_cookie_only_what_cannot_be_used() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let mut conn = connect(&url).await;
    let cookie = sign_in(&Client::new(&server, &token("ana", &[Role::Manager])), "").await;
    let value = cookie.strip_prefix("__Host-crewcast=").unwrap();
    let rows: Vec<String> =
        sqlx::query_scalar("select session::text from crewcast.sessions session").fetch_all(&mut conn).await.unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert!(!row.contains(value.trim_start_matches("ccs_")), "{row}");
    assert!(is_so(&mut conn, &format!("digest = sha256('{value}') from crewcast.sessions")).await);
    assert!(is_so(&mut conn, "caller->'roles' = '[\"manager\"]' from crewcast.sessions").await);
    server.stop().await;
}
