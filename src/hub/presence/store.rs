//! The tables of presence: each node's row, and its streams'.

use std::{sync::Arc, time::Duration};

use sqlx::FromRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    facts::{Editing, Facts, Report, Status, Who},
    leases::{Beat, Follow},
};
use crate::{
    db::{Conn, Sweep},
    ids::NodeKey,
    log::rows::is_of_a_row,
};

/// A node whose beat is older has nobody who believes in it any more.
const NODE_KEPT: Duration = Duration::from_secs(300);

/// Streams that one statement writes.
const STREAMS_MAX: usize = 5000;

/// Writes a node's row. `$1`: its key, `$2`: its name, `$3`: its beat, `$4`: its last batch, `$5`: whether it ends. Whether
/// there was none: then its streams' rows are gone, too. And the time, in microseconds.
pub const NODE: &str = "
    insert into crewcast.nodes as node (key, name, beat, batch, ended) values ($1, $2, $3, $4, $5)
    on conflict (key) do update
        set beat = excluded.beat, batch = excluded.batch, ended = excluded.ended, beat_at = now()
    returning xmax = 0, (extract(epoch from clock_timestamp()) * 1000000)::bigint";

/// Writes streams of a node. `$1`: the node, `$2`: the batch, then what is known of each. No room's name has a comma.
pub const PUT: &str = "
    insert into crewcast.presence
        (stream, node, batch, sub, name, avatar_url, rooms, is_idle, stamp, viewing, editing_room, editing_field, ends_at)
    select stream, $1, $2, sub, name, avatar_url, string_to_array(rooms, ','), is_idle, stamp, viewing, editing_room,
           editing_field, now() + make_interval(secs => grace)
    from unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bool[], $9::bigint[], $10::text[],
                $11::text[], $12::text[], $13::float8[])
        as facts (stream, sub, name, avatar_url, rooms, is_idle, stamp, viewing, editing_room, editing_field, grace)
    on conflict (stream) do update
        set batch = excluded.batch, sub = excluded.sub, name = excluded.name, avatar_url = excluded.avatar_url,
            rooms = excluded.rooms, is_idle = excluded.is_idle, stamp = excluded.stamp, viewing = excluded.viewing,
            editing_room = excluded.editing_room, editing_field = excluded.editing_field, ends_at = excluded.ends_at";

/// Streams of a node that count no more. `$1`: the node, `$2`: the batch, `$3`: the streams. One that was never written is
/// written so: an update would have to be kept from reading the whole table, with generic plans.
pub const GONE: &str = "
    insert into crewcast.presence (stream, node, batch, sub, rooms, is_idle, ends_at)
    select stream, $1, $2, '', '{}', true, now() from unnest($3::uuid[]) as gone (stream)
    on conflict (stream) do update set batch = excluded.batch, ends_at = excluded.ends_at";

/// No stream of a node counts any more that is not said to. `$1`: the node, `$2`: the batch.
pub const END: &str = "
    update crewcast.presence set batch = $2, ends_at = now() where node = $1 and ends_at is null";

/// Deletes a node's streams that have counted no more for long. `$1`: the node, `$2`: for so many seconds.
pub const FORGET: &str = "
    delete from crewcast.presence where node = $1 and ends_at < now() - make_interval(secs => $2)";

/// The rows of all other nodes, and how old their beats are by the one clock that all nodes have. `$1`: this one.
pub const NODES: &str = "
    select key, beat, batch, ended, extract(epoch from now() - beat_at)::float8 from crewcast.nodes where key <> $1";

macro_rules! row_columns {
    () => {
        "select stream, batch, sub, name, avatar_url, rooms, is_idle, stamp, viewing, editing_room, editing_field,
                extract(epoch from ends_at - now())::float8 as left"
    };
}

/// A node's streams that were written after a batch. `$1`: the node, `$2`: the batch. What is left of a grace is computed
/// by the one clock that both nodes have.
pub const ROWS: &str = concat!(row_columns!(), " from crewcast.presence where node = $1 and batch > $2");

/// Which streams those are.
const KEYS: &str = "select stream from crewcast.presence where node = $1 and batch > $2";

/// One of them. `$1`: the stream.
const ROW: &str = concat!(row_columns!(), " from crewcast.presence where stream = $1");

/// Deletes dead nodes, and by that all that they wrote. There are few: they are all looked at.
pub const SWEEP: &str = "
    delete from crewcast.nodes
    where key = any(array(select key from crewcast.nodes where beat_at < now() - make_interval(secs => $1)
                          limit $2 for update skip locked))";

/// What is swept now and then.
pub fn sweep(lease: Duration) -> Sweep {
    Sweep { statement: SWEEP, age: NODE_KEPT.max(lease * 3) }
}

/// What a node writes at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Streams that count, with what is left of their grace if they have closed.
    pub(super) put: Vec<(Uuid, Facts)>,
    /// Streams that count no more.
    pub(super) gone: Vec<Uuid>,
}

impl Batch {
    /// Whether it says anything that the others must read.
    pub(super) fn is_news(&self) -> bool {
        !(self.put.is_empty() && self.gone.is_empty())
    }
}

/// Writes a node's own row. Whether it is new, and Postgres's time in microseconds.
pub(super) async fn write_node(conn: &mut Conn, beat: Beat, name: &str) -> sqlx::Result<(bool, i64)> {
    let Beat { node, beat, batch, ended, .. } = beat;
    sqlx::query_as(NODE).bind(node.to_sql()).bind(name).bind(beat).bind(batch).bind(ended).fetch_one(conn).await
}

/// No stream of a node is open any more.
pub(super) async fn end(conn: &mut Conn, node: NodeKey, nth: i64) -> sqlx::Result<()> {
    sqlx::query(END).bind(node.to_sql()).bind(nth).execute(conn).await.map(|_| ())
}

/// Deletes a node's streams that have counted no more for so long.
pub(super) async fn forget(conn: &mut Conn, node: NodeKey, kept: Duration) -> sqlx::Result<()> {
    sqlx::query(FORGET).bind(node.to_sql()).bind(kept.as_secs_f64()).execute(conn).await.map(|_| ())
}

/// Writes a batch of a node. The statements that it took.
pub(super) async fn write(conn: &mut Conn, node: NodeKey, nth: i64, batch: &Batch) -> sqlx::Result<u64> {
    let mut statements = 0;
    let now = Instant::now();
    for streams in batch.put.chunks(STREAMS_MAX) {
        put(&mut *conn, node, nth, streams, now).await?;
        statements += 1;
    }
    if !batch.gone.is_empty() {
        sqlx::query(GONE).bind(node.to_sql()).bind(nth).bind(&batch.gone).execute(&mut *conn).await?;
        statements += 1;
    }
    Ok(statements)
}

async fn put(conn: &mut Conn, node: NodeKey, nth: i64, streams: &[(Uuid, Facts)], now: Instant) -> sqlx::Result<()> {
    let of = |get: fn(&Facts) -> Option<&str>| streams.iter().map(move |(_, facts)| get(facts)).collect::<Vec<_>>();
    let rooms = streams.iter().map(|(_, facts)| facts.rooms.join(","));
    let grace = |facts: &Facts| facts.ends.map(|ends| (ends - now).as_secs_f64());
    let put = sqlx::query(PUT)
        .bind(node.to_sql())
        .bind(nth)
        .bind(streams.iter().map(|(stream, _)| *stream).collect::<Vec<_>>())
        .bind(of(|facts| Some(&facts.who.sub)))
        .bind(of(|facts| facts.who.name.as_deref()))
        .bind(of(|facts| facts.who.avatar_url.as_deref()))
        .bind(rooms.collect::<Vec<_>>())
        .bind(streams.iter().map(|(_, facts)| facts.status == Status::Idle).collect::<Vec<_>>())
        .bind(streams.iter().map(|(_, facts)| facts.report.as_ref().map(|report| report.stamp)).collect::<Vec<_>>())
        .bind(of(|facts| facts.report.as_ref()?.viewing.as_deref()))
        .bind(of(|facts| Some(&facts.report.as_ref()?.editing.as_ref()?.room)))
        .bind(of(|facts| Some(&facts.report.as_ref()?.editing.as_ref()?.field)))
        .bind(streams.iter().map(|(_, facts)| grace(facts)).collect::<Vec<_>>());
    put.execute(conn).await.map(|_| ())
}

/// The rows of all nodes but this.
pub(super) async fn nodes(conn: &mut Conn, node: NodeKey) -> sqlx::Result<Vec<Beat>> {
    let rows: Vec<(i64, i64, i64, bool, f64)> = sqlx::query_as(NODES).bind(node.to_sql()).fetch_all(conn).await?;
    let beat = |(key, beat, batch, ended, age)| {
        let age = Duration::try_from_secs_f64(age).unwrap_or_default();
        Some(Beat { node: NodeKey::from_sql(key)?, beat, batch, ended, age })
    };
    Ok(rows.into_iter().filter_map(beat).collect())
}

/// A stream's row.
#[derive(Debug, FromRow)]
pub(super) struct Row {
    pub(super) stream: Uuid,
    pub(super) batch: i64,
    sub: String,
    name: Option<String>,
    avatar_url: Option<String>,
    rooms: Vec<String>,
    is_idle: bool,
    pub(super) stamp: Option<i64>,
    viewing: Option<String>,
    editing_room: Option<String>,
    editing_field: Option<String>,
    /// Seconds for which it still counts.
    left: Option<f64>,
}

impl Row {
    /// What it says, at this moment.
    pub(super) fn facts(self, now: Instant) -> (Uuid, Option<Facts>) {
        let left = self.left.map(|left| Duration::try_from_secs_f64(left).unwrap_or_default());
        if left.is_some_and(|left| left.is_zero()) {
            return (self.stream, None);
        }
        let editing = self.editing_room.zip(self.editing_field);
        let editing = editing.map(|(room, field)| Editing { room: room.into(), field: field.into() });
        let viewing = self.viewing.map(Into::into);
        let facts = Facts {
            who: Arc::new(Who::new(&self.sub, self.name.as_deref(), self.avatar_url.as_deref())),
            rooms: self.rooms.into_iter().map(Into::into).collect(),
            status: if self.is_idle { Status::Idle } else { Status::Online },
            report: self.stamp.map(|stamp| Arc::new(Report { stamp, viewing, editing })),
            ends: left.map(|left| now + left),
        };
        (self.stream, Some(facts))
    }
}

/// A node's streams, all or those of its newer batches, and how many of them cannot be read: those count no more.
pub(super) async fn rows(conn: &mut Conn, node: NodeKey, follow: Follow) -> sqlx::Result<(Vec<Row>, u64)> {
    let since = match follow {
        Follow::Since(batch) => batch,
        Follow::Whole => -1,
    };
    match sqlx::query_as(ROWS).bind(node.to_sql()).bind(since).fetch_all(&mut *conn).await {
        Err(error) if is_of_a_row(&error) => one_by_one(conn, node, since).await,
        rows => Ok((rows?, 0)),
    }
}

async fn one_by_one(conn: &mut Conn, node: NodeKey, since: i64) -> sqlx::Result<(Vec<Row>, u64)> {
    let streams: Vec<Uuid> = sqlx::query_scalar(KEYS).bind(node.to_sql()).bind(since).fetch_all(&mut *conn).await?;
    let (mut rows, mut unreadable) = (Vec::new(), 0);
    for stream in streams {
        match sqlx::query_as(ROW).bind(stream).fetch_optional(&mut *conn).await {
            Err(error) if is_of_a_row(&error) => {
                tracing::debug!(%stream, %error, "a stream's row cannot be read");
                unreadable += 1;
            }
            row => rows.extend(row?),
        }
    }
    Ok((rows, unreadable))
}
