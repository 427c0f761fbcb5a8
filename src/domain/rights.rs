//! Which rooms a caller may join: what the token alone does not decide.

use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::Domain;
use crate::{auth::Caller, error::Result, ids::Room};

/// Whether the caller may join each of these rooms. Asks Postgres only about projects of plain members.
///
/// # Errors
/// When Postgres does not answer.
pub async fn may_join(domain: &Domain, caller: &Caller, rooms: &[Room]) -> Result<Vec<bool>> {
    let open: Vec<Uuid> = rooms.iter().filter_map(|room| undecided(caller, room)).collect();
    let readable = if open.is_empty() { Vec::new() } else { readable(domain, caller, &open).await? };
    let decide = |room: &Room| match room {
        Room::Project(id) => caller.may_join_without_looking(room).unwrap_or_else(|| readable.contains(id)),
        room => caller.may_join_without_looking(room).unwrap_or(false),
    };
    Ok(rooms.iter().map(decide).collect())
}

fn undecided(caller: &Caller, room: &Room) -> Option<Uuid> {
    match room {
        Room::Project(id) if caller.may_join_without_looking(room).is_none() => Some(*id),
        _ => None,
    }
}

/// Of these projects, those that the caller is a member of or whose division is theirs. A deleted one keeps its readers
/// for a while, so that who was away still learns of it.
async fn readable(domain: &Domain, caller: &Caller, projects: &[Uuid]) -> Result<Vec<Uuid>> {
    let divisions: Vec<&str> = caller.divisions.iter().map(|slug| slug.as_str()).collect();
    let retention = PgInterval::try_from(domain.retention).unwrap_or_default();
    let mut conn = domain.db.acquire().await?;
    let readable = sqlx::query_scalar(
        "select id from crewcast.projects project
         where id = any($1)
           and (deleted_at is null or deleted_at > now() - $2)
           and (division = any($3)
                or exists (select from crewcast.members where project_id = project.id and sub = $4))",
    )
    .bind(projects)
    .bind(retention)
    .bind(divisions)
    .bind(caller.sub.as_str())
    .fetch_all(&mut *conn)
    .await?;
    Ok(readable)
}
