//! A log in memory: for tests, and as the reference that benches compare the durable one with. It forgets at the end.
//!
//! Tokens are stamped and checked exactly as over the WAL; only durability is missing, so the flush callback runs before
//! `append` returns.

use super::log_store::vote_to_wal;
use super::log_store::{READ_BYTES_MAX, entries_within};
use super::start::{GroupLog, LogSummary};
use super::tokens::TokenStamper;
use super::types::{Entry, RaftLogId, RaftVote, TypeConfig, to_position};
use gristmill_rpc::ids::ShardId;
use gristmill_wal::limits::{ENTRY_BYTES_MAX, SEQUENCES_PER_TERM};
use gristmill_wal::{FencingToken, LogPosition, Promise, WalError};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{LogIdOptionExt, OptionalSend};
use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::rc::Rc;

/// One group's log. A clone shares it, also across a restart of the group.
#[derive(Clone)]
pub struct MemoryLog(Rc<RefCell<Inner>>);

struct Inner {
    /// Contiguous, right after `purged`.
    entries: VecDeque<Entry>,
    purged: Option<RaftLogId>,
    vote: Option<RaftVote>,
    committed: Option<RaftLogId>,
    stamper: Rc<TokenStamper>,
    entry_bytes_max: usize,
}

impl MemoryLog {
    /// An empty log of `shard`.
    pub fn new(shard: ShardId) -> MemoryLog {
        MemoryLog::with_sequences(shard, SEQUENCES_PER_TERM)
    }

    /// An empty log whose leader moves to a new term after `sequences_max` append batches.
    pub fn with_sequences(shard: ShardId, sequences_max: u32) -> MemoryLog {
        let stamper = Rc::new(TokenStamper::new(shard, FencingToken::default(), sequences_max));
        let entry_bytes_max = ENTRY_BYTES_MAX;
        let inner =
            Inner { entries: VecDeque::new(), purged: None, vote: None, committed: None, stamper, entry_bytes_max };
        MemoryLog(Rc::new(RefCell::new(inner)))
    }

    /// An empty log that takes commands of so many bytes, headers included.
    #[cfg(test)]
    pub(crate) fn with_entry_bytes_max(shard: ShardId, bytes_max: usize) -> MemoryLog {
        let log = MemoryLog::new(shard);
        log.0.borrow_mut().entry_bytes_max = bytes_max;
        log
    }

    fn read(&self, range: impl RangeBounds<u64>) -> Vec<Entry> {
        let inner: Ref<'_, Inner> = self.0.borrow();
        let Range { start, end } = half_open(&range);
        let Some(first) = inner.entries.front().map(|entry| entry.log_id.index) else { return Vec::new() };
        let slot = |index: u64| (index.saturating_sub(first) as usize).min(inner.entries.len());
        if start >= end {
            return Vec::new();
        }
        inner.entries.range(slot(start)..slot(end)).cloned().collect()
    }
}

impl Inner {
    fn last(&self) -> Option<RaftLogId> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }
}

/// The half-open range that `range` means.
pub(super) fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl GroupLog for MemoryLog {
    fn summary(&self) -> LogSummary {
        let inner = self.0.borrow();
        LogSummary {
            purged: inner.purged.as_ref().map(to_position),
            last: inner.last().as_ref().map(to_position),
            committed: inner.committed.as_ref().map(to_position),
            vote: inner.vote.as_ref().map(vote_to_wal),
        }
    }

    fn stamper(&self) -> Rc<TokenStamper> {
        Rc::clone(&self.0.borrow().stamper)
    }

    /// The log itself is in memory: nothing to let go.
    fn release(&self, _index: u64) {}

    fn entry_bytes_max(&self) -> usize {
        self.0.borrow().entry_bytes_max
    }

    /// Memory has room.
    fn promise(&self, _entries: usize, _bytes: usize) -> Result<Option<Promise>, WalError> {
        Ok(None)
    }

    /// Memory does not fail.
    fn failure(&self) -> Option<WalError> {
        None
    }

    /// Nothing waits.
    fn stop_waiting(&self) {}

    /// As durable as it gets.
    fn flushed(&self) -> Option<LogPosition> {
        self.0.borrow().last().as_ref().map(to_position)
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.read(range))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = self.read(start..end);
        entries.truncate(entries_within(&entries, READ_BYTES_MAX));
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.0.borrow().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = MemoryLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let inner = self.0.borrow();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last() })
    }

    async fn get_log_reader(&mut self) -> MemoryLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.0.borrow_mut().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.0.borrow_mut().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.0.borrow().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        let mut inner = self.0.borrow_mut();
        inner.stamper.stamp(&mut entries).map_err(io::Error::other)?;
        for entry in entries {
            let follows = inner.entries.back().is_none_or(|last| last.log_id.index + 1 == entry.log_id.index);
            assert!(follows, "entry {} leaves a gap", entry.log_id);
            inner.entries.push_back(entry);
        }
        drop(inner);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let next = last.next_index();
        let mut inner = self.0.borrow_mut();
        while inner.entries.back().is_some_and(|entry| entry.log_id.index >= next) {
            inner.entries.pop_back();
        }
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        while inner.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            inner.entries.pop_front();
        }
        inner.purged = Some(upto);
        Ok(())
    }
}
