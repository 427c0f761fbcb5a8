//! Projects: managers make and delete them, their editors change them.
//!
//! A caller who may not read a project is told that there is none. A project that moves to another division is told of
//! in both. A deleted project is gone for every request, and its row stays: its room keeps its readers for a while. Its
//! phases are gone with it, and its assignments are deleted in the same commit.
//!
//! Events: `project:created` and `project:deleted` with the project, `project:updated` once for each field that changed;
//! all to the project's room and its division's.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, capacity};
use crate::{
    auth::{Caller, Manages},
    db::{Conn, Db},
    error::{Error, OnConstraint as _, Result},
    ids::{Day, Room, Slug, Sub, Text},
    log::NewEvent,
    web::{
        Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page,
        Patch, PathArg, Query, Seen, Tx, fields_of, present,
    },
};

/// A project's columns.
macro_rules! columns {
    () => {
        "id, name, division, status, starts_on, ends_on, notes, version, field_versions, created_at, updated_at"
    };
}

/// What a caller may read: `$1` everything, `$2` their divisions, `$3` their `sub`.
macro_rules! readable {
    () => {
        "($1 or division = any($2)
          or exists (select from crewcast.members where project_id = project.id and sub = $3))"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_projects, make_project))
        .routes(routes!(read_project, change_project, delete_project))
        .emits::<Project>("project:created", "To the project's room and its division's.")
        .emits::<Updated<'_>>(
            "project:updated",
            "One for each field that changed. To the project's room and its division's, and to the one it came from.",
        )
        .emits::<Project>(
            "project:deleted",
            "The project as it was, with the version of its deletion. To the project's room and its division's.",
        )
        .headed("projects", "Managers make and delete them, their editors change them")
}

/// A project as it is answered and as its events carry it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Project {
    id: Uuid,
    #[schema(value_type = Name)]
    name: String,
    #[schema(value_type = Slug)]
    division: String,
    #[schema(value_type = Status)]
    status: String,
    #[schema(required)]
    starts_on: Option<Date>,
    #[schema(required)]
    ends_on: Option<Date>,
    #[schema(value_type = Notes)]
    notes: String,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl Entity for Project {
    const NOUN: &'static str = "project";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

/// Where a project stands, or a phase of one.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProjectStatus)]
pub(super) enum Status {
    #[default]
    Planned,
    Active,
    OnHold,
    Done,
}

impl Status {
    /// The name in JSON and in the database.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Active => "active",
            Self::OnHold => "on_hold",
            Self::Done => "done",
        }
    }
}

type Name = Text<1, 200>;
type Notes = Text<0, 20_000>;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Make {
    name: Name,
    division: Slug,
    #[serde(default)]
    #[schema(default = "planned")]
    status: Status,
    starts_on: Option<Day>,
    /// Not before `startsOn`.
    ends_on: Option<Day>,
    #[schema(default = "")]
    notes: Option<Notes>,
}

/// What is left out stays as it is. `null` empties a date, and is refused elsewhere.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    name: Option<Name>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    division: Option<Slug>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    status: Option<Status>,
    #[serde(default)]
    #[schema(value_type = Option<Day>)]
    starts_on: Patch<Day>,
    /// Not before `startsOn`.
    #[serde(default)]
    #[schema(value_type = Option<Day>)]
    ends_on: Patch<Day>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    notes: Option<Notes>,
}

/// The data of `project:updated`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ProjectUpdatedData)]
struct Updated<'a> {
    project_id: Uuid,
    #[schema(schema_with = fields_of::<Change>)]
    field: &'a str,
    #[schema(required, value_type = Option<String>)]
    new_value: &'a Value,
    updated_by: &'a Sub,
}

/// List the projects that the caller may read
///
/// Managers, admins and services read all; members those that they are a member of or whose division is in their token.
/// Oldest first.
#[utoipa::path(get, path = "/projects", params(Page))]
async fn list_projects(State(db): State<Db>, caller: Caller, Query(page): Query<Page>) -> Result<Seen<List<Project>>> {
    let after = page.after_id()?;
    let mut read = db.read().await?;
    let projects: Vec<Project> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from crewcast.projects project
         where id > $4 and deleted_at is null and ",
        readable!(),
        " order by id limit $5"
    ))
    .bind(caller.manages())
    .bind(divisions(&caller))
    .bind(caller.sub.as_str())
    .bind(after)
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    Ok(Seen::at(&read, page.list(projects, |project| project.id.to_string())))
}

/// Make a project
///
/// For managers, admins and services. Causes `project:created`.
#[utoipa::path(post, path = "/projects", request_body = inline(Make), responses((status = 403)))]
async fn make_project(_: Manages, Mutation { mut tx, body: make }: Mutation<Make>) -> Result<Answer<Made<Project>>> {
    let project: Project = sqlx::query_as(concat!(
        "insert into crewcast.projects (id, name, division, status, starts_on, ends_on, notes)
         values ($1, $2, $3, $4, $5, $6, $7)
         returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(make.name.as_str())
    .bind(make.division.as_str())
    .bind(make.status.as_str())
    .bind(make.starts_on.map(Day::date))
    .bind(make.ends_on.map(Day::date))
    .bind(make.notes.as_deref().unwrap_or_default())
    .fetch_one(&mut *tx)
    .await
    .on_constraint("projects_division", no_such_division)
    .on_constraint("projects_dates", dates_reversed)?;
    tx.append(NewEvent::new("project:created", rooms(&project, None), project.version, &project));
    tx.commit(Answer::made(format!("/v1/projects/{}", project.id), &project)).await
}

/// Read a project
///
/// A stream that resumes from the answer's `Crewcast-Cursor` gets every change that is not in the answer.
#[utoipa::path(get, path = "/projects/{id}", params(("id" = Uuid, Path)), responses((status = 404)))]
async fn read_project(State(db): State<Db>, caller: Caller, PathArg(id): PathArg<Uuid>) -> Result<Seen<Project>> {
    let mut read = db.read().await?;
    let (project, _) = find(&mut read, &caller, id, false).await?;
    Ok(Seen::entity(&read, project))
}

/// Change some of a project's fields
///
/// For its editors, and for managers, admins and services. Causes one `project:updated` for each field that is not what it
/// was, all with the same version; a change of nothing makes no version and no event. A project that moves to another
/// division is told of in both.
#[utoipa::path(
    patch,
    path = "/projects/{id}",
    params(("id" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses((status = 403), (status = 404))
)]
async fn change_project(
    caller: Caller,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    Mutation { mut tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Project>>> {
    let old = find_to_edit(&mut tx, &caller, id).await?;
    let mut new = old.clone();
    let changed = change.apply(&mut new);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let new = store(&mut tx, &new, &changed).await?;
    for (field, value) in changed.iter() {
        let updated = Updated { project_id: id, field, new_value: value, updated_by: &caller.sub };
        tx.append(NewEvent::new("project:updated", rooms(&new, Some(&old)), new.version, &updated));
    }
    tx.commit(Answer::current(&new)).await
}

/// Delete a project
///
/// For managers, admins and services. Causes `project:deleted`. From then on the project is 404, and its phases with it;
/// its room can be joined and read by those who could before for `retention`. Its assignments are deleted: one
/// `capacity:updated` for each week of an employee that had hours for it.
#[utoipa::path(
    delete,
    path = "/projects/{id}",
    params(("id" = Uuid, Path), IfMatch),
    responses((status = 403), (status = 404))
)]
async fn delete_project(
    caller: Caller,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    let (mut project, _) = find(&mut tx, &caller, id, true).await?;
    Manages::try_from(caller)?;
    if_match.require(&project)?;
    sqlx::query("update crewcast.projects set deleted_at = now(), version = version + 1 where id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    project.version += 1;
    tx.append(NewEvent::new("project:deleted", rooms(&project, None), project.version, &project));
    capacity::release(&mut tx, id).await?;
    tx.commit(Answer::nothing()).await
}

impl Change {
    /// Changes the project, and says which fields are not what they were.
    fn apply(self, project: &mut Project) -> Changed {
        let mut changed = Changed::default();
        changed.set("name", &mut project.name, self.name.map(Text::into_string));
        changed.set("division", &mut project.division, self.division.map(|division| division.to_string()));
        changed.set("status", &mut project.status, self.status.map(|status| status.as_str().to_owned()));
        changed.set("startsOn", &mut project.starts_on, self.starts_on.map(Day::date).into_change());
        changed.set("endsOn", &mut project.ends_on, self.ends_on.map(Day::date).into_change());
        changed.set("notes", &mut project.notes, self.notes.map(Text::into_string));
        changed
    }
}

/// The rooms that an event about a project goes to: its own, its division's, and the one it comes from.
fn rooms(project: &Project, before: Option<&Project>) -> Vec<String> {
    let mut rooms = vec![Room::Project(project.id).to_string(), format!("division:{}", project.division)];
    if let Some(before) = before.filter(|before| before.division != project.division) {
        rooms.push(format!("division:{}", before.division));
    }
    rooms
}

fn no_such_division() -> Error {
    Error::invalid_body("/division", "there is no such division")
}

fn dates_reversed() -> Error {
    Error::invalid_body("/endsOn", "must not be before startsOn")
}

fn divisions(caller: &Caller) -> Vec<&str> {
    caller.divisions.iter().map(|slug| slug.as_str()).collect()
}

/// A project that the caller may read, and whether they may change it; locked if it is about to be.
async fn find(conn: &mut Conn, caller: &Caller, id: Uuid, lock: bool) -> Result<(Project, bool)> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        project: Project,
        edits: bool,
    }
    macro_rules! find {
        ($lock:literal) => {
            concat!(
                "select ",
                columns!(),
                ", $1 or exists (select from crewcast.members
                                 where project_id = project.id and sub = $3 and role = 'editor') as edits
                 from crewcast.projects project
                 where id = $4 and deleted_at is null and ",
                readable!(),
                $lock
            )
        };
    }
    let row: Option<Row> = sqlx::query_as(if lock { find!(" for no key update of project") } else { find!("") })
        .bind(caller.manages())
        .bind(divisions(caller))
        .bind(caller.sub.as_str())
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.map(|row| (row.project, row.edits)).ok_or_else(Error::not_found)
}

/// A project that the caller may change, locked.
async fn find_to_edit(conn: &mut Conn, caller: &Caller, id: Uuid) -> Result<Project> {
    match find(conn, caller, id, true).await? {
        (project, true) => Ok(project),
        _ => Err(Error::forbidden("Only a project's editors and managers may change it.")),
    }
}

async fn store(conn: &mut Conn, project: &Project, changed: &Changed) -> Result<Project> {
    sqlx::query_as(concat!(
        "update crewcast.projects
         set name = $2, division = $3, status = $4, starts_on = $5, ends_on = $6, notes = $7,
             version = version + 1, field_versions = field_versions || $8, updated_at = now()
         where id = $1
         returning ",
        columns!()
    ))
    .bind(project.id)
    .bind(&project.name)
    .bind(&project.division)
    .bind(&project.status)
    .bind(project.starts_on)
    .bind(project.ends_on)
    .bind(&project.notes)
    .bind(changed.versions(project.version + 1))
    .fetch_one(conn)
    .await
    .on_constraint("projects_division", no_such_division)
    .on_constraint("projects_dates", dates_reversed)
}

/// Makes sure that the caller may read a project.
///
/// # Errors
/// 404 when they may not, or it is not there.
pub(super) async fn look(conn: &mut Conn, caller: &Caller, id: Uuid) -> Result<()> {
    find(conn, caller, id, false).await.map(drop)
}

/// Makes sure that the caller may read a project, and that it stays until the transaction ends.
///
/// # Errors
/// 404 when they may not, or it is not there.
pub(super) async fn stay(conn: &mut Conn, caller: &Caller, id: Uuid) -> Result<()> {
    look(&mut *conn, caller, id).await?;
    if hold_all(conn, &[id]).await?.is_empty() {
        return Err(Error::not_found());
    }
    Ok(())
}

/// Locks a project, for a caller who edits it or what belongs to it.
///
/// # Errors
/// 404 when they may not read it, or it is not there; 403 when they may read it and not edit it.
pub(super) async fn edit(conn: &mut Conn, caller: &Caller, id: Uuid) -> Result<()> {
    find_to_edit(conn, caller, id).await.map(drop)
}

/// Makes sure that a project is there and stays until the transaction ends, for a caller who manages it.
///
/// # Errors
/// 404 when it is not, was deleted, or may not be read by the caller; 403 when they may read it and not manage it.
pub(super) async fn hold(conn: &mut Conn, caller: Caller, id: Uuid) -> Result<()> {
    if !caller.manages() {
        find(&mut *conn, &caller, id, false).await?;
        Manages::try_from(caller)?;
    }
    if hold_all(conn, &[id]).await?.is_empty() {
        return Err(Error::not_found());
    }
    Ok(())
}

/// Of these projects, those that are there: they stay until the transaction ends. Locked in the order of their ids, so
/// that nobody who does the same waits in a circle.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn hold_all(conn: &mut Conn, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    let there = sqlx::query_scalar(
        "select id from crewcast.projects where id = any($1) and deleted_at is null order by id for share",
    );
    Ok(there.bind(ids).fetch_all(conn).await?)
}
