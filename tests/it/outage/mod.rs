//! Postgres is lost in every way there is, and nothing waits for ever.

mod locked;
mod lost;
mod ready;
mod standby;
mod wire;
