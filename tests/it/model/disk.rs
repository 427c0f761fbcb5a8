//! Whatever a reader was given is on disk, however its publisher committed.

use crewcast::{db::embedded, log::epoch};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::crash::{Cluster, stop_wal_writer};
use crate::support::{Client, Stream, connect, folder, number, own, server, sql};

/// Publishes in a transaction that goes around everything which would make its commit wait for the disk: its number.
async fn publish_hastily(conn: &mut PgConnection) -> i64 {
    sql(conn, "begin").await;
    let seq = number(conn, "select crewcast.publish('{topic:a}', 'test:hasty', '{}')").await;
    sql(conn, "set constraints all immediate").await;
    sql(conn, "set local synchronous_commit = off").await;
    sql(conn, "commit").await;
    seq
}

async fn expect_hasty(stream: &mut Stream) {
    stream.expect("test:hasty").await;
}

/// Shows such an event to somebody and then crashes Postgres: the event is still there.
async fn survives(cluster: &Cluster, poll: &str, show: impl AsyncFnOnce(&Client, &str, i64)) {
    let node = server(&cluster.url, &[poll]).await;
    let ana = Client::admin(&node);
    let (before, _) = ana.read("/v1/divisions").await;
    let mut conn = connect(&cluster.url).await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    let seq = publish_hastily(&mut conn).await;
    show(&ana, &before, seq).await;
    node.stop().await;
    cluster.crash_stopped(wal_writer).await;
    let found = format!("select count(*) from crewcast.events where seq = {seq} and type = 'test:hasty'");
    let found = number(&mut connect(&cluster.url).await, &found).await;
    assert_eq!(found, 1, "it was shown, so it is on disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_given_to_a_reader_survives_a_crash_however_it_was_committed() {
    let cluster = Cluster::start(true, &["wal_writer_delay = '10s'"]).await;
    survives(&cluster, "--poll=20ms", async |ana, before, _| {
        expect_hasty(&mut ana.stream_opened("rooms=topic:a", before).await).await;
    })
    .await;
    // No node looks at the log by itself: each of these has to find out for itself what is on disk.
    survives(&cluster, "--poll=1h", async |ana, before, _| {
        let (_, page) = ana.read(&format!("/v1/rooms/topic:a/events?after={before}")).await;
        assert_eq!(page["items"][0]["event"], "test:hasty", "{page}");
    })
    .await;
    survives(&cluster, "--poll=1h", async |ana, _, seq| {
        let (status, event) = ana.send(Method::GET, &format!("/v1/events/{seq}"), Value::Null).await;
        assert_eq!((status, &event["event"]), (StatusCode::OK, &json!("test:hasty")));
    })
    .await;
    survives(&cluster, "--poll=1h", async |ana, before, _| {
        let (cursor, _) = ana.read("/v1/divisions").await;
        assert_ne!(cursor, before, "the cursor claims the event");
    })
    .await;
    survives(&cluster, "--poll=1h", async |_, before, _| {
        let other = server(&cluster.url, &["--poll=1h"]).await;
        expect_hasty(&mut Client::admin(&other).stream_opened("rooms=topic:a", before).await).await;
        other.stop().await;
    })
    .await;
    cluster.stop().await;
}

/// A Postgres whose commits wait for nothing, as some run their tests: events come as soon as anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_wal_writer_that_hurries_events_come_at_once() {
    let cluster = Cluster::start(false, &["wal_writer_delay = '10s'", "synchronous_commit = 'off'"]).await;
    let node = server(&cluster.url, &["--poll=20ms"]).await;
    let mut stream = Client::admin(&node).follow("rooms=topic:a").await;
    let mut conn = connect(&cluster.url).await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    for _ in 0..100 {
        publish_hastily(&mut conn).await;
        expect_hasty(&mut stream).await;
    }
    node.stop().await;
    cluster.crash_stopped(wal_writer).await;
    cluster.stop().await;
}

/// Whoever connects with no right but to publish may not be what a server connects as; any role may have Postgres flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_role_may_have_the_log_flushed() {
    let cluster = Cluster::start(true, &["wal_level = 'minimal'", "max_wal_senders = 0"]).await;
    crewcast::app::migrate(&cluster.url.parse().unwrap()).await.unwrap();
    let mut conn = connect(&cluster.url).await;
    sql(&mut conn, "create role plain").await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    publish_hastily(&mut conn).await;
    let mut plain = own(&cluster.url).await;
    sqlx::query("set role plain").execute(&mut plain).await.unwrap();
    let behind = "select (pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn())::bigint";
    assert!(number(&mut conn, behind).await > 0, "the commit did not wait for the disk");
    crewcast::log::wal::flush(&mut plain).await.unwrap();
    assert_eq!(number(&mut conn, behind).await, 0);
    cluster.crash_stopped(wal_writer).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_on_disk_once_it_was_told_whatever_the_role_sets() {
    let cluster = Cluster::start(true, &["wal_writer_delay = '10s'", "synchronous_commit = 'off'"]).await;
    crewcast::app::migrate(&cluster.url.parse().unwrap()).await.unwrap();
    let (mut conn, mut ours) = (connect(&cluster.url).await, own(&cluster.url).await);
    let old = epoch::identity(&mut ours).await.unwrap().epoch;
    let wal_writer = stop_wal_writer(&mut conn).await;
    let new = epoch::renew(&mut ours, &old).await.unwrap();
    cluster.crash_stopped(wal_writer).await;
    assert_eq!(epoch::identity(&mut own(&cluster.url).await).await.unwrap().epoch, new);
    cluster.stop().await;
}

/// From Postgres 16 on an apply worker changes to the owner of the table and back, which undoes what its trigger has set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_apply_worker_publishes_goes_out_once_it_is_on_disk() {
    let none = folder().path().join("none");
    let newer = tokio::task::spawn_blocking(move || embedded::fetched(&none, |_| {})).await.unwrap().unwrap();
    let cluster = Cluster::start_of(Some(newer), true, &["wal_level = 'logical'", "wal_writer_delay = '10s'"]).await;
    crewcast::app::migrate(&cluster.url.parse().unwrap()).await.unwrap();
    let mut conn = connect(&cluster.url).await;
    sql(&mut conn, "create database source").await;
    let source_url = cluster.url.replacen("/crewcast?", "/source?", 1);
    let mut source = connect(&source_url).await;
    sql(&mut source, "create table orders (id int primary key)").await;
    sql(&mut source, "create publication orders for table orders").await;
    sql(&mut source, "select pg_create_logical_replication_slot('orders', 'pgoutput')").await;
    for statement in [
        "create role shop",
        "grant usage on schema crewcast to shop",
        "grant execute on function crewcast.publish to shop",
        "create table orders (id int primary key)",
        "create function publish_order() returns trigger language plpgsql as $$ begin
             perform crewcast.publish('{topic:a}', 'test:order', json_build_object('id', new.id));
             return null;
         end $$",
        "create trigger publish_order after insert on orders for each row execute function publish_order()",
        "alter table orders enable always trigger publish_order",
        "alter table orders owner to shop",
    ] {
        sql(&mut conn, statement).await;
    }
    let socket = cluster.url.split("host=").nth(1).unwrap().split('&').next().unwrap();
    let subscription = format!(
        "create subscription orders connection 'dbname=source user=postgres host={socket}' publication orders
         with (create_slot = false, slot_name = 'orders', copy_data = false)"
    );
    sql(&mut conn, &subscription).await;

    let node = server(&cluster.url, &["--poll=20ms"]).await;
    let mut stream = Client::admin(&node).follow("rooms=topic:a").await;
    sql(&mut source, "insert into orders values (1)").await;
    stream.expect("test:order").await;
    let wal_writer = stop_wal_writer(&mut conn).await;
    sql(&mut source, "insert into orders values (2)").await;
    let (_, order) = stream.expect("test:order").await;
    let shown = order["meta"]["seq"].as_i64().unwrap();
    node.stop().await;
    cluster.crash_stopped(wal_writer).await;
    // What was lost is applied again, and could get the same number: the time tells.
    let found = sqlx::query_scalar::<_, bool>(
        "select exists (select from crewcast.events where seq = $1
                        and to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') = $2)",
    );
    let at = order["meta"]["at"].as_str().unwrap();
    assert!(found.bind(shown).bind(at).fetch_one(&mut connect(&cluster.url).await).await.unwrap(), "{order}");
    cluster.stop().await;
}
