//! Two people, two browsers: what one does in theirs, the other sees.

use std::time::Duration;

use crewcast::auth::{Claims, Role};
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{chromium::Browser, page::Origin, site::Site};
use crate::support::{PATIENCE, database, mint, token};

/// The board in a browser, loaded and following.
async fn show(browser: &Browser, origin: &Origin, site: &Site, token: &str, project: &str) {
    let what = format!("division=north&project={project}&weeks=2026-W50,2026-W51");
    let place = format!("server=http://{}&token={token}&{what}", site.address);
    browser.go(&format!("{}/page.html#{place}", origin.0)).await;
    browser.until("document.body.hasAttribute('data-follows')").await;
    browser.run("window.isTheFirst = true").await;
}

/// Returns once the board says this about the employee's weeks.
async fn says(browser: &Browser, employee: &str, weeks: [&str; 2]) {
    let cells = format!("[...document.querySelectorAll('[data-employee=\"{employee}\"] [data-week]')]");
    browser.until(&format!("{cells}.map(cell => cell.textContent).join() === {}", json!(weeks.join(",")))).await;
}

/// Returns once the board has what a selector finds.
async fn has(browser: &Browser, selector: &str) {
    browser.until(&format!("document.querySelector({})", json!(selector))).await;
}

/// Returns once the board shows that these are there, and what they do.
async fn shows_here(browser: &Browser, users: &str) {
    let users = json!(users);
    browser
        .until(&format!("[...document.querySelectorAll('#here li')].map(one => one.textContent).join() === {users}"))
        .await;
}

/// Returns once the board says this about who types.
async fn shows_typing(browser: &Browser, said: &str) {
    browser.until(&format!("document.getElementById('typing').textContent === {}", json!(said))).await;
}

/// The token of ben, who may read and change nothing.
fn member_of_north() -> String {
    let exp = (OffsetDateTime::now_utc() + PATIENCE * 60).unix_timestamp();
    let claims = Claims::new("ben".parse().unwrap(), exp);
    mint(&Claims { divisions: vec!["north".parse().unwrap()], ..claims })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_moved_in_one_browser_changes_the_capacity_in_another() {
    let origin = Origin::of(include_str!("board.html").to_owned()).await;
    let site = Site::start(database().await, &[&origin.allowed()]).await;
    let admin = site.ana();
    let project = admin.project("north").await;
    let employee = admin.employee("north", 40.0).await;
    let body = json!({ "employeeId": employee, "projectId": project, "week": "2026-W50", "hours": 34 });
    let assignment = admin.make("/v1/assignments", body).await;
    let button = |week: &str| format!("#a{assignment} [data-to='{week}']");
    let [ana, ben] = Browser::open().await;
    show(&ana, &origin, &site, &token("ana", &[Role::Manager]), &project).await;
    show(&ben, &origin, &site, &member_of_north(), &project).await;
    for browser in [&ana, &ben] {
        says(browser, &employee, ["85 %", "0 %"]).await;
    }
    ana.click(&button("2026-W51")).await;
    for browser in [&ben, &ana] {
        says(browser, &employee, ["0 %", "85 %"]).await;
        // The assignment that stands below follows.
        has(browser, &button("2026-W50")).await;
    }
    ana.click(&button("2026-W50")).await;
    says(&ben, &employee, ["85 %", "0 %"]).await;
    has(&ben, &button("2026-W51")).await;
    // Who may not move it sees why, and nobody sees a change.
    ben.click(&button("2026-W51")).await;
    ben.until("document.getElementById('problem').textContent").await;
    for browser in [&ana, &ben] {
        says(browser, &employee, ["85 %", "0 %"]).await;
        assert_eq!(browser.run("return window.isTheFirst").await, true, "without a refresh");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_see_each_other_come_edit_type_and_go() {
    const GRACE: Duration = Duration::from_secs(1);
    let origin = Origin::of(include_str!("board.html").to_owned()).await;
    let site = Site::start(database().await, &["--presence-grace=1s", "--typing-ttl=2s", &origin.allowed()]).await;
    let project = site.ana().project("north").await;
    let [ana, ben] = Browser::open().await;
    show(&ana, &origin, &site, &token("ana", &[Role::Manager]), &project).await;
    shows_here(&ana, "ana").await;
    show(&ben, &origin, &site, &member_of_north(), &project).await;
    for browser in [&ana, &ben] {
        shows_here(browser, "ana,ben").await;
    }
    ben.click("#name").await;
    shows_here(&ana, "ana,ben edits the name").await;
    ben.type_into("#name", "er").await;
    shows_typing(&ana, "ben is typing").await;
    // Who says nothing more types no longer, and still edits.
    shows_typing(&ana, "").await;
    shows_here(&ana, "ana,ben edits the name").await;
    ben.click("h1").await;
    shows_here(&ana, "ana,ben").await;
    let closed = Instant::now();
    ben.close().await;
    shows_here(&ana, "ana").await;
    assert!(closed.elapsed() >= GRACE, "{:?}", closed.elapsed());
}
