//! Who works on a project: `viewer`s read it, `editor`s change it as well. Managers decide.
//!
//! Events: `membership:changed` with the new role, or null, to the project's room and the person's own.

use axum::{Router, http::StatusCode, routing::put};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{Domain, projects};
use crate::{
    auth::Caller,
    error::{Error, Result},
    ids::{Room, Sub},
    log::NewEvent,
    web::{Answer, Mutation, PathArg, Tx},
};

/// The routes.
pub(super) fn router() -> Router<Domain> {
    Router::new().route("/projects/{id}/members/{sub}", put(set).delete(remove))
}

/// A membership as it is answered.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    project_id: Uuid,
    sub: Sub,
    role: Role,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    Viewer,
    Editor,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    role: Role,
}

async fn set(
    caller: Caller,
    PathArg((project_id, sub)): PathArg<(Uuid, Sub)>,
    Mutation { mut tx, body: Set { role } }: Mutation<Set>,
) -> Result<Answer> {
    projects::hold(&mut tx, caller, project_id).await?;
    // A role that stays is no change, and no event.
    let changed = sqlx::query(
        "insert into crewcast.members as member (project_id, sub, role) values ($1, $2, $3)
         on conflict (project_id, sub) do update set role = excluded.role where member.role <> excluded.role",
    )
    .bind(project_id)
    .bind(sub.as_str())
    .bind(match role {
        Role::Viewer => "viewer",
        Role::Editor => "editor",
    })
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if changed > 0 {
        announce(&mut tx, project_id, &sub, Some(role));
    }
    tx.commit(Answer::of(StatusCode::OK, &Member { project_id, sub, role })).await
}

async fn remove(caller: Caller, PathArg((project_id, sub)): PathArg<(Uuid, Sub)>, mut tx: Tx) -> Result<Answer> {
    projects::hold(&mut tx, caller, project_id).await?;
    let removed = sqlx::query("delete from crewcast.members where project_id = $1 and sub = $2")
        .bind(project_id)
        .bind(sub.as_str())
        .execute(&mut *tx)
        .await?
        .rows_affected();
    if removed == 0 {
        return Err(Error::not_found());
    }
    announce(&mut tx, project_id, &sub, None);
    tx.commit(Answer::nothing()).await
}

fn announce(tx: &mut Tx, project_id: Uuid, sub: &Sub, role: Option<Role>) {
    let rooms = vec![Room::Project(project_id).to_string(), Room::User(sub.clone()).to_string()];
    let data = json!({ "projectId": project_id, "userId": sub, "role": role });
    tx.append(NewEvent::unversioned("membership:changed", rooms, &data));
}
