//! Messages between cores: a bounded ring for every ordered pair of them.
//!
//! ```text
//!   core 0                                   core 1
//!   MeshPort ──send──► ring 0→1 ──────────► recv ── MeshPort
//!            ◄──recv── ring 1→0 ◄────────── send
//!            └────────► bell of 1: unpark, if it sleeps
//! ```
//!
//! [`mesh`] makes one [`MeshSeat`] per core. A seat moves to its core's thread and is attached to the executor there, which makes it
//! a [`MeshPort`]. A message costs no allocation, no lock and no system call, except the one wake-up of a core that has parked.
//!
//! # Invariants
//! - Credits: a sender never overruns a receiver. Without a credit [`MeshPort::try_send`] hands the message back, and
//!   [`MeshPort::send`] waits its turn; senders of one core to one peer get credits in the order in which they began to wait.
//! - Messages from one core to another arrive in the order sent, each once. Dropping a future of `send` or `recv` loses none.
//! - One wake-up per park and none lost: see [`bell`].
//!
//! # Tests
//! [`ring`] and [`bell`] stand alone from the executor. loom explores them inside `cargo test` (`model.rs` compiles them a second
//! time on loom's atomics), and `cargo +nightly miri test -p gristmill-shardexec --lib mesh::ring_tests` runs the ring under miri.

pub mod bell;
mod port;
pub mod ring;
mod sync;

#[cfg(all(test, not(miri)))]
mod model;
#[cfg(test)]
mod ring_tests;
#[cfg(all(test, not(miri)))]
mod tests;

pub use port::{Closed, MESH_CORES_MAX, MeshPort, MeshSeat, TrySendError, mesh};
