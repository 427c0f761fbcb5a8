//! A stream's past: what it has to read before it is live.

use std::{pin::Pin, sync::Arc, time::Duration, vec};

use tokio_stream::Stream;

use super::{Hub, Live, frames::Reset, ring::Delivery};
use crate::{
    error::Error,
    log::{
        LogError, Page, Position, Reader,
        named::{self, NoPosition},
        position::ParseError,
    },
    metrics::Gauge,
};

/// How long a session waits for Postgres before it asks for a page again.
const PAGE_RETRY: Duration = Duration::from_millis(250);

/// Pages of the log, each in order, each with the position behind it.
pub(super) type Pages = Pin<Box<dyn Stream<Item = Result<Chapter, Reset>> + Send>>;

/// A page of a stream's past.
#[derive(Debug, Default)]
pub(super) struct Chapter {
    pub(super) events: vec::IntoIter<Delivery>,
    /// The position after the last event, also when there is none.
    pub(super) end: Option<Position>,
}

/// Reads these from the log, one after the other, a page whenever it is asked for one.
pub(super) fn pages(hub: Arc<Hub>, readers: Vec<Reader>) -> Pages {
    Box::pin(async_stream::stream! {
        for mut reader in readers {
            loop {
                let page = page(&hub, &mut reader).await;
                let is_last = page.as_ref().is_ok_and(|page| page.last);
                let is_end = page.is_err();
                yield page.map(|page| chapter(&reader, page));
                if is_end {
                    return;
                }
                if is_last {
                    break;
                }
            }
        }
    })
}

/// Places of the rooms' index that a stream's past may lie scattered over, when somebody comes with a position. Some hundred
/// writers make a tenth of it for a stream in a hundred rooms; a position that was made up, any number.
const PLACES_MAX: usize = 65_536;

/// Whether these have more than `most` events, or lie scattered over too many places to look.
pub(super) async fn too_many(readers: &mut [Reader], conn: &mut crate::db::Conn, most: i64) -> Result<bool, LogError> {
    if readers.iter().map(Reader::places).sum::<usize>() > PLACES_MAX {
        return Ok(true);
    }
    let mut left = most;
    for reader in readers {
        match reader.count(conn, left).await? {
            Some(count) => left -= count,
            None => return Ok(true),
        }
    }
    Ok(false)
}

/// The next page, however long Postgres takes to answer.
async fn page(hub: &Hub, reader: &mut Reader) -> Result<Page, Reset> {
    loop {
        match hub.read_log(async |conn| reader.page(conn).await).await {
            Ok(page) => {
                hub.metrics.log_pages.inc();
                if let Some(damage) = &page.damage {
                    hub.note(damage);
                }
                return Ok(page);
            }
            Err(LogError::Unreadable(damage)) => {
                hub.note(&damage);
                return Err(Reset::Unreadable);
            }
            Err(LogError::TooOld) => return Err(Reset::TooOld),
            Err(LogError::Foreign) => return Err(Reset::Foreign),
            Err(error) => tracing::debug!(%error, "a page of history waits for Postgres"),
        }
        tokio::time::sleep(PAGE_RETRY).await;
    }
}

fn chapter(reader: &Reader, page: Page) -> Chapter {
    let last = page.events.last().filter(|_| page.last).map(|event| event.seq);
    let reading = reader.reading();
    let deliver = |event: crate::log::Event| {
        let at = if Some(event.seq) == last { reading.end() } else { reading.at(event.seq) };
        Delivery::own(Arc::new(Live::new(0, event, at)))
    };
    let events: Vec<Delivery> = page.events.into_iter().map(deliver).collect();
    Chapter { events: events.into_iter(), end: page.last.then(|| reading.end()) }
}

impl Hub {
    /// The position that a client's text means. Postgres is asked only for what the text has but a name of.
    pub(super) async fn position(&self, text: &str) -> Result<Result<Position, Reset>, Error> {
        match text.parse() {
            Ok(at) => Ok(Ok(at)),
            Err(ParseError::Named) => {
                let found = self.read_log(async |conn| named::find(conn, text).await).await?;
                Ok(found.map_err(|none| match none {
                    NoPosition::Malformed => Reset::Malformed,
                    NoPosition::TooOld => Reset::TooOld,
                }))
            }
            Err(_) => Ok(Err(Reset::Malformed)),
        }
    }

    /// Reads history from Postgres, when it is this stream's turn.
    pub(super) async fn read_log<T>(
        &self,
        read: impl AsyncFnOnce(&mut crate::db::Conn) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let waiting = Tally::one(&self.metrics.replays_waiting);
        let _turn = self.replays.acquire().await.expect("nobody closes the semaphore");
        drop(waiting);
        let _reading = Tally::one(&self.metrics.replays_reading);
        read(&mut self.db.acquire_raw().await?).await
    }
}

/// One more in a gauge for as long as it lives, also when whoever waited goes away.
struct Tally<'a>(&'a Gauge);

impl<'a> Tally<'a> {
    fn one(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
