//! Preferences: how a person wants to be told of alerts. They decide how clients show, never what the stream carries.
//!
//! They are set as a whole and start out empty: a client's own defaults hold where nothing is said. Of the rules for
//! alerts the first that fits counts; one without a kind or a severity fits any.
//!
//! Event: `preferences:updated` with the preferences, to the person's own room, so that their other tabs follow.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Domain, alerts::Severity};
use crate::{
    auth::Person,
    db::Db,
    error::{Error, Result},
    ids::{Room, Slug, Text, TimeOfDay, TimeZone},
    log::NewEvent,
    web::{Answer, Entity, IfMatch, Mutation, Seen},
};

/// The routes.
pub(super) fn router() -> Router<Domain> {
    Router::new().route("/me/preferences", get(read).put(set))
}

/// A person's preferences, as they are answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Preferences {
    #[serde(flatten)]
    chosen: Chosen,
    version: i64,
}

impl Entity for Preferences {
    const NOUN: &'static str = "preferences";

    fn version(&self) -> i64 {
        self.version
    }
}

/// What a person chooses.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Chosen {
    #[serde(default)]
    alerts: Vec<Rule>,
    #[serde(default)]
    muted_projects: Vec<Uuid>,
    #[serde(default)]
    muted_divisions: Vec<Slug>,
    #[serde(default)]
    quiet_hours: Option<QuietHours>,
}

/// How alerts of a kind and a severity are shown; without either, of any.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    kind: Option<Text<1, 64>>,
    severity: Option<Severity>,
    toast: bool,
    sound: bool,
    desktop: bool,
    badge: bool,
}

/// When nothing may ring: from one time of the day to another, over midnight where the second is earlier.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
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

async fn read(State(db): State<Db>, Person(caller): Person) -> Result<Response> {
    let mut read = db.read().await?;
    let preferences = find(&mut read, caller.sub.as_str()).await?;
    Ok(Seen::entity(&read, preferences).into_response())
}

async fn set(
    Person(caller): Person,
    if_match: IfMatch,
    Mutation { mut tx, body: chosen }: Mutation<Chosen>,
) -> Result<Answer> {
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
async fn require_zone(conn: &mut PgConnection, zone: &TimeZone) -> Result<()> {
    let is_known: bool = sqlx::query_scalar("select exists (select from pg_timezone_names where name = $1)")
        .bind(zone.as_str())
        .fetch_one(conn)
        .await?;
    if is_known { Ok(()) } else { Err(Error::invalid_body("/quietHours/timeZone", "there is no such time zone")) }
}

/// A row to lock: whoever has chosen nothing gets an empty one.
async fn lock(conn: &mut PgConnection, sub: &str) -> Result<()> {
    let row = "insert into crewcast.preferences (sub, data) values ($1, $2) on conflict (sub) do nothing";
    sqlx::query(row).bind(sub).bind(Json(Chosen::default())).execute(&mut *conn).await?;
    sqlx::query("select from crewcast.preferences where sub = $1 for no key update").bind(sub).execute(conn).await?;
    Ok(())
}

async fn find(conn: &mut PgConnection, sub: &str) -> Result<Preferences> {
    let found: Option<(Json<Chosen>, i64)> =
        sqlx::query_as("select data, version from crewcast.preferences where sub = $1")
            .bind(sub)
            .fetch_optional(conn)
            .await?;
    let (Json(chosen), version) = found.unwrap_or_else(|| (Json(Chosen::default()), 1));
    Ok(Preferences { chosen, version })
}

async fn store(conn: &mut PgConnection, sub: &str, preferences: &Preferences) -> Result<()> {
    sqlx::query("update crewcast.preferences set data = $2, version = $3 where sub = $1")
        .bind(sub)
        .bind(Json(&preferences.chosen))
        .bind(preferences.version)
        .execute(conn)
        .await?;
    Ok(())
}
