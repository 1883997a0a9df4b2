//! The `gristmill` binary once more, built by the tests package so that tests find a fresh one through `CARGO_BIN_EXE_*`.
use std::process::ExitCode;

fn main() -> ExitCode {
    gristmill::cli::main()
}
