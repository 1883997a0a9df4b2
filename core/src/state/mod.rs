//! A shard's state: what its log, applied in order, has made of nothing.
//!
//! ```text
//!  log entry ── envelope (who, when, how to read) + the client's archived command
//!     ▼
//!  apply ──▶ txn: one entry's effects ──▶ store (seam): keys of one order, newest version of each record
//!     │         │                           ├──▶ root: sum of hashes     follows each change
//!     │         └─▶ events: grains          └──▶ catalog: live counts    follows each change
//!     ▼
//!  outcome, remembered by session        read: values, grains, scans at the applied index
//! ```
//!
//! Pure and deterministic: no time, no randomness, no I/O, no async. The same entries give the same records, answers and
//! state root on every replica, however they were batched. Whatever is held in memory beside the store (catalog,
//! sessions, root) is an image of records, so a state opens from its store as it was closed.

pub mod apply;
pub mod catalog;
pub mod envelope;
pub mod events;
mod expiry;
pub mod grain;
pub mod hlc;
pub mod key;
pub mod memory;
pub mod outcome;
pub mod ranges;
pub mod read;
pub mod record;
pub mod replica;
pub mod root;
pub mod session;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod txn;
