//! Who works how much, in which week: employees, their assignments to projects, and the capacity that follows from both.
//!
//! An employee's week is full to the sum of its assignments' hours over the employee's `weeklyHours`: 0.85 is 85 %,
//! rounded to four decimals (half away from zero), and null for somebody without weekly hours. Weeks are ISO 8601, and
//! the current one is the one that it is now in UTC. Hours and weekly hours are in hundredths; sums are exact.
//!
//! Event: `capacity:updated`, one for each week of an employee that a change leaves other than it was (in hours, in
//! weekly hours or in its division), to `company` and the division's room, and on a move to both divisions' rooms.
//!
//! A week's sum is true at the commit that tells of it: whoever changes one locks the employee first and reads the sum
//! behind the lock. Everybody locks in one order, so that nobody waits in a circle: projects, then employees, each by id.

mod assignments;
mod employees;
mod hours;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::hours::{Hours, Number};
use super::{Domain, projects};
use crate::{
    auth::Caller,
    db::{Conn, Db},
    error::Result,
    ids::{Slug, Week},
    log::NewEvent,
    web::{Describe as _, List, Page, Query, Seen, Tx},
};

/// The week that it is now.
macro_rules! current_week {
    () => {
        r#"to_char(now() at time zone 'UTC', 'IYYY-"W"IW')"#
    };
}
use current_week;

/// The capacity of the weeks in `wanted`, a table of `employee_id` and `week`.
macro_rules! capacity {
    ($wanted:expr) => {
        concat!(
            "select employee.id as employee_id, employee.division, wanted.week, load.hours::float8 as hours,
                    employee.weekly_hours::float8 as weekly_hours,
                    round(load.hours / nullif(employee.weekly_hours, 0), 4)::float8 as utilization
             from (",
            $wanted,
            ") as wanted
             join crewcast.employees as employee on employee.id = wanted.employee_id
             cross join lateral (select coalesce(sum(hours), 0) as hours
                                 from crewcast.assignments
                                 where employee_id = wanted.employee_id and week = wanted.week) as load
             order by wanted.week, wanted.employee_id"
        )
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    let capacity = OpenApiRouter::new()
        .routes(routes!(list_capacity))
        .emits::<Updated<'_>>(
            "capacity:updated",
            "A week of an employee that a write left other than it was, as the write left it. To `company` and the \
             division's room, and on a move to the room of the division that was left. It has no version; of two about one \
             week, the one with the higher `seq` is the later.",
        )
        .headed("capacity", "How full the employees' weeks are");
    OpenApiRouter::new().merge(employees::router()).merge(assignments::router()).merge(capacity)
}

/// An employee's week, as it is answered.
#[derive(Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Capacity {
    employee_id: Uuid,
    #[schema(value_type = Slug)]
    division: String,
    #[schema(value_type = Week)]
    week: String,
    /// The sum of the week's assignments.
    #[schema(value_type = f64, minimum = 0)]
    hours: Number,
    #[schema(value_type = Hours)]
    weekly_hours: Number,
    /// `hours` over `weeklyHours`, rounded to four decimals: 0.85 is 85 %, and more than 1 is overbooked. Null where
    /// `weeklyHours` is 0.
    #[schema(required, value_type = Option<f64>, minimum = 0, examples(0.85))]
    utilization: Option<Number>,
}

/// The data of `capacity:updated`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CapacityUpdatedData)]
struct Updated<'a> {
    #[schema(value_type = Slug)]
    division: &'a str,
    employee_id: Uuid,
    /// The week's `utilization`.
    #[schema(required, value_type = Option<f64>, minimum = 0, examples(0.85))]
    new_utilization: Option<Number>,
    #[schema(value_type = Week)]
    week: &'a str,
    /// The sum of the week's assignments.
    #[schema(value_type = f64, minimum = 0)]
    hours: Number,
    #[schema(value_type = Hours)]
    weekly_hours: Number,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only employees of this division.
    division: Option<Slug>,
    /// The current week (in UTC) when it is left out.
    week: Option<Week>,
    #[serde(flatten)]
    #[param(ignore)]
    page: Page,
}

/// List the employees' week
///
/// One item for each employee, also for those who have nothing to do in it. By employee, oldest first.
#[utoipa::path(get, path = "/capacity", params(Filter, Page))]
async fn list_capacity(State(db): State<Db>, _: Caller, Query(filter): Query<Filter>) -> Result<Seen<List<Capacity>>> {
    let page = filter.page;
    let after = page.after_id()?;
    let mut read = db.read().await?;
    let capacity: Vec<Capacity> = sqlx::query_as(capacity!(concat!(
        "select id as employee_id, coalesce($1, ",
        current_week!(),
        ") as week
         from crewcast.employees
         where id > $2 and ($3::text is null or division = $3)
         order by id limit $4"
    )))
    .bind(filter.week.map(|week| week.to_string()))
    .bind(after)
    .bind(filter.division.as_ref().map(Slug::as_str))
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    Ok(Seen::at(&read, page.list(capacity, |capacity| capacity.employee_id.to_string())))
}

/// Takes a project's assignments away: what was planned for it is free again. The project is locked, so none is added.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn release(tx: &mut Tx, project_id: Uuid) -> Result<()> {
    employees::lock_those_on(tx, project_id).await?;
    let weeks = assignments::weeks_of_project(tx, project_id).await?;
    let before = capacity_of(tx, &weeks).await?;
    assignments::delete_of_project(tx, project_id).await?;
    tell(tx, before).await
}

/// An employee's id and a week.
type Key = (Uuid, String);

/// These weeks as they are, each once. Their employees are locked: only this transaction changes them.
async fn capacity_of(conn: &mut Conn, weeks: &[Key]) -> Result<Vec<Capacity>> {
    let (employees, weeks): (Vec<Uuid>, Vec<&str>) = weeks.iter().map(|(id, week)| (*id, week.as_str())).unzip();
    let capacity = sqlx::query_as(capacity!(
        "select distinct employee_id, week from unnest($1::uuid[], $2::text[]) as given (employee_id, week)"
    ));
    Ok(capacity.bind(employees).bind(weeks).fetch_all(conn).await?)
}

/// Tells of the weeks that are not what they were. Their employees are locked since before that was read.
async fn tell(tx: &mut Tx, before: Vec<Capacity>) -> Result<()> {
    let weeks: Vec<Key> = before.iter().map(|before| (before.employee_id, before.week.clone())).collect();
    let now = capacity_of(tx, &weeks).await?;
    for (before, now) in before.iter().zip(&now).filter(|(before, now)| before != now) {
        tx.append(NewEvent::unversioned("capacity:updated", rooms(before, now), &updated(now)));
    }
    Ok(())
}

fn updated(now: &Capacity) -> Updated<'_> {
    Updated {
        division: &now.division,
        employee_id: now.employee_id,
        new_utilization: now.utilization,
        week: &now.week,
        hours: now.hours,
        weekly_hours: now.weekly_hours,
    }
}

fn rooms(before: &Capacity, now: &Capacity) -> Vec<String> {
    let mut rooms = vec!["company".to_owned(), format!("division:{}", now.division)];
    if before.division != now.division {
        rooms.push(format!("division:{}", before.division));
    }
    rooms
}
