//! Divisions of the company: everybody reads them, managers name them.
//!
//! A division's slug is its id and never changes. Divisions have no events of their own: they are the rooms that the
//! events of projects and capacity go to.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Domain;
use crate::{
    auth::{Caller, Manages},
    db::Db,
    error::Result,
    ids::{Slug, Text},
    web::{Answer, Describe as _, Entity, List, Mutation, Page, PathArg, Query, Seen, Set},
};

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_divisions))
        .routes(routes!(set_division))
        .headed("divisions", "Everybody reads them, managers name them")
}

/// A division as it is answered.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Division {
    #[schema(value_type = Slug)]
    slug: String,
    #[schema(value_type = Name)]
    name: String,
    #[schema(minimum = 1)]
    version: i64,
}

impl Entity for Division {
    const NOUN: &'static str = "division";

    fn version(&self) -> i64 {
        self.version
    }
}

type Name = Text<1, 200>;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetDivision {
    name: Name,
}

/// List the divisions
///
/// By slug.
#[utoipa::path(get, path = "/divisions", params(Page))]
async fn list_divisions(State(db): State<Db>, _: Caller, Query(page): Query<Page>) -> Result<Seen<List<Division>>> {
    let mut read = db.read().await?;
    let divisions: Vec<Division> =
        sqlx::query_as("select slug, name, version from crewcast.divisions where slug > $1 order by slug limit $2")
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows())
            .fetch_all(&mut *read)
            .await?;
    Ok(Seen::at(&read, page.list(divisions, |division| division.slug.clone())))
}

/// Make a division, or name it anew
///
/// For managers, admins and services. The slug never changes. A name that stays makes no new version. It causes no event.
#[utoipa::path(
    put,
    path = "/divisions/{slug}",
    params(("slug" = Slug, Path)),
    request_body = inline(SetDivision),
    responses((status = 403))
)]
async fn set_division(
    _: Manages,
    PathArg(slug): PathArg<Slug>,
    Mutation { mut tx, body: set }: Mutation<SetDivision>,
) -> Result<Answer<Set<Division>>> {
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
    tx.commit(Answer::set(made, &Division { slug, name, version })).await
}
