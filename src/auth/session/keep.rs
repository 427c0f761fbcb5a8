//! The streams of sessions: they end when their session does, on whatever node it was ended.
//!
//! A node asks Postgres now and then about the sessions that have streams here, in one statement: a session that is gone
//! was signed out, and its streams end; one that was signed in to again gives its streams the new claims. While Postgres is
//! out of reach nothing is known, and no stream ends. What is done to the streams is in `src/http/session/keep.rs`.

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

/// Which of these sessions are still there, with the digests of their cookies. `$1`: their ids.
pub const LOOK: &str = "select id, digest from crewcast.sessions where id = any($1)";

/// Who these sessions stand for. `$1`: their ids.
pub const RENEWED: &str = "select id, digest, caller from crewcast.sessions where id = any($1)";

/// The streams of one session on this node, each with the cookie that its claims came by.
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

    /// Whether a stream of a session has claims of another cookie.
    fn differs(&self, session: Uuid, digest: &[u8]) -> bool {
        self.sessions().get(&session).into_iter().flatten().any(|(_, of)| of.0 != digest)
    }

    /// The streams of a session that have claims of another cookie.
    fn others(&self, session: Uuid, digest: Digest) -> Vec<Uuid> {
        let sessions = self.sessions();
        let others = sessions.get(&session).into_iter().flatten().filter(|(_, of)| **of != digest);
        others.map(|(stream, _)| *stream).collect()
    }

    /// A stream has the claims of this cookie now.
    fn renewed(&self, session: Uuid, stream: Uuid, digest: Digest) {
        if let Some(of) = self.sessions().get_mut(&session).and_then(|streams| streams.get_mut(&stream)) {
            *of = digest;
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
    pub(super) fn new(open: Arc<Open>, SessionId { id: session, digest }: SessionId, stream: Uuid) -> Self {
        let mut sessions = open.sessions();
        sessions.entry(session).or_default().insert(stream, digest);
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
    /// Somebody signed in to it again: the stream goes on with these claims.
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
    digest: Digest,
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
        let there: HashMap<Uuid, Vec<u8>> = self.ask::<(Uuid, Vec<u8>)>(LOOK, &open).await?.into_iter().collect();
        let gone = open.iter().filter(|session| !there.contains_key(session));
        let mut changes: Vec<Change> =
            gone.flat_map(|session| self.open.streams(*session)).map(Change::Ended).collect();
        let others = there.into_iter().filter(|(session, digest)| self.open.differs(*session, digest));
        let others: Vec<Uuid> = others.map(|(session, _)| session).collect();
        if others.is_empty() {
            return Ok(changes);
        }
        for (session, digest, caller) in self.ask::<(Uuid, Vec<u8>, JsonValue)>(RENEWED, &others).await? {
            let (Ok(digest), Some(caller)) = (digest.try_into().map(Digest), caller_of(caller)) else { continue };
            let caller = Arc::new(caller);
            let renewed = self.open.others(session, digest).into_iter();
            let renewed = renewed.map(|stream| Renewal { stream, caller: caller.clone(), session, digest });
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
        self.open.renewed(renewal.session, renewal.stream, renewal.digest);
    }
}
