//! Crewcast: a push service for construction operations, with exact delivery.
//!
//! Backends and browsers change things by REST; each change commits in Postgres together with its events; `GET /events`
//! streams them as Server-Sent Events to whoever is in the room and may see them, and resumes exactly. ARCHITECTURE.md
//! has the map.

pub mod app;
pub mod auth;
pub mod bus;
pub mod cli;
pub mod config;
pub mod db;
pub mod domain;
pub mod error;
pub mod files;
pub mod http;
pub mod hub;
pub mod ids;
pub mod log;
pub mod metrics;
pub mod output;
pub mod sse;
pub mod tasks;
pub mod web;
