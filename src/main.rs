//! The `crewcast` command.

use std::process::ExitCode;

/// Ten thousand idle streams take half the memory that they take with the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    crewcast::cli::main()
}
