//! The protocol without I/O: bytes in, messages out, and back. Client and server each drive one of its state machines.
//!
//! ```text
//!             bytes          frames                 requests
//!   socket ──────────▶ FrameDecoder ──▶ ServerConnection ──────────▶ shard
//!          ◀────────── FrameEncoder ◀──     (hello, limits,  ◀────── replies, in any order
//!             bytes                          in-flight bound)
//!
//!   caller ── submit ─▶ Connection ──▶ FrameEncoder ──▶ socket
//!          ◀─ events ──  (hello, correlation ids, in-flight bound, deadlines as data) ◀── FrameDecoder ◀── socket
//! ```
//!
//! Nothing here reads a clock, a socket or a random number: time comes in as numbers, bytes as slices. So the blocking
//! client, the tokio client, the server and the simulator run the very same code.

mod connection;
mod decoder;
mod encoder;
mod server;

pub use connection::{Call, Connection, ConnectionError, Event, ServerError, SubmitError};
pub use decoder::{Decoded, Frame, FrameDecoder};
pub use encoder::FrameEncoder;
pub use server::{Accepted, Request, ServerConnection, ServerOffer};
