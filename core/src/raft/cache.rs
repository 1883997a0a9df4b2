//! The newest entries of a log in memory, so that apply (and later replication) does not read back what was just written.
//!
//! A contiguous run of indexes that ends at the log's last entry. Bounded in bytes; the oldest go first. Entries that
//! fell out are read from the log.

use super::types::Entry;
use openraft::EntryPayload;
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of an entry besides its body.
const ENTRY_OVERHEAD_BYTES: usize = std::mem::size_of::<Entry>();

#[derive(Debug)]
pub(crate) struct EntryCache {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

impl EntryCache {
    pub(crate) fn new(bytes_max: usize) -> EntryCache {
        EntryCache { entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Indexes that are here.
    pub(crate) fn range(&self) -> Range<u64> {
        let Some(first) = self.entries.front() else { return 0..0 };
        let first = first.log_id.index;
        first..first + self.entries.len() as u64
    }

    /// Takes the log's newest entries.
    pub(crate) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let end = self.range().end;
            if !self.entries.is_empty() && entry.log_id.index != end {
                self.clear();
            }
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    /// Clones of the entries from `range.start` on that are here without a gap; none if the first is not.
    pub(crate) fn read(&self, range: Range<u64>) -> impl Iterator<Item = &Entry> {
        let held = self.range();
        let (start, end) = (range.start, range.end.min(held.end));
        let slots = if held.contains(&start) && start < end {
            (start - held.start) as usize..(end - held.start) as usize
        } else {
            0..0
        };
        self.entries.range(slots)
    }

    /// Forgets the entries below `index`.
    pub(crate) fn release(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index < index) {
            self.pop_front();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(ENTRIES_KEPT_ALLOCATED);
        }
    }

    /// Forgets the entries from `index` on, which are no longer part of the log.
    pub(crate) fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= index) {
            let entry = self.entries.pop_back().expect("the loop looked");
            self.bytes -= size(&entry);
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= size(&entry);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

/// Slots that an idle group's cache keeps.
const ENTRIES_KEPT_ALLOCATED: usize = 4096;

fn size(entry: &Entry) -> usize {
    let body = match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.body.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    ENTRY_OVERHEAD_BYTES + body
}

#[cfg(test)]
mod tests {
    use super::super::types::{Payload, to_log_id};
    use super::*;
    use gristmill_wal::LogPosition;
    use openraft::entry::RaftEntry;

    fn blanks(indexes: Range<u64>) -> impl Iterator<Item = Entry> {
        indexes.map(|index| Entry::new(to_log_id(LogPosition { term: 1, index }), Payload::Blank))
    }

    fn read(cache: &EntryCache, range: Range<u64>) -> Vec<u64> {
        cache.read(range).map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn reads_only_what_is_contiguous_from_the_start() {
        let mut cache = EntryCache::new(usize::MAX);
        cache.extend(blanks(5..10));
        assert_eq!(read(&cache, 5..8), [5, 6, 7]);
        assert_eq!(read(&cache, 8..100), [8, 9]);
        assert!(read(&cache, 4..8).is_empty(), "4 is not here, so the log must answer");
        assert!(read(&cache, 10..12).is_empty());
        assert!(read(&cache, 7..7).is_empty());
    }

    #[test]
    fn stays_within_its_bytes_and_keeps_the_newest() {
        let mut cache = EntryCache::new(3 * ENTRY_OVERHEAD_BYTES);
        cache.extend(blanks(0..10));
        assert_eq!(cache.range(), 7..10);
        cache.release(9);
        assert_eq!(cache.range(), 9..10);
        assert_eq!(cache.bytes, ENTRY_OVERHEAD_BYTES);
    }

    #[test]
    fn truncated_entries_are_gone_and_replaced() {
        let mut cache = EntryCache::new(usize::MAX);
        cache.extend(blanks(0..10));
        cache.truncate(4);
        assert_eq!(cache.range(), 0..4);
        cache.extend(blanks(4..6));
        assert_eq!(cache.range(), 0..6);
        cache.extend(blanks(20..22));
        assert_eq!(cache.range(), 20..22, "a gap starts the run anew");
    }
}
