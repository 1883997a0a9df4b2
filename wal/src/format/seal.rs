//! What a trailer and a mark say: the payload of a record that fills one block.

use super::{PayloadFault, RecordHeader, put, u16_at, u32_at, u64_at};
use crate::limits::{BLOCK_BYTES, RECORD_HEADER_BYTES, SEAL_GROUPS_MAX};
use crate::types::{GroupId, LogPosition, Lsn, SegmentId};

/// Payload bytes of a trailer or mark: with its header, one block.
pub const SEAL_BYTES: usize = BLOCK_BYTES - RECORD_HEADER_BYTES;
const TABLE_AT: usize = 64;
const ROW_BYTES: usize = 32;
const TABLE_COMPLETE: u16 = 1;
const HAS_LAST: u32 = 1 << 31;

/// Identity of a trailer, repeated by the next one: its header CRC and payload CRC. The payload CRC covers the batch's CRC and
/// the hash of the trailer before, so equal hashes mean equal histories as far as 64 bits can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrailerHash(pub u64);

impl TrailerHash {
    /// The hash of a trailer, given its block (or at least its header).
    pub fn of_block(block: &[u8]) -> TrailerHash {
        TrailerHash(u64_at(block, 0))
    }
}

/// Bits of [`SealEntry::kinds`], one per record kind that a batch holds for the group.
pub mod kinds {
    use super::super::RecordKind;

    /// The bit of a record kind.
    pub const fn bit(kind: RecordKind) -> u32 {
        match kind {
            RecordKind::Trailer | RecordKind::Mark => 0,
            kind => 1 << (kind as u8 - 1),
        }
    }

    /// Every bit in use.
    pub const ALL: u32 = (1 << RecordKind::Checkpoint as u8) - 1;
}

/// One group's row in a trailer or mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealEntry {
    /// The group.
    pub group: GroupId,
    /// End of the group's log after the batch; `None` when its log is empty and was never purged.
    pub last: Option<LogPosition>,
    /// The group's last record in the batch (trailer) or in the log (mark).
    pub last_lsn: Lsn,
    /// Trailer: which kinds of records the batch holds for the group ([`kinds`]). Mark: 0.
    pub kinds: u32,
}

/// A trailer or mark. The highest LSN that it covers is its record's `lsn`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Trailer: first LSN of the batch. Mark: 0.
    pub first_lsn: Lsn,
    /// Highest LSN known durable when this was built: the proof that what lies at or below it was acknowledged.
    pub durable_lsn: Lsn,
    /// Hash of the trailer before this one (trailer), or of the latest one (mark).
    pub previous: TrailerHash,
    /// Segments below this one are not needed.
    pub oldest_segment: SegmentId,
    /// Trailer: where the batch starts, in bytes. Mark: 0.
    pub batch_offset: u32,
    /// Trailer: CRC of all bytes from the batch's start to the trailer. Mark: 0.
    pub batch_crc: u32,
    /// Trailer: number of records in the batch. Mark: 0.
    pub records: u32,
    /// Mark: counts the marks of the segment, from 1. Trailer: 0.
    pub mark_sequence: u64,
    /// The table lists every group of the batch (always so in a trailer) or of the log (mark, when they fit).
    pub table_complete: bool,
    /// Groups, in the order of their first record in the batch (trailer) or of their ids (mark).
    pub table: Vec<SealEntry>,
}

impl Seal {
    /// Writes the payload.
    ///
    /// # Panics
    /// When the table has more than [`SEAL_GROUPS_MAX`] rows or `out` is not [`SEAL_BYTES`] long.
    pub fn encode(&self, out: &mut [u8]) {
        assert_eq!(out.len(), SEAL_BYTES);
        assert!(self.table.len() <= SEAL_GROUPS_MAX, "a batch closes when its table is full");
        out.fill(0);
        put(out, 0, &self.first_lsn.0.to_le_bytes());
        put(out, 8, &self.durable_lsn.0.to_le_bytes());
        put(out, 16, &self.previous.0.to_le_bytes());
        put(out, 24, &self.oldest_segment.0.to_le_bytes());
        put(out, 32, &self.batch_offset.to_le_bytes());
        put(out, 36, &self.batch_crc.to_le_bytes());
        put(out, 40, &self.records.to_le_bytes());
        put(out, 44, &(self.table.len() as u16).to_le_bytes());
        put(out, 46, &(u16::from(self.table_complete) * TABLE_COMPLETE).to_le_bytes());
        put(out, 48, &self.mark_sequence.to_le_bytes());
        for (row, entry) in out[TABLE_AT..].chunks_exact_mut(ROW_BYTES).zip(&self.table) {
            encode_row(entry, row);
        }
    }

    /// Inverse of [`Seal::encode`], for a record whose CRCs have been checked.
    pub fn decode(header: &RecordHeader, payload: &[u8]) -> Result<Seal, PayloadFault> {
        if payload.len() != SEAL_BYTES {
            return Err(PayloadFault::Length { expected: SEAL_BYTES, got: payload.len() });
        }
        let rows = usize::from(u16_at(payload, 44));
        let flags = u16_at(payload, 46);
        if rows > SEAL_GROUPS_MAX {
            return Err(PayloadFault::Field("seal table length"));
        }
        if flags & !TABLE_COMPLETE != 0 || u64_at(payload, 56) != 0 {
            return Err(PayloadFault::Field("seal flags"));
        }
        let seal = Seal {
            first_lsn: Lsn(u64_at(payload, 0)),
            durable_lsn: Lsn(u64_at(payload, 8)),
            previous: TrailerHash(u64_at(payload, 16)),
            oldest_segment: SegmentId(u64_at(payload, 24)),
            batch_offset: u32_at(payload, 32),
            batch_crc: u32_at(payload, 36),
            records: u32_at(payload, 40),
            mark_sequence: u64_at(payload, 48),
            table_complete: flags & TABLE_COMPLETE != 0,
            table: payload[TABLE_AT..].chunks_exact(ROW_BYTES).take(rows).map(decode_row).collect::<Result<_, _>>()?,
        };
        if seal.durable_lsn > header.lsn || seal.first_lsn > header.lsn {
            return Err(PayloadFault::Field("seal LSN range"));
        }
        Ok(seal)
    }
}

/// `group u64 | last index u64 | last LSN u64 | last term u32 | kinds u32`, bit 31 of kinds = the group has a last position.
fn encode_row(entry: &SealEntry, row: &mut [u8]) {
    assert_eq!(entry.kinds & !kinds::ALL, 0);
    let last = entry.last.unwrap_or_default();
    let term = u32::try_from(last.term).expect("terms beyond 32 bits are refused at append");
    let bits = entry.kinds | if entry.last.is_some() { HAS_LAST } else { 0 };
    put(row, 0, &entry.group.0.to_le_bytes());
    put(row, 8, &last.index.to_le_bytes());
    put(row, 16, &entry.last_lsn.0.to_le_bytes());
    put(row, 24, &term.to_le_bytes());
    put(row, 28, &bits.to_le_bytes());
}

fn decode_row(row: &[u8]) -> Result<SealEntry, PayloadFault> {
    let bits = u32_at(row, 28);
    if bits & !(HAS_LAST | kinds::ALL) != 0 {
        return Err(PayloadFault::Field("seal row kinds"));
    }
    let last = LogPosition { term: u64::from(u32_at(row, 24)), index: u64_at(row, 8) };
    Ok(SealEntry {
        group: GroupId(u64_at(row, 0)),
        last: (bits & HAS_LAST != 0).then_some(last),
        last_lsn: Lsn(u64_at(row, 16)),
        kinds: bits & kinds::ALL,
    })
}

#[cfg(test)]
mod tests {
    use super::super::RecordKind;
    use super::*;

    #[test]
    fn every_record_kind_has_its_bit() {
        let mut seen = 0;
        for kind in (1..=8).filter_map(RecordKind::from_code) {
            assert_eq!(seen & kinds::bit(kind), 0);
            seen |= kinds::bit(kind);
        }
        assert_eq!(seen, kinds::ALL);
    }

    #[test]
    fn a_full_table_fits_the_block() {
        let entry = |n| SealEntry {
            group: GroupId(n),
            last: (n % 2 == 0).then_some(LogPosition { term: n, index: n * 3 }),
            last_lsn: Lsn(n),
            kinds: kinds::bit(RecordKind::Entry),
        };
        let seal = Seal {
            first_lsn: Lsn(5),
            durable_lsn: Lsn(4),
            table: (0..SEAL_GROUPS_MAX as u64).map(entry).collect(),
            table_complete: true,
            ..Seal::default()
        };
        let mut payload = vec![0xff; SEAL_BYTES];
        seal.encode(&mut payload);
        let header = super::super::golden_tests::header(RecordKind::Trailer, Lsn(500));
        assert_eq!(Seal::decode(&header, &payload), Ok(seal.clone()));
        let early = super::super::golden_tests::header(RecordKind::Trailer, Lsn(3));
        assert_eq!(Seal::decode(&early, &payload), Err(PayloadFault::Field("seal LSN range")));
    }
}
