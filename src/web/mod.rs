//! What handlers share: how requests are read and how problems are answered.
//!
//! Every extractor here refuses with an [`crate::error::Error`], so that a client gets the same
//! kind of answer whatever was wrong. The three middlewares belong around the whole router, from
//! the outside in: [`request::identify`], [`problem::render`], [`query::refuse_tokens_in_query`].

pub mod body;
pub mod cursor;
pub mod entity;
pub mod etag;
pub mod mutation;
pub mod openapi;
pub mod page;
pub mod patch;
pub mod problem;
pub mod query;
pub mod request;
mod strict;

pub use body::Body;
pub use cursor::{CREWCAST_CURSOR, Seen};
pub use entity::{Answer, Current, Done, Entity, FieldVersions, Made, Nothing, Plain, Posted, Set};
pub use etag::{IfMatch, etag};
pub use mutation::{IDEMPOTENCY_KEY, IdempotencyTtl, Mutation, NotBegun, Repeatable, Tx};
pub use openapi::{Describe, fields_of};
pub use page::{List, Page};
pub use patch::{Changed, Patch, present};
pub use query::{PathArg, Query, room};
pub use request::RequestId;
