//! The inbox of a person: the alerts since they were first seen whose audience they may join now, less those that they
//! have acknowledged.
//!
//! Event: `alert:acknowledged` with the ids and what is unread then, to the person's own room, so that their other tabs
//! follow. Of many ids there are several events in one transaction, each with the same count.
//!
//! Who may join is judged anew each time, by the token and by memberships, as [`super::super::rights`] does; only the
//! `user:` rooms of others are nobody's inbox, not even an admin's. So an inbox is looked for room by room. What was
//! acknowledged long ago must not be walked each time: an acknowledgement *sorts* the rooms of its person up to the last
//! alert (`crewcast.sorted`), which leaves of them only what is unread (`crewcast.unread`). A room that one could not join
//! then is sorted later, when one can.

use axum::extract::State;
use serde::Serialize;
use sqlx::{FromRow, Postgres, postgres::PgRow, query::QueryAs};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Alert, Domain, columns};
use crate::{
    auth::Caller,
    db::{Conn, Db},
    domain::{Retention, people::Known},
    error::{Error, Result},
    ids::Room,
    log::NewEvent,
    web::{Answer, Describe as _, List, Page, PathArg, Plain, Query, Seen, Tx},
};

/// Ids of one event.
const IDS_MAX: usize = 500;

/// The rooms that a person may join, each once. `$1`: who, `$2`: the rooms that the token alone decides, `$3`: the divisions,
/// `$4`: how long a deleted project keeps its readers, in seconds.
macro_rules! rooms {
    () => {
        "select unnest($2::text[]) as room
         union
         select 'project:' || id from crewcast.projects
         where division = any($3::text[]) and (deleted_at is null or deleted_at > now() - make_interval(secs => $4))
         union
         select 'project:' || project.id
         from crewcast.members as member join crewcast.projects as project on project.id = member.project_id
         where member.sub = $1
           and (project.deleted_at is null or project.deleted_at > now() - make_interval(secs => $4))"
    };
}

/// `room`: the person's rooms, with the number of the alert up to which each is sorted, if only by the inbox's beginning.
macro_rules! room {
    () => {
        concat!(
            "room as materialized (
                 select mine.room, greatest(inbox.after, coalesce(sorted.upto, 0)) as upto
                 from (",
            rooms!(),
            ") as mine
                 join crewcast.inboxes as inbox on inbox.sub = $1
                 left join lateral (select upto from crewcast.sorted
                                    where sub = $1 and room = mine.room limit 1) as sorted on true)"
        )
    };
}

/// Alerts of a room that are not sorted yet, with whether they were acknowledged. The laterals with their limits stay on the
/// indexes in generic plans as well.
macro_rules! unsorted {
    () => {
        "select alert.number, acknowledged.yes is not null as is_acknowledged
         from crewcast.alert_rooms as alert
         left join lateral (select true as yes from crewcast.acknowledgements
                            where sub = $1 and number = alert.number limit 1) as acknowledged on true
         where alert.room = room.room and alert.number > room.upto"
    };
}

/// `unread`: the numbers of what is unread. Some may be of alerts that are no longer kept.
macro_rules! unread {
    () => {
        concat!(
            "with ",
            room!(),
            ", unread as (
                 select distinct found.number
                 from room cross join lateral (
                     select number from crewcast.unread where sub = $1 and room = room.room
                     union all
                     select number from (",
            unsorted!(),
            ") as unsorted where not is_acknowledged) as found)"
        )
    };
}

/// How many are unread.
pub const COUNT: &str = concat!(
    unread!(),
    " select count(*) from unread
      cross join lateral (select from crewcast.alerts where number = unread.number limit 1) as alert"
);

/// What is unread below `$5`, newest first, `$6` at most.
pub const PAGE: &str = concat!(
    unread!(),
    " select ",
    columns!(),
    " from (select number from unread where number < $5 order by number desc) as unread
      cross join lateral (select * from crewcast.alerts where number = unread.number limit 1) as alert
      order by unread.number desc limit $6"
);

/// Sorts the person's rooms up to the last alert.
pub const SORT: &str = concat!(
    "with ",
    room!(),
    ", found as materialized (
         select room.room, unsorted.number, unsorted.is_acknowledged
         from room cross join lateral (",
    unsorted!(),
    ") as unsorted),
       sorted as (
         insert into crewcast.sorted (sub, room, upto) select $1, room, max(number) from found group by room
         on conflict (sub, room) do update set upto = excluded.upto)
     insert into crewcast.unread (sub, room, number)
     select $1, room, number from found where not is_acknowledged"
);

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(read_inbox))
        .routes(routes!(acknowledge_alert))
        .routes(routes!(acknowledge_all))
        .emits::<Acknowledged<'_>>(
            "alert:acknowledged",
            "Of many alerts there are several, which say the same is left. To the person's own room.",
        )
}

/// A page of an inbox.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Inbox {
    items: Vec<Alert>,
    /// The `after` of the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
    /// How many there are on all pages.
    #[schema(minimum = 0)]
    unread: i64,
}

/// What is left after an acknowledgement.
#[derive(Debug, Serialize, ToSchema)]
struct Unread {
    #[schema(minimum = 0)]
    unread: i64,
}

/// The data of `alert:acknowledged`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AlertAcknowledgedData)]
struct Acknowledged<'a> {
    #[schema(max_items = 500)]
    alert_ids: &'a [Uuid],
    /// How many are left.
    #[schema(minimum = 0)]
    unread: i64,
}

/// Read the caller's inbox
///
/// For people, not services: the alerts since they were first seen whose audience they may join now, newest first, less
/// those that they have acknowledged. A stream that resumes from the answer's `Crewcast-Cursor` keeps `unread` exact: one
/// more with each `alert:new`, and with each `alert:acknowledged` what that says.
#[utoipa::path(get, path = "/alerts", params(Page), responses((status = 403)))]
async fn read_inbox(
    State(db): State<Db>,
    State(retention): State<Retention>,
    Known(caller): Known,
    Query(page): Query<Page>,
) -> Result<Seen<Plain<Inbox>>> {
    let before = page.after.as_deref().map_or(Ok(i64::MAX), str::parse).map_err(|_| Page::not_of_this_list())?;
    let mut read = db.read().await?;
    let reader = Reader::new(&caller, retention);
    let unread = reader.unread(&mut read).await?;
    let alerts = reader.query::<Alert>(PAGE).bind(before).bind(page.rows()).fetch_all(&mut *read).await?;
    let List { items, next_cursor } = page.list(alerts, |alert| alert.number.to_string());
    Ok(Seen::at(&read, Plain(Inbox { items, next_cursor, unread })))
}

/// Acknowledge an alert
///
/// For people, not services. Causes `alert:acknowledged`, unless they have before.
#[utoipa::path(
    post,
    path = "/alerts/{id}/ack",
    params(("id" = Uuid, Path)),
    responses((status = 403), (status = 404))
)]
async fn acknowledge_alert(
    State(retention): State<Retention>,
    Known(caller): Known,
    PathArg(id): PathArg<Uuid>,
    mut tx: Tx,
) -> Result<Answer<Plain<Unread>>> {
    let reader = Reader::new(&caller, retention);
    let (number,): (i64,) = reader
        .query(concat!(
            "select alert.number from crewcast.alerts as alert
             where alert.id = $5
               and exists (select from crewcast.alert_rooms
                           where number = alert.number and room in (",
            rooms!(),
            "))"
        ))
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or_else(Error::not_found)?;
    reader.take_turn(&mut tx).await?;
    reader.note(tx, &[(number, id)]).await
}

/// Acknowledge all that is in the caller's inbox
///
/// For people, not services. Causes `alert:acknowledged`, unless the inbox is empty.
#[utoipa::path(post, path = "/alerts/ack-all", responses((status = 403)))]
async fn acknowledge_all(
    State(retention): State<Retention>,
    Known(caller): Known,
    mut tx: Tx,
) -> Result<Answer<Plain<Unread>>> {
    let reader = Reader::new(&caller, retention);
    reader.take_turn(&mut tx).await?;
    let all: Vec<(i64, Uuid)> = reader
        .query(concat!(
            unread!(),
            " select alert.number, alert.id from unread
              cross join lateral (select number, id from crewcast.alerts where number = unread.number limit 1) as alert
              order by alert.number"
        ))
        .fetch_all(&mut *tx)
        .await?;
    reader.note(tx, &all).await
}

/// Somebody with an inbox, and what they may read now.
struct Reader<'a> {
    caller: &'a Caller,
    rooms: Vec<String>,
    divisions: Vec<&'a str>,
    retention: f64,
}

impl<'a> Reader<'a> {
    fn new(caller: &'a Caller, Retention(retention): Retention) -> Self {
        let mut rooms = vec![Room::User(caller.sub.clone()).to_string()];
        if caller.manages() {
            rooms.push("*".to_owned());
        } else {
            rooms.push(Room::Company.to_string());
            rooms.extend(caller.divisions.iter().map(|slug| Room::Division(slug.clone()).to_string()));
            rooms.extend(caller.topics.iter().map(|name| Room::Topic(name.clone()).to_string()));
        }
        let divisions = caller.divisions.iter().map(|slug| slug.as_str()).collect();
        Self { caller, rooms, divisions, retention: retention.as_secs_f64() }
    }

    /// A statement about the reader's rooms; its own parameters begin with `$5`.
    fn query<T>(&self, statement: &'static str) -> QueryAs<'_, Postgres, T, sqlx::postgres::PgArguments>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let statement = sqlx::query_as(statement).bind(self.caller.sub.as_str()).bind(&self.rooms);
        statement.bind(&self.divisions).bind(self.retention)
    }

    async fn unread(&self, conn: &mut Conn) -> Result<i64> {
        let (unread,) = self.query(COUNT).fetch_one(conn).await?;
        Ok(unread)
    }

    /// Waits for the reader's other acknowledgements, then for whoever raises, and sorts all there is. Until the transaction
    /// ends nobody raises anything; the parent's doc says why.
    async fn take_turn(&self, conn: &mut Conn) -> Result<()> {
        let inbox = sqlx::query("select from crewcast.inboxes where sub = $1 for no key update");
        inbox.bind(self.caller.sub.as_str()).execute(&mut *conn).await?;
        sqlx::query("lock table crewcast.alert_turns in share mode").execute(&mut *conn).await?;
        self.query::<()>(SORT).fetch_optional(conn).await?;
        Ok(())
    }

    /// Notes alerts as acknowledged, and tells of those that were not.
    async fn note(&self, mut tx: Tx, alerts: &[(i64, Uuid)]) -> Result<Answer<Plain<Unread>>> {
        let noted = acknowledged_anew(&mut tx, self.caller.sub.as_str(), alerts).await?;
        let unread = self.unread(&mut tx).await?;
        for ids in noted.chunks(IDS_MAX) {
            let room = Room::User(self.caller.sub.clone()).to_string();
            let acknowledged = Acknowledged { alert_ids: ids, unread };
            tx.append(NewEvent::unversioned("alert:acknowledged", vec![room], &acknowledged));
        }
        tx.commit(Answer::plain(&Unread { unread })).await
    }
}

/// Notes that a person acknowledged alerts: those of them that they had not before. All were sorted.
async fn acknowledged_anew(conn: &mut Conn, sub: &str, alerts: &[(i64, Uuid)]) -> Result<Vec<Uuid>> {
    let (numbers, ids): (Vec<i64>, Vec<Uuid>) = alerts.iter().copied().unzip();
    let noted = sqlx::query_scalar(
        "with given as (select * from unnest($2::bigint[], $3::uuid[]) with ordinality as given (number, id, nth)),
              noted as (insert into crewcast.acknowledgements (sub, number) select $1, number from given
                        on conflict do nothing returning number),
              read as (delete from crewcast.unread
                       where sub = $1
                         and (room, number) in (select room, number from crewcast.alert_rooms
                                                where number = any($2)))
         select given.id from given join noted using (number) order by given.nth",
    )
    .bind(sub)
    .bind(numbers)
    .bind(ids)
    .fetch_all(conn)
    .await?;
    Ok(noted)
}
