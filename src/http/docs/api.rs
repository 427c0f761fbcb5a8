//! The reference: every operation and schema of an OpenAPI document.

use maud::{Markup, html};
use serde_json::Value;

use super::{
    document::{Document, Group, Operation, members, text},
    markdown::{description, linked},
    page::View,
    problems, schema,
};

/// Where the reference is.
pub(super) const PATH: &str = "/docs/api";

/// The whole page.
pub(super) fn view(document: Document<'_>) -> View {
    let groups = document.groups();
    View {
        path: PATH.to_owned(),
        title: "API reference".to_owned(),
        contents: contents(document, &groups),
        main: main(document, &groups),
    }
}

fn contents(document: Document<'_>, groups: &[Group<'_>]) -> Markup {
    html! {
        ul {
            li { a.group href="#about" { "About" } }
            @for group in groups {
                li {
                    a.group href={ "#" (group.anchor()) } { (group.name) }
                    ul {
                        @for operation in &group.operations {
                            li {
                                a.to-operation href={ "#" (operation.anchor()) } {
                                    (method(operation)) " " (operation.summary())
                                }
                            }
                        }
                    }
                }
            }
            li {
                a.group href="#schemas" { "Schemas" }
                ul {
                    @for (name, _) in document.members("/components/schemas") {
                        li { a href={ "#" (schema::anchor_of(name)) } { (name) } }
                    }
                }
            }
        }
    }
}

fn method(operation: &Operation<'_>) -> Markup {
    html! { span class={ "method " (operation.method) } { (operation.method.to_uppercase()) } }
}

fn main<'a>(document: Document<'a>, groups: &[Group<'a>]) -> Markup {
    html! {
        h1 { "API reference" }
        (about(document))
        @for group in groups {
            section aria-labelledby=(group.anchor()) {
                h2.group id=(group.anchor()) { a href={ "#" (group.anchor()) } { (group.name) } }
                (description(group.description))
                @for operation in &group.operations { (article(document, operation)) }
            }
        }
        (schemas(document))
    }
}

/// What holds for every route, and how callers say who they are.
fn about(document: Document<'_>) -> Markup {
    html! {
        section #about aria-label="About" {
            p.lead { (text(document.at("/info"), "summary")) }
            (description(text(document.at("/info"), "description")))
            @for (name, scheme) in document.members("/components/securitySchemes") {
                h2 #{ "auth-" (name) } { "Credentials: " (name) }
                p.type { (scheme_line(scheme)) }
                (description(text(scheme, "description")))
            }
        }
    }
}

/// How credentials are sent.
fn scheme_line(scheme: &Value) -> Markup {
    let (kind, place) = (text(scheme, "type"), text(scheme, "in"));
    html! {
        @if kind == "http" {
            @let credentials = text(scheme, "bearerFormat").to_lowercase();
            code { "Authorization: " (capitalized(text(scheme, "scheme"))) " {" (credentials) "}" }
        } @else if !place.is_empty() {
            (place) " parameter " code { (text(scheme, "name")) }
        } @else {
            (kind)
        }
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn article<'a>(document: Document<'a>, operation: &Operation<'a>) -> Markup {
    let anchor = operation.anchor();
    html! {
        article.operation aria-labelledby=(anchor) {
            h3 id=(anchor) { a href={ "#" (anchor) } { (operation.summary()) } }
            p.route { (method(operation)) " " code { (operation.path) } }
            @if operation.value["deprecated"] == true { p.note { "Deprecated." } }
            (description(text(operation.value, "description")))
            @if is_open(document, operation) { p.note { "No token is needed." } }
            (parameters(document, operation))
            (body(document, &operation.value["requestBody"]))
            (answers(document, &operation.value["responses"]))
        }
    }
}

/// Whether nobody has to say who they are.
fn is_open(document: Document<'_>, operation: &Operation<'_>) -> bool {
    let security = operation.value.get("security").unwrap_or(document.at("/security"));
    // An empty alternative asks for nothing.
    let asks_nothing = |alternative: &Value| alternative.as_object().is_some_and(serde_json::Map::is_empty);
    security.as_array().is_none_or(|all| all.is_empty() || all.iter().any(asks_nothing))
}

fn parameters<'a>(document: Document<'a>, operation: &Operation<'a>) -> Markup {
    let all = operation.parameters(document);
    let of = |place: &str| all.iter().copied().filter(|one| one["in"] == place).collect::<Vec<_>>();
    let places = [("path", "In the path"), ("query", "In the query"), ("header", "Headers"), ("cookie", "Cookies")];
    html! {
        @for (place, title) in places {
            @let here = of(place);
            @if !here.is_empty() {
                h4 { (title) }
                dl.fields { @for parameter in here { (named(document, text(parameter, "name"), parameter)) } }
            }
        }
    }
}

/// A parameter or a header: a name with a schema, and words of its own.
fn named<'a>(document: Document<'a>, name: &str, value: &'a Value) -> Markup {
    html! {
        div.field {
            dt {
                code { (name) } " "
                span.type { (schema::kind(&value["schema"])) }
                @if value["required"] == true && value["in"] != "path" { " " span.required { "required" } }
                @if value["deprecated"] == true { " " span.required { "deprecated" } }
            }
            dd {
                (description(text(value, "description")))
                (schema::details(document, &value["schema"]))
                @if let Some(example) = value.get("example") {
                    ul.rules { li { "For example " code { (schema::plain(example)) } } }
                }
            }
        }
    }
}

fn body<'a>(document: Document<'a>, body: &'a Value) -> Markup {
    let body = document.resolve(body);
    html! {
        @if !body.is_null() {
            h4 { "Body" @if body["required"] != true { " (may be left out)" } }
            (description(text(body, "description")))
            (content(document, &body["content"]))
        }
    }
}

/// What is sent, for each media type.
fn content<'a>(document: Document<'a>, content: &'a Value) -> Markup {
    html! {
        @for (media_type, value) in members(content) {
            div.content {
                p.media { code { (media_type) } " " span.type { (schema::kind(&value["schema"])) } }
                (schema::details(document, &value["schema"]))
                (examples(value))
            }
        }
    }
}

fn examples(value: &Value) -> Markup {
    let one = value.get("example");
    html! {
        @if let Some(example) = one { (code("Example", example)) }
        @for (name, example) in members(&value["examples"]) {
            @let title = Some(text(example, "summary")).filter(|summary| !summary.is_empty()).unwrap_or(name);
            (code(title, &example["value"]))
        }
    }
}

fn code(title: &str, example: &Value) -> Markup {
    let text = example.as_str().map_or_else(|| format!("{example:#}"), |text| text.trim_end().to_owned());
    html! {
        figure {
            figcaption { (title) }
            pre tabindex="0" { code { (text) } }
        }
    }
}

/// What comes back: in full where all went well, and the problems in a line each.
fn answers<'a>(document: Document<'a>, responses: &'a Value) -> Markup {
    let all = members(responses).map(|(status, response)| (status, document.resolve(response)));
    let (problems, fine): (Vec<_>, Vec<_>) = all.partition(|(status, _)| status.starts_with(['4', '5']));
    html! {
        h4 { "Answers" }
        @for (status, response) in fine { (answer(document, status, response)) }
        @if !problems.is_empty() { (refusals(document, &problems)) }
    }
}

fn answer<'a>(document: Document<'a>, status: &str, response: &'a Value) -> Markup {
    let headers: Vec<_> =
        members(&response["headers"]).map(|(name, header)| (name, document.resolve(header))).collect();
    html! {
        div.answer {
            div.outcome { span.status { (status) } div { (description(text(response, "description"))) } }
            @if !headers.is_empty() {
                details {
                    summary { "Headers: " (headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")) }
                    dl.fields { @for (name, header) in headers { (named(document, name, header)) } }
                }
            }
            (content(document, &response["content"]))
        }
    }
}

fn refusals<'a>(document: Document<'a>, responses: &[(&str, &'a Value)]) -> Markup {
    let statuses: Vec<_> = responses.iter().map(|(status, _)| *status).collect();
    html! {
        details.problems {
            summary { "Problems: " (statuses.join(", ")) }
            @for (status, response) in responses {
                div.outcome {
                    span.status { (status) }
                    div {
                        (linked(text(response, "description"), problems::path_of_name))
                        @for (_, value) in members(&response["content"]) {
                            (schema::details(document, &value["schema"]))
                        }
                    }
                }
            }
        }
    }
}

fn schemas(document: Document<'_>) -> Markup {
    html! {
        section aria-labelledby="schemas" {
            h2 #schemas { a href="#schemas" { "Schemas" } }
            @for (name, value) in document.members("/components/schemas") {
                @let anchor = schema::anchor_of(name);
                article.schema aria-labelledby=(anchor) {
                    h3 id=(anchor) { a href={ "#" (anchor) } { (name) } }
                    p.type { (schema::kind(value)) }
                    (schema::details(document, value))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BAIT: &str = "\"><script>";

    /// The document with something harmful at the end of every text and of every name that it could choose.
    fn poisoned(value: &Value, names: bool) -> Value {
        const CLOSED: [&str; 2] = ["in", "type"];
        const NAMING: [&str; 9] = [
            "paths",
            "schemas",
            "properties",
            "parameters",
            "headers",
            "responses",
            "content",
            "mapping",
            "securitySchemes",
        ];
        match value {
            Value::String(text) => json!(format!("{text}{BAIT}")),
            Value::Array(items) => items.iter().map(|item| poisoned(item, false)).collect(),
            Value::Object(members) => {
                let name = |name: &str| if names { format!("{name}{BAIT}") } else { name.to_owned() };
                let poison = |(key, value): (&String, &Value)| {
                    let is_closed = !names && CLOSED.contains(&key.as_str());
                    let poisoned = || poisoned(value, !names && NAMING.contains(&key.as_str()));
                    (name(key), if is_closed { value.clone() } else { poisoned() })
                };
                members.iter().map(poison).collect()
            }
            plain => plain.clone(),
        }
    }

    #[test]
    fn whatever_a_document_says_is_shown_and_not_obeyed() {
        let document = poisoned(&super::super::document(), false);
        let view = view(Document(&document));
        let html = view.main.into_string() + &view.contents.into_string();
        assert!(!html.contains("<script"));
        let shown = html.matches("&gt;&lt;script&gt;").count();
        assert!(shown > 1000, "only {shown}");
        for name in ["/v1/divisions", "If-Match", "application/json", "ETag", "weeklyHours", "too_many"] {
            assert!(html.contains(&format!("{name}&quot;&gt;&lt;script&gt;")), "{name}");
        }
    }

    #[test]
    fn an_answer_that_is_a_problem_leads_to_the_codes_page() {
        let document = json!({ "paths": { "/a": { "get": { "responses": {
            "200": { "description": "Not `not_found`." },
            "404": { "description": "`not_found`: there is none, and `no_code` is none." },
        } } } } });
        let html = view(Document(&document)).main.into_string();
        assert_eq!(
            html.matches("<a href=\"/docs/problems/not_found\"><code>not_found</code></a>").count(),
            1,
            "{html}"
        );
        assert!(html.contains("<code>no_code</code>") && !html.contains("problems/no_code"));
    }
}
