//! Sets of transactions that are too long for an id.
//!
//! A set's text grows with the transactions that were open, where those lie scattered: with some thousand of them it does
//! not fit the header that a client sends its last id in. Such a set is kept as a row, and the id has its name in place of
//! its text. One row stands for all ids of a read, and for the next read, which begins where that one ends.
//!
//! The name is made of the text. So whoever writes an id needs to ask nobody, several nodes that were at one place give it
//! one name, and a name that somebody made up is none. What must hold is that the row is there before an id that names it
//! goes out. A set comes into a node by three ways only: the pump takes it, a request takes it as its cursor, or a client
//! brings it. The first two keep it at once; in the third it stood in the text, so that it is short, or a row had it.
//!
//! A row goes when the floor has passed its set, since no position in it can be resumed then. Positions of one log are
//! ordered by inclusion, so a set that ends below the floor's end does not include the floor. Whoever brings a name that
//! is not there brings one that has gone: `too_old`.

use std::{collections::HashMap, time::Duration};

use super::{
    LogError, Position, Snapshot,
    position::{ParseError, names},
};
use crate::db::Conn;

/// Keeps sets, those that are kept already as they are. `$1`: their names, `$2`: their texts. In one order: two nodes may keep
/// the same ones.
pub const KEEP: &str = "
    insert into crewcast.snapshots (name, snapshot)
    select * from unnest($1::text[], $2::text[]) as given (name, snapshot) order by name
    on conflict (name) do nothing";

/// The sets of these names. `$1`: the names.
pub const FIND: &str = "select name, snapshot from crewcast.snapshots where name = any($1)";

/// Deletes what the floor has passed. `$1`: how old it must be, in seconds, `$2`: rows at most.
pub const SWEEP: &str = "
    delete from crewcast.snapshots where name = any(array(
        select name from crewcast.snapshots
        where end_id < (select crewcast.snapshot_xmax(floor) from crewcast.log)
          and kept_at < now() - make_interval(secs => $1)
        order by end_id limit $2 for update skip locked))";

/// How long a set is kept at least, whatever the floor says.
pub const KEPT_MIN: Duration = Duration::from_secs(60);

/// Why a text is no position of this log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPosition {
    /// It is none at all.
    Malformed,
    /// It names a set that has gone.
    TooOld,
}

/// Keeps those of these sets that ids have to name. Once it returns they may go out.
///
/// # Errors
/// When Postgres does not answer.
pub async fn keep(conn: &mut Conn, snapshots: &[&Snapshot]) -> Result<(), LogError> {
    let named = snapshots.iter().filter_map(|snapshot| Some((snapshot.name()?, snapshot.to_string())));
    let (names, texts): (Vec<String>, Vec<String>) = named.unzip();
    if !names.is_empty() {
        sqlx::query(KEEP).bind(names).bind(texts).execute(conn).await?;
    }
    Ok(())
}

/// The position that a text means.
///
/// # Errors
/// When Postgres does not answer.
pub async fn find(conn: &mut Conn, text: &str) -> Result<Result<Position, NoPosition>, LogError> {
    let rows: Vec<(String, String)> = sqlx::query_as(FIND).bind(names(text)).fetch_all(conn).await?;
    let mut sets = HashMap::new();
    for (name, text) in rows {
        sets.insert(name, text.parse::<Snapshot>().map_err(|_| LogError::Broken("a kept set is not a snapshot"))?);
    }
    Ok(Position::parse(text, |name| sets.get(name).cloned()).map_err(|error| match error {
        ParseError::Named => NoPosition::TooOld,
        _ => NoPosition::Malformed,
    }))
}
