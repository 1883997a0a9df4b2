//! The seam between the state machine and whatever keeps its records: the memory store now, the LSM tree later.
//!
//! Keys here are *logical* keys (`key.rs`): the store keeps at least the newest version of each and knows its stamp.
//! Apply is synchronous, so the seam is too; a store on disk makes the records that a batch will touch resident before
//! apply runs. Everything that apply produces goes through [`Store::write`], so whatever implements this trait holds the
//! whole state.

use super::key::{KeyError, Stamp, prefix_end};
use core::ops::ControlFlow;

/// The newest version of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The write that produced it.
    pub stamp: Stamp,
    /// Its bytes; what they mean depends on the table.
    pub value: &'a [u8],
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Logical key.
    pub key: Vec<u8>,
    /// Where in the entry the write comes from.
    pub op: u16,
    /// The new bytes; `None` removes the record.
    pub value: Option<Vec<u8>>,
}

/// The writes of one log entry. Takes effect as a whole or, on an error, not at all. Each key occurs at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteBatch {
    /// The log index: the version that all of them get.
    pub index: u64,
    /// The writes; their order does not matter.
    pub writes: Vec<Write>,
}

/// What a write did to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// Logical key.
    pub key: &'a [u8],
    /// What was live before.
    pub old: Option<RecordRef<'a>>,
    /// What is live now.
    pub new: Option<RecordRef<'a>>,
}

/// A range of logical keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key, inclusive.
    pub start: Vec<u8>,
    /// Last key, exclusive; `None` means to the end.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange { start: Vec::new(), end: None }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: Vec<u8>) -> KeyRange {
        let end = prefix_end(&prefix);
        KeyRange { start: prefix, end }
    }

    /// The keys in both ranges.
    #[must_use]
    pub fn intersect(self, other: KeyRange) -> KeyRange {
        let end = match (self.end, other.end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        KeyRange { start: self.start.max(other.start), end }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first key to the last.
    Forward,
    /// From the last key to the first.
    Reverse,
}

/// Why the store could not do as told. Fatal for the replica: it stops and recovers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A key read back is none of ours.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A record read back is malformed.
    #[error(
        "{what} record is malformed ({detail}); the store is damaged: restore this replica from a peer or a backup"
    )]
    Record {
        /// Which kind of record.
        what: &'static str,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// A record that another one refers to is missing.
    #[error("{what} record is missing although {by} refers to it; the store is damaged: restore this replica")]
    Dangling {
        /// Which kind of record.
        what: &'static str,
        /// What refers to it.
        by: &'static str,
    },
}

/// An ordered map from logical keys to versioned records.
pub trait Store {
    /// The live record under a key.
    fn get(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError>;

    /// Visits the live records of a range in order, until told to stop. Visits nothing where the range is empty.
    fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        visit: &mut dyn FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// Applies a batch and reports each change, whether or not it changed the bytes. Removing what is not there is
    /// reported with neither old nor new record.
    fn write(&mut self, batch: WriteBatch, report: &mut dyn FnMut(Change<'_>)) -> Result<(), StoreError>;

    /// Bytes of memory that the records occupy, within a few percent.
    fn memory_bytes(&self) -> u64;
}
