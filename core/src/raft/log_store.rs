//! openraft's log over one group of a core's WAL.
//!
//! ```text
//!  append ──> stamp tokens ──> encode headers ──> Wal::append ──┬──> returns at once, entries readable from the cache
//!                                                               └──> flushed, in LSN order ──> IOFlushed callback
//!  save_vote, truncate_after, purge ──> the same queue, so ordered with appends ──> return when durable
//!  read ──> cache, else Wal::read (CRC checked) ──> decode, compare position, shard and token
//! ```
//!
//! Invariants: a vote is durable before `save_vote` returns; a callback never runs before its entries are durable; the
//! writer term of an append is that of the vote this instance last saved, so an instance that outlived its successor's
//! vote is refused by the WAL (`StaleToken`); entries keep their tokens across reads and restarts. A flush error is
//! final: the WAL fails everything pending, and openraft stops the replica.

use super::cache::EntryCache;
use super::codec::{self, EncodedEntry, EntryKind};
use super::errors::StopReason;
use super::memory_store::half_open;
use super::start::{GroupLog, LogSummary};
use super::tokens::TokenStamper;
use super::types::{Entry, RaftLogId, RaftVote, ReplicaId, TypeConfig, to_log_id, to_position};
use crate::bugs::{Bug, Bugs};
use futures_util::Stream;
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec as shardexec;
use gristmill_wal::format::record_bytes;
use gristmill_wal::limits::{RECORD_ALIGN, RECORD_HEADER_BYTES, SEQUENCES_PER_TERM};
use gristmill_wal::{
    AppendEntry, Durable, FencingToken, GroupId, LogPosition, Promise, StoredEntry, Vote, Wal, WalError,
};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Range, RangeBounds};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Bytes of recent entries that one group keeps in memory until they are applied.
pub const CACHE_BYTES_MAX: usize = 4 << 20;
/// Bytes of one read from the WAL, and of what one append to a follower takes.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;
/// Most that a record adds to its payload: header and padding.
const RECORD_OVERHEAD_BYTES: usize = RECORD_HEADER_BYTES + RECORD_ALIGN;
/// Time between two looks at a full disk.
const DISK_FULL_PAUSE: Duration = Duration::from_millis(20);
/// Entries that a stream clones from the cache at a time.
const STREAM_ENTRIES_MAX: u64 = 512;

/// One group's log on the WAL of its core. A clone shares it.
#[derive(Clone)]
pub struct WalLog(Rc<Inner>);

struct Inner {
    wal: Wal,
    group: GroupId,
    shard: ShardId,
    /// The vote that this instance last loaded or saved.
    vote: Cell<Option<RaftVote>>,
    cache: RefCell<EntryCache>,
    stamper: Rc<TokenStamper>,
    /// Encoded headers of the append under way; kept for its memory.
    encoded: RefCell<Vec<EncodedEntry>>,
    /// The group stops: nothing waits for space any more.
    stopping: Cell<bool>,
    flushed: Rc<Flushed>,
    bugs: Bugs,
}

/// The last entry whose flush was told.
struct Flushed {
    last: Cell<Option<LogPosition>>,
    /// Counts truncations: a flush of what was cut off since tells nothing.
    truncations: Cell<u64>,
}

/// How a group uses its log.
#[derive(Clone, Copy, Debug)]
pub struct WalLogOptions {
    /// Append batches after which a leader moves to a new term.
    pub sequences_max: u32,
    /// Bytes of recent entries kept in memory.
    pub cache_bytes_max: usize,
    /// The bug that the log shall have.
    #[cfg(feature = "bugs")]
    pub bug: Option<Bug>,
}

impl Default for WalLogOptions {
    fn default() -> Self {
        WalLogOptions {
            sequences_max: SEQUENCES_PER_TERM,
            cache_bytes_max: CACHE_BYTES_MAX,
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }
}

impl WalLogOptions {
    /// The same options for a log that has `bugs`.
    pub(crate) fn with_bugs(self, bugs: Bugs) -> WalLogOptions {
        let Bugs { .. } = bugs;
        WalLogOptions {
            #[cfg(feature = "bugs")]
            bug: bugs.active,
            ..self
        }
    }

    #[cfg_attr(not(feature = "bugs"), allow(clippy::unused_self, reason = "with the feature it looks at a field"))]
    fn bugs(self) -> Bugs {
        Bugs {
            #[cfg(feature = "bugs")]
            active: self.bug,
        }
    }
}

impl WalLog {
    /// The log of `shard`'s replica, which is group `shard` of `wal`.
    pub fn new(wal: Wal, shard: ShardId, options: WalLogOptions) -> WalLog {
        let group = GroupId(u64::from(shard.0));
        let known = wal.group(group);
        let highest = known.as_ref().map_or(FencingToken::default(), |state| state.token_highest);
        let flushed = known.as_ref().and_then(|state| state.last.or(state.purged));
        let vote = known.and_then(|state| state.vote).map(vote_from_wal);
        WalLog(Rc::new(Inner {
            wal,
            group,
            shard,
            vote: Cell::new(vote),
            cache: RefCell::new(EntryCache::new(options.cache_bytes_max)),
            stamper: Rc::new(TokenStamper::new(shard, highest, options.sequences_max)),
            encoded: RefCell::default(),
            stopping: Cell::new(false),
            flushed: Rc::new(Flushed { last: Cell::new(flushed), truncations: Cell::new(0) }),
            bugs: options.bugs(),
        }))
    }

    fn last(&self) -> Option<LogPosition> {
        let state = self.0.wal.group(self.0.group)?;
        state.last.or(state.purged)
    }

    fn committed(&self) -> Option<LogPosition> {
        self.0.wal.group(self.0.group)?.committed
    }

    fn purged(&self) -> Option<LogPosition> {
        self.0.wal.group(self.0.group)?.purged
    }

    /// The entries of `range` that the log holds, from its start on, at most `bytes_max` unless one alone is larger.
    async fn read_wal(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let stored = self.0.wal.read(self.0.group, range, bytes_max).await.map_err(io::Error::other)?;
        stored.iter().map(|entry| self.decode(entry)).collect()
    }

    fn decode(&self, entry: &StoredEntry) -> io::Result<Entry> {
        codec::decode(self.0.shard, entry.position, entry.token, entry.kind, &entry.data).map_err(io::Error::other)
    }

    /// The part of `range` that the log holds.
    fn held(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let Range { start, end } = half_open(range);
        let first = self.purged().map_or(0, |purged| purged.index + 1);
        let next = self.last().map_or(0, |last| last.index + 1);
        start.max(first)..end.min(next)
    }

    fn cached(&self, range: Range<u64>) -> Vec<Entry> {
        self.0.cache.borrow().read(range).cloned().collect()
    }

    /// Indexes of the entries in memory.
    #[cfg(test)]
    pub(crate) fn cached_indexes(&self) -> Range<u64> {
        self.0.cache.borrow().range()
    }

    fn writer_term(&self) -> u64 {
        self.0.vote.get().map_or(0, |vote| vote.leader_id.term)
    }

    async fn append_batch(&self, mut entries: Vec<Entry>, flushed: IOFlushed<TypeConfig>) -> io::Result<()> {
        let inner = &*self.0;
        inner.stamper.stamp(&mut entries).map_err(io::Error::other)?;
        let bytes_max = inner.wal.append_bytes_max();
        let mut rest = &entries[..];
        loop {
            let (count, bytes) = head_that_fits(rest, bytes_max);
            self.wait_for_room(bytes).await?;
            let (head, tail) = rest.split_at(count);
            if tail.is_empty() {
                self.append_to_wal(head, Some(flushed))?;
                break;
            }
            self.append_to_wal(head, None)?;
            rest = tail;
        }
        inner.cache.borrow_mut().extend(entries);
        Ok(())
    }

    /// Waits until the WAL takes `bytes`. openraft's core waits with it, which is what slows proposers down. A full disk may
    /// stay full for ever: a group that stops does not wait for it.
    async fn wait_for_room(&self, bytes: usize) -> io::Result<()> {
        loop {
            match self.0.wal.admit(bytes) {
                Ok(()) => return Ok(()),
                Err(WalError::Backlog { .. }) => self.0.wal.flush().await.map_err(io::Error::other)?,
                Err(WalError::DiskFull { .. } | WalError::Exhausted(_)) if !self.0.stopping.get() => {
                    shardexec::time::sleep(DISK_FULL_PAUSE).await;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Saves what is no entry, once the WAL has room for it: a refusal changes nothing there, and openraft takes one for the
    /// replica's end. As with entries, a group that stops does not wait.
    async fn save(&self, operation: impl Fn(&Wal, GroupId) -> Durable) -> io::Result<()> {
        loop {
            match operation(&self.0.wal, self.0.group).await {
                Err(error) if error.is_retriable() && !self.0.stopping.get() => {
                    shardexec::time::sleep(DISK_FULL_PAUSE).await;
                }
                outcome => return outcome.map_err(io::Error::other),
            }
        }
    }

    fn append_to_wal(&self, entries: &[Entry], flushed: Option<IOFlushed<TypeConfig>>) -> io::Result<()> {
        let inner = &*self.0;
        let mut encoded = inner.encoded.borrow_mut();
        encoded.clear();
        encoded.extend(entries.iter().map(codec::encode));
        let records: Vec<AppendEntry<'_>> = entries
            .iter()
            .zip(encoded.iter())
            .map(|(entry, encoded)| AppendEntry {
                position: entry.position(),
                token: entry.token.expect("stamped before"),
                kind: encoded.kind as u8,
                parts: encoded.parts(entry),
            })
            .collect();
        let (group, term) = (inner.group, self.writer_term());
        let appended = match flushed {
            None => inner.wal.append_unacknowledged(group, term, &records),
            Some(flushed) => {
                let (told, last) = (Rc::clone(&inner.flushed), entries.last().map(Entry::position));
                let truncations = told.truncations.get();
                let done = move |result: Result<(), WalError>| {
                    if result.is_ok() && told.truncations.get() == truncations {
                        told.last.set(last.or(told.last.get()));
                    }
                    flushed.io_completed(result.map_err(io::Error::other));
                };
                inner.wal.append(group, term, &records, done)
            }
        };
        appended.map_err(io::Error::other)?;
        for (entry, encoded) in entries.iter().zip(encoded.iter()) {
            if encoded.kind == EntryKind::Membership {
                // The entry is what counts; this copy outlives it in checkpoints, and rides along.
                drop(inner.wal.save_membership(group, entry.position(), &encoded.membership));
            }
        }
        Ok(())
    }
}

/// How many entries from the front one append takes, at least one, and their bytes in the log.
fn head_that_fits(entries: &[Entry], bytes_max: usize) -> (usize, usize) {
    let mut bytes = 0;
    for (count, entry) in entries.iter().enumerate() {
        let with_next = bytes + record_bytes(codec::payload_bytes(entry));
        if count > 0 && with_next > bytes_max {
            return (count, bytes);
        }
        bytes = with_next;
    }
    (entries.len(), bytes)
}

/// How many entries from the front hold at most `bytes_max`: at least one, where there is one.
pub(super) fn entries_within(entries: &[Entry], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += codec::payload_bytes(entry);
        bytes <= bytes_max
    };
    entries.iter().take_while(fits).count().max(1).min(entries.len())
}

impl GroupLog for WalLog {
    fn summary(&self) -> LogSummary {
        LogSummary {
            purged: self.purged(),
            last: self.last(),
            committed: self.committed(),
            vote: self.0.vote.get().as_ref().map(vote_to_wal),
        }
    }

    fn stamper(&self) -> Rc<TokenStamper> {
        Rc::clone(&self.0.stamper)
    }

    fn release(&self, index: u64) {
        self.0.cache.borrow_mut().release(index + 1);
    }

    fn entry_bytes_max(&self) -> usize {
        self.0.wal.payload_bytes_max()
    }

    fn promise(&self, entries: usize, bytes: usize) -> Result<Option<Promise>, WalError> {
        self.0.wal.promise(bytes + entries * RECORD_OVERHEAD_BYTES).map(Some)
    }

    fn failure(&self) -> Option<WalError> {
        self.0.wal.admit(0).err().filter(|error| !error.is_retriable())
    }

    fn stop_waiting(&self) {
        self.0.stopping.set(true);
    }

    fn flushed(&self) -> Option<LogPosition> {
        self.0.flushed.last.get()
    }
}

/// What it means to a replica that an entry cannot be read.
pub(super) fn unreadable(error: &io::Error) -> StopReason {
    let text = error.to_string().into();
    match error.get_ref().and_then(|source| source.downcast_ref::<WalError>()) {
        Some(WalError::Corrupt { .. } | WalError::MissingSegment { .. } | WalError::Foreign { .. }) => {
            StopReason::Damaged(text)
        }
        Some(_) => StopReason::LogFailed(text),
        // It was read, and is no entry, or not the one that was committed.
        None => StopReason::Damaged(text),
    }
}

fn vote_from_wal(vote: Vote) -> RaftVote {
    let replica = ReplicaId { node: vote.node, incarnation: vote.incarnation };
    if vote.committed { RaftVote::new_committed(vote.term, replica) } else { RaftVote::new(vote.term, replica) }
}

pub(super) fn vote_to_wal(vote: &RaftVote) -> Vote {
    let ReplicaId { node, incarnation } = vote.leader_id.voted_for;
    Vote { term: vote.leader_id.term, node, incarnation, committed: vote.is_committed() }
}

impl RaftLogReader<TypeConfig> for WalLog {
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        EntryStream { log: self.clone(), rest: self.held(&range), ready: VecDeque::new(), reading: None }
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut rest = self.held(&range);
        let mut entries = Vec::new();
        while rest.start < rest.end {
            let mut chunk = self.cached(rest.clone());
            if chunk.is_empty() {
                chunk = self.read_wal(rest.clone(), READ_BYTES_MAX).await?;
            }
            let Some(last) = chunk.last() else { break };
            rest.start = last.log_id.index + 1;
            entries.append(&mut chunk);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut cached = self.cached(start..end);
        cached.truncate(entries_within(&cached, READ_BYTES_MAX));
        if cached.is_empty() { self.read_wal(start..end, READ_BYTES_MAX).await } else { Ok(cached) }
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.0.vote.get())
    }
}

impl RaftLogStorage<TypeConfig> for WalLog {
    type LogReader = WalLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState { last_purged_log_id: self.purged().map(to_log_id), last_log_id: self.last().map(to_log_id) })
    }

    async fn get_log_reader(&mut self) -> WalLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        if self.0.bugs.has(Bug::VoteNotAwaited) {
            drop(self.0.wal.save_vote(self.0.group, vote_to_wal(vote)));
        } else if !self.0.bugs.has(Bug::VoteNotSaved) {
            self.save(|wal, group| wal.save_vote(group, vote_to_wal(vote))).await?;
        }
        self.0.vote.set(Some(*vote));
        Ok(())
    }

    /// Rides with the next batch: losing it costs a longer replay, nothing else.
    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.0.wal.save_committed(self.0.group, committed.as_ref().map(to_position)).map_err(io::Error::other)
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.committed().map(to_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.append_batch(entries.into_iter().collect(), callback).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let last = last.as_ref().map(to_position);
        self.0.cache.borrow_mut().truncate(last.map_or(0, |last| last.index + 1));
        let flushed = &self.0.flushed;
        flushed.last.set(flushed.last.get().min(last));
        flushed.truncations.set(flushed.truncations.get() + 1);
        self.save(|wal, group| wal.truncate_after(group, last)).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.0.cache.borrow_mut().release(upto.index + 1);
        self.save(|wal, group| wal.purge(group, to_position(&upto))).await
    }
}

/// Entries of a range, one after the other, from the cache where they are there.
struct EntryStream {
    log: WalLog,
    rest: Range<u64>,
    ready: VecDeque<Entry>,
    reading: Option<Reading>,
}

type Reading = Pin<Box<dyn Future<Output = io::Result<Vec<Entry>>>>>;

/// The log has a hole.
#[derive(Debug, thiserror::Error)]
#[error(
    "log entry {index} of {shard:?} is committed but cannot be read; the log is damaged, restart the node to have it checked"
)]
struct MissingEntry {
    index: u64,
    shard: ShardId,
}

impl EntryStream {
    fn next_chunk(&self) -> Result<Vec<Entry>, Reading> {
        let end = self.rest.end.min(self.rest.start + STREAM_ENTRIES_MAX);
        let cached = self.log.cached(self.rest.start..end);
        if !cached.is_empty() {
            return Ok(cached);
        }
        let (log, range) = (self.log.clone(), self.rest.clone());
        Err(Box::pin(async move { log.read_wal(range, READ_BYTES_MAX).await }))
    }

    fn take(&mut self, chunk: Vec<Entry>) -> io::Result<()> {
        let missing = MissingEntry { index: self.rest.start, shard: self.log.0.shard };
        let Some(last) = chunk.last() else { return Err(io::Error::other(missing)) };
        if chunk[0].log_id.index != self.rest.start {
            return Err(io::Error::other(missing));
        }
        self.rest.start = last.log_id.index + 1;
        self.ready = chunk.into();
        Ok(())
    }
}

impl Stream for EntryStream {
    type Item = io::Result<Entry>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Entry>>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(entry)));
            }
            if self.rest.is_empty() {
                return Poll::Ready(None);
            }
            let chunk = match self.reading.as_mut() {
                Some(reading) => {
                    let chunk = ready!(reading.as_mut().poll(cx));
                    self.reading = None;
                    chunk
                }
                None => match self.next_chunk() {
                    Ok(chunk) => Ok(chunk),
                    Err(reading) => {
                        self.reading = Some(reading);
                        continue;
                    }
                },
            };
            if let Err(error) = chunk.and_then(|chunk| self.take(chunk)) {
                self.rest = 0..0;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}
