//! gristmill's vector compute: pure functions and data structures, no I/O, no async, no clock.
#![deny(unsafe_code)]

#[allow(
    unsafe_code,
    reason = "SIMD intrinsics behind tokens that prove the feature, and the byte view of aligned lines"
)]
pub mod kernel;

pub use kernel::Kernel;
