//! Which rooms a caller may join.
//!
//! Mostly the token says it. Only a project's room and a plain member are looked up, and never one by one: when a node
//! restarts, ten thousand streams come back at once. Those that wait at a moment share a statement ([`Desk`]).

use std::{
    collections::HashSet,
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    auth::Caller,
    db::{
        Conn, Db,
        desk::{self, Clerk, Desk, DeskSettings},
    },
    error::{Error, Result},
    ids::{Room, Sub},
    tasks::Tasks,
};

/// A statement that has this many projects takes no further join.
const PROJECTS_MAX: usize = 10_000;

/// How the callers stand to the projects that they ask for, in the order of asking. `$1`: projects, `$2`: the callers,
/// `$3`: retention in seconds. The laterals with their limits stay on the indexes in generic plans as well.
///
/// A deleted project keeps its readers for a while, so that who was away still learns of it.
pub const STANDINGS: &str = "
    select project.division, member.sub is not null as is_member
    from unnest($1::uuid[], $2::text[]) with ordinality as asked (project, sub, nth)
    left join lateral (select division from crewcast.projects
                       where id = asked.project
                         and (deleted_at is null or deleted_at > now() - make_interval(secs => $3))
                       limit 1) as project on true
    left join lateral (select sub from crewcast.members
                       where project_id = asked.project and sub = asked.sub limit 1) as member on true
    order by asked.nth";

/// `$1`: projects, `$2`: retention in seconds.
const LONG_DELETED: &str = "
    select id from crewcast.projects where id = any($1) and deleted_at <= now() - make_interval(secs => $2)";

/// Of these people, those who may read a project, by the claims that they were last seen with.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn readers(conn: &mut Conn, project_id: Uuid, subs: &[String]) -> Result<Vec<String>> {
    let readers = sqlx::query_scalar(
        "select sub from crewcast.people as person
         where sub = any($1)
           and (roles && '{manager,admin}'
                or exists (select from crewcast.projects where id = $2 and division = any(person.divisions))
                or exists (select from crewcast.members where project_id = $2 and sub = person.sub))
         order by sub",
    );
    Ok(readers.bind(subs).bind(project_id).fetch_all(conn).await?)
}

/// What the task is told.
#[derive(Debug, Clone)]
pub struct JoinSettings {
    /// How long a deleted project's room keeps its readers.
    pub retention: Duration,
    /// Joins that may wait; one more is refused.
    pub waiting_max: usize,
    /// After this long nobody waits for a statement any more.
    pub statement_timeout: Duration,
}

/// What was done so far.
#[derive(Debug, Default)]
struct Counters {
    joins: AtomicU64,
    statements: AtomicU64,
}

/// Figures of this node, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinStats {
    /// Joins that the token alone did not decide.
    pub joins: u64,
    /// Statements that were made of them.
    pub statements: u64,
}

/// Where to ask who may join. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Joins {
    db: Db,
    retention: Duration,
    desk: Desk<Join, Vec<Standing>>,
    counters: Arc<Counters>,
}

impl Joins {
    /// Starts the task that answers, until `stop`.
    pub fn start(db: Db, settings: JoinSettings, tasks: &Tasks, stop: CancellationToken) -> Self {
        let JoinSettings { retention, waiting_max, statement_timeout } = settings;
        let counters = Arc::<Counters>::default();
        let desk = DeskSettings { waiting_max, batch_max: PROJECTS_MAX, statement_timeout };
        let registrar = Registrar { retention, counters: counters.clone() };
        let desk = Desk::open(db.clone(), desk, registrar, tasks, stop);
        Self { db, retention, desk, counters }
    }

    /// Whether the caller may join each of these rooms, as of now.
    ///
    /// # Errors
    /// `overloaded` when too many wait, `unavailable` when Postgres does not answer.
    pub async fn may_join(&self, caller: &Caller, rooms: &[Room]) -> Result<Vec<bool>> {
        let projects: Vec<Uuid> = rooms.iter().filter_map(|room| undecided(caller, room)).collect();
        let standings = if projects.is_empty() { Vec::new() } else { self.look_up(&caller.sub, projects).await? };
        Ok(admitted(caller, rooms, &mut standings.into_iter()))
    }

    /// Whether callers may stay in these rooms, as of now: one statement for all of them. Where a row cannot be read nobody
    /// knows, and they may not.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn may_stay(&self, conn: &mut Conn, asked: &[(&Caller, Vec<Room>)]) -> Result<Vec<Vec<bool>>> {
        let each = asked.iter().flat_map(|(caller, rooms)| rooms.iter().map(move |room| (*caller, room)));
        let looked = each.filter_map(|(caller, room)| {
            undecided(caller, room).map(|id| Join { sub: caller.sub.clone(), projects: vec![id] })
        });
        let looked: Vec<Join> = looked.collect();
        let standings = if looked.is_empty() {
            Vec::new()
        } else {
            // Nobody joins: it is counted nowhere.
            let mut registrar = Registrar { retention: self.retention, counters: Arc::default() };
            desk::each(&mut registrar, conn, &looked).await?
        };
        self.note_unreadable("right", &standings);
        let mut standings = standings.into_iter().flat_map(|read| read.unwrap_or_else(|_| vec![Standing::UNKNOWN]));
        Ok(asked.iter().map(|(caller, rooms)| admitted(caller, rooms, &mut standings)).collect())
    }

    /// Counts what cannot be read, and says why.
    fn note_unreadable<T>(&self, what: &'static str, read: &[Result<T>]) {
        let errors: Vec<&Error> = read.iter().filter_map(|read| read.as_ref().err()).collect();
        errors.iter().for_each(|_| self.db.count_unreadable(what));
        if let Some(first) = errors.first() {
            let (count, error) = (errors.len(), first.source());
            tracing::error!(what, count, error, "rows cannot be read: whoever stands in them has no right by them");
        }
    }

    /// How long a deleted project's room keeps its readers.
    pub fn retention(&self) -> Duration {
        self.retention
    }

    /// Those of these projects that were deleted so long ago that nobody has to learn of it any more.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn long_deleted(&self, projects: &[Uuid]) -> Result<Vec<Uuid>> {
        let mut conn = self.db.acquire_raw().await?;
        let deleted = desk::each(&mut Undertaker { retention: self.retention }, &mut conn, projects).await?;
        self.note_unreadable("project", &deleted);
        let each = projects.iter().zip(deleted);
        Ok(each.filter_map(|(id, deleted)| deleted.is_ok_and(|deleted| deleted).then_some(*id)).collect())
    }

    /// How many have asked, and how many statements that took.
    pub fn stats(&self) -> JoinStats {
        let Counters { joins, statements } = &*self.counters;
        JoinStats { joins: joins.load(Ordering::Relaxed), statements: statements.load(Ordering::Relaxed) }
    }

    /// How a caller stands to each of these projects.
    async fn look_up(&self, sub: &Sub, projects: Vec<Uuid>) -> Result<Vec<Standing>> {
        let standings = self.desk.put(Join { sub: sub.clone(), projects })?;
        self.counters.joins.fetch_add(1, Ordering::Relaxed);
        standings.await
    }
}

/// Which of these rooms a caller may be in. `standings` are to those that were looked up, in their order.
fn admitted(caller: &Caller, rooms: &[Room], standings: &mut impl Iterator<Item = Standing>) -> Vec<bool> {
    let may = rooms.iter().map(|room| match undecided(caller, room) {
        Some(_) => standings.next().is_some_and(|standing| standing.admits(caller)),
        None => caller.may_join_without_looking(room).unwrap_or(false),
    });
    may.collect()
}

async fn standings(
    conn: &mut Conn,
    projects: Vec<Uuid>,
    subs: Vec<&str>,
    retention: Duration,
) -> Result<Vec<Standing>> {
    let statement = sqlx::query_as(STANDINGS).bind(projects).bind(subs);
    Ok(statement.bind(retention.as_secs_f64()).fetch_all(conn).await?)
}

/// The project to look up, where the token alone does not decide.
fn undecided(caller: &Caller, room: &Room) -> Option<Uuid> {
    match room {
        Room::Project(id) if caller.may_join_without_looking(room).is_none() => Some(*id),
        _ => None,
    }
}

/// How a caller stands to a project.
#[derive(Debug, sqlx::FromRow)]
struct Standing {
    /// The project's division; none when there is no such project, or no longer.
    division: Option<String>,
    is_member: bool,
}

impl Standing {
    /// Of somebody of whom it cannot be read.
    const UNKNOWN: Self = Self { division: None, is_member: false };

    /// Readers are a project's members and everybody of its division.
    fn admits(&self, caller: &Caller) -> bool {
        let Some(division) = &self.division else { return false };
        self.is_member || caller.divisions.iter().any(|slug| slug.as_str() == division)
    }
}

/// How one caller stands to some projects.
#[derive(Debug)]
struct Join {
    sub: Sub,
    projects: Vec<Uuid>,
}

/// Who reads for all who wait.
#[derive(Debug)]
struct Registrar {
    retention: Duration,
    counters: Arc<Counters>,
}

impl Clerk for Registrar {
    const NAME: &'static str = "joins";

    type Question = Join;
    type Answer = Vec<Standing>;

    fn weight(join: &Join) -> usize {
        join.projects.len()
    }

    async fn answer(&mut self, conn: &mut Conn, joins: &[Join]) -> Result<Vec<Vec<Standing>>> {
        self.counters.statements.fetch_add(1, Ordering::Relaxed);
        let asked = joins.iter().flat_map(|join| join.projects.iter().map(|project| (*project, join.sub.as_str())));
        let (projects, subs): (Vec<Uuid>, Vec<&str>) = asked.unzip();
        let mut standings = standings(conn, projects, subs, self.retention).await?.into_iter();
        Ok(joins.iter().map(|join| standings.by_ref().take(join.projects.len()).collect()).collect())
    }
}

/// Who knows which projects were deleted long ago.
#[derive(Debug)]
struct Undertaker {
    retention: Duration,
}

impl Clerk for Undertaker {
    const NAME: &'static str = "deleted";

    type Question = Uuid;
    type Answer = bool;

    async fn answer(&mut self, conn: &mut Conn, projects: &[Uuid]) -> Result<Vec<bool>> {
        let deleted = sqlx::query_scalar(LONG_DELETED).bind(projects).bind(self.retention.as_secs_f64());
        let deleted: HashSet<Uuid> = deleted.fetch_all(conn).await?.into_iter().collect();
        Ok(projects.iter().map(|id| deleted.contains(id)).collect())
    }
}
