//! The cluster simulator: whole nodes, the real protocol and real clients in one process, where a seed decides everything that can go
//! wrong.
//!
//! ```text
//!   plan ─► run ─┬─ cluster    nodes: server::hosted programs on simulated executors, disks, clocks
//!                ├─ admin      the cluster's members: adds nodes, changes who votes
//!                ├─ workload   clients: rpc's protocol core over simulated TCP ─► history
//!                ├─ observer   every replica after each turn, logs on the disks now and then ─┐
//!                └─ checkers ◄─ history ◄───────────────────────────────────────────────────┘
//!   command: many seeds over threads, a report as JSON, a ledger
//! ```
//!
//! Invariants
//! - One seed, one run: the trace hash of two runs is equal whatever the wall clock, hash seeds and build profile. Nothing here iterates
//!   over an unordered map, reads a clock or draws from anything but the seed; only the command measures time.
//! - What is watched goes as if unwatched: observers change nothing in the world.
//! - A run that shows nothing (no fault, nothing acknowledged) fails.
//!
//! `CONTRIBUTING.md` says how to run it and how to follow a failure.
#![forbid(unsafe_code)]

pub mod admin;
#[cfg(feature = "bugs")]
pub mod bugs;
pub mod checkers;
pub mod client;
pub mod cluster;
pub mod command;
pub mod history;
#[cfg(feature = "bugs")]
pub mod hunt;
pub mod observer;
pub mod offline;
pub mod plan;
mod run;
pub mod values;
pub mod workload;

pub use plan::Setup;
pub use run::{Outcome, RunOptions, STEPS_DEFAULT, run_seed, run_setup};
