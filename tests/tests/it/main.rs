//! Whole-system tests that need no root and no outside program but git and cargo.
#![allow(clippy::disallowed_methods, reason = "tests drive real processes, files and sockets from outside the engine")]

mod bad_input;
mod bugs;
mod commands;
mod connections;
mod crash;
mod damage;
mod demo;
mod frames;
mod full_disk;
mod serve;
mod tidy;

use std::path::Path;

/// The binary under test, built together with the tests, so never a stale one.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gristmill-under-test"))
}

/// The helper that takes something away from a process: room on the disk, memory that may be locked.
fn confine() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gristmill-confine"))
}
