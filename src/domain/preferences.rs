//! Preferences: how a person wants to be told of alerts. They decide how clients show, never what the stream carries.
//!
//! They are set as a whole and start out empty: a client's own defaults hold where nothing is said. Of the rules for
//! alerts the first that fits counts; one without a kind or a severity fits any.
//!
//! Event: `preferences:updated` with the preferences, to the person's own room, so that their other tabs follow.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, alerts::Severity};
use crate::{
    auth::Person,
    db::{Conn, Db},
    error::{Error, Result},
    ids::{Room, Slug, Text, TimeOfDay, TimeZone},
    log::NewEvent,
    web::{Answer, Current, Describe as _, Entity, IfMatch, Mutation, Seen},
};

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(read_preferences, set_preferences))
        .emits::<Preferences>("preferences:updated", "The preferences, whole. To the person's own room.")
        .headed("people", "Who calls, and how they want to be told of alerts")
}

/// A person's preferences, as they are answered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Preferences {
    #[serde(flatten)]
    #[schema(inline)]
    chosen: Chosen,
    #[schema(minimum = 1)]
    version: i64,
}

impl Entity for Preferences {
    const NOUN: &'static str = "preferences";

    fn version(&self) -> i64 {
        self.version
    }
}

/// What a person chooses.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Chosen {
    /// The first that fits counts.
    #[serde(default)]
    #[schema(max_items = 200)]
    alerts: Vec<Rule>,
    #[serde(default)]
    #[schema(max_items = 200)]
    muted_projects: Vec<Uuid>,
    #[serde(default)]
    #[schema(max_items = 200)]
    muted_divisions: Vec<Slug>,
    #[serde(default)]
    quiet_hours: Option<QuietHours>,
}

/// How alerts of a kind and a severity are shown; without either, of any.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ShownAs)]
struct Rule {
    kind: Option<Kind>,
    severity: Option<Severity>,
    toast: bool,
    sound: bool,
    desktop: bool,
    badge: bool,
}

type Kind = Text<1, 64>;

/// When nothing may ring: from one time of the day to another, over midnight where the second is earlier.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct QuietHours {
    from: TimeOfDay,
    to: TimeOfDay,
    time_zone: TimeZone,
}

/// Entries of a list.
const ENTRIES_MAX: usize = 200;

impl Chosen {
    fn check(&self) -> Result<()> {
        let lists = [
            ("/alerts", self.alerts.len()),
            ("/mutedProjects", self.muted_projects.len()),
            ("/mutedDivisions", self.muted_divisions.len()),
        ];
        match lists.into_iter().find(|(_, entries)| *entries > ENTRIES_MAX) {
            Some((pointer, _)) => Err(Error::invalid_body(pointer, format!("must have at most {ENTRIES_MAX} entries"))),
            None => Ok(()),
        }
    }
}

/// Read the caller's preferences
///
/// For people, not services. Where nothing was chosen, all is empty and a client's own defaults hold.
#[utoipa::path(get, path = "/me/preferences", responses((status = 403)))]
async fn read_preferences(State(db): State<Db>, Person(caller): Person) -> Result<Seen<Preferences>> {
    let mut read = db.read().await?;
    let preferences = find(&mut read, caller.sub.as_str()).await?;
    Ok(Seen::entity(&read, preferences))
}

/// Set the caller's preferences, whole
///
/// For people, not services. Causes `preferences:updated`, unless they are what they were.
#[utoipa::path(
    put,
    path = "/me/preferences",
    params(IfMatch),
    request_body = inline(Chosen),
    responses((status = 403))
)]
async fn set_preferences(
    Person(caller): Person,
    if_match: IfMatch,
    Mutation { mut tx, body: chosen }: Mutation<Chosen>,
) -> Result<Answer<Current<Preferences>>> {
    chosen.check()?;
    if let Some(quiet_hours) = &chosen.quiet_hours {
        require_zone(&mut tx, &quiet_hours.time_zone).await?;
    }
    lock(&mut tx, caller.sub.as_str()).await?;
    let old = find(&mut tx, caller.sub.as_str()).await?;
    if_match.require(&old)?;
    if old.chosen == chosen {
        return tx.commit(Answer::current(&old)).await;
    }
    let preferences = Preferences { chosen, version: old.version + 1 };
    store(&mut tx, caller.sub.as_str(), &preferences).await?;
    let room = Room::User(caller.sub).to_string();
    tx.append(NewEvent::new("preferences:updated", vec![room], preferences.version, &preferences));
    tx.commit(Answer::current(&preferences)).await
}

/// Refuses a time zone that Postgres does not know: its list is that of IANA.
async fn require_zone(conn: &mut Conn, zone: &TimeZone) -> Result<()> {
    let is_known: bool = sqlx::query_scalar("select exists (select from pg_timezone_names where name = $1)")
        .bind(zone.as_str())
        .fetch_one(conn)
        .await?;
    if is_known { Ok(()) } else { Err(Error::invalid_body("/quietHours/timeZone", "there is no such time zone")) }
}

/// A row to lock: whoever has chosen nothing gets an empty one.
async fn lock(conn: &mut Conn, sub: &str) -> Result<()> {
    let row = "insert into crewcast.preferences (sub, data) values ($1, $2) on conflict (sub) do nothing";
    sqlx::query(row).bind(sub).bind(Json(Chosen::default())).execute(&mut *conn).await?;
    sqlx::query("select from crewcast.preferences where sub = $1 for no key update").bind(sub).execute(conn).await?;
    Ok(())
}

async fn find(conn: &mut Conn, sub: &str) -> Result<Preferences> {
    let found: Option<(Json<Chosen>, i64)> =
        sqlx::query_as("select data, version from crewcast.preferences where sub = $1")
            .bind(sub)
            .fetch_optional(conn)
            .await?;
    let (Json(chosen), version) = found.unwrap_or_else(|| (Json(Chosen::default()), 1));
    Ok(Preferences { chosen, version })
}

async fn store(conn: &mut Conn, sub: &str, preferences: &Preferences) -> Result<()> {
    sqlx::query("update crewcast.preferences set data = $2, version = $3 where sub = $1")
        .bind(sub)
        .bind(Json(&preferences.chosen))
        .bind(preferences.version)
        .execute(conn)
        .await?;
    Ok(())
}
