//! The gristmill engine and node.
#![forbid(unsafe_code)]

#[cfg(feature = "bugs")]
pub mod bugs;
#[cfg(not(feature = "bugs"))]
mod bugs;
pub mod cli;
pub mod demo;
pub mod metrics;
pub mod raft;
pub mod recall;
pub mod relation;
pub mod server;
pub mod shard;
pub mod state;
pub mod text;
