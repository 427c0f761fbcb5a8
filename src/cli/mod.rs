//! The command line: reads it, and says in one line what is wrong with it.

mod epoch;
pub mod log;
mod migrate;
mod openapi;
pub mod serve;
mod tail;
mod token;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{
    Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};

use crate::{config::Config, output};

/// Push service for construction operations: REST in, Server-Sent Events out, delivered exactly.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (what `crewcast` alone does)
    Serve(Box<Config>),
    /// Mint a token for development
    Token(token::Arguments),
    /// Follow events in this terminal
    Tail(tail::Arguments),
    /// Print the API's document (OpenAPI 3.1)
    Openapi,
    /// Bring the database's schema up to date
    Migrate(migrate::Arguments),
    /// Show the log's epoch, or begin a new one after a restore
    Epoch(epoch::Arguments),
}

/// How long the end of the process waits for whoever reads what it said last.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whoever read what a command prints has what they wanted: `| head`.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads on")]
struct Unread;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    log::note_panics();
    let code = match Cli::try_parse() {
        Ok(cli) => exit_code(start(cli)),
        Err(error) => refuse(&error),
    };
    output::stdout().flush(LAST_WORDS);
    output::stderr().flush(LAST_WORDS);
    code
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match &cli.command {
        Some(Command::Serve(config)) => serve::leave_the_shells_options(config),
        Some(_) => {}
        None => serve::leave_the_shells_options(&cli.config),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(cli));
    // What still runs, such as a look-up of a name that nobody answers, holds nobody up.
    runtime.shutdown_background();
    result
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Unread>() => ExitCode::SUCCESS,
        Err(error) => {
            output::stderr().say(format_args!("crewcast: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.config))) {
        Command::Serve(config) => serve::run(*config).await,
        Command::Token(arguments) => token::run(arguments),
        Command::Tail(arguments) => tail::run(arguments).await,
        Command::Openapi => openapi::run(),
        Command::Migrate(arguments) => migrate::run(arguments).await,
        Command::Epoch(arguments) => epoch::run(arguments).await,
    }
}

/// Prints what a command was asked for: without it the command has failed, unless nobody reads on.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    printed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

fn printed(printed: io::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Unread.into()),
        printed => printed.context("what was asked for cannot be printed"),
    }
}

/// Help goes out as it is; a mistake is one line with the setting and the mend.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return exit_code(printed(error.print().and_then(|()| io::stdout().flush())));
    }
    output::stderr().say(format_args!("crewcast: {}", one_line(error)));
    ExitCode::from(2)
}

fn one_line(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    if let (ErrorKind::ValueValidation, Some(flag)) = (error.kind(), context(ContextKind::InvalidArg)) {
        let value = context(ContextKind::InvalidValue).unwrap_or_default();
        let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        let name = flag.trim_start_matches("--").split(' ').next().unwrap_or_default().to_owned();
        return format!("{flag} ({}) cannot be '{value}': {why}", variable(&name));
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let text: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    format!("{} (see --help)", text.join(" ").trim_start_matches("error: "))
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    let name = flag.to_uppercase().replace('-', "_");
    if ["DATABASE_URL", "PG_BIN_DIR"].contains(&name.as_str()) { name } else { format!("CREWCAST_{name}") }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn wrong(arguments: &[&str]) -> String {
        one_line(&Cli::try_parse_from(arguments).expect_err("wrong"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_setting_is_one_line_that_names_it_and_the_mend() {
        let expected =
            "--heartbeat <HEARTBEAT> (CREWCAST_HEARTBEAT) cannot be '15x': write a duration like 250ms, 15s or 24h";
        assert_eq!(wrong(&["crewcast", "--heartbeat", "15x"]), expected);
        assert!(wrong(&["crewcast", "serve", "--body-bytes-max", "many"]).contains("write a size like"));
        assert!(wrong(&["crewcast", "--listen", "here"]).contains("CREWCAST_LISTEN"));
        assert!(wrong(&["crewcast", "--writes-per-minute", "0"]).contains("CREWCAST_WRITES_PER_MINUTE"));
        assert!(wrong(&["crewcast", "--trusted-proxies", "10.0.0.1,here"]).contains("an address or a network"));
        for arguments in [&["crewcast", "--nonsense"][..], &["crewcast", "nonsense"], &["crewcast", "--rooms-max", "0"]]
        {
            assert!(!wrong(arguments).contains('\n'), "{}", wrong(arguments));
        }
    }

    #[test]
    fn every_setting_has_a_variable_of_its_name() {
        for argument in Cli::command().get_arguments().filter(|argument| argument.get_long().is_some()) {
            let long = argument.get_long().expect("filtered");
            if ["help", "version"].contains(&long) {
                continue;
            }
            let env = argument.get_env().and_then(|env| env.to_str()).unwrap_or_default();
            assert_eq!(env, variable(long), "--{long}");
        }
    }
}
