//! An OpenAPI document, as a tree of JSON in which references can be followed.

use serde_json::{Map, Value};

/// The methods that a path can have, in the order in which they are shown.
const METHODS: [&str; 8] = ["get", "post", "put", "patch", "delete", "head", "options", "trace"];

/// References that lead to references are followed no further than this, so that a circle ends.
const HOPS_MAX: usize = 8;

/// The document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a>(pub(super) &'a Value);

/// What one method does at one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    /// What holds for all methods of the path.
    item: &'a Value,
    pub(super) value: &'a Value,
}

impl<'a> Document<'a> {
    /// What stands at a JSON pointer; null where nothing does.
    pub(super) fn at(self, pointer: &str) -> &'a Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The named things under a JSON pointer.
    pub(super) fn members(self, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        members(self.at(pointer))
    }

    /// What a reference stands for; what is none stands for itself.
    pub(super) fn resolve(self, mut value: &'a Value) -> &'a Value {
        for _ in 0..HOPS_MAX {
            let Some(pointer) = value["$ref"].as_str().and_then(|target| target.strip_prefix('#')) else { break };
            value = self.at(pointer);
        }
        value
    }

    /// Every operation, path by path.
    pub(super) fn operations(self) -> Vec<Operation<'a>> {
        let of_path = |(path, item): (&'a str, &'a Value)| {
            METHODS
                .into_iter()
                .filter_map(move |method| Some(Operation { method, path, item, value: item.get(method)? }))
        };
        self.members("/paths").flat_map(of_path).collect()
    }

    /// The tags with what they hold: in the document's order, then those that it does not list.
    pub(super) fn groups(self) -> Vec<Group<'a>> {
        let listed = self.at("/tags").as_array().into_iter().flatten();
        let mut groups: Vec<Group<'a>> = listed.map(Group::listed).collect();
        for operation in self.operations() {
            let name = operation.tag();
            match groups.iter_mut().find(|group| group.name == name) {
                Some(group) => group.operations.push(operation),
                None => groups.push(Group { name, description: "", operations: vec![operation] }),
            }
        }
        groups.retain(|group| !group.operations.is_empty());
        groups
    }
}

/// The operations of one tag.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) operations: Vec<Operation<'a>>,
}

impl<'a> Group<'a> {
    fn listed(tag: &'a Value) -> Self {
        Self { name: text(tag, "name"), description: text(tag, "description"), operations: Vec::new() }
    }

    /// Where the group is on its page.
    pub(super) fn anchor(&self) -> String {
        format!("tag-{}", anchor(self.name))
    }
}

impl<'a> Operation<'a> {
    /// The first of its tags: each operation is shown once.
    fn tag(&self) -> &'a str {
        self.value["tags"][0].as_str().unwrap_or("other")
    }

    /// Where the operation is on its page.
    pub(super) fn anchor(&self) -> String {
        let id = self.value["operationId"].as_str();
        format!("op-{}", id.map_or_else(|| anchor(&format!("{}{}", self.method, self.path)), anchor))
    }

    /// What it does, in a line.
    pub(super) fn summary(&self) -> &'a str {
        Some(text(self.value, "summary")).filter(|summary| !summary.is_empty()).unwrap_or(self.path)
    }

    /// Its parameters: the path's, unless it has one of that name and place itself, then its own.
    pub(super) fn parameters(&self, document: Document<'a>) -> Vec<&'a Value> {
        let of = |value: &'a Value| {
            value["parameters"].as_array().into_iter().flatten().map(move |parameter| document.resolve(parameter))
        };
        let own: Vec<_> = of(self.value).collect();
        let is_own = |shared: &&Value| own.iter().any(|own| ["name", "in"].iter().all(|key| own[key] == shared[key]));
        of(self.item).filter(|shared| !is_own(shared)).chain(own.iter().copied()).collect()
    }
}

/// The members of an object; none of anything else.
pub(super) fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}

/// A member that is text; empty where there is none.
pub(super) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

/// A name as a part of an `id`: what would have to be escaped in an address is a hyphen.
pub(super) fn anchor(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_followed_and_a_circle_ends() {
        let document = json!({
            "a~b": { "$ref": "#/c" }, "c": { "$ref": "#/d" }, "d": { "type": "string" },
            "round": { "$ref": "#/round" }, "lost": { "$ref": "#/nowhere" },
        });
        let resolve = |name: &str| Document(&document).resolve(&document[name]).clone();
        assert_eq!(resolve("a~b"), json!({ "type": "string" }));
        assert_eq!(resolve("d"), json!({ "type": "string" }));
        assert_eq!(resolve("lost"), Value::Null);
        assert_eq!(resolve("round"), json!({ "$ref": "#/round" }));
    }

    #[test]
    fn operations_are_grouped_by_tag_in_the_documents_order() {
        let document = json!({
            "tags": [{ "name": "second" }, { "name": "first", "description": "One." }, { "name": "unused" }],
            "paths": {
                "/a": { "post": { "tags": ["first"] }, "get": { "tags": ["first"] }, "parameters": [] },
                "/b": { "get": { "tags": ["second"] }, "delete": { "tags": ["unlisted"] }, "put": {} },
            },
        });
        let groups = Document(&document).groups();
        let seen: Vec<(&str, Vec<String>)> =
            groups.iter().map(|group| (group.name, group.operations.iter().map(Operation::anchor).collect())).collect();
        let expected = [
            ("second", vec!["op-get-b".to_owned()]),
            ("first", vec!["op-get-a".to_owned(), "op-post-a".to_owned()]),
            ("other", vec!["op-put-b".to_owned()]),
            ("unlisted", vec!["op-delete-b".to_owned()]),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_operations_own_parameter_stands_for_the_paths() {
        let shared = json!([{ "name": "id", "in": "path" }, { "$ref": "#/limit" }]);
        let own = json!([{ "name": "limit", "in": "query", "description": "Mine." }]);
        let document = json!({
            "limit": { "name": "limit", "in": "query" },
            "paths": { "/a": { "parameters": shared, "get": { "parameters": own } } },
        });
        let document = Document(&document);
        let parameters = document.operations()[0].parameters(document);
        let seen: Vec<_> = parameters.iter().map(|one| (text(one, "name"), text(one, "description"))).collect();
        assert_eq!(seen, [("id", ""), ("limit", "Mine.")]);
    }
}
