//! What nodes tell each other. Nobody polls here, so whatever comes from the other node came because of the bus.

use serde_json::json;

use super::{HOUR, expect_n, member, moved, open, say};
use crate::support::{Client, connect, database, number, server};

const NEVER: &str = "--poll=1h";

/// Cuts whoever listens; how many did.
const CUT: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()";

#[tokio::test]
async fn events_of_another_node_come_over_the_bus_and_a_cut_of_it_loses_none() {
    let url = database().await;
    let (here, there) = (server(&url, &[NEVER]).await, server(&url, &[NEVER]).await);
    let (writer, mut conn) = (Client::admin(&there), connect(&url).await);
    let (mut stream, id) = open(&Client::admin(&here), "rooms=topic:a").await;
    say(&writer, "topic:a", 1).await;
    expect_n(&mut stream, 1).await;
    for n in 2..12 {
        assert_eq!(number(&mut conn, CUT).await, 2, "both listen again");
        say(&writer, "topic:a", n).await;
        expect_n(&mut stream, n).await;
        // Then a command finds its way as well; one that is sent meanwhile may be lost, and be asked for again.
        until_both_listen(&mut conn).await;
        moved(&writer, &id, json!({ "join": ["topic:b"] })).await;
        stream.expect("stream:rooms").await;
    }
    here.stop().await;
    there.stop().await;
}

async fn until_both_listen(conn: &mut sqlx::PgConnection) {
    let listening = "select count(*) from pg_stat_activity
                     where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()";
    while number(conn, listening).await < 2 {}
}

#[tokio::test]
async fn a_node_that_is_gone_has_no_streams_and_one_that_stands_still_is_waited_for_in_vain() {
    let url = database().await;
    let server = server(&url, &["--presence-lease=2s", "--command-timeout=500ms"]).await;
    let other = crate::support::Process::start(&url, &["--presence-lease=2s"]).await;
    let token = member("ben", &[], &["a"], HOUR);
    let (ben, asking) = (Client::at(&other.address, &token), Client::new(&server, &token));
    let (_stream, id) = open(&ben, "").await;
    moved(&asking, &id, json!({ "join": ["topic:a"] })).await;
    let signal = |signal| {
        let pid = nix::unistd::Pid::from_raw(other.child.id().unwrap().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    signal(nix::sys::signal::Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", other.child.id().unwrap());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {}
    // At first it is believed in: nobody knows whether it did it.
    let response = asking.request(reqwest::Method::POST, &format!("/v1/streams/{id}/rooms"));
    let response = response.json(&json!({ "leave": ["topic:a"] })).send().await.unwrap();
    assert_eq!(response.status(), reqwest::StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    signal(nix::sys::signal::Signal::SIGKILL);
    let mut answer = 503;
    while answer == 503 {
        answer = super::ask(&asking, &id, json!({ "leave": ["topic:a"] })).await.0.as_u16();
    }
    assert_eq!(answer, 404);
    server.stop().await;
}
