//! A page that signs in: the browser keeps the cookie, and sends it where it may.

use crewcast::auth::Role;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    chromium::Browser,
    numbers::ROOM,
    page::{Origin, Page},
    site::{Follower as _, Site, data, numbers},
};
use crate::support::{Client, database, token};

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<ul id="events"></ul>
<script>
  const { server, rooms } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)))
  const show = text => document.getElementById('events').append(Object.assign(document.createElement('li'), { textContent: text }))
  async function call(method, path, headers, body) {
    const answer = await fetch(server + path, { method, headers, body, credentials: 'include' })
    show(`${method} ${path} ${answer.status}`)
  }
  function follow() {
    const source = new EventSource(`${server}/events?${new URLSearchParams({ rooms })}`, { withCredentials: true })
    for (const type of ['stream:open', 'stream:closing', 'stream:reset', 'test:n', 'test:end'])
      source.addEventListener(type, ({ type, data }) => show(`${type} ${data}`))
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) show('closed') }
  }
</script>
"#;

/// A server, and a page of another origin of the same site that may call it.
async fn named(arguments: &[&str]) -> (Site, Page) {
    let origin = Origin::of(PAGE.to_owned()).await;
    let site = Site::start(database().await, &[&[origin.allowed().as_str()], arguments].concat()).await;
    let page = Page::at(&format!("{}/page.html#server=http://{}&rooms={ROOM}", origin.0, site.address)).await;
    (site, page)
}

/// What a script says that signs in.
fn sign_in(sub: &str) -> String {
    let token = token(sub, &[Role::Admin]);
    format!("call('POST', '/v1/session', {{ Authorization: 'Bearer {token}' }})")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_signed_in_follows_and_writes_until_it_signs_out() {
    let (mut site, mut page) = named(&[]).await;
    page.browser().run(&sign_in("ana")).await;
    page.sees("POST /v1/session 201", 1).await;
    assert_eq!(page.browser().run("return document.cookie").await, "", "no script reads it");
    page.browser().run("follow()").await;
    page.sees("stream:open", 1).await;
    site.begin();
    page.sees("test:n", 3).await;
    let json = "{ 'Content-Type': 'application/json' }";
    page.browser().run(&format!("call('PUT', '/v1/divisions/north', {json}, '{{\"name\":\"North\"}}')")).await;
    page.sees("PUT /v1/divisions/north 201", 1).await;
    page.browser().run("call('DELETE', '/v1/session')").await;
    page.sees("DELETE /v1/session 204", 1).await;
    page.sees("stream:closing {\"reason\":\"signed_out\"", 1).await;
    // The browser comes back once, by itself, and is told that it must not.
    page.sees("closed", 1).await;
    page.browser().run("call('GET', '/v1/me')").await;
    page.sees("GET /v1/me 401", 1).await;
    let seen = page.seen().await;
    let opens: Vec<_> = data(&seen, "stream:open").map(|open| open["user"]["id"].clone()).collect();
    assert_eq!(opens, ["ana"]);
    assert!(!numbers(&seen).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_with_a_cookie_has_every_number_once_when_its_server_drains_and_starts_again() {
    let (mut site, mut page) = named(&[]).await;
    page.browser().run(&sign_in("ana")).await;
    page.sees("POST /v1/session 201", 1).await;
    page.browser().run("follow()").await;
    page.sees("stream:open", 1).await;
    site.begin();
    page.sees("test:n", 3).await;
    site.end(Signal::SIGTERM).await;
    page.sees("stream:closing {\"reason\":\"draining\"", 1).await;
    site.publishes(3).await;
    site.start_again().await;
    page.sees("stream:open", 2).await;
    site.ends_well(&mut page).await;
}

/// What a page says in vain: the status is kept from it, so the server is asked what it answered.
async fn write_from(browser: &Browser, place: &str, server: &str) -> (f64, f64, f64) {
    browser.go(place).await;
    // What a page can send to any origin without asking: it takes no body, and makes something.
    let how = "{ method: 'POST', mode: 'no-cors', credentials: 'include' }";
    let script = format!(
        "fetch('http://{server}/v1/stream-tickets', {how}).then(({{ type, status }}) => document.body.dataset.said = type + status)"
    );
    browser.run(&script).await;
    browser.until("document.body.dataset.said").await;
    let metrics = Client::at(server, "").metrics().await;
    let counted = |name: &str| metrics.get(name).copied().unwrap_or_default();
    let problem = |code: &str| counted(&format!("crewcast_problems_total{{code=\"{code}\"}}"));
    (counted("crewcast_tickets_made_total"), problem("origin_not_allowed"), problem("unauthorized"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_not_known_writes_nothing_with_the_cookie() {
    let site = Site::start(database().await, &[]).await;
    let foreign = Origin::of(PAGE.to_owned()).await;
    let [browser] = Browser::open().await;
    // The server's own origin, whatever is there.
    let own = format!("http://{}/healthz", site.address);
    browser.go(&own).await;
    let authorization = json!({ "Authorization": format!("Bearer {}", token("ana", &[Role::Admin])) });
    let said = "({ status }) => document.body.dataset.said = status";
    let how = format!("{{ method: 'POST', headers: {authorization} }}");
    browser.run(&format!("fetch('/v1/session', {how}).then({said})")).await;
    assert_eq!(browser.until("document.body.dataset.said").await, "201");

    let same_site = format!("{}/page.html", foreign.0);
    let other_site = same_site.replace("127.0.0.1", "localhost");
    assert_eq!(write_from(&browser, &same_site, &site.address).await, (0.0, 1.0, 0.0), "the cookie came along");
    assert_eq!(write_from(&browser, &other_site, &site.address).await, (0.0, 1.0, 1.0), "it did not");
    assert_eq!(write_from(&browser, &own, &site.address).await, (1.0, 1.0, 1.0));
}
