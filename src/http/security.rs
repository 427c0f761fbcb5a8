//! The security log: requests that look like an attack, or like a client gone wrong.
//!
//! Each is a line of the target `crewcast::security` and one more in a metric. A line says what kind it is, from which
//! address and by whom, where that is known; the request's id is in its span. It never shows what the client sent: neither
//! tokens, tickets and signatures nor any header.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::{
    address::{Address, Peer},
    buckets::{Buckets, Time},
    origin::Page,
};
use crate::{app::App, error::Credentials, ids::Sub, metrics::Metrics};

/// The target of the lines.
const TARGET: &str = "crewcast::security";

/// What looks suspicious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Credentials that are none of ours, or were tampered with.
    BadToken,
    /// A page that is not named calls, or one that does not say which it is writes with a cookie.
    BadOrigin,
    /// An address opens streams faster than it may.
    ConnectionBurst,
    /// An address sends credentials that are refused, again and again.
    TokenGuessing,
    /// A caller writes faster than they may.
    WriteBurst,
    /// A user opens more streams than they may have.
    TooManyStreams,
}

impl Kind {
    /// The name in a line and in the metric.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::BadToken => "bad_token",
            Self::BadOrigin => "bad_origin",
            Self::ConnectionBurst => "connection_burst",
            Self::TokenGuessing => "token_guessing",
            Self::WriteBurst => "write_burst",
            Self::TooManyStreams => "too_many_streams",
        }
    }

    /// Whether each is worth a line; else the first in a minute is. Credentials are bounded already, by their address's limit.
    const fn is_told_each_time(self) -> bool {
        matches!(self, Self::BadToken)
    }
}

/// Whom a line is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Suspect {
    Network(IpAddr),
    User(Sub),
}

/// Writes the security log.
#[derive(Debug)]
pub struct Security {
    /// One permit a minute for each kind and suspect.
    told: Buckets<(Kind, Suspect)>,
    metrics: Arc<Metrics>,
}

impl Security {
    /// A log that has told nothing yet.
    pub(super) fn new(time: Time, metrics: Arc<Metrics>) -> Self {
        Self { told: Buckets::new(NonZeroU32::MIN, time, metrics.limit_keys_forgotten.clone()), metrics }
    }

    /// Counts a suspicious request, and writes a line unless there was one in the last minute.
    pub(super) fn note(&self, kind: Kind, address: Address, sub: Option<&Sub>) {
        self.metrics.suspicions.count("kind", kind.as_str());
        let suspect = sub.map_or(Suspect::Network(address.network()), |sub| Suspect::User(sub.clone()));
        if kind.is_told_each_time() || self.told.take((kind, suspect)).is_ok() {
            let sub = sub.map(tracing::field::display);
            tracing::warn!(target: TARGET, kind = kind.as_str(), %address, sub, "suspicious");
        }
    }

    /// Judges what was wrong with the credentials of an answer with 401. Those that were good once come from every laptop
    /// that wakes up, and without any nobody pretends anything.
    pub(super) fn note_unauthorized(&self, address: Address, credentials: Option<Credentials>) {
        match credentials {
            Some(Credentials::Missing) => {}
            Some(Credentials::Expired) => tracing::debug!(target: TARGET, kind = "expired_token", %address, "refused"),
            Some(Credentials::Bad) | None => self.note(Kind::BadToken, address, None),
        }
    }

    /// Forgets who may be told of again.
    pub(super) fn sweep(&self) {
        self.told.sweep();
    }

    /// Suspects that are remembered.
    pub(super) fn len(&self) -> usize {
        self.told.len()
    }
}

/// Middleware: finds out where a request comes from, for all that follows, and notes pages that are not to call.
pub(super) async fn watch(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let peer: Peer = *request.extensions().get().expect("the connection says who is at its other end");
    let address = Address::of(peer, request.headers(), &app.config.trusted_proxies);
    request.extensions_mut().insert(address);
    if Page::of(request.headers(), &app.config) == Page::Foreign {
        app.security.note(Kind::BadOrigin, address, None);
    }
    next.run(request).await
}
