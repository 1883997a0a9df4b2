//! gristmill's executor: one pinned thread per core, `!Send` tasks, and every outside effect behind one trait.
//!
//! ```text
//!   tasks (raft | request | background)
//!     │  fs  net  time  sync  random  offload          public futures
//!     ▼
//!   executor: scheduler, timers, op slab               knows no file descriptor
//!     ▼
//!   Driver ── uring │ posix │ sim                      the only place where anything ambient enters
//! ```
//!
//! Invariants
//! - Time, randomness, files, sockets and threads come from the [`driver::Driver`] and from nowhere else, so that the very
//!   same scheduler, log and consensus code runs under deterministic simulation.
//! - An operation owns its buffer and keeps its file open until the driver's last completion. Dropping its future cancels
//!   it, and never frees what the kernel may still write to.
//! - The only thread-local is the pointer to the current executor, set while it polls: many executors can share a thread.
#![deny(unsafe_code)]

pub mod buf;
pub mod cores;
pub mod driver;
pub mod executor;
pub mod fs;
pub mod mesh;
pub mod net;
mod offload;
pub mod panic;
pub mod random;
pub mod sim;
pub mod sync;
pub mod time;
pub mod uring;

pub use executor::{
    Class, Executor, ExecutorConfig, Incident, IoChoice, JoinError, JoinHandle, SpinPolicy, StartError, core_id,
    driver_name, executor_stats, next_incident, slice_spent, spawn, tell, unparker, yield_if_spent, yield_now,
};
pub use offload::{OffloadError, offload};
pub use panic::{abort_on_panic, abort_on_panic_async};

/// One core's executor, counted from 0 within the node. Not the number of the CPU that it may be pinned to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

impl std::fmt::Display for CoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "core {}", self.0)
    }
}
