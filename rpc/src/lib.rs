//! gristmill's wire protocol: pure, without sockets and without async, plus clients behind features.
//!
//! A client archives a [`schema::Command`] once; [`frame::FrameHeader`] goes in front; PROTOCOL.md is the specification.
#![forbid(unsafe_code)]

pub mod body;
pub mod error;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod message;
pub mod protocol;
pub mod ring;
pub mod schema;
pub mod validate;
