//! A mutation: what a request asks to change, and the transaction that it is changed in.
//!
//! A handler that changes something takes a [`Mutation`] (or a [`Tx`], where the request has no body) as its last
//! argument, and ends with [`Tx::commit`] and its answer. So the transaction begins when the whole request has arrived
//! and was understood, and its answer is known before it commits: what goes out is what can be said again.
//!
//! **Repeats.** A client that got no answer asks again with the same `Idempotency-Key`. The first answer is stored in the
//! change's own transaction, so there is one if and only if there is the other, and a repeat within `idempotency-ttl`
//! gets it byte for byte, with `Idempotent-Replayed: true`, and changes nothing. The key is one of the caller's `sub`;
//! with another method, address or body it is 422, and while the first request runs 409. A refusal is not stored: it
//! changed nothing, and asked again it may have become possible.
//!
//! The key comes back in the events of the change as `meta.mutationId`.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{FromRef, FromRequest, FromRequestParts as _, Request},
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{Answer, body};
use crate::{
    auth::{Caller, Verifier},
    db::{Conn, Db, Sweep, Write},
    error::{Code, Error, Result},
    ids::Sub,
    log::NewEvent,
};

/// The header that names a request, so that it can be repeated.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of an answer that was given before.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Characters of a key.
const KEY_CHARS_MAX: usize = 128;

/// How long an answer is kept for a repeat of its request.
#[derive(Debug, Clone, Copy)]
pub struct IdempotencyTtl(pub Duration);

impl IdempotencyTtl {
    /// What deletes answers that are no longer kept.
    #[must_use]
    pub fn sweep(self) -> Sweep {
        Sweep {
            statement: "delete from crewcast.answers where ctid = any(array(
                            select ctid from crewcast.answers
                            where made_at < now() - make_interval(secs => $1)
                            order by made_at limit $2 for update skip locked))",
            age: self.0,
        }
    }
}

/// What a request with a body asks for.
#[derive(Debug)]
pub struct Mutation<T> {
    /// The transaction to change things in.
    pub tx: Tx,
    /// What is to be changed.
    pub body: T,
}

/// A transaction on behalf of a request. Dropped without [`Tx::commit`], nothing has happened.
#[derive(Debug)]
pub struct Tx {
    write: Write,
    repeatable: Option<Repeatable>,
}

impl Tx {
    /// Adds an event, as [`Write::append`].
    pub fn append(&mut self, event: NewEvent) {
        self.write.append(event);
    }

    /// Writes the events that were added until now, as [`Write::write_events`].
    ///
    /// # Errors
    /// When Postgres refuses.
    pub async fn write_events(&mut self) -> Result<Vec<i64>> {
        self.write.write_events().await
    }

    /// Commits the change together with its events and its answer, which it returns.
    ///
    /// # Errors
    /// As [`Write::commit`].
    pub async fn commit<A>(mut self, answer: Answer<A>) -> Result<Answer<A>> {
        if let Some(repeatable) = &self.repeatable {
            repeatable.keep(&mut self.write, &answer).await?;
        }
        self.write.commit().await?;
        Ok(answer)
    }

    /// Begins a change that cannot be repeated by name, or the one of that name unless it was made before.
    async fn begin(db: &Db, repeatable: Option<Repeatable>, ttl: IdempotencyTtl) -> Result<Self, NotBegun> {
        let mut write = db.write().await?;
        if let Some(repeatable) = &repeatable {
            if let Some(answer) = repeatable.first(&mut write, ttl).await? {
                return Err(NotBegun::Repeated(answer));
            }
            write.set_mutation_id(repeatable.key.clone());
        }
        Ok(Self { write, repeatable })
    }
}

impl Deref for Tx {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.write
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.write
    }
}

impl<S> FromRequest<S> for Tx
where
    S: Send + Sync,
    Db: FromRef<S>,
    Arc<Verifier>: FromRef<S>,
    IdempotencyTtl: FromRef<S>,
{
    type Rejection = NotBegun;

    async fn from_request(request: Request, state: &S) -> Result<Self, NotBegun> {
        let (mut parts, _) = request.into_parts();
        let repeatable = Repeatable::of(&mut parts, state).await?;
        Self::begin(&Db::from_ref(state), repeatable, IdempotencyTtl::from_ref(state)).await
    }
}

impl<S, T> FromRequest<S> for Mutation<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
    Db: FromRef<S>,
    Arc<Verifier>: FromRef<S>,
    IdempotencyTtl: FromRef<S>,
{
    type Rejection = NotBegun;

    async fn from_request(request: Request, state: &S) -> Result<Self, NotBegun> {
        let (mut parts, rest) = request.into_parts();
        let repeatable = Repeatable::of(&mut parts, state).await?;
        let bytes = body::read(Request::from_parts(parts, rest), state).await?;
        Self::of(&bytes, repeatable, state).await
    }
}

impl<T: DeserializeOwned> Mutation<T> {
    /// What a body asks for that was read already, by a request that is known again by its name, if it has one.
    ///
    /// # Errors
    /// As the extractor.
    pub async fn of<S>(bytes: &[u8], repeatable: Option<Repeatable>, state: &S) -> Result<Self, NotBegun>
    where
        Db: FromRef<S>,
        IdempotencyTtl: FromRef<S>,
    {
        let body = body::parse(bytes)?;
        let repeatable = repeatable.map(|repeatable| repeatable.with_body(bytes));
        let tx = Tx::begin(&Db::from_ref(state), repeatable, IdempotencyTtl::from_ref(state)).await?;
        Ok(Self { tx, body })
    }
}

/// Why nothing is to be changed.
#[derive(Debug)]
pub enum NotBegun {
    /// It cannot be.
    Refused(Error),
    /// It was, by a request of the same name, and this was the answer.
    Repeated(Answer),
}

impl From<Error> for NotBegun {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl IntoResponse for NotBegun {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(error) => error.into_response(),
            Self::Repeated(answer) => {
                ([(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))], answer).into_response()
            }
        }
    }
}

/// The name that the client gave the request in this header; none without it.
fn key(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let is_key =
        |key: &&str| (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = value.to_str().ok().filter(is_key).filter(|_| values.next().is_none());
    let rule =
        || format!("`{name}` must be given once, as 1 to {KEY_CHARS_MAX} visible ASCII characters without spaces.");
    key.map(|key| Some(key.to_owned())).ok_or_else(|| Error::new(Code::InvalidHeader, rule()))
}

/// A request that can be known again.
#[derive(Debug)]
pub struct Repeatable {
    sub: String,
    key: String,
    /// Of what must be the same in a repeat.
    fingerprint: Sha256,
}

impl Repeatable {
    /// The request, if its client named it.
    async fn of<S>(parts: &mut Parts, state: &S) -> Result<Option<Self>>
    where
        S: Send + Sync,
        Arc<Verifier>: FromRef<S>,
    {
        if !parts.headers.contains_key(IDEMPOTENCY_KEY) {
            return Ok(None);
        }
        let sub = Caller::from_request_parts(parts, state).await?.sub;
        Self::by(&IDEMPOTENCY_KEY, &sub, parts)
    }

    /// The request of this caller, if it was named in this header.
    ///
    /// # Errors
    /// 400 `invalid_header` when that is no name.
    pub fn by(header: &HeaderName, sub: &Sub, parts: &Parts) -> Result<Option<Self>> {
        let Some(key) = key(&parts.headers, header)? else { return Ok(None) };
        let address = parts.uri.path_and_query().map_or("", |address| address.as_str());
        let fingerprint = Sha256::new().chain_update(format!("{} {address}\n", parts.method));
        Ok(Some(Self { sub: sub.to_string(), key, fingerprint }))
    }

    fn with_body(self, body: &[u8]) -> Self {
        Self { fingerprint: self.fingerprint.chain_update(body), ..self }
    }

    fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint.clone().finalize().into()
    }

    /// The answer to the first request of this name, if it changed something and is still kept. Until the transaction
    /// ends no other of this name begins.
    async fn first(&self, conn: &mut Conn, ttl: IdempotencyTtl) -> Result<Option<Answer>> {
        let claim = sqlx::query_scalar("select crewcast.claim_request($1, $2)");
        let is_alone: bool = claim.bind(&self.sub).bind(&self.key).fetch_one(&mut *conn).await?;
        if !is_alone {
            let detail = "The first request with this Idempotency-Key is still running; ask again for its answer.";
            return Err(Error::new(Code::IdempotencyInProgress, detail).with_retry_after(Duration::from_secs(1)));
        }
        // A statement of its own: its snapshot is younger than the claim.
        let kept: Option<Kept> = sqlx::query_as(
            "select fingerprint, status, location, version, body from crewcast.answers
             where sub = $1 and key = $2 and made_at > now() - make_interval(secs => $3)",
        )
        .bind(&self.sub)
        .bind(&self.key)
        .bind(ttl.0.as_secs_f64())
        .fetch_optional(conn)
        .await?;
        match kept {
            Some(kept) if kept.fingerprint != self.fingerprint() => Err(Error::new(
                Code::IdempotencyKeyReused,
                "This Idempotency-Key was used for another method, address or body: take a new one.",
            )),
            kept => Ok(kept.map(|kept| kept.answer)),
        }
    }

    async fn keep<A>(&self, conn: &mut Conn, answer: &Answer<A>) -> Result<()> {
        sqlx::query(
            "insert into crewcast.answers (sub, key, fingerprint, status, location, version, body)
             values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (sub, key) do update
                 set fingerprint = excluded.fingerprint, status = excluded.status, location = excluded.location,
                     version = excluded.version, body = excluded.body, made_at = excluded.made_at",
        )
        .bind(&self.sub)
        .bind(&self.key)
        .bind(self.fingerprint())
        .bind(answer.status.as_u16().cast_signed())
        .bind(&answer.location)
        .bind(answer.version)
        .bind(answer.body.as_ref())
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// An answer as it is stored.
#[derive(Debug, sqlx::FromRow)]
struct Kept {
    fingerprint: Vec<u8>,
    #[sqlx(flatten)]
    answer: Answer,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        key(&headers, &IDEMPOTENCY_KEY).map_err(|error| error.code())
    }

    #[test]
    fn a_key_is_given_once_and_can_be_written_down() {
        assert_eq!(read(&[]), Ok(None));
        let longest = "k".repeat(KEY_CHARS_MAX);
        for good in ["a", "\"quoted\"", "0192f0c1-2b7a-7cc0-8a2e-0123456789ab", &longest] {
            assert_eq!(read(&[good]), Ok(Some(good.to_owned())));
        }
        for bad in [&[""][..], &["a b"], &["ü"], &[&format!("{longest}k")], &["a", "a"]] {
            assert_eq!(read(bad), Err(Code::InvalidHeader), "{bad:?}");
        }
    }
}
