//! The gristmill engine and node.
#![forbid(unsafe_code)]

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
