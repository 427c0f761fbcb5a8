//! The `crewcast` command.
fn main() {}
