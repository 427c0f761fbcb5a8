//! What the log lets go of: positions are noted from time to time, the floor is one of them, and what the floor contains is
//! deleted.
//!
//! A position can be resumed when it includes the floor. The floor is always a noted position, a *mark*: a set of transactions
//! that was a snapshot, so that what lies below it is exactly what somebody has seen as a whole.
//!
//! # Why nothing is lost too early, and nothing is left
//!
//! 1. **Marks are a chain.** A mark is a snapshot that was taken after the one before had been read, so it includes that one
//!    (step 9 of [`crate::log`]). One that the log's own position lacks is none of this log's, and is removed. Their order is
//!    their number. The times of marks, by Postgres's clock alone, say how old they are and nothing else: a clock that is
//!    set back makes marks of the future, which are passed as soon as a later mark is old enough.
//! 2. **An event is kept its full time,** counted from its commit, however long its transaction was open: until it has
//!    committed no mark contains it, and the first one that does was noted after that.
//! 3. **The floor rises first,** in a transaction of its own. Every page of a read is judged by the floor of its own
//!    snapshot (step 10 of [`crate::log`]), and a snapshot that lacks a deleted row shows the floor that let it go.
//! 4. **Each event is deleted once.** What is to be deleted is the floor without what was deleted before, as ranges of ids.
//!    Each transaction is in exactly one such difference, also one that came late, and all of them have ended. How far the
//!    deletion has come is a number in these ranges, so none of its statements begins in rows that it deleted itself, which
//!    an open transaction of somebody else's may keep from being cleaned up.
//! 5. **Nobody waits.** A batch is a short transaction. It locks the rows that it deletes, which nobody else does, and the one
//!    of `crewcast.retention`, which the other nodes skip while it is locked. Raising the floor updates the row of
//!    `crewcast.log`; while somebody else holds that one the floor stays where it is.
//!
//! One node at a time does it, so that what it costs does not grow with their number: its *turn* ends when it has done nothing
//! for a while, by Postgres's clock. Two that take it for theirs, as after a jump of the clock, do no harm: the row's lock
//! decides.

use std::{ops::Range, time::Duration};

use sqlx::FromRow;

use super::{LogError, Snapshot, bounds, look};
use crate::db::Conn;

/// What is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// How long an event is kept after its commit.
    pub age: Duration,
    /// How many events are kept that are not too old. There may be as many more as come between two marks.
    pub events: i64,
    /// The time between two marks.
    pub every: Duration,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub struct Keeper {
    /// The node that asks.
    pub node: i64,
    /// After doing nothing for this long a node has lost its turn.
    pub lease: Duration,
}

/// What retention knows of the log, by Postgres's clock and for all nodes.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct Figures {
    /// How long ago the floor was noted, in seconds: whoever was away for less can resume.
    pub floor_age: f64,
    /// Events above the floor that are in a mark.
    pub events: i64,
    /// Events below the floor that are not deleted yet.
    pub overdue: i64,
    /// How long ago a node last took its turn, in seconds.
    pub idle: f64,
    /// Events that came between the last two marks, a second.
    pub pace: f64,
}

/// What a batch has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Events that it deleted.
    pub events: u64,
    /// Whether that was all there is to delete.
    pub is_last: bool,
}

/// How far the deletion has come.
#[derive(Debug, FromRow)]
struct Progress {
    swept: String,
    target: String,
    xact: i64,
    seq: i64,
    floor: String,
}

/// What a connection is told before it is used for retention. Plans may be made while the tables are empty, and are kept.
pub const PLANNING: &str = "set enable_seqscan = off";

/// Ranges of ids that one batch looks into.
const RANGES_MAX: usize = 100;

/// Whether it is the turn of node `$1`: nobody else has done anything for `$2` seconds. What was done in the future was not.
macro_rules! has_turn {
    () => {
        "retention.node is not distinct from $1
         or retention.at not between clock_timestamp() - make_interval(secs => $2) and clock_timestamp()"
    };
}

/// Takes the row of retention, if it is this node's turn and nobody has it. `$1`: the node, `$2`: how long a turn lasts after
/// what was done last, in seconds.
const TAKE: &str = concat!(
    "select swept, target, xact, seq, (select floor from crewcast.log) as floor from crewcast.retention where ",
    has_turn!(),
    " for update of retention skip locked"
);

/// The newest mark, if it is this node's turn and the mark was not noted less than `$3` seconds ago; a time of the future is
/// no time ago. `$1`, `$2`: as in [`TAKE`].
const NEWEST: &str = concat!(
    "select mark.nth, mark.position from crewcast.retention
     left join lateral (select * from crewcast.marks order by nth desc limit 1) as mark on true
     where (",
    has_turn!(),
    ") and (mark.at between clock_timestamp() - make_interval(secs => $3) and clock_timestamp()) is not true"
);

/// How many events transactions of these ranges have, `$3` at most. `$1`, `$2`: the ranges.
pub const COUNT: &str = "
    select count(*) from (
        select from unnest($1::bigint[], $2::bigint[]) as range (lo, hi)
        cross join lateral (select from crewcast.events where xact >= range.lo and xact < range.hi
                            order by xact, seq limit $3) as event
        limit $3) as counted";

/// The newest mark that is older than `$1` seconds or has `$2` events after it.
const PASSED: &str = "
    select nth, position, log.floor
    from crewcast.log, (
        select nth, at, position,
               sum(events) over (order by nth desc rows between unbounded preceding and 1 preceding) as after
        from crewcast.marks) as mark
    where at <= clock_timestamp() - make_interval(secs => $1) or after >= $2
    order by nth desc limit 1
    for update of log skip locked";

/// Deletes events of ended transactions, those of the lowest ids first: at most `$4`, of as many transactions at most.
/// `$1`: the transaction to begin with, `$2`: the one to end before, `$3`: the seq that the first one was deleted up to.
/// How many that were, the last one's transaction and seq; how many transactions were looked at, and the last of them.
///
/// The ordered laterals with their limits stay on the indexes in generic plans as well, and rows are found again by where
/// they lie: a join would read the whole of `event_rooms`.
pub const DELETE: &str = "
    with gone as materialized (
        select event.place, event.xact, event.seq, event.rooms
        from (select xact from crewcast.commits where xact >= $1 and xact < $2 order by xact limit $4) as ended
        cross join lateral (select ctid as place, xact, seq, rooms from crewcast.events
                            where xact = ended.xact and seq > case when ended.xact = $1 then $3 else 0 end
                            order by seq limit $4) as event
        order by ended.xact, event.seq limit $4
    ), events as (
        delete from crewcast.events where ctid = any(array(select place from gone))
    ), rooms as (
        delete from crewcast.event_rooms where ctid = any(array(
            select found.place
            from gone cross join lateral unnest(gone.rooms) as room (name)
            cross join lateral (select ctid as place from crewcast.event_rooms
                                where room = hashtextextended(room.name, 0) and xact = gone.xact and seq = gone.seq
                                limit 1) as found))
    )
    select last.events, last.xact, (select max(seq) from gone where xact = last.xact) as seq,
           ended.transactions, ended.last
    from (select count(*) as events, max(xact) as xact from gone) as last,
         (select count(*) as transactions, max(xact) as last
          from (select xact from crewcast.commits where xact >= $1 and xact < $2 order by xact limit $4) as ended) as ended";

/// Deletes the rows of transactions whose events are deleted. `$1`: the first, `$2`: the one to end before, `$3`: as many at
/// most.
pub const FORGET: &str = "
    delete from crewcast.commits where ctid = any(array(
        select ctid from crewcast.commits where xact >= $1 and xact < $2 order by xact limit $3))";

/// Notes the position of now, if it is this node's turn, the last mark is older than [`Keep::every`] and something has
/// happened since.
///
/// # Errors
/// When Postgres does not answer, or as [`look`].
pub async fn note(conn: &mut Conn, keeper: Keeper, keep: Keep) -> Result<(), LogError> {
    let newest = sqlx::query_as(NEWEST).bind(keeper.node).bind(keeper.lease.as_secs_f64());
    let newest: Option<(Option<i64>, Option<String>)> =
        newest.bind(keep.every.as_secs_f64()).fetch_optional(&mut *conn).await?;
    let Some((nth, last)) = newest else { return Ok(()) };
    let last = last.map_or(Ok(Snapshot::empty()), |position| mark(&position))?;
    // Later than the mark: of this log's marks it includes each.
    let seen = look(conn, &[]).await?;
    // It goes to the disk behind all that it was read from: where it survives a crash, so does that.
    let now = &seen.peek().snapshot;
    if !now.includes(&last) {
        return disown(conn, keeper, nth).await;
    }
    if *now == last {
        return Ok(());
    }
    let (lo, hi) = bounds(&now.minus(&last));
    let events: i64 = sqlx::query_scalar(COUNT).bind(lo).bind(hi).bind(keep.events).fetch_one(&mut *conn).await?;
    if take(conn, keeper).await?.is_none() {
        return Ok(());
    }
    // Unless another node has noted one meanwhile.
    sqlx::query(
        "insert into crewcast.marks (at, position, events)
         select clock_timestamp(), $1, $2 where (select max(nth) from crewcast.marks) is not distinct from $3",
    )
    .bind(now.to_string())
    .bind(events)
    .bind(nth)
    .execute(&mut *conn)
    .await?;
    end(conn, keeper).await
}

/// Removes a mark that is none of this log's: every later one would have to include it.
async fn disown(conn: &mut Conn, keeper: Keeper, nth: Option<i64>) -> Result<(), LogError> {
    if take(conn, keeper).await?.is_none() {
        return Ok(());
    }
    tracing::warn!(nth, "a noted position is none of this log's: it is removed");
    sqlx::query("delete from crewcast.marks where nth = $1").bind(nth).execute(&mut *conn).await?;
    end(conn, keeper).await
}

/// Raises the floor to the newest mark that is older than [`Keep::age`] or has [`Keep::events`] after it, if it is this node's
/// turn.
///
/// # Errors
/// When Postgres does not answer, or a mark is not one.
pub async fn raise(conn: &mut Conn, keeper: Keeper, keep: Keep) -> Result<(), LogError> {
    if take(conn, keeper).await?.is_none() {
        return Ok(());
    }
    let passed = sqlx::query_as(PASSED).bind(keep.age.as_secs_f64()).bind(keep.events);
    if let Some((nth, position, floor)) = passed.fetch_optional(&mut *conn).await? {
        raise_to(conn, nth, position, floor).await?;
    }
    end(conn, keeper).await
}

async fn raise_to(conn: &mut Conn, nth: i64, position: String, floor: String) -> Result<(), LogError> {
    if position == floor || !mark(&position)?.includes(&mark(&floor)?) {
        return Ok(());
    }
    sqlx::query("update crewcast.log set floor = $1").bind(position).execute(&mut *conn).await?;
    sqlx::query(
        "update crewcast.retention
         set passed = passed + (select coalesce(sum(events), 0) from crewcast.marks where nth <= $1)",
    )
    .bind(nth)
    .execute(&mut *conn)
    .await?;
    // The floor's own mark stays: a room's history begins there.
    sqlx::query("delete from crewcast.marks where nth < $1").bind(nth).execute(&mut *conn).await?;
    sqlx::query("update crewcast.marks set events = 0 where nth = $1").bind(nth).execute(conn).await?;
    Ok(())
}

/// Deletes up to `events_max` events below the floor. Nothing, when it is another node's turn.
///
/// # Errors
/// When Postgres refuses: then the batch has not happened.
pub async fn delete(conn: &mut Conn, keeper: Keeper, events_max: i64) -> Result<Option<Batch>, LogError> {
    let Some(progress) = take(conn, keeper).await? else { return Ok(None) };
    let Progress { swept, mut target, mut xact, mut seq, floor } = progress;
    if swept == target {
        if floor == target {
            conn.rollback().await?;
            return Ok(None);
        }
        (target, xact, seq) = (floor.clone(), 0, 0);
    }
    let mut events = 0;
    let mut left = from(mark(&target)?.minus(&mark(&swept)?), xact).into_iter().peekable();
    for _ in 0..RANGES_MAX {
        let Some(range) = left.peek_mut() else { break };
        let first = range.start.cast_signed();
        let part = part(conn, range, if first == xact { seq } else { 0 }, events_max).await?;
        (events, xact, seq) = (part.events, part.xact, part.seq);
        if part.xact >= range.end.cast_signed() {
            left.next();
        }
        if events > 0 {
            break;
        }
        if let Some(range) = left.peek_mut() {
            range.start = range.start.max(xact.cast_unsigned());
        }
    }
    let is_done = left.peek().is_none();
    let swept = if is_done { target.clone() } else { swept };
    sqlx::query("update crewcast.retention set swept = $1, target = $2, xact = $3, seq = $4, deleted = deleted + $5")
        .bind(&swept)
        .bind(&target)
        .bind(xact)
        .bind(seq)
        .bind(events)
        .execute(&mut *conn)
        .await?;
    end(conn, keeper).await?;
    Ok(Some(Batch { events: events.unsigned_abs(), is_last: is_done && target == floor }))
}

/// Where the deletion of a range has come to.
struct Part {
    events: i64,
    /// Every transaction below this one is done, and of this one what has at most this seq.
    xact: i64,
    seq: i64,
}

/// Deletes up to `most` events of a range of ids, the first of which was deleted up to `after`.
async fn part(conn: &mut Conn, range: &Range<u64>, after: i64, most: i64) -> Result<Part, LogError> {
    let (first, end) = (range.start.cast_signed(), range.end.cast_signed());
    type Row = (i64, Option<i64>, Option<i64>, i64, Option<i64>);
    let (events, xact, seq, transactions, last): Row =
        sqlx::query_as(DELETE).bind(first).bind(end).bind(after).bind(most).fetch_one(&mut *conn).await?;
    let part = match (xact, seq, last) {
        (Some(xact), Some(seq), _) if events == most => Part { events, xact, seq },
        (_, _, Some(last)) if transactions == most => Part { events, xact: last + 1, seq: 0 },
        _ => Part { events, xact: end, seq: 0 },
    };
    if transactions > 0 {
        sqlx::query(FORGET).bind(first).bind(part.xact).bind(most).execute(conn).await?;
    }
    Ok(part)
}

/// The ranges without what is below an id.
fn from(ranges: Vec<Range<u64>>, xact: i64) -> Vec<Range<u64>> {
    let from = xact.cast_unsigned();
    ranges.into_iter().map(|range| range.start.max(from)..range.end).filter(|range| !range.is_empty()).collect()
}

/// Begins a transaction that has the turn and its row, if that can be had at once.
async fn take(conn: &mut Conn, keeper: Keeper) -> Result<Option<Progress>, LogError> {
    conn.begin().await?;
    let progress = sqlx::query_as(TAKE).bind(keeper.node).bind(keeper.lease.as_secs_f64());
    let progress = progress.fetch_optional(&mut *conn).await?;
    if progress.is_none() {
        conn.rollback().await?;
    }
    Ok(progress)
}

/// Commits what was done in a turn, and that this node has it.
async fn end(conn: &mut Conn, keeper: Keeper) -> Result<(), LogError> {
    let taken = sqlx::query("update crewcast.retention set node = $1, at = clock_timestamp()");
    taken.bind(keeper.node).execute(&mut *conn).await?;
    Ok(conn.commit().await?)
}

/// How the log and its retention stand.
///
/// # Errors
/// When Postgres does not answer.
pub async fn figures(conn: &mut Conn) -> Result<Figures, LogError> {
    let figures = sqlx::query_as(
        "select coalesce(greatest(extract(epoch from clock_timestamp() - floor.at), 0), 0)::float8 as floor_age,
                (select coalesce(sum(events), 0) from crewcast.marks)::bigint as events,
                greatest(passed - deleted, 0) as overdue,
                case when retention.node is null then 0
                     else greatest(extract(epoch from clock_timestamp() - retention.at), 0) end::float8 as idle,
                coalesce(last.events / greatest(extract(epoch from last.at - last.before), 1), 0)::float8 as pace
         from crewcast.retention
         left join lateral (select at from crewcast.marks order by nth limit 1) as floor on true
         left join lateral (select at, events, lag(at) over (order by nth) as before
                            from crewcast.marks order by nth desc limit 1) as last on true",
    );
    Ok(figures.fetch_one(conn).await?)
}

/// The noted positions, oldest first.
///
/// # Errors
/// When Postgres does not answer.
pub async fn marks(conn: &mut Conn) -> Result<Vec<Snapshot>, LogError> {
    let marks: Vec<String> =
        sqlx::query_scalar("select position from crewcast.marks order by nth").fetch_all(conn).await?;
    marks.iter().map(|position| mark(position)).collect()
}

fn mark(position: &str) -> Result<Snapshot, LogError> {
    position.parse().map_err(|_| LogError::Broken("a mark is not a snapshot"))
}
