//! What nodes tell each other. Nobody polls here, so whatever comes from the other node came because of the bus.

use crewcast::bus::{READ, SWEEP, TELL};
use serde_json::json;

use super::{HOUR, expect_n, member, moved, open, say};
use crate::{
    plans::{Statement, prepare, stay_on_indexes},
    support::{Client, connect, database, number, server, sql},
};

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
    // That one listens is known by now, and of the other not yet.
    until_both_listen(&mut conn).await;
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

#[tokio::test]
async fn a_connection_that_went_silent_is_not_listened_to_for_ever() {
    let url = database().await;
    let (here, there) = (server(&url, &[NEVER]).await, server(&url, &[NEVER]).await);
    let (writer, mut conn) = (Client::admin(&there), connect(&url).await);
    let (mut stream, _) = open(&Client::admin(&here), "rooms=topic:a").await;
    say(&writer, "topic:a", 1).await;
    expect_n(&mut stream, 1).await;
    // As if what lies between had forgotten the connections: nothing comes, and nobody is told.
    let listening: Vec<i32> = sqlx::query_scalar(
        "select pid from pg_stat_activity
         where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert_eq!(listening.len(), 2);
    let signal = |signal| {
        for pid in &listening {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).unwrap();
        }
    };
    signal(nix::sys::signal::Signal::SIGSTOP);
    say(&writer, "topic:a", 2).await;
    expect_n(&mut stream, 2).await;
    signal(nix::sys::signal::Signal::SIGCONT);
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

#[tokio::test]
async fn a_live_node_whose_last_sign_of_life_is_old_still_gets_its_commands() {
    let url = database().await;
    // It gives the next one in a quarter of an hour.
    let settings = ["--presence-lease=1h"];
    let (here, there) = (server(&url, &settings).await, server(&url, &settings).await);
    let (mut stream, id) = open(&Client::admin(&there), "rooms=topic:a").await;
    let (asking, mut conn) = (Client::admin(&here), connect(&url).await);
    moved(&asking, &id, json!({ "join": ["topic:b"] })).await;
    stream.expect("stream:rooms").await;
    // As when Postgres was away from all, and the node that is asked is the first to come back.
    let key = i64::from(uuid::Uuid::parse_str(&id).unwrap().as_u128() as u32);
    sql(&mut conn, &format!("update crewcast.nodes set beat_at = beat_at - interval '2 h' where key = {key}")).await;
    moved(&asking, &id, json!({ "leave": ["topic:b"] })).await;
    stream.expect("stream:rooms").await;
    here.stop().await;
    there.stop().await;
}

/// What README gives to a role that publishes.
const PUBLISHER: &str = "grant usage on schema crewcast to PUBLISHER; \
                         grant execute on function crewcast.publish(text[], text, json) to PUBLISHER";

#[tokio::test]
async fn who_may_only_publish_reads_no_letter_and_gives_no_command() {
    let url = database().await;
    let (here, there) = (server(&url, &[NEVER]).await, server(&url, &[NEVER]).await);
    let (mut owner, ana) = (connect(&url).await, Client::admin(&here));
    let role = format!(
        "publisher_{}",
        number(&mut owner, "select oid::bigint from pg_database where datname = current_database()").await
    );
    let grants = format!("create role {role} login; {}", PUBLISHER.replace("PUBLISHER", &role));
    for statement in grants.split("; ") {
        sql(&mut owner, statement).await;
    }
    let (mut stream, id) = open(&ana, "rooms=topic:a").await;
    moved(&Client::admin(&there), &id, json!({ "join": ["topic:b"] })).await;
    stream.expect("stream:rooms").await;
    let mut publisher = connect(&url.replace("user=postgres", &format!("user={role}"))).await;
    // It may listen, as anybody may.
    sql(&mut connect(&url.replace("user=postgres", &format!("user={role}"))).await, "listen crewcast").await;
    for forbidden in [
        "select message from crewcast.letters".to_owned(),
        "insert into crewcast.letters (sender, receiver, message) values (7, null, '{}')".to_owned(),
        "select key from crewcast.nodes".to_owned(),
        "select sub from crewcast.presence".to_owned(),
    ] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(forbidden.clone())).execute(&mut publisher).await;
        let code =
            refused.unwrap_err().as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}");
    }
    // What it can forge is a bell, or a letter that was read or never sent.
    for forged in ["7 log", "7 presence", "7 sessions", "7 letter 1", "7 letter 2", "7 letter 999", "nonsense", ""] {
        sql(&mut publisher, &format!("select pg_notify('crewcast', '{forged}')")).await;
    }
    say(&Client::admin(&there), "topic:b", 1).await;
    expect_n(&mut stream, 1).await;
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_flood_of_what_anybody_may_say_costs_a_few_looks() {
    const FORGED: i64 = 5000;
    let url = database().await;
    let (here, there) = (server(&url, &[NEVER]).await, server(&url, &[NEVER]).await);
    let (mut conn, ana) = (connect(&url).await, Client::admin(&here));
    until_both_listen(&mut conn).await;
    let (mut stream, id) = open(&ana, "rooms=topic:a").await;
    let looks = async || ana.metrics().await["crewcast_bus_looks_total"];
    let before = looks().await;
    // In one transaction, so all at once, each another text.
    sql(
        &mut conn,
        &format!(
            "select pg_notify('crewcast', n || ' letter ' || n) from generate_series(1000001, {}) n",
            1_000_000 + FORGED
        ),
    )
    .await;
    sql(&mut conn, &format!("select pg_notify('crewcast', n || ' presence') from generate_series(1, {FORGED}) n"))
        .await;
    sql(&mut conn, &format!("select pg_notify('crewcast', n || ' log') from generate_series(1, {FORGED}) n")).await;
    // What is true is heard behind it, both ways.
    moved(&Client::admin(&there), &id, json!({ "join": ["topic:b"] })).await;
    stream.expect("stream:rooms").await;
    say(&Client::admin(&there), "topic:b", 1).await;
    expect_n(&mut stream, 1).await;
    let made = looks().await - before;
    assert!(made > 0.0 && made < FORGED as f64 / 20.0, "{made}");
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_few_of_many_letters_are_found_by_index() {
    let mut conn = connect(&database().await).await;
    let statements = [
        Statement::new(READ, "bigint[], bigint", "'{7}', 3").gives(1),
        Statement::new(READ, "bigint[], bigint", "'{7}', 4").gives(0),
        Statement::new(READ, "bigint[], bigint", "'{8}', 4").gives(1),
        Statement::new(TELL, "text, bigint, text[], bigint[], text[]", "'x', 3, '{log}', '{4,null}', '{a,b}'").gives(3),
        Statement::new(SWEEP, "float8, bigint", "60, 10"),
    ];
    prepare(&mut conn, &statements).await;
    // Every other one is for all.
    let values = "9, case when n % 2 = 1 then 3 end, 'x' from generate_series(1, 100000) n";
    let columns = "(id, sender, receiver, message) overriding system value";
    sql(&mut conn, &format!("insert into crewcast.letters {columns} select n, {values}")).await;
    sql(&mut conn, "alter table crewcast.letters alter id restart 200000").await;
    stay_on_indexes(&mut conn, &statements, "crewcast.letters").await;
}
