//! The events of rooms that have too many of them to know all their numbers at once.
//!
//! The index of the rooms' events is in the order of transactions, and what is read goes out in the order of numbers. So
//! the next numbers of a room may stand anywhere in the index, and to look for them again for each part of a long read
//! costs the square of it. Instead the index is gone through once and divided into strips of neighbours, and of each strip
//! is kept where it lies and what its lowest number is: some bytes for some thousand events. As numbers and transactions
//! are both handed out in the course of time, few strips overlap. Each is then read when the [merge](super::merge) gets
//! there: three times through the index in all, however much that is.

use sqlx::{FromRow, postgres::PgRow};

use super::merge::Question;
use crate::db::Conn;

/// Events of a strip.
pub(super) const STRIP_EVENTS: i64 = 4096;

/// The strips of some rooms. `$1`: ranges' lower ends, `$2`: upper ends, `$3`: rooms, `$4`: after, `$5`: events of a strip, `$6`:
/// events of a room and range at most: the order and a limit keep it on the index in generic plans as well.
pub const STRIPS: &str = "
    select log.epoch, log.floor, strip.*
    from crewcast.log
    left join (select named.hash as room, part.*
               from unnest($1::bigint[], $2::bigint[]) as range (lo, hi)
               cross join (select distinct hashtextextended(name, 0) as hash from unnest($3::text[]) as name) as named
               cross join lateral (select min(array[key.xact, key.seq]) as first, count(*) as events,
                                          min(key.seq) filter (where key.seq > $4) as least
                                   from (select xact, seq, row_number() over (order by xact, seq) / $5 as nth
                                         from crewcast.event_rooms
                                         where room = named.hash and xact >= range.lo and xact < range.hi
                                         order by xact, seq limit $6) as key
                                   group by key.nth) as part
               where part.least is not null) as strip on true";

/// The events of some strips. `$1`: their rooms, `$2`, `$3`: their first events' transactions and numbers, `$4`: how many events they
/// have, `$5`: behind which number. The place of a strip comes with each number.
pub const STRIP: &str = "
    select log.epoch, log.floor, found.nths, found.seqs
    from crewcast.log
    cross join (select coalesce(array_agg(strip.nth), '{}') as nths, coalesce(array_agg(key.seq), '{}') as seqs
                from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
                     with ordinality as strip (room, xact, seq, events, after, nth)
                cross join lateral (select seq from crewcast.event_rooms
                                    where room = strip.room and (xact, seq) >= (strip.xact, strip.seq)
                                    order by xact, seq limit strip.events) as key
                where key.seq > strip.after) as found";

/// Neighbours in the index.
#[derive(Debug, FromRow)]
pub(super) struct Strip {
    room: i64,
    /// Transaction and number of the first event.
    first: Vec<i64>,
    /// How many events it has.
    events: i64,
    /// The lowest number of those that are wanted.
    least: i64,
}

impl Strip {
    /// How many numbers it has, and up to where none of them is wanted.
    pub(super) fn extent(&self) -> (usize, i64) {
        (usize::try_from(self.events).expect("a count"), self.least - 1)
    }
}

/// Asks for the numbers of these strips.
pub(super) async fn ask(conn: &mut Conn, strips: &[Strip], question: &Question) -> sqlx::Result<PgRow> {
    let asked = || question.strands.iter().map(|place| &strips[usize::try_from(*place).expect("a strip's place")]);
    let column = |value: fn(&Strip) -> i64| asked().map(value).collect::<Vec<i64>>();
    sqlx::query(STRIP)
        .bind(column(|strip| strip.room))
        .bind(column(|strip| strip.first[0]))
        .bind(column(|strip| strip.first[1]))
        .bind(column(|strip| strip.events))
        .bind(&question.afters)
        .fetch_one(conn)
        .await
}
