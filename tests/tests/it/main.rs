//! Whole-system tests that need no root and no outside program but git and cargo.
#![allow(clippy::disallowed_methods, reason = "tests drive real processes, files and sockets from outside the engine")]

mod tidy;
