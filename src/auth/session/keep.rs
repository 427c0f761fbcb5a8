//! The streams of sessions: they end when their session does, on whatever node it was ended.
//!
//! A node asks Postgres now and then about the sessions that have streams here, in one statement: a session that is gone
//! was signed out, and its streams end; one that stands for other claims, since somebody signed in again or put a token on
//! one of its streams, gives its streams those. While Postgres is out of reach nothing is known, and no stream ends. What is
//! done to the streams is in `src/http/session/keep.rs`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use sqlx::{FromRow, postgres::PgRow, types::JsonValue};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Caller, Digest, SessionId, Sessions, judge::caller_of};
use crate::{
    error::{Error, Result},
    metrics::Gauge,
};

/// The shortest time between two looks, however many ask for one: what comes meanwhile shares the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Which of these sessions are still there, with the digests of their claims. `$1`: their ids.
pub const LOOK: &str = "select id, sha256(convert_to(caller::text, 'UTF8')) from crewcast.sessions where id = any($1)";

/// Who these sessions stand for. `$1`: their ids.
pub const RENEWED: &str =
    "select id, sha256(convert_to(caller::text, 'UTF8')), caller from crewcast.sessions where id = any($1)";

/// The streams of one session on this node, each with the digest of its claims.
type Streams = HashMap<Uuid, Digest>;

/// The sessions that have streams on this node. Bounded by those.
#[derive(Debug)]
pub(super) struct Open {
    sessions: Mutex<HashMap<Uuid, Streams>>,
    gauge: Gauge,
}

impl Open {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { sessions: Mutex::default(), gauge }
    }

    fn ids(&self) -> Vec<Uuid> {
        self.sessions().keys().copied().collect()
    }

    /// The streams of a session, where it has any left.
    fn streams(&self, session: Uuid) -> Vec<Uuid> {
        self.sessions().get(&session).into_iter().flat_map(HashMap::keys).copied().collect()
    }

    /// The session that a stream was opened with, if it was.
    pub(super) fn session(&self, stream: Uuid) -> Option<Uuid> {
        self.sessions().iter().find(|(_, streams)| streams.contains_key(&stream)).map(|(session, _)| *session)
    }

    /// Whether a stream of a session has other claims.
    fn differs(&self, session: Uuid, claims: Digest) -> bool {
        self.sessions().get(&session).into_iter().flatten().any(|(_, of)| *of != claims)
    }

    /// The streams of a session that have other claims.
    fn others(&self, session: Uuid, claims: Digest) -> Vec<Uuid> {
        let sessions = self.sessions();
        let others = sessions.get(&session).into_iter().flatten().filter(|(_, of)| **of != claims);
        others.map(|(stream, _)| *stream).collect()
    }

    /// A stream has these claims now.
    pub(super) fn renewed(&self, session: Uuid, stream: Uuid, claims: Digest) {
        if let Some(of) = self.sessions().get_mut(&session).and_then(|streams| streams.get_mut(&stream)) {
            *of = claims;
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Uuid, Streams>> {
        self.sessions.lock().expect("nothing panics while it holds the open sessions")
    }
}

/// A stream of a session: for as long as this lives, the stream ends when the session does.
#[derive(Debug)]
pub struct Held {
    open: Arc<Open>,
    session: Uuid,
    stream: Uuid,
}

impl Held {
    pub(super) fn new(open: Arc<Open>, SessionId { id: session, claims }: SessionId, stream: Uuid) -> Self {
        let mut sessions = open.sessions();
        sessions.entry(session).or_default().insert(stream, claims);
        open.gauge.set(sessions.len().try_into().unwrap_or(i64::MAX));
        drop(sessions);
        Self { open, session, stream }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut sessions = self.open.sessions();
        let left = sessions.get_mut(&self.session).expect("it was put in when this was made");
        left.remove(&self.stream);
        if left.is_empty() {
            sessions.remove(&self.session);
        }
        self.open.gauge.set(sessions.len().try_into().unwrap_or(i64::MAX));
    }
}

/// What has become of the session of a stream of this node.
#[derive(Debug)]
pub enum Change {
    /// It is gone: the stream ends.
    Ended(Uuid),
    /// It stands for other claims: the stream goes on with these.
    Renewed(Renewal),
}

/// A stream whose session has other claims than it.
#[derive(Debug)]
pub struct Renewal {
    /// Which stream it is.
    pub stream: Uuid,
    /// Who it stands for now.
    pub caller: Arc<Caller>,
    session: Uuid,
    claims: Digest,
}

impl Sessions {
    /// Waits until it is time to look at the sessions of this node's streams, after so long at most, or somebody asks for it.
    pub async fn turn(&self, wait: Duration) {
        let pause = PAUSE.min(wait);
        sleep(pause).await;
        // That it took so long is what was to happen.
        let _ = timeout(wait - pause, self.hint.notified()).await;
    }

    /// What has become of the sessions of this node's streams. What nothing was done about is told again the next time.
    ///
    /// # Errors
    /// 503 when Postgres does not say.
    pub async fn look(&self) -> Result<Vec<Change>> {
        let open = self.open.ids();
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let there: HashMap<Uuid, [u8; 32]> = self.ask::<(Uuid, [u8; 32])>(LOOK, &open).await?.into_iter().collect();
        let gone = open.iter().filter(|session| !there.contains_key(session));
        let mut changes: Vec<Change> =
            gone.flat_map(|session| self.open.streams(*session)).map(Change::Ended).collect();
        let others = there.into_iter().filter(|(session, claims)| self.open.differs(*session, Digest(*claims)));
        let others: Vec<Uuid> = others.map(|(session, _)| session).collect();
        if others.is_empty() {
            return Ok(changes);
        }
        for (session, claims, caller) in self.ask::<(Uuid, [u8; 32], JsonValue)>(RENEWED, &others).await? {
            let Some(caller) = caller_of(caller).map(Arc::new) else { continue };
            let claims = Digest(claims);
            let renewed = self.open.others(session, claims).into_iter();
            let renewed = renewed.map(|stream| Renewal { stream, caller: caller.clone(), session, claims });
            changes.extend(renewed.map(Change::Renewed));
        }
        Ok(changes)
    }

    async fn ask<R>(&self, statement: &'static str, sessions: &[Uuid]) -> Result<Vec<R>>
    where
        R: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        let mut conn = self.db.acquire().await?;
        let rows = sqlx::query_as(statement).bind(sessions).fetch_all(&mut *conn);
        let Ok(rows) = timeout(self.settings.statement_timeout, rows).await else {
            // It is in the middle of an answer that never comes.
            conn.close_on_drop();
            return Err(Error::unavailable("The database does not answer."));
        };
        Ok(rows?)
    }

    /// A stream has the claims of its session now.
    pub fn renewed(&self, renewal: &Renewal) {
        self.open.renewed(renewal.session, renewal.stream, renewal.claims);
    }
}
