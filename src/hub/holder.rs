//! Whose a stream is, and who says what they may have: the machine asks, and knows neither tokens nor projects.

use std::{any::Any, fmt::Debug, pin::Pin, sync::Arc};

use uuid::Uuid;

use super::Refused;
use crate::{db::Conn, error::Result};

/// Whoever opened a stream. What else they are is the [`Warden`]'s business.
pub trait Holder: Any + Debug + Send + Sync {
    /// Their `sub`.
    fn id(&self) -> &str;
    /// What they are called.
    fn name(&self) -> Option<&str>;
    /// Where their picture is.
    fn avatar_url(&self) -> Option<&str>;
    /// Whether others see that they are there: people are seen, services are not.
    fn is_seen(&self) -> bool;
}

/// A stream whose rooms are to be judged again.
#[derive(Debug)]
pub struct Suspect {
    /// Which stream it is.
    pub stream: Uuid,
    /// Whose it is.
    pub holder: Arc<dyn Holder>,
    /// Those of its rooms that are in question.
    pub rooms: Vec<String>,
}

/// Which rooms are taken away from which stream.
pub type Verdict = (Uuid, Vec<Refused>);

/// What a warden answers, later.
pub type Judging<'a> = Pin<Box<dyn Future<Output = Result<Vec<Verdict>>> + Send + 'a>>;

/// Who knows what the events of the log do to the rights of open streams.
pub trait Warden: Debug + Send + Sync {
    /// Whether this event may take its rooms away from somebody who is in them.
    fn takes_rights(&self, kind: &str, data: &str) -> bool;
    /// Whether a room may be lost by what an event says; else only with the credentials.
    fn is_revocable(&self, room: &str) -> bool;
    /// The events that may do so.
    fn kinds(&self) -> &'static [&'static str];
    /// What these streams may no longer have, as of now: by one statement, however many they are. What is not known, since a
    /// row cannot be read, they may not have.
    ///
    /// # Errors
    /// When Postgres does not say.
    fn judge<'a>(&'a self, conn: &'a mut Conn, suspects: Vec<Suspect>) -> Judging<'a>;
}
