//! Tickets: how a browser's `EventSource`, which sends no headers, says who listens.
//!
//! A caller with a token makes a ticket and puts it into the address of a stream. It opens streams and nothing else, for
//! the claims that it was made with; what these let it join is judged anew at every use. Postgres has its SHA-256 and the
//! claims, so that every node takes it and nobody who reads the table can use one.
//!
//! # How long a ticket is good
//!
//! A new one is good for `ttl`. A use moves that `idle` ahead and a quarter of it more, and so does the node every eighth
//! of `idle` for as long as a stream is open on it. So the end of a stream writes nothing, and a node
//! that dies leaves its tickets good for `idle` at least. Nothing moves it past the `exp` of its token.
//!
//! While Postgres is out of reach nobody can use a ticket, nor prolong it. That time does not count: for as long as `idle`
//! after an outage a ticket may have run out by as much as the outage lasted. Renewing does not ask whether a ticket had run
//! out, and one that has is swept away only much later.

mod judge;
mod keep;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use axum::{
    extract::{FromRef, FromRequestParts},
    http::{HeaderMap, Uri, header::AUTHORIZATION, request::Parts},
};
use serde::Serialize;
use sqlx::types::Json;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

use self::{
    judge::{Judge, Verdict},
    keep::Keeper,
};
use super::{
    Caller, Verifier, missing,
    opaque::{self, Digest},
    opened::Opened,
    session::{Cookie, SessionId},
};
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
pub use self::{judge::USE, keep::RENEW};

/// What every ticket begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "cct_";

/// Tickets that one statement judges, at most.
const BATCH_MAX: usize = 10_000;

/// Stores a new ticket. `$1`: its digest, `$2`: whose it is, `$3`: their claims, `$4`: for how many seconds it is good, but
/// not after `$5`, `$6`: how many good ones they may have.
pub const MAKE: &str = "
    insert into crewcast.tickets (digest, sub, caller, good_until, ends_at)
    select $1, $2, $3, least(now() + make_interval(secs => $4), $5), $5
    where (select count(*) from (select from crewcast.tickets where sub = $2 and good_until > now() limit $6) as good) < $6
    returning good_until";

/// Has a ticket stand for other claims. `$1`: its digest, `$2`: the claims, `$3`: when those end, `$4`: how far ahead in seconds.
pub const REPLACE: &str = "
    update crewcast.tickets set caller = $2, ends_at = $3, good_until = least(now() + make_interval(secs => $4), $3)
    where digest = $1";

/// Deletes the tickets that ran out longest ago. `$1`: how long ago they must have, in seconds, `$2`: how many at most.
pub const SWEEP: &str = "
    delete from crewcast.tickets where digest = any(array(
        select digest from crewcast.tickets where good_until < now() - make_interval(secs => $1)
        order by good_until limit $2 for update skip locked))";

/// How long a ticket that ran out is kept: a node that was cut off from Postgres may still have its streams, and one that
/// is there can be told from one that never was.
const KEPT: Duration = Duration::from_hours(24);

/// What deletes tickets that nobody can want any more.
pub fn sweep() -> Sweep {
    Sweep { statement: SWEEP, age: KEPT }
}

/// What bounds tickets.
#[derive(Debug, Clone, Copy)]
pub struct TicketSettings {
    /// How long a new one may wait for its first use.
    pub ttl: Duration,
    /// How long one is good after the last of its streams, at least.
    pub idle: Duration,
    /// Tickets of one `sub` that are good at once; no more are made.
    pub per_user: u32,
    /// Streams that may wait at once for their ticket to be judged.
    pub waiting_max: usize,
    /// After this long nobody waits for a statement any more.
    pub statement_timeout: Duration,
}

impl TicketSettings {
    /// How far ahead a use and a renewal move a ticket.
    fn ahead(&self) -> Duration {
        self.idle + self.idle / 4
    }
}

/// A ticket, as the client has it. It is shown to nobody else.
pub struct Ticket(String);

/// This is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is not a ticket")]
pub struct NoTicket;

impl Ticket {
    fn random() -> Self {
        Self(opaque::random(PREFIX))
    }

    /// The ticket that a request brings, where it has no `Authorization` header; none where it brings none, or an empty
    /// one.
    ///
    /// # Errors
    /// When what it brings is no ticket, or more than one.
    pub fn of(headers: &HeaderMap, uri: &Uri) -> Option<Result<Self, NoTicket>> {
        if headers.contains_key(AUTHORIZATION) {
            return None;
        }
        let pairs = form_urlencoded::parse(uri.query()?.as_bytes());
        let mut given = pairs.filter(|(name, text)| name == "ticket" && !text.is_empty()).map(|(_, text)| text);
        let first = given.next()?;
        Some(if given.next().is_none() { first.parse() } else { Err(NoTicket) })
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[ticket]")
    }
}

impl FromStr for Ticket {
    type Err = NoTicket;

    fn from_str(text: &str) -> Result<Self, NoTicket> {
        if opaque::is_one(PREFIX, text) { Ok(Self(text.to_owned())) } else { Err(NoTicket) }
    }
}

/// A new ticket, as its caller is told of it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StreamTicket)]
pub struct Made {
    ticket: String,
    /// By when it must be used.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Where tickets are made and taken. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tickets {
    db: Db,
    settings: TicketSettings,
    metrics: Arc<Metrics>,
    desk: Desk<Digest, Verdict>,
    open: Arc<Opened<Digest>>,
}

impl Tickets {
    /// Starts the tasks that judge and keep them, until `stop`.
    pub fn start(
        db: Db,
        settings: TicketSettings,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> Self {
        let TicketSettings { waiting_max, statement_timeout, .. } = settings;
        let desk = DeskSettings { waiting_max, batch_max: BATCH_MAX, statement_timeout };
        let judge = Judge { db: db.clone(), settings, metrics: metrics.clone() };
        let desk = Desk::open(db.clone(), desk, judge, tasks, stop.clone());
        let open = Opened::new(metrics.tickets_open.clone());
        let keeper = Keeper { db: db.clone(), settings, metrics: metrics.clone(), open: open.clone(), stop };
        tasks.part("tickets: keeper", keeper.run());
        Self { db, settings, metrics, desk, open }
    }

    /// How many wait for theirs to be judged.
    pub fn waiting(&self) -> usize {
        self.desk.waiting()
    }

    /// Makes a ticket for a caller.
    ///
    /// # Errors
    /// 401 when their token has just ended, 429 when they have too many tickets, 503 when Postgres does not answer.
    pub async fn make(&self, caller: &Caller) -> Result<Made> {
        // A token has a leeway when it arrives; a ticket has none.
        if caller.expires_at <= OffsetDateTime::now_utc() {
            return Err(Error::unauthorized("The token has expired."));
        }
        let ticket = Ticket::random();
        let Some(expires_at) = self.store(&ticket, caller).await? else {
            let detail = format!("You have {} tickets that are good: use one of them.", self.settings.per_user);
            return Err(Error::new(Code::RateLimited, detail).with_retry_after(self.settings.ttl));
        };
        self.metrics.tickets_made.inc();
        Ok(Made { ticket: ticket.0, expires_at })
    }

    /// Stores a ticket, unless its caller has as many as they may; until when it is good.
    async fn store(&self, ticket: &Ticket, caller: &Caller) -> Result<Option<OffsetDateTime>> {
        let mut conn = self.db.acquire().await?;
        let stored = sqlx::query_scalar(MAKE)
            .bind(ticket.digest().0)
            .bind(caller.sub.as_str())
            .bind(Json(caller))
            .bind(self.settings.ttl.as_secs_f64())
            .bind(caller.expires_at)
            .bind(i64::from(self.settings.per_user));
        Ok(stored.fetch_optional(&mut conn).await?)
    }

    /// A stream goes on with these claims, and so does the ticket that it was opened with, if it was.
    ///
    /// # Errors
    /// 503 when Postgres does not answer.
    pub async fn renew(&self, stream: Uuid, caller: &Caller) -> Result<()> {
        let Some(digest) = self.open.credential(stream) else { return Ok(()) };
        let mut conn = self.db.acquire().await?;
        let renew = sqlx::query(REPLACE).bind(digest.0).bind(Json(caller)).bind(caller.expires_at);
        renew.bind(self.settings.ahead().as_secs_f64()).execute(&mut conn).await?;
        Ok(())
    }

    /// Who a ticket stands for. It is used by that.
    ///
    /// # Errors
    /// 401 that says what is wrong with it, 503 when it cannot be judged now.
    async fn take(&self, ticket: Result<Ticket, NoTicket>) -> Result<(Caller, TicketId)> {
        let Ok(ticket) = ticket else {
            return Err(self.refuse("malformed", "The parameter `ticket` is not one that this server makes."));
        };
        let digest = ticket.digest();
        match self.desk.ask(digest).await? {
            Verdict::Good(caller) => {
                self.metrics.tickets_used.inc();
                Ok((*caller, TicketId(digest)))
            }
            Verdict::RanOut => {
                let refusal = self.refuse("expired", "The ticket has expired; make another one.");
                Err(refusal.with_credentials(Credentials::Expired))
            }
            // One that was swept away looks the same, as a laptop that wakes up has it; and nobody guesses one.
            Verdict::Unknown => {
                let refusal =
                    self.refuse("unknown", "There is no such ticket, or it expired long ago; make another one.");
                Err(refusal.with_credentials(Credentials::Expired))
            }
        }
    }

    /// Keeps a ticket good that a stream is opened with, for as long as what is returned lives.
    pub(crate) fn hold(&self, TicketId(digest): TicketId, stream: Uuid) -> Held {
        self.open.hold(digest, stream, ())
    }

    fn refuse(&self, reason: &'static str, why: &'static str) -> Error {
        self.metrics.tickets_refused.count("reason", reason);
        Error::unauthorized(why)
    }
}

/// Which ticket it is that was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketId(Digest);

/// What named the caller, where it was no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// It stays good for as long as its streams last.
    Ticket(TicketId),
    /// Its streams end with it.
    Session(SessionId),
}

/// Who opens a stream: a caller by their token, else by a ticket, else by the cookie of their session.
#[derive(Debug)]
pub struct Listener {
    /// Who they are.
    pub caller: Caller,
    /// What said so, if it was no token.
    pub brought: Option<Brought>,
}

impl<S> FromRequestParts<S> for Listener
where
    S: Send + Sync,
    Arc<Verifier>: FromRef<S>,
    Tickets: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        if let Some(ticket) = Ticket::of(&parts.headers, &parts.uri) {
            let (caller, ticket) = Tickets::from_ref(state).take(ticket).await?;
            return Ok(Self { caller, brought: Some(Brought::Ticket(ticket)) });
        }
        if !parts.headers.contains_key(AUTHORIZATION) && Cookie::of(&parts.headers).is_none() {
            return Err(missing(
                "Send the header `Authorization: Bearer {token}`, or the parameter `ticket` with one from \
                 POST /v1/stream-tickets, or the cookie that POST /v1/session sets; all are missing.",
            ));
        }
        let caller = Caller::from_request_parts(parts, state).await?;
        let session = parts.extensions.get().copied();
        Ok(Self { caller, brought: session.map(Brought::Session) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Option<Result<Ticket, NoTicket>> {
        Ticket::of(&HeaderMap::new(), &format!("/events?{query}").parse().unwrap())
    }

    #[test]
    fn tickets_differ_and_read_back_as_themselves() {
        let (one, other) = (Ticket::random(), Ticket::random());
        assert_ne!(one.0, other.0);
        assert_eq!(one.0.parse::<Ticket>().unwrap().digest(), one.digest());
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        let Ticket(good) = Ticket::random();
        let body = good.strip_prefix(PREFIX).unwrap();
        // The last character has two bits to spare: another spelling would be another digest.
        let other_spelling = format!("{PREFIX}{}B", "A".repeat(42));
        for bad in [
            "",
            PREFIX,
            body,
            &format!("{good}A"),
            &format!("{good}="),
            &format!("CCT_{body}"),
            &good[..good.len() - 1],
            &format!(" {good}"),
            &format!("{PREFIX}{}", "+".repeat(43)),
            &other_spelling,
            &"x".repeat(100_000),
        ] {
            assert_eq!(bad.parse::<Ticket>().err(), Some(NoTicket), "{bad}");
        }
    }

    #[test]
    fn a_ticket_shows_itself_to_nobody() {
        assert_eq!(format!("{:?} {:#?}", Ticket::random(), Ticket::random()), "[ticket] [ticket]");
    }

    #[test]
    fn a_header_goes_first_and_one_ticket_is_enough() {
        let Ticket(good) = Ticket::random();
        assert!(of("").is_none() && of("ticket=").is_none() && of("tickets=x&Ticket=y").is_none());
        assert_eq!(of(&format!("rooms=a&ticket={good}")).unwrap().unwrap().0, good);
        assert_eq!(of(&format!("ticket=%63{}", &good[1..])).unwrap().unwrap().0, good);
        for bad in [format!("ticket={good}&ticket={good}"), "ticket=x".to_owned(), "ticket=%ff".to_owned()] {
            assert_eq!(of(&bad).unwrap().err(), Some(NoTicket), "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "nonsense".parse().unwrap());
        assert!(Ticket::of(&headers, &format!("/events?ticket={good}").parse().unwrap()).is_none());
    }
}
