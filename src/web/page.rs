//! Lists in pages: `?after=&limit=` in, `{items, nextCursor}` out.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, SchemaType};
use utoipa::openapi::{ObjectBuilder, Ref, RefOr, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::openapi::schemas_of;
use crate::error::{Code, Error as Refusal};

/// Items of a page that nobody sized.
pub const LIMIT_DEFAULT: u32 = 50;

/// Items of the largest page.
pub const LIMIT_MAX: u32 = 200;

/// Which page of a list is wanted. Can be flattened into a query with more parameters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// The `nextCursor` of the page before; an empty one is none.
    #[serde(default, deserialize_with = "not_empty")]
    pub after: Option<String>,
    /// Items at most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    #[serde(default = "limit_default", deserialize_with = "limit")]
    pub limit: u32,
}

impl Page {
    /// The id that the page begins behind, in a list that is ordered by id; nil for the first page.
    ///
    /// # Errors
    /// 400 `invalid_query` when `after` is no id.
    pub fn after_id(&self) -> Result<Uuid, Refusal> {
        let after = self.after.as_deref().map(str::parse).transpose();
        Ok(after.map_err(|_| Self::not_of_this_list())?.unwrap_or_default())
    }

    /// 400 for an `after` that the list cannot have given.
    #[must_use]
    pub fn not_of_this_list() -> Refusal {
        Refusal::new(Code::InvalidQuery, "after is not a cursor of this list.")
    }

    /// Rows to ask the database for: one more than the page has tells whether there is a next.
    #[must_use]
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page, from up to [`Self::rows`] items; `cursor` names the last item's place.
    pub fn list<T>(&self, mut items: Vec<T>, cursor: impl FnOnce(&T) -> String) -> List<T> {
        let limit = self.limit as usize;
        let has_next = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| has_next).map(cursor);
        List { items, next_cursor }
    }
}

impl Default for Page {
    fn default() -> Self {
        Self { after: None, limit: LIMIT_DEFAULT }
    }
}

fn limit_default() -> u32 {
    LIMIT_DEFAULT
}

/// `?after=` says nothing.
fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let after = Option::<String>::deserialize(deserializer)?;
    Ok(after.filter(|after| !after.is_empty()))
}

/// A number that came as text, as it does when the page is flattened into another query.
fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    struct Limit;

    impl Visitor<'_> for Limit {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a number from 1 to {LIMIT_MAX}")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u32, E> {
            let limit = text.parse().ok();
            limit
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| E::custom(format!("limit must be a number from 1 to {LIMIT_MAX}")))
        }
    }

    deserializer.deserialize_str(Limit)
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// What to ask for the next page with; `null` on the last one.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A list that is all on one page.
    #[must_use]
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }
}

impl<T: ToSchema> PartialSchema for List<T> {
    fn schema() -> RefOr<Schema> {
        let items = ArrayBuilder::new().items(Ref::from_schema_name(T::name()));
        let next = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]));
        let next = next.description(Some("The `after` of the next page; null on the last one."));
        let list = ObjectBuilder::new().property("items", items).property("nextCursor", next);
        list.required("items").required("nextCursor").into()
    }
}

impl<T: ToSchema> ToSchema for List<T> {
    fn name() -> Cow<'static, str> {
        format!("{}List", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend(schemas_of::<T>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_limits_that_hold() {
        let parameters = Page::into_params(|| None);
        let limit = serde_json::to_value(&parameters[1]).unwrap();
        assert_eq!(limit["schema"]["maximum"], LIMIT_MAX);
        assert_eq!(limit["schema"]["default"], LIMIT_DEFAULT);
    }

    #[test]
    fn a_page_ends_with_a_cursor_when_there_is_more() {
        let page = Page { after: None, limit: 2 };
        assert_eq!(page.rows(), 3);
        let list = page.list(vec![1, 2, 3], ToString::to_string);
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"{"items":[1,2],"nextCursor":"2"}"#);
        let list = page.list(vec![1, 2], ToString::to_string);
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"{"items":[1,2],"nextCursor":null}"#);
        assert_eq!(page.list(Vec::<u8>::new(), ToString::to_string), List::whole(vec![]));
    }
}
