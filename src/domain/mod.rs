//! What the service knows: divisions, projects with their members and phases, and who works on them when.
//!
//! A feature is one file (or one folder, where it grew) with its `router()`, its types, its handlers and its SQL, one line
//! here, and one migration. It appends events to the transaction that `db.write()` hands out and never sends any. What it
//! says of its routes and events is what the API's document has.

pub mod alerts;
mod capacity;
mod comments;
mod divisions;
mod events;
mod members;
pub mod people;
mod phases;
mod preferences;
mod projects;
pub mod rights;

use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;
use utoipa_axum::router::OpenApiRouter;

use self::{alerts::hooks::Signatures, people::People};
use crate::{auth::Verifier, db::Db, web::IdempotencyTtl};

/// What the domain's handlers can reach.
#[derive(Debug, Clone, FromRef)]
pub struct Domain {
    /// Postgres.
    pub db: Db,
    /// Who is calling.
    pub verifier: Arc<Verifier>,
    /// Whom this node has seen.
    pub people: People,
    /// How long the answer to a change is kept for its repeats.
    pub idempotency_ttl: IdempotencyTtl,
    /// How long a deleted project keeps its readers.
    pub retention: Retention,
    /// What other backends sign with.
    pub signatures: Arc<Signatures>,
}

/// How long a deleted project keeps its readers.
#[derive(Debug, Clone, Copy)]
pub struct Retention(pub Duration);

/// Every route of the domain, below `/v1`.
pub fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .merge(divisions::router())
        .merge(projects::router())
        .merge(members::router())
        .merge(phases::router())
        .merge(capacity::router())
        .merge(comments::router())
        .merge(events::router())
        .merge(people::router())
        .merge(preferences::router())
        .merge(alerts::router())
}

/// Where other backends deliver what they have to tell: at the top, not below `/v1`.
pub fn hooks() -> OpenApiRouter<Domain> {
    alerts::hooks::router()
}
