//! Tests of the whole service, on a real Postgres.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod embedded;
mod first;
mod support;
mod tidy;
