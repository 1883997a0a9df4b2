//! The command line: parses arguments, runs a sub-command, maps its outcome to an exit code.

use std::process::ExitCode;

/// Entry point of the `gristmill` binary.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
