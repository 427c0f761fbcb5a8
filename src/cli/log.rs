//! The log of the server: one line an event, on stderr, whatever is in it; and a line for each panic.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    panic::PanicHookInfo,
};

use tracing::{Level, field::Field};
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    fmt::format::{Writer, debug_fn},
};

use crate::{
    output::{self, Showing},
    tasks,
};

/// The filter of the log when `RUST_LOG` sets none. An untrusted certificate is reported once, by the part that asked for it.
const QUIET: &str = "info,sqlx=warn,rustls_platform_verifier=off";

/// Starts the log of this process.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(QUIET));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(output::stderr).with_ansi(is_coloured());
    log.log_internal_errors(false).fmt_fields(debug_fn(field).delimited(" ")).init();
}

/// Whether whoever reads wants colours: <https://no-color.org>.
fn is_coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes a field of an event or a span, plain: what strangers sent may be in it.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(Showing(writer), "{value:?}"),
        name => write!(Showing(writer), "{name}={value:?}"),
    }
}

/// Has every panic told in one line of the log; where there is no log, on stderr.
pub fn note_panics() {
    tasks::on_panic(note);
}

fn note(panic: &PanicHookInfo<'_>) {
    const TARGET: &str = "crewcast::panic";
    let why = panic.payload_as_str().unwrap_or("no words");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let (thread, task) = (thread.name().unwrap_or("unnamed"), tasks::name());
    // It is made only where `RUST_BACKTRACE` asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    if tracing::enabled!(target: TARGET, Level::ERROR) {
        let backtrace = backtrace.as_ref().map(tracing::field::display);
        tracing::error!(target: TARGET, why, at, thread, task, backtrace, "a panic, which is a bug of the server");
    } else {
        let backtrace = backtrace.map(|backtrace| format!(": {backtrace}")).unwrap_or_default();
        output::stderr().say(format_args!("crewcast: a bug: {why}, at {at}{backtrace}"));
    }
}
