//! A browser's own `EventSource` comes back by itself, and has missed nothing and doubled nothing.

use std::time::Duration;

use crewcast::auth::Claims;
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    cable::Cable,
    faults::{self, Postgres, SOME},
    page::{Origin, Page},
    site::{Follower as _, Site, data, numbers},
};
use crate::support::{Client, database, mint};

/// A server, and the page that follows its numbers.
async fn site(url: String, arguments: &[&str]) -> (Site, Page) {
    let origin = Origin::of_readme().await;
    let site = Site::start(url, &[arguments, &[&origin.allowed()]].concat()).await;
    let page = Page::open(&origin, &site.address, async || site.ana().ticket().await).await;
    (site, page)
}

/// The same, with a cable between them.
async fn cabled(url: String, arguments: &[&str]) -> (Site, Cable, Page) {
    let origin = Origin::of_readme().await;
    let site = Site::start(url, &[arguments, &[&origin.allowed()]].concat()).await;
    let cable = Cable::to(&site.address).await;
    let page = Page::open(&origin, &cable.address, async || site.ana().ticket().await).await;
    (site, cable, page)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_its_server_drains_and_starts_again() {
    let (mut site, mut page) = site(database().await, &[]).await;
    faults::ends_and_starts_again(Signal::SIGTERM, &mut site, &mut page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_its_server_is_killed() {
    let (mut site, mut page) = site(database().await, &[]).await;
    faults::ends_and_starts_again(Signal::SIGKILL, &mut site, &mut page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_postgres_goes_away() {
    let postgres = Postgres::start().await;
    let (mut site, cable, mut page) = cabled(postgres.url(), &[]).await;
    faults::postgres_goes_away(postgres, &cable, &mut site, &mut page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_when_its_node_is_full_for_a_while() {
    let (mut site, cable, mut page) = cabled(database().await, &["--streams-max=1"]).await;
    faults::its_place_is_taken(&cable, &mut site, &mut page).await;
}

/// For how long the page has been getting numbers.
fn followed(seen: &[String]) -> Duration {
    let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
    let times: Vec<_> = data(seen, "test:n").map(|data| at(data["meta"]["at"].as_str().unwrap())).collect();
    (*times.last().unwrap() - times[0]).unsigned_abs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_every_number_once_with_a_ticket_far_older_than_its_times() {
    // By then a ticket that was used once and never renewed has run out; a browser comes back after 2 s.
    const OLD: Duration = Duration::from_secs(12);
    let times = ["--ticket-ttl=4s", "--ticket-idle=5s"];
    let (mut site, cable, mut page) = cabled(database().await, &times).await;
    let unused = site.ana().ticket().await;
    page.sees("stream:open", 1).await;
    site.begin();
    page.sees("test:n", 1).await;
    while followed(&page.seen().await) < OLD {
        page.sees_more("test:n", SOME).await;
    }
    let nobody = Client::at(&site.address, "");
    let refused = nobody.request(Method::GET, &format!("/events?ticket={unused}")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "its times have passed");
    cable.pull();
    site.publishes(SOME as i64).await;
    cable.plug();
    page.sees("stream:open", 2).await;
    site.ends_well(&mut page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_stays_away_for_as_long_as_it_is_told() {
    let origin = Origin::of_readme().await;
    let site = Site::start(database().await, &["--streams-max=1", &origin.allowed()]).await;
    let mut other = site.ana().stream("rooms=topic:quiet", "").await;
    other.expect("stream:open").await;
    let mut page = Page::open(&origin, &site.address, async || site.ana().ticket().await).await;
    page.sees("stream:closing", 2).await;
    let told = data(&page.seen().await, "stream:closing").next().unwrap()["reconnectInMs"].as_f64().unwrap();
    let stayed_away = page.stayed_away().await;
    // Neither Chromium's own 3 s nor the usual 2 s of a stream.
    assert!(told > 4000.0 && stayed_away >= told - 1.0, "{told} {stayed_away}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_missed_too_much_empties_its_list_and_misses_nothing_after() {
    let (mut site, cable, mut page) = cabled(database().await, &["--replay-events-max=10"]).await;
    page.sees("stream:open", 1).await;
    site.begin();
    page.sees("test:n", SOME).await;
    cable.pull();
    site.publishes(20).await;
    cable.plug();
    page.forgets("stream:open").await;
    let (last, seen) = site.ends(&mut page).await;
    let numbers = numbers(&seen);
    assert!(numbers[0] > SOME as i64 + 10, "what it missed stays untold: {numbers:?}");
    assert_eq!(numbers, (numbers[0]..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_token_has_ended_closes_and_says_so() {
    let origin = Origin::of_readme().await;
    let site = Site::start(database().await, &[&origin.allowed()]).await;
    let ticket = async || {
        let exp = (OffsetDateTime::now_utc() + Duration::from_secs(4)).unix_timestamp();
        let claims = Claims { topics: vec!["numbers".parse().unwrap()], ..Claims::new("ben".parse().unwrap(), exp) };
        Client::at(&site.address, &mint(&claims)).ticket().await
    };
    let mut page = Page::open(&origin, &site.address, ticket).await;
    page.sees("stream:open", 1).await;
    page.sees("closed", 1).await;
    let reasons: Vec<_> = data(&page.seen().await, "stream:closing").map(|closing| closing["reason"].clone()).collect();
    assert_eq!(reasons, ["expired"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_an_origin_that_is_not_named_sees_nothing() {
    let (origin, named) = (Origin::of_readme().await, Origin::of_readme().await);
    let site = Site::start(database().await, &[&named.allowed()]).await;
    let mut page = Page::open(&origin, &site.address, async || site.ana().ticket().await).await;
    page.sees("closed", 1).await;
    assert_eq!(page.seen().await.len(), 1);
}
