//! The names that the service talks about: people, divisions, topics, rooms, event types, days and weeks.
//!
//! Each name is a type that can only hold a valid one: it is made by [`FromStr`], written by
//! [`Display`](fmt::Display), and what is written parses to the same name again. JSON, paths and
//! queries go through the same door, so a name is judged in one place and each has one spelling.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Deserializer, Visitor};
use uuid::Uuid;

pub use calendar::{Day, TimeOfDay, TimeZone, Week};
pub use event_type::{BUILTIN_TYPES, EventType, HEARTBEAT, InvalidTypes, TypeFilter, custom_type};
pub use node::NodeKey;
pub use text::{InvalidText, Text};

/// Characters of a refused name that its error shows.
const SHOWN_CHARS_MAX: usize = 80;

/// A name that breaks its rule; the message says the rule and shows the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not {rule}")]
pub struct InvalidName {
    given: String,
    rule: &'static str,
}

impl InvalidName {
    fn new(given: &str, rule: &'static str) -> Self {
        let given = shown(given);
        Self { given, rule }
    }
}

/// What an error shows of a refused name: escaped and cut, for it may hold anything.
fn shown(given: &str) -> String {
    let mut shown: String = given.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if given.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Deserialises a string through the type's own parser, whose message the client then gets.
fn deserialize_from_str<'de, D, T>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct FromString<T>(&'static str, PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for FromString<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<T, E> {
            value.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(FromString(expected, PhantomData))
}

/// Serialises by `Display` and deserialises by `FromStr`; a string in the API's document.
macro_rules! serde_as_string {
    ($name:ident, $expected:expr, $schema:expr) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_from_str(deserializer, $expected)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $schema.into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

/// A name that is a string with a rule. Cloning one costs a reference count.
macro_rules! name {
    ($(#[$meta:meta])* $name:ident, $rule:literal, $pattern:literal, $valid:expr) => {
        $(#[$meta])*
        #[doc = concat!("\n\nThe rule: ", $rule, ".")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(given: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(given) {
                    Ok(Self(given.into()))
                } else {
                    Err(InvalidName::new(given, $rule))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        serde_as_string!($name, $rule, crate::ids::schema::pattern($rule, $pattern));
    };
}
// Below the macros, which they use.
mod calendar;
mod event_type;
mod node;
mod schema;
mod text;

/// Whether `s` has 1 to `max` bytes, all of them allowed (which makes bytes characters).
fn is_made_of(s: &str, max: usize, allowed: fn(u8) -> bool) -> bool {
    (1..=max).contains(&s.len()) && s.bytes().all(allowed)
}

fn is_slug_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

name!(
    /// Who a caller is: the `sub` of their token.
    Sub,
    "a user id: 1 to 128 characters of A-Z a-z 0-9 . _ @ | : + ~ -",
    "[A-Za-z0-9._@|:+~-]{1,128}",
    |s| is_made_of(s, 128, |b| b.is_ascii_alphanumeric() || b"._@|:+~-".contains(&b))
);

name!(
    /// The id of a division or an account, chosen by people.
    Slug,
    "a slug: 1 to 64 characters of a-z 0-9 -",
    "[a-z0-9-]{1,64}",
    |s| is_made_of(s, 64, is_slug_byte)
);

name!(
    /// The name of a custom room, without its `topic:`.
    TopicName,
    "a topic: 1 to 128 characters of A-Z a-z 0-9 . _ -",
    "[A-Za-z0-9._-]{1,128}",
    |s| is_made_of(s, 128, |b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);

/// The rule for rooms, for messages.
const ROOM_RULE: &str = "a room: rooms are company, division:{slug}, project:{uuid, hyphenated \
                         and lowercase}, user:{sub} and topic:{name}";

/// The same, for clients.
const ROOM_PATTERN: &str = "company|division:[a-z0-9-]{1,64}\
                            |project:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\
                            |user:[A-Za-z0-9._@|:+~-]{1,128}|topic:[A-Za-z0-9._-]{1,128}";

/// What events are addressed to and streams join.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Room {
    /// `company`: everybody.
    Company,
    /// `division:{slug}`
    Division(Slug),
    /// `project:{uuid}`: only the hyphenated lowercase form, so that one room has one name.
    Project(Uuid),
    /// `user:{sub}`: one person, on all their devices.
    User(Sub),
    /// `topic:{name}`: whatever a publisher likes.
    Topic(TopicName),
}

impl Room {
    /// Whether people are seen in this room; people and topics have no presence.
    #[must_use]
    pub fn has_presence(&self) -> bool {
        matches!(self, Self::Company | Self::Division(_) | Self::Project(_))
    }
}

impl FromStr for Room {
    type Err = InvalidName;

    fn from_str(given: &str) -> Result<Self, InvalidName> {
        let room = match given.split_once(':') {
            None if given == "company" => Some(Self::Company),
            Some(("division", slug)) => slug.parse().ok().map(Self::Division),
            Some(("project", id)) => canonical_uuid(id).map(Self::Project),
            Some(("user", sub)) => sub.parse().ok().map(Self::User),
            Some(("topic", name)) => name.parse().ok().map(Self::Topic),
            _ => None,
        };
        room.ok_or_else(|| InvalidName::new(given, ROOM_RULE))
    }
}

/// The id, when it is spelled in the one form that we write ourselves.
fn canonical_uuid(given: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(given).ok()?;
    let mut buffer = Uuid::encode_buffer();
    (id.hyphenated().encode_lower(&mut buffer) == given).then_some(id)
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Company => f.write_str("company"),
            Self::Division(slug) => write!(f, "division:{slug}"),
            Self::Project(id) => write!(f, "project:{}", id.hyphenated()),
            Self::User(sub) => write!(f, "user:{sub}"),
            Self::Topic(name) => write!(f, "topic:{name}"),
        }
    }
}

serde_as_string!(Room, "the name of a room", schema::pattern(ROOM_RULE, ROOM_PATTERN));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `display(parse(s)) == s` wherever `s` parses; reaching the end at all is "no panic".
    fn round_trips<T: FromStr + fmt::Display>(given: &str) {
        if let Ok(name) = given.parse::<T>() {
            assert_eq!(name.to_string(), given);
        }
    }

    proptest! {
        #[test]
        fn no_string_panics_and_what_parses_is_written_alike(given in ".{0,140}") {
            round_trips::<Sub>(&given);
            round_trips::<Slug>(&given);
            round_trips::<TopicName>(&given);
            round_trips::<Room>(&given);
            round_trips::<EventType>(&given);
        }

        #[test]
        fn rooms_are_written_alike(
            given in "company|(division|user|topic):[A-Za-z0-9._@|:+~-]{0,20}|project:[0-9a-fA-F-]{32,36}"
        ) {
            round_trips::<Room>(&given);
        }

        #[test]
        fn every_valid_room_parses(id in any::<u128>(), sub in "[A-Za-z0-9._@|:+~-]{1,128}", slug in "[a-z0-9-]{1,64}") {
            for given in [format!("project:{}", Uuid::from_u128(id)), format!("user:{sub}"), format!("division:{slug}")] {
                prop_assert_eq!(given.parse::<Room>().map(|room| room.to_string()), Ok(given));
            }
        }
    }

    #[test]
    fn a_name_out_of_its_rule_is_refused_and_shown() {
        for given in ["", "Nord", "a b", "ä", &"x".repeat(65)] {
            assert!(given.parse::<Slug>().is_err(), "{given}");
        }
        for given in ["", "ana maria", "ana\0", &"x".repeat(129)] {
            assert!(given.parse::<Sub>().is_err(), "{given}");
        }
        assert!("auth0|ana+x@example.org".parse::<Sub>().is_ok());
        assert!("a:b".parse::<TopicName>().is_err());
        let message = "No\nrd".parse::<Slug>().unwrap_err().to_string();
        assert_eq!(message, r#""No\nrd" is not a slug: 1 to 64 characters of a-z 0-9 -"#);
        let long = "Ä".repeat(1_000).parse::<Slug>().unwrap_err().to_string();
        assert!(long.chars().count() < 200, "{long}");
    }

    #[test]
    fn a_room_has_one_name() {
        let id = "0192f0c1-2b7a-7cc0-8a2e-0123456789ab";
        assert!(format!("project:{id}").parse::<Room>().is_ok());
        for other in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), format!("urn:uuid:{id}")] {
            assert!(format!("project:{other}").parse::<Room>().is_err(), "{other}");
        }
        for given in ["", "Company", "company:", "division:", "division", "room:x", "user:", " company"] {
            assert!(given.parse::<Room>().is_err(), "{given}");
        }
    }

    #[test]
    fn a_sub_with_colons_names_its_room() {
        let room: Room = "user:idp:ana".parse().unwrap();
        assert_eq!(room, Room::User("idp:ana".parse().unwrap()));
    }

    #[test]
    fn json_goes_through_the_same_rule() {
        assert_eq!(serde_json::to_string(&Room::Company).unwrap(), r#""company""#);
        let error = serde_json::from_str::<Room>(r#""kitchen""#).unwrap_err();
        assert!(error.to_string().contains(r#""kitchen" is not a room"#), "{error}");
        let error = serde_json::from_str::<Slug>("7").unwrap_err().to_string();
        assert!(error.contains("expected a slug: 1 to 64"), "{error}");
    }
}
