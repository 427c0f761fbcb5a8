//! Who works on a project: `viewer`s read it, `editor`s change it as well. Managers decide.
//!
//! Events: `membership:changed` with the new role, or null, to the project's room and the person's own.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, projects};
use crate::{
    auth::Caller,
    error::{Error, Result},
    ids::{Room, Sub},
    log::NewEvent,
    web::{Answer, Describe as _, Mutation, Nothing, PathArg, Plain, Tx},
};

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(set_member, remove_member))
        .emits::<Changed<'_>>("membership:changed", "To the project's room and the person's own.")
        .headed("members", "Who reads and who changes a project")
}

/// A membership as it is answered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Member {
    project_id: Uuid,
    sub: Sub,
    role: Role,
}

/// A viewer reads the project, an editor changes it as well.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MemberRole)]
enum Role {
    Viewer,
    Editor,
}

/// The data of `membership:changed`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = MembershipChangedData)]
struct Changed<'a> {
    project_id: Uuid,
    user_id: &'a Sub,
    /// Null where they are no member any more.
    #[schema(required)]
    role: Option<Role>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetMember {
    role: Role,
}

/// Make somebody a member of a project, or change their role
///
/// For managers, admins and services. Causes `membership:changed`, unless the role is what it was.
#[utoipa::path(
    put,
    path = "/projects/{id}/members/{sub}",
    params(("id" = Uuid, Path), ("sub" = Sub, Path, description = "The member's `sub`, percent-encoded.")),
    request_body = inline(SetMember),
    responses((status = 403), (status = 404))
)]
async fn set_member(
    caller: Caller,
    PathArg((project_id, sub)): PathArg<(Uuid, Sub)>,
    Mutation { mut tx, body: SetMember { role } }: Mutation<SetMember>,
) -> Result<Answer<Plain<Member>>> {
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
    tx.commit(Answer::plain(&Member { project_id, sub, role })).await
}

/// End a membership
///
/// For managers, admins and services. Causes `membership:changed` with the role null.
#[utoipa::path(
    delete,
    path = "/projects/{id}/members/{sub}",
    params(("id" = Uuid, Path), ("sub" = Sub, Path, description = "The member's `sub`, percent-encoded.")),
    responses((status = 403), (status = 404))
)]
async fn remove_member(
    caller: Caller,
    PathArg((project_id, sub)): PathArg<(Uuid, Sub)>,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
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
    let changed = Changed { project_id, user_id: sub, role };
    tx.append(NewEvent::unversioned("membership:changed", rooms, &changed));
}
