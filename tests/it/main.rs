//! Tests of the whole service, on a real Postgres.

mod embedded;
mod first;
mod model;
mod support;
