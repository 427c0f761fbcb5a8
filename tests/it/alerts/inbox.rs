//! Inboxes: what is in them, and what leaves them.

use crewcast::{auth::Role, domain::alerts::AlertRetention};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{acknowledge, fill, inbox, member, raise};
use crate::support::{Client, connect, database, number, server, sql, token};

#[tokio::test]
async fn an_inbox_holds_what_one_may_read_now_since_one_was_first_seen() {
    let server = server(&database().await, &["--retention=1h"]).await;
    let (ana, max) = (Client::admin(&server), Client::new(&server, &token("max", &[Role::Manager])));
    let (eva, nora) = (member(&server, "eva", &[]), member(&server, "nora", &["north"]));
    assert_eq!(inbox(&max).await.1, 0);
    raise(&max, "before", &["company", "user:eva"]).await;
    for (client, unread) in [(&eva, 0), (&nora, 0), (&ana, 0), (&max, 1)] {
        assert_eq!(inbox(client).await.1, unread, "only who raised it was seen before");
    }
    let project = ana.project("north").await;
    let of_project = format!("project:{project}");
    raise(&max, "all", &["company"]).await;
    raise(&max, "north", &["division:north"]).await;
    raise(&max, "project", &[&of_project, "topic:x"]).await;
    raise(&max, "eva", &["user:eva"]).await;
    raise(&max, "ana", &["user:ana"]).await;
    let titles = |wanted: &[&str]| {
        let titles: Vec<String> = wanted.iter().map(|title| (*title).to_owned()).collect();
        (titles, wanted.len() as i64)
    };
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    assert_eq!(inbox(&nora).await, titles(&["project", "north", "all"]));
    assert_eq!(inbox(&max).await, titles(&["project", "north", "all", "before"]));
    assert_eq!(inbox(&ana).await, titles(&["ana", "project", "north", "all"]), "nobody else's, not even for an admin");
    let path = format!("/v1/projects/{project}/members/eva");
    ana.send(Method::PUT, &path, json!({ "role": "viewer" })).await;
    assert_eq!(inbox(&eva).await, titles(&["eva", "project", "all"]), "also what was raised before they joined");
    ana.send(Method::DELETE, &path, Value::Null).await;
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    ana.send(Method::PUT, &path, json!({ "role": "viewer" })).await;
    ana.send(Method::DELETE, &format!("/v1/projects/{project}"), Value::Null).await;
    assert_eq!(
        inbox(&eva).await,
        titles(&["eva", "project", "all"]),
        "a deleted project keeps its readers for a while"
    );
    assert_eq!(inbox(&nora).await, titles(&["project", "north", "all"]));
    let mut conn = server.app.db.acquire().await.unwrap();
    let age = "update crewcast.projects set deleted_at = deleted_at - interval '2 hours'";
    sqlx::query(age).execute(&mut conn).await.unwrap();
    assert_eq!(inbox(&eva).await, titles(&["eva", "all"]));
    drop(conn);
    server.stop().await;
}

#[tokio::test]
async fn an_inbox_opens_behind_the_last_alert_whatever_the_clocks_say() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let max = Client::new(&server, &token("max", &[Role::Manager]));
    raise(&max, "before", &["company"]).await;
    // Postgres's clock was ahead, and somebody set it right.
    sql(&mut connect(&url).await, "update crewcast.alerts set created_at = created_at + interval '1 hour'").await;
    let eva = member(&server, "eva", &[]);
    assert_eq!(inbox(&eva).await.1, 0);
    raise(&max, "after", &["company"]).await;
    assert_eq!(inbox(&eva).await, (vec!["after".to_owned()], 1));
    server.stop().await;
}

#[tokio::test]
async fn an_inbox_is_opened_between_alerts_and_not_beside_one_that_is_under_way() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, max) = (member(&server, "eva", &[]), Client::new(&server, &token("max", &[Role::Manager])));
    inbox(&max).await;
    let (mut raiser, mut watcher) = (connect(&url).await, connect(&url).await);
    sql(&mut raiser, "begin").await;
    sql(&mut raiser, "lock table crewcast.alert_turns in row exclusive mode").await;
    fill(&mut raiser, 1, "'company'").await;
    raise(&max, "first", &["company"]).await;
    // The alert that is under way has a lower number than the last one before eva was seen.
    let opening = tokio::spawn({
        let eva = eva.clone();
        async move { eva.read("/v1/alerts").await }
    });
    let waiting = "select count(*) from pg_locks where relation = 'crewcast.alert_turns'::regclass and not granted";
    while !opening.is_finished() && number(&mut watcher, waiting).await == 0 {
        tokio::task::yield_now().await;
    }
    let data = "json_build_object('id', gen_random_uuid())";
    sql(&mut raiser, &format!("select crewcast.append('{{company}}', 'alert:new', {data}, null, null)")).await;
    sql(&mut raiser, "commit").await;
    let (cursor, read) = opening.await.unwrap();
    let mut stream = eva.stream("types=alert,test", &cursor).await;
    stream.expect("stream:open").await;
    raise(&max, "second", &["company"]).await;
    let end = json!({ "type": "test:end", "data": {} });
    Client::admin(&server).send(Method::POST, "/v1/rooms/company/events", end).await;
    let mut counted = read["unread"].as_i64().unwrap();
    while stream.next().await.unwrap().event == "alert:new" {
        counted += 1;
    }
    assert_eq!((counted, inbox(&eva).await), (1, (vec!["second".to_owned()], 1)));
    server.stop().await;
}

#[tokio::test]
async fn what_is_acknowledged_leaves_the_inbox_and_the_persons_other_tabs_follow() {
    let url = database().await;
    let nodes = [server(&url, &[]).await, server(&url, &[]).await];
    let max = Client::new(&nodes[0], &token("max", &[Role::Manager]));
    let (eva, there) = (member(&nodes[0], "eva", &[]), member(&nodes[1], "eva", &[]));
    let project = max.project("north").await;
    let secret = raise(&max, "secret", &["division:north"]).await;
    let early = raise(&max, "early", &["company"]).await;
    assert_eq!(inbox(&eva).await, (vec![], 0));
    let later = raise(&max, "project", &[&format!("project:{project}"), "company"]).await;
    let mut ids = Vec::new();
    for title in ["a", "b", "c"] {
        ids.push(raise(&max, title, &["company", "user:eva"]).await);
    }
    let (mut tab, mut other) = (there.follow("").await, max.follow("").await);
    for _ in 0..2 {
        assert_eq!(acknowledge(&eva, &ids[1]).await, (StatusCode::OK, json!({ "unread": 3 })));
    }
    let (_, told) = tab.expect("alert:acknowledged").await;
    assert_eq!((&told["alertIds"], &told["unread"], &told["meta"]["rooms"]), (&json!([ids[1]]), &json!(3), &json!([])));
    for not_readable in [secret.as_str(), "0192f0c1-2b7a-7cc0-8a2e-0123456789ab"] {
        assert_eq!(acknowledge(&eva, not_readable).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(acknowledge(&eva, &early).await, (StatusCode::OK, json!({ "unread": 3 })), "it never was in the inbox");
    assert_eq!(tab.expect("alert:acknowledged").await.1["alertIds"], json!([early]));
    assert_eq!(inbox(&there).await, (["c", "a", "project"].map(str::to_owned).into(), 3));
    for _ in 0..2 {
        assert_eq!(acknowledge(&there, "all").await, (StatusCode::OK, json!({ "unread": 0 })));
    }
    let (_, told) = tab.expect("alert:acknowledged").await;
    assert_eq!((&told["alertIds"], &told["unread"]), (&json!([later, ids[0], ids[2]]), &json!(0)));
    // What was acknowledged by one room is by all of them, also those that one may join only later.
    max.send(Method::PUT, &format!("/v1/projects/{project}/members/eva"), json!({ "role": "viewer" })).await;
    assert_eq!(tab.expect("membership:changed").await.1["userId"], "eva");
    assert_eq!(inbox(&eva).await, (vec![], 0));
    raise(&max, "d", &["company"]).await;
    assert_eq!(inbox(&eva).await, (vec!["d".to_owned()], 1));
    assert_eq!(other.expect("alert:new").await.1["title"], "d", "an acknowledgement is one's own");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn many_alerts_are_acknowledged_at_once_in_events_of_five_hundred() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, mut conn) = (member(&server, "eva", &[]), connect(&url).await);
    assert_eq!(inbox(&eva).await, (vec![], 0));
    fill(&mut conn, 1201, "'company'").await;
    let mut tab = eva.follow("").await;
    let (_, page) = eva.read("/v1/alerts?limit=2").await;
    assert_eq!((&page["unread"], &page["items"][0]["title"]), (&json!(1201), &json!("1201")));
    let (_, next) = eva.read(&format!("/v1/alerts?limit=2&after={}", page["nextCursor"].as_str().unwrap())).await;
    assert_eq!((&next["unread"], &next["items"][0]["title"]), (&json!(1201), &json!("1199")));
    assert_eq!(eva.send(Method::GET, "/v1/alerts?after=x", Value::Null).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(acknowledge(&eva, "all").await, (StatusCode::OK, json!({ "unread": 0 })));
    for expected in [500, 500, 201] {
        let (_, told) = tab.expect("alert:acknowledged").await;
        assert_eq!((told["alertIds"].as_array().unwrap().len(), &told["unread"]), (expected, &json!(0)));
    }
    server.stop().await;
}

#[tokio::test]
async fn alerts_go_when_their_time_has_passed_and_what_was_noted_of_them_with_them() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let (eva, mut conn) = (member(&server, "eva", &[]), connect(&url).await);
    let max = Client::new(&server, &token("max", &[Role::Manager]));
    inbox(&eva).await;
    fill(&mut conn, 12_000, "'company'").await;
    let id: String =
        sqlx::query_scalar("select id::text from crewcast.alerts limit 1").fetch_one(&mut conn).await.unwrap();
    acknowledge(&eva, &id).await;
    sql(&mut conn, "update crewcast.alerts set created_at = now() - interval '2 hours'").await;
    raise(&max, "young", &["company"]).await;
    assert_eq!(inbox(&eva).await.1, 12_000);
    for sweep in AlertRetention(std::time::Duration::from_secs(3600)).sweeps() {
        sweep.all(&server.app.db).await.unwrap();
        let (titles, unread) = inbox(&eva).await;
        assert_eq!((titles, unread), (vec!["young".to_owned()], 1));
    }
    let left = "select (select count(*) from crewcast.acknowledgements) + (select count(*) from crewcast.unread)
                     + (select count(*) from crewcast.sorted) + (select count(*) from crewcast.alert_rooms)";
    assert_eq!(number(&mut conn, left).await, 2, "the young alert's rooms");
    assert_eq!(acknowledge(&eva, &id).await.0, StatusCode::NOT_FOUND);
    server.stop().await;
}
