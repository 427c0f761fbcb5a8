//! A page for each problem: what the `type` of a problem reply leads to.
//!
//! The words are in `docs/problems.md`, a section for each code; its status and title are the code's own.

use maud::{Markup, html};

use super::{markdown, page::View};
use crate::{error::Code, web::problem::PAGES};

/// Where the list of all problems is.
pub(super) const PATH: &str = "/docs/problems";

const TEXT: &str = include_str!("../../../docs/problems.md");

/// Where a code has its page.
pub(super) fn path_of(code: Code) -> String {
    format!("{PAGES}{code}")
}

/// Where the code of this name has its page, if there is one.
pub(super) fn path_of_name(name: &str) -> Option<String> {
    name.parse().ok().map(path_of)
}

/// The list and every page.
pub(super) fn views() -> Vec<View> {
    let (introduction, sections) = sections(TEXT);
    let of = |(name, text): (&str, &str)| Some(view(name.parse().ok()?, text));
    std::iter::once(list(introduction)).chain(sections.into_iter().filter_map(of)).collect()
}

/// What stands before the first section, and the sections with their names.
fn sections(text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = text.split("\n## ");
    let introduction = parts.next().unwrap_or_default();
    (introduction, parts.map(|part| part.split_once('\n').unwrap_or((part, ""))).collect())
}

fn list(introduction: &str) -> View {
    let article = markdown::article(introduction, 1);
    let main = html! {
        (article.body)
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "Status" } th { "Code" } th { "Title" } } }
                tbody {
                    @for code in Code::ALL {
                        tr {
                            td { (status(*code)) }
                            td { a href=(path_of(*code)) { code { (code) } } }
                            td { (code.title()) }
                        }
                    }
                }
            }
        }
    };
    View { path: PATH.to_owned(), title: "Problems".to_owned(), contents: contents(None), main }
}

fn view(code: Code, text: &str) -> View {
    let main = html! {
        h1 { (code.title()) }
        p.facts { (status(code)) " " code { (code) } }
        (markdown::article(text, 2).body)
    };
    View { path: path_of(code), title: code.to_string(), contents: contents(Some(code)), main }
}

fn status(code: Code) -> Markup {
    html! { span.status { (code.status().as_u16()) } }
}

/// Every code, with the one that is shown marked.
fn contents(shown: Option<Code>) -> Markup {
    html! {
        ul {
            li { a href=(PATH) aria-current=[shown.is_none().then_some("page")] { "All problems" } }
            @for code in Code::ALL {
                @let is_shown = shown == Some(*code);
                li { a href=(path_of(*code)) aria-current=[is_shown.then_some("page")] { (code) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_code_has_a_section_and_every_section_a_code() {
        let named: Vec<&str> = sections(TEXT).1.iter().map(|(name, _)| *name).collect();
        let known: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let without = |some: &[&'static str], others: &[&str]| -> BTreeSet<&str> {
            some.iter().filter(|name| !others.contains(name)).copied().collect()
        };
        assert_eq!(without(&known, &named), BTreeSet::new(), "codes without a section in docs/problems.md");
        assert_eq!(without(&named, &known), BTreeSet::new(), "sections of docs/problems.md without a code");
        assert_eq!(named, known, "in the same order, each once");
    }

    #[test]
    fn every_example_is_a_reply_of_its_code() {
        for (name, text) in sections(TEXT).1 {
            let code: Code = name.parse().unwrap();
            let example = text.split("```json").nth(1).and_then(|rest| rest.split("```").next());
            let example: Value = serde_json::from_str(example.expect(name)).expect(name);
            assert_eq!(example["type"], path_of(code), "{name}");
            assert_eq!(example["code"], name);
            assert_eq!(example["title"], code.title(), "{name}");
            assert_eq!(example["status"], code.status().as_u16(), "{name}");
            assert!(example["detail"].is_string() && example["requestId"].is_string(), "{name}");
        }
    }
}
