//! What was seen of the log is given away once it is on disk ([`log::wal`] says why).
//!
//! Mostly it is already: whoever publishes waits for the disk itself. Else the next commit that does is near on a busy
//! server, and brings all that came before it along; where none is, one is made, for all that wait at that moment.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Conn, Db};
use crate::log::{
    self, Damage, Event, LogError, Now, Position,
    wal::{self, Lsn},
};

/// So long another's commit is waited for.
const OTHERS: Duration = Duration::from_millis(1);

/// What this node knows to be on disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// All that this position has seen.
    known: Mutex<Option<Position>>,
    /// Held by whoever makes Postgres flush.
    flushing: tokio::sync::Mutex<()>,
}

impl Disk {
    /// Whether all of the other position is known to be on disk.
    fn has(&self, at: &Position) -> bool {
        self.known().as_ref().is_some_and(|known| known.includes_position(at))
    }

    fn has_event(&self, event: &Event) -> bool {
        self.known().as_ref().is_some_and(|known| known.contains(event.xact.cast_unsigned(), event.seq))
    }

    fn know(&self, at: Position) {
        let mut known = self.known();
        // Of another epoch: a log that was set back has lost what was known of it.
        let is_news = known.as_ref().is_none_or(|known| known.epoch() != at.epoch() || at.includes_position(known));
        if is_news {
            *known = Some(at);
        }
    }

    /// One value, set at once: nothing is half done when a panic comes.
    fn known(&self) -> MutexGuard<'_, Option<Position>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Db {
    /// The log now, as [`log::look`] sees it, once all of that is on disk.
    ///
    /// # Errors
    /// As [`log::look`].
    pub async fn now(&self, conn: &mut Conn, ranges: &[Range<u64>]) -> Result<Now, LogError> {
        let seen = log::look(conn, ranges).await?;
        if let Some(up_to) = seen.waits_for()
            && !self.disk.has(&seen.peek().position())
        {
            self.flush(conn, up_to).await?;
        }
        let now = seen.on_disk();
        self.disk.know(now.position());
        Ok(now)
    }

    /// The event with this number, as [`log::one`] has it, once it is on disk.
    ///
    /// # Errors
    /// As [`log::one`].
    pub async fn event(&self, conn: &mut Conn, seq: i64) -> Result<Option<(Event, Option<Damage>)>, LogError> {
        let Some((seen, damage)) = log::one(conn, seq).await? else { return Ok(None) };
        if let Some(up_to) = seen.waits_for()
            && !self.disk.has_event(seen.peek())
        {
            self.flush(conn, up_to).await?;
        }
        Ok(Some((seen.on_disk(), damage)))
    }

    /// Waits until the log of Postgres is on disk up to here. `conn` may be in a transaction that only reads.
    async fn flush(&self, conn: &mut Conn, up_to: Lsn) -> sqlx::Result<()> {
        let began = Instant::now();
        while began.elapsed() < OTHERS {
            if wal::flush_position(conn).await? >= up_to {
                return Ok(());
            }
        }
        let _turn = self.disk.flushing.lock().await;
        if wal::flush_position(conn).await? < up_to {
            wal::flush(&mut self.acquire_own().await?).await?;
        }
        Ok(())
    }
}
