//! Which nodes live, as far as this one can see.
//!
//! Each node counts its beats in a row of its own. A node whose count stands still for a lease of time is dead: of time
//! in which *we* could look. While Postgres was away from us nobody can have shown a sign of life, so it does not count;
//! and no clocks of different machines are compared. How long a node has been silent that we see for the first time is
//! told by Postgres: whoever died before we came is not believed in for a lease more.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::ids::NodeKey;

/// A node's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) node: NodeKey,
    /// Grows while the node lives.
    pub(super) beat: i64,
    /// The last batch of its streams.
    pub(super) batch: i64,
    /// Whether it said good-bye: each of its streams has a grace of its own, and no lease is waited for.
    pub(super) ended: bool,
    /// How long ago it was written, by Postgres's clock.
    pub(super) age: Duration,
}

/// What is to be read of a node's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// What came in batches after this one.
    Since(i64),
    /// All of them: what was read before, if anything, may lack what has been deleted since.
    Whole,
}

/// What a look has found out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) read: Vec<(NodeKey, Follow)>,
    /// These have died: their streams are gone.
    pub(super) dead: Vec<NodeKey>,
}

/// What is known of the other nodes.
#[derive(Debug)]
pub(super) struct Leases {
    lease: Duration,
    /// Between two looks no more time counts than this: a look that took longer was not able to look.
    counted_max: Duration,
    /// A node that was not followed for longer may have deleted what we have not read.
    followed_within: Duration,
    nodes: HashMap<NodeKey, Node>,
    /// When the last look succeeded; none since one failed.
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Node {
    beat: i64,
    /// How long the beat has stood still.
    silent: Duration,
    is_dead: bool,
    /// Whether it said good-bye.
    ended: bool,
    /// The last batch that was applied, and when we were sure to have all; none when its streams were not read.
    followed: Option<(i64, Instant)>,
}

impl Leases {
    pub(super) fn new(lease: Duration, look_every: Duration, followed_within: Duration) -> Self {
        Self { lease, counted_max: look_every * 2, followed_within, nodes: HashMap::new(), looked: None }
    }

    /// A look has failed: until the next one succeeds no time counts.
    pub(super) fn failed(&mut self) {
        self.looked = None;
    }

    /// What these rows, of all other nodes, say at this moment.
    pub(super) fn looked(&mut self, rows: &[Beat], now: Instant) -> Findings {
        let counted = self.looked.map_or(Duration::ZERO, |last| (now - last).min(self.counted_max));
        self.looked = Some(now);
        let mut findings = Findings::default();
        let seen = |key: &NodeKey| rows.iter().find(|row| row.node == *key);
        for (key, node) in &mut self.nodes {
            let row = seen(key);
            let is_moving = row.is_some_and(|row| row.beat != node.beat);
            node.silent = if is_moving { Duration::ZERO } else { node.silent + counted };
            node.beat = row.map_or(node.beat, |row| row.beat);
            node.ended |= row.is_some_and(|row| row.ended);
            if is_moving && std::mem::take(&mut node.is_dead) {
                node.followed = None;
            }
            if node.silent >= self.lease && !node.is_dead && !node.ended {
                node.is_dead = true;
                findings.dead.push(*key);
            }
        }
        let lease = self.lease;
        // A dead node whose row was swept is nobody.
        self.nodes.retain(|key, node| seen(key).is_some() || node.silent < lease);
        for row in rows {
            self.see(row, now, &mut findings);
        }
        findings
    }

    fn see(&mut self, row: &Beat, now: Instant, findings: &mut Findings) {
        let Beat { beat, ended, age: silent, .. } = *row;
        let is_dead = silent >= self.lease && !ended;
        let node = self.nodes.entry(row.node).or_insert(Node { beat, silent, is_dead, ended, followed: None });
        if node.is_dead {
            return;
        }
        match &mut node.followed {
            Some((_, at)) if now - *at > self.followed_within => findings.read.push((row.node, Follow::Whole)),
            Some((batch, at)) if *batch >= row.batch => *at = now,
            Some((batch, _)) => findings.read.push((row.node, Follow::Since(*batch))),
            None => findings.read.push((row.node, Follow::Whole)),
        }
    }

    /// A node's streams were read, up to this batch, by a statement that began at this moment.
    pub(super) fn followed(&mut self, node: NodeKey, batch: i64, at: Instant) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.followed = Some((batch, at));
        }
    }

    /// The nodes that live, and have streams.
    pub(super) fn living(&self) -> HashSet<NodeKey> {
        self.nodes.iter().filter(|(_, node)| !node.is_dead && !node.ended).map(|(key, _)| *key).collect()
    }

    /// The nodes that are not dead.
    pub(super) fn alive(&self) -> usize {
        self.nodes.values().filter(|node| !node.is_dead).count()
    }
}
