//! The layering that ARCHITECTURE.md tells of, read from the imports.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The files of `part` that mention `crate::{forbidden}`, alone or in a braced list.
fn offenders(part: &str, forbidden: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = src.join(part);
    let files = if root.is_dir() { sources(&root) } else { vec![src.join(format!("{part}.rs"))] };
    let uses = |text: &str, module: &str| {
        let listed = text.split("use crate::{").skip(1).filter_map(|rest| rest.split("};").next());
        let mut items = listed.flat_map(|list| list.lines().flat_map(|line| line.split(", ")));
        text.contains(&format!("crate::{module}"))
            || items.any(|item| item.trim().split([':', ',']).next() == Some(module))
    };
    let offends = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        forbidden.iter().find(|module| uses(&code, module)).map(|module| format!("{} uses {module}", file.display()))
    };
    files.iter().filter_map(offends).collect()
}

#[test]
fn the_machine_knows_neither_the_domain_nor_http() {
    for part in ["log", "hub", "sse"] {
        assert_eq!(offenders(part, &["domain", "http", "auth", "web", "app", "cli"]), [""; 0]);
    }
}

#[test]
fn the_wire_format_imports_nothing_of_ours() {
    let all = ["app", "auth", "cli", "config", "db", "domain", "error", "http", "hub", "ids", "log", "web"];
    assert_eq!(offenders("sse", &all), [""; 0]);
}

#[test]
fn the_domain_appends_and_never_sends() {
    assert_eq!(offenders("domain", &["hub", "sse", "http", "app", "cli", "config"]), [""; 0]);
}

#[test]
fn a_layer_that_is_crossed_is_found() {
    assert!(!offenders("http", &["domain"]).is_empty() && !offenders("app", &["hub"]).is_empty());
}

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// What the routes in a file do, as method and path below `base`.
fn actions_in(file: &Path, base: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(file).unwrap();
    let routes = text.split(".route(").skip(1).filter_map(|rest| {
        let (path, handlers) = arguments(rest).trim_start().strip_prefix('"')?.split_once('"')?;
        let methods = METHODS.into_iter().filter(|method| handlers.contains(&format!("{method}(")));
        // Hooks lie at the top, wherever their feature is.
        let base = if path.starts_with("/hooks/") { "" } else { base };
        Some(methods.map(|method| (method.to_uppercase(), format!("{base}{path}"))).collect::<Vec<_>>())
    });
    routes.flatten().collect()
}

/// What stands before the parenthesis that closes a call.
fn arguments(call: &str) -> &str {
    let mut depth = 1;
    let end = call.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    &call[..end.unwrap_or(call.len())]
}

/// Everything that can be done: each method of each route.
pub fn actions() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let domain = sources(&src.join("domain"));
    let mut actions: Vec<_> = domain.iter().flat_map(|file| actions_in(file, "/v1")).collect();
    actions.extend(actions_in(&src.join("http/mod.rs"), ""));
    actions
}

/// The same, as the document has it.
fn documented(document: &str) -> Vec<(String, String)> {
    let (mut path, mut actions) = (String::new(), Vec::new());
    for line in document.lines() {
        let verb = line.strip_prefix("    ").and_then(|line| line.strip_suffix(':'));
        if let Some(key) = line.strip_prefix("  /").and_then(|line| line.strip_suffix(':')) {
            path = format!("/{key}");
        } else if let Some(verb) = verb.filter(|verb| METHODS.contains(verb)) {
            actions.push((verb.to_uppercase(), path.clone()));
        }
    }
    actions
}

#[test]
fn the_document_has_every_route_and_no_other_and_every_code() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml")).unwrap();
    let (mut actions, mut documented) = (actions(), documented(&document));
    actions.sort();
    documented.sort();
    assert_eq!(documented, actions);
    for code in crewcast::error::Code::ALL {
        assert!(document.contains(code.as_str()), "{code}");
    }
}
