//! The log, read by REST: one event, and a room's history in pages.

use axum::extract::State;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::{
    app::App,
    auth::Caller,
    db::Conn,
    error::{Code, Error, Result},
    ids::Room,
    log::{
        self, Damage, Event, LogError, Position, Reader, Reading, Scope, Snapshot, named, position::ParseError,
        retention,
    },
    web::{self, List, Page, PathArg, Plain, Query, Seen},
};

/// A stretch of a room's history with more events than this is cut at a noted position, so that nothing sorts a whole
/// busy room for one page.
const STRETCH_EVENTS_MAX: i64 = 1000;

/// An event as the stream has it.
#[derive(Debug, Serialize)]
pub(super) struct LoggedFrame {
    event: String,
    data: Box<RawValue>,
}

impl LoggedFrame {
    fn new(event: Event) -> Result<Self> {
        Ok(Self { event: event.kind, data: RawValue::from_string(event.data).map_err(Error::internal)? })
    }
}

/// Which events there are is known when the document is put together.
impl PartialSchema for LoggedFrame {
    fn schema() -> RefOr<Schema> {
        Schema::default().into()
    }
}

impl ToSchema for LoggedFrame {}

/// An event in its place.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlacedFrame {
    /// The position after it: a stream can resume there.
    #[schema(value_type = Position)]
    id: String,
    #[serde(flatten)]
    frame: LoggedFrame,
}

/// Read one event, its payload whole
///
/// For whoever may join one of its rooms. Where the stream had a `ref` in place of a payload that was too large, this is
/// the address it names. The event comes without an `id`.
#[utoipa::path(
    get,
    path = "/v1/events/{seq}",
    params(("seq" = i64, Path, description = "The event's `meta.seq`.")),
    responses((status = 404))
)]
pub(super) async fn read_event(
    State(app): State<App>,
    caller: Caller,
    PathArg(seq): PathArg<i64>,
) -> Result<Plain<LoggedFrame>> {
    let mut conn = app.db.acquire().await?;
    let found = match app.db.event(&mut conn, seq).await {
        // Whoever might read it is not known either.
        Err(LogError::Unreadable(damage)) => {
            app.hub.note(&damage);
            None
        }
        found => found?,
    };
    let (event, damage) = found.ok_or_else(Error::not_found)?;
    drop(conn);
    let rooms: Vec<Room> = event.rooms.iter().filter_map(|room| room.parse().ok()).collect();
    if !app.joins.may_join(&caller, &rooms).await?.contains(&true) {
        return Err(Error::not_found());
    }
    if let Some(damage) = damage {
        app.hub.note(&damage);
        return Err(LogError::Unreadable(damage).into());
    }
    LoggedFrame::new(event).map(Plain)
}

/// Read a room's history
///
/// Oldest first, from the oldest event that can still be resumed, or from behind `after`, which may be any event's `id`.
/// Each item's `id` is the position after it: a stream can resume there.
#[utoipa::path(
    get,
    path = "/v1/rooms/{room}/events",
    params(("room" = Room, Path), Page),
    responses(
        (status = 403),
        (
            status = 409,
            description = "`cursor_not_resumable`: the cursor is older than what the log holds, or another log's."
        )
    )
)]
pub(super) async fn read_room(
    State(app): State<App>,
    caller: Caller,
    PathArg(room): PathArg<String>,
    Query(page): Query<Page>,
) -> Result<Seen<List<PlacedFrame>>> {
    let room = web::room(&room)?;
    if app.joins.may_join(&caller, std::slice::from_ref(&room)).await? != [true] {
        return Err(Error::forbidden("You may not join this room."));
    }
    match page_of(&app, &room, &page, false).await {
        // An event that cannot be read may have ended the transaction: now each is read by itself.
        Err(error) if error.code() == Code::Internal => page_of(&app, &room, &page, true).await,
        read => read,
    }
}

async fn page_of(app: &App, room: &Room, page: &Page, singly: bool) -> Result<Seen<List<PlacedFrame>>> {
    let mut read = app.db.read().await?;
    let to = read.cursor().clone();
    let from = beginning(&mut read, page, &to).await?;
    let bytes_max = app.config.limits.event_bytes_max;
    let (scope, said, damages) = (Scope::Rooms(vec![room.to_string()]), Vec::new(), Vec::new());
    let mut history = History { scope, bytes_max, singly, damages, at: from, to, said };
    let mut items = Vec::new();
    while items.len() < page.limit as usize && history.at != history.to {
        let gap = history.stretch(&mut read, page.limit as usize, &mut items).await?;
        history.damages.drain(..).for_each(|damage| app.hub.note(&damage));
        if let Some(gap) = gap {
            app.hub.note(&gap.damage);
            if items.is_empty() {
                app.db.name(&history.said.iter().collect::<Vec<_>>()).await?;
                return Err(gap.into());
            }
            // What came before it is a page of its own.
            break;
        }
    }
    app.db.name(&history.said.iter().collect::<Vec<_>>()).await?;
    let next_cursor = (history.at != history.to).then(|| history.at.to_string());
    Ok(Seen::at(&read, List { items, next_cursor }))
}

/// Where the page begins: behind the cursor, if it can be resumed, else at the floor.
async fn beginning(conn: &mut Conn, page: &Page, to: &Position) -> Result<Position> {
    let Some(after) = &page.after else {
        return Ok(Position::settled(to.epoch().clone(), log::floor(conn).await?));
    };
    let after: Position = match after.parse() {
        Err(ParseError::Named) => named::find(conn, after)
            .await?
            .map_err(|_| Error::new(Code::CursorNotResumable, "The cursor is older than what the log still holds."))?,
        parsed => parsed.map_err(|error| Error::new(Code::InvalidQuery, format!("after is not a cursor: {error}.")))?,
    };
    if after.epoch() != to.epoch() || !to.includes(after.reach()) {
        return Err(Error::new(Code::CursorNotResumable, "The cursor is not one of this log's."));
    }
    Ok(after)
}

/// A walk through a room's history.
struct History {
    scope: Scope,
    bytes_max: u64,
    /// Whether each event is read by itself.
    singly: bool,
    /// What could not be read, to be noted.
    damages: Vec<Damage>,
    at: Position,
    to: Position,
    /// The sets that the items' positions are made of.
    said: Vec<Snapshot>,
}

/// Events of which nothing is known but that they are there.
struct Gap {
    damage: Damage,
    /// Where the history goes on behind it.
    behind: Option<Position>,
}

impl From<Gap> for Error {
    fn from(Gap { damage, behind }: Gap) -> Self {
        let detail = match behind {
            Some(behind) => format!("An event cannot be read. Go on behind it with after={behind}."),
            None => "Some of this room's events cannot be read.".to_owned(),
        };
        Self::new(Code::Internal, detail).with_cause(damage)
    }
}

impl History {
    /// Adds events up to `limit` items from the next stretch: to the end if little is left, else to a noted position. Or
    /// to events of which nothing is known.
    async fn stretch(&mut self, conn: &mut Conn, limit: usize, items: &mut Vec<PlacedFrame>) -> Result<Option<Gap>> {
        let mut reader = self.reader(conn).await?;
        self.said.extend([reader.reading().from().clone(), reader.reading().to().clone()]);
        if self.singly {
            reader = reader.one_by_one();
        }
        loop {
            let page = match reader.page(conn).await {
                Err(LogError::Unreadable(damage)) => {
                    return Ok(Some(Gap { behind: damage.seq.map(|seq| reader.reading().at(seq)), damage }));
                }
                page => page?,
            };
            self.damages.extend(page.damage);
            let end = page.events.len();
            for (nth, event) in page.events.into_iter().enumerate() {
                let is_end = page.last && nth + 1 == end;
                self.at = if is_end { reader.reading().end() } else { reader.reading().at(event.seq) };
                items.push(PlacedFrame { id: self.at.to_string(), frame: LoggedFrame::new(event)? });
                if items.len() == limit {
                    return Ok(None);
                }
            }
            if page.last {
                self.at = reader.reading().end();
                return Ok(None);
            }
        }
    }

    async fn reader(&self, conn: &mut Conn) -> Result<Reader> {
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
    async fn ends(&self, conn: &mut Conn) -> Result<Vec<Snapshot>> {
        let (at, to) = (self.at.base(), self.to.base());
        let marks = retention::marks(conn).await?.into_iter();
        let mut ends: Vec<Snapshot> =
            marks.filter(|mark| mark != at && mark.includes(at) && mark != to && to.includes(mark)).collect();
        ends.push(to.clone());
        Ok(ends)
    }
}
