//! People: who calls, as their tokens name them. `GET /v1/me` says it back.
//!
//! The server keeps the last claims of everybody it has seen, so that it can judge who is away: whether somebody who is
//! mentioned may read the project, and since when an inbox counts. Services are not people, and employees are others
//! again: those are planned, people look on.
//!
//! Nobody waits for that to be written. [`People::saw`] looks into a map of whom this node has noted of late, and what is
//! new goes through a bounded queue to one task, which writes many in one statement. Only who asks for what the server
//! keeps of them waits, if they are new: they ask as `Known`.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::{FromRef as _, FromRequestParts},
    http::request::Parts,
};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Domain;
use crate::{
    auth::{Caller, Person, Role, Roles},
    db::Db,
    error::{Error, Result},
    ids::{Slug, Sub, TopicName},
    tasks::Tasks,
    web::{Describe as _, Plain},
};

/// How old `last_seen` may be of somebody whose claims stay the same.
const NOTED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// People whom a node remembers to have noted; beyond that it forgets all and notes them anew.
const REMEMBERED_MAX: usize = 100_000;

/// People who may wait to be noted; one more is noted with a later request.
const WAITING_MAX: usize = 10_000;

/// People who are noted in one statement.
const BATCH_MAX: usize = 500;

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new().routes(routes!(read_me)).headed("people", "Who calls, and how they want to be told of alerts")
}

/// The caller, as the server sees them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Me {
    id: Sub,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    avatar_url: Option<String>,
    #[schema(value_type = Vec<Role>)]
    roles: Roles,
    divisions: Vec<Slug>,
    topics: Vec<TopicName>,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Read who is calling
///
/// As their token names them.
#[utoipa::path(get, path = "/me")]
async fn read_me(caller: Caller) -> Plain<Me> {
    let Caller { sub, name, avatar_url, roles, divisions, topics, expires_at } = caller;
    Plain(Me { id: sub, name, avatar_url, roles, divisions, topics, expires_at })
}

/// Where to say who was seen. Cheap to clone.
#[derive(Debug, Clone)]
pub struct People {
    noted: Arc<Mutex<HashMap<Sub, Noted>>>,
    waiting: mpsc::Sender<Waiting>,
}

/// What waits for the task.
#[derive(Debug)]
enum Waiting {
    Seen(Caller),
    /// Somebody who is told when all that came before is done.
    Asks(oneshot::Sender<()>),
}

/// Somebody who was noted.
#[derive(Debug)]
struct Noted {
    caller: Caller,
    at: Instant,
    /// Whether there is a row of theirs.
    is_written: bool,
}

impl People {
    /// Starts the task that writes, until `stop`.
    pub fn start(db: Db, tasks: &Tasks, stop: CancellationToken) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let noted = Arc::<Mutex<HashMap<_, _>>>::default();
        tasks.part("people", Scribe { db, queue, noted: noted.clone() }.run(stop));
        Self { noted, waiting }
    }

    /// Notes a person, unless that was done of late. Waits for nothing.
    pub fn saw(&self, caller: &Caller) {
        if !caller.is_person() {
            return;
        }
        let mut noted = self.noted();
        let is_known = noted.get(&caller.sub).is_some_and(|noted| noted.holds(caller));
        if is_known || self.waiting.try_send(Waiting::Seen(caller.clone())).is_err() {
            return;
        }
        if noted.len() >= REMEMBERED_MAX {
            noted.clear();
        }
        let is_written = noted.get(&caller.sub).is_some_and(|noted| noted.is_written);
        noted.insert(caller.sub.clone(), Noted { caller: caller.clone(), at: Instant::now(), is_written });
    }

    /// Waits until somebody who was seen has a row.
    async fn written(&self, sub: &Sub) -> Result<()> {
        if self.is_written(sub) {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        // What cannot be waited for shows below.
        if self.waiting.try_send(Waiting::Asks(tell)).is_ok() {
            let _ = told.await;
        }
        if self.is_written(sub) { Ok(()) } else { Err(Error::unavailable("You could not be noted yet; ask again.")) }
    }

    fn is_written(&self, sub: &Sub) -> bool {
        self.noted().get(sub).is_some_and(|noted| noted.is_written)
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<Sub, Noted>> {
        lock(&self.noted)
    }
}

/// Each change is one call of the map: nothing is half done when a panic comes.
fn lock(noted: &Mutex<HashMap<Sub, Noted>>) -> MutexGuard<'_, HashMap<Sub, Noted>> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to act as a person, for one who was noted: what the server keeps of them is there.
#[derive(Debug)]
pub(super) struct Known(pub(super) Caller);

impl FromRequestParts<Domain> for Known {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &Domain) -> Result<Self> {
        let Person(caller) = Person::from_request_parts(parts, state).await?;
        People::from_ref(state).written(&caller.sub).await?;
        Ok(Self(caller))
    }
}

impl Noted {
    /// Whether there is nothing new about them. A token that only ends later is nothing new.
    fn holds(&self, caller: &Caller) -> bool {
        let same = Caller { expires_at: self.caller.expires_at, ..caller.clone() } == self.caller;
        same && self.at.elapsed() < NOTED_AGAIN_AFTER
    }
}

/// The task that writes who was seen.
#[derive(Debug)]
struct Scribe {
    db: Db,
    queue: mpsc::Receiver<Waiting>,
    noted: Arc<Mutex<HashMap<Sub, Noted>>>,
}

impl Scribe {
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        while stop.run_until_cancelled(self.queue.recv_many(&mut batch, BATCH_MAX)).await.is_some_and(|n| n > 0) {
            let (seen, asking) = parted(std::mem::take(&mut batch));
            self.note(&latest_of_each(seen)).await;
            for asking in asking {
                // Whoever went away meanwhile need not be told.
                let _ = asking.send(());
            }
        }
    }

    async fn note(&self, seen: &[Caller]) {
        let written = if seen.is_empty() { Ok(()) } else { write(&self.db, seen).await };
        let mut noted = lock(&self.noted);
        for caller in seen {
            match (&written, noted.get_mut(&caller.sub)) {
                (Ok(()), Some(noted)) => noted.is_written = true,
                (Ok(()), None) => {}
                (Err(_), _) => drop(noted.remove(&caller.sub)),
            }
        }
        if let Err(error) = written {
            tracing::debug!(%error, "people are noted with their next requests");
        }
    }
}

/// Who was seen, and who asks.
fn parted(batch: Vec<Waiting>) -> (Vec<Caller>, Vec<oneshot::Sender<()>>) {
    let (mut seen, mut asking) = (Vec::new(), Vec::new());
    for waiting in batch {
        match waiting {
            Waiting::Seen(one) => seen.push(one),
            Waiting::Asks(one) => asking.push(one),
        }
    }
    (seen, asking)
}

/// One statement writes no row twice.
fn latest_of_each(batch: Vec<Caller>) -> Vec<Caller> {
    let mut subs = HashSet::new();
    batch.into_iter().rev().filter(|seen| subs.insert(seen.sub.clone())).collect()
}

/// Of what two nodes say the later written holds, and only Postgres's clock says when: theirs may differ. Two nodes may
/// write the same people, so each does so in one order.
async fn write(db: &Db, seen: &[Caller]) -> sqlx::Result<()> {
    let mut conn = db.acquire_raw().await?;
    sqlx::query(
        r#"insert into crewcast.people as person
               (sub, name, avatar_url, roles, divisions, topics, first_seen, last_seen)
           select sub, name, "avatarUrl", roles, divisions, topics, now(), now()
           from jsonb_to_recordset($1) as seen
               (sub text, name text, "avatarUrl" text, roles text[], divisions text[], topics text[])
           order by sub
           on conflict (sub) do update
               set name = excluded.name, avatar_url = excluded.avatar_url, roles = excluded.roles,
                   divisions = excluded.divisions, topics = excluded.topics, last_seen = excluded.last_seen"#,
    )
    .bind(sqlx::types::Json(seen))
    .execute(&mut conn)
    .await?;
    Ok(())
}
