//! Tests of the whole service, on a real Postgres.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "what a test measured is shown with it")]
#![expect(unreachable_pub, reason = "what the tests share is for all of them")]

mod alerts;
mod bounds;
mod browser;
mod buffers;
mod capacity;
mod cli;
mod comments;
mod contract;
mod cors;
mod dies;
mod docs;
mod drain;
mod embedded;
mod events;
mod figures;
mod first;
mod fixed;
mod hooks;
mod input;
mod joins;
mod jwks;
mod limits;
mod live;
mod load;
mod merge;
mod model;
mod openapi;
mod outage;
mod output;
mod people;
mod phases;
mod plans;
mod presence;
mod projects;
mod readme;
mod repeats;
mod reset;
mod restore;
mod retention;
mod rights;
mod sessions;
mod silent;
mod stall;
mod start;
mod stream;
mod support;
mod tickets;
mod tidy;
mod unreadable;
mod writers;
