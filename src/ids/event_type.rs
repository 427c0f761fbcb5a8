//! Names of events, and the `types` filter of a stream.
//!
//! Built-in events are a closed list: under their prefixes nobody publishes names of their own,
//! and a filter that asks for one that is not on the list asks for what cannot come.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Deserializer;
use utoipa::openapi::{ObjectBuilder, Type};

use super::{InvalidName, deserialize_from_str, is_made_of, is_slug_byte, shown};

/// Bytes of an event type, prefix and colon included.
const TYPE_BYTES_MAX: usize = 64;

/// Bytes of a prefix: the colon and one byte of name must still fit.
const PREFIX_BYTES_MAX: usize = TYPE_BYTES_MAX - 2;

/// The beat of a quiet stream: the one event name without a prefix.
pub const HEARTBEAT: &str = "heartbeat";

/// Every event of the service itself that has a prefix. [`HEARTBEAT`] is the one without.
pub const BUILTIN_TYPES: &[&str] = &[
    "capacity:updated",
    "project:created",
    "project:updated",
    "project:deleted",
    "phase:created",
    "phase:updated",
    "phase:deleted",
    "alert:new",
    "alert:acknowledged",
    "comment:new",
    "comment:updated",
    "comment:deleted",
    "preferences:updated",
    "membership:changed",
    "presence:snapshot",
    "presence:change",
    "presence:count",
    "typing:start",
    "typing:stop",
    "stream:open",
    "stream:rooms",
    "stream:reset",
    "stream:expiring",
    "stream:closing",
];

/// Whether events of ours are called `{prefix}:..`.
fn is_builtin(prefix: &str) -> bool {
    BUILTIN_TYPES.iter().any(|name| name.split(':').next() == Some(prefix))
}

fn is_prefix(s: &str) -> bool {
    is_made_of(s, PREFIX_BYTES_MAX, is_slug_byte)
}

fn is_event_type(s: &str) -> bool {
    let is_name_byte = |byte| is_slug_byte(byte) || byte == b'_' || byte == b'.';
    s.len() <= TYPE_BYTES_MAX
        && s.split_once(':')
            .is_some_and(|(prefix, name)| is_prefix(prefix) && is_made_of(name, TYPE_BYTES_MAX, is_name_byte))
}

name!(
    /// The type of an event in the log, such as `project:updated` or `erp:synced`.
    EventType,
    "an event type: prefix:name of at most 64 bytes, the prefix of a-z 0-9 -, the name of a-z 0-9 _ . -",
    "[a-z0-9-]{1,62}:[a-z0-9_.-]{1,62}",
    is_event_type
);

impl EventType {
    /// What stands before the colon.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.0.split_once(':').map_or("", |(prefix, _)| prefix)
    }

    /// Whether the prefix is one of the service's own, under which nobody else publishes.
    #[must_use]
    pub fn is_builtin_prefix(&self) -> bool {
        is_builtin(self.prefix())
    }
}

/// The schema of the types that others publish under.
#[must_use]
pub fn custom_type() -> ObjectBuilder {
    let mut prefixes: Vec<&str> = BUILTIN_TYPES.iter().filter_map(|name| name.split(':').next()).collect();
    prefixes.dedup();
    let pattern = format!("^(?!({}):)[a-z0-9-]+:[a-z0-9_.-]+$", prefixes.join("|"));
    let custom = ObjectBuilder::new().schema_type(Type::String).max_length(Some(TYPE_BYTES_MAX)).pattern(Some(pattern));
    custom.description(Some("Under a prefix that is not one of the service's own.")).examples(["erp:synced"])
}

/// A `types` parameter that names something that cannot come; the message names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTypes {
    /// Neither a type nor a prefix.
    #[error("\"{0}\" is neither an event type (prefix:name) nor a prefix")]
    Malformed(String),
    /// A built-in prefix with a name that it does not have.
    #[error("there is no event \"{given}\": {known}")]
    Unknown {
        /// What was asked for.
        given: String,
        /// What there is under that prefix.
        known: String,
    },
}

/// Which events a stream lets through: full names and prefixes; an empty filter passes all.
///
/// `stream:*` and `heartbeat` pass whatever the filter says: without them a client cannot know
/// where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeFilter(Option<Arc<Wanted>>);

/// Elsewhere: most streams want everything, and each of them has a filter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    names: HashSet<Box<str>>,
    prefixes: HashSet<Box<str>>,
}

impl TypeFilter {
    /// Reads a comma-separated list such as `project,alert:new,erp`. Empty items say nothing.
    ///
    /// # Errors
    /// When an item cannot be the name or the prefix of any event.
    pub fn parse(list: &str) -> Result<Self, InvalidTypes> {
        let mut wanted = Wanted::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            wanted.add(item)?;
        }
        Ok(Self((wanted != Wanted::default()).then(|| Arc::new(wanted))))
    }

    /// Whether an event of this type goes to the client.
    #[must_use]
    pub fn passes(&self, event_type: &str) -> bool {
        self.0.as_ref().is_none_or(|wanted| wanted.passes(event_type))
    }
}

impl Wanted {
    fn add(&mut self, item: &str) -> Result<(), InvalidTypes> {
        if is_event_type(item) {
            check_exists(item)?;
            self.names.insert(item.into());
        } else if item == HEARTBEAT {
            self.names.insert(item.into());
        } else if is_prefix(item) {
            self.prefixes.insert(item.into());
        } else {
            return Err(InvalidTypes::Malformed(shown(item)));
        }
        Ok(())
    }

    fn passes(&self, event_type: &str) -> bool {
        let prefix = event_type.split(':').next().unwrap_or(event_type);
        event_type == HEARTBEAT
            || prefix == "stream"
            || self.prefixes.contains(prefix)
            || self.names.contains(event_type)
    }
}

/// Refuses a name under a built-in prefix that is not on the list.
fn check_exists(item: &str) -> Result<(), InvalidTypes> {
    let prefix = item.split(':').next().unwrap_or(item);
    if !is_builtin(prefix) || BUILTIN_TYPES.contains(&item) {
        return Ok(());
    }
    let known: Vec<_> = BUILTIN_TYPES.iter().filter(|name| name.split(':').next() == Some(prefix)).copied().collect();
    Err(InvalidTypes::Unknown { given: item.to_owned(), known: format!("there is {}", known.join(", ")) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_type_is_a_prefix_and_a_name() {
        for good in ["erp:synced", "a:b", "erp-2:order_line.added-x", &format!("e:{}", "x".repeat(62))] {
            assert!(good.parse::<EventType>().is_ok(), "{good}");
        }
        for bad in
            ["", "erp", ":x", "erp:", "ERP:x", "erp:a:b", "erp:a b", "e_p:x", "erp:ä", &format!("e:{}", "x".repeat(63))]
        {
            assert!(bad.parse::<EventType>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_services_own_prefixes_are_known() {
        for prefix in [
            "capacity",
            "project",
            "phase",
            "alert",
            "comment",
            "preferences",
            "membership",
            "presence",
            "typing",
            "stream",
        ] {
            let name: EventType = format!("{prefix}:anything").parse().unwrap();
            assert!(name.is_builtin_prefix(), "{prefix}");
        }
        assert!(!"erp:synced".parse::<EventType>().unwrap().is_builtin_prefix());
        assert!(BUILTIN_TYPES.iter().all(|name| is_event_type(name)));
    }

    #[test]
    fn a_filter_takes_names_and_prefixes() {
        let filter = TypeFilter::parse("project,alert:new,erp,,").unwrap();
        for passing in ["project:updated", "project:deleted", "alert:new", "erp:synced"] {
            assert!(filter.passes(passing), "{passing}");
        }
        for held_back in ["alert:acknowledged", "phase:created", "presence:change", "projects:x"] {
            assert!(!filter.passes(held_back), "{held_back}");
        }
    }

    #[test]
    fn the_streams_own_events_always_pass() {
        let filter = TypeFilter::parse("erp:synced").unwrap();
        assert!(filter.passes("stream:reset") && filter.passes("heartbeat"));
        assert!(TypeFilter::parse("heartbeat").unwrap().passes("stream:open"));
        assert!(!TypeFilter::parse("heartbeat").unwrap().passes("project:updated"));
    }

    #[test]
    fn an_empty_filter_passes_all() {
        for list in ["", ",", " , "] {
            assert!(TypeFilter::parse(list).unwrap().passes("erp:synced"));
        }
    }

    #[test]
    fn a_name_that_cannot_come_is_refused_by_name() {
        for list in ["project:foo", "erp,project:foo", "Project", "project:*", "erp:", ":new", "a b", "a:b:c"] {
            assert!(TypeFilter::parse(list).is_err(), "{list}");
        }
        let message = TypeFilter::parse("alert:old").unwrap_err().to_string();
        assert_eq!(message, "there is no event \"alert:old\": there is alert:new, alert:acknowledged");
    }

    proptest! {
        #[test]
        fn no_filter_panics(list in ".*", event_type in ".*") {
            let _ = TypeFilter::parse(&list).map(|filter| filter.passes(&event_type));
        }
    }
}
