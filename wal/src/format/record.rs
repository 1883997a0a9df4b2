//! Record headers: 64 bytes, the same for every kind, trailers and marks included.
//!
//! ```text
//!  0 header CRC │ 4 payload CRC │ 8 payload length │ 12 kind │ 13 entry kind │ 14 flags = 0 │ 16 segment │ 24 offset
//! 28 group back │ 32 LSN        │ 40 group         │ 48 index                │ 56 token     │ 64 payload … pad to 16
//! ```

use super::{SegmentCrc, put, u16_at, u32_at, u64_at};
use crate::limits::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::token::FencingToken;
use crate::types::{GroupId, Lsn, SegmentId};

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// One entry of a group's log; the payload is opaque to the log.
    Entry = 1,
    /// The group's vote.
    Vote = 2,
    /// Second copy of the group's latest membership.
    Membership = 3,
    /// The group's log ends after a position.
    TruncateAfter = 4,
    /// The group's log starts after a position.
    Purge = 5,
    /// The group's commit position, a hint.
    Committed = 6,
    /// The group lives in this log, or left it.
    ShardHome = 7,
    /// Everything about a group but its entries, at the head of a segment.
    Checkpoint = 8,
    /// Closes a batch; a block of its own.
    Trailer = 0xe0,
    /// Proves what was durable when no batch followed; in a mark slot.
    Mark = 0xe1,
}

impl RecordKind {
    /// The kind whose code is `code`.
    pub const fn from_code(code: u8) -> Option<RecordKind> {
        Some(match code {
            1 => RecordKind::Entry,
            2 => RecordKind::Vote,
            3 => RecordKind::Membership,
            4 => RecordKind::TruncateAfter,
            5 => RecordKind::Purge,
            6 => RecordKind::Committed,
            7 => RecordKind::ShardHome,
            8 => RecordKind::Checkpoint,
            0xe0 => RecordKind::Trailer,
            0xe1 => RecordKind::Mark,
            _ => return None,
        })
    }

    /// The name that tools print.
    pub const fn name(self) -> &'static str {
        match self {
            RecordKind::Entry => "entry",
            RecordKind::Vote => "vote",
            RecordKind::Membership => "membership",
            RecordKind::TruncateAfter => "truncate-after",
            RecordKind::Purge => "purge",
            RecordKind::Committed => "committed",
            RecordKind::ShardHome => "shard-home",
            RecordKind::Checkpoint => "checkpoint",
            RecordKind::Trailer => "trailer",
            RecordKind::Mark => "mark",
        }
    }
}

/// A record's header, the two CRCs aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the payload is.
    pub kind: RecordKind,
    /// The writer's own code for an entry's payload; 0 for other kinds.
    pub entry_kind: u8,
    /// Length of the payload in bytes, without padding.
    pub payload_bytes: u32,
    /// CRC of the payload and its padding.
    pub payload_crc: u32,
    /// Segment that the record belongs to.
    pub segment: SegmentId,
    /// Byte offset of this header in the segment.
    pub offset: u32,
    /// How many LSNs back the group's previous record is: 0 = it has none, [`u32::MAX`] = as far as that or farther. A reader
    /// that missed a damaged record sees here whether it was this group's.
    pub group_back: u32,
    /// The record's number. A trailer or mark repeats the highest that it covers.
    pub lsn: Lsn,
    /// Whose record; 0 in trailers and marks.
    pub group: GroupId,
    /// Log index that the record is about.
    pub index: u64,
    /// Origin token of an entry; otherwise `term << 32` of the position or vote that the record is about, or 0.
    pub token: FencingToken,
}

/// Why 64 bytes are no header for their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Nothing was ever written here, or the write is lost.
    #[error("zeros where a record should start")]
    Zero,
    /// A whole header, but of another place: an earlier life of the file (same offset, older segment) or a misdirected write.
    #[error("a record that belongs to {segment} offset {offset}")]
    Elsewhere {
        /// Segment that it names.
        segment: SegmentId,
        /// Offset that it names.
        offset: u32,
    },
    /// Names this place, but the CRC does not match.
    #[error("header CRC is {found:08x}, computed {computed:08x}")]
    Crc {
        /// In the header.
        found: u32,
        /// Over the header.
        computed: u32,
    },
    /// Neither names this place nor matches its CRC.
    #[error("bytes that are no record header")]
    Garbage,
    /// CRC and place are right, a field is not: from a later revision, or a faulty writer.
    #[error("field `{0}` holds a value that this revision never writes")]
    Field(&'static str),
}

impl RecordHeader {
    /// Writes the header, its CRC included, into the first 64 bytes of `out`.
    pub fn encode(&self, crc: &SegmentCrc, out: &mut [u8]) {
        assert_eq!(self.segment, crc.segment(), "a record is sealed for the segment that it lies in");
        assert_eq!(self.offset as usize % RECORD_ALIGN, 0, "records are aligned");
        let out: &mut [u8; RECORD_HEADER_BYTES] = out.first_chunk_mut().expect("room for a header");
        put(out, 4, &self.payload_crc.to_le_bytes());
        put(out, 8, &self.payload_bytes.to_le_bytes());
        out[12] = self.kind as u8;
        out[13] = self.entry_kind;
        put(out, 14, &[0, 0]);
        put(out, 16, &self.segment.0.to_le_bytes());
        put(out, 24, &self.offset.to_le_bytes());
        put(out, 28, &self.group_back.to_le_bytes());
        put(out, 32, &self.lsn.0.to_le_bytes());
        put(out, 40, &self.group.0.to_le_bytes());
        put(out, 48, &self.index.to_le_bytes());
        put(out, 56, &self.token.raw().to_le_bytes());
        let header_crc = crc.of_header(out);
        put(out, 0, &header_crc.to_le_bytes());
    }

    /// Bytes from this header to the end of the payload's padding.
    pub fn record_bytes(&self) -> usize {
        record_bytes(self.payload_bytes as usize)
    }
}

/// Size of a record with a payload of `payload_bytes`, padding included, in bytes.
pub const fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(RECORD_ALIGN)
}

/// Reads the header at the start of `bytes`, which come from `offset` of the segment that `crc` is for and reach at most to its end.
///
/// # Panics
/// When fewer than 64 bytes are given.
pub fn decode_header(crc: &SegmentCrc, bytes: &[u8], offset: usize) -> Result<RecordHeader, HeaderFault> {
    let raw = &bytes[..RECORD_HEADER_BYTES];
    let segment = SegmentId(u64_at(raw, 16));
    let named_offset = u32_at(raw, 24);
    let found = u32_at(raw, 0);
    if segment != crc.segment() || named_offset as usize != offset {
        return Err(elsewhere(crc, raw, segment, named_offset));
    }
    let computed = crc.of(&raw[4..]);
    if found != computed {
        return Err(HeaderFault::Crc { found, computed });
    }
    let kind = RecordKind::from_code(raw[12]).ok_or(HeaderFault::Field("kind"))?;
    if kind != RecordKind::Entry && raw[13] != 0 {
        return Err(HeaderFault::Field("entry kind"));
    }
    if u16_at(raw, 14) != 0 {
        return Err(HeaderFault::Field("flags"));
    }
    let header = RecordHeader {
        kind,
        entry_kind: raw[13],
        payload_bytes: u32_at(raw, 8),
        payload_crc: u32_at(raw, 4),
        segment,
        offset: named_offset,
        group_back: u32_at(raw, 28),
        lsn: Lsn(u64_at(raw, 32)),
        group: GroupId(u64_at(raw, 40)),
        index: u64_at(raw, 48),
        token: FencingToken::from_raw(u64_at(raw, 56)),
    };
    if header.record_bytes() > bytes.len() {
        return Err(HeaderFault::Field("payload length"));
    }
    Ok(header)
}

fn elsewhere(crc: &SegmentCrc, raw: &[u8], segment: SegmentId, offset: u32) -> HeaderFault {
    if raw.iter().all(|&byte| byte == 0) {
        HeaderFault::Zero
    } else if crc.sibling(segment).of(&raw[4..]) == u32_at(raw, 0) {
        HeaderFault::Elsewhere { segment, offset }
    } else {
        HeaderFault::Garbage
    }
}

/// Whether payload and padding match their CRC. `bytes` start with the header.
pub fn payload_intact(crc: &SegmentCrc, bytes: &[u8], header: &RecordHeader) -> bool {
    crc.matches(&bytes[RECORD_HEADER_BYTES..header.record_bytes()], header.payload_crc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogId;

    fn crc_of(segment: SegmentId) -> SegmentCrc {
        SegmentCrc::new(LogId([9; 16]), segment)
    }

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Entry,
            entry_kind: 3,
            payload_bytes: 20,
            payload_crc: 0x1234_5678,
            segment: SegmentId(5),
            offset: 64,
            group_back: 9,
            lsn: Lsn(77),
            group: GroupId(4),
            index: 12,
            token: FencingToken::new(2, 6),
        }
    }

    fn encoded() -> Vec<u8> {
        let mut bytes = vec![0; 256];
        header().encode(&crc_of(SegmentId(5)), &mut bytes[64..]);
        bytes
    }

    #[test]
    fn a_header_reads_back_where_it_was_written() {
        let crc = crc_of(SegmentId(5));
        assert_eq!(decode_header(&crc, &encoded()[64..], 64), Ok(header()));
        assert_eq!(header().record_bytes(), 64 + 32);
        assert_eq!(decode_header(&crc, &encoded()[128..], 128), Err(HeaderFault::Zero));
    }

    #[test]
    fn a_misdirected_or_stale_header_names_where_it_belongs() {
        let elsewhere = Err(HeaderFault::Elsewhere { segment: SegmentId(5), offset: 64 });
        assert_eq!(decode_header(&crc_of(SegmentId(6)), &encoded()[64..], 64), elsewhere);
        let mut moved = vec![0; 256];
        moved[..64].copy_from_slice(&encoded()[64..128]);
        assert_eq!(decode_header(&crc_of(SegmentId(5)), &moved, 0), elsewhere);
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_seen() {
        let crc = crc_of(SegmentId(5));
        for bit in 64 * 8..128 * 8 {
            let mut bytes = encoded();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let fault = decode_header(&crc, &bytes[64..], 64).expect_err("detected");
            assert!(matches!(fault, HeaderFault::Crc { .. } | HeaderFault::Garbage), "bit {bit}: {fault}");
        }
    }

    #[test]
    fn a_length_past_the_segment_is_refused() {
        let crc = crc_of(SegmentId(5));
        let mut bytes = encoded();
        RecordHeader { payload_bytes: 1 << 20, ..header() }.encode(&crc, &mut bytes[64..]);
        assert_eq!(decode_header(&crc, &bytes[64..], 64), Err(HeaderFault::Field("payload length")));
    }

    #[test]
    fn codes_and_kinds_agree() {
        for code in 0..=u8::MAX {
            if let Some(kind) = RecordKind::from_code(code) {
                assert_eq!(kind as u8, code);
            }
        }
    }
}
