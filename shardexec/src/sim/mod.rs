//! A simulated world in which one seed decides everything: virtual time, who runs when, disks, network, clocks, crashes.
//!
//! ```text
//!   World ──turns, by seed──► Executor (one per core, any number of nodes) ──► tasks: the very code that runs in production
//!     │                          │ Driver trait
//!     │                          ▼
//!     │                       SimDriver ─submit─► State ─┬─ Disk per node      (page cache, durable, crash)
//!     │ events by (time, number)                         ├─ Network            (streams, links, partitions)
//!     └────────────────────────────────────────────────► ├─ Clock per node     (drift, skew, jumps, boots)
//!       ops finish, bytes arrive, deadlines, ticks       ├─ FaultPlan ► Chaos ► FaultCounts
//!                                                        └─ Trace              (hash, lines)
//! ```
//!
//! Invariants
//! - The same seed, configuration and programs give the same [`Sim::trace_hash`], on any machine and in any build profile: nothing here
//!   reads a clock or ambient randomness, iterates over an unordered map, or looks at an address. Numbers come from streams of the seed,
//!   one for each concern ([`random`]).
//! - Time goes on only by the virtual cost of polls and, when nobody can run, to the next event. So budgets, yields and timeouts repeat.
//! - A node may go down between any two polls of its tasks, that is at any await. Every op in flight comes back at once; file ops among
//!   them have happened, in part, or not.
//! - A panic of a task is a [`Violation`], whatever its join handle does with it.
//! - All turns are taken one after the other: two cores never run at the same virtual instant, and each waits while others poll. So
//!   virtual time runs faster, relative to I/O, than on as many real cores; order, not speed, is what a simulation explores.
//!
//! Lifecycle: [`World::new`], [`World::add_node`], [`World::start`] for each core, [`World::run_until`] again and again. A node that went
//! down ([`Stop::Down`], [`World::crash`], [`World::kill`]) is started again by [`World::start`], with what its disk kept.
//! [`Sim::heal`] ends the safety phase.
//!
//! Limits: [`VIOLATIONS_MAX`]; those of [`disk`] and [`network`]. Executors keep theirs: tasks, timers, op slots.
#![forbid(unsafe_code)]

pub mod clock;
mod config;
pub mod disk;
mod driver;
mod events;
pub mod faults;
mod handle;
pub mod network;
pub mod random;
mod state;
pub mod trace;
mod world;

pub use clock::ClockConfig;
pub use config::{Latencies, NodeConfig, SimConfig};
pub use disk::{Disk, DiskConfig, Journal};
pub use faults::{FaultCounts, FaultKind, FaultPlan};
pub use handle::Sim;
pub use network::PartitionId;
pub use random::Rng;
pub use state::{Down, NodeId};
pub use trace::TraceSink;
pub use world::{Stop, VIOLATIONS_MAX, Violation, World};
