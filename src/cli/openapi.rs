//! `crewcast openapi`: prints the API's document, as `/openapi.yaml` serves it.

use crate::http::openapi;

/// Prints it.
pub(super) fn run() {
    print!("{}", openapi::yaml());
}
