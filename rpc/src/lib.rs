//! gristmill's wire protocol: pure, without sockets and without async, plus clients behind features.
//!
//! A client archives a [`schema::Command`] once; [`frame::FrameHeader`] goes in front; PROTOCOL.md is the specification.
#![forbid(unsafe_code)]

#[cfg(feature = "blocking")]
pub mod blocking;
pub mod body;
#[cfg(any(feature = "blocking", feature = "tokio"))]
pub mod client;
#[cfg(test)]
mod conformance_tests;
pub mod error;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod message;
pub mod peer;
pub mod protocol;
pub mod ring;
#[cfg(test)]
mod samples;
pub mod schema;
#[cfg(all(test, any(feature = "blocking", feature = "tokio")))]
mod testing;
#[cfg(feature = "tokio")]
pub mod tokio;
pub mod validate;
