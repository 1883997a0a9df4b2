//! The command line: parses arguments, runs a sub-command, maps its outcome to an exit code.
//!
//! Data goes to stdout, everything else to stderr. With `--json`, stdout holds exactly one JSON object; that of `wal dump`
//! one a line. `serve` always prints one, when it listens. Exit codes are in [`ExitStatus`] and in `--help`.

mod args;
mod data;
mod parse;
mod serve;
pub(crate) mod show;
mod status;
mod wal;

use crate::server::BootError;
use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// Done.
    Done = 0,
    /// Not found, or a condition did not hold.
    Negative = 1,
    /// Wrong usage.
    Usage = 2,
    /// No server there, or the connection broke.
    Unreachable = 3,
    /// The server refused.
    Refused = 4,
    /// Damage found, or the store cannot be opened.
    Broken = 5,
    /// A signal came first.
    Interrupted = 130,
}

/// A command that failed: its exit status and what to tell.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(ExitStatus::Usage, message)
    }

    /// A node that did not start, or not stop. What was asked for may be what no node can run with.
    pub(crate) fn of_node(error: &BootError) -> Failure {
        let status = match error {
            BootError::Config { .. } => ExitStatus::Usage,
            _ => ExitStatus::Broken,
        };
        Failure::new(status, error.to_string())
    }
}

pub(crate) type Outcome = Result<ExitStatus, Failure>;

/// Entry point of the `gristmill` binary.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => crate::demo::command(&args.into()),
        Command::Put(args) => data::put(&args),
        Command::Get(args) => data::get(&args),
        Command::Del(args) => data::del(&args),
        Command::Scan(args) => data::scan(args),
        Command::Recall(args) => data::recall(args),
        Command::Status(args) => data::status(&args),
        Command::Wal(args) => wal::run(&args.command),
    };
    let status = outcome.unwrap_or_else(|failure| {
        eprintln!("gristmill: {}", failure.message);
        failure.status
    });
    ExitCode::from(status as u8)
}
