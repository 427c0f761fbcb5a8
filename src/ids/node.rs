//! Which node holds a stream: its id says so, so that a command for it needs no table to find its way.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::deserialize_from_str;

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

/// A text that is none of a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("eight hexadecimal digits are a node's key")]
pub struct NoNodeKey;

impl FromStr for NodeKey {
    type Err = NoNodeKey;

    fn from_str(text: &str) -> Result<Self, NoNodeKey> {
        let key = u32::from_str_radix(text, 16).ok().map(Self);
        key.filter(|key| key.to_string() == text).ok_or(NoNodeKey)
    }
}

impl Serialize for NodeKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_from_str(deserializer, "a node's key")
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
        assert_eq!(one.to_string().parse(), Ok(one));
    }

    #[test]
    fn streams_of_a_node_are_in_the_order_of_their_beginnings() {
        let node = NodeKey::random();
        let streams: Vec<Uuid> = (0..1000).map(|_| node.stream()).collect();
        assert!(streams.is_sorted());
    }
}
