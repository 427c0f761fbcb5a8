//! Tests of the whole service, on a real Postgres.

mod embedded;
mod first;
mod input;
mod reset;
mod rights;
mod stream;
mod support;
