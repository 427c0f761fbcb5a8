//! What nodes know of each other: deploys, crashes, and Postgres going away.

use std::time::Duration;

use crewcast::auth::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Tab, person, person_token, read, until_read, until_rows};
use crate::support::{Client, Process, connect, database, server, sql, token};

#[tokio::test]
async fn two_nodes_agree() {
    let url = database().await;
    let nodes = [server(&url, &["--presence-grace=200ms"]).await, server(&url, &["--presence-grace=200ms"]).await];
    let (ana, ben) = (person(&nodes[0], "ana"), person(&nodes[1], "ben"));
    let mut here = Tab::open(&ana, "company").await;
    let mut there = Tab::open(&ben, "company").await;
    here.until("company ben online").await;
    there.report(&ben, json!({ "viewing": "/plan", "status": "idle" })).await;
    here.until("company ben idle").await;
    until_read(&ben, "company", &["ben", "ana"]).await;
    assert_eq!(here.seen["company"]["ben"].1, json!("/plan"));
    let second = Tab::open(&person(&nodes[0], "ben"), "company").await;
    here.until("company ben online").await;
    there.until("company ben online").await;
    drop(there);
    second.end(&ben).await;
    here.until("company ben offline").await;
    until_read(&ben, "company", &["ana"]).await;
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_from_tab_to_tab_and_node_to_node_is_never_shown_idle_or_gone() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let mut watches = Vec::new();
    for node in &nodes {
        watches.push(Tab::open(&person(node, "ana"), "company").await);
    }
    let bens = [person(&nodes[0], "ben"), person(&nodes[1], "ben")];
    let mut tab = Tab::open(&bens[0], "company").await;
    for watch in &mut watches {
        watch.until("company ben online").await;
        watch.told.clear();
    }
    for (nth, idles) in [(1, true), (0, false), (0, true), (1, false), (1, true), (0, true)] {
        let next = Tab::open(&bens[nth], "company").await;
        if idles {
            tab.report(&bens[0], json!({ "status": "idle" })).await;
        } else {
            tab.end(&bens[0]).await;
        }
        tab = next;
        for watch in &mut watches {
            assert_eq!(watch.listen(Duration::from_millis(800)).await, [""; 0], "on {nth}, {idles}");
        }
    }
    tab.report(&bens[1], json!({ "status": "idle" })).await;
    for watch in &mut watches {
        watch.until("company ben idle").await;
    }
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_killed_nodes_users_leave_when_its_lease_ends() {
    let url = database().await;
    let lease = ["--presence-lease=2s"];
    let (server, mut doomed) = (server(&url, &lease).await, Process::start(&url, &lease).await);
    let ana = person(&server, "ana");
    let mut watch = Tab::open(&ana, "company").await;
    let _tab = Tab::open(&Client::at(&doomed.address, &person_token("ben")), "company").await;
    watch.until("company ben online").await;
    doomed.child.kill().await.unwrap();
    let killed = Instant::now();
    watch.until("company ben offline").await;
    // By the settings a lease and the time between two beats and two looks; the default ones make that 15 s.
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    assert_eq!(read(&ana, "company").await, ["ana"]);
    server.stop().await;
}

#[tokio::test]
async fn a_killed_nodes_users_are_shown_by_a_node_that_starts_in_its_lease_and_not_later() {
    let url = database().await;
    let mut doomed = Process::start(&url, &[]).await;
    let _tab = Tab::open(&Client::at(&doomed.address, &person_token("ben")), "company").await;
    let mut conn = connect(&url).await;
    until_rows(&mut conn, 1).await;
    doomed.child.kill().await.unwrap();
    let at_once = server(&url, &[]).await;
    assert_eq!(read(&person(&at_once, "ana"), "company").await, ["ben"]);
    sql(&mut conn, "update crewcast.nodes set beat_at = beat_at - interval '1 min'").await;
    let later = server(&url, &[]).await;
    assert_eq!(read(&person(&later, "ana"), "company").await, [""; 0]);
    for server in [at_once, later] {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_stood_still_comes_back_with_its_users() {
    let url = database().await;
    let lease = ["--presence-lease=1s"];
    let (server, frozen) = (server(&url, &lease).await, Process::start(&url, &lease).await);
    let ana = person(&server, "ana");
    let mut watch = Tab::open(&ana, "company").await;
    let _tab = Tab::open(&Client::at(&frozen.address, &person_token("ben")), "company").await;
    watch.until("company ben online").await;
    let pid = nix::unistd::Pid::from_raw(frozen.child.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    watch.until("company ben offline").await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    watch.until("company ben online").await;
    server.stop().await;
}

#[tokio::test]
async fn a_restart_inside_the_grace_shows_nobody_leaving() {
    let url = database().await;
    let settings = ["--presence-grace=20s"];
    let (old, other) = (server(&url, &settings).await, server(&url, &settings).await);
    let mut watch = Tab::open(&person(&other, "ana"), "company").await;
    let tab = Tab::open(&person(&old, "ben"), "company").await;
    let gone = Tab::open(&person(&old, "cy"), "company").await;
    watch.until("company cy online").await;
    gone.end(&person(&old, "cy")).await;
    watch.until("company cy offline").await;
    let last_id = tab.stream.last_id().to_owned();
    old.stop().await;
    drop(tab);
    other.stop().await;
    // Nobody runs at all for a moment.
    let new = server(&url, &settings).await;
    assert_eq!(read(&person(&new, "cy"), "company").await, ["ana", "ben"]);
    let mut tab = Tab::resume(&person(&new, "ben"), "company", &last_id).await;
    assert_eq!(tab.listen(Duration::from_secs(2)).await, [""; 0]);
    new.stop().await;
}

#[tokio::test]
async fn a_grace_runs_on_over_a_restart() {
    let url = database().await;
    let settings = ["--presence-grace=4s", "--presence-lease=1s"];
    let old = server(&url, &settings).await;
    let tab = Tab::open(&person(&old, "ben"), "company").await;
    drop(tab);
    old.stop().await;
    let new = server(&url, &settings).await;
    let mut watch = Tab::open(&person(&new, "ana"), "company").await;
    assert_eq!(watch.seen["company"].len(), 2);
    assert_eq!(watch.listen(Duration::from_secs(2)).await, [""; 0], "no lease is waited for");
    watch.until("company ben offline").await;
    assert_eq!(watch.told, ["company ben offline"]);
    new.stop().await;
}

#[tokio::test]
async fn a_deploy_shows_nobody_leaving_who_comes_back_when_told() {
    let url = database().await;
    // The shorter the lease, the sooner the nodes look at each other.
    let settings = ["--presence-grace=200ms", "--presence-lease=1s"];
    let (old, other) = (server(&url, &settings).await, server(&url, &settings).await);
    let mut watch = Tab::open(&person(&other, "ana"), "company").await;
    let mut tab = Tab::open(&person(&old, "ben"), "company").await;
    watch.until("company ben online").await;
    let stopping = tokio::spawn(old.stop());
    let (_, closing) = tab.stream.expect("stream:closing").await;
    let away = Duration::from_millis(closing["reconnectInMs"].as_u64().unwrap());
    assert!(away > Duration::from_millis(900), "longer than the grace");
    drop(tab);
    assert_eq!(watch.listen(away).await, [""; 0]);
    let back = Tab::open(&person(&other, "ben"), "company").await;
    assert_eq!(watch.listen(Duration::from_secs(2)).await, [""; 0]);
    drop(back);
    stopping.await.unwrap();
    other.stop().await;
}

#[tokio::test]
async fn tables_that_a_crash_has_emptied_are_written_again_and_nobody_flaps() {
    let url = database().await;
    let settings = ["--presence-lease=4s"];
    let nodes = [server(&url, &settings).await, server(&url, &settings).await];
    let mut watch = Tab::open(&person(&nodes[0], "ana"), "company").await;
    let _tab = Tab::open(&person(&nodes[1], "ben"), "company").await;
    watch.until("company ben online").await;
    watch.told.clear();
    let mut conn = connect(&url).await;
    sql(&mut conn, "truncate crewcast.nodes, crewcast.presence").await;
    until_rows(&mut conn, 2).await;
    assert_eq!(watch.listen(Duration::from_secs(6)).await, [""; 0]);
    // A node that begins now learns of both.
    let new = server(&url, &settings).await;
    assert_eq!(read(&person(&new, "cy"), "company").await, ["ana", "ben"]);
    new.stop().await;
    for server in nodes {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_while_the_clients_of_a_drained_node_come_back_when_they_were_told() {
    const USERS: usize = 6;
    let url = database().await;
    // The last ones are told long after the grace of the first ones.
    let settings = ["--presence-grace=1s", "--presence-lease=1s", "--drain-spread=4s"];
    let (other, mut old) = (server(&url, &settings).await, Process::start(&url, &settings).await);
    let mut watch = Tab::open(&person(&other, "ana"), "company").await;
    let subs: Vec<String> = (0..USERS).map(|nth| format!("u{nth}")).collect();
    let mut tabs = Vec::new();
    for sub in &subs {
        tabs.push(Tab::open(&Client::at(&old.address, &person_token(sub)), "company").await);
        watch.until(&format!("company {sub} online")).await;
    }
    watch.told.clear();
    let drain = Client::at(&old.address, &token("eva", &[Role::Admin]));
    assert_eq!(drain.send(Method::POST, "/v1/admin/drain", Value::Null).await.0, StatusCode::ACCEPTED);
    let mut returning = JoinSet::new();
    for (mut tab, sub) in tabs.into_iter().zip(subs) {
        let again = person(&other, &sub);
        returning.spawn(async move {
            let (closing, _) = tab.stream.expect("stream:closing").await;
            // A browser waits for what `retry:` says.
            sleep(Duration::from_millis(closing.retry.unwrap())).await;
            Tab::resume(&again, "company", tab.stream.last_id()).await
        });
    }
    let back = async {
        let code = old.child.wait().await.unwrap().code();
        (code, returning.join_all().await)
    };
    let (code, back) = tokio::select! {
        done = back => done,
        told = watch.hear() => panic!("{told}"),
    };
    assert_eq!((code, back.len()), (Some(0), USERS));
    // Also when every grace that anybody had is over.
    assert_eq!(watch.listen(Duration::from_secs(6)).await, [""; 0]);
    assert_eq!(read(&person(&other, "ana"), "company").await.len(), USERS + 1);
    other.stop().await;
}
