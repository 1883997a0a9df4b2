//! Messages between cores.
//!
//! [`ring`] holds the bounded single-producer single-consumer ring with credits, [`bell`] the protocol that wakes a parked core
//! exactly once. Both stand alone from the executor. They are explored by loom inside `cargo test` (`model.rs` compiles them a
//! second time on loom's atomics) and run under miri with
//! `cargo +nightly miri test -p gristmill-shardexec mesh`.

pub mod bell;
pub mod ring;
mod sync;

#[cfg(all(test, not(miri)))]
mod model;
#[cfg(test)]
mod ring_tests;
