//! The cluster simulator's command.
use std::process::ExitCode;

fn main() -> ExitCode {
    gristmill_tests::sim::command::main()
}
