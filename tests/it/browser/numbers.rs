//! Numbers in a room, published without a pause.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::support::{connect, number, sql};

/// The room.
pub const ROOM: &str = "topic:numbers";

/// How often some are published.
const EVERY: Duration = Duration::from_millis(20);

/// Somebody who publishes `test:n` with 1, 2, 3 and so on, and goes on when Postgres was away.
pub struct Numbers {
    url: String,
    enough: CancellationToken,
    publishing: JoinHandle<i64>,
}

impl Numbers {
    pub fn begin(url: &str) -> Self {
        let enough = CancellationToken::new();
        let publishing = tokio::spawn(publish(url.to_owned(), enough.clone()));
        Self { url: url.to_owned(), enough, publishing }
    }

    /// Publishes no more, and after the last number a `test:end`. How many there are.
    pub async fn end(self) -> i64 {
        self.enough.cancel();
        let last = self.publishing.await.unwrap();
        sql(&mut connect(&self.url).await, &format!("select crewcast.publish('{{{ROOM}}}', 'test:end', '{{}}')")).await;
        last
    }
}

async fn publish(url: String, enough: CancellationToken) -> i64 {
    let mut beat = interval(EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut conn, mut last) = (None, 0);
    while !enough.is_cancelled() {
        beat.tick().await;
        let published = match conn.take() {
            Some(conn) => more(conn, last).await,
            None => resume(&url).await,
        };
        if let Ok((open, now)) = published {
            (conn, last) = (Some(open), now);
        }
    }
    last
}

/// Whoever loses the connection does not know whether the last ones have committed. The log does.
async fn resume(url: &str) -> sqlx::Result<(PgConnection, i64)> {
    let mut conn = PgConnection::connect(url).await?;
    let last = "select coalesce(max((data->>'n')::bigint), 0) from crewcast.events where type = 'test:n'";
    let last = sqlx::query_scalar(last).fetch_one(&mut conn).await?;
    Ok((conn, last))
}

/// One to three numbers, in a transaction.
async fn more(mut conn: PgConnection, last: i64) -> sqlx::Result<(PgConnection, i64)> {
    let now = last + 1 + last % 3;
    let publish = format!("crewcast.publish('{{{ROOM}}}', 'test:n', json_build_object('n', n))");
    let statement = format!("select count({publish}) from generate_series({}, {now}) n", last + 1);
    sqlx::query(AssertSqlSafe(statement)).execute(&mut conn).await?;
    Ok((conn, now))
}

/// How many have been published so far.
pub async fn published(conn: &mut PgConnection) -> i64 {
    number(conn, "select count(*) from crewcast.events where type = 'test:n'").await
}
