//! Whole-system tests that need no root and no outside program but git and cargo.
#![allow(clippy::disallowed_methods, reason = "tests drive real processes, files and sockets from outside the engine")]

mod bad_input;
mod crash;
mod demo;
mod serve;
mod tidy;

use std::path::Path;

/// The binary under test, built together with the tests, so never a stale one.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gristmill-under-test"))
}
