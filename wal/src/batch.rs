//! A batch while it gathers: one aligned buffer that is written to disk as it stands.
//!
//! ```text
//!   append ──copy──► │hdr│payload│hdr│payload│ … │ zero filler │ trailer │ ──seal──► one write
//! ```
//!
//! One copy and one CRC per record, no allocation per record: the buffer grows to what batches of late needed and is used again.

use std::sync::Arc;

use gristmill_shardexec::buf::AlignedBuf;

use crate::format::{
    RecordHeader, RecordKind, Seal, SealEntry, SegmentCrc, TrailerHash, block_ceil, kinds, record_bytes,
};
use crate::group::{BatchRow, Group};
use crate::limits::{BLOCK_BYTES, RECORD_ALIGN, RECORD_HEADER_BYTES, SEAL_GROUPS_MAX};
use crate::token::FencingToken;
use crate::types::{GroupId, Lsn, SegmentId};

/// What the caller knows of a record; the batch adds place, LSN and CRCs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub kind: RecordKind,
    pub entry_kind: u8,
    pub group: GroupId,
    pub index: u64,
    pub token: FencingToken,
    /// Laid end to end. All but the last are multiples of 16 bytes long, so that each starts aligned.
    pub parts: [&'a [u8]; 2],
}

impl Draft<'_> {
    pub fn payload_bytes(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }
}

/// Records gathering for one write.
#[derive(Debug)]
pub(crate) struct Batch {
    crc: SegmentCrc,
    /// Offset of the batch in its segment.
    start: usize,
    segment_bytes: usize,
    first_lsn: Lsn,
    next_lsn: Lsn,
    buf: AlignedBuf,
    table: Vec<SealEntry>,
    /// Counts batches, so that a group's row is known to be of this one.
    number: u64,
}

/// What a trailer says beyond its batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealContext {
    pub durable: Lsn,
    pub previous: TrailerHash,
    pub oldest_segment: SegmentId,
}

/// A batch ready to be written, or written.
#[derive(Clone, Debug)]
pub(crate) struct SealedBatch {
    pub segment: SegmentId,
    /// Offset in the segment.
    pub start: u32,
    /// The whole write, trailer included.
    pub buf: Arc<AlignedBuf>,
    pub last_lsn: Lsn,
    pub hash: TrailerHash,
}

impl SealedBatch {
    /// Offset behind the batch.
    pub fn end(&self) -> usize {
        self.start as usize + self.buf.len()
    }
}

impl Batch {
    /// An empty batch at `start` of the segment that `crc` is for, whose first record gets `first_lsn`. `buf` lends its memory.
    pub fn new(
        crc: SegmentCrc,
        start: usize,
        segment_bytes: usize,
        first_lsn: Lsn,
        number: u64,
        mut buf: AlignedBuf,
    ) -> Batch {
        assert!(start.is_multiple_of(BLOCK_BYTES), "batches start at block boundaries");
        buf.clear();
        Batch { crc, start, segment_bytes, first_lsn, next_lsn: first_lsn, buf, table: Vec::new(), number }
    }

    pub fn segment(&self) -> SegmentId {
        self.crc.segment()
    }

    pub fn start(&self) -> usize {
        self.start
    }

    /// Offset in the segment of the next record.
    pub fn next_offset(&self) -> u32 {
        (self.start + self.buf.len()) as u32
    }

    /// LSN of its first record.
    pub fn first_lsn(&self) -> Lsn {
        self.first_lsn
    }

    /// LSN of the next record.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Bytes of records so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Bytes so far, for readers of entries that wait to be written.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Whether a record of `payload_bytes` and the trailer fit the rest of the segment.
    pub fn fits_segment(&self, payload_bytes: usize) -> bool {
        let end = block_ceil(self.start + self.buf.len() + record_bytes(payload_bytes));
        end + BLOCK_BYTES <= self.segment_bytes
    }

    /// Whether the table lists as many groups as it can.
    pub fn is_table_full(&self) -> bool {
        self.table.len() >= SEAL_GROUPS_MAX
    }

    /// Whether the table can list `group`.
    pub fn fits_table(&self, group: &Group) -> bool {
        group.row.batch == self.number || !self.is_table_full()
    }

    /// Adds a record. Returns its offset in the segment and its LSN. The group's state must already be the one after the record.
    pub fn push(&mut self, draft: &Draft<'_>, group: &mut Group) -> (u32, Lsn) {
        let payload_bytes = draft.payload_bytes();
        assert!(self.fits_segment(payload_bytes), "the caller rotates first");
        assert!(self.fits_table(group), "the caller seals a batch whose table is full");
        let (lsn, at) = (self.next_lsn, self.buf.len());
        let payload_at = at + RECORD_HEADER_BYTES;
        debug_assert!(draft.parts[0].len().is_multiple_of(RECORD_ALIGN) || draft.parts[1].is_empty());
        self.buf.reserve(record_bytes(payload_bytes));
        self.buf.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        self.buf.extend_from_slice(draft.parts[0]);
        self.buf.extend_from_slice(draft.parts[1]);
        self.buf.set_len(at + record_bytes(payload_bytes));
        let header = RecordHeader {
            kind: draft.kind,
            entry_kind: draft.entry_kind,
            payload_bytes: payload_bytes as u32,
            payload_crc: self.crc.of(&self.buf[payload_at..]),
            segment: self.crc.segment(),
            offset: (self.start + at) as u32,
            group_back: group.back(lsn),
            lsn,
            group: draft.group,
            index: draft.index,
            token: draft.token,
        };
        header.encode(&self.crc, &mut self.buf[at..payload_at]);
        self.list(draft, group, lsn);
        group.last_lsn = lsn;
        self.next_lsn = lsn.next();
        (header.offset, lsn)
    }

    fn list(&mut self, draft: &Draft<'_>, group: &mut Group, lsn: Lsn) {
        if group.row.batch != self.number {
            group.row = BatchRow { batch: self.number, row: self.table.len() as u8 };
            self.table.push(SealEntry { group: draft.group, ..SealEntry::default() });
        }
        let row = &mut self.table[usize::from(group.row.row)];
        debug_assert_eq!(row.group, draft.group);
        row.last = group.last;
        row.last_lsn = lsn;
        row.kinds |= kinds::bit(draft.kind);
    }

    /// Closes the batch: filler, trailer.
    pub fn seal(mut self, context: SealContext) -> SealedBatch {
        assert!(!self.is_empty(), "an empty batch is never written");
        assert!(context.durable < self.first_lsn, "nothing in a batch is durable before it is written");
        let records_end = block_ceil(self.buf.len());
        self.buf.resize(records_end);
        let last_lsn = Lsn(self.next_lsn.0 - 1);
        let seal = Seal {
            first_lsn: self.first_lsn,
            durable_lsn: context.durable,
            previous: context.previous,
            oldest_segment: context.oldest_segment,
            batch_offset: self.start as u32,
            batch_crc: self.crc.of(&self.buf),
            records: (self.next_lsn.0 - self.first_lsn.0) as u32,
            mark_sequence: 0,
            table_complete: true,
            table: self.table,
        };
        self.buf.resize(records_end + BLOCK_BYTES);
        let offset = self.start + records_end;
        encode_seal_block(&self.crc, RecordKind::Trailer, offset, last_lsn, &seal, &mut self.buf[records_end..]);
        assert!(offset + BLOCK_BYTES <= self.segment_bytes, "a batch ends within its segment");
        SealedBatch {
            segment: self.crc.segment(),
            start: self.start as u32,
            hash: TrailerHash::of_block(&self.buf[records_end..]),
            buf: Arc::new(self.buf),
            last_lsn,
        }
    }
}

/// Fills one block with a trailer or mark.
pub(crate) fn encode_seal_block(
    crc: &SegmentCrc,
    kind: RecordKind,
    offset: usize,
    lsn: Lsn,
    seal: &Seal,
    block: &mut [u8],
) {
    assert_eq!(block.len(), BLOCK_BYTES);
    let (header_bytes, payload) = block.split_at_mut(RECORD_HEADER_BYTES);
    seal.encode(payload);
    let header = RecordHeader {
        kind,
        entry_kind: 0,
        payload_bytes: payload.len() as u32,
        payload_crc: crc.of(payload),
        segment: crc.segment(),
        offset: offset as u32,
        group_back: 0,
        lsn,
        group: GroupId(0),
        index: 0,
        token: FencingToken::default(),
    };
    header.encode(crc, header_bytes);
}
