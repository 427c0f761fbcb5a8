//! Limits by caller and by address. They hold on this node.
//!
//! - **Writes** under `/v1` and `/hooks` with a token count for their caller, services by a limit of their own. Reads are not
//!   counted, nor is a delivery that is signed: whose it is shows only when all of it was read.
//!   What is asked of an open stream counts for that stream.
//! - **Connects**, the attempts to open a stream, count for their address, before credentials are judged.
//! - **Failed authentications** count for their address as well, by the same number: at an address that has used them up
//!   no credentials are judged, good or bad, until one more is borne. So guessing is bounded.
//!
//! Streams that are open are limited by the hub, which knows them. Who is refused gets 429 with `Retry-After`; they and
//! writes that are taken are told what is left by `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    address::Address,
    buckets::{Buckets, Empty, KEYS_MAX, Left, Time},
    security::{Kind, Security},
};
use crate::{
    app::App,
    auth::Caller,
    config::Limits,
    error::{Code, Credentials, Error, Result},
    ids::Sub,
    metrics::Metrics,
};

/// What is left.
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What there is in all.
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How often buckets that are full again are forgotten: as long as one takes to fill.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Whom something counts for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// A caller, from wherever they call.
    Caller(Sub),
    /// Everybody who calls from there.
    Network(IpAddr),
    /// A caller about a stream that they say is theirs.
    Stream(Sub, Uuid),
    /// A caller about streams that turned out to be none of theirs.
    Strays(Sub),
}

/// So much of something each minute.
#[derive(Debug)]
struct Limit {
    /// In headers and in the metric.
    name: &'static str,
    /// What it is to reach it.
    kind: Kind,
    buckets: Buckets<Key>,
    policy: HeaderValue,
}

impl Limit {
    fn new(name: &'static str, kind: Kind, per_minute: NonZeroU32, time: &Time, metrics: &Metrics) -> Self {
        let buckets = Buckets::new(per_minute, time.clone(), metrics.limit_keys_forgotten.clone());
        let policy = header(&format!("\"{name}\";q={per_minute};w=60"));
        Self { name, kind, buckets, policy }
    }

    /// What to tell somebody who has so much left until then.
    fn told(&self, left: u32, until: Duration) -> [(HeaderName, HeaderValue); 2] {
        let seconds = until.as_nanos().div_ceil(1_000_000_000);
        let state = header(&format!("\"{}\";r={left};t={seconds}", self.name));
        [(RATELIMIT_POLICY, self.policy.clone()), (RATELIMIT, state)]
    }

    fn refusal(&self, Empty { retry_after }: Empty) -> Error {
        // The next one may have come while we looked; a client must not ask at once.
        let after = retry_after.max(Duration::from_nanos(1));
        let refusal = Error::new(Code::RateLimited, format!("The limit of {} for one minute is reached.", self.name));
        let told = self.told(0, after).into_iter();
        told.fold(refusal.with_retry_after(after), |refusal, (name, value)| refusal.with_header(name, value))
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names and numbers are visible ASCII")
}

/// The limits of this node, and who has used how much of them.
#[derive(Debug)]
pub struct Limiters {
    writes: Limit,
    service_writes: Limit,
    connects: Limit,
    failures: Limit,
    security: Arc<Security>,
    metrics: Arc<Metrics>,
}

impl Limiters {
    /// Nobody has used anything.
    pub(super) fn new(limits: &Limits, security: Arc<Security>, metrics: Arc<Metrics>) -> Self {
        let limit = |name, kind, per_minute| Limit::new(name, kind, per_minute, &limits.time, &metrics);
        let limiters = Self {
            writes: limit("writes", Kind::WriteBurst, limits.writes_per_minute),
            service_writes: limit("writes", Kind::WriteBurst, limits.service_writes_per_minute),
            connects: limit("connects", Kind::ConnectionBurst, limits.connects_per_minute),
            failures: limit("failures", Kind::TokenGuessing, limits.connects_per_minute),
            security,
            metrics: metrics.clone(),
        };
        let kept = limiters.all().len() + 1;
        metrics.limit_keys_max.set((kept * KEYS_MAX).try_into().unwrap_or(i64::MAX));
        limiters
    }

    fn all(&self) -> [&Limit; 4] {
        [&self.writes, &self.service_writes, &self.connects, &self.failures]
    }

    /// Forgets who has not used anything of late, until `stop`.
    pub(crate) async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        let mut due = interval(SWEEP_EVERY);
        while stop.run_until_cancelled(due.tick()).await.is_some() {
            for limit in self.all() {
                limit.buckets.sweep();
            }
            self.security.sweep();
        }
    }

    /// Sets the gauge that is looked up only when somebody asks.
    pub(super) fn measure(&self) {
        let keys: usize = self.all().iter().map(|limit| limit.buckets.len()).sum();
        self.metrics.limit_keys.set((keys + self.security.len()).try_into().unwrap_or(i64::MAX));
    }

    /// Counts a write, for its caller or for the stream that it is about; what to tell the caller about the next ones.
    fn write(&self, caller: &Caller, stream: Option<Uuid>, address: Address) -> Result<[(HeaderName, HeaderValue); 2]> {
        let limit = self.writes_of(caller);
        let sub = caller.sub.clone();
        let refuse = |empty| self.refuse(limit, empty, address, Some(&caller.sub));
        if stream.is_some() {
            // Who has named too many streams that were none of theirs names no more.
            limit.buckets.look(Key::Strays(sub.clone())).map_err(refuse)?;
        }
        let key = stream.map_or_else(|| Key::Caller(sub.clone()), |stream| Key::Stream(sub.clone(), stream));
        let Left { permits, full_in } = limit.buckets.take(key).map_err(refuse)?;
        Ok(limit.told(permits, full_in))
    }

    /// A stream that a caller named is none of theirs.
    fn strayed(&self, caller: &Caller) {
        // The next one finds out that nothing is left.
        let _ = self.writes_of(caller).buckets.take(Key::Strays(caller.sub.clone()));
    }

    fn writes_of(&self, caller: &Caller) -> &Limit {
        if caller.is_service() { &self.service_writes } else { &self.writes }
    }

    /// Counts an attempt to open a stream.
    fn connect(&self, address: Address) -> Result<()> {
        let taken = self.connects.buckets.take(Key::Network(address.network()));
        taken.map(|_| ()).map_err(|empty| self.refuse(&self.connects, empty, address, None))
    }

    /// Whether credentials from there are judged at all.
    fn may_authenticate(&self, address: Address) -> Result<()> {
        let looked = self.failures.buckets.look(Key::Network(address.network()));
        looked.map_err(|empty| self.refuse(&self.failures, empty, address, None))
    }

    /// Counts credentials that were refused, or missing.
    fn failed(&self, address: Address, credentials: Option<Credentials>) {
        // Those of one moment were judged together: the last ones find nothing left to take.
        let _ = self.failures.buckets.take(Key::Network(address.network()));
        self.security.note_unauthorized(address, credentials);
    }

    fn refuse(&self, limit: &Limit, empty: Empty, address: Address, sub: Option<&Sub>) -> Error {
        self.metrics.limited.count("limit", limit.name);
        self.security.note(limit.kind, address, sub);
        limit.refusal(empty)
    }
}

/// Middleware: counts attempts to open a stream and refused credentials for their address. Nobody has judged credentials yet.
pub(super) async fn addresses(
    State(app): State<App>,
    address: Address,
    request: Request,
    next: Next,
) -> Result<Response> {
    let opens = opens_a_stream(&request);
    if opens || has_a_caller(&request) {
        app.limiters.may_authenticate(address)?;
    }
    if opens {
        app.limiters.connect(address)?;
    }
    let response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED {
        app.limiters.failed(address, response.extensions().get().copied());
    }
    Ok(response)
}

/// Middleware: counts writes for their caller, where it is known who that is, and tells them what is left. What is asked of
/// an open stream counts for that one alone: who types must not keep themselves from saving.
pub(super) async fn writes(State(app): State<App>, address: Address, request: Request, next: Next) -> Result<Response> {
    let caller = request.extensions().get::<Caller>();
    let writer = caller.filter(|_| has_a_caller(&request) && is_write(request.method())).cloned();
    let stream = stream_of(&request);
    let told = writer.as_ref().map(|caller| app.limiters.write(caller, stream, address)).transpose()?;
    let mut response = next.run(request).await;
    if let Some(caller) = writer.filter(|_| stream.is_some() && response.status() == StatusCode::NOT_FOUND) {
        app.limiters.strayed(&caller);
    }
    response.headers_mut().extend(told.into_iter().flatten());
    Ok(response)
}

/// Whether a request is for a stream.
pub(super) fn opens_a_stream(request: &Request) -> bool {
    request.uri().path() == "/events"
}

/// The stream that a request is about.
fn stream_of(request: &Request) -> Option<Uuid> {
    let rest = request.uri().path().strip_prefix("/v1/streams/")?;
    rest.split('/').next()?.parse().ok()
}

/// Whether credentials are judged there, besides for a stream.
pub(super) fn has_a_caller(request: &Request) -> bool {
    ["/v1/", "/hooks/"].into_iter().any(|base| request.uri().path().starts_with(base))
}

/// Whether a method changes things.
pub(super) fn is_write(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::http::address::Peer;

    fn limits(clock: &FakeRelativeClock) -> Limits {
        #[derive(Parser)]
        struct Arguments {
            #[command(flatten)]
            limits: Limits,
        }
        let limits = Arguments::parse_from(["test", "--connects-per-minute=2"]).limits;
        Limits { time: Time::ByHand(clock.clone()), ..limits }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_done_nothing_of_late_is_forgotten_until_the_server_stops() {
        let (clock, metrics, stop) =
            (FakeRelativeClock::default(), Arc::new(Metrics::default()), CancellationToken::new());
        let limits = limits(&clock);
        let security = Arc::new(Security::new(limits.time.clone(), metrics.clone()));
        let limiters = Arc::new(Limiters::new(&limits, security, metrics.clone()));
        let sweeping = tokio::spawn(limiters.clone().sweep(stop.clone()));
        let address = Address::of(Peer::at(([203, 0, 113, 9], 4711).into()), &axum::http::HeaderMap::new(), &[]);
        let keys = || {
            limiters.measure();
            metrics.limit_keys.get()
        };
        for _ in 0..3 {
            let _ = limiters.connect(address);
        }
        assert_eq!(keys(), 2, "the address, and that the log told of it");
        tokio::time::sleep(SWEEP_EVERY * 2).await;
        assert_eq!(keys(), 2, "it has not come back yet");
        clock.advance(Duration::from_secs(120));
        tokio::time::sleep(SWEEP_EVERY * 2).await;
        assert_eq!(keys(), 0);
        stop.cancel();
        sweeping.await.unwrap();
    }
}
