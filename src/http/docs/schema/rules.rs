//! What a schema says about values: which there are, how large and how long, and what they look like.

use maud::{Markup, html};
use serde_json::Value;

/// The rules for values, each in a few words.
pub(super) fn rules(schema: &Value) -> Vec<Markup> {
    let mut rules = Vec::new();
    rules.extend(values("One of ", schema["enum"].as_array().map(Vec::as_slice)));
    rules.extend(values("By default ", schema.get("default").map(std::slice::from_ref)));
    rules.extend(bounds(schema));
    rules.extend(values("A multiple of ", schema.get("multipleOf").map(std::slice::from_ref)));
    rules.extend(schema["pattern"].as_str().map(|pattern| html! { "Matches " code { (pattern) } }));
    rules.extend((schema["uniqueItems"] == true).then(|| html! { "Without repeats" }));
    rules.extend((schema["readOnly"] == true).then(|| html! { "Only in answers" }));
    rules.extend((schema["writeOnly"] == true).then(|| html! { "Only in requests" }));
    let examples = schema["examples"].as_array().map(Vec::as_slice);
    rules.extend(values("For example ", examples.or_else(|| schema.get("example").map(std::slice::from_ref))));
    rules
}

fn values(words: &str, values: Option<&[Value]>) -> Option<Markup> {
    let values = values.filter(|values| !values.is_empty())?;
    Some(html! {
        (words)
        @for (nth, value) in values.iter().enumerate() {
            @if nth > 0 { ", " }
            code { (plain(value)) }
        }
    })
}

/// The least and the most of what can be counted.
fn bounds(schema: &Value) -> Vec<Markup> {
    let number = |key: &str| schema.get(key).filter(|value| value.is_number());
    let mut bounds = Vec::new();
    for (key, words) in [("exclusiveMinimum", "More than "), ("exclusiveMaximum", "Less than ")] {
        bounds.extend(number(key).map(|bound| html! { (words) (bound) }));
    }
    for (least, most, one, many) in [
        ("minimum", "maximum", "", ""),
        ("minLength", "maxLength", " character", " characters"),
        ("minItems", "maxItems", " item", " items"),
        ("minProperties", "maxProperties", " field", " fields"),
    ] {
        let unit = |count: &Value| if *count == 1 { one } else { many };
        bounds.extend(match (number(least), number(most)) {
            (Some(least), Some(most)) if least == most => Some(html! { "Exactly " (least) (unit(least)) }),
            (Some(least), Some(most)) => Some(html! { (least) " to " (most) (many) }),
            (Some(least), None) => Some(html! { "At least " (least) (unit(least)) }),
            (None, Some(most)) => Some(html! { "At most " (most) (unit(most)) }),
            (None, None) => None,
        });
    }
    bounds
}

/// A value as it is in a sentence: text without its quotes, unless it is empty.
pub(in crate::http::docs) fn plain(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(schema: &Value) -> String {
        rules(schema)
            .into_iter()
            .map(|rule| rule.into_string().replace("<code>", "").replace("</code>", ""))
            .collect::<Vec<_>>()
            .join(". ")
    }

    #[test]
    fn rules_are_told_in_words() {
        for (schema, expected) in [
            (json!({ "minLength": 1, "maxLength": 200 }), "1 to 200 characters"),
            (json!({ "maxLength": 1 }), "At most 1 character"),
            (json!({ "minItems": 2, "uniqueItems": true }), "At least 2 items. Without repeats"),
            (
                json!({ "minimum": 0, "exclusiveMaximum": 168.5, "multipleOf": 0.25 }),
                "Less than 168.5. At least 0. A multiple of 0.25",
            ),
            (json!({ "enum": ["a", null, 3] }), "One of a, null, 3"),
            (json!({ "default": "", "pattern": "^<$" }), "By default &quot;&quot;. Matches ^&lt;$"),
            (json!({ "examples": ["2026-W48"] }), "For example 2026-W48"),
            (json!({ "minProperties": 1, "readOnly": true }), "At least 1 field. Only in answers"),
        ] {
            assert_eq!(shown(&schema), expected, "{schema}");
        }
    }
}
