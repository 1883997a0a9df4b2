//! Encoding and decoding of everything in a segment file. `FORMAT.md` is the specification; the bytes in `golden/` pin it.
//!
//! Pure functions over byte slices. Little-endian throughout. Every CRC starts from the segment's id, and a record header's
//! CRC covers the record's place, so bytes of an earlier life of the file, or of another place, never pass.

mod checkpoint;
mod crc;
mod payload;
mod record;
mod seal;
mod segment;

pub use checkpoint::Checkpoint;
pub use crc::SegmentCrc;
pub use payload::{
    decode_committed, decode_home, decode_membership, decode_purge, decode_truncate, decode_vote, encode_committed,
    encode_home, encode_membership_head, encode_purge, encode_truncate, encode_vote,
};
pub use record::{HeaderFault, RecordHeader, RecordKind, decode_header, payload_intact, record_bytes};
pub use seal::{Seal, SealEntry, TrailerHash, kinds};
pub(crate) use segment::is_part_of_magic;
pub use segment::{MAGIC, REVISION, Revision, SegmentHeader, SegmentHeaderFault};

#[cfg(test)]
mod golden_tests;

/// Why a payload whose CRC is right cannot be understood. Only a faulty writer produces one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadFault {
    /// Not the length that the kind requires.
    #[error("payload of {got} bytes where {expected} are needed")]
    Length {
        /// Needed.
        expected: usize,
        /// Found.
        got: usize,
    },
    /// A field holds what this revision never writes.
    #[error("field `{0}` holds a value that this revision never writes")]
    Field(&'static str),
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// `at` rounded up to the next block.
pub const fn block_ceil(at: usize) -> usize {
    at.next_multiple_of(crate::limits::BLOCK_BYTES)
}
