//! The streams of sessions: they end when their session does, on whatever node it was ended.
//!
//! A node asks Postgres now and then about the sessions that have streams here, in one statement: a session that is gone
//! was signed out, and its streams end; one that stands for other claims, since somebody signed in again or put a token on
//! one of its streams, gives its streams those. While Postgres is out of reach nothing is known, and no stream ends. What is
//! done to the streams is in `src/http/session/keep.rs`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sqlx::{FromRow, postgres::PgRow, types::JsonValue};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Caller, Digest, Sessions, judge::caller_of};
use crate::{
    auth::opened::{self, Opened},
    error::Result,
};

/// The shortest time between two looks, however many ask for one: what comes meanwhile shares the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Which of these sessions are still there, with the digests of their claims. `$1`: their ids.
pub const LOOK: &str = "select id, sha256(convert_to(caller::text, 'UTF8')) from crewcast.sessions where id = any($1)";

/// Who these sessions stand for. `$1`: their ids.
pub const RENEWED: &str =
    "select id, sha256(convert_to(caller::text, 'UTF8')), caller from crewcast.sessions where id = any($1)";

/// The sessions that have streams on this node, each stream with the digest of its claims.
pub(super) type Open = Opened<Uuid, Digest>;

/// A stream of a session: for as long as this lives, the stream ends when the session does.
pub(crate) type Held = opened::Held<Uuid, Digest>;

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
        let open = self.open.credentials();
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let there: HashMap<Uuid, [u8; 32]> = self.ask::<(Uuid, [u8; 32])>(LOOK, &open).await?.into_iter().collect();
        let gone = open.iter().filter(|session| !there.contains_key(session));
        let mut changes: Vec<Change> =
            gone.flat_map(|session| self.open.streams(*session, |_| true)).map(Change::Ended).collect();
        let others = there.into_iter().filter(|(session, claims)| !self.others(*session, Digest(*claims)).is_empty());
        let others: Vec<Uuid> = others.map(|(session, _)| session).collect();
        if others.is_empty() {
            return Ok(changes);
        }
        for (session, claims, caller) in self.ask::<(Uuid, [u8; 32], JsonValue)>(RENEWED, &others).await? {
            let Some(caller) = caller_of(caller).map(Arc::new) else { continue };
            let claims = Digest(claims);
            let renewed = self.others(session, claims).into_iter();
            let renewed = renewed.map(|stream| Renewal { stream, caller: caller.clone(), claims });
            changes.extend(renewed.map(Change::Renewed));
        }
        Ok(changes)
    }

    /// The streams of a session that have other claims than these.
    fn others(&self, session: Uuid, claims: Digest) -> Vec<Uuid> {
        self.open.streams(session, |of| *of != claims)
    }

    async fn ask<R>(&self, statement: &'static str, sessions: &[Uuid]) -> Result<Vec<R>>
    where
        R: Send + Unpin + for<'r> FromRow<'r, PgRow>,
    {
        let mut conn = self.db.acquire().await?;
        Ok(sqlx::query_as(statement).bind(sessions).fetch_all(&mut conn).await?)
    }

    /// A stream has the claims of its session now.
    pub fn renewed(&self, renewal: &Renewal) {
        self.open.know(renewal.stream, renewal.claims);
    }
}
