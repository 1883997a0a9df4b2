//! Suites that compare gristmill with peers and with the machine: "did this function change, and are we ahead?"
//!
//! - [`goals`]: alternating rounds, medians and the goal lines that every bench ends with.
//! - [`data`]: the full-size real data, where there is any.
//! - [`mesh`]: round trips between cores, spinning and parked, and what they cost at least.
//! - [`scan`]: the exact vector scan.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench measures the machine: ambient time, threads and files are its subject"
)]

pub mod data;
pub mod goals;
pub mod mesh;
pub mod scan;
