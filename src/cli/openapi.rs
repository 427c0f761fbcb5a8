//! `crewcast openapi`: prints the API's document, as `/openapi.yaml` serves it.

use super::print;
use crate::http::openapi;

/// Prints it.
pub(super) fn run() -> anyhow::Result<()> {
    print(openapi::yaml())
}
