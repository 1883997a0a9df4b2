//! gristmill's write-ahead log: one per core, shared by the core's consensus groups, with group commit and provable recovery.
//!
//! ```text
//!   append ──copy, CRC──► batch ──seal: trailer──► lanes (O_DIRECT | O_DSYNC) ──in LSN order──► acknowledgement
//!     vote, truncate, purge, …  │                                     └─ idle 1 ms ─► mark: proof of what is durable
//!                               └─ segment full ─► next one, opened by a checkpoint of every group
//!
//!   open ──► scan: good batches, damages, proven LSN ──► clean │ torn tail: cut │ corruption: refused
//! ```
//!
//! `FORMAT.md` beside the sources is the byte-level specification.
//!
//! Invariants
//! - What was acknowledged is durable, and acknowledgements come in LSN order.
//! - The log classifies damage by proof of acknowledgement and never guesses: what a trailer or mark proves durable is never cut, what
//!   nothing proves and is damaged is a torn tail.
//! - Any error of a write or sync is final, and so is a write that ends short. A full disk is not: appends are refused before they are begun, and taken again later.
//! - Every byte that is read back is checked against a CRC that covers its place.
//! - A stale writer is refused here, where writes enter storage.
//! - A panic within a running log, in its tasks or in a call, aborts the process: the core's other shards would go on with half a change.
//!
//! Limits are in [`limits`].
#![forbid(unsafe_code)]

mod batch;
#[cfg(feature = "bugs")]
pub mod bugs;
#[cfg(not(feature = "bugs"))]
mod bugs;
mod cache;
mod error;
mod file;
pub mod format;
mod group;
mod incident;
mod index;
mod inner;
pub mod inspect;
pub mod limits;
mod options;
mod read;
mod recovery;
pub mod scan;
mod state;
mod token;
mod types;
mod waiters;
mod wal;
mod writer;

pub use error::{Foreign, IoFailure, Rejected, WalError};
pub use incident::{INCIDENTS_MAX, Incident};
pub use options::{Direct, WalOptions};
pub use read::{EntryData, StoredEntry};
pub use recovery::{Progress, RecoveryReport, TornTail};
pub use state::ReplayFault;
pub use token::{FencingToken, FencingTokenState, TokenCell, TokenError};
pub use types::{GroupId, Home, LogId, LogNumber, LogPosition, Lsn, SegmentId, TruncatedAfter, Vote};
pub use wal::{AppendEntry, Durable, GroupState, Promise, Wal, WalStats};
