//! Presence and typing: who is in which room, and what they do there.

mod facts;
mod leases;
mod room;
#[cfg(test)]
mod tests;
mod typing;
mod user;
mod view;

pub use self::{
    facts::{Editing, Facts, Report, Shown, ShownStatus, Status, Update, Who, with_presence},
    room::Snapshot,
    typing::{FIELDS_MAX, TooManyFields, Typist},
};
