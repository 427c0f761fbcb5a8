//! What happens in the domain to the rights of those who listen: the hub asks here.

use std::{any::Any, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    auth::Caller,
    db::Conn,
    domain::rights::Joins,
    error::Result,
    hub::{Holder, Hub, Judging, Refusal, Refused, Suspect, Verdict, Warden},
    ids::Room,
};

impl Holder for Caller {
    fn id(&self) -> &str {
        self.sub.as_str()
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn avatar_url(&self) -> Option<&str> {
        self.avatar_url.as_deref()
    }

    fn is_seen(&self) -> bool {
        self.is_person()
    }
}

/// The caller that a stream was opened by.
pub(super) fn caller(holder: &Arc<dyn Holder>) -> &Caller {
    let holder: &dyn Any = holder.as_ref();
    holder.downcast_ref().expect("every stream is opened by a caller")
}

/// Judges open streams by what Postgres says now.
#[derive(Debug)]
pub struct Rights(pub Joins);

impl Warden for Rights {
    /// A member who was taken out, and a project that went to another division. Of a payload that is too large for a stream
    /// only a reference is here: it may be one of those.
    fn takes_rights(&self, kind: &str, data: &str) -> bool {
        let says = |text| data.contains(text) || data.starts_with(r#"{"ref":"#);
        match kind {
            "membership:changed" => says(r#""role":null"#),
            "project:updated" => says(r#""field":"division""#),
            _ => false,
        }
    }

    fn kinds(&self) -> &'static [&'static str] {
        &["membership:changed", "project:updated"]
    }

    fn is_revocable(&self, room: &str) -> bool {
        room.starts_with("project:")
    }

    fn judge<'a>(&'a self, conn: &'a mut Conn, suspects: Vec<Suspect>) -> Judging<'a> {
        Box::pin(async move {
            let rooms = |suspect: &Suspect| suspect.rooms.iter().filter_map(|room| room.parse().ok()).collect();
            let asked: Vec<(&Caller, Vec<Room>)> =
                suspects.iter().map(|suspect| (caller(&suspect.holder), rooms(suspect))).collect();
            let may = self.0.may_stay(conn, &asked).await?;
            Ok(suspects.iter().zip(may).filter_map(|(suspect, may)| verdict(suspect, &may)).collect())
        })
    }
}

/// What a stream loses; none when it loses nothing.
fn verdict(suspect: &Suspect, may: &[bool]) -> Option<Verdict> {
    let lost = suspect.rooms.iter().zip(may).filter(|(_, may)| !**may);
    let lost = lost.map(|(room, _)| Refused { room: room.clone(), reason: Refusal::Revoked });
    let lost: Vec<Refused> = lost.collect();
    (!lost.is_empty()).then_some((suspect.stream, lost))
}

/// How often it is looked whether a project was deleted long ago whose room somebody is in.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Takes the rooms of projects away that were deleted longer than `retention` ago, until `stop`.
pub async fn close_rooms(hub: Arc<Hub>, joins: Joins, stop: CancellationToken) {
    let every = LOOK_EVERY.min(joins.retention() / 8);
    while stop.run_until_cancelled(sleep(every)).await.is_some() {
        match stop.run_until_cancelled(close_deleted(&hub, &joins)).await {
            Some(Err(error)) => tracing::debug!(%error, "rooms of deleted projects are left for the next time"),
            Some(Ok(())) => {}
            None => return,
        }
    }
}

async fn close_deleted(hub: &Hub, joins: &Joins) -> Result<()> {
    let ids = |room: &String| match room.parse() {
        Ok(Room::Project(id)) => Some(id),
        _ => None,
    };
    let projects: Vec<Uuid> = hub.rooms_of("project:").iter().filter_map(ids).collect();
    if projects.is_empty() {
        return Ok(());
    }
    for id in joins.long_deleted(&projects).await? {
        hub.close_room(&Room::Project(id).to_string(), Refusal::Deleted);
    }
    Ok(())
}
