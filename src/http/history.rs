//! The log, read by REST: one event, and a room's history in pages.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;

use crate::{
    app::App,
    auth::Caller,
    error::{Code, Error, Result},
    ids::Room,
    log::{self, Event, Position, Reader, Reading, Scope, Snapshot, retention},
    web::{self, List, Page, PathArg, Query, Seen},
};

/// A stretch of a room's history with more events than this is cut at a noted position, so that nothing sorts a whole
/// busy room for one page.
const STRETCH_EVENTS_MAX: i64 = 1000;

/// An event as the stream has it.
#[derive(Debug, Serialize)]
pub(super) struct EventFrame {
    /// The position after it: a stream can resume there.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    event: String,
    data: Box<RawValue>,
}

impl EventFrame {
    fn new(id: Option<String>, event: Event) -> Result<Self> {
        let data = RawValue::from_string(event.data).map_err(Error::internal)?;
        Ok(Self { id, event: event.kind, data })
    }
}

/// One event with its whole payload, for whoever may join one of its rooms.
pub(super) async fn event(
    State(app): State<App>,
    caller: Caller,
    PathArg(seq): PathArg<i64>,
) -> Result<Json<EventFrame>> {
    let mut conn = app.db.acquire().await?;
    let event = log::one(&mut conn, seq).await?.ok_or_else(Error::not_found)?;
    drop(conn);
    let rooms: Vec<Room> = event.rooms.iter().filter_map(|room| room.parse().ok()).collect();
    if !app.joins.may_join(&caller, &rooms).await?.contains(&true) {
        return Err(Error::not_found());
    }
    Ok(Json(EventFrame::new(None, event)?))
}

/// A room's history, oldest first, from the log's floor or from behind a cursor.
pub(super) async fn room(
    State(app): State<App>,
    caller: Caller,
    PathArg(room): PathArg<String>,
    Query(page): Query<Page>,
) -> Result<Response> {
    let room = web::room(&room)?;
    if app.joins.may_join(&caller, std::slice::from_ref(&room)).await? != [true] {
        return Err(Error::forbidden("You may not join this room."));
    }
    let mut read = app.db.read().await?;
    let to = read.cursor().clone();
    let from = beginning(&mut read, &page, &to).await?;
    let bytes_max = app.config.limits.event_bytes_max;
    let mut history = History { scope: Scope::Rooms(vec![room.to_string()]), bytes_max, at: from, to };
    let mut items = Vec::new();
    while items.len() < page.limit as usize && history.at != history.to {
        history.stretch(&mut read, page.limit as usize, &mut items).await?;
    }
    let next_cursor = (history.at != history.to).then(|| history.at.to_string());
    Ok(Seen::at(&read, List { items, next_cursor }).into_response())
}

/// Where the page begins: behind the cursor, if it can be resumed, else at the floor.
async fn beginning(conn: &mut PgConnection, page: &Page, to: &Position) -> Result<Position> {
    let Some(after) = &page.after else {
        let floor = log::now(conn, &[]).await?.floor;
        return Ok(Position::settled(to.epoch().clone(), floor));
    };
    let after: Position =
        after.parse().map_err(|error| Error::new(Code::InvalidQuery, format!("after is not a cursor: {error}.")))?;
    if after.epoch() != to.epoch() || !to.includes(after.reach()) {
        return Err(Error::new(Code::CursorNotResumable, "The cursor is not one of this log's."));
    }
    Ok(after)
}

/// A walk through a room's history.
struct History {
    scope: Scope,
    bytes_max: u64,
    at: Position,
    to: Position,
}

impl History {
    /// Adds events up to `limit` items from the next stretch: to the end if little is left, else to a noted position.
    async fn stretch(&mut self, conn: &mut PgConnection, limit: usize, items: &mut Vec<EventFrame>) -> Result<()> {
        let mut reader = self.reader(conn).await?;
        loop {
            let page = reader.page(conn).await?;
            let end = page.events.len();
            for (nth, event) in page.events.into_iter().enumerate() {
                let is_end = page.last && nth + 1 == end;
                self.at = if is_end { reader.reading().end() } else { reader.reading().at(event.seq) };
                items.push(EventFrame::new(Some(self.at.to_string()), event)?);
                if items.len() == limit {
                    return Ok(());
                }
            }
            if page.last {
                self.at = reader.reading().end();
                return Ok(());
            }
        }
    }

    async fn reader(&self, conn: &mut PgConnection) -> Result<Reader> {
        if let Some((leg, after)) =
            log::legs(&self.at, self.to.base()).into_iter().next().filter(|(_, after)| *after > 0)
        {
            return Ok(Reader::resume(leg, after, self.scope.clone(), self.bytes_max));
        }
        let mut ends = self.ends(conn).await?;
        loop {
            let end = ends.last().expect("the end itself is never taken away").clone();
            let reading =
                Reading::new(self.at.epoch().clone(), self.at.base().clone(), end).map_err(Error::internal)?;
            let mut reader = Reader::new(reading, self.scope.clone(), self.bytes_max);
            if ends.len() == 1 || reader.count(conn, STRETCH_EVENTS_MAX).await?.is_some() {
                return Ok(reader);
            }
            ends.truncate(ends.len().div_ceil(2));
        }
    }

    /// Where a stretch from here may end: the noted positions that lie ahead, and the end.
    async fn ends(&self, conn: &mut PgConnection) -> Result<Vec<Snapshot>> {
        let (at, to) = (self.at.base(), self.to.base());
        let marks = retention::marks(conn).await?.into_iter();
        let mut ends: Vec<Snapshot> =
            marks.filter(|mark| mark != at && mark.includes(at) && mark != to && to.includes(mark)).collect();
        ends.push(to.clone());
        Ok(ends)
    }
}
