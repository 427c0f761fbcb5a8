//! The page of the README, in a browser, from an origin that is not the server's.

use axum::{Router, response::Html, routing::get};
use serde_json::json;

use super::{chromium::Browser, numbers::ROOM, site::Follower};
use crate::readme::blocks;

/// What serves a page: another origin than the server that the page calls.
pub struct Origin(pub String);

impl Origin {
    /// Serves this page.
    pub async fn of(page: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/page.html", get(async || Html(page)));
        tokio::spawn(async { axum::serve(listener, routes).await });
        Self(origin)
    }

    /// Serves the page of the README.
    pub async fn of_readme() -> Self {
        let [page] = blocks("html").try_into().expect("README has one page");
        Self::of(page).await
    }

    /// The setting of a server that this origin may call.
    pub fn allowed(&self) -> String {
        format!("--cors-origins={}", self.0)
    }
}

/// The page of the README, which follows the numbers.
pub struct Page(Browser);

impl Page {
    /// The ticket is made once there is a browser to use it.
    pub async fn open(origin: &Origin, server: &str, ticket: impl AsyncFnOnce() -> String) -> Self {
        let ([browser], types) = (Browser::open().await, TYPES.join(","));
        let ticket = ticket().await;
        let place = format!("server=http://{server}&ticket={ticket}&rooms={ROOM}&types={types}");
        browser.go(&format!("{}/page.html#{place}", origin.0)).await;
        // Gone when the page is loaded again, by whomever.
        browser.run("window.isTheFirst = true").await;
        Self(browser)
    }

    /// Opens a page of the same form, from anywhere.
    pub async fn at(place: &str) -> Self {
        let [browser] = Browser::open().await;
        browser.go(place).await;
        browser.run("window.isTheFirst = true").await;
        Self(browser)
    }

    /// Where it is.
    pub fn browser(&self) -> &Browser {
        &self.0
    }

    /// Returns once it shows no line any more that begins so.
    pub async fn forgets(&self, beginning: &str) {
        self.0.until(&format!("!{LINES}.some(line => line.startsWith({}))", json!(beginning))).await;
    }

    /// How long it stayed away the first time, in milliseconds: from the end of an answer to the next request.
    pub async fn stayed_away(&self) -> f64 {
        let requests = "performance.getEntriesByType('resource').filter(request => request.name.includes('/events?'))";
        let wait = "([first, second]) => second && second.startTime - first.responseEnd";
        self.0.until(&format!("({wait})({requests})")).await.as_f64().unwrap()
    }
}

/// What the page is to show.
const TYPES: [&str; 6] = ["stream:open", "stream:closing", "stream:reset", "heartbeat", "test:n", "test:end"];

/// What it shows.
const LINES: &str = "[...document.querySelectorAll('#events li')].map(line => line.textContent)";

impl Follower for Page {
    async fn sees(&mut self, beginning: &str, times: usize) {
        let beginning = json!(beginning);
        self.0.until(&format!("{LINES}.filter(line => line.startsWith({beginning})).length >= {times}")).await;
    }

    async fn seen(&mut self) -> Vec<String> {
        assert_eq!(self.0.run("return window.isTheFirst").await, true, "the page was loaded once");
        serde_json::from_value(self.0.run(&format!("return {LINES}")).await).unwrap()
    }

    async fn is_turned_away(&mut self, reason: &str) {
        self.sees_more(&format!("stream:closing {{\"reason\":\"{reason}\""), 1).await;
    }
}
