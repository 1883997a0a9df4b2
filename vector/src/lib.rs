//! gristmill's vector compute: pure functions and data structures, no I/O, no async, no clock.
//!
//! ```text
//!   FlatSegment (exact scan) ──┐
//!                              ├── VectorIndex: what recall asks of an index
//!   (a graph, later)  ─────────┘
//!        │        └── quantize: int8 codes of one scale, and what they cost
//!        └── kernel: inner products, one result on every machine
//! ```
//!
//! Equal input gives equal output on every machine: codes, scores and the order of hits. What a caller can get wrong is a [`VectorError`];
//! what we can get wrong is an assertion.
#![deny(unsafe_code)]

mod error;
pub mod flat;
mod index;
#[allow(
    unsafe_code,
    reason = "SIMD intrinsics behind tokens that prove the feature, and the byte view of aligned lines"
)]
pub mod kernel;
pub mod limits;
pub mod quantize;
mod top;

pub use error::VectorError;
pub use flat::{FlatSegment, Scan};
pub use index::{Allowed, Hit, Metric, Progress, VectorIndex};
pub use kernel::Kernel;
pub use top::TopK;
