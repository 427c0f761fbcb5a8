//! Divisions of the company: everybody reads them, managers name them.
//!
//! A division's slug is its id and never changes. Divisions have no events of their own: they are the rooms that the
//! events of projects and capacity go to.

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use serde::{Deserialize, Serialize};

use super::Domain;
use crate::{
    auth::{Caller, Manages},
    db::Db,
    error::Result,
    ids::{Slug, Text},
    web::{Answer, Entity, Mutation, Page, PathArg, Query, Seen},
};

/// The routes.
pub(super) fn router() -> Router<Domain> {
    Router::new().route("/divisions", get(list)).route("/divisions/{slug}", put(set))
}

/// A division as it is answered.
#[derive(Debug, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
struct Division {
    slug: String,
    name: String,
    version: i64,
}

impl Entity for Division {
    const NOUN: &'static str = "division";

    fn version(&self) -> i64 {
        self.version
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    name: Text<1, 200>,
}

async fn list(State(db): State<Db>, _: Caller, Query(page): Query<Page>) -> Result<Response> {
    let mut read = db.read().await?;
    let divisions: Vec<Division> =
        sqlx::query_as("select slug, name, version from crewcast.divisions where slug > $1 order by slug limit $2")
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows())
            .fetch_all(&mut *read)
            .await?;
    Ok(Seen::at(&read, page.list(divisions, |division| division.slug.clone())).into_response())
}

async fn set(
    _: Manages,
    PathArg(slug): PathArg<Slug>,
    Mutation { mut tx, body: set }: Mutation<Set>,
) -> Result<Answer> {
    // A name that stays makes no new version.
    let (slug, name, version, made): (String, String, i64, bool) = sqlx::query_as(
        "insert into crewcast.divisions as division (slug, name) values ($1, $2)
         on conflict (slug) do update
             set name = excluded.name, version = division.version + (division.name <> excluded.name)::int
         returning slug, name, version, xmax = 0",
    )
    .bind(slug.as_str())
    .bind(set.name.as_str())
    .fetch_one(&mut *tx)
    .await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    tx.commit(Answer::current(&Division { slug, name, version }).with_status(status)).await
}
