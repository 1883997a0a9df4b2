//! The running log's state and its synchronous transitions; no I/O here.
//!
//! ```text
//!   append ─► batch (gathers) ─► sealed ─► in flight ─► durable          all in LSN order
//!                 │ full segment
//!                 └─► rotate: next segment, its opening run of checkpoints
//! ```
//!
//! Invariants
//! - `durable` rises, and only over writes that are complete; parties are told in LSN order.
//! - A segment is freed only after a durable trailer or mark has named a higher oldest segment.
//! - At most one segment is in use whose file is not ready yet; its batches wait.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use gristmill_shardexec::buf::AlignedBuf;

use crate::batch::{Batch, Draft, SealContext, SealedBatch};
use crate::bugs::Bug;
use crate::cache::Cache;
use crate::error::WalError;
use crate::file::{LogShape, SegmentFile};
use crate::format::{RecordKind, Seal, SealEntry, TrailerHash, encode_committed, record_bytes};
use crate::group::Group;
use crate::incident::Incident;
use crate::index::Location;
use crate::limits::{
    BATCH_BYTES_TARGET, BLOCK_BYTES, DATA_OFFSET, GROUPS_MAX, RECORD_ALIGN, RECORD_HEADER_BYTES, SEAL_GROUPS_MAX,
    checkpoint_bytes_max, payload_bytes_max,
};
use crate::options::WalOptions;
use crate::state::LogState;
use crate::token::FencingToken;
use crate::types::{GroupId, LogPosition, Lsn, SegmentId};
use crate::waiters::{Released, Waiters};
use crate::wal::AppendEntry;

/// Share of a segment that promises of room leave when the disk is full, to entries that nobody asks for beforehand: those that a new
/// leader writes, without which a restarted shard would not even serve reads.
const PROMISE_RESERVE_SHARE: usize = 16;

/// Share of a segment that entries leave to control records (votes, truncations, purges) when the disk is full: purges free space.
const CONTROL_RESERVE_SHARE: usize = 32;

/// How badly a record is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// May be refused for lack of room.
    Entry,
    /// Small, and what it says frees space or elects leaders.
    Control,
}

/// What durable trailers and marks have told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub durable: Lsn,
    pub oldest: SegmentId,
}

impl Told {
    fn raise(&mut self, other: Told) {
        self.durable = self.durable.max(other.durable);
        self.oldest = self.oldest.max(other.oldest);
    }
}

/// A batch that waits for a lane.
pub(crate) struct Sealed {
    pub batch: SealedBatch,
    told: Told,
}

/// A batch that is being written.
struct InFlight {
    last_lsn: Lsn,
    bytes: usize,
    told: Told,
    done: bool,
}

/// A file without an id.
pub(crate) struct Spare {
    pub path: PathBuf,
    /// The segment that it was, while readers may still hold it.
    pub was: Option<Rc<SegmentFile>>,
}

/// What a lane should do next.
pub(crate) enum Work {
    Write(Rc<SegmentFile>, SealedBatch),
    Wait,
    Stop,
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub batches: u64,
    pub batch_bytes: u64,
    pub marks: u64,
    pub stale_tokens: u64,
    pub rotations: u64,
    pub recycled: u64,
    pub damaged_reads: u64,
}

pub(crate) struct Inner {
    pub shape: LogShape,
    pub options: WalOptions,
    pub state: LogState,
    /// Files of the segments in `state`, the current one perhaps not yet.
    pub files: BTreeMap<SegmentId, Rc<SegmentFile>>,
    /// Prepared segments that are not in use yet.
    pub ready: VecDeque<Rc<SegmentFile>>,
    pub spares: Vec<Spare>,
    /// Freed segments whose files still carry their names.
    pub freed: Vec<Rc<SegmentFile>>,
    /// Those that have lost them, before that is durable.
    pub renamed: Vec<Spare>,
    /// The id that the next preparation gives.
    pub next_segment: SegmentId,
    pub batch: Batch,
    pub sealed: VecDeque<Sealed>,
    in_flight: VecDeque<InFlight>,
    /// Bytes in `batch`, `sealed` and `in_flight`.
    pub pending_bytes: usize,
    pub cache: Cache,
    pub durable: Lsn,
    pub previous: TrailerHash,
    pub told: Told,
    pub waiters: Waiters,
    pub stopped: Option<WalError>,
    pub closing: bool,
    /// Why the next segment could not be prepared, until one could.
    pub unprepared: Option<WalError>,
    /// Bytes of room that writers were promised for what they have not appended yet.
    pub promised: usize,
    /// Groups whose commit position is not in the log yet.
    lazy: Vec<GroupId>,
    /// Segment of the latest batch, whose slots take the next mark.
    pub mark_segment: SegmentId,
    pub mark_sequence: u64,
    /// Counts appends and completions, so that the mark task sees whether the log was idle.
    pub activity: u64,
    pub counters: Counters,
    /// Not yet fetched, oldest first.
    pub incidents: VecDeque<Incident>,
    batch_number: u64,
}

/// What recovery found, to go on from.
pub(crate) struct Resume {
    pub state: LogState,
    pub files: BTreeMap<SegmentId, Rc<SegmentFile>>,
    pub spares: Vec<Spare>,
    pub next_segment: SegmentId,
    pub segment: SegmentId,
    pub offset: usize,
    pub last_lsn: Lsn,
    pub previous: TrailerHash,
    pub told: Told,
    pub mark_sequence: u64,
}

/// What records of `bytes` may take in a segment: each batch may waste up to a block of filler and takes one for its trailer.
fn worst_bytes(bytes: usize) -> usize {
    bytes + (bytes / BATCH_BYTES_TARGET + 2) * 2 * BLOCK_BYTES
}

/// Where the mark with the number `sequence` goes.
pub(crate) fn mark_slot(sequence: u64) -> u64 {
    crate::scan::MARK_SLOTS[((sequence + 1) % 2) as usize] as u64
}

/// What a mark says.
pub(crate) fn mark(state: &LogState, told: Told, previous: TrailerHash, sequence: u64) -> Seal {
    let row = |(id, group): (&GroupId, &Group)| SealEntry {
        group: *id,
        last: group.last,
        last_lsn: group.last_lsn,
        kinds: 0,
    };
    let mut table: Vec<SealEntry> = state.groups.iter().map(row).collect();
    // Of more groups than fit, those that wrote last say most.
    table.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.last_lsn));
    table.truncate(SEAL_GROUPS_MAX);
    table.sort_unstable_by_key(|entry| entry.group);
    Seal {
        durable_lsn: told.durable,
        previous,
        oldest_segment: told.oldest,
        mark_sequence: sequence,
        table_complete: state.groups.len() <= SEAL_GROUPS_MAX,
        table,
        ..Seal::default()
    }
}

impl Inner {
    pub fn new(shape: LogShape, mut options: WalOptions, resume: Resume) -> Inner {
        let segment_bytes = shape.segment_bytes as usize;
        options.segment_bytes = shape.segment_bytes;
        // With a quarter for checkpoints, what waits always fits one fresh segment.
        options.pending_bytes_max = options.pending_bytes_max.min(segment_bytes / 8 * 3);
        if resume.files.values().any(|file| file.syncs_each()) {
            // They would only wait for each other.
            options.writes_in_flight = 1;
        }
        let mut cache = Cache::new(options.cache_bytes);
        let crc = shape.crc(resume.segment);
        let batch = Batch::new(crc, resume.offset, segment_bytes, resume.last_lsn.next(), 1, cache.buffer());
        let mut inner = Inner {
            shape,
            options,
            state: resume.state,
            files: resume.files,
            ready: VecDeque::new(),
            spares: resume.spares,
            freed: Vec::new(),
            renamed: Vec::new(),
            next_segment: resume.next_segment,
            batch,
            sealed: VecDeque::new(),
            in_flight: VecDeque::new(),
            pending_bytes: 0,
            cache,
            durable: resume.last_lsn,
            previous: resume.previous,
            told: resume.told,
            waiters: Waiters::default(),
            stopped: None,
            closing: false,
            unprepared: None,
            promised: 0,
            lazy: Vec::new(),
            mark_segment: resume.segment,
            mark_sequence: resume.mark_sequence,
            activity: 0,
            counters: Counters::default(),
            incidents: VecDeque::new(),
            batch_number: 1,
        };
        inner.state.measure_checkpoints();
        if inner.state.current_mut().opened_by.is_none() {
            if inner.opening_run_bytes_max() <= inner.room() {
                inner.write_opening_run();
            } else {
                // One crash after the other has filled the segment with runs of which none is complete.
                inner.rotate();
            }
        }
        inner
    }

    /// LSN of the latest record, durable or not.
    /// The segment that the next one to be prepared follows on.
    pub fn newest_segment(&self) -> SegmentId {
        let ready = self.ready.back().map(|file| file.segment);
        ready.or_else(|| self.files.last_key_value().map(|(id, _)| *id)).unwrap_or_default()
    }

    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.batch.next_lsn().0 - 1)
    }

    /// Nothing waits for the disk.
    pub fn is_idle(&self) -> bool {
        self.batch.is_empty() && self.sealed.is_empty() && self.in_flight.is_empty()
    }

    pub fn writes_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Durable records are not all proven yet, or commit positions not saved.
    pub fn needs_mark(&self) -> bool {
        self.durable > self.told.durable || !self.lazy.is_empty()
    }

    pub fn ensure_running(&self) -> Result<(), WalError> {
        match &self.stopped {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(WalError::Closed),
            None => Ok(()),
        }
    }

    /// Bytes left for records in the current segment.
    fn room(&self) -> usize {
        self.options.segment_bytes as usize - (self.batch.start() + self.batch.len())
    }

    /// Whether records of `bytes` in total can be taken now. After `Ok` pushing them cannot fail.
    pub fn admit(&self, bytes: usize, urgency: Urgency) -> Result<(), WalError> {
        self.ensure_running()?;
        let limit = self.options.pending_bytes_max;
        if bytes > limit {
            return Err(WalError::TooLarge { bytes, limit });
        }
        let pending = self.pending_bytes;
        if urgency == Urgency::Entry && pending > 0 && pending + bytes > limit {
            return Err(WalError::Backlog { pending, limit });
        }
        let (worst, starved) = (worst_bytes(bytes), self.starved_by());
        let reserve = match (starved, urgency) {
            // What was taken would wait for a file that nobody knows when to expect.
            (Some(cause), Urgency::Entry) if !self.current_has_file() => return Err(cause.clone()),
            (Some(_), Urgency::Entry) => self.options.segment_bytes as usize / CONTROL_RESERVE_SHARE,
            _ => 0,
        };
        if worst + reserve <= self.room() {
            Ok(())
        } else if let Some(cause) = starved {
            Err(cause.clone())
        } else if !self.ready.is_empty() || self.current_has_file() {
            Ok(())
        } else {
            // The segment in use waits for its file, and a second one cannot.
            Err(WalError::Backlog { pending, limit })
        }
    }

    /// The segment in use is there, so that batches for it can be written.
    pub fn current_has_file(&self) -> bool {
        self.files.contains_key(&self.batch.segment())
    }

    /// Why no segment can be made, when none follows the current one.
    fn starved_by(&self) -> Option<&WalError> {
        self.unprepared.as_ref().filter(|_| self.ready.is_empty())
    }

    /// Promises room for entries of `bytes` in total; returns what to take off `promised` when they are appended or given up.
    pub fn promise(&mut self, bytes: usize) -> Result<usize, WalError> {
        self.ensure_running()?;
        let worst = worst_bytes(bytes);
        let reserve = self.options.segment_bytes as usize / PROMISE_RESERVE_SHARE;
        if let Some(cause) = self.starved_by()
            && (!self.current_has_file() || self.promised + worst + reserve > self.room())
        {
            return Err(cause.clone());
        }
        self.promised += worst;
        Ok(worst)
    }

    /// Finds a group, or makes room for a new one.
    pub fn ensure_group(&mut self, id: GroupId) -> Result<&mut Group, WalError> {
        if self.state.groups.contains_key(&id) {
            return Ok(self.state.groups.get_mut(&id).expect("just seen"));
        }
        let (groups, limit) = (self.state.groups.len(), checkpoint_bytes_max(self.options.segment_bytes));
        let bytes = record_bytes(Group::default().checkpoint_bytes());
        if groups >= GROUPS_MAX || self.state.checkpoint_bytes + bytes > limit {
            return Err(WalError::TooManyGroups { groups, limit });
        }
        self.state.checkpoint_bytes += bytes;
        Ok(self.state.groups.entry(id).or_default())
    }

    /// Longest payload of one entry: its record must fit both a segment and what may wait for the disk.
    pub fn payload_bytes_max(&self) -> usize {
        let waiting = self.options.pending_bytes_max / RECORD_ALIGN * RECORD_ALIGN - RECORD_HEADER_BYTES;
        payload_bytes_max(self.options.segment_bytes).min(waiting)
    }

    /// Whether a lane that waits could take something, now that the batch has grown from `before` bytes. A lane that is busy looks again by
    /// itself when its write ends.
    pub fn wants_lane(&self, before: usize) -> bool {
        let enough = if self.in_flight.is_empty() { 1 } else { self.options.gather_bytes.max(1) };
        !self.sealed.is_empty() || (before < enough && self.batch.len() >= enough)
    }

    /// Adds an entry that was checked and admitted.
    pub fn push_entry(&mut self, id: GroupId, entry: &AppendEntry<'_>) {
        let payload_bytes = entry.parts[0].len() + entry.parts[1].len();
        self.make_room(id, payload_bytes);
        let (segment, offset) = (self.batch.segment(), self.batch.next_offset());
        let group = self.state.groups.get_mut(&id).expect("the group was looked up before");
        group.entry(entry.position, entry.token, Location { segment, offset, payload_bytes: payload_bytes as u32 });
        let before = self.batch.len();
        let draft = Draft {
            kind: RecordKind::Entry,
            entry_kind: entry.kind,
            group: id,
            index: entry.position.index,
            token: entry.token,
            parts: entry.parts,
        };
        let (written_at, _) = self.batch.push(&draft, group);
        assert_eq!(written_at, offset, "the index names the record's place");
        self.state.current_mut().live += 1;
        self.state.live_entries += 1;
        self.pending_bytes += self.batch.len() - before;
        self.activity += 1;
    }

    /// Sees to it that the batch takes a record of `group` with `payload_bytes`. Admission has made sure that it can.
    pub fn make_room(&mut self, group: GroupId, payload_bytes: usize) {
        let listed = || self.batch.fits_table(&self.state.groups[&group]);
        if self.batch.len() >= BATCH_BYTES_TARGET || (self.batch.is_table_full() && !listed()) {
            self.seal();
        }
        if !self.batch.fits_segment(payload_bytes) {
            self.rotate();
            // The opening run may have left the table full again.
            if !self.batch.fits_table(&self.state.groups[&group]) {
                self.seal();
            }
        }
    }

    /// Adds a control record of a group whose state is already the one after it.
    /// The caller has made room before it changed the state.
    pub fn push_control(&mut self, id: GroupId, kind: RecordKind, at: LogPosition, parts: [&[u8]; 2]) -> Lsn {
        let draft = Draft {
            kind,
            entry_kind: 0,
            group: id,
            index: at.index,
            token: FencingToken::first_of_term(at.term).expect("terms beyond 32 bits are refused before"),
            parts,
        };
        self.push(&draft).1
    }

    /// Adds a record after `make_room`. Returns its offset and LSN.
    pub fn push(&mut self, draft: &Draft<'_>) -> (u32, Lsn) {
        let before = self.batch.len();
        let group = self.state.groups.get_mut(&draft.group).expect("the group was looked up before");
        let pushed = self.batch.push(draft, group);
        self.pending_bytes += self.batch.len() - before;
        self.activity += 1;
        pushed
    }

    /// Notes that a group's commit position should ride along.
    pub fn note_lazy(&mut self, group: GroupId) {
        self.lazy.push(group);
    }

    /// Adds commit positions that wait, as far as they fit the batch.
    pub fn push_lazy(&mut self) {
        while let Some(id) = self.lazy.last().copied() {
            let group = &self.state.groups[&id];
            let payload = encode_committed(group.committed);
            if !self.batch.fits_table(group) || !self.batch.fits_segment(payload.len()) {
                if !self.batch.is_empty() {
                    return; // with the next batch
                }
                if self.admit(record_bytes(payload.len()), Urgency::Control).is_err() {
                    return;
                }
                self.make_room(id, payload.len());
            }
            self.lazy.pop();
            let group = self.state.groups.get_mut(&id).expect("groups are never forgotten");
            if !std::mem::take(&mut group.committed_unsaved) {
                continue; // a checkpoint has said it meanwhile
            }
            let at = group.committed.unwrap_or_default();
            let draft = Draft {
                kind: RecordKind::Committed,
                entry_kind: 0,
                group: id,
                index: at.index,
                token: FencingToken::first_of_term(at.term).expect("checked when it was saved"),
                parts: [&payload, &[]],
            };
            self.push(&draft);
        }
    }

    /// Closes the batch, if it holds anything, and starts the next one behind it.
    fn seal(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let in_flight_too = self.shape.bugs.has(Bug::ProofAhead);
        let durable = if in_flight_too { Lsn(self.batch.first_lsn().0 - 1) } else { self.durable };
        let told = Told { durable, oldest: self.state.oldest_needed(self.durable) };
        self.batch_number += 1;
        let crc = self.shape.crc(self.batch.segment());
        let segment_bytes = self.options.segment_bytes as usize;
        let next_lsn = self.batch.next_lsn();
        let empty =
            Batch::new(crc, self.batch.start(), segment_bytes, next_lsn, self.batch_number, AlignedBuf::default());
        let full = std::mem::replace(&mut self.batch, empty);
        let before = full.len();
        let sealed =
            full.seal(SealContext { durable: told.durable, previous: self.previous, oldest_segment: told.oldest });
        self.pending_bytes += sealed.buf.len() - before;
        self.previous = sealed.hash;
        let buffer = self.cache.buffer();
        self.batch = Batch::new(crc, sealed.end(), segment_bytes, next_lsn, self.batch_number, buffer);
        self.cache.push(sealed.clone());
        self.sealed.push_back(Sealed { batch: sealed, told });
    }

    /// Moves on to the next segment.
    fn rotate(&mut self) {
        self.seal();
        let id = match self.ready.pop_front() {
            Some(file) => {
                let id = file.segment;
                self.files.insert(id, file);
                id
            }
            None => self.next_segment,
        };
        assert!(id > self.batch.segment(), "segment ids rise");
        self.counters.rotations += 1;
        self.batch_number += 1;
        let crc = self.shape.crc(id);
        let segment_bytes = self.options.segment_bytes as usize;
        let (next_lsn, buffer) = (self.batch.next_lsn(), self.cache.buffer());
        self.batch = Batch::new(crc, DATA_OFFSET, segment_bytes, next_lsn, self.batch_number, buffer);
        self.state.open_segment(id);
        self.write_opening_run();
    }

    /// What a run of checkpoints may take, filler and trailers included: a batch ends when it is large, or when its table is full.
    fn opening_run_bytes_max(&self) -> usize {
        let bytes = self.state.checkpoint_bytes;
        let batches = bytes / BATCH_BYTES_TARGET + self.state.groups.len() / SEAL_GROUPS_MAX + 2;
        bytes + batches * 2 * BLOCK_BYTES
    }

    /// Writes the run of checkpoints that lets the current segment stand alone.
    fn write_opening_run(&mut self) {
        let mut ids: Vec<GroupId> = self.state.groups.keys().copied().collect();
        ids.sort_unstable();
        for (done, id) in ids.iter().enumerate() {
            let group = self.state.groups.get_mut(id).expect("just listed");
            group.committed_unsaved = false;
            let mut checkpoint = group.checkpoint();
            checkpoint.remaining = (ids.len() - done - 1) as u32;
            let payload = checkpoint.encode();
            let draft = Draft {
                kind: RecordKind::Checkpoint,
                entry_kind: 0,
                group: *id,
                index: checkpoint.last.unwrap_or_default().index,
                token: checkpoint.token_highest,
                parts: [&payload, &[]],
            };
            if self.batch.len() >= BATCH_BYTES_TARGET || !self.batch.fits_table(&self.state.groups[id]) {
                self.seal();
            }
            assert!(self.batch.fits_segment(payload.len()), "checkpoints take at most a quarter of a segment");
            self.push(&draft);
        }
        // The run is complete only with its last record.
        let opened_by = if ids.is_empty() { Lsn(0) } else { self.last_lsn() };
        self.state.current_mut().opened_by = Some(opened_by);
    }

    /// What a free lane should do.
    pub fn take_work(&mut self) -> Work {
        if self.stopped.is_some() {
            return Work::Stop;
        }
        let ready = self.current_has_file();
        let gathered = self.in_flight.is_empty() || self.batch.len() >= self.options.gather_bytes;
        if self.sealed.is_empty() && !self.batch.is_empty() && ready && gathered {
            self.push_lazy();
            self.seal();
        }
        let Some(file) = self.sealed.front().and_then(|sealed| self.files.get(&sealed.batch.segment)) else {
            return if self.closing && self.is_idle() { Work::Stop } else { Work::Wait };
        };
        let file = Rc::clone(file);
        let Sealed { batch, told } = self.sealed.pop_front().expect("just seen");
        assert!(self.in_flight.back().is_none_or(|last| last.last_lsn < batch.last_lsn), "batches go out in LSN order");
        if self.mark_segment != batch.segment {
            self.mark_segment = batch.segment;
            self.mark_sequence = 0;
        }
        self.in_flight.push_back(InFlight { last_lsn: batch.last_lsn, bytes: batch.buf.len(), told, done: false });
        Work::Write(file, batch)
    }

    /// A batch's write ended well: acknowledges what is durable now, strictly in LSN order.
    pub fn batch_written(&mut self, last_lsn: Lsn, released: &mut Released) {
        self.activity += 1;
        if self.stopped.is_some() {
            return;
        }
        let out_of_order = self.shape.bugs.has(Bug::AcknowledgedOutOfOrder);
        let at = match self.in_flight.binary_search_by_key(&last_lsn, |write| write.last_lsn) {
            Ok(at) => at,
            Err(_) if out_of_order => return,
            Err(_) => unreachable!("it was in flight"),
        };
        let first = if out_of_order { 0 } else { at };
        self.in_flight.range_mut(first..=at).for_each(|write| write.done = true);
        while self.in_flight.front().is_some_and(|write| write.done) {
            let write = self.in_flight.pop_front().expect("just seen");
            assert!(write.last_lsn > self.durable, "LSNs rise");
            self.durable = write.last_lsn;
            self.pending_bytes -= write.bytes;
            self.told.raise(write.told);
            self.counters.batches += 1;
            self.counters.batch_bytes += write.bytes as u64;
        }
        self.waiters.release(self.durable, released);
        self.cache.trim(self.durable);
        self.free_segments();
    }

    /// A mark is durable.
    pub fn mark_written(&mut self, told: Told) {
        self.counters.marks += 1;
        self.told.raise(told);
        self.free_segments();
    }

    /// Lets go of segments that a durable trailer or mark has declared unneeded.
    fn free_segments(&mut self) {
        if self.state.segments.front().is_none_or(|life| life.segment >= self.told.oldest) {
            return;
        }
        self.state.forget_below(self.told.oldest);
        let kept = self.files.split_off(&self.told.oldest);
        self.freed.extend(std::mem::replace(&mut self.files, kept).into_values());
    }

    /// Stops the log for good.
    pub fn fail(&mut self, error: WalError, released: &mut Released) {
        if self.stopped.is_none() {
            self.stopped = Some(error);
        }
        self.waiters.release_all(released);
    }

    /// The next mark: its slot's offset, what it says.
    pub fn next_mark(&mut self) -> (u64, Told, Seal) {
        self.mark_sequence += 1;
        let told = Told { durable: self.durable, oldest: self.state.oldest_needed(self.durable) };
        let seal = mark(&self.state, told, self.previous, self.mark_sequence);
        (mark_slot(self.mark_sequence), told, seal)
    }
}
