//! Statements whose plans are made once and kept, as a server's are: they must stay on indexes whatever the tables grow to.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::sql;

/// A statement with values for it.
pub struct Statement {
    text: &'static str,
    types: &'static str,
    values: String,
    /// The rows that it gives, if that is to be looked at.
    rows: Option<i64>,
    /// Whether it may read a table from end to end.
    reads_all: bool,
    /// It touches fewer blocks.
    blocks: i64,
}

impl Statement {
    pub fn new(text: &'static str, types: &'static str, values: impl Into<String>) -> Self {
        Self { text, types, values: values.into(), rows: None, reads_all: false, blocks: 200 }
    }

    pub fn gives(self, rows: i64) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// One that has much to do touches more blocks than others may.
    pub fn within(self, blocks: i64) -> Self {
        Self { blocks, ..self }
    }

    /// Of a table that is small.
    pub fn may_read_all(self) -> Self {
        Self { reads_all: true, ..self }
    }
}

/// Plans these while the tables are as they are, as a server's first ones are.
pub async fn prepare(conn: &mut PgConnection, statements: &[Statement]) {
    sql(conn, "set plan_cache_mode = force_generic_plan").await;
    for (nth, Statement { text, types, values, .. }) in statements.iter().enumerate() {
        sql(conn, &format!("prepare s{nth} ({types}) as {text}")).await;
        sql(conn, "begin").await;
        sql(conn, &format!("explain analyze execute s{nth} ({values})")).await;
        sql(conn, "rollback").await;
    }
}

/// Runs them in the tables as they are, before and after Postgres has looked at those.
pub async fn stay_on_indexes(conn: &mut PgConnection, statements: &[Statement], tables: &str) {
    for analyzed in [false, true] {
        if analyzed {
            sql(conn, &format!("analyze {tables}")).await;
        }
        for (nth, statement) in statements.iter().enumerate() {
            sql(conn, "begin").await;
            let explain = format!("explain (analyze, buffers, format json) execute s{nth} ({})", statement.values);
            let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut *conn).await.unwrap();
            sql(conn, "rollback").await;
            stays_on_indexes(statement, &plan[0]);
        }
    }
}

fn stays_on_indexes(Statement { text, rows, reads_all, blocks: most, .. }: &Statement, plan: &Value) {
    let root = &plan["Plan"];
    if let Some(rows) = rows {
        assert_eq!(root["Actual Rows"], *rows, "{text} {root:#}");
    }
    let blocks = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| root[name].as_i64().unwrap());
    let blocks = blocks[0] + blocks[1];
    println!("{blocks} blocks, {} ms", plan["Execution Time"]);
    let is_whole = root.to_string().contains("Seq Scan") && !reads_all;
    assert!(blocks < *most && !is_whole, "{blocks} {text}\n{root:#}");
}
