//! Markdown to HTML. What is written there is shown and never obeyed: raw HTML comes out as text, images as their
//! description, and links lead to pages only.

use std::collections::HashMap;

use maud::{Markup, PreEscaped};
use pulldown_cmark::{CodeBlockKind, CowStr, Event, HeadingLevel, LinkType, Options, Parser, Tag, TagEnd, html};

use super::document::anchor;

/// A text with sections that can be linked to.
#[derive(Debug)]
pub(super) struct Article {
    pub(super) body: Markup,
    pub(super) sections: Vec<Section>,
}

/// A heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// 1 to 6, as it is in the page.
    pub(super) level: usize,
    pub(super) anchor: String,
    pub(super) title: String,
}

/// A text as a page of its own, or the better part of one. Its largest headings become those of level `top`.
pub(super) fn article(text: &str, top: usize) -> Article {
    let mut events = events(text);
    shift_headings(&mut events, top);
    let mut sections = sections(&events);
    tell_apart(&mut sections);
    link_headings(&mut events, &sections);
    Article { body: markup(events), sections }
}

/// A few words beside something else: its headings are small, and not linked to.
pub(super) fn description(text: &str) -> Markup {
    linked(text, |_| None)
}

/// The same, in which words set as code lead to where `address` says.
pub(super) fn linked(text: &str, address: impl Fn(&str) -> Option<String>) -> Markup {
    let mut events = events(text);
    shift_headings(&mut events, 6);
    let link = |event| match event {
        Event::Code(word) => match address(&word) {
            Some(address) => around(&address, Event::Code(word)),
            None => vec![Event::Code(word)],
        },
        event => vec![event],
    };
    markup(events.into_iter().flat_map(link).collect())
}

fn around<'a>(address: &str, event: Event<'a>) -> Vec<Event<'a>> {
    let (dest_url, title, id) = (address.to_owned().into(), "".into(), "".into());
    let start = Tag::Link { link_type: LinkType::Inline, dest_url, title, id };
    vec![Event::Start(start), event, Event::End(TagEnd::Link)]
}

fn markup(events: Vec<Event<'_>>) -> Markup {
    let mut written = String::new();
    html::push_html(&mut written, events.into_iter());
    PreEscaped(written)
}

fn events(text: &str) -> Vec<Event<'_>> {
    let events = Parser::new_ext(text, Options::ENABLE_TABLES);
    events.filter_map(harmless).flat_map(scrollable).collect()
}

/// The event without what a page must not take over from a text.
fn harmless(event: Event<'_>) -> Option<Event<'_>> {
    Some(match event {
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => return None,
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = if leads_to_a_page(&dest_url) { dest_url } else { CowStr::from("#") };
            Event::Start(Tag::Link { link_type, dest_url, title, id })
        }
        // Alignment would be a style in an attribute, which the pages' policy refuses.
        Event::Start(Tag::Table(columns)) => {
            Event::Start(Tag::Table(vec![pulldown_cmark::Alignment::None; columns.len()]))
        }
        event => event,
    })
}

fn leads_to_a_page(address: &str) -> bool {
    let scheme = address.split(['/', '?', '#']).next().and_then(|start| start.split_once(':'));
    scheme.is_none_or(|(scheme, _)| ["http", "https", "mailto"].contains(&scheme.to_ascii_lowercase().as_str()))
}

/// Code and tables can be wider than a phone: they scroll by themselves, also by keyboard.
fn scrollable(event: Event<'_>) -> Vec<Event<'_>> {
    let raw = |html: &'static str| Event::Html(html.into());
    match event {
        Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_) | CodeBlockKind::Indented)) => {
            vec![raw("<pre tabindex=\"0\"><code>")]
        }
        Event::End(TagEnd::CodeBlock) => vec![raw("</code></pre>\n")],
        Event::Start(Tag::Table(_)) => vec![raw("<div class=\"scroll\" tabindex=\"0\">"), event],
        Event::End(TagEnd::Table) => vec![event, raw("</div>\n")],
        event => vec![event],
    }
}

/// Moves all headings, so that the largest are of level `top`.
fn shift_headings(events: &mut [Event<'_>], top: usize) {
    let level_of = |event: &Event<'_>| match event {
        Event::Start(Tag::Heading { level, .. }) => Some(*level as usize),
        _ => None,
    };
    let Some(largest) = events.iter().filter_map(level_of).min() else { return };
    for event in events {
        if let Event::Start(Tag::Heading { level, .. }) | Event::End(TagEnd::Heading(level)) = event {
            let shifted = (*level as usize - largest + top).min(6);
            *level = HeadingLevel::try_from(shifted).expect("at least `top`, and 6 at most");
        }
    }
}

fn sections(events: &[Event<'_>]) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut open: Option<Section> = None;
    for event in events {
        match (event, &mut open) {
            (Event::Start(Tag::Heading { level, .. }), _) => {
                open = Some(Section { level: *level as usize, anchor: String::new(), title: String::new() });
            }
            (Event::Text(text) | Event::Code(text), Some(section)) => section.title.push_str(text),
            (Event::End(TagEnd::Heading(_)), Some(_)) => sections.extend(open.take()),
            _ => {}
        }
    }
    sections
}

/// Gives each section an anchor: its title in small letters, with a number where there was that title before.
fn tell_apart(sections: &mut [Section]) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for section in sections {
        let words = anchor(&section.title.to_lowercase());
        let words = words.split(['-', '.']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
        let times = seen.entry(words.clone()).or_default();
        *times += 1;
        section.anchor = if *times == 1 { words } else { format!("{words}-{times}") };
    }
}

/// Makes each heading a link to itself.
fn link_headings(events: &mut Vec<Event<'_>>, sections: &[Section]) {
    let mut sections = sections.iter();
    let mut linked = Vec::with_capacity(events.len());
    for event in events.drain(..) {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                let anchor = &sections.next().expect("a section is a heading").anchor;
                linked.push(Event::Html(format!("<{level} id=\"{anchor}\"><a href=\"#{anchor}\">").into()));
            }
            Event::End(TagEnd::Heading(level)) => linked.push(Event::Html(format!("</a></{level}>\n").into())),
            event => linked.push(event),
        }
    }
    *events = linked;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str) -> String {
        description(text).into_string()
    }

    #[test]
    fn raw_html_comes_out_as_text() {
        let block = rendered("<script>alert(1)</script>\n\nand <b onclick=x>more</b> `<i>`");
        assert!(!block.contains("<script") && !block.contains("<b ") && !block.contains("<i>"), "{block}");
        assert!(block.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && block.contains("<code>&lt;i&gt;</code>"));
    }

    #[test]
    fn nothing_is_loaded_and_no_link_runs_anything() {
        let text =
            "![a picture](https://elsewhere.example/x.png) [x](javascript:alert(1)) [y](JavaScript:a) [z](data:a)";
        let shown = rendered(text);
        assert!(!shown.contains("<img") && !shown.to_lowercase().contains("script:") && !shown.contains("data:"));
        assert!(shown.contains("a picture"), "{shown}");
        for address in ["/docs/api#x:y", "#x", "https://example.org", "page"] {
            assert!(rendered(&format!("[x]({address})")).contains(&format!("href=\"{address}\"")), "{address}");
        }
    }

    #[test]
    fn a_table_has_no_style_and_scrolls() {
        let table = rendered("| a | b |\n|---|--:|\n| 1 | 2 |\n");
        assert!(
            table.starts_with("<div class=\"scroll\" tabindex=\"0\"><table>") && !table.contains("style"),
            "{table}"
        );
    }

    #[test]
    fn headings_begin_at_the_level_asked_for_and_can_be_linked_to() {
        let article = article("## What `a:b` *is*\n\n### Details\n\n## Details\n", 1);
        let seen: Vec<_> = article.sections.iter().map(|s| (s.level, s.anchor.as_str(), s.title.as_str())).collect();
        let expected = [(1, "what-a-b-is", "What a:b is"), (2, "details", "Details"), (1, "details-2", "Details")];
        assert_eq!(seen, expected);
        let body = article.body.into_string();
        assert!(body.contains("<h2 id=\"details\"><a href=\"#details\">Details</a></h2>"), "{body}");
        assert!(body.contains("<h1 id=\"what-a-b-is\"><a href=\"#what-a-b-is\">What <code>a:b</code>"), "{body}");
    }
}
