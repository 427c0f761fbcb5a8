//! The `crewcast` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    crewcast::cli::main()
}
