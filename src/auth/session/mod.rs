//! Sessions: how a browser says who calls, without a script that holds a token.
//!
//! A caller with a token signs in and gets a cookie, which the browser then sends by itself: with every request of pages
//! of the same site, also with those of an `EventSource`, and with none of other sites. It stands for the claims of the
//! token, until that ends. Postgres has its SHA-256 and the claims, so that every node takes it and nobody who reads the
//! table can use one.
//!
//! Which pages may write with it is not for this module to say: `src/http/origin.rs` does.
//!
//! # The life of a session
//!
//! Who signs in again, as the same `sub`, goes on with the same session: it gets a new cookie, the old one is dead at
//! once, its streams stay and end with the new token. As somebody else, the old session is ended. Signing out deletes
//! it. The streams of a session that is gone end within `session-check`, on every node; on the node that was asked, at once.
//!
//! A token that is put on one of its streams is the session's from then on: the cookie stays, and all its streams go on.
//!
//! One who signs in twice at once, with one cookie, has two sessions: the cookie that the browser took last is good, the
//! other one's session ends with its token.

mod cookie;
mod judge;
mod keep;

use std::{sync::Arc, time::Duration};

use axum::http::request::Parts;
use sqlx::types::Json;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    judge::{Judge, Verdict},
    keep::Open,
};
use super::{Caller, leave, opaque::Digest};
use crate::{
    db::{
        Db, Sweep,
        desk::{Desk, DeskSettings},
    },
    error::{Code, Credentials, Error, Result},
    metrics::Metrics,
    tasks::Tasks,
};

pub(crate) use self::keep::Held;
pub use self::{
    cookie::{Cookie, NAME, NoCookie, clear},
    judge::READ,
    keep::{Change, LOOK, RENEWED, Renewal},
};

/// Cookies that one statement judges, at most.
const BATCH_MAX: usize = 10_000;

/// When somebody with too many sessions may ask again: nobody knows when one of theirs ends.
const LIMIT_RETRY: Duration = Duration::from_secs(60);

/// Begins a session, or goes on with the one that there is. `$1`: the digest of its cookie, `$2`: the id of a new one, `$3`:
/// whose it is, `$4`: their claims, `$5`: when it ends, `$6`: the digest of the cookie so far, which may be null, `$7`: how
/// many sessions they may have.
pub const BEGIN: &str = "
    with renewed as (
        update crewcast.sessions set digest = $1, caller = $4, ends_at = $5
        where digest = $6 and sub = $3 and ends_at > now()
        returning id
    ), made as (
        insert into crewcast.sessions (digest, id, sub, caller, ends_at)
        select $1, $2, $3, $4, $5
        where not exists (select from renewed) and (
            select count(*) from (select from crewcast.sessions where sub = $3 and ends_at > now() limit $7) as good
        ) < $7
        returning id
    ), ended as (
        delete from crewcast.sessions where digest = $6 and sub <> $3 and exists (select from made)
    )
    select id from renewed union all select id from made";

/// Has a session stand for other claims; their digest. `$1`: its id, `$2`: the claims, `$3`: when those end.
pub const REPLACE: &str = "
    update crewcast.sessions set caller = $2, ends_at = $3 where id = $1
    returning sha256(convert_to(caller::text, 'UTF8'))";

/// Ends sessions. `$1`: the digests of their cookies. Locked in order: a browser may have the same ones ended on two nodes at
/// once.
pub const END: &str = "
    delete from crewcast.sessions where digest = any(array(
        select digest from crewcast.sessions where digest = any($1) order by digest for update))";

/// Deletes the sessions that ended longest ago. `$1`: how long ago they must have, in seconds, `$2`: how many at most.
pub const SWEEP: &str = "
    delete from crewcast.sessions where digest = any(array(
        select digest from crewcast.sessions where ends_at < now() - make_interval(secs => $1)
        order by ends_at limit $2 for update skip locked))";

/// How long a session that has ended is kept: its streams have ended by then, and one that was there can be told from one
/// that was signed out.
const KEPT: Duration = Duration::from_hours(24);

/// What deletes sessions that nobody can want any more.
pub fn sweep() -> Sweep {
    Sweep { statement: SWEEP, age: KEPT }
}

/// What bounds sessions.
#[derive(Debug, Clone, Copy)]
pub struct SessionSettings {
    /// Sessions of one `sub` that are good at once; no more are begun.
    pub per_user: u32,
    /// Requests that may wait at once for their cookie to be judged.
    pub waiting_max: usize,
    /// After this long nobody waits for a statement any more.
    pub statement_timeout: Duration,
}

/// Which session a cookie is of. Where a request has one, its caller is whom the cookie names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionId {
    /// Stays for as long as the session lasts.
    id: Uuid,
    /// Of the claims that it stood for when it was asked: it may get others.
    claims: Digest,
}

/// Where sessions are begun, judged and ended. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    db: Db,
    settings: SessionSettings,
    metrics: Arc<Metrics>,
    desk: Desk<Digest, Verdict>,
    open: Arc<Open>,
    hint: Arc<Notify>,
}

impl Sessions {
    /// Starts the task that judges cookies, until `stop`.
    pub fn start(
        db: Db,
        settings: SessionSettings,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> Self {
        let SessionSettings { waiting_max, statement_timeout, .. } = settings;
        let desk = DeskSettings { waiting_max, batch_max: BATCH_MAX, statement_timeout };
        let desk = Desk::open(db.clone(), desk, Judge { metrics: metrics.clone() }, tasks, stop.clone());
        let (open, hint) = (Open::new(metrics.sessions_open.clone()), Arc::new(Notify::new()));
        Self { db, settings, metrics, desk, open, hint }
    }

    /// How many wait for their cookie to be judged.
    pub fn waiting(&self) -> usize {
        self.desk.waiting()
    }

    /// Begins a session for a caller, or goes on with theirs when they bring its cookie; the cookie from now on.
    ///
    /// # Errors
    /// 401 when their token has just ended, 429 when they have too many sessions, 503 when Postgres does not answer.
    pub async fn begin(&self, caller: &Caller, old: Option<&Cookie>) -> Result<Cookie> {
        // A token has a leeway when it arrives; a session has none.
        if caller.expires_at <= OffsetDateTime::now_utc() {
            return Err(Error::unauthorized("The token has expired."));
        }
        let (cookie, id) = (Cookie::random(), Uuid::now_v7());
        let mut conn = self.db.acquire().await?;
        let begun = sqlx::query_scalar(BEGIN)
            .bind(cookie.digest().0)
            .bind(id)
            .bind(caller.sub.as_str())
            .bind(Json(caller))
            .bind(caller.expires_at)
            .bind(old.map(|old| old.digest().0))
            .bind(i64::from(self.settings.per_user));
        let begun: Option<Uuid> = begun.fetch_optional(&mut conn).await?;
        let Some(_) = begun else {
            let detail = format!("You have {} sessions: sign out of one of them.", self.settings.per_user);
            return Err(Error::new(Code::RateLimited, detail).with_retry_after(LIMIT_RETRY));
        };
        self.metrics.sessions_begun.inc();
        if old.is_some() {
            self.look_now();
        }
        Ok(cookie)
    }

    /// Ends the sessions of these cookies, where there are any.
    ///
    /// # Errors
    /// 503 when Postgres does not answer.
    pub async fn end(&self, cookies: &[Cookie]) -> Result<()> {
        if cookies.is_empty() {
            return Ok(());
        }
        let digests: Vec<_> = cookies.iter().map(|cookie| cookie.digest().0).collect();
        let mut conn = self.db.acquire().await?;
        let ended = sqlx::query(END).bind(digests).execute(&mut conn).await?.rows_affected();
        self.metrics.sessions_ended.inc_by(ended);
        self.look_now();
        Ok(())
    }

    /// Finds out whose cookie a request brings, if it brings one and no `Authorization` header, and leaves that for the
    /// rights.
    pub async fn recognise(&self, parts: &mut Parts) {
        let Some(cookie) = Cookie::of(&parts.headers) else { return };
        let judged = self.judge(cookie).await.map(|(session, caller)| {
            parts.extensions.insert(session);
            caller
        });
        leave(&mut parts.extensions, judged);
    }

    /// Who a cookie stands for.
    ///
    /// # Errors
    /// 401 that says what is wrong with it, 503 when it cannot be judged now.
    async fn judge(&self, cookie: Result<Cookie, NoCookie>) -> Result<(SessionId, Caller)> {
        let Ok(cookie) = cookie else {
            let why = format!("The cookie `{NAME}` is not one that this server makes, or is there more than once.");
            return Err(self.refuse("malformed", &why));
        };
        match self.desk.ask(cookie.digest()).await? {
            Verdict::Good(session, caller) => Ok((session, *caller)),
            Verdict::Expired => {
                let refusal = self.refuse("expired", "The session has expired; sign in again.");
                Err(refusal.with_credentials(Credentials::Expired))
            }
            // One that was ended elsewhere looks the same as one that never was; and nobody guesses one.
            Verdict::Unknown => {
                let refusal =
                    self.refuse("unknown", "There is no such session, or it was signed out of; sign in again.");
                Err(refusal.with_credentials(Credentials::Expired))
            }
        }
    }

    fn refuse(&self, reason: &'static str, why: &str) -> Error {
        self.metrics.sessions_refused.count("reason", reason);
        Error::unauthorized(why)
    }

    /// A stream goes on with these claims, and so does the session that it was opened with, if it was; which one that is.
    /// The session's other streams follow when they are looked at.
    ///
    /// # Errors
    /// 503 when Postgres does not answer.
    pub async fn renew(&self, stream: Uuid, caller: &Caller) -> Result<Option<Uuid>> {
        let Some(session) = self.open.credential(stream) else { return Ok(None) };
        let mut conn = self.db.acquire().await?;
        let replace = sqlx::query_scalar(REPLACE).bind(session).bind(Json(caller)).bind(caller.expires_at);
        let claims: Option<[u8; 32]> = replace.fetch_optional(&mut conn).await?;
        // One that is gone was signed out of: its streams are about to end.
        let Some(claims) = claims else { return Ok(None) };
        self.open.know(stream, Digest(claims));
        self.look_now();
        Ok(Some(session))
    }

    /// Whether a cookie is that of a session which is good.
    ///
    /// # Errors
    /// 503 when that cannot be judged now.
    pub async fn is_of(&self, cookie: &Cookie, session: Uuid) -> Result<bool> {
        let verdict = self.desk.ask(cookie.digest()).await?;
        Ok(matches!(verdict, Verdict::Good(SessionId { id, .. }, _) if id == session))
    }

    /// Binds a stream to a session, for as long as what is returned lives.
    pub(crate) fn hold(&self, SessionId { id, claims }: SessionId, stream: Uuid) -> Held {
        self.open.hold(id, stream, claims)
    }

    /// Looks now, and not only when its time has come, whether the sessions of this node's streams are still there.
    pub fn look_now(&self) {
        self.hint.notify_one();
    }
}
