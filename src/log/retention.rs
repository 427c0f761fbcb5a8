//! What the log lets go of: positions are noted from time to time, and the floor is one of them.
//!
//! A position can be resumed when it includes the floor. The floor is always a noted position: a set of transactions
//! that was a snapshot, so that what lies below it is exactly what somebody has seen as a whole.

use crate::db::Conn;
use std::time::Duration;

use super::{LogError, Position, Snapshot};

/// Notes a position, unless one was noted less than `every` ago, and raises the floor to the newest one that is older
/// than `retention`. `events` is how many were routed since the position noted before. Returns whether it was noted.
///
/// # Errors
/// When Postgres does not answer.
pub async fn note(
    conn: &mut Conn,
    position: &Position,
    events: i64,
    every: Duration,
    retention: Duration,
) -> Result<bool, LogError> {
    // The epoch decides once more: a position of before a restore must not be noted after it.
    let noted = sqlx::query(
        "insert into crewcast.marks (at, position, events)
         select clock_timestamp(), $1, $2 from crewcast.log
         where log.epoch = $3
           and not exists (select from crewcast.marks where at > clock_timestamp() - make_interval(secs => $4))",
    )
    .bind(position.reach().to_string())
    .bind(events)
    .bind(position.epoch().as_str())
    .bind(every.as_secs_f64())
    .execute(&mut *conn)
    .await?
    .rows_affected()
        > 0;
    sqlx::query(
        "update crewcast.log set floor = mark.position
         from (select position from crewcast.marks where at < clock_timestamp() - make_interval(secs => $1)
               order by at desc limit 1) as mark
         where log.floor <> mark.position",
    )
    .bind(retention.as_secs_f64())
    .execute(&mut *conn)
    .await?;
    // The floor's own mark stays: a room's history begins there.
    sqlx::query(
        "delete from crewcast.marks
         where at < (select max(at) from crewcast.marks where at < clock_timestamp() - make_interval(secs => $1))",
    )
    .bind(retention.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(noted)
}

/// The noted positions, oldest first.
///
/// # Errors
/// When Postgres does not answer.
pub async fn marks(conn: &mut Conn) -> Result<Vec<Snapshot>, LogError> {
    let marks: Vec<String> =
        sqlx::query_scalar("select position from crewcast.marks order by at").fetch_all(conn).await?;
    marks.iter().map(|mark| mark.parse().map_err(|_| LogError::Broken("a mark is not a snapshot"))).collect()
}
