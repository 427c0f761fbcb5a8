//! The pages under `/docs`: all there, linked to each other, and with nothing from elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crewcast::{app::Server, error::Code};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    openapi::actions,
    support::{database, server},
};

/// Asks without a token.
async fn get(server: &Server, path: &str) -> Response {
    reqwest::get(format!("http://{}{path}", server.address)).await.unwrap()
}

async fn page(server: &Server, path: &str) -> String {
    let response = get(server, path).await;
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8", "{path}");
    response.text().await.unwrap()
}

/// The values of an attribute, wherever it stands.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    html.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// Every page that can be reached from `/docs`, by its path. What is no page is only there.
async fn pages(server: &Server) -> BTreeMap<String, String> {
    let (mut pages, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut ahead = vec!["/docs".to_owned()];
    while let Some(path) = ahead.pop() {
        let response = get(server, &path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let is_page = response.headers()["content-type"].to_str().unwrap().starts_with("text/html");
        let html = response.text().await.unwrap();
        if is_page {
            let paths = values(&html, "href").into_iter().filter(|href| href.starts_with('/'));
            let paths = paths.map(|href| href.split('#').next().unwrap().to_owned());
            ahead.extend(paths.filter(|path| seen.insert(path.clone())));
            pages.insert(path, html);
        }
    }
    pages
}

#[tokio::test]
async fn every_problem_has_a_page_that_names_its_code_and_status() {
    let server = server(&database().await, &[]).await;
    for code in Code::ALL {
        let html = page(&server, &format!("/docs/problems/{code}")).await;
        let status = code.status().as_u16();
        assert!(html.contains(&format!("<span class=\"status\">{status}</span> <code>{code}</code>")), "{code}");
        assert!(html.contains("When it happens") && html.contains("What to do"), "{code}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_type_of_a_problem_is_its_page() {
    let server = server(&database().await, &[]).await;
    for path in
        ["/v1/projects", "/v1/nowhere", "/docs/nowhere", "/docs/", "/docs/problems/nothing", "/docs/problems/Code"]
    {
        let problem: Value = get(&server, path).await.json().await.unwrap();
        let expected = if path == "/v1/projects" { "unauthorized" } else { "not_found" };
        assert_eq!(problem["code"], expected, "{path}");
        let html = page(&server, problem["type"].as_str().unwrap()).await;
        assert!(html.contains(&format!("<code>{expected}</code>")), "{path}");
    }
    server.stop().await;
}

/// The names of the document's schemas, and the ids of its operations.
fn documented() -> (Vec<String>, Vec<String>) {
    let document = include_str!("../../openapi.yaml");
    let (_, schemas) = document.split_once("\n  schemas:\n").unwrap();
    let is_name = |line: &&str| line.starts_with("    ") && !line.starts_with("     ") && line.ends_with(':');
    let schemas = schemas.lines().take_while(|line| line.is_empty() || line.starts_with("    ")).filter(is_name);
    let operations = document.lines().filter_map(|line| line.trim().strip_prefix("operationId: "));
    (
        schemas.map(|line| line.trim().trim_end_matches(':').to_owned()).collect(),
        operations.map(str::to_owned).collect(),
    )
}

#[tokio::test]
async fn every_operation_and_schema_of_the_document_is_in_the_reference() {
    let server = server(&database().await, &[]).await;
    let html = page(&server, "/docs/api").await;
    for (method, path) in actions() {
        assert!(html.contains(&format!("{method}</span> <code>{path}</code>")), "{method} {path}");
    }
    let (schemas, operations) = documented();
    assert!(schemas.len() > 30 && operations.len() == actions().len(), "{schemas:?} {operations:?}");
    let anchors = values(&html, "id");
    for name in &schemas {
        assert!(anchors.contains(&format!("schema-{name}").as_str()), "{name}");
    }
    for id in &operations {
        assert!(anchors.contains(&format!("op-{id}").as_str()), "{id}");
    }
    server.stop().await;
}

#[tokio::test]
async fn every_link_and_anchor_of_every_page_leads_somewhere() {
    let server = server(&database().await, &[]).await;
    let pages = pages(&server).await;
    assert_eq!(pages.len(), 6 + Code::ALL.len());
    for (path, html) in &pages {
        let ids = values(html, "id");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "an id stands twice in {path}");
        for href in values(html, "href") {
            let (target, anchor) = href.split_once('#').unwrap_or((href, ""));
            let target = if target.is_empty() { path } else { target };
            let is_there = || pages.get(target).is_some_and(|html| values(html, "id").contains(&anchor));
            assert!(anchor.is_empty() || !target.starts_with('/') || is_there(), "{path} leads to {href}");
        }
        for id in values(html, "aria-labelledby") {
            assert!(ids.contains(&id), "{path}: {id}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn no_page_loads_or_runs_anything() {
    let server = server(&database().await, &[]).await;
    for (path, html) in pages(&server).await {
        for forbidden in ["<script", "<img", "<iframe", "<object", "<embed", " src=", " style=", "@import", "url("] {
            assert!(!html.contains(forbidden), "{path} has {forbidden}");
        }
        for link in html.split("<link ").skip(1) {
            assert!(link.starts_with("rel=\"icon\" href=\"data:"), "{path}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_pages_policy_lets_its_own_style_through_and_nothing_else() {
    let server = server(&database().await, &[]).await;
    let response = get(&server, "/docs").await;
    let headers = response.headers().clone();
    let html = response.text().await.unwrap();
    let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash = STANDARD.encode(Sha256::digest(style));
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with(&format!("default-src 'none'; style-src 'sha256-{hash}'; ")), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    server.stop().await;
}

#[tokio::test]
async fn a_page_that_the_client_has_is_not_sent_again() {
    let server = server(&database().await, &[]).await;
    for path in ["/docs", "/docs/api", "/docs/problems/not_found", "/openapi.yaml"] {
        let first = get(&server, path).await;
        assert_eq!(first.headers()["cache-control"], "no-cache", "{path}");
        let etag = first.headers()["etag"].to_str().unwrap().to_owned();
        let url = format!("http://{}{path}", server.address);
        for (known, expected) in [(format!("W/{etag}, \"x\""), 304), ("*".to_owned(), 304), ("\"x\"".to_owned(), 200)] {
            let request = reqwest::Client::new().get(&url).header("if-none-match", known);
            let again = request.send().await.unwrap();
            assert_eq!(again.status(), expected, "{path}");
            assert_eq!(again.headers()["etag"], etag.as_str(), "{path}");
            assert_eq!(again.bytes().await.unwrap().is_empty(), expected == 304, "{path}");
        }
    }
    server.stop().await;
}
