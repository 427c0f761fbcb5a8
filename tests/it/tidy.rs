//! The layering that ARCHITECTURE.md tells of, read from the imports.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file below a folder.
pub fn sources(dir: &Path) -> Vec<PathBuf> {
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
    for part in ["log", "hub", "bus", "sse"] {
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

/// The files in which one of these words stands outside of comments and of tests, which come last.
fn users(words: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_test =
        |path: &Path| path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
    let uses = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let mut lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.any(|line| words.iter().any(|word| line.contains(word)))
    };
    let files = sources(&src).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    let users = files.filter(|path| !is_test(path) && uses(path));
    users.map(|path| path.strip_prefix(&src).unwrap().display().to_string()).collect()
}

#[test]
fn tasks_and_threads_are_spawned_in_one_place() {
    let words = ["tokio::spawn", "task::spawn", "spawn_blocking", "spawn_local", "thread::spawn", "thread::Builder"];
    assert_eq!(users(&words), ["tasks.rs"]);
    // The connections are tracked by their acceptor, and what one request asks of several nodes is joined by it.
    let mut tracking = users(&["TaskTracker::", "JoinSet::"]);
    tracking.sort();
    assert_eq!(tracking, ["http/accept/mod.rs", "http/admin.rs", "tasks.rs"]);
}

#[test]
fn nobody_takes_a_lock_that_a_panic_takes_away() {
    let words = [".lock().expect(", ".lock().unwrap()", ".read().expect(", ".write().expect("];
    assert_eq!(users(&words), [""; 0]);
}

#[test]
fn a_layer_that_is_crossed_is_found() {
    assert!(!offenders("http", &["domain"]).is_empty() && !offenders("app", &["hub"]).is_empty());
}

#[test]
fn every_statement_goes_through_a_connection_that_bounds_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let others = sources(&src).into_iter().filter(|file| !file.starts_with(src.join("db")));
    let names = ["PgConnection", "PgPool", "PoolConnection", "sqlx::pool"];
    let direct = others.filter(|file| names.iter().any(|name| fs::read_to_string(file).unwrap().contains(name)));
    let direct: Vec<PathBuf> = direct.collect();
    assert!(direct.is_empty(), "connections of sqlx's are used in src/db alone: {direct:?}");
}
