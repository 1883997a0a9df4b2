//! Metrics and events of one core.
//!
//! ```text
//!   shard, log, executor ──hold──▶ Counter, Gauge, Histogram ─┐
//!                        ──emit──▶ Event ──▶ ring, counts     ├── Registry (one per core) ──▶ Snapshot (Send)
//!                        ◀─ask─── observed values ────────────┘                                  │ merge
//!                                                                     status --json ◀── Snapshot of the node
//! ```
//!
//! A registry belongs to its core: no locks, no atomics, no globals, no time of its own. An instrument is one cell that
//! its user holds, so recording costs an addition. What a component counts anyway is *observed*: read when somebody asks.
//! A snapshot is plain data, so it may cross cores; those of all cores are merged into the node's.
//!
//! Names are those of [`names`]. Limits: [`registry::SERIES_MAX`], [`events::EVENTS_KEPT`].

pub mod events;
pub mod names;
pub mod registry;
pub mod snapshot;

pub use events::{Event, EventRecord};
pub use names::{Definition, Kind, Unit};
pub use registry::{Counter, Gauge, Histogram, Labels, Registry};
pub use snapshot::{Series, Snapshot, Value};
