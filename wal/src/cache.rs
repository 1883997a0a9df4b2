//! Batches of late, kept in the very buffers they were written from.
//!
//! Reads of recent entries (replication, apply) share those buffers: no copy, no disk. Buffers that fall out of the budget become the memory
//! of new batches.

use std::collections::VecDeque;
use std::sync::Arc;

use gristmill_shardexec::buf::AlignedBuf;

use crate::batch::SealedBatch;
use crate::index::Location;
use crate::types::Lsn;

/// Buffers kept for reuse at most.
const FREE_BUFFERS_MAX: usize = 16;

/// Least memory of a batch's buffer, in bytes.
const BUFFER_BYTES_MIN: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// In the order of the log.
    batches: VecDeque<SealedBatch>,
    bytes: usize,
    budget: usize,
    free: Vec<AlignedBuf>,
    /// What batches of late needed; decays slowly.
    wanted: usize,
}

impl Cache {
    pub fn new(budget: usize) -> Cache {
        Cache { budget, wanted: BUFFER_BYTES_MIN, ..Cache::default() }
    }

    /// Memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a batch that was just sealed.
    pub fn push(&mut self, batch: SealedBatch) {
        self.wanted = batch.buf.len().max(self.wanted - self.wanted / 64).max(BUFFER_BYTES_MIN);
        self.bytes += batch.buf.capacity();
        self.batches.push_back(batch);
    }

    /// Drops what exceeds the budget and is durable.
    pub fn trim(&mut self, durable: Lsn) {
        while self.bytes > self.budget && self.batches.front().is_some_and(|batch| batch.last_lsn <= durable) {
            let batch = self.batches.pop_front().expect("just seen");
            self.bytes -= batch.buf.capacity();
            // A reader may still hold it; then it is freed with the reader.
            if let Ok(buf) = Arc::try_unwrap(batch.buf)
                && self.free.len() < FREE_BUFFERS_MAX
                && buf.capacity() <= self.wanted * 2
            {
                self.free.push(buf);
            }
        }
    }

    /// Memory for a new batch.
    pub fn buffer(&mut self) -> AlignedBuf {
        self.free.pop().unwrap_or_else(|| AlignedBuf::with_capacity(self.wanted))
    }

    /// The buffer that holds the record at `location`, and where in it.
    pub fn find(&self, location: Location) -> Option<(&Arc<AlignedBuf>, usize)> {
        let key = (location.segment, location.offset);
        let after = self.batches.partition_point(|batch| (batch.segment, batch.start) <= key);
        let batch = self.batches.get(after.checked_sub(1)?)?;
        let inside = batch.segment == location.segment && (location.offset as usize) < batch.end();
        inside.then(|| (&batch.buf, (location.offset - batch.start) as usize))
    }
}
