//! Phases of a project: whoever edits the project makes, changes and deletes them; whoever reads it reads them.
//!
//! They are listed by `position`, and where two share one, the older goes first: moving a phase changes that phase
//! alone. One that is made without a position goes to the end. A deleted project's phases are gone with it, and
//! `project:deleted` says so for all of them.
//!
//! Events: `phase:created` and `phase:deleted` with the phase, `phase:updated` once for each field that changed; all to
//! the project's room.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::Date;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type, schema::SchemaType},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, projects, projects::Status};
use crate::{
    auth::Caller,
    db::{Conn, Db},
    error::{Error, OnConstraint as _, Result},
    ids::{Day, Room, Sub, Text},
    log::NewEvent,
    web::{
        Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page,
        Patch, PathArg, Query, Seen, Tx, fields_of, present,
    },
};

/// A phase's columns.
macro_rules! columns {
    () => {
        "id, project_id, name, status, starts_on, ends_on, position, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_phases, make_phase))
        .routes(routes!(read_phase, change_phase, delete_phase))
        .emits::<Phase>("phase:created", "To the project's room.")
        .emits::<Updated<'_>>("phase:updated", "One for each field that changed. To the project's room.")
        .emits::<Phase>(
            "phase:deleted",
            "The phase as it was, with the version of its deletion. To the project's room. The phases of a deleted \
             project have none: `project:deleted` stands for all.",
        )
        .headed("phases", "Whoever edits a project makes, changes and deletes its phases")
}

/// A phase as it is answered and as its events carry it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Phase {
    id: Uuid,
    project_id: Uuid,
    #[schema(value_type = Name)]
    name: String,
    #[schema(value_type = Status)]
    status: String,
    #[schema(required)]
    starts_on: Option<Date>,
    #[schema(required)]
    ends_on: Option<Date>,
    #[schema(value_type = Place)]
    position: i32,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
}

impl Entity for Phase {
    const NOUN: &'static str = "phase";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

type Name = Text<1, 200>;

/// A place among a project's phases: 0 to [`Place::MAX`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
struct Place(i32);

impl Place {
    const MAX: i32 = 1_000_000;
}

impl TryFrom<i64> for Place {
    type Error = String;

    fn try_from(given: i64) -> Result<Self, String> {
        let place = i32::try_from(given).ok().filter(|place| (0..=Self::MAX).contains(place));
        place.map(Self).ok_or_else(|| format!("must be from 0 to {}", Self::MAX))
    }
}

impl PartialSchema for Place {
    fn schema() -> RefOr<Schema> {
        let place = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(Self::MAX));
        place.description(Some("A place among a project's phases.")).into()
    }
}

impl ToSchema for Place {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Make {
    name: Name,
    #[serde(default)]
    #[schema(default = "planned")]
    status: Status,
    starts_on: Option<Day>,
    /// Not before `startsOn`.
    ends_on: Option<Day>,
    /// Where it stands among the project's phases. Left out, it goes to the end. No other phase moves.
    position: Option<Place>,
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
    position: Option<Place>,
}

/// The data of `phase:updated`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PhaseUpdatedData)]
struct Updated<'a> {
    project_id: Uuid,
    phase_id: Uuid,
    #[schema(schema_with = fields_of::<Change>)]
    field: &'a str,
    #[schema(schema_with = new_value)]
    new_value: &'a Value,
    updated_by: &'a Sub,
}

fn new_value() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
}

/// List a project's phases
///
/// For whoever may read the project. By `position`, and where two share one the older first.
#[utoipa::path(get, path = "/projects/{id}/phases", params(("id" = Uuid, Path), Page), responses((status = 404)))]
async fn list_phases(
    State(db): State<Db>,
    caller: Caller,
    PathArg(project_id): PathArg<Uuid>,
    Query(page): Query<Page>,
) -> Result<Seen<List<Phase>>> {
    let (position, id) = after(&page)?;
    let mut read = db.read().await?;
    projects::look(&mut read, &caller, project_id).await?;
    let phases: Vec<Phase> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from crewcast.phases
         where project_id = $1 and (position, id) > ($2, $3)
         order by position, id limit $4"
    ))
    .bind(project_id)
    .bind(position)
    .bind(id)
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    let cursor = |phase: &Phase| format!("{}.{}", phase.position, phase.id);
    Ok(Seen::at(&read, page.list(phases, cursor)))
}

/// Make a phase
///
/// For the project's editors, and for managers, admins and services. Causes `phase:created`.
#[utoipa::path(
    post,
    path = "/projects/{id}/phases",
    params(("id" = Uuid, Path)),
    request_body = inline(Make),
    responses((status = 403), (status = 404))
)]
async fn make_phase(
    caller: Caller,
    PathArg(project_id): PathArg<Uuid>,
    Mutation { mut tx, body: make }: Mutation<Make>,
) -> Result<Answer<Made<Phase>>> {
    projects::edit(&mut tx, &caller, project_id).await?;
    // The project is locked: no two go to the end at once. The end itself does not move on.
    let phase: Phase = sqlx::query_as(concat!(
        "insert into crewcast.phases (id, project_id, name, status, starts_on, ends_on, position)
         values ($1, $2, $3, $4, $5, $6,
                 coalesce($7, (select least(coalesce(max(position) + 1, 0), $8) from crewcast.phases where project_id = $2)))
         returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(project_id)
    .bind(make.name.as_str())
    .bind(make.status.as_str())
    .bind(make.starts_on.map(Day::date))
    .bind(make.ends_on.map(Day::date))
    .bind(make.position.map(|place| place.0))
    .bind(Place::MAX)
    .fetch_one(&mut *tx)
    .await
    .on_constraint("phases_dates", dates_reversed)?;
    tx.append(NewEvent::new("phase:created", rooms(&phase), phase.version, &phase));
    tx.commit(Answer::made(format!("/v1/projects/{project_id}/phases/{}", phase.id), &phase)).await
}

/// Read a phase
///
/// For whoever may read the project.
#[utoipa::path(
    get,
    path = "/projects/{id}/phases/{phaseId}",
    params(("id" = Uuid, Path), ("phaseId" = Uuid, Path)),
    responses((status = 404))
)]
async fn read_phase(State(db): State<Db>, caller: Caller, PathArg(ids): PathArg<(Uuid, Uuid)>) -> Result<Seen<Phase>> {
    let mut read = db.read().await?;
    projects::look(&mut read, &caller, ids.0).await?;
    let phase = find(&mut read, ids).await?;
    Ok(Seen::entity(&read, phase))
}

/// Change some of a phase's fields
///
/// For the project's editors, and for managers, admins and services. Causes one `phase:updated` for each field that is not
/// what it was, all with the same version; a change of nothing makes no version and no event.
#[utoipa::path(
    patch,
    path = "/projects/{id}/phases/{phaseId}",
    params(("id" = Uuid, Path), ("phaseId" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses((status = 403), (status = 404))
)]
async fn change_phase(
    caller: Caller,
    PathArg(ids): PathArg<(Uuid, Uuid)>,
    if_match: IfMatch,
    Mutation { mut tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Phase>>> {
    projects::edit(&mut tx, &caller, ids.0).await?;
    let old = find(&mut tx, ids).await?;
    let mut phase = old.clone();
    let changed = change.apply(&mut phase);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let phase = store(&mut tx, &phase, &changed).await?;
    for (field, value) in changed.iter() {
        let (project_id, phase_id) = ids;
        let updated = Updated { project_id, phase_id, field, new_value: value, updated_by: &caller.sub };
        tx.append(NewEvent::new("phase:updated", rooms(&phase), phase.version, &updated));
    }
    tx.commit(Answer::current(&phase)).await
}

/// Delete a phase
///
/// For the project's editors, and for managers, admins and services. Causes `phase:deleted`.
#[utoipa::path(
    delete,
    path = "/projects/{id}/phases/{phaseId}",
    params(("id" = Uuid, Path), ("phaseId" = Uuid, Path), IfMatch),
    responses((status = 403), (status = 404))
)]
async fn delete_phase(
    caller: Caller,
    PathArg(ids): PathArg<(Uuid, Uuid)>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    projects::edit(&mut tx, &caller, ids.0).await?;
    let mut phase = find(&mut tx, ids).await?;
    if_match.require(&phase)?;
    sqlx::query("delete from crewcast.phases where id = $1").bind(phase.id).execute(&mut *tx).await?;
    phase.version += 1;
    tx.append(NewEvent::new("phase:deleted", rooms(&phase), phase.version, &phase));
    tx.commit(Answer::nothing()).await
}

impl Change {
    /// Changes the phase, and says which fields are not what they were.
    fn apply(self, phase: &mut Phase) -> Changed {
        let mut changed = Changed::default();
        changed.set("name", &mut phase.name, self.name.map(Text::into_string));
        changed.set("status", &mut phase.status, self.status.map(|status| status.as_str().to_owned()));
        changed.set("startsOn", &mut phase.starts_on, self.starts_on.map(Day::date).into_change());
        changed.set("endsOn", &mut phase.ends_on, self.ends_on.map(Day::date).into_change());
        changed.set("position", &mut phase.position, self.position.map(|place| place.0));
        changed
    }
}

fn rooms(phase: &Phase) -> Vec<String> {
    vec![Room::Project(phase.project_id).to_string()]
}

fn dates_reversed() -> Error {
    Error::invalid_body("/endsOn", "must not be before startsOn")
}

/// The place that a page begins behind, as a list gave it: `{position}.{id}`.
fn after(page: &Page) -> Result<(i32, Uuid)> {
    let Some(after) = page.after.as_deref() else { return Ok((-1, Uuid::nil())) };
    let place = after.split_once('.').and_then(|(position, id)| Some((position.parse().ok()?, id.parse().ok()?)));
    place.ok_or_else(Page::not_of_this_list)
}

/// A project's phase. Nobody else writes it while the project is locked.
async fn find(conn: &mut Conn, (project_id, id): (Uuid, Uuid)) -> Result<Phase> {
    let phase =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.phases where id = $1 and project_id = $2"))
            .bind(id)
            .bind(project_id)
            .fetch_optional(conn)
            .await?;
    phase.ok_or_else(Error::not_found)
}

async fn store(conn: &mut Conn, phase: &Phase, changed: &Changed) -> Result<Phase> {
    sqlx::query_as(concat!(
        "update crewcast.phases
         set name = $2, status = $3, starts_on = $4, ends_on = $5, position = $6, version = version + 1,
             field_versions = field_versions || $7
         where id = $1
         returning ",
        columns!()
    ))
    .bind(phase.id)
    .bind(&phase.name)
    .bind(&phase.status)
    .bind(phase.starts_on)
    .bind(phase.ends_on)
    .bind(phase.position)
    .bind(changed.versions(phase.version + 1))
    .fetch_one(conn)
    .await
    .on_constraint("phases_dates", dates_reversed)
}
