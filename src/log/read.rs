//! Reading the log: one primitive for the pump, for replays and for a room's history.

use crate::db::Conn;
use std::{collections::VecDeque, ops::Range};

use sqlx::{FromRow as _, Row as _, postgres::PgRow};

use super::{
    Event, LogError, Position, Reading, Seen, Snapshot, bounds,
    event::{event_columns, meta_columns},
    merge::{Merge, NUMBERS},
    rows::{Damage, apart, is_of_a_row},
    strips::{self, STRIP_EVENTS, STRIPS, Strip},
    wal::{Wal, wal_columns},
};

/// Rows of a page: with payloads of at most `event-bytes-max` this bounds what a reader holds.
pub const PAGE_MAX: i64 = 256;

/// Rows of the first page of a read that is bounded in bytes: how large its events are is not known yet.
const FIRST_PAGE: usize = 64;

/// Numbers of events fetched at once when their count is not bounded otherwise: 256 KiB of them.
pub const KEYS_MAX: i64 = 32_768;

/// Which events of a read are wanted.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All of these transactions' events.
    All(Vec<i64>),
    /// Those addressed to any of these rooms.
    Rooms(Vec<String>),
}

/// `read(from, to, after, scope)`: the events that are in `to` and not in `from`, with seq above `after`, in seq order.
#[derive(Debug)]
pub struct Reader {
    reading: Reading,
    scope: Scope,
    /// `to` minus `from` as ranges of ids: no open transaction is among them, so none is walked.
    ranges: Vec<Range<u64>>,
    after: i64,
    /// The events' numbers that are known and not read yet.
    keys: VecDeque<i64>,
    /// Where the next numbers come from, once they are too many transactions' or too many events'.
    merge: Option<Merge>,
    /// The parts of the rooms' index in which the other events are.
    strips: Vec<Strip>,
    /// Whether the rooms were asked for their events' numbers.
    is_known: bool,
    bytes_max: i64,
    page_bytes: usize,
    /// Events of the next page: as many as would have fitted into the page before.
    page_events: usize,
    /// Events that are read one by one, since among them is one that cannot be read.
    singly: i64,
    /// Whether a failed statement would fail those that follow.
    in_transaction: bool,
}

/// Some events of a read, in seq order.
#[derive(Debug)]
pub struct Page {
    /// The events; a room's hash that two names share may leave fewer than were asked for.
    pub events: Vec<Event>,
    /// Whether the read ends here.
    pub last: bool,
    /// Why the one event of the page is a reference, although its payload is not too large.
    pub damage: Option<Damage>,
}

impl Page {
    fn whole(events: Vec<Event>, last: bool) -> Self {
        Self { events, last, damage: None }
    }
}

/// The numbers of the events in some rooms. `$1`: ranges' lower ends, `$2`: upper ends, `$3`: rooms, `$4`: after, `$5`: rows from one range and room at most,
/// `$6`: rows at most. The ordered lateral with its limit stays on the index in generic plans as well.
pub const KEYS: &str = "
    select log.epoch, log.floor, array(
        select distinct key.seq
        from unnest($1::bigint[], $2::bigint[]) as range (lo, hi)
        cross join (select distinct hashtextextended(name, 0) as hash from unnest($3::text[]) as name) as named
        cross join lateral (select seq from crewcast.event_rooms
                            where room = named.hash and xact >= range.lo and xact < range.hi and seq > $4
                            order by xact, seq limit $5) as key
        order by key.seq limit $6) as keys
    from crewcast.log";

/// The events with these numbers. `$1`: the largest payload in bytes, `$2`: the events' numbers, ascending.
pub const BODIES: &str = concat!(
    "select log.epoch, log.floor, event.*
     from crewcast.log
     left join (select body.* from unnest($2::bigint[]) with ordinality as key (seq, nth)
                cross join lateral (select ",
    event_columns!(),
    "               from crewcast.events where seq = key.seq limit 1) as body
                order by key.nth) as event on true"
);

/// The next events of a few transactions. `$1`: the largest payload in bytes, `$2`: transactions, `$3`: after, `$4`: rows at most.
/// Each page asks all of them: for a first page of few transactions, which is mostly the last one.
pub const TRANSACTIONS: &str = concat!(
    "select log.epoch, log.floor, event.*
     from crewcast.log
     left join (select body.* from (
                    select key.seq from unnest($2::bigint[]) as fresh (xact)
                    cross join lateral (select seq from crewcast.events
                                        where xact = fresh.xact and seq > $3 order by seq limit $4) as key
                    order by key.seq limit $4) as key
                cross join lateral (select ",
    event_columns!(),
    "               from crewcast.events where seq = key.seq limit 1) as body
                order by body.seq) as event on true"
);

/// What can be read of an event whose payload cannot. `$1`: its number.
pub const META: &str = concat!(
    "select log.epoch, log.floor, event.*
     from crewcast.log
     left join (select ",
    meta_columns!(),
    ",                 null::text as data from crewcast.events where seq = $1 limit 1) as event on true"
);

/// Events of some kinds that some transactions made, and whether not all of their events were looked at. `$1`: the largest
/// payload in bytes, `$2`: transactions, `$3`: kinds, `$4`: rows at most, `$5`: events that are looked at, at most. The orders and
/// the limits keep it on the indexes in generic plans as well.
pub const OF_KINDS: &str = concat!(
    "with looked as materialized (
         select key.seq, key.type from unnest($2::bigint[]) as fresh (xact)
         cross join lateral (select seq, type from crewcast.events where xact = fresh.xact order by seq limit $5) as key
         limit $5)
     select cut.is_cut, event.*
     from (select count(*) >= $5 as is_cut from looked) as cut
     left join (select body.* from looked
                cross join lateral (select ",
    event_columns!(),
    "               from crewcast.events where seq = looked.seq limit 1) as body
                where looked.type = any($3) limit $4) as event on true"
);

/// Events that are looked at for what some kinds of them say.
pub const LOOKED_MAX: i64 = 131_072;

/// Events of these kinds that these transactions made, in any order. None when they made `most` or more, or made so many
/// events that it takes long to say: how long a look takes depends on nobody's transaction.
///
/// # Errors
/// When Postgres refuses.
pub async fn of_kinds(
    conn: &mut Conn,
    fresh: &[i64],
    kinds: &[&str],
    bytes_max: u64,
    most: i64,
) -> Result<Option<Vec<Event>>, LogError> {
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    let statement = sqlx::query(OF_KINDS).bind(bytes_max).bind(fresh).bind(kinds).bind(most).bind(LOOKED_MAX);
    let rows = statement.fetch_all(conn).await?;
    let first = rows.first().ok_or(LogError::Broken("a count has a row"))?;
    if first.try_get("is_cut")? || i64::try_from(rows.len()).is_ok_and(|found| found >= most) {
        return Ok(None);
    }
    let found = if first.try_get::<Option<i64>, _>("seq")?.is_none() { &[] } else { rows.as_slice() };
    Ok(Some(found.iter().map(Event::from_row).collect::<sqlx::Result<_>>()?))
}

impl Reader {
    /// A read of what is in `to` and not in `from`, from its beginning. Payloads of more than `bytes_max` bytes come as
    /// references.
    pub fn new(reading: Reading, scope: Scope, bytes_max: u64) -> Self {
        Self::resume(reading, 0, scope, bytes_max)
    }

    /// The same read, from behind event `after`.
    pub fn resume(reading: Reading, after: i64, scope: Scope, bytes_max: u64) -> Self {
        let ranges = reading.to().minus(reading.from());
        let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
        Self {
            reading,
            scope,
            ranges,
            after,
            keys: VecDeque::new(),
            merge: None,
            strips: Vec::new(),
            is_known: false,
            bytes_max,
            page_bytes: usize::MAX,
            page_events: PAGE_MAX as usize,
            singly: 0,
            in_transaction: false,
        }
    }

    /// The same read, in pages of rooms' events that hold no more payload than this, but one event at least.
    #[must_use]
    pub fn in_pages_of(self, page_bytes: usize) -> Self {
        Self { page_bytes, page_events: FIRST_PAGE, ..self }
    }

    /// The two ends of the read.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// How many places of the rooms' index it looks at, whatever is there: each room's in each range of transactions.
    pub fn places(&self) -> usize {
        match &self.scope {
            Scope::Rooms(rooms) => rooms.len() * self.ranges.len(),
            Scope::All(_) => self.ranges.len(),
        }
    }

    /// How many events there are, up to `max`; `None` when there are more. What was counted is kept, so that reading it
    /// asks no second time.
    ///
    /// # Errors
    /// [`LogError::TooOld`] and [`LogError::Foreign`] as for [`Reader::page`].
    pub async fn count(&mut self, conn: &mut Conn, max: i64) -> Result<Option<i64>, LogError> {
        let limit = max.saturating_add(1);
        let keys = self.keys(conn, limit, limit).await?;
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        if count > max {
            return Ok(None);
        }
        (self.keys, self.is_known) = (keys.into(), true);
        Ok(Some(count))
    }

    /// The next events, at most [`PAGE_MAX`] of them. Reading on after the last page gives empty pages.
    ///
    /// # Errors
    /// [`LogError::TooOld`] when the floor has passed the position that the read began at, [`LogError::Foreign`] when the
    /// log has another epoch: nothing of the page may be used then. [`LogError::Unreadable`] when nothing can be told of the
    /// next event, or of those that follow.
    pub async fn page(&mut self, conn: &mut Conn) -> Result<Page, LogError> {
        if self.singly == 0 {
            match self.next(conn).await {
                Err(LogError::Db(error)) if is_of_a_row(&error) => self.singly = PAGE_MAX,
                page => return page,
            }
        }
        self.single(conn).await
    }

    /// The same, for a `conn` in a transaction, which a failed statement would end: event by event.
    #[must_use]
    pub fn one_by_one(self) -> Self {
        Self { singly: i64::MAX, in_transaction: true, ..self }
    }

    async fn next(&mut self, conn: &mut Conn) -> Result<Page, LogError> {
        let page = match &self.scope {
            Scope::All(xacts) if self.merge.is_none() && xacts.len() <= PAGE_MAX as usize => {
                self.first_page(conn).await?
            }
            _ => {
                self.fetch_numbers(conn).await?;
                self.page_of_keys(conn).await?
            }
        };
        if let Some(event) = page.events.last() {
            self.after = event.seq;
        }
        Ok(page)
    }

    /// All that a few transactions have, or the beginning of it.
    async fn first_page(&mut self, conn: &mut Conn) -> Result<Page, LogError> {
        let Scope::All(xacts) = &self.scope else {
            return Err(LogError::Broken("only transactions have a first page"));
        };
        let statement = sqlx::query(TRANSACTIONS).bind(self.bytes_max).bind(xacts).bind(self.after);
        let rows = statement.bind(PAGE_MAX).fetch_all(conn).await?;
        let events = self.checked(&rows)?;
        let last = i64::try_from(events.len()).is_ok_and(|n| n < PAGE_MAX);
        if let (false, Some(event)) = (last, events.last()) {
            self.merge = Some(Merge::of_transactions(xacts, event.seq));
        }
        Ok(Page::whole(events, last))
    }

    /// Gets to know the numbers of the next page.
    async fn fetch_numbers(&mut self, conn: &mut Conn) -> Result<(), LogError> {
        match &self.scope {
            Scope::All(xacts) if self.merge.is_none() => {
                self.merge = Some(Merge::of_transactions(xacts, self.after));
            }
            Scope::Rooms(_) => self.fetch_keys(conn).await?,
            Scope::All(_) => {}
        }
        let Self { reading, scope, strips, keys, merge: Some(merge), page_events, .. } = self else { return Ok(()) };
        loop {
            keys.extend(merge.take(page_events.saturating_sub(keys.len())));
            if keys.len() >= *page_events {
                return Ok(());
            }
            let Some(question) = merge.question() else { return Ok(()) };
            let row = match scope {
                Scope::All(_) => {
                    let statement = sqlx::query(NUMBERS).bind(&question.strands).bind(&question.afters);
                    statement.bind(question.each).fetch_one(&mut *conn).await?
                }
                Scope::Rooms(_) => strips::ask(&mut *conn, strips, &question).await?,
            };
            check(reading, &row)?;
            let (nths, seqs): (Vec<i64>, Vec<i64>) = (row.try_get("nths")?, row.try_get("seqs")?);
            merge.answer(&question, &nths, &seqs);
        }
    }

    /// Gets to know all numbers of the rooms' events, or the first ones and where the others are.
    async fn fetch_keys(&mut self, conn: &mut Conn) -> Result<(), LogError> {
        if self.is_known {
            return Ok(());
        }
        let keys = self.keys(conn, i64::MAX, KEYS_MAX).await?;
        if let Some(last) = keys.last().filter(|_| i64::try_from(keys.len()).is_ok_and(|n| n == KEYS_MAX)) {
            self.strips = self.strips(conn, *last).await?;
            self.merge = Some(Merge::of_strips(self.strips.iter().map(Strip::extent)));
        }
        (self.keys, self.is_known) = (keys.into(), true);
        Ok(())
    }

    async fn strips(&self, conn: &mut Conn, after: i64) -> Result<Vec<Strip>, LogError> {
        let Scope::Rooms(rooms) = &self.scope else { return Err(LogError::Broken("only rooms have strips")) };
        let (lo, hi) = bounds(&self.ranges);
        let statement = sqlx::query(STRIPS).bind(lo).bind(hi).bind(rooms).bind(after).bind(STRIP_EVENTS).bind(i64::MAX);
        let rows = statement.fetch_all(conn).await?;
        let first = rows.first().ok_or(LogError::Broken("crewcast.log has no row"))?;
        self.check(first)?;
        let is_none = first.try_get::<Option<i64>, _>("least")?.is_none();
        let rows = if is_none { &[] } else { rows.as_slice() };
        Ok(rows.iter().map(Strip::from_row).collect::<sqlx::Result<_>>()?)
    }

    async fn page_of_keys(&mut self, conn: &mut Conn) -> Result<Page, LogError> {
        let page: Vec<i64> = self.keys.iter().copied().take(self.page_events).collect();
        let rows = sqlx::query(BODIES).bind(self.bytes_max).bind(&page).fetch_all(conn).await?;
        let mut events = self.checked(&rows)?;
        if events.len() != page.len() {
            return Err(LogError::TooOld);
        }
        self.fit(&mut events);
        // Only now: a page that Postgres did not answer for is asked for again.
        self.keys.drain(..events.len());
        let events = events.into_iter().filter(|event| self.wants(event)).collect();
        Ok(Page::whole(events, self.is_at_end()))
    }

    /// Whether every number is known and read.
    fn is_at_end(&self) -> bool {
        self.keys.is_empty() && self.merge.as_ref().is_none_or(Merge::is_done)
    }

    /// The next event by itself, as a reference where its payload cannot be read.
    async fn single(&mut self, conn: &mut Conn) -> Result<Page, LogError> {
        self.singly -= 1;
        let Some(seq) = self.next_seq(conn).await? else { return Ok(Page::whole(Vec::new(), true)) };
        let body = sqlx::query(BODIES).bind(self.bytes_max).bind([seq]);
        let (rows, damage) = match self.read_apart(conn, body).await {
            Err(LogError::Db(error)) if is_of_a_row(&error) => {
                let meta = self.read_apart(conn, sqlx::query(META).bind(seq)).await;
                (meta.map_err(|error| unreadable(error, Some(seq)))?, Some(Damage { seq: Some(seq), error }))
            }
            rows => (rows?, None),
        };
        // Only now: an event that Postgres did not answer for is asked for again.
        self.after = seq;
        self.keys.pop_front();
        if rows.is_empty() {
            return Err(LogError::TooOld);
        }
        let last = self.is_at_end();
        Ok(Page { events: rows.into_iter().filter(|event| self.wants(event)).collect(), last, damage })
    }

    /// The number of the next event, if there is one.
    async fn next_seq(&mut self, conn: &mut Conn) -> Result<Option<i64>, LogError> {
        if self.keys.is_empty() {
            self.fetch_numbers(conn).await.map_err(|error| unreadable(error, None))?;
        }
        Ok(self.keys.front().copied())
    }

    async fn read_apart(&self, conn: &mut Conn, statement: Statement<'_>) -> Result<Vec<Event>, LogError> {
        let rows = if self.in_transaction { apart(conn, statement).await? } else { statement.fetch_all(conn).await? };
        self.checked(&rows)
    }

    /// Cuts a page to the payload that it may hold, and says how many events the next one asks for.
    fn fit(&mut self, events: &mut Vec<Event>) {
        let sizes = events.iter().scan(0, |sum, event| {
            *sum += event.data.len();
            Some(*sum)
        });
        let fitting = sizes.take_while(|bytes| *bytes <= self.page_bytes).count().max(1);
        let is_cut = fitting < events.len();
        events.truncate(fitting);
        let most = if is_cut { fitting } else { 2 * self.page_events };
        self.page_events = most.clamp(1, PAGE_MAX as usize);
    }

    async fn keys(&self, conn: &mut Conn, each: i64, all: i64) -> Result<Vec<i64>, LogError> {
        let Scope::Rooms(rooms) = &self.scope else { return Err(LogError::Broken("only rooms have keys")) };
        let (lo, hi) = bounds(&self.ranges);
        let statement = sqlx::query(KEYS).bind(lo).bind(hi).bind(rooms).bind(self.after).bind(each).bind(all);
        let row = statement.fetch_one(conn).await.map_err(|error| unreadable(error.into(), None))?;
        self.check(&row)?;
        Ok(row.try_get("keys")?)
    }

    /// Hashes of names may meet: the name decides.
    fn wants(&self, event: &Event) -> bool {
        match &self.scope {
            Scope::All(_) => true,
            Scope::Rooms(rooms) => event.rooms.iter().any(|room| rooms.contains(room)),
        }
    }

    /// The events of a page, when its own snapshot still holds all that the read promises. A page without events is one
    /// row that has only the log's columns.
    fn checked(&self, rows: &[PgRow]) -> Result<Vec<Event>, LogError> {
        let first = rows.first().ok_or(LogError::Broken("crewcast.log has no row"))?;
        self.check(first)?;
        if first.try_get::<Option<i64>, _>("seq")?.is_none() {
            return Ok(Vec::new());
        }
        Ok(rows.iter().map(Event::from_row).collect::<sqlx::Result<_>>()?)
    }

    fn check(&self, row: &PgRow) -> Result<(), LogError> {
        check(&self.reading, row)
    }
}

/// Whether the log that a row is from still holds all that a read promises.
fn check(reading: &Reading, row: &PgRow) -> Result<(), LogError> {
    let floor: Snapshot = row.try_get::<&str, _>("floor")?.parse().map_err(|_| LogError::Broken("no floor"))?;
    if row.try_get::<&str, _>("epoch")? != reading.epoch().as_str() {
        return Err(LogError::Foreign);
    }
    if !reading.from().includes(&floor) {
        return Err(LogError::TooOld);
    }
    Ok(())
}

type Statement<'a> = sqlx::query::Query<'a, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// An error of a row that was read by itself is final.
fn unreadable(error: LogError, seq: Option<i64>) -> LogError {
    match error {
        LogError::Db(error) if is_of_a_row(&error) => LogError::Unreadable(Damage { seq, error }),
        other => other,
    }
}

/// The event with this number, its payload whole; as a reference, and why, where that cannot be read.
///
/// # Errors
/// When Postgres does not answer, and [`LogError::Unreadable`] when nothing can be told of it.
pub async fn one(conn: &mut Conn, seq: i64) -> Result<Option<(Seen<Event>, Option<Damage>)>, LogError> {
    let statement = concat!("select ", event_columns!(), ", ", wal_columns!(), " from crewcast.events where seq = $2");
    match seen(conn, sqlx::query(statement).bind(i64::MAX).bind(seq)).await {
        Err(error) if is_of_a_row(&error) => {
            let statement = concat!(
                "select ",
                meta_columns!(),
                ", null::text as data, ",
                wal_columns!(),
                " from crewcast.events where seq = $1"
            );
            let meta = seen(conn, sqlx::query(statement).bind(seq)).await;
            let meta = meta.map_err(|error| unreadable(error.into(), Some(seq)))?;
            Ok(meta.map(|event| (event, Some(Damage { seq: Some(seq), error }))))
        }
        event => Ok(event?.map(|event| (event, None))),
    }
}

async fn seen(conn: &mut Conn, statement: Statement<'_>) -> sqlx::Result<Option<Seen<Event>>> {
    let row = statement.fetch_optional(conn).await?;
    row.map(|row| Ok(Seen::new(Event::from_row(&row)?, Wal::from_row(&row)?))).transpose()
}

/// The reads that lead from a position to `to`, and the seq each begins after: the rest of the read that the position
/// lies in, if it does, then everything since.
pub fn legs(from: &Position, to: &Snapshot) -> Vec<(Reading, i64)> {
    let mut legs = Vec::with_capacity(2);
    if let Some((rest, after)) = from.rest() {
        legs.extend(Reading::new(from.epoch().clone(), from.base().clone(), rest.clone()).map(|leg| (leg, after)));
    }
    // A read from a position to itself is none.
    legs.extend(Reading::new(from.epoch().clone(), from.reach().clone(), to.clone()).map(|leg| (leg, 0)));
    legs
}
