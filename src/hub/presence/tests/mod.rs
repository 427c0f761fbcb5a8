//! Presence without Postgres and without a clock.

mod keeper;
mod leases;
mod model;
mod typing;
mod view;
