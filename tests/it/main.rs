//! Tests of the whole service, on a real Postgres.

mod buffers;
mod embedded;
mod first;
mod restore;
mod stall;
mod support;
