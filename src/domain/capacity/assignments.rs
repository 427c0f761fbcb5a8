//! Assignments: so many hours of an employee for a project in a week. Everybody reads them, managers make and change them.
//!
//! There is at most one for each employee, project and week. A deleted project's assignments are deleted with it: what
//! was planned for it is free again, in the same commit.
//!
//! Assignments have no events of their own; those of capacity are told in the parent's doc.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use sqlx::{Executor as _, Postgres, QueryBuilder};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, Hours, Key, Number, capacity_of, current_week, employees, projects, tell};
use crate::{
    auth::{Caller, Manages},
    db::{Conn, Db},
    error::{Code, Error, OnConstraint as _, Result},
    ids::{Slug, Week},
    web::{
        Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page,
        PathArg, Query, Seen, Tx, present,
    },
};

/// An assignment's columns.
macro_rules! columns {
    () => {
        "id, employee_id, project_id, week, hours::float8 as hours, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_assignments, make_assignment))
        .routes(routes!(read_assignment, change_assignment, delete_assignment))
        .headed("assignments", "Who works on what in which week. Everybody reads them, managers make and change them")
}

/// An assignment as it is answered.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Assignment {
    id: Uuid,
    employee_id: Uuid,
    project_id: Uuid,
    #[schema(value_type = Week)]
    week: String,
    #[schema(value_type = Hours)]
    hours: Number,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
}

impl Entity for Assignment {
    const NOUN: &'static str = "assignment";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

impl Assignment {
    /// The week whose sum it counts in.
    fn key(&self) -> Key {
        (self.employee_id, self.week.clone())
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Make {
    employee_id: Uuid,
    project_id: Uuid,
    week: Week,
    hours: Hours,
}

/// What is left out stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    employee_id: Option<Uuid>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    project_id: Option<Uuid>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    week: Option<Week>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    hours: Option<Hours>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
struct Filter {
    /// Only this employee's.
    employee_id: Option<Uuid>,
    /// Only those to this project.
    project_id: Option<Uuid>,
    /// Only those in this week.
    week: Option<Week>,
    /// Only those of employees of this division.
    division: Option<Slug>,
    #[serde(flatten)]
    #[param(ignore)]
    page: Page,
}

/// List the assignments
///
/// Oldest first. Filters narrow one another.
#[utoipa::path(get, path = "/assignments", params(Filter, Page))]
async fn list_assignments(
    State(db): State<Db>,
    _: Caller,
    Query(filter): Query<Filter>,
) -> Result<Seen<List<Assignment>>> {
    let mut statement = filter.statement()?;
    let mut read = db.read().await?;
    let assignments: Vec<Assignment> = statement.build_query_as().fetch_all(&mut *read).await?;
    let list = filter.page.list(assignments, |assignment| assignment.id.to_string());
    Ok(Seen::at(&read, list))
}

impl Filter {
    /// Only what was asked for stands in it, so that each combination has the index that serves it.
    fn statement(&self) -> Result<QueryBuilder<Postgres>> {
        let mut statement =
            QueryBuilder::new(concat!("select ", columns!(), " from crewcast.assignments as assignment where id > "));
        statement.push_bind(self.page.after_id()?);
        if let Some(id) = self.employee_id {
            statement.push(" and employee_id = ").push_bind(id);
        }
        if let Some(id) = self.project_id {
            statement.push(" and project_id = ").push_bind(id);
        }
        if let Some(week) = self.week {
            statement.push(" and week = ").push_bind(week.to_string());
        }
        if let Some(division) = &self.division {
            let of_division = " and exists (select from crewcast.employees
                                            where id = assignment.employee_id and division = ";
            statement.push(of_division).push_bind(division.to_string()).push(")");
        }
        statement.push(" order by id limit ").push_bind(self.page.rows());
        Ok(statement)
    }
}

/// Assign an employee to a project for a week
///
/// For managers, admins and services. There is one for each employee, project and week: a second is 409. Causes
/// `capacity:updated`.
#[utoipa::path(
    post,
    path = "/assignments",
    request_body = inline(Make),
    responses(
        (status = 403),
        (status = 409, description = "`already_exists`: the employee has an assignment to this project in this week.")
    )
)]
async fn make_assignment(
    _: Manages,
    Mutation { mut tx, body: make }: Mutation<Make>,
) -> Result<Answer<Made<Assignment>>> {
    Locked::take(&mut tx, &[make.project_id], &[make.employee_id])
        .await?
        .require(Some(make.project_id), Some(make.employee_id))?;
    let before = capacity_of(&mut tx, &[(make.employee_id, make.week.to_string())]).await?;
    let assignment: Assignment = sqlx::query_as(concat!(
        "insert into crewcast.assignments (id, employee_id, project_id, week, hours) values ($1, $2, $3, $4, $5)
         returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(make.employee_id)
    .bind(make.project_id)
    .bind(make.week.to_string())
    .bind(make.hours.number())
    .fetch_one(&mut *tx)
    .await
    .on_constraint("assignments_once", exists_already)?;
    tell(&mut tx, before).await?;
    tx.commit(Answer::made(format!("/v1/assignments/{}", assignment.id), &assignment)).await
}

/// Read an assignment
#[utoipa::path(get, path = "/assignments/{id}", params(("id" = Uuid, Path)), responses((status = 404)))]
async fn read_assignment(State(db): State<Db>, _: Caller, PathArg(id): PathArg<Uuid>) -> Result<Seen<Assignment>> {
    let mut read = db.read().await?;
    let assignment = find(&mut read, id).await?;
    Ok(Seen::entity(&read, assignment))
}

/// Change some of an assignment's fields
///
/// For managers, admins and services. Causes one `capacity:updated` for each week of an employee whose hours are not what
/// they were: two where it moves to another week or employee, none where only the project changes.
#[utoipa::path(
    patch,
    path = "/assignments/{id}",
    params(("id" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses(
        (status = 403),
        (status = 404),
        (status = 409, description = "`already_exists`: the employee has an assignment to this project in this week.")
    )
)]
async fn change_assignment(
    _: Manages,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    Mutation { mut tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Assignment>>> {
    let old = hold(&mut tx, id, &change).await?;
    let mut new = old.clone();
    let changed = change.apply(&mut new);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let before = capacity_of(&mut tx, &[old.key(), new.key()]).await?;
    let new = store(&mut tx, &new, &changed).await?;
    tell(&mut tx, before).await?;
    tx.commit(Answer::current(&new)).await
}

/// Delete an assignment
///
/// For managers, admins and services. Causes `capacity:updated`.
#[utoipa::path(
    delete,
    path = "/assignments/{id}",
    params(("id" = Uuid, Path), IfMatch),
    responses((status = 403), (status = 404))
)]
async fn delete_assignment(
    _: Manages,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    let assignment = hold(&mut tx, id, &Change::default()).await?;
    if_match.require(&assignment)?;
    let before = capacity_of(&mut tx, &[assignment.key()]).await?;
    sqlx::query("delete from crewcast.assignments where id = $1").bind(id).execute(&mut *tx).await?;
    tell(&mut tx, before).await?;
    tx.commit(Answer::nothing()).await
}

impl Change {
    /// Changes the assignment, and says which fields are not what they were.
    fn apply(self, assignment: &mut Assignment) -> Changed {
        let mut changed = Changed::default();
        changed.set("employeeId", &mut assignment.employee_id, self.employee_id);
        changed.set("projectId", &mut assignment.project_id, self.project_id);
        changed.set("week", &mut assignment.week, self.week.map(|week| week.to_string()));
        changed.set("hours", &mut assignment.hours, self.hours.map(Hours::number));
        changed
    }
}

fn exists_already() -> Error {
    let detail = "The employee has an assignment to this project in this week already: change that one.";
    Error::new(Code::AlreadyExists, detail)
}

/// The projects and employees that a change touches, as far as they are there; they stay as they are until its
/// transaction ends.
struct Locked {
    projects: Vec<Uuid>,
    employees: Vec<Uuid>,
}

impl Locked {
    async fn take(conn: &mut Conn, projects: &[Uuid], employees: &[Uuid]) -> Result<Self> {
        let projects = projects::hold_all(conn, projects).await?;
        Ok(Self { projects, employees: employees::lock(conn, employees).await? })
    }

    /// 422 when what the client named is not there.
    fn require(&self, project: Option<Uuid>, employee: Option<Uuid>) -> Result<()> {
        if project.is_some_and(|id| !self.projects.contains(&id)) {
            return Err(Error::invalid_body("/projectId", "there is no such project"));
        }
        if employee.is_some_and(|id| !self.employees.contains(&id)) {
            return Err(Error::invalid_body("/employeeId", "there is no such employee"));
        }
        Ok(())
    }
}

/// An assignment that is to be changed, with all that the change touches locked.
///
/// The assignment says what is to be locked and can be read only before that. If another change moved it in the
/// meantime, what was locked is given free again: a lock added out of order could close a circle. Each turn means that
/// somebody else got theirs done.
async fn hold(conn: &mut Conn, id: Uuid, change: &Change) -> Result<Assignment> {
    loop {
        (&mut *conn).execute("savepoint turn").await?;
        let seen = find(conn, id).await?;
        let projects: Vec<Uuid> = [seen.project_id].into_iter().chain(change.project_id).collect();
        let employees: Vec<Uuid> = [seen.employee_id].into_iter().chain(change.employee_id).collect();
        let locked = Locked::take(conn, &projects, &employees).await?;
        let held = find(conn, id).await?;
        if (held.project_id, held.employee_id) == (seen.project_id, seen.employee_id) {
            locked.require(change.project_id, change.employee_id)?;
            return Ok(held);
        }
        conn.rollback_to("turn").await?;
    }
}

async fn find(conn: &mut Conn, id: Uuid) -> Result<Assignment> {
    let assignment = sqlx::query_as(concat!("select ", columns!(), " from crewcast.assignments where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    assignment.ok_or_else(Error::not_found)
}

async fn store(conn: &mut Conn, assignment: &Assignment, changed: &Changed) -> Result<Assignment> {
    sqlx::query_as(concat!(
        "update crewcast.assignments
         set employee_id = $2, project_id = $3, week = $4, hours = $5, version = version + 1,
             field_versions = field_versions || $6
         where id = $1
         returning ",
        columns!()
    ))
    .bind(assignment.id)
    .bind(assignment.employee_id)
    .bind(assignment.project_id)
    .bind(&assignment.week)
    .bind(assignment.hours)
    .bind(changed.versions(assignment.version + 1))
    .fetch_one(conn)
    .await
    .on_constraint("assignments_once", exists_already)
}

/// The weeks from the current one on in which an employee has assignments.
pub(super) async fn weeks_ahead(conn: &mut Conn, employee_id: Uuid) -> Result<Vec<Key>> {
    let ahead = concat!(
        "select distinct employee_id, week from crewcast.assignments where employee_id = $1 and week >= ",
        current_week!()
    );
    Ok(sqlx::query_as(ahead).bind(employee_id).fetch_all(conn).await?)
}

/// All weeks in which an employee has assignments.
pub(super) async fn weeks_of_employee(conn: &mut Conn, employee_id: Uuid) -> Result<Vec<Key>> {
    let weeks = sqlx::query_as("select distinct employee_id, week from crewcast.assignments where employee_id = $1");
    Ok(weeks.bind(employee_id).fetch_all(conn).await?)
}

/// All weeks in which somebody has an assignment to a project.
pub(super) async fn weeks_of_project(conn: &mut Conn, project_id: Uuid) -> Result<Vec<Key>> {
    let weeks = sqlx::query_as("select employee_id, week from crewcast.assignments where project_id = $1");
    Ok(weeks.bind(project_id).fetch_all(conn).await?)
}

/// Everybody who has an assignment to a project.
pub(super) async fn employees_of_project(conn: &mut Conn, project_id: Uuid) -> Result<Vec<Uuid>> {
    let employees = sqlx::query_scalar("select distinct employee_id from crewcast.assignments where project_id = $1");
    Ok(employees.bind(project_id).fetch_all(conn).await?)
}

/// Deletes what somebody was assigned to.
pub(super) async fn delete_of_employee(conn: &mut Conn, employee_id: Uuid) -> Result<()> {
    let delete = sqlx::query("delete from crewcast.assignments where employee_id = $1");
    delete.bind(employee_id).execute(conn).await?;
    Ok(())
}

/// Deletes the assignments to a project.
pub(super) async fn delete_of_project(conn: &mut Conn, project_id: Uuid) -> Result<()> {
    let delete = sqlx::query("delete from crewcast.assignments where project_id = $1");
    delete.bind(project_id).execute(conn).await?;
    Ok(())
}
