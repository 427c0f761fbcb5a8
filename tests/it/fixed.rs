//! What a role, a database or a shell sets does not change what the service does, and a database that will not do is refused.

use std::{process::Command, time::Duration};

use crewcast::app::Server;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{task::JoinSet, time::timeout};

use crate::support::{Client, PATIENCE, config, connect, database, folder, number, own, server, sql};

const CREWCAST: &str = env!("CARGO_BIN_EXE_crewcast");

/// What would break something, each by itself.
const SET: [(&str, &str); 16] = [
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "20"),
    ("lock_timeout", "1"),
    ("idle_session_timeout", "59999"),
    ("client_encoding", "'LATIN1'"),
    ("\"DateStyle\"", "'SQL, DMY'"),
    ("\"TimeZone\"", "'Asia/Tokyo'"),
    ("bytea_output", "'escape'"),
    ("standard_conforming_strings", "off"),
    ("extra_float_digits", "'-15'"),
    ("transform_null_equals", "on"),
    ("search_path", "crewcast_evil, pg_catalog"),
    ("synchronous_commit", "off"),
    ("jit", "on"),
];

/// A database in which all of that is set.
async fn set_otherwise() -> String {
    let url = database().await;
    let mut conn = connect(&url).await;
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    sql(&mut conn, "create schema crewcast_evil").await;
    let never = "returns bool language sql as 'select false'";
    sql(&mut conn, &format!("create function crewcast_evil.never(text, text) {never}")).await;
    sql(&mut conn, "create operator crewcast_evil.= (leftarg = text, rightarg = text, function = crewcast_evil.never)")
        .await;
    for (setting, value) in SET {
        sql(&mut conn, &format!("alter database {name} set {setting} = {value}")).await;
    }
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_database_sets_two_changes_at_once_tell_the_truth() {
    let url = set_otherwise().await;
    let server = server(&url, &["--poll=20ms"]).await;
    let ana = Client::admin(&server);
    let (project, employee) = (ana.project("north").await, ana.employee("north", 40.0).await);
    let other = ana.project("north").await;
    let mut stream = ana.follow("rooms=company&types=capacity").await;
    // Both have begun before either goes on.
    let mut stranger = own(&url).await;
    stranger.begin().await.unwrap();
    let lock = "select from crewcast.employees for update";
    sqlx::query(lock).fetch_all(&mut stranger).await.unwrap();
    let mut posts = JoinSet::new();
    for project in [project, other] {
        let (ana, employee) = (ana.clone(), employee.clone());
        posts.spawn(async move {
            let body = json!({ "employeeId": employee, "projectId": project, "week": "2040-W01", "hours": 8 });
            ana.send(reqwest::Method::POST, "/v1/assignments", body).await
        });
    }
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and application_name = 'crewcast' and wait_event_type = 'Lock'";
    let mut conn = own(&url).await;
    let looking = async { while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut conn).await.unwrap() != 2 {} };
    timeout(PATIENCE, looking).await.expect("both wait");
    stranger.rollback().await.unwrap();
    for (status, made) in posts.join_all().await {
        assert_eq!(status, StatusCode::CREATED, "{made}");
    }
    for hours in [8.0, 16.0] {
        let (_, told) = stream.expect("capacity:updated").await;
        assert_eq!(told["hours"], hours, "{told}");
    }
    let divided = ana.read("/v1/divisions").await.1;
    assert_eq!(divided["items"][0]["slug"], "north", "{divided}");
    server.stop().await;
}

#[tokio::test]
async fn a_session_is_as_it_should_be_whatever_the_database_sets() {
    let url = set_otherwise().await;
    let mut session = own(&url).await;
    for (setting, value) in SET {
        let setting = setting.trim_matches('"');
        let now: String = sqlx::query_scalar("select setting from pg_settings where name = $1")
            .bind(setting)
            .fetch_one(&mut session)
            .await
            .unwrap();
        assert_ne!(now, value.trim_matches('\''), "{setting}");
    }
    for (setting, least) in [("client_connection_check_interval", 1), ("idle_in_transaction_session_timeout", 1)] {
        let now = "select setting::int from pg_settings where name = $1";
        let now: i32 = sqlx::query_scalar(now).bind(setting).fetch_one(&mut session).await.unwrap();
        assert!(now >= least, "{setting} is {now}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_utf8_is_refused_in_one_line() {
    let mut conn = connect(&database().await).await;
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let name = format!("encoded_{}", encoding.to_lowercase());
        let create =
            format!("create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0");
        sql(&mut conn, &create).await;
        let socket: String = sqlx::query_scalar("show unix_socket_directories").fetch_one(&mut conn).await.unwrap();
        let url = format!("postgres:///{name}?host={}&user=postgres", socket.trim_matches('"'));
        let refused = Server::start(config(&url, &[]), |_| {}).await.err().expect("it is refused").to_string();
        assert!(refused.contains("UTF8") && refused.contains(encoding) && !refused.contains('\n'), "{refused}");
        for command in [&["migrate"][..], &["epoch"], &["epoch", "new"]] {
            let output = Command::new(CREWCAST).args(command).env("DATABASE_URL", &url).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && said.contains("UTF8") && said.trim().lines().count() == 1, "{said}");
        }
        // Nothing was written.
        let mut there = PgConnection::connect(&url).await.unwrap();
        let schemas = "select count(*) from pg_namespace where nspname = 'crewcast'";
        assert_eq!(number(&mut there, schemas).await, 0);
        there.close().await.unwrap();
        sqlx::query(AssertSqlSafe(format!("drop database {name}"))).execute(&mut conn).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_shell_says_to_postgres_does_not_reach_a_private_one() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let folder = folder();
    let mut command = tokio::process::Command::new(CREWCAST);
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path()).env_remove("DATABASE_URL");
    // Each of these keeps a connection, or a server, from working.
    command.env("PGOPTIONS", "-c no_such.setting_at_all=1 -c default_transaction_read_only=on -c nonsense=1");
    command.envs([("PGHOST", "nowhere.invalid"), ("PGPORT", "1"), ("PGUSER", "nobody"), ("PGDATABASE", "none")]);
    command.envs([("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "/nowhere"), ("PGDATESTYLE", "nonsense")]);
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut server = command.spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let listening = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, address)) = line.split_once("listens on ") {
                return address.trim().to_owned();
            }
        }
        panic!("it ended before it listened");
    };
    let address = timeout(PATIENCE, listening).await.expect("it starts");
    let ready = reqwest::get(format!("{address}/readyz")).await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let pid = nix::unistd::Pid::from_raw(server.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = timeout(PATIENCE + Duration::from_secs(1), server.wait()).await.expect("it ends").unwrap();
    assert!(ended.success(), "{ended}");
}
