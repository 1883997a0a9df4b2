//! The handle to a running log.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use gristmill_shardexec::sync::Mutex;
use gristmill_shardexec::{JoinHandle, abort_on_panic, abort_on_panic_async};

use crate::bugs::Bug;
use crate::error::{Rejected, WalError};
use crate::format::{
    RecordKind, encode_home, encode_membership_head, encode_purge, encode_truncate, encode_vote, record_bytes,
};
use crate::group::Group;
use crate::inner::{Inner, Urgency};
use crate::limits::{MEMBERSHIP_BYTES_MAX, checkpoint_bytes_max};
use crate::options::WalOptions;
use crate::read::{StoredEntry, read};
use crate::recovery::{Progress, RecoveryReport, recover};
use crate::state::Freed;
use crate::token::FencingToken;
use crate::types::{GroupId, Home, LogNumber, LogPosition, Lsn, Vote};
use crate::waiters::Released;
use crate::writer::Shared;

/// What aborts when a call into a running log panics.
const PART: &str = "the log";

/// A log, used by one core. Clones share it. Dropping the last one without [`Wal::close`] stops it as a crash would: what was not
/// acknowledged may be lost.
#[derive(Clone)]
pub struct Wal {
    shared: Rc<Shared>,
    handle: Rc<Handle>,
}

struct Handle {
    shared: Rc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        abort_on_panic(PART, || self.shared.stop(WalError::Closed));
    }
}

/// One entry to append.
#[derive(Clone, Copy, Debug)]
pub struct AppendEntry<'a> {
    /// Its place in the group's log: the next one, in a term not below the last one's.
    pub position: LogPosition,
    /// Its origin token: of the position's term, not below the last one's.
    pub token: FencingToken,
    /// The writer's code for the payload; the log does not look at it.
    pub kind: u8,
    /// The payload, laid end to end. The first part is a multiple of 16 bytes long unless the second is empty, so that both start aligned
    /// to 16 bytes when the entry is read back.
    pub parts: [&'a [u8]; 2],
}

/// A group as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Latest vote.
    pub vote: Option<Vote>,
    /// Latest commit position that was saved, a hint: the true one may be higher.
    pub committed: Option<LogPosition>,
    /// Entries up to here are gone.
    pub purged: Option<LogPosition>,
    /// End of the log: the last entry, or `purged` when none is left.
    pub last: Option<LogPosition>,
    /// Latest membership that was saved: position of its entry, encoded form.
    pub membership: Option<(LogPosition, Box<[u8]>)>,
    /// Highest origin token ever seen.
    pub token_highest: FencingToken,
    /// Whether the group lives in this log, if that was ever said.
    pub home: Option<Home>,
}

/// Figures of a running log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalStats {
    /// Latest record.
    pub last_lsn: Lsn,
    /// Latest durable record.
    pub durable_lsn: Lsn,
    /// Bytes that wait for the disk.
    pub pending_bytes: usize,
    /// Batch writes in flight.
    pub writes_in_flight: usize,
    /// Batches written.
    pub batches: u64,
    /// Bytes of batches written, trailers and filler included.
    pub batch_bytes: u64,
    /// Marks written.
    pub marks: u64,
    /// Writers refused for a stale term.
    pub stale_tokens: u64,
    /// Reads that found a needed record damaged.
    pub damaged_reads: u64,
    /// Segments that hold something needed, the current one included.
    pub segments: usize,
    /// Segments prepared ahead.
    pub segments_ready: usize,
    /// Segments begun since the log was opened.
    pub rotations: u64,
    /// Segments made from freed files.
    pub recycled: u64,
    /// Groups, retired ones included.
    pub groups: usize,
    /// Entries that can be read.
    pub live_entries: u64,
    /// Memory of recent batches, in bytes.
    pub cache_bytes: usize,
    /// No segment can be prepared for lack of space.
    pub disk_full: bool,
    /// No segment can be prepared, for lack of space or of something else.
    pub unprepared: bool,
    /// A group whose entries keep the oldest segment.
    pub pinned_by: Option<GroupId>,
}

/// Resolves once everything up to an LSN is durable.
#[must_use = "what a log was told is durable only once this has resolved"]
pub struct Durable {
    state: DurableState,
}

/// Room in a log, kept until this is dropped: see [`Wal::promise`].
#[must_use = "the room is given back when this is dropped"]
pub struct Promise {
    shared: Rc<Shared>,
    bytes: usize,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.shared.change(|inner| inner.promised -= self.bytes);
    }
}

enum DurableState {
    Refused(WalError),
    Waiting(Rc<Shared>, Lsn),
}

impl Future for Durable {
    type Output = Result<(), WalError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.state {
            DurableState::Refused(error) => Poll::Ready(Err(error.clone())),
            DurableState::Waiting(shared, lsn) => shared.change(|inner| {
                if inner.durable >= *lsn {
                    return Poll::Ready(Ok(()));
                }
                if let Some(error) = &inner.stopped {
                    return Poll::Ready(Err(error.clone()));
                }
                inner.waiters.push_task(*lsn, cx.waker());
                Poll::Pending
            }),
        }
    }
}

impl Wal {
    /// Opens the log in `dir`, or creates it when the directory is empty or missing.
    pub async fn open(dir: &Path, log: LogNumber, options: WalOptions) -> Result<(Wal, RecoveryReport), WalError> {
        Wal::open_with_progress(dir, log, options, &mut |_| {}).await
    }

    /// As [`Wal::open`]; calls `progress` after each segment.
    pub async fn open_with_progress(
        dir: &Path,
        log: LogNumber,
        options: WalOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Wal, RecoveryReport), WalError> {
        options.check()?;
        let (shape, resume, report) = recover(dir, log, &options, progress).await?;
        let shared = Rc::new(Shared::new(Inner::new(shape, options, resume)));
        let tasks = shared.start();
        shared.idle.notify_one();
        let handle = Rc::new(Handle { shared: Rc::clone(&shared), tasks: Mutex::new(tasks) });
        Ok((Wal { shared, handle }, report))
    }

    /// Appends entries of a group on behalf of a leader of `writer_term`. They can be read at once; `done` runs when they are durable, in LSN
    /// order with everything else. Nothing is changed when this fails; then `done` is dropped.
    ///
    /// # Panics
    /// When an entry's first part is not a multiple of 16 bytes long and its second is not empty.
    pub fn append(
        &self,
        group: GroupId,
        writer_term: u64,
        entries: &[AppendEntry<'_>],
        done: impl FnOnce(Result<(), WalError>) + 'static,
    ) -> Result<Lsn, WalError> {
        check_parts(entries);
        abort_on_panic(PART, || {
            let mut already = false;
            let lsn = self.shared.append(group, writer_term, entries, |inner, lsn| {
                inner.waiters.push_callback(lsn, Box::new(done));
                already = lsn <= inner.durable || inner.shape.bugs.has(Bug::AcknowledgedBeforeWrite);
            })?;
            if already {
                self.shared.release_durable();
            }
            Ok(lsn)
        })
    }

    /// As [`Wal::append`] without a callback: await [`Wal::durable`] instead, which allocates nothing.
    pub fn append_unacknowledged(
        &self,
        group: GroupId,
        writer_term: u64,
        entries: &[AppendEntry<'_>],
    ) -> Result<Lsn, WalError> {
        check_parts(entries);
        abort_on_panic(PART, || self.shared.append(group, writer_term, entries, |_, _| ()))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// LSN of the latest record, durable or not.
    pub fn last_lsn(&self) -> Lsn {
        self.shared.look(Inner::last_lsn)
    }

    /// Resolves once everything up to `lsn` is durable.
    pub fn durable(&self, lsn: Lsn) -> Durable {
        Durable { state: DurableState::Waiting(Rc::clone(&self.shared), lsn) }
    }

    /// Saves a vote, ordered with appends. It must not be acted upon before the future has resolved.
    pub fn save_vote(&self, group: GroupId, vote: Vote) -> Durable {
        self.control(group, record_bytes(encode_vote(&vote).len()), |inner| {
            FencingToken::first_of_term(vote.term)?;
            inner.check(group, |state| state.check_vote(&vote))?;
            inner.group_mut(group).vote = Some(vote);
            let at = LogPosition { term: vote.term, index: 0 };
            Ok(inner.push_control(group, RecordKind::Vote, at, [&encode_vote(&vote), &[]]))
        })
    }

    /// Saves a commit position. Lazy: it rides with the next batch, or is written when the log has been idle for the mark delay.
    pub fn save_committed(&self, group: GroupId, committed: Option<LogPosition>) -> Result<(), WalError> {
        let idle = self.shared.change(|inner| {
            inner.ensure_running()?;
            committed.map_or(Ok(()), check_term)?;
            let state = inner.ensure_group(group)?;
            if state.committed == committed {
                return Ok(false);
            }
            state.committed = committed;
            if !std::mem::replace(&mut state.committed_unsaved, true) {
                inner.note_lazy(group);
            }
            Ok::<bool, WalError>(inner.is_idle())
        })?;
        if idle {
            self.shared.idle.notify_one();
        }
        Ok(())
    }

    /// Saves the group's latest membership, set by the entry at `position`: checkpoints repeat it, so that it outlives the entry.
    pub fn save_membership(&self, group: GroupId, position: LogPosition, membership: &[u8]) -> Durable {
        let head = encode_membership_head(position);
        self.control(group, record_bytes(head.len() + membership.len()), |inner| {
            check_term(position)?;
            if membership.len() > MEMBERSHIP_BYTES_MAX {
                return Err(WalError::TooLarge { bytes: membership.len(), limit: MEMBERSHIP_BYTES_MAX });
            }
            inner.check(group, Group::check_here)?;
            inner.grow_checkpoint(group, membership.len())?;
            inner.group_mut(group).membership = Some((position, membership.into()));
            Ok(inner.push_control(group, RecordKind::Membership, position, [&head, membership]))
        })
    }

    /// Drops the entries behind `after`, ordered with appends; `None` drops all.
    pub fn truncate_after(&self, group: GroupId, after: Option<LogPosition>) -> Durable {
        let payload = encode_truncate(after);
        self.control(group, record_bytes(payload.len()), |inner| {
            after.map_or(Ok(()), check_term)?;
            inner.check(group, |state| state.check_truncate(after))?;
            inner.with_freed(group, |state, freed| state.truncate(after, freed.sink()));
            if inner.shape.bugs.has(Bug::TruncationNotLogged) {
                return Ok(inner.last_lsn());
            }
            let at = after.unwrap_or_default();
            Ok(inner.push_control(group, RecordKind::TruncateAfter, at, [&payload, &[]]))
        })
    }

    /// Drops the entries up to `through`. Beyond the end of the log it moves the end there: a snapshot was installed.
    pub fn purge(&self, group: GroupId, through: LogPosition) -> Durable {
        let payload = encode_purge(through);
        self.control(group, record_bytes(payload.len()), |inner| {
            check_term(through)?;
            inner.check(group, |state| state.check_purge(through))?;
            inner.with_freed(group, |state, freed| state.purge(through, freed.sink()));
            Ok(inner.push_control(group, RecordKind::Purge, through, [&payload, &[]]))
        })
    }

    /// Says that the group lives in this log from `epoch` on, or has left it (`retired`): then its entries here are void. Of two logs
    /// that know a group the higher epoch wins.
    pub fn save_home(&self, group: GroupId, home: Home) -> Durable {
        let payload = encode_home(home);
        self.control(group, record_bytes(payload.len()), |inner| {
            inner.check(group, |state| state.check_home(home))?;
            inner.with_freed(group, |state, freed| state.set_home(home, freed.sink()));
            inner.state.measure_checkpoints();
            Ok(inner.push_control(group, RecordKind::ShardHome, LogPosition::default(), [&payload, &[]]))
        })
    }

    /// Runs an operation that adds a control record, and waits for what it added.
    fn control(
        &self,
        group: GroupId,
        bytes: usize,
        operation: impl FnOnce(&mut Inner) -> Result<Lsn, WalError>,
    ) -> Durable {
        let outcome = self.shared.change(|inner| {
            inner.admit(bytes, Urgency::Control)?;
            inner.ensure_group(group)?;
            // Before any state changes: a new segment opens with the state that the records before it led to.
            inner.make_room(group, bytes);
            operation(inner)
        });
        self.shared.work.notify_one();
        let state = match outcome {
            Ok(lsn) => DurableState::Waiting(Rc::clone(&self.shared), lsn),
            Err(error) => DurableState::Refused(error),
        };
        Durable { state }
    }

    /// Reads the entries of `group` with indexes in `range` that the log holds, from the first of them on, until the next would pass `bytes_max`
    /// bytes of payload; at least one if there is any. Bytes from disk are checked against their CRCs each time.
    pub async fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<StoredEntry>, WalError> {
        let reading = async {
            let read = read(&self.shared, group, range, bytes_max).await;
            read.inspect_err(|error| self.shared.note(error))
        };
        abort_on_panic_async(PART, reading).await
    }

    /// The group's state; `None` when the log does not know it.
    pub fn group(&self, group: GroupId) -> Option<GroupState> {
        self.shared.look(|inner| inner.state.groups.get(&group).map(group_state))
    }

    /// All groups, ascending, retired ones included.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> = self.shared.look(|inner| inner.state.groups.keys().copied().collect());
        groups.sort_unstable();
        groups
    }

    /// Position of a live entry, without reading it.
    pub fn position(&self, group: GroupId, index: u64) -> Option<LogPosition> {
        let term = self.shared.look(|inner| inner.state.groups.get(&group)?.index.term_at(index))?;
        Some(LogPosition { term, index })
    }

    /// Promises room for entries of `bytes` in total, headers and padding included, that are about to be proposed: their append
    /// will not have to wait for space on a full disk. Fails when the disk is full and what is left of the log does not hold them
    /// beside everything else that was promised, or when the log has stopped.
    pub fn promise(&self, bytes: usize) -> Result<Promise, WalError> {
        let bytes = self.shared.change(|inner| inner.promise(bytes))?;
        Ok(Promise { shared: Rc::clone(&self.shared), bytes })
    }

    /// Whether entries of `bytes` in total would be taken now. What comes from outside asks [`Wal::promise`] before that.
    pub fn admit(&self, bytes: usize) -> Result<(), WalError> {
        self.shared.look(|inner| inner.admit(bytes, Urgency::Entry))
    }

    /// Most bytes of records that one append takes, headers of 64 bytes and padding to 16 included.
    pub fn append_bytes_max(&self) -> usize {
        self.shared.look(|inner| inner.options.pending_bytes_max)
    }

    /// Largest payload of one entry, in bytes.
    pub fn payload_bytes_max(&self) -> usize {
        self.shared.look(Inner::payload_bytes_max)
    }

    /// Resolves once everything appended so far is durable.
    pub fn flush(&self) -> Durable {
        self.durable(self.last_lsn())
    }

    /// Writes what waits and the final mark, then ends the log's tasks. Further calls fail with [`WalError::Closed`]. When what waits needs
    /// a segment that cannot be prepared, this fails with the reason, and what was not acknowledged is lost.
    pub async fn close(&self) -> Result<(), WalError> {
        abort_on_panic_async(PART, self.end()).await
    }

    async fn end(&self) -> Result<(), WalError> {
        self.shared.change(|inner| {
            inner.ensure_running()?;
            inner.push_lazy();
            inner.closing = true;
            Ok::<(), WalError>(())
        })?;
        self.shared.work.notify_one();
        self.shared.prepare.notify_one();
        let flushed = self.flush().await;
        let marked = match flushed {
            Ok(()) => self.shared.write_mark().await,
            Err(error) => Err(error),
        };
        self.shared.stop(marked.clone().err().unwrap_or(WalError::Closed));
        for task in self.handle.tasks.lock().await.drain(..) {
            // A task that panicked has aborted the process; one that was aborted with the executor has nothing left to do.
            let _ = task.await;
        }
        marked
    }

    /// Figures.
    pub fn stats(&self) -> WalStats {
        self.shared.look(figures)
    }
}

fn figures(inner: &Inner) -> WalStats {
    WalStats {
        last_lsn: inner.last_lsn(),
        durable_lsn: inner.durable,
        pending_bytes: inner.pending_bytes,
        writes_in_flight: inner.writes_in_flight(),
        batches: inner.counters.batches,
        batch_bytes: inner.counters.batch_bytes,
        marks: inner.counters.marks,
        stale_tokens: inner.counters.stale_tokens,
        damaged_reads: inner.counters.damaged_reads,
        segments: inner.state.segments.len(),
        segments_ready: inner.ready.len(),
        rotations: inner.counters.rotations,
        recycled: inner.counters.recycled,
        groups: inner.state.groups.len(),
        live_entries: inner.state.live_entries,
        cache_bytes: inner.cache.bytes(),
        disk_full: matches!(inner.unprepared, Some(WalError::DiskFull { .. })),
        unprepared: inner.unprepared.is_some(),
        pinned_by: inner.state.pinning_group(),
    }
}

fn check_term(position: LogPosition) -> Result<(), WalError> {
    FencingToken::first_of_term(position.term).map(drop).map_err(WalError::Token)
}

pub(crate) fn group_state(group: &Group) -> GroupState {
    GroupState {
        vote: group.vote,
        committed: group.committed,
        purged: group.purged,
        last: group.last,
        membership: group.membership.clone(),
        token_highest: group.token_highest,
        home: group.home,
    }
}

/// The caller's part of an append, checked before the log is touched.
fn check_parts(entries: &[AppendEntry<'_>]) {
    for AppendEntry { parts: [head, body], .. } in entries {
        assert!(head.len().is_multiple_of(16) || body.is_empty(), "the body starts aligned to 16");
    }
}

impl Shared {
    /// Looks at the log's state. Whoever calls is a task, whose panic the executor would catch and leave the log half changed.
    fn look<R>(&self, look: impl FnOnce(&Inner) -> R) -> R {
        abort_on_panic(PART, || look(&self.inner.borrow()))
    }

    /// As [`Shared::look`], to change it.
    fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        abort_on_panic(PART, || change(&mut self.inner.borrow_mut()))
    }

    fn append(
        &self,
        group: GroupId,
        writer_term: u64,
        entries: &[AppendEntry<'_>],
        appended: impl FnOnce(&mut Inner, Lsn),
    ) -> Result<Lsn, WalError> {
        let mut inner = self.inner.borrow_mut();
        let before = inner.batch.len();
        let lsn = match append(&mut inner, group, writer_term, entries) {
            Ok(lsn) => lsn,
            Err(error) => {
                drop(inner);
                self.note(&error);
                return Err(error);
            }
        };
        appended(&mut inner, lsn);
        if inner.wants_lane(before) {
            self.work.notify_one();
        }
        Ok(lsn)
    }

    /// An append of nothing may name an LSN that is durable already.
    fn release_durable(&self) {
        let mut released = Released::default();
        {
            let mut inner = self.inner.borrow_mut();
            let too_early = inner.shape.bugs.has(Bug::AcknowledgedBeforeWrite);
            let durable = if too_early { inner.last_lsn() } else { inner.durable };
            inner.waiters.release(durable, &mut released);
        }
        released.tell(&Ok(()));
    }
}

/// The append itself: everything is checked before anything is changed.
fn append(inner: &mut Inner, id: GroupId, writer_term: u64, entries: &[AppendEntry<'_>]) -> Result<Lsn, WalError> {
    let limit = inner.payload_bytes_max();
    let mut bytes = 0;
    for entry in entries {
        let payload = entry.parts[0].len() + entry.parts[1].len();
        if payload > limit {
            return Err(WalError::TooLarge { bytes: payload, limit });
        }
        bytes += record_bytes(payload);
    }
    inner.admit(bytes, Urgency::Entry)?;
    let writer = FencingToken::first_of_term(writer_term)?;
    let group = inner.ensure_group(id)?;
    if let Some(have) = group.fence_against(writer_term) {
        inner.counters.stale_tokens += 1;
        return Err(WalError::StaleToken { group: id, have, got: writer });
    }
    check_entries(group, entries).map_err(|rejected| WalError::rejected(id, rejected))?;
    for entry in entries {
        inner.push_entry(id, entry);
    }
    Ok(inner.last_lsn())
}

/// Checks a run of entries against the group's log and each other.
fn check_entries(group: &Group, entries: &[AppendEntry<'_>]) -> Result<(), Rejected> {
    let Some(first) = entries.first() else { return Ok(()) };
    group.check_entry(first.position, first.token)?;
    for pair in entries.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        Group::check_succession(Some(before.position), before.token, after.position, after.token)?;
    }
    Ok(())
}

impl Inner {
    fn group_mut(&mut self, id: GroupId) -> &mut Group {
        self.state.groups.get_mut(&id).expect("the group was looked up before")
    }

    fn check(&mut self, id: GroupId, check: impl FnOnce(&Group) -> Result<(), Rejected>) -> Result<(), WalError> {
        let outcome = check(self.ensure_group(id)?);
        outcome.map_err(|rejected| WalError::rejected(id, rejected))
    }

    /// Runs a transition that takes entries away, booked on the record that is pushed next.
    fn with_freed(&mut self, id: GroupId, transition: impl FnOnce(&mut Group, &mut Freed<'_>)) {
        let by = self.batch.next_lsn();
        let state = &mut self.state;
        let group = state.groups.get_mut(&id).expect("the group was looked up before");
        transition(group, &mut Freed { segments: &mut state.segments, live: &mut state.live_entries, by });
    }

    fn grow_checkpoint(&mut self, id: GroupId, membership_bytes: usize) -> Result<(), WalError> {
        let limit = checkpoint_bytes_max(self.options.segment_bytes);
        let (groups, total) = (self.state.groups.len(), self.state.checkpoint_bytes);
        let group = self.ensure_group(id)?;
        let old = record_bytes(group.checkpoint_bytes());
        let held = group.membership.as_ref().map_or(0, |(_, bytes)| bytes.len());
        let new = record_bytes(group.checkpoint_bytes() - held + membership_bytes);
        if total - old + new > limit {
            return Err(WalError::TooManyGroups { groups, limit });
        }
        self.state.checkpoint_bytes = total - old + new;
        Ok(())
    }
}

#[cfg(test)]
mod abort_tests;
