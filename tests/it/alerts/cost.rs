//! What an inbox costs, with generic plans.

use std::collections::BTreeSet;

use crewcast::domain::alerts::{COUNT, PAGE, SORT};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{fill, inbox, member};
use crate::support::{connect, database, server, sql};

#[tokio::test]
async fn an_inbox_costs_what_is_unread_and_never_a_walk_through_all_alerts() {
    let url = database().await;
    let server = server(&url, &[]).await;
    let eva = member(&server, "eva", &["north"]);
    inbox(&eva).await;
    let mut conn = connect(&url).await;
    // A project in ten is eva's; most alerts go to everybody.
    sql(&mut conn, "insert into crewcast.divisions values ('north', 'N'), ('south', 'S')").await;
    sql(
        &mut conn,
        "insert into crewcast.projects (id, name, division, status, notes)
         select gen_random_uuid(), 'x', case when n % 10 = 0 then 'north' else 'south' end, 'planned', ''
         from generate_series(1, 2000) n",
    )
    .await;
    let room = "case when n % 5 > 0 then 'company' when n % 2 = 0 then 'division:north' else 'division:south' end";
    fill(&mut conn, 100_000, room).await;
    // The person has acknowledged one by one all but ten, which lie anywhere.
    sql(
        &mut conn,
        "insert into crewcast.acknowledgements select 'eva', number from crewcast.alerts where number % 10000 <> 7",
    )
    .await;
    // Others have, too: the statistics must not be one person's.
    sql(
        &mut conn,
        "insert into crewcast.acknowledgements
         select 'person' || n, number from generate_series(1, 20) n, crewcast.alerts where number % 20 = n % 20",
    )
    .await;
    for statement in [
        "insert into crewcast.unread select 'person' || n % 20, 'company', n from generate_series(1, 10000) n",
        "insert into crewcast.sorted select 'person' || n, 'company', 100000 from generate_series(1, 20) n",
        "vacuum analyze",
    ] {
        sql(&mut conn, statement).await;
    }
    // As the service's own connections are, but for the plans.
    sql(&mut conn, "set jit = off").await;
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    let all = Explained::of(&mut conn, COUNT, "").await;
    all.assert_on_indexes();
    Explained::of(&mut conn, PAGE, ", 9223372036854775807, 51").await.assert_on_indexes();
    let sorting = Explained::of(&mut conn, SORT, "").await;
    sorting.assert_on_indexes();
    for (statement, rest) in [(COUNT, ""), (PAGE, ", 9223372036854775807, 51")] {
        let explained = Explained::of(&mut conn, statement, rest).await;
        explained.assert_on_indexes();
        assert!(explained.blocks < 2500, "{} blocks\n{:#}", explained.blocks, explained.plan);
        assert!(explained.blocks * 20 < all.blocks, "{} of {} blocks", explained.blocks, all.blocks);
    }
    assert_eq!(inbox(&eva).await.1, 10);
    let mut conn = server.app.db.acquire().await.unwrap();
    let settings = "select current_setting('jit'), current_setting('idle_in_transaction_session_timeout')";
    let settings: (String, String) = sqlx::query_as(settings).fetch_one(&mut conn).await.unwrap();
    assert_eq!(settings, ("off".to_owned(), "1min".to_owned()));
    drop(conn);
    server.stop().await;
}

/// How a statement about eva's inbox was run.
struct Explained {
    plan: Value,
    blocks: i64,
}

impl Explained {
    async fn of(conn: &mut PgConnection, statement: &str, rest: &str) -> Self {
        let types = if rest.is_empty() { "" } else { ", bigint, bigint" };
        let name = format!("inbox{}", uuid::Uuid::new_v4().simple());
        let prepare = format!("prepare {name} (text, text[], text[], float8{types}) as {statement}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *conn).await.unwrap();
        let call = format!("{name}('eva', '{{user:eva,company,division:north}}', '{{north}}', 3600{rest})");
        let explain = format!("explain (analyze, buffers, format json) execute {call}");
        let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *conn).await.unwrap();
        let plan: Value = sqlx::Row::get(&rows[0], 0);
        let blocks = |name: &str| plan[0]["Plan"][name].as_i64().unwrap();
        Self { blocks: blocks("Shared Hit Blocks") + blocks("Shared Read Blocks"), plan }
    }

    fn assert_on_indexes(&self) {
        fn scanned(plan: &Value, found: &mut BTreeSet<String>) {
            if plan["Node Type"] == "Seq Scan" {
                found.insert(plan["Relation Name"].as_str().unwrap().to_owned());
            }
            plan["Plans"].as_array().into_iter().flatten().for_each(|plan| scanned(plan, found));
        }
        let mut found = BTreeSet::new();
        scanned(&self.plan[0]["Plan"], &mut found);
        for table in ["alerts", "alert_rooms", "acknowledgements", "unread"] {
            assert!(!found.contains(table), "{table} is walked\n{:#}", self.plan);
        }
    }
}
