//! Starting on a database that somebody else looks after.

use crewcast::app::Server;

use crate::support::{Client, config, connect, database, server, sql};

#[tokio::test]
async fn a_role_that_may_only_use_the_schema_serves_once_it_is_up_to_date() {
    let url = database().await;
    let mut owner = connect(&url).await;
    sql(&mut owner, "create role plain login").await;
    let denied = url.replace("user=postgres", "user=plain");
    assert!(Server::start(config(&denied, &[]), |_| {}).await.is_err(), "it may not even look into the schema");
    sql(&mut owner, "grant usage on schema crewcast to plain").await;
    for kind in ["tables", "sequences", "functions"] {
        sql(&mut owner, &format!("grant all on all {kind} in schema crewcast to plain")).await;
    }
    let plain = server(&denied, &[]).await;
    let ana = Client::admin(&plain);
    let cursor = ana.read("/v1/projects").await.0;
    let id = ana.project("north").await;
    let mut stream = ana.stream("rooms=division:north", &cursor).await;
    stream.expect("stream:open").await;
    assert_eq!(stream.expect("project:created").await.1["id"], id.as_str());
    plain.stop().await;
}
