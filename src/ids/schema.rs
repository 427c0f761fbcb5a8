//! What the API's document says about names: the rule in words, and a pattern for clients that check before they send.

use utoipa::openapi::{ObjectBuilder, Type};

/// A string. `rule` goes on after "it is".
pub(super) fn text(rule: &str) -> ObjectBuilder {
    let (first, rest) = rule.split_at(1);
    ObjectBuilder::new().schema_type(Type::String).description(Some(format!("{}{rest}.", first.to_uppercase())))
}

/// A string that matches the pattern as a whole.
pub(super) fn pattern(rule: &str, pattern: &str) -> ObjectBuilder {
    text(rule).pattern(Some(format!("^({pattern})$")))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use proptest::{prelude::*, string::string_regex, test_runner::TestRunner};
    use utoipa::{
        PartialSchema,
        openapi::{RefOr, Schema},
    };

    use crate::ids::{EventType, Room, Slug, Sub, TopicName, Week};

    /// Texts that match a type's pattern are read, except for what no pattern can say.
    fn holds<T: PartialSchema + FromStr>(is_beyond_patterns: fn(&str) -> bool) {
        let RefOr::T(Schema::Object(schema)) = T::schema() else { panic!("a name is a string") };
        let pattern = schema.pattern.expect("a name has a pattern");
        let texts = string_regex(pattern.trim_matches(['^', '$'])).expect("a pattern that is understood");
        let read = TestRunner::default().run(&texts, |text| {
            prop_assert!(text.parse::<T>().is_ok() || is_beyond_patterns(&text), "{}", text);
            Ok(())
        });
        read.expect("what matches is read");
    }

    #[test]
    fn what_matches_a_pattern_is_read() {
        holds::<Slug>(|_| false);
        holds::<Sub>(|_| false);
        holds::<TopicName>(|_| false);
        holds::<Room>(|_| false);
        // Prefix and name together have a length of their own; not every year has a week 53.
        holds::<EventType>(|text| text.len() > 64);
        holds::<Week>(|text| text.ends_with("W53"));
    }
}
