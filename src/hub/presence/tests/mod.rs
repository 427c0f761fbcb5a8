//! Presence without Postgres and without a clock.

mod leases;
mod model;
mod typing;
mod view;
