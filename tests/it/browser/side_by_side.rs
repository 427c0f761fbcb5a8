//! Two people, two browsers: what one does in theirs, the other sees.

use crewcast::auth::{Claims, Role};
use serde_json::json;
use time::OffsetDateTime;

use super::{chromium::Browser, page::Origin, site::Site};
use crate::support::{PATIENCE, database, mint, token};

/// The board in a browser, loaded and following.
async fn show(browser: &Browser, origin: &Origin, site: &Site, token: &str) {
    let place = format!("server=http://{}&token={token}&division=north&weeks=2026-W50,2026-W51", site.address);
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
    show(&ana, &origin, &site, &token("ana", &[Role::Manager])).await;
    show(&ben, &origin, &site, &member_of_north()).await;
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
