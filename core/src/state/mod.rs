//! A shard's state: what its log, applied in order, has made of nothing.
//!
//! Pure and deterministic: no time, no randomness, no I/O, no async. The same entries give the same records, answers and
//! state root on every replica, however they were batched.

pub mod envelope;
pub mod events;
pub mod grain;
pub mod hlc;
pub mod key;
pub mod memory;
pub mod ranges;
pub mod root;
pub mod store;
#[cfg(test)]
mod testing;
