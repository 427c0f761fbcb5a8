//! `/docs`: what the service does and how to use it, as pages of its own. They need no script, no font and no other
//! host.
//!
//! Every page is made once, from Markdown in `docs/` and from the OpenAPI document, and kept. Everything that comes from
//! a text is escaped: Markdown's raw HTML is shown and not obeyed, and the pages' policy lets nothing run or load.

mod api;
mod document;
mod markdown;
mod page;
mod problems;
mod schema;

use std::{collections::BTreeMap, sync::LazyLock};

use axum::http::HeaderMap;
use maud::{Markup, html};
use serde_json::Value;

use self::{
    document::Document,
    markdown::{Article, Section},
    page::{Html, Page, View, Yaml},
};
use super::openapi;
use crate::{
    error::{Code, Error, Result},
    web::PathArg,
};

const OVERVIEW: &str = "/docs";
const STREAM: &str = "/docs/stream";
const HOOKS: &str = "/docs/hooks";
const UPDATES: &str = "/docs/optimistic-updates";
const OPENAPI: &str = "/openapi.yaml";

/// Every page by its path, made when the first one is asked for.
static PAGES: LazyLock<BTreeMap<String, Page>> = LazyLock::new(|| pages(&document()));

/// What the service does and how to begin
#[utoipa::path(get, path = "/docs", security())]
pub(super) async fn overview(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(OVERVIEW)?.answer(&headers)))
}

/// Every operation and schema
#[utoipa::path(get, path = "/docs/api", security())]
pub(super) async fn reference(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(api::PATH)?.answer(&headers)))
}

/// The stream: its format and events, how it resumes, and what a client has to do
#[utoipa::path(get, path = "/docs/stream", security())]
pub(super) async fn stream_guide(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(STREAM)?.answer(&headers)))
}

/// How other backends raise alerts
#[utoipa::path(get, path = "/docs/hooks", security())]
pub(super) async fn hook_guide(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(HOOKS)?.answer(&headers)))
}

/// Changes that are shown before they are confirmed: what a client may rely on
#[utoipa::path(get, path = "/docs/optimistic-updates", security())]
pub(super) async fn updates_guide(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(UPDATES)?.answer(&headers)))
}

/// Every code of a problem
#[utoipa::path(get, path = "/docs/problems", security())]
pub(super) async fn problem_list(headers: HeaderMap) -> Result<Html> {
    Ok(Html(page(problems::PATH)?.answer(&headers)))
}

/// A problem: what it means, when it happens and what to do about it
///
/// The `type` of a problem leads here.
#[utoipa::path(
    get,
    path = "/docs/problems/{code}",
    params(("code" = Code, Path)),
    responses((status = 404)),
    security()
)]
pub(super) async fn problem_page(PathArg(code): PathArg<String>, headers: HeaderMap) -> Result<Html> {
    let path = problems::path_of_name(&code).ok_or_else(Error::not_found)?;
    Ok(Html(page(&path)?.answer(&headers)))
}

/// This document
#[utoipa::path(get, path = "/openapi.yaml", security())]
pub(super) async fn openapi(headers: HeaderMap) -> Result<Yaml> {
    Ok(Yaml(page(OPENAPI)?.answer(&headers)))
}

fn page(path: &str) -> Result<&'static Page> {
    PAGES.get(path).ok_or_else(Error::not_found)
}

/// The OpenAPI document.
fn document() -> Value {
    serde_json::to_value(openapi::document()).expect("the document is texts, numbers, lists and maps")
}

fn pages(document: &Value) -> BTreeMap<String, Page> {
    let mut views = problems::views();
    views.push(api::view(Document(document)));
    views.push(text(OVERVIEW, include_str!("../../../docs/overview.md")));
    views.push(text(STREAM, include_str!("../../../docs/stream.md")));
    views.push(text(HOOKS, include_str!("../../../docs/hooks.md")));
    views.push(text(UPDATES, include_str!("../../../docs/optimistic-updates.md")));
    let mut pages: BTreeMap<_, _> = views.iter().map(|view| (view.path.clone(), view.page())).collect();
    pages.insert(OPENAPI.to_owned(), Page::new(page::YAML, openapi::yaml()));
    pages
}

/// A page that is one text, whose first heading is its title.
fn text(path: &str, text: &str) -> View {
    let Article { body, sections } = markdown::article(text, 1);
    let title = sections.first().map(|section| section.title.clone()).unwrap_or_default();
    View { path: path.to_owned(), title, contents: contents(&sections), main: body }
}

/// The sections of a text, those of level 3 under theirs.
fn contents(sections: &[Section]) -> Markup {
    html! {
        ul {
            @for section in sections.iter().filter(|section| (2..=3).contains(&section.level)) {
                li.sub[section.level == 3] { a href={ "#" (section.anchor) } { (section.title) } }
            }
        }
    }
}
