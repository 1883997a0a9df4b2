//! Reading segments back: what is whole, what is damaged, and what that means.
//!
//! ```text
//!   segment bytes ──Walk──► records, gaps ──LogScan──► good batches ──► sink
//!                                              │
//!                                              └──► damages, proven LSN ──verdict──► clean │ torn │ corrupt
//! ```
//!
//! Pure functions over bytes: recovery, the tools and the tests share them. After a gap the walk goes on at the next valid record, because
//! a proof of acknowledgement may lie behind a damage; batches are handed to the sink only while they are contiguous from the start.

use std::fmt;

use crate::bugs::{Bug, Bugs};
use crate::format::{
    HeaderFault, RecordHeader, RecordKind, Seal, SegmentCrc, TrailerHash, block_ceil, decode_header, payload_intact,
    u32_at, u64_at,
};
use crate::limits::{BLOCK_BYTES, DATA_OFFSET, RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::state::ReplayFault;
use crate::types::{Lsn, SegmentId};

/// Damages that one scan lists; more are counted only.
pub const DAMAGES_MAX: usize = 10_000;

/// Offsets of the two mark slots.
pub const MARK_SLOTS: [usize; 2] = [BLOCK_BYTES, 2 * BLOCK_BYTES];

/// A stretch of a segment that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Segment.
    pub segment: SegmentId,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes, as far as known; 0 when what is missing has no place.
    pub bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
    /// Lowest LSN that can be affected.
    pub lsn: Lsn,
}

/// What is wrong with a stretch of a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    /// No valid record where one must start.
    #[error("no valid record: {0}")]
    Record(HeaderFault),
    /// A record's header is whole, its payload is not.
    #[error("the payload of a {kind} record does not match its CRC", kind = .0.name())]
    Payload(RecordKind),
    /// A trailer or mark whose CRCs are right says what cannot be.
    #[error("a {kind} says what cannot be: {what}", kind = .kind.name())]
    Seal {
        /// Trailer or mark.
        kind: RecordKind,
        /// What is wrong.
        what: &'static str,
    },
    /// Records are there, the trailer of their batch is not.
    #[error("a batch without its trailer")]
    NoTrailer,
    /// LSNs are missing between two batches.
    #[error("records up to {through} are missing", through = .0)]
    Missing(Lsn),
    /// A record's LSN is not the next one.
    #[error("found {found} where {expected} comes next")]
    Order {
        /// Next.
        expected: Lsn,
        /// Found.
        found: Lsn,
    },
    /// An intact record contradicts the ones before it.
    #[error("a {kind} record contradicts the log before it: {fault}", kind = .kind.name())]
    Contradiction {
        /// The record's kind.
        kind: RecordKind,
        /// How.
        fault: ReplayFault,
    },
    /// A mark slot holds neither zeros nor a mark.
    #[error("a damaged mark: {0}")]
    Mark(HeaderFault),
    /// The segment's header.
    #[error("damaged segment header: {0}")]
    SegmentHeader(crate::format::SegmentHeaderFault),
    /// The segment's file has not the length that its header says.
    #[error("this segment of the log was {change}: the file has {found} bytes, its header says {expected}", change = if found < expected { "cut short" } else { "made longer" })]
    Length {
        /// Of the file, in bytes.
        found: u64,
        /// In its header.
        expected: u64,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} offset {}: {}", self.segment, self.offset, self.kind)?;
        if self.lsn.0 > 0 {
            write!(f, " (from {} on)", self.lsn)?;
        }
        Ok(())
    }
}

/// One step through a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole record, trailers included.
    Record(RecordHeader),
    /// The header is whole, the payload is not.
    DamagedPayload(RecordHeader),
    /// Bytes that hold no valid record, with a valid one behind them.
    Gap {
        /// First byte.
        start: usize,
        /// Byte behind the last.
        end: usize,
        /// What is wrong at the start.
        fault: HeaderFault,
    },
}

/// Walks the records of one segment, filler left out.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    bytes: &'a [u8],
    crc: SegmentCrc,
    at: usize,
    end_fault: Option<HeaderFault>,
}

impl<'a> Walk<'a> {
    /// Over `bytes`, the whole file of the segment that `crc` is for.
    pub fn new(crc: SegmentCrc, bytes: &'a [u8]) -> Walk<'a> {
        Walk { bytes, crc, at: DATA_OFFSET, end_fault: None }
    }

    /// Where the walk stands: behind the last item.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Once the walk is over: what stood where the next record would have started, if a record had room there.
    pub fn end_fault(&self) -> Option<HeaderFault> {
        self.end_fault
    }

    fn header(&self, at: usize) -> Result<RecordHeader, HeaderFault> {
        if at + RECORD_HEADER_BYTES > self.bytes.len() {
            return Err(HeaderFault::Zero);
        }
        decode_header(&self.crc, &self.bytes[at..], at)
    }

    fn record(&mut self, header: RecordHeader) -> Item {
        self.at = header.offset as usize + header.record_bytes();
        if payload_intact(&self.crc, &self.bytes[header.offset as usize..], &header) {
            Item::Record(header)
        } else {
            Item::DamagedPayload(header)
        }
    }

    /// The next place behind `from` whose header names that very place and is valid.
    fn resynchronise(&self, from: usize) -> Option<RecordHeader> {
        let segment = self.crc.segment().0;
        let last = self.bytes.len().saturating_sub(RECORD_HEADER_BYTES);
        (from..=last)
            .step_by(RECORD_ALIGN)
            .filter(|&at| u64_at(self.bytes, at + 16) == segment && u32_at(self.bytes, at + 24) as usize == at)
            .find_map(|at| decode_header(&self.crc, &self.bytes[at..], at).ok())
    }
}

impl Iterator for Walk<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.end_fault.is_some() {
            return None;
        }
        let mut fault = match self.header(self.at) {
            Ok(header) => return Some(self.record(header)),
            Err(fault) => fault,
        };
        let block = block_ceil(self.at).min(self.bytes.len());
        let mut start = self.at;
        if self.bytes[start..block].iter().all(|&byte| byte == 0) && block > start {
            match self.header(block) {
                Ok(header) => return Some(self.record(header)),
                Err(at_block) => (start, fault) = (block, at_block),
            }
        }
        if let Some(header) = self.resynchronise(self.at.max(start) + RECORD_ALIGN) {
            self.at = header.offset as usize;
            return Some(Item::Gap { start, end: self.at, fault });
        }
        self.at = start;
        self.end_fault = Some(fault);
        None
    }
}

/// What a mark slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkSlot {
    /// Zeros.
    Empty,
    /// A mark of an earlier life of the file.
    Stale,
    /// A mark.
    Valid(RecordHeader, Seal),
    /// Neither.
    Damaged(DamageKind),
}

/// Reads the mark slot at `offset` of the first blocks of a segment.
pub fn read_mark(crc: &SegmentCrc, bytes: &[u8], offset: usize) -> MarkSlot {
    let header = match decode_header(crc, &bytes[offset..offset + BLOCK_BYTES], offset) {
        Ok(header) => header,
        Err(HeaderFault::Zero) if bytes[offset..offset + BLOCK_BYTES].iter().all(|&byte| byte == 0) => {
            return MarkSlot::Empty;
        }
        Err(HeaderFault::Elsewhere { segment: other, offset: at })
            if other < crc.segment() && at as usize == offset =>
        {
            return MarkSlot::Stale;
        }
        Err(fault) => return MarkSlot::Damaged(DamageKind::Mark(fault)),
    };
    if header.kind != RecordKind::Mark {
        return MarkSlot::Damaged(DamageKind::Seal { kind: header.kind, what: "it lies in a mark slot" });
    }
    if !payload_intact(crc, &bytes[offset..], &header) {
        return MarkSlot::Damaged(DamageKind::Payload(RecordKind::Mark));
    }
    match Seal::decode(&header, &bytes[offset + RECORD_HEADER_BYTES..offset + BLOCK_BYTES]) {
        Ok(seal) if seal.durable_lsn == header.lsn => MarkSlot::Valid(header, seal),
        _ => MarkSlot::Damaged(DamageKind::Seal { kind: RecordKind::Mark, what: "its fields contradict each other" }),
    }
}

/// A place in the log, between two batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Segment.
    pub segment: SegmentId,
    /// Offset in it, in bytes.
    pub offset: u64,
}

/// A batch that is whole and continues the ones before it.
#[derive(Debug)]
pub struct GoodBatch<'a> {
    /// The segment's bytes.
    pub bytes: &'a [u8],
    /// Headers of its records.
    pub records: &'a [RecordHeader],
    /// Its trailer's header.
    pub trailer: RecordHeader,
    /// Its trailer.
    pub seal: &'a Seal,
}

/// Takes good batches in order; says which record it cannot take and why.
pub trait BatchSink {
    /// A segment begins.
    fn segment(&mut self, segment: SegmentId);
    /// Takes one batch.
    fn batch(&mut self, batch: &GoodBatch<'_>) -> Result<(), Box<(RecordHeader, ReplayFault)>>;
}

/// What the bytes of a log prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything written is whole.
    Clean,
    /// Something above the proven LSN is damaged: it was never acknowledged, and is cut.
    Torn,
    /// Something at or below the proven LSN is damaged.
    Corrupt,
}

/// Judges a log from the bytes of its segments, given one after the other in the order of their ids.
#[derive(Debug, Default)]
pub struct LogScan {
    /// Last LSN of the contiguous good batches.
    pub good_lsn: Lsn,
    /// End of the last of them.
    pub good_end: Place,
    /// Hash of its trailer.
    pub good_hash: TrailerHash,
    /// D: the highest durable LSN in any valid trailer or mark.
    pub proven: Lsn,
    /// Highest segment named as the oldest needed one.
    pub oldest_segment: SegmentId,
    /// Damages of batches in the order of the log, at most [`DAMAGES_MAX`].
    pub damages: Vec<Damage>,
    /// Damaged mark slots. They lower what can be proven, and lose nothing.
    pub mark_damages: Vec<Damage>,
    /// Damages found, listed or not.
    pub damages_total: u64,
    /// Good batches and the records in them.
    pub batches: u64,
    /// Records in good batches.
    pub records: u64,
    /// An intact record of a good batch could not be replayed: not a crash's doing, so never cut.
    pub contradiction: bool,
    expected: Option<Lsn>,
    previous: Option<TrailerHash>,
    open: OpenBatch,
    /// A whole batch lies behind a damage. Proves nothing.
    followed: bool,
    bugs: Bugs,
}

/// Records seen since the last trailer.
#[derive(Debug, Default)]
struct OpenBatch {
    start: usize,
    records: Vec<RecordHeader>,
    damaged: bool,
}

impl LogScan {
    /// A scan by a log that has `bugs`.
    pub(crate) fn with_bugs(bugs: Bugs) -> LogScan {
        LogScan { bugs, ..LogScan::default() }
    }

    /// Walks one segment. `bytes` is the whole file, its header checked.
    pub fn segment(&mut self, crc: SegmentCrc, bytes: &[u8], sink: &mut impl BatchSink) {
        let segment = crc.segment();
        sink.segment(segment);
        self.marks(&crc, bytes);
        self.open = OpenBatch { start: DATA_OFFSET, ..OpenBatch::default() };
        if self.good_end == Place::default() {
            self.good_end = Place { segment, offset: DATA_OFFSET as u64 };
        }
        let mut walk = Walk::new(crc, bytes);
        for item in walk.by_ref() {
            match item {
                Item::Record(header) if header.kind == RecordKind::Trailer => self.trailer(&crc, header, bytes, sink),
                Item::Record(header) if header.kind == RecordKind::Mark => {
                    let kind = DamageKind::Seal { kind: RecordKind::Mark, what: "it lies outside the mark slots" };
                    self.damage(segment, header.offset as usize, header.record_bytes(), kind);
                    self.open.damaged = true;
                }
                Item::Record(header) => self.record(header),
                Item::DamagedPayload(header) => self.damaged_payload(header),
                Item::Gap { start, end, fault } => {
                    self.damage(segment, start, end - start, DamageKind::Record(fault));
                    self.lose_track(end);
                }
            }
        }
        self.end_of_segment(&walk, bytes.len());
    }

    /// A segment may end anywhere, but not within a batch, nor with a header that was meant for the very place and is damaged.
    fn end_of_segment(&mut self, walk: &Walk<'_>, len: usize) {
        let fault = walk.end_fault().unwrap_or(HeaderFault::Zero);
        let meant_for_here = matches!(fault, HeaderFault::Crc { .. } | HeaderFault::Field(_));
        if self.open.records.is_empty() && !self.open.damaged && !meant_for_here {
            return;
        }
        let kind = if meant_for_here { DamageKind::Record(fault) } else { DamageKind::NoTrailer };
        let at = walk.offset().min(len);
        self.damage(walk.crc.segment(), at, BLOCK_BYTES.min(len - at), kind);
        self.expected = None;
    }

    fn marks(&mut self, crc: &SegmentCrc, bytes: &[u8]) {
        for offset in MARK_SLOTS {
            match read_mark(crc, bytes, offset) {
                MarkSlot::Valid(_, seal) => {
                    self.proven = self.proven.max(seal.durable_lsn);
                    self.oldest_segment = self.oldest_segment.max(seal.oldest_segment);
                }
                MarkSlot::Damaged(kind) => {
                    self.mark_damages.push(Damage {
                        segment: crc.segment(),
                        offset: offset as u64,
                        bytes: BLOCK_BYTES as u64,
                        kind,
                        lsn: Lsn(0),
                    });
                }
                MarkSlot::Empty | MarkSlot::Stale => {}
            }
        }
    }

    fn record(&mut self, header: RecordHeader) {
        if let Some(expected) = self.expected
            && header.lsn != expected
        {
            let missing = self.open.records.is_empty() && header.lsn > expected;
            if missing {
                // What is missing lies behind the last batch: name that place, not the innocent record.
                let place = self.good_end_or(header);
                let through = Lsn(header.lsn.0 - 1);
                self.damage_at(place, 0, DamageKind::Missing(through), expected);
            } else {
                let kind = DamageKind::Order { expected, found: header.lsn };
                self.damage(header.segment, header.offset as usize, header.record_bytes(), kind);
            }
            self.open.damaged = true;
        }
        self.expected = Some(header.lsn.next());
        self.open.records.push(header);
    }

    fn good_end_or(&self, header: RecordHeader) -> Place {
        if self.damages.is_empty() {
            self.good_end
        } else {
            Place { segment: header.segment, offset: u64::from(header.offset) }
        }
    }

    fn damaged_payload(&mut self, header: RecordHeader) {
        let kind = DamageKind::Payload(header.kind);
        self.damage(header.segment, header.offset as usize, header.record_bytes(), kind);
        self.expected = Some(header.lsn.next());
        if header.kind == RecordKind::Trailer {
            // The two CRCs in its header still name it for the trailer behind it.
            self.previous = None;
            self.open = OpenBatch { start: header.offset as usize + header.record_bytes(), ..OpenBatch::default() };
        } else {
            self.open.damaged = true;
        }
    }

    /// After a gap: what comes next may be of the same batch or of another.
    fn lose_track(&mut self, end: usize) {
        self.expected = None;
        self.open.damaged = true;
        if self.open.records.is_empty() && end.is_multiple_of(BLOCK_BYTES) {
            self.previous = None;
        }
    }

    fn trailer(&mut self, crc: &SegmentCrc, header: RecordHeader, bytes: &[u8], sink: &mut impl BatchSink) {
        let end = header.offset as usize + header.record_bytes();
        if !(header.offset as usize).is_multiple_of(BLOCK_BYTES) || header.record_bytes() != BLOCK_BYTES {
            self.seal_damage(&header, "it is not one block");
            self.open.damaged = true;
            return;
        }
        let payload = &bytes[header.offset as usize + RECORD_HEADER_BYTES..end];
        let hash = TrailerHash::of_block(&bytes[header.offset as usize..]);
        match Seal::decode(&header, payload) {
            Ok(seal) => {
                self.proven = self.proven.max(seal.durable_lsn);
                self.oldest_segment = self.oldest_segment.max(seal.oldest_segment);
                if !self.open.damaged {
                    match self.check_trailer(crc, &header, &seal, bytes) {
                        Ok(()) => self.hand_over(header, &seal, bytes, sink),
                        Err(what) => self.seal_damage(&header, what),
                    }
                }
            }
            Err(_) => self.seal_damage(&header, "its fields are out of range"),
        }
        self.expected = Some(header.lsn.next());
        self.previous = Some(hash);
        self.open = OpenBatch { start: end, ..OpenBatch::default() };
    }

    fn check_trailer(
        &self,
        crc: &SegmentCrc,
        header: &RecordHeader,
        seal: &Seal,
        bytes: &[u8],
    ) -> Result<(), &'static str> {
        let (Some(first), Some(last)) = (self.open.records.first(), self.open.records.last()) else {
            return Err("its batch holds no record");
        };
        let checks = [
            ("it belongs to another batch", seal.batch_offset as usize == self.open.start),
            ("its batch starts elsewhere", first.offset == seal.batch_offset),
            ("its first LSN is not its batch's", first.lsn == seal.first_lsn),
            ("its last LSN is not its batch's", last.lsn == header.lsn),
            ("its batch has another number of records", self.open.records.len() == seal.records as usize),
            ("it proves more than what lay before it", seal.durable_lsn < seal.first_lsn),
            ("it follows another trailer", self.previous.is_none_or(|previous| previous == seal.previous)),
        ];
        if let Some((what, _)) = checks.iter().find(|(_, holds)| !holds) {
            return Err(what);
        }
        let batch = &bytes[self.open.start..header.offset as usize];
        if crc.matches(batch, seal.batch_crc) { Ok(()) } else { Err("its batch has another CRC") }
    }

    fn hand_over(&mut self, trailer: RecordHeader, seal: &Seal, bytes: &[u8], sink: &mut impl BatchSink) {
        if self.damages_total > 0 {
            self.followed = true;
            return;
        }
        let batch = GoodBatch { bytes, records: &self.open.records, trailer, seal };
        if let Err(refusal) = sink.batch(&batch) {
            let (record, fault) = *refusal;
            self.contradiction = true;
            let kind = DamageKind::Contradiction { kind: record.kind, fault };
            self.damage_at(
                Place { segment: record.segment, offset: u64::from(record.offset) },
                record.record_bytes(),
                kind,
                record.lsn,
            );
            return;
        }
        self.batches += 1;
        self.records += self.open.records.len() as u64;
        self.good_lsn = trailer.lsn;
        self.good_end = Place { segment: trailer.segment, offset: u64::from(trailer.offset) + BLOCK_BYTES as u64 };
        self.good_hash = TrailerHash::of_block(&bytes[trailer.offset as usize..]);
    }

    fn seal_damage(&mut self, header: &RecordHeader, what: &'static str) {
        let kind = DamageKind::Seal { kind: RecordKind::Trailer, what };
        self.damage(header.segment, header.offset as usize, BLOCK_BYTES, kind);
    }

    fn damage(&mut self, segment: SegmentId, offset: usize, bytes: usize, kind: DamageKind) {
        // A batch stands or falls as a whole.
        let lsn = self.open.records.first().map(|first| first.lsn).or(self.expected).unwrap_or(Lsn(0));
        self.damage_at(Place { segment, offset: offset as u64 }, bytes, kind, lsn);
    }

    fn damage_at(&mut self, place: Place, bytes: usize, kind: DamageKind, lsn: Lsn) {
        self.damages_total += 1;
        if self.damages.len() < DAMAGES_MAX {
            let (segment, offset) = (place.segment, place.offset);
            self.damages.push(Damage { segment, offset, bytes: bytes as u64, kind, lsn });
        }
    }

    /// After the last segment.
    pub fn verdict(&self) -> Verdict {
        let judges_by_what_follows = self.bugs.has(Bug::JudgedByWhatFollows);
        let acknowledged = if judges_by_what_follows { self.followed } else { self.proven > self.good_lsn };
        if acknowledged && self.damages_total > 0 && self.bugs.has(Bug::CorruptionCut) {
            return Verdict::Torn;
        }
        if self.contradiction || acknowledged {
            Verdict::Corrupt
        } else if self.damages_total > 0 {
            Verdict::Torn
        } else {
            Verdict::Clean
        }
    }

    /// After the last segment, of a scan that began at `from`: where to begin another one, because the first damage lies in a segment that
    /// a later one declares unneeded.
    pub fn restart(&self, from: SegmentId) -> Option<SegmentId> {
        let unneeded = self.damages.first().is_some_and(|damage| damage.segment < self.oldest_segment);
        (unneeded && self.oldest_segment > from).then_some(self.oldest_segment)
    }

    /// The damage to name when the verdict is [`Verdict::Corrupt`].
    pub fn corruption(&self) -> Damage {
        assert_eq!(self.verdict(), Verdict::Corrupt);
        self.damages.first().cloned().unwrap_or_else(|| Damage {
            segment: self.good_end.segment,
            offset: self.good_end.offset,
            bytes: 0,
            kind: DamageKind::Missing(self.proven),
            lsn: self.good_lsn.next(),
        })
    }
}
