//! A page that puts another token on its stream before the first one ends: it goes on, and so does what it came with.

use std::time::Duration;

use crewcast::auth::Claims;
use nix::sys::signal::Signal;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    faults::SOME,
    numbers::ROOM,
    page::{Origin, Page},
    site::{Follower as _, Site, data},
};
use crate::support::{Client, database, mint};

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<ul id="events"></ul>
<script>
  const { server, rooms } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)))
  const show = text => document.getElementById('events').append(Object.assign(document.createElement('li'), { textContent: text }))
  async function call(method, path, authorization, body) {
    const headers = { ...authorization, ...body && { 'Content-Type': 'application/json' } }
    const answer = await fetch(server + path, { method, headers, body: JSON.stringify(body), credentials: 'include' })
    show(`${method} ${path.split('/').pop()} ${answer.status}`)
  }
  // The ticket is null for a page that has signed in.
  function follow(ticket, next) {
    const query = new URLSearchParams({ rooms, ...ticket && { ticket } })
    const source = new EventSource(`${server}/events?${query}`, { withCredentials: !ticket })
    let stream
    source.addEventListener('stream:open', ({ data }) => stream = JSON.parse(data).streamId)
    source.addEventListener('stream:expiring', () =>
      call('PUT', `/v1/streams/${stream}/token`, ticket && { Authorization: `Bearer ${next}` }, { token: next }))
    for (const type of ['stream:open', 'stream:expiring', 'stream:closing', 'stream:reset', 'test:n', 'test:end'])
      source.addEventListener(type, ({ type, data }) => show(`${type} ${data}`))
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) show('closed') }
  }
</script>
"#;

/// A server, and the page, which does nothing yet.
async fn site() -> (Site, Page) {
    let origin = Origin::of(PAGE.to_owned()).await;
    let site = Site::start(database().await, &["--expiring-ahead=3s", &origin.allowed()]).await;
    let page = Page::at(&format!("{}/page.html#server=http://{}&rooms={ROOM}", origin.0, site.address)).await;
    (site, page)
}

/// A token of ben, who may follow the numbers, and when it ends.
fn token_for(lasts: Duration) -> (String, OffsetDateTime) {
    let exp = (OffsetDateTime::now_utc() + lasts).unix_timestamp();
    let topics = vec![ROOM.strip_prefix("topic:").unwrap().parse().unwrap()];
    let token = mint(&Claims { topics, ..Claims::new("ben".parse().unwrap(), exp) });
    (token, OffsetDateTime::from_unix_timestamp(exp).unwrap())
}

const SHORT: Duration = Duration::from_secs(6);
const HOUR: Duration = Duration::from_hours(1);

/// Gets numbers until that time has passed.
async fn follows_past(page: &mut Page, end: OffsetDateTime) {
    let is_past = |data: serde_json::Value| OffsetDateTime::parse(data["meta"]["at"].as_str().unwrap(), &Rfc3339);
    while data(&page.seen().await, "test:n").last().is_none_or(|data| is_past(data).unwrap() <= end) {
        page.sees_more("test:n", SOME).await;
    }
}

/// The page follows, and its first token ends then.
async fn goes_on(site: &mut Site, page: &mut Page, end: OffsetDateTime) {
    page.sees("stream:open", 1).await;
    site.begin();
    page.sees("stream:expiring", 1).await;
    page.sees("PUT token 200", 1).await;
    follows_past(page, end + Duration::from_secs(1)).await;
    assert_eq!(data(&page.seen().await, "stream:open").count(), 1, "on the same stream");
    site.end(Signal::SIGTERM).await;
    site.publishes(SOME as i64).await;
    site.start_again().await;
    page.sees("stream:open", 2).await;
    page.sees_more("test:n", SOME).await;
    site.ends_well(page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_it_puts_another_token_on_its_tickets_stream() {
    let (mut site, mut page) = site().await;
    let ((next, _), (short, end)) = (token_for(HOUR), token_for(SHORT));
    let ticket = Client::at(&site.address, &short).ticket().await;
    page.browser().run(&format!("follow({}, {})", json!(ticket), json!(next))).await;
    goes_on(&mut site, &mut page, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_it_puts_another_token_on_its_cookies_stream() {
    let (mut site, mut page) = site().await;
    let ((next, _), (short, end)) = (token_for(HOUR), token_for(SHORT));
    let authorization = json!({ "Authorization": format!("Bearer {short}") });
    page.browser().run(&format!("call('POST', '/v1/session', {authorization})")).await;
    page.sees("POST session 201", 1).await;
    page.browser().run(&format!("follow(null, {})", json!(next))).await;
    goes_on(&mut site, &mut page, end).await;
}
