//! What a stream says about itself: the data of its own frames.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    ids::{Room, Sub},
    log::Position,
};

/// Who a stream belongs to.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = StreamUser)]
pub(super) struct User<'a> {
    /// The caller's `sub`.
    #[schema(value_type = Sub)]
    pub(super) id: &'a str,
    /// What they are called.
    #[schema(required)]
    pub(super) name: Option<&'a str>,
}

/// A room that the stream did not get, or is in no longer, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = RefusedRoom)]
pub struct Refused {
    /// Its name.
    #[schema(value_type = Room)]
    pub room: String,
    /// Why the stream is not in it.
    pub reason: Refusal,
}

/// Why a stream is not in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The caller may not join it.
    Forbidden,
    /// The stream is in as many rooms as it may be in.
    Limit,
    /// The caller may be in it no longer.
    Revoked,
    /// What it is the room of was deleted, longer than `retention` ago.
    Deleted,
    /// The client wanted to leave it.
    Requested,
}

/// The data of `stream:rooms`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = StreamRoomsData)]
pub struct RoomsChanged {
    /// The stream is in these rooms now.
    #[schema(value_type = Vec<Room>)]
    pub joined: Vec<String>,
    /// It is in these no longer.
    pub left: Vec<Refused>,
    /// It asked for these in vain.
    pub refused: Vec<Refused>,
}

/// The data of `stream:open`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StreamOpenData)]
pub struct Open<'a> {
    pub(super) stream_id: Uuid,
    pub(super) user: User<'a>,
    #[schema(value_type = Vec<Room>)]
    pub(super) rooms: &'a [String],
    pub(super) refused: &'a [Refused],
    /// `live`: nothing was to be resumed. `replayed`: what was missed follows. `reset`: `stream:reset` follows.
    pub(super) resume: Resume,
    /// The longest silence.
    pub(super) heartbeat_ms: u64,
    pub(super) node: &'a str,
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Resume {
    /// Where the router is.
    Live,
    /// Where the client was.
    Replayed,
    /// Where the router is, although the client was elsewhere.
    Reset,
}

/// The data of `stream:reset`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StreamResetData)]
pub struct ResetTo {
    /// `foreign`: the position is another log's, or the log began a new epoch. `too_old`: some of what follows was let go.
    /// `malformed`: it is no position. `unknown`: it claims what this log does not have. `too_many`: more than
    /// `replay-events-max` events were missed. `unreadable`: the database cannot give some of what was missed.
    pub(super) reason: Reset,
    #[schema(value_type = Position)]
    pub(super) cursor: String,
}

/// Why a stream can't go on where the client was: it has to read its state again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResetReason)]
pub(super) enum Reset {
    /// The position was made by another log.
    Foreign,
    /// Some of what follows it was deleted.
    TooOld,
    /// It is no position.
    Malformed,
    /// It claims transactions that this log does not have.
    Unknown,
    /// More was missed than is sent one by one.
    TooMany,
    /// The database cannot give some of what follows it.
    Unreadable,
}

impl Reset {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::TooOld => "too_old",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::TooMany => "too_many",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The data of `stream:expiring`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StreamExpiringData)]
pub struct Expiring {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) expires_at: OffsetDateTime,
}

/// Why the server ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClosingReason {
    /// The node is shutting down.
    Draining,
    /// The node has as many streams as it can serve.
    Overload,
    /// A limit of the caller's, or of their address, is reached.
    Limit,
    /// Postgres is out of reach.
    Unavailable,
    /// Its credentials have ended.
    Expired,
    /// Its user, or an admin, has ended it.
    Ended,
    /// Its user has signed out.
    SignedOut,
}

impl ClosingReason {
    /// The name in frames and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Overload => "overload",
            Self::Limit => "limit",
            Self::Unavailable => "unavailable",
            Self::Expired => "expired",
            Self::Ended => "ended",
            Self::SignedOut => "signed_out",
        }
    }
}

/// The data of `heartbeat`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HeartbeatData)]
pub struct Heartbeat {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) at: OffsetDateTime,
}
