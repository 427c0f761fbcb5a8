//! Alerts: something happened that somebody should know of. By rules about accounts, by hand, and by other backends.
//!
//! An alert goes to its audience, 1 to 20 rooms, and never changes. What it names (a project, a division, an account) need
//! not be there: it tells what was so. It stays for `alert-retention`, and in each reader's inbox until they acknowledge it.
//!
//! Event: `alert:new` with the alert, to its audience. The audience itself is not in it: its rooms may name people.
//!
//! # Why a count of what is unread stays exact
//!
//! A client reads its inbox, with `unread`, and follows from the cursor of that read. It adds one for each `alert:new` that
//! the read did not have, and takes over the `unread` of each `alert:acknowledged`, which was counted in the transaction
//! that acknowledged. For that to be right, whoever gets both events must get them in the order that the counting saw:
//!
//! - an alert that was counted comes before the acknowledgement, and one that was not comes after it.
//!
//! A stream has its events in the order of the reads of the log, and within one by seq (steps 7 and 8 of [`crate::log`]).
//! Left alone, a transaction that raises draws its seq, one that acknowledges counts without it, draws a later seq and
//! commits, and the first commits after that: one read has both, the alert first, and the count takes it back.
//!
//! So the two take turns. Whoever raises locks `crewcast.alert_turns` in `ROW EXCLUSIVE` mode before it draws a number or a
//! seq, whoever acknowledges locks it in `SHARE` mode before it counts, and both hold it to their end. Each mode goes
//! together with itself and not with the other (doc 13.3.1), so that raisers do not wait for each other, nor do readers.
//! Take an alert and an acknowledgement:
//!
//! 1. *The alert had the turn first.* Its transaction had ended when the acknowledgement got the lock. The count is a
//!    statement that began later, so it has the alert; the alert's seq was drawn earlier; and every snapshot that shows the
//!    acknowledgement shows the alert. So the alert comes first, in the same read or in one before.
//! 2. *The acknowledgement had it first.* The same the other way round: it does not count the alert, has the smaller seq, and
//!    is in every snapshot that shows the alert.
//!
//! Acknowledgements of one person, which go together as far as the turns go, wait for each other at the person's row of
//! `crewcast.inboxes`. And an inbox is opened in the same turn as acknowledgements are made in (`crewcast.open_inbox`), so no
//! alert is under way that would come to a stream and stay out of the inbox.
//!
//! Everybody locks in one order, so that nobody waits in a circle: whatever else there is to lock, the turn, nothing.
//! Therefore `raise` comes last in a transaction.
//!
//! What is unread also changes without either event: when rights change (`membership:changed` says so), and when
//! `alert-retention` has passed. A client reads again then.

mod accounts;
mod amount;
pub mod hooks;
mod inbox;
mod rules;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema, schema::ArrayBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::amount::{Amount, Figure};
use super::Domain;
use crate::{
    auth::Manages,
    db::Sweep,
    error::Result,
    ids::{Room, Slug, Text},
    log::NewEvent,
    web::{Answer, Describe as _, Mutation, Posted, Tx},
};

pub use self::inbox::{COUNT, PAGE, SORT};

/// Rooms of an audience: as many as an event may have.
const AUDIENCE_MAX: usize = 20;

/// An alert's columns.
macro_rules! columns {
    () => {
        "alert.number, alert.id, alert.kind, alert.severity, alert.title, alert.body, alert.project_id, alert.division,
         alert.account_id, alert.value, alert.threshold, alert.created_at"
    };
}
use columns;

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(raise_alert))
        .merge(inbox::router())
        .merge(rules::router())
        .emits::<Alert>("alert:new", "The alert. To its audience, which it does not tell.")
        .headed("alerts", "Rules that raise them, alerts raised by hand, and each person's inbox")
        .merge(accounts::router())
}

/// How long alerts are kept.
#[derive(Debug, Clone, Copy)]
pub struct AlertRetention(pub Duration);

impl AlertRetention {
    /// What deletes alerts that are no longer kept, and then what was noted of them.
    #[must_use]
    pub fn sweeps(self) -> [Sweep; 4] {
        macro_rules! left_over {
            ($table:literal, $number:literal) => {
                concat!(
                    "delete from crewcast.",
                    $table,
                    " where $1::float8 is not null and ctid = any(array(select ctid from crewcast.",
                    $table,
                    " where ",
                    $number,
                    " < (select min(number) from crewcast.alerts) limit $2 for update skip locked))"
                )
            };
        }
        let statements = [
            "delete from crewcast.alerts where ctid = any(array(
                select ctid from crewcast.alerts where created_at < now() - make_interval(secs => $1)
                order by created_at limit $2 for update skip locked))",
            left_over!("acknowledgements", "number"),
            left_over!("unread", "number"),
            left_over!("sorted", "upto"),
        ];
        statements.map(|statement| Sweep { statement, age: self.0 })
    }
}

/// How much an alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub(super) enum Severity {
    Info,
    Warning,
    Critical,
}

/// Whom an alert goes to: 1 to 20 rooms, each once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::Type)]
#[serde(try_from = "Vec<Room>")]
#[sqlx(transparent, no_pg_array)]
pub(super) struct Audience(Vec<String>);

impl TryFrom<Vec<Room>> for Audience {
    type Error = String;

    fn try_from(mut rooms: Vec<Room>) -> Result<Self, String> {
        rooms.sort();
        rooms.dedup();
        if !(1..=AUDIENCE_MAX).contains(&rooms.len()) {
            return Err(format!("must be 1 to {AUDIENCE_MAX} rooms, not {}", rooms.len()));
        }
        Ok(Self(rooms.iter().map(Room::to_string).collect()))
    }
}

impl Audience {
    /// Those in one room.
    pub(super) fn of(room: &Room) -> Self {
        Self(vec![room.to_string()])
    }
}

impl PartialSchema for Audience {
    fn schema() -> RefOr<Schema> {
        let rooms = ArrayBuilder::new().items(Ref::from_schema_name(Room::name()));
        let rooms = rooms.min_items(Some(1)).max_items(Some(AUDIENCE_MAX));
        rooms.description(Some("Rooms: who may join one of them is told.")).into()
    }
}

impl ToSchema for Audience {}

type Kind = Text<1, 64>;

/// An alert as it is answered and as its event carries it.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Alert {
    /// Its place among all alerts.
    #[serde(skip)]
    number: i64,
    pub(super) id: Uuid,
    #[schema(value_type = Kind)]
    kind: String,
    severity: Severity,
    title: String,
    body: String,
    #[schema(required)]
    project_id: Option<Uuid>,
    #[schema(required, value_type = Option<Slug>)]
    division: Option<String>,
    #[schema(required, value_type = Option<Slug>)]
    account_id: Option<String>,
    #[schema(required)]
    value: Option<Figure>,
    #[schema(required)]
    threshold: Option<Figure>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// An alert to raise.
#[derive(Debug)]
pub(super) struct NewAlert {
    /// What sort of thing happened: 1 to 64 characters.
    pub(super) kind: String,
    pub(super) severity: Severity,
    pub(super) title: String,
    pub(super) body: String,
    pub(super) audience: Audience,
    pub(super) project_id: Option<Uuid>,
    pub(super) division: Option<String>,
    pub(super) account_id: Option<String>,
    pub(super) value: Option<Figure>,
    pub(super) threshold: Option<Figure>,
}

/// An alert as it is given. What it names need not be there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = NewAlert)]
struct Make {
    kind: Kind,
    severity: Severity,
    title: Text<1, 200>,
    body: Text<0, 10_000>,
    audience: Audience,
    project_id: Option<Uuid>,
    division: Option<Slug>,
    account_id: Option<Slug>,
    value: Option<Figure>,
    threshold: Option<Figure>,
}

impl From<Make> for NewAlert {
    fn from(make: Make) -> Self {
        Self {
            kind: make.kind.into_string(),
            severity: make.severity,
            title: make.title.into_string(),
            body: make.body.into_string(),
            audience: make.audience,
            project_id: make.project_id,
            division: make.division.map(|division| division.to_string()),
            account_id: make.account_id.map(|account| account.to_string()),
            value: make.value,
            threshold: make.threshold,
        }
    }
}

/// Raise an alert
///
/// For managers, admins and services. Causes `alert:new`.
#[utoipa::path(post, path = "/alerts", request_body = inline(Make), responses((status = 403)))]
async fn raise_alert(_: Manages, Mutation { tx, body: make }: Mutation<Make>) -> Result<Answer<Posted<Alert>>> {
    raise_alone(tx, make).await
}

/// Raises an alert that is all that a request asks for.
async fn raise_alone(mut tx: Tx, make: Make) -> Result<Answer<Posted<Alert>>> {
    let alert = raise(&mut tx, make.into()).await?;
    tx.commit(Answer::posted(&alert)).await
}

/// Raises an alert. It takes the raiser's turn, which is held to the end of the transaction: nothing else is to be
/// locked behind it.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn raise(tx: &mut Tx, new: NewAlert) -> Result<Alert> {
    sqlx::query("lock table crewcast.alert_turns in row exclusive mode").execute(&mut **tx).await?;
    let alert: Alert = sqlx::query_as(concat!(
        "with alert as (
             insert into crewcast.alerts
                 (id, kind, severity, title, body, project_id, division, account_id, value, threshold)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             returning *),
         addressed as (
             insert into crewcast.alert_rooms (room, number)
             select distinct room, number
             from alert, unnest($11::text[] || case when exists (
                 select from unnest($11::text[]) as room where room not like 'user:%') then '{*}' else '{}' end::text[]) as room)
         select ",
        columns!(),
        " from alert"
    ))
    .bind(Uuid::now_v7())
    .bind(new.kind)
    .bind(new.severity)
    .bind(new.title)
    .bind(new.body)
    .bind(new.project_id)
    .bind(new.division)
    .bind(new.account_id)
    .bind(new.value)
    .bind(new.threshold)
    .bind(&new.audience)
    .fetch_one(&mut **tx)
    .await?;
    tx.append(NewEvent::unversioned("alert:new", new.audience.0, &alert));
    Ok(alert)
}
