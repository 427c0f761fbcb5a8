//! Keys that an identity provider publishes (JWKS, RFC 7517).
//!
//! One task, the [`Fetcher`], fetches the document: at the start, again when it is due by its `max-age` (within bounds), and
//! when a token names a key that is not known, as providers sign with new keys at any time. Only it fetches, so however many
//! tokens wait there is one request at a time, and whatever tokens name, those fetches are [`Timing::refetch_every`] apart. A token
//! that comes between two of them is judged by what the first one brought.
//!
//! While the document cannot be had, the known keys stay good. A token whose key is not known is then put off (503 with
//! `Retry-After`), for nobody can say that it is bad. So it is from the start, too: a server that would not start without
//! its provider would make one outage two. It serves as soon as the provider answers, without anybody's help. What no waiting
//! mends, an address that cannot be trusted, is refused at the start.
//!
//! A document that was had is taken at its word, also when it lists fewer keys or none.

mod document;
mod jwk;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::document::{Document, Unfetched};
use self::jwk::KeySet;
use super::token::{Checks, Key};
use crate::error::{Error, Result};

pub use document::InvalidAddress;

/// Tokens that wait in line for the fetcher; more wait until they may stand in line.
const ASKS_MAX: usize = 64;

/// How often and how long the document is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Longest wait for the document, from the connection to the last byte.
    pub timeout: Duration,
    /// Shortest time between two fetches that tokens ask for.
    pub refetch_every: Duration,
    /// Time until the next try after a failed one.
    pub retry_every: Duration,
    /// How long a document stays good that does not say it.
    pub max_age_default: Duration,
    /// A document that says less stays good this long.
    pub max_age_min: Duration,
    /// A document that says more stays good this long: a key that is withdrawn is gone by then.
    pub max_age_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            refetch_every: Duration::from_secs(5),
            retry_every: Duration::from_secs(30),
            max_age_default: Duration::from_mins(10),
            max_age_min: Duration::from_mins(1),
            max_age_max: Duration::from_hours(1),
        }
    }
}

impl Timing {
    fn max_age(&self, told: Option<Duration>) -> Duration {
        told.unwrap_or(self.max_age_default).clamp(self.max_age_min, self.max_age_max)
    }
}

/// What is known of the provider; the fetcher writes it, everybody reads it.
#[derive(Debug, Default)]
struct Known {
    keys: KeySet,
    contact: Contact,
}

/// How the last fetch went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Contact {
    #[default]
    None,
    Made,
    Lost,
}

/// A token that waits for the key that it names. It is answered when this is dropped.
struct Ask {
    kid: Option<String>,
    _answer: oneshot::Sender<()>,
}

/// The provider's keys, as far as they are known.
#[derive(Debug)]
pub(super) struct Jwks {
    known: watch::Receiver<Known>,
    asks: mpsc::Sender<Ask>,
    retry_after: Duration,
}

impl Jwks {
    /// Keys that are published at this address, and what fetches them.
    pub(super) fn new(url: &str, timing: Timing, checks: Checks) -> Result<(Self, Fetcher), InvalidAddress> {
        let document = Document::at(url, timing.timeout)?;
        let (writer, known) = watch::channel(Known::default());
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let jwks = Self { known, asks, retry_after: timing.refetch_every };
        Ok((jwks, Fetcher { document, timing, checks, known: writer, asked }))
    }

    /// The key of this name; without one, the only key that there is.
    ///
    /// # Errors
    /// 401 when the provider has no such key; 503 when it cannot be asked.
    pub(super) async fn key(&self, kid: Option<&str>) -> Result<Arc<Key>> {
        if let Some(key) = self.find(kid) {
            return Ok(key);
        }
        let (answer, answered) = oneshot::channel();
        let ask = Ask { kid: kid.map(str::to_owned), _answer: answer };
        if self.asks.send(ask).await.is_ok() {
            // Nothing is ever sent: what was asked is known by now, or it is not to be had.
            let _ = answered.await;
        }
        self.find(kid).ok_or_else(|| self.missing(kid))
    }

    fn find(&self, kid: Option<&str>) -> Option<Arc<Key>> {
        self.known.borrow().keys.find(kid)
    }

    fn missing(&self, kid: Option<&str>) -> Error {
        let known = self.known.borrow();
        match (kid, known.contact) {
            (None, _) if !known.keys.is_empty() => Error::unauthorized(
                "The token does not say which key it is signed with (`kid`), and there are several.",
            ),
            (_, Contact::Made) => {
                Error::unauthorized("The token is signed with a key that the identity provider does not have.")
            }
            (_, Contact::None | Contact::Lost) => {
                Error::unavailable("The token's key is not known yet, and the identity provider does not answer.")
                    .with_retry_after(self.retry_after)
            }
        }
    }
}

/// Fetches the provider's keys for as long as it runs.
pub struct Fetcher {
    document: Document,
    timing: Timing,
    checks: Checks,
    known: watch::Sender<Known>,
    asked: mpsc::Receiver<Ask>,
}

impl Fetcher {
    /// Fetches until it is told to stop, or until nobody is left to ask.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled_owned(self.serve()).await;
    }

    async fn serve(&mut self) {
        let (mut due, mut refetch_from) = (self.fetch().await, Instant::now());
        loop {
            tokio::select! {
                // A fetch that is due answers those who wait, too.
                biased;
                () = sleep_until(due) => due = self.fetch().await,
                ask = self.asked.recv() => {
                    let Some(ask) = ask else { return };
                    if self.may_bring(&ask) && refetch_from <= Instant::now() {
                        due = self.fetch().await;
                        refetch_from = Instant::now() + self.timing.refetch_every;
                    }
                }
            }
        }
    }

    /// Whether a fetch may bring what was asked for: many ask for one key, and the first one's fetch has brought it.
    fn may_bring(&self, ask: &Ask) -> bool {
        let known = self.known.borrow();
        known.keys.find(ask.kid.as_deref()).is_none() && (ask.kid.is_some() || known.keys.is_empty())
    }

    /// Fetches now; when to do it again.
    async fn fetch(&self) -> Instant {
        let again = match self.document.fetch().await {
            Ok(fetched) => {
                self.learn(KeySet::of(&fetched.keys, &self.checks), fetched.keys.len());
                self.timing.max_age(fetched.max_age)
            }
            Err(error) => {
                self.lose(error);
                self.timing.retry_every
            }
        };
        Instant::now() + again
    }

    fn learn(&self, keys: KeySet, listed: usize) {
        let old = self.known.send_replace(Known { keys, contact: Contact::Made });
        let new = self.known.borrow();
        let (url, names) = (self.document.shown(), new.keys.names());
        if old.contact == Contact::Made && old.keys.names() == names {
            return;
        }
        if new.keys.is_empty() {
            tracing::warn!(url, listed, "the identity provider lists no key that verifies tokens: all are refused");
        } else {
            tracing::info!(url, listed, keys = ?names, "tokens are verified with the identity provider's keys");
        }
    }

    /// The keys stay as they are.
    fn lose(&self, error: Unfetched) {
        let mut before = Contact::Lost;
        self.known.send_modify(|known| before = std::mem::replace(&mut known.contact, Contact::Lost));
        if before != Contact::Lost {
            let (url, error) = (self.document.shown(), format!("{:#}", anyhow::Error::from(error)));
            tracing::warn!(
                url,
                error,
                "the identity provider's keys cannot be fetched: those that are known stay good, tokens of others are put off"
            );
        }
    }
}
