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

use axum::{http::HeaderMap, response::Response};
use maud::{Markup, html};
use serde_json::Value;

use self::{
    document::Document,
    markdown::{Article, Section},
    page::{Page, View},
};
use crate::{
    error::{Error, Result},
    web::PathArg,
};

const OVERVIEW: &str = "/docs";
const STREAM: &str = "/docs/stream";
const HOOKS: &str = "/docs/hooks";
const OPENAPI: &str = "/openapi.yaml";

/// The OpenAPI document as it is written.
const OPENAPI_TEXT: &str = include_str!("../../../openapi.yaml");

/// Every page by its path, made when the first one is asked for.
static PAGES: LazyLock<BTreeMap<String, Page>> = LazyLock::new(|| pages(&document()));

/// What the service does and how to begin.
pub(super) async fn overview(headers: HeaderMap) -> Result<Response> {
    answer(OVERVIEW, &headers)
}

/// Every operation and schema.
pub(super) async fn reference(headers: HeaderMap) -> Result<Response> {
    answer(api::PATH, &headers)
}

/// The stream: its format and events, how it resumes, and what a client has to do.
pub(super) async fn stream_guide(headers: HeaderMap) -> Result<Response> {
    answer(STREAM, &headers)
}

/// How other backends raise alerts.
pub(super) async fn hook_guide(headers: HeaderMap) -> Result<Response> {
    answer(HOOKS, &headers)
}

/// Every code of a problem.
pub(super) async fn problem_list(headers: HeaderMap) -> Result<Response> {
    answer(problems::PATH, &headers)
}

/// A problem: what it means, when it happens and what to do about it.
pub(super) async fn problem_page(PathArg(code): PathArg<String>, headers: HeaderMap) -> Result<Response> {
    answer(&problems::path_of_name(&code).ok_or_else(Error::not_found)?, &headers)
}

/// The document that the reference is made from, as it is written.
pub(super) async fn openapi(headers: HeaderMap) -> Result<Response> {
    answer(OPENAPI, &headers)
}

fn answer(path: &str, headers: &HeaderMap) -> Result<Response> {
    let page = PAGES.get(path).ok_or_else(Error::not_found)?;
    Ok(page.answer(headers))
}

/// The OpenAPI document.
///
/// For now it is read from the file. Nothing else here knows where it comes from: a document that is made otherwise
/// takes its place in this function, and `yaml_serde` goes with it.
fn document() -> Value {
    yaml_serde::from_str(OPENAPI_TEXT).expect("a test reads the file")
}

fn pages(document: &Value) -> BTreeMap<String, Page> {
    let mut views = problems::views();
    views.push(api::view(Document(document)));
    views.push(text(OVERVIEW, include_str!("../../../docs/overview.md")));
    views.push(text(STREAM, include_str!("../../../docs/stream.md")));
    views.push(text(HOOKS, include_str!("../../../docs/hooks.md")));
    let mut pages: BTreeMap<_, _> = views.iter().map(|view| (view.path.clone(), view.page())).collect();
    pages.insert(OPENAPI.to_owned(), Page::new("application/yaml", OPENAPI_TEXT));
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
