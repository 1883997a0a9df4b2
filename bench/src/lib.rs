//! Suites that compare gristmill with peers and with the machine: "did this function change, and are we ahead?"
//!
//! - [`goals`]: alternating rounds, medians and the goal lines that every bench ends with.
//! - [`data`]: the full-size real data, where there is any.
//! - [`disk`]: where benches write.
//! - [`mesh`]: round trips between cores, spinning and parked, and what they cost at least.
//! - [`raft`]: proposals through consensus.
//! - [`raw_ring`]: the floor of a durable append.
//! - [`scan`]: the exact vector scan.
//! - [`wal`]: durable appends through the log, and a peer's.

#![deny(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench measures the machine: ambient time, threads and files are its subject"
)]

pub mod data;
pub mod disk;
pub mod goals;
pub mod mesh;
pub mod raft;
#[allow(unsafe_code, reason = "the bare kernel interface is what ours is measured against")]
pub mod raw_ring;
pub mod scan;
pub mod wal;
