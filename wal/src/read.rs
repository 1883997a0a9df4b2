//! Reading entries back: from the batch that gathers, from batches of late, from disk.

use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Arc;

use gristmill_shardexec::buf::AlignedBuf;

use crate::error::WalError;
use crate::file::SegmentFile;
use crate::format::{
    HeaderFault, RecordHeader, RecordKind, SegmentCrc, block_ceil, decode_header, payload_intact, record_bytes,
};
use crate::index::Location;
use crate::inner::Inner;
use crate::limits::{BLOCK_BYTES, READ_BYTES_MAX, READ_GAP_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::scan::{Damage, DamageKind};
use crate::token::FencingToken;
use crate::types::{GroupId, LogId, LogPosition, Lsn};
use crate::writer::Shared;

/// An entry read back.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Its place in the group's log.
    pub position: LogPosition,
    /// Its origin token.
    pub token: FencingToken,
    /// The writer's code for the payload.
    pub kind: u8,
    /// The payload.
    pub data: EntryData,
}

/// Bytes of an entry: a share of the buffer that holds it. Starts at a multiple of 16 in memory.
#[derive(Clone, Debug)]
pub struct EntryData {
    buf: Arc<AlignedBuf>,
    start: usize,
    len: usize,
}

impl Deref for EntryData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for EntryData {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Where the bytes of a wanted entry are.
enum Source {
    /// In memory, the record's header at `at`.
    Memory(Arc<AlignedBuf>, usize),
    Disk(Rc<SegmentFile>),
}

struct Wanted {
    index: u64,
    location: Location,
    source: Source,
}

/// Reads the live entries of `group` with indexes in `range`, from its start on, until the next one would pass `bytes_max`; at least one if
/// any is there.
pub(crate) async fn read(
    shared: &Shared,
    group: GroupId,
    range: Range<u64>,
    bytes_max: usize,
) -> Result<Vec<StoredEntry>, WalError> {
    let (wanted, log_id) = {
        let inner = shared.inner.borrow();
        (plan(&inner, group, range, bytes_max)?, inner.shape.log_id)
    };
    let mut entries = Vec::with_capacity(wanted.len());
    let mut at = 0;
    while at < wanted.len() {
        match &wanted[at].source {
            Source::Memory(buf, offset) => {
                entries.push(from_memory(log_id, group, &wanted[at], buf, *offset));
                at += 1;
            }
            Source::Disk(file) => {
                let count = contiguous(&wanted[at..], file);
                read_run(file, group, &wanted[at..at + count], &mut entries).await?;
                at += count;
            }
        }
    }
    Ok(entries)
}

/// Finds the entries while the log is borrowed. Those of the gathering batch are copied out: it changes under the reader.
fn plan(inner: &Inner, id: GroupId, range: Range<u64>, bytes_max: usize) -> Result<Vec<Wanted>, WalError> {
    if let Some(error @ WalError::Failed(_)) = &inner.stopped {
        return Err(error.clone());
    }
    let Some(group) = inner.state.groups.get(&id) else { return Ok(Vec::new()) };
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    let mut gathering = AlignedBuf::default();
    let mut gathered = Vec::new();
    for index in range.start.max(group.index.first())..range.end.min(group.index.next()) {
        let location = group.index.locate(index).expect("within the live range");
        bytes += location.payload_bytes as usize;
        if wanted.len() + gathered.len() > 0 && bytes > bytes_max {
            break;
        }
        let in_batch = location.segment == inner.batch.segment() && location.offset as usize >= inner.batch.start();
        if in_batch {
            let from = location.offset as usize - inner.batch.start();
            gathered.push((index, location, gathering.len()));
            gathering
                .extend_from_slice(&inner.batch.bytes()[from..from + record_bytes(location.payload_bytes as usize)]);
            continue;
        }
        let source = match inner.cache.find(location) {
            Some((buf, offset)) => Source::Memory(Arc::clone(buf), offset),
            None => Source::Disk(Rc::clone(&inner.files[&location.segment])),
        };
        wanted.push(Wanted { index, location, source });
    }
    let gathering = Arc::new(gathering);
    wanted.extend(gathered.into_iter().map(|(index, location, at)| Wanted {
        index,
        location,
        source: Source::Memory(Arc::clone(&gathering), at),
    }));
    Ok(wanted)
}

fn from_memory(log_id: LogId, group: GroupId, wanted: &Wanted, buf: &Arc<AlignedBuf>, at: usize) -> StoredEntry {
    let crc = SegmentCrc::new(log_id, wanted.location.segment);
    let header = decode_header(&crc, &buf[at..], wanted.location.offset as usize);
    let header = check(group, wanted, header).unwrap_or_else(|kind| panic!("a batch changed in memory: {kind}"));
    entry(&header, buf, at)
}

/// How many of the first entries lie in one file, close enough together for one read.
fn contiguous(wanted: &[Wanted], file: &Rc<SegmentFile>) -> usize {
    let start = wanted[0].location.offset as usize;
    let mut end = start;
    for (count, next) in wanted.iter().enumerate() {
        let same_file = matches!(&next.source, Source::Disk(other) if Rc::ptr_eq(other, file));
        let offset = next.location.offset as usize;
        let next_end = offset + record_bytes(next.location.payload_bytes as usize);
        let near = offset >= end && offset - end <= READ_GAP_BYTES_MAX && next_end - start <= READ_BYTES_MAX;
        if count > 0 && !(same_file && near) {
            return count;
        }
        end = next_end;
    }
    wanted.len()
}

async fn read_run(
    file: &SegmentFile,
    group: GroupId,
    wanted: &[Wanted],
    entries: &mut Vec<StoredEntry>,
) -> Result<(), WalError> {
    let (first, last) = (wanted[0].location, wanted[wanted.len() - 1].location);
    let start = first.offset as usize / BLOCK_BYTES * BLOCK_BYTES;
    let end = block_ceil(last.offset as usize + record_bytes(last.payload_bytes as usize));
    let buf = Arc::new(file.read(start, end - start).await?);
    for wanted in wanted {
        let at = wanted.location.offset as usize - start;
        let damaged = |kind| {
            let (segment, offset) = (wanted.location.segment, u64::from(wanted.location.offset));
            let bytes = record_bytes(wanted.location.payload_bytes as usize) as u64;
            let damage = Box::new(Damage { segment, offset, bytes, kind, lsn: Lsn(0) });
            WalError::Corrupt { path: file.path.clone(), damage }
        };
        if buf.len() < at + record_bytes(wanted.location.payload_bytes as usize) {
            return Err(damaged(DamageKind::Record(HeaderFault::Zero)));
        }
        let header = decode_header(&file.crc, &buf[at..], wanted.location.offset as usize);
        let header = check(group, wanted, header).map_err(damaged)?;
        if !payload_intact(&file.crc, &buf[at..], &header) {
            return Err(damaged(DamageKind::Payload(RecordKind::Entry)));
        }
        entries.push(entry(&header, &buf, at));
    }
    Ok(())
}

/// The record must be the one that the index means.
fn check(
    group: GroupId,
    wanted: &Wanted,
    header: Result<RecordHeader, HeaderFault>,
) -> Result<RecordHeader, DamageKind> {
    let header = header.map_err(DamageKind::Record)?;
    let meant = header.kind == RecordKind::Entry
        && header.group == group
        && header.index == wanted.index
        && header.payload_bytes == wanted.location.payload_bytes;
    if meant { Ok(header) } else { Err(DamageKind::Record(HeaderFault::Field("group or index"))) }
}

fn entry(header: &RecordHeader, buf: &Arc<AlignedBuf>, at: usize) -> StoredEntry {
    StoredEntry {
        position: LogPosition { term: u64::from(header.token.term()), index: header.index },
        token: header.token,
        kind: header.entry_kind,
        data: EntryData { buf: Arc::clone(buf), start: at + RECORD_HEADER_BYTES, len: header.payload_bytes as usize },
    }
}
