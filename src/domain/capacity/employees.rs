//! Employees: everybody reads them, managers keep them.
//!
//! Who changes division takes the weeks to come along, and their past weeks count for the new division too. Somebody
//! with assignments in the current week or later cannot be deleted: work that is planned would vanish from projects
//! that count on it, so it is given to others or dropped first. Nothing waits on past weeks, and they go with them.
//!
//! Employees have no events of their own; those of capacity are told in the parent's doc.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Domain, Hours, Number, assignments, capacity_of, tell};
use crate::{
    auth::{Caller, Manages},
    db::{Conn, Db},
    error::{Code, Error, OnConstraint as _, Result},
    ids::{Slug, Text},
    web::{
        Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page,
        PathArg, Query, Seen, Tx, present,
    },
};

/// An employee's columns.
macro_rules! columns {
    () => {
        "id, name, division, weekly_hours::float8 as weekly_hours, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_employees, make_employee))
        .routes(routes!(read_employee, change_employee, delete_employee))
        .routes(routes!(set_weekly_hours))
        .headed("employees", "Everybody reads them, managers keep them")
}

/// An employee as they are answered.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Employee {
    id: Uuid,
    #[schema(value_type = Name)]
    name: String,
    #[schema(value_type = Slug)]
    division: String,
    #[schema(value_type = Hours)]
    weekly_hours: Number,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
}

impl Entity for Employee {
    const NOUN: &'static str = "employee";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

type Name = Text<1, 200>;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Make {
    name: Name,
    division: Slug,
    weekly_hours: Hours,
}

/// What is left out stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
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
    weekly_hours: Option<Hours>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetWeeklyHours {
    weekly_hours: Hours,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only those of this division.
    division: Option<Slug>,
    #[serde(flatten)]
    #[param(ignore)]
    page: Page,
}

/// List the employees
///
/// Oldest first.
#[utoipa::path(get, path = "/employees", params(Filter, Page))]
async fn list_employees(State(db): State<Db>, _: Caller, Query(filter): Query<Filter>) -> Result<Seen<List<Employee>>> {
    let page = filter.page;
    let after = page.after_id()?;
    let mut read = db.read().await?;
    let employees: Vec<Employee> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from crewcast.employees
         where id > $1 and ($2::text is null or division = $2)
         order by id limit $3"
    ))
    .bind(after)
    .bind(filter.division.as_ref().map(Slug::as_str))
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    Ok(Seen::at(&read, page.list(employees, |employee| employee.id.to_string())))
}

/// Make an employee
///
/// For managers, admins and services. It causes no event.
#[utoipa::path(post, path = "/employees", request_body = inline(Make), responses((status = 403)))]
async fn make_employee(_: Manages, Mutation { mut tx, body: make }: Mutation<Make>) -> Result<Answer<Made<Employee>>> {
    let employee: Employee = sqlx::query_as(concat!(
        "insert into crewcast.employees (id, name, division, weekly_hours) values ($1, $2, $3, $4) returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(make.name.as_str())
    .bind(make.division.as_str())
    .bind(make.weekly_hours.number())
    .fetch_one(&mut *tx)
    .await
    .on_constraint("employees_division", no_such_division)?;
    tx.commit(Answer::made(format!("/v1/employees/{}", employee.id), &employee)).await
}

/// Read an employee
#[utoipa::path(get, path = "/employees/{id}", params(("id" = Uuid, Path)), responses((status = 404)))]
async fn read_employee(State(db): State<Db>, _: Caller, PathArg(id): PathArg<Uuid>) -> Result<Seen<Employee>> {
    let mut read = db.read().await?;
    let employee = find(&mut read, id).await?;
    Ok(Seen::entity(&read, employee))
}

/// Change some of an employee's fields
///
/// For managers, admins and services. Other weekly hours or another division cause one `capacity:updated` for each week
/// from the current one on that has assignments; on a move both divisions are told. A name causes no event.
#[utoipa::path(
    patch,
    path = "/employees/{id}",
    params(("id" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses((status = 403), (status = 404))
)]
async fn change_employee(
    _: Manages,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    Mutation { tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Employee>>> {
    apply(tx, id, &if_match, change).await
}

/// Set how much an employee works
///
/// For managers, admins and services. Causes what the same change by `PATCH` does.
#[utoipa::path(
    put,
    path = "/employees/{id}/capacity",
    params(("id" = Uuid, Path), IfMatch),
    request_body = inline(SetWeeklyHours),
    responses((status = 403), (status = 404))
)]
async fn set_weekly_hours(
    _: Manages,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    Mutation { tx, body: set }: Mutation<SetWeeklyHours>,
) -> Result<Answer<Current<Employee>>> {
    let change = Change { weekly_hours: Some(set.weekly_hours), ..Change::default() };
    apply(tx, id, &if_match, change).await
}

/// Delete an employee
///
/// For managers, admins and services. Somebody with assignments in the current week or later is in use: 409. Past
/// assignments go with the employee, and cause one `capacity:updated` for each week that had hours.
#[utoipa::path(
    delete,
    path = "/employees/{id}",
    params(("id" = Uuid, Path), IfMatch),
    responses(
        (status = 403),
        (status = 404),
        (status = 409, description = "`in_use`: the employee has assignments in the current week or later.")
    )
)]
async fn delete_employee(
    _: Manages,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    lock(&mut tx, &[id]).await?;
    let employee = find(&mut tx, id).await?;
    if_match.require(&employee)?;
    if !assignments::weeks_ahead(&mut tx, id).await?.is_empty() {
        return Err(in_use());
    }
    let past = assignments::weeks_of_employee(&mut tx, id).await?;
    let before = capacity_of(&mut tx, &past).await?;
    assignments::delete_of_employee(&mut tx, id).await?;
    tell(&mut tx, before).await?;
    sqlx::query("delete from crewcast.employees where id = $1").bind(id).execute(&mut *tx).await?;
    tx.commit(Answer::nothing()).await
}

async fn apply(mut tx: Tx, id: Uuid, if_match: &IfMatch, change: Change) -> Result<Answer<Current<Employee>>> {
    lock(&mut tx, &[id]).await?;
    let old = find(&mut tx, id).await?;
    let mut employee = old.clone();
    let changed = change.apply(&mut employee);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let ahead = assignments::weeks_ahead(&mut tx, id).await?;
    let before = capacity_of(&mut tx, &ahead).await?;
    let employee = store(&mut tx, &employee, &changed).await?;
    tell(&mut tx, before).await?;
    tx.commit(Answer::current(&employee)).await
}

impl Change {
    /// Changes the employee, and says which fields are not what they were.
    fn apply(self, employee: &mut Employee) -> Changed {
        let mut changed = Changed::default();
        changed.set("name", &mut employee.name, self.name.map(Text::into_string));
        changed.set("division", &mut employee.division, self.division.map(|division| division.to_string()));
        changed.set("weeklyHours", &mut employee.weekly_hours, self.weekly_hours.map(Hours::number));
        changed
    }
}

fn no_such_division() -> Error {
    Error::invalid_body("/division", "there is no such division")
}

fn in_use() -> Error {
    Error::new(Code::InUse, "The employee has assignments in this week or later: move or delete those first.")
}

/// Locks employees, in the order that everybody locks them in: those of them that are there.
pub(super) async fn lock(conn: &mut Conn, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    let lock = sqlx::query_scalar("select id from crewcast.employees where id = any($1) order by id for no key update");
    Ok(lock.bind(ids).fetch_all(conn).await?)
}

/// Locks everybody who has an assignment to a project, in the same order.
pub(super) async fn lock_those_on(conn: &mut Conn, project_id: Uuid) -> Result<()> {
    let employees = assignments::employees_of_project(conn, project_id).await?;
    lock(conn, &employees).await.map(drop)
}

async fn find(conn: &mut Conn, id: Uuid) -> Result<Employee> {
    let employee = sqlx::query_as(concat!("select ", columns!(), " from crewcast.employees where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    employee.ok_or_else(Error::not_found)
}

async fn store(conn: &mut Conn, employee: &Employee, changed: &Changed) -> Result<Employee> {
    sqlx::query_as(concat!(
        "update crewcast.employees
         set name = $2, division = $3, weekly_hours = $4, version = version + 1, field_versions = field_versions || $5
         where id = $1
         returning ",
        columns!()
    ))
    .bind(employee.id)
    .bind(&employee.name)
    .bind(&employee.division)
    .bind(employee.weekly_hours)
    .bind(changed.versions(employee.version + 1))
    .fetch_one(conn)
    .await
    .on_constraint("employees_division", no_such_division)
}
