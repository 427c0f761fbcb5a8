//! JSON Schemas as people read them: a type in a few words, the rules for its values, and its fields.

mod rules;

use maud::{Markup, html};
use serde_json::Value;

pub(super) use self::rules::plain;
use self::rules::rules;
use super::{
    document::{Document, anchor, members, text},
    markdown::description,
};

/// Where named schemas are, in references.
const NAMED: &str = "#/components/schemas/";

/// More variants than this are a list, not a few words.
const VARIANTS_SHORT_MAX: usize = 4;

/// Unnamed schemas inside unnamed schemas are shown no deeper than this.
const DEPTH_MAX: usize = 12;

/// Where a named schema is on its page.
pub(super) fn anchor_of(name: &str) -> String {
    format!("schema-{}", anchor(name))
}

/// The type in a few words, such as `array of Project or null`.
pub(super) fn kind(schema: &Value) -> Markup {
    kind_within(schema, DEPTH_MAX)
}

fn kind_within(schema: &Value, depth: usize) -> Markup {
    if let Some(target) = schema["$ref"].as_str() {
        return link(target);
    }
    if schema.is_null() {
        return html! {};
    }
    let Some(depth) = depth.checked_sub(1) else { return html! { "any" } };
    if let Some(value) = schema.get("const") {
        return html! { code { (value) } };
    }
    if let [only] = parts(schema, "allOf") {
        return kind_within(only, depth);
    }
    match choice(schema) {
        Some(choice) if choice.is_short() => {
            let (null, others): (Vec<_>, Vec<_>) =
                choice.variants.iter().partition(|variant| variant["type"] == "null");
            alternatives(others.into_iter().chain(null).map(|variant| kind_within(variant, depth)))
        }
        Some(choice) => html! { (choice.words) },
        None if !parts(schema, "allOf").is_empty() => html! { "object" },
        None => alternatives(types(schema).into_iter().map(|name| named_type(name, schema, depth))),
    }
}

/// A reference: to a named schema of the page, or anything else by its address.
fn link(target: &str) -> Markup {
    match target.strip_prefix(NAMED) {
        Some(name) => html! { a href={ "#" (anchor_of(name)) } { (name) } },
        None => html! { code { (target) } },
    }
}

fn alternatives(kinds: impl Iterator<Item = Markup>) -> Markup {
    html! {
        @for (nth, kind) in kinds.enumerate() {
            @if nth > 0 { " or " }
            (kind)
        }
    }
}

/// The names in `type`; what has none may be told by what else is said.
fn types(schema: &Value) -> Vec<&str> {
    let mut types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ if schema.get("properties").is_some() || schema.get("required").is_some() => vec!["object"],
        _ if schema["enum"].as_array().is_some_and(|values| values.iter().all(Value::is_string)) => vec!["string"],
        _ => vec!["any"],
    };
    if schema["nullable"] == true {
        types.push("null");
    }
    types
}

fn named_type(name: &str, schema: &Value, depth: usize) -> Markup {
    let format = text(schema, "format");
    match name {
        "array" => html! { "array of " (kind_within(&schema["items"], depth)) },
        "object" if schema["additionalProperties"].is_object() => {
            html! { "map of " (kind_within(&schema["additionalProperties"], depth)) }
        }
        "null" => html! { "null" },
        _ if !format.is_empty() => html! { (name) " (" (format) ")" },
        _ => html! { (name) },
    }
}

/// The schemas in a list such as `allOf`.
fn parts<'a>(schema: &'a Value, list: &str) -> &'a [Value] {
    schema[list].as_array().map_or(&[], Vec::as_slice)
}

/// The variants of a schema that has some.
struct Choice<'a> {
    /// How many of them hold, in words.
    words: &'static str,
    variants: &'a [Value],
    /// Which value of which field tells them apart; null where none does.
    discriminator: &'a Value,
}

impl Choice<'_> {
    /// Whether they are told in a few words.
    fn is_short(&self) -> bool {
        self.variants.len() <= VARIANTS_SHORT_MAX && self.variants.iter().all(is_short)
    }
}

fn choice(schema: &Value) -> Option<Choice<'_>> {
    let of = |list, words| {
        let (variants, discriminator) = (parts(schema, list), &schema["discriminator"]);
        (!variants.is_empty()).then_some(Choice { words, variants, discriminator })
    };
    of("oneOf", "one of these").or_else(|| of("anyOf", "any of these"))
}

/// Whether the type in a few words says it all.
fn is_short(schema: &Value) -> bool {
    let Some(members) = schema.as_object() else { return true };
    let is_said = |name: &String| ["$ref", "type", "format", "const"].contains(&name.as_str());
    members.keys().all(is_said) && schema["type"] != "array"
}

/// What the type in a few words does not say: a description, rules and fields.
pub(super) fn details<'a>(document: Document<'a>, schema: &'a Value) -> Markup {
    Shown { document, schema, depth: DEPTH_MAX }.details()
}

/// A schema at its place among others.
#[derive(Clone, Copy)]
struct Shown<'a> {
    document: Document<'a>,
    schema: &'a Value,
    /// How deep others may still be inside it.
    depth: usize,
}

impl<'a> Shown<'a> {
    /// One that is a part of it.
    fn inner(self, schema: &'a Value) -> Self {
        Self { schema, depth: self.depth.saturating_sub(1), ..self }
    }

    fn details(self) -> Markup {
        let is_whole = self.depth > 0 && self.schema.get("const").is_none();
        html! {
            (description(text(self.schema, "description")))
            @if is_whole {
                (self.rules())
                (self.fields())
                (self.all_of())
                (self.variants())
                @for inner in [&self.schema["items"], &self.schema["additionalProperties"]] {
                    @if !is_short(inner) { div { (self.inner(inner).details()) } }
                }
            }
        }
    }

    /// Its rules, and those of the named schema that it refers to, unless that has parts of its own to look at.
    fn rules(self) -> Markup {
        let mut all = rules(self.schema);
        let target = self.document.resolve(self.schema);
        if self.schema.get("$ref").is_some() && !has_parts(target) {
            all.extend(rules(target));
        }
        html! {
            @if !all.is_empty() {
                ul.rules { @for rule in all { li { (rule) } } }
            }
        }
    }

    /// The fields of an object: those that must be there first, in the order in which they are required.
    fn fields(self) -> Markup {
        let fields = &self.schema["properties"];
        let required: Vec<&str> = parts(self.schema, "required").iter().filter_map(Value::as_str).collect();
        let first = required.iter().map(|name| (*name, &fields[*name], true));
        let then = members(fields).map(|(name, schema)| (name, schema, false));
        let then = then.filter(|(name, ..)| !required.contains(name));
        let all: Vec<_> = first.chain(then).collect();
        html! {
            @if !all.is_empty() {
                dl.fields { @for (name, schema, required) in all { (self.inner(schema).field(name, required)) } }
            }
            @if self.schema["additionalProperties"] == false { p.closed { "No other fields." } }
        }
    }

    fn field(self, name: &str, required: bool) -> Markup {
        html! {
            div.field {
                dt {
                    code { (name) } " "
                    span.type { (kind(self.schema)) }
                    @if required { " " span.required { "required" } }
                    @if self.schema["deprecated"] == true { " " span.required { "deprecated" } }
                }
                dd { (self.details()) }
            }
        }
    }

    /// Parts that hold together: named ones in a line, then what is added to them.
    fn all_of(self) -> Markup {
        let all = parts(self.schema, "allOf");
        let (named, own): (Vec<_>, Vec<_>) = all.iter().partition(|part| part.get("$ref").is_some());
        html! {
            @if !named.is_empty() && all.len() > 1 {
                p { "All of " (listed(&named)) @if own.is_empty() { "." } @else { ", and:" } }
            }
            @for part in own { (self.inner(part).details()) }
        }
    }

    /// The variants, where they are not told in a few words.
    fn variants(self) -> Markup {
        let Some(choice) = choice(self.schema).filter(|choice| !choice.is_short()) else { return html! {} };
        let field = text(choice.discriminator, "propertyName");
        html! {
            @if !field.is_empty() { p { "Told apart by " code { (field) } ":" } }
            ul.variants {
                @for variant in choice.variants {
                    li {
                        @if let Some(value) = value_of(choice.discriminator, variant) { code { (value) } " " }
                        span.type { (kind(variant)) }
                        (self.inner(variant).details())
                    }
                }
            }
        }
    }
}

/// Whether a schema is made of others.
fn has_parts(schema: &Value) -> bool {
    ["properties", "items", "additionalProperties", "allOf", "oneOf", "anyOf"]
        .iter()
        .any(|key| schema.get(key).is_some())
}

/// `a`, `a and b`, `a, b and c`.
fn listed(schemas: &[&Value]) -> Markup {
    html! {
        @for (nth, schema) in schemas.iter().enumerate() {
            @if nth > 0 { (if nth + 1 == schemas.len() { " and " } else { ", " }) }
            (kind(schema))
        }
    }
}

/// The value that a discriminator's field has in this variant.
fn value_of<'a>(discriminator: &'a Value, variant: &Value) -> Option<&'a str> {
    let mut mapping = members(&discriminator["mapping"]);
    mapping.find(|(_, target)| **target == variant["$ref"]).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn without_tags(html: Markup) -> String {
        let html = html.into_string();
        let text = html.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
        text.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_type_is_told_in_a_few_words() {
        let named = json!({ "$ref": "#/components/schemas/Name" });
        for (schema, expected) in [
            (json!({ "type": "string" }), "string"),
            (json!({ "type": ["string", "null"], "format": "date" }), "string (date) or null"),
            (json!({ "type": "integer", "nullable": true }), "integer or null"),
            (json!({ "type": "array", "items": named }), "array of Name"),
            (json!({ "type": "object", "additionalProperties": { "type": "integer" } }), "map of integer"),
            (json!({ "type": "object", "additionalProperties": false }), "object"),
            (json!({ "properties": {} }), "object"),
            (json!({ "oneOf": [{ "type": "null" }, named] }), "Name or null"),
            (json!({ "anyOf": [{ "type": "object", "properties": {} }, named] }), "any of these"),
            (json!({ "allOf": [named], "description": "x" }), "Name"),
            (json!({ "allOf": [named, { "required": ["a"] }] }), "object"),
            (json!({ "const": "ok\n" }), "&quot;ok\\n&quot;"),
            (json!({ "enum": ["a", "b"] }), "string"),
            (json!({}), "any"),
            (json!(true), "any"),
        ] {
            assert_eq!(without_tags(kind(&schema)), expected, "{schema}");
        }
    }

    #[test]
    fn a_named_schema_is_a_link() {
        let html = kind(&json!({ "$ref": "#/components/schemas/List of X" })).into_string();
        assert_eq!(html, "<a href=\"#schema-List-of-X\">List of X</a>");
    }

    #[test]
    fn fields_come_in_the_order_in_which_they_are_required() {
        let schema = json!({
            "required": ["z", "b"], "additionalProperties": false,
            "properties": {
                "a": { "type": "string" }, "b": {}, "z": { "type": "integer", "description": "Last letter." },
            },
        });
        let shown = without_tags(details(Document(&Value::Null), &schema));
        assert_eq!(shown, "z integer required Last letter. b any required a string No other fields.");
    }

    #[test]
    fn a_field_has_the_rules_of_the_plain_schema_it_names() {
        let document = json!({ "components": { "schemas": {
            "Status": { "type": "string", "enum": ["open", "done"], "description": "Not repeated." },
            "Thing": { "type": "object", "properties": { "x": { "type": "string" } }, "minProperties": 1 },
        } } });
        let of = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}"), "default": "open" });
        let schema = json!({ "properties": { "status": of("Status"), "thing": of("Thing") } });
        let shown = without_tags(details(Document(&document), &schema));
        assert_eq!(shown, "status Status By default open One of open , done thing Thing By default open");
    }

    #[test]
    fn parts_and_variants_are_listed() {
        let (a, b) = (json!({ "$ref": "#/components/schemas/A" }), json!({ "$ref": "#/components/schemas/B" }));
        let own = json!({ "required": ["x"], "properties": { "x": { "type": "string" } } });
        let shown = |schema: Value| without_tags(details(Document(&Value::Null), &schema));
        assert_eq!(shown(json!({ "allOf": [a, b, own] })), "All of A and B , and: x string required");
        assert_eq!(shown(json!({ "allOf": [a, b] })), "All of A and B .");
        let tell = json!({ "propertyName": "event", "mapping": { "a:b": "#/components/schemas/A" } });
        let variants = json!({ "oneOf": [a, b, a, b, own], "discriminator": tell });
        assert_eq!(shown(variants), "Told apart by event : a:b A B a:b A B object x string required");
    }

    #[test]
    fn a_schema_inside_itself_ends() {
        let mut schema = json!({ "type": "string" });
        for _ in 0..100 {
            schema = json!({ "type": "array", "items": { "properties": { "deeper": schema } } });
        }
        assert!(without_tags(details(Document(&Value::Null), &schema)).matches("deeper").count() < 20);
        assert!(without_tags(kind(&schema)).starts_with("array of object"));
    }
}
