//! Alerts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much an alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    Info,
    Warning,
    Critical,
}
