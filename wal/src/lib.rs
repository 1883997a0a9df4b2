//! gristmill's write-ahead log: one per core, group commit, provable recovery.
#![forbid(unsafe_code)]

pub mod format;
pub mod limits;
mod token;
mod types;

pub use token::{FencingToken, FencingTokenState, TokenCell, TokenError};
pub use types::{GroupId, Home, LogId, LogNumber, LogPosition, Lsn, SegmentId, TruncatedAfter, Vote};
