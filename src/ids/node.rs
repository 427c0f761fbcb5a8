//! Which node holds a stream: its id says so, so that a command for it needs no table to find its way.

use std::fmt;

use uuid::Uuid;

/// The life of one node, from its start to its end: a server that starts anew is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(u32);

impl NodeKey {
    /// One that no other node of this time has: there are far fewer of them than keys.
    #[must_use]
    pub fn random() -> Self {
        Self::of(Uuid::new_v4())
    }

    /// The node that made this id.
    #[must_use]
    pub fn of(stream: Uuid) -> Self {
        let [.., a, b, c, d] = *stream.as_bytes();
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// A new stream's id: a UUIDv7 whose last 32 random bits are the node's key. 42 random bits are left for each
    /// millisecond of each node.
    #[must_use]
    pub fn stream(self) -> Uuid {
        let mut bytes = Uuid::now_v7().into_bytes();
        bytes[12..].copy_from_slice(&self.0.to_be_bytes());
        Uuid::from_bytes(bytes)
    }

    /// As Postgres keeps it.
    #[must_use]
    pub fn to_sql(self) -> i64 {
        i64::from(self.0)
    }

    /// What Postgres kept; none for what is no key.
    #[must_use]
    pub fn from_sql(key: i64) -> Option<Self> {
        u32::try_from(key).ok().map(Self)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_which_node_made_it_and_is_a_version_7() {
        let (one, other) = (NodeKey::random(), NodeKey::random());
        let stream = one.stream();
        assert_eq!((NodeKey::of(stream), stream.get_version_num()), (one, 7));
        assert_ne!(NodeKey::of(stream), other);
        assert_ne!(one.stream(), stream);
        assert_eq!(NodeKey::from_sql(one.to_sql()), Some(one));
        assert_eq!(NodeKey::from_sql(-1), None);
    }

    #[test]
    fn streams_of_a_node_are_in_the_order_of_their_beginnings() {
        let node = NodeKey::random();
        let streams: Vec<Uuid> = (0..1000).map(|_| node.stream()).collect();
        assert!(streams.is_sorted());
    }
}
