//! Metrics and events of one core.
//!
//! ```text
//!   shard, log, executor ──hold──▶ Counter, Gauge, Histogram ─┐
//!                        ──emit──▶ Event ──▶ ring, counts     ├── Registry (one per core) ──▶ Snapshot (Send)
//!                        ◀─ask─── observed values ────────────┘                                  │ as JSON
//!                                                       status --json ◀── the node's cores, each with its own
//! ```
//!
//! A registry belongs to its core: no locks, no atomics, no globals, no time of its own. An instrument is one cell that
//! its user holds, so recording costs an addition. What a component counts anyway is *observed*: read when somebody asks.
//! A snapshot is plain data, so it may cross cores; the status shows that of each core beside the others.
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

/// What users are told of all this.
#[cfg(test)]
mod documented {
    use std::collections::BTreeMap;

    /// The rows of a table of `rpc/PROTOCOL.md`, by the name in their first cell.
    pub(super) fn rows(section: &str) -> BTreeMap<String, Vec<String>> {
        let text = include_str!("../../../rpc/PROTOCOL.md");
        let from = text.find(&format!("\n### {section}\n")).expect("the section is there");
        let lines = text[from..].lines().skip_while(|line| !line.starts_with('|')).skip(2);
        let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let rows = lines.take_while(|line| line.starts_with('|')).map(cells);
        rows.map(|row: Vec<String>| (row[0].trim_matches('`').to_owned(), row)).collect()
    }
}
