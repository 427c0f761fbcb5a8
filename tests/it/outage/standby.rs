//! A standby cannot serve: its snapshots do not show which transactions run, and it takes no writes.

use std::{path::Path, process::Command};

use crewcast::db::embedded::Embedded;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::wire::Wire;
use crate::{
    restore::program,
    support::{Client, SECRET, connect, folder, number, private_postgres, server, url},
};

const CREWCAST: &str = env!("CARGO_BIN_EXE_crewcast");

/// A standby of this Postgres, with its data in this folder.
async fn standby(primary: &Embedded, folder: &Path) -> Embedded {
    let (options, base) = (primary.connect_options(), folder.join("postgres"));
    std::fs::create_dir(&base).unwrap();
    let mut backup = Command::new(program("pg_basebackup"));
    backup.args(["--username=postgres", "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--host"]);
    backup.arg(options.get_socket().unwrap()).arg("--pgdata").arg(base.join("data"));
    // The socket's owner runs Postgres, which is another user than root.
    let mut give = Command::new("chown");
    give.arg("--recursive").arg("--reference").arg(options.get_socket().unwrap()).arg(base.join("data"));
    for command in [&mut backup, &mut give] {
        assert!(command.status().unwrap().success(), "{command:?}");
    }
    private_postgres(folder.to_owned(), false).await
}

/// Every command on this database ends with one line, which says what is wrong.
fn refuses(url: &str) {
    for command in
        [&["serve", "--listen=127.0.0.1:0", "--jwt-secret", SECRET][..], &["migrate"], &["epoch"], &["epoch", "new"]]
    {
        let output = Command::new(CREWCAST).args(command).env("DATABASE_URL", url).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{command:?}");
        assert!(said.contains("is a standby") && said.trim().lines().count() == 1, "{command:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_in_one_line_and_by_a_running_node_until_it_has_the_primary_again() {
    let (here, there) = (folder(), folder());
    let primary = private_postgres(here.path().to_owned(), false).await;
    let (first, name) = (url(&primary.connect_options(), "crewcast"), "/v1/divisions/south");
    let wire = Wire::to(&first).await;
    let node = server(&wire.url, &["--poll=20ms"]).await;
    let (ana, mut conn) = (Client::admin(&node), connect(&first).await);
    ana.project("north").await;
    let standby = standby(&primary, there.path()).await;
    let second = url(&standby.connect_options(), "crewcast");
    refuses(&second);

    let mut stream = ana.follow("rooms=division:north").await;
    wire.lead_to(&second);
    for _ in 0..20 {
        for (method, path) in [(Method::PUT, name), (Method::GET, "/v1/divisions"), (Method::GET, "/readyz")] {
            let (status, problem) = ana.send(method, path, json!({ "name": "South" })).await;
            // The probe has not asked yet whether Postgres is there.
            if path != "/readyz" || status != StatusCode::OK {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {problem}");
            }
        }
    }
    let (status, _) = ana.send(Method::GET, "/readyz", Value::Null).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(number(&mut conn, "select count(*) from crewcast.divisions where slug = 'south'").await, 0);

    wire.lead_to(&first);
    drop(ana.stream_when_there("", "").await);
    ana.project("north").await;
    stream.expect("project:created").await;
    node.stop().await;
    standby.stop().await;
    primary.stop().await;
}
