//! The first block of a segment file.

use super::{SegmentCrc, array_at, put, u16_at, u32_at, u64_at};
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::types::{LogId, LogNumber, SegmentId};
use gristmill_shardexec::time::WallClock;

/// First four bytes of a segment file, little-endian: on disk `32 4c 41 57`.
pub const MAGIC: u32 = 0x5741_4c32;

/// The revision that this code writes, and the only one that it reads.
pub const REVISION: Revision = Revision { major: 2, minor: 1 };

/// Reads as text in a hex dump, for whoever finds the file.
const LABEL: &[u8; 32] = b"gristmill write-ahead log file\r\n";

/// Revision of the format. A reader refuses what it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// Family: 2.
    pub major: u16,
    /// Layout within the family.
    pub minor: u16,
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Identity of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment.
    pub segment: SegmentId,
    /// The log that it belongs to.
    pub log_id: LogId,
    /// That log's number within its data directory.
    pub log: LogNumber,
    /// Size of the file, in bytes.
    pub segment_bytes: u64,
    /// When the file got this id. For people only.
    pub created: WallClock,
    /// The segment that it follows on, 0 in the log's first. So a log of which only prepared segments are left knows that it has
    /// lost the others.
    pub previous: SegmentId,
}

/// Why a block is no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderFault {
    /// Shorter than a block, or all zeros.
    #[error("no header")]
    Missing,
    /// Another program's file.
    #[error("magic number {found:08x} where a log segment has {MAGIC:08x}")]
    Magic {
        /// In the file.
        found: u32,
    },
    /// Our magic, another revision.
    #[error("revision {found}; this build reads {REVISION} only")]
    Revision {
        /// In the file.
        found: Revision,
    },
    /// Ours by magic and revision, but damaged.
    #[error("header CRC is {found:08x}, computed {computed:08x}")]
    Crc {
        /// In the file.
        found: u32,
        /// Over the block.
        computed: u32,
    },
    /// CRC right, a field is not.
    #[error("header field `{0}` holds a value that this revision never writes")]
    Field(&'static str),
}

impl SegmentHeader {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        assert!(self.segment.0 > 0, "segment ids start at 1");
        assert!(self.previous < self.segment, "segment ids rise");
        assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes));
        let mut out = [0; BLOCK_BYTES];
        put(&mut out, 0, &MAGIC.to_le_bytes());
        put(&mut out, 4, &REVISION.major.to_le_bytes());
        put(&mut out, 6, &REVISION.minor.to_le_bytes());
        put(&mut out, 12, &(BLOCK_BYTES as u32).to_le_bytes());
        put(&mut out, 16, &self.segment.0.to_le_bytes());
        put(&mut out, 24, &self.log_id.0);
        put(&mut out, 40, &self.log.0.to_le_bytes());
        put(&mut out, 48, &self.segment_bytes.to_le_bytes());
        put(&mut out, 56, &self.created.0.to_le_bytes());
        put(&mut out, 64, LABEL);
        put(&mut out, 96, &self.previous.0.to_le_bytes());
        let crc = Self::crc(&out);
        put(&mut out, 8, &crc.to_le_bytes());
        out
    }

    /// Inverse of [`SegmentHeader::encode`], over at least the first block of a file.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, SegmentHeaderFault> {
        let Some(block) = bytes.first_chunk::<BLOCK_BYTES>() else {
            return Err(SegmentHeaderFault::Missing);
        };
        if block.iter().all(|&byte| byte == 0) {
            return Err(SegmentHeaderFault::Missing);
        }
        let magic = u32_at(block, 0);
        let revision = Revision { major: u16_at(block, 4), minor: u16_at(block, 6) };
        let (found, computed) = (u32_at(block, 8), Self::crc(block));
        if found != computed && Self::is_ours_but_for_its_start(block, found) {
            return Err(SegmentHeaderFault::Crc { found, computed });
        }
        if magic != MAGIC {
            return Err(SegmentHeaderFault::Magic { found: magic });
        }
        if revision != REVISION {
            return Err(SegmentHeaderFault::Revision { found: revision });
        }
        if found != computed {
            return Err(SegmentHeaderFault::Crc { found, computed });
        }
        Self::decode_fields(block, SegmentId(u64_at(block, 16)))
    }

    /// Whether the CRC holds with our magic and revision in their place: what stands there is rot, not another program or version.
    fn is_ours_but_for_its_start(block: &[u8; BLOCK_BYTES], crc: u32) -> bool {
        let mut ours = *block;
        put(&mut ours, 0, &MAGIC.to_le_bytes());
        put(&mut ours, 4, &REVISION.major.to_le_bytes());
        put(&mut ours, 6, &REVISION.minor.to_le_bytes());
        Self::crc(&ours) == crc
    }

    fn decode_fields(block: &[u8; BLOCK_BYTES], segment: SegmentId) -> Result<SegmentHeader, SegmentHeaderFault> {
        if u32_at(block, 12) as usize != BLOCK_BYTES {
            return Err(SegmentHeaderFault::Field("block size"));
        }
        let segment_bytes = u64_at(block, 48);
        let sane = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes);
        if !sane || !segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(SegmentHeaderFault::Field("segment size"));
        }
        if block[42..48].iter().chain(&block[104..]).any(|&byte| byte != 0) {
            return Err(SegmentHeaderFault::Field("reserved"));
        }
        if segment.0 == 0 {
            return Err(SegmentHeaderFault::Field("segment id"));
        }
        let previous = SegmentId(u64_at(block, 96));
        if previous >= segment {
            return Err(SegmentHeaderFault::Field("previous segment"));
        }
        Ok(SegmentHeader {
            segment,
            log_id: LogId(array_at(block, 24)),
            log: LogNumber(u16_at(block, 40)),
            segment_bytes,
            created: WallClock(u64_at(block, 56)),
            previous,
        })
    }

    /// Over the block without the CRC field itself.
    fn crc(block: &[u8; BLOCK_BYTES]) -> u32 {
        let mut covered = [0; BLOCK_BYTES - 4];
        covered[..8].copy_from_slice(&block[..8]);
        covered[8..].copy_from_slice(&block[12..]);
        SegmentCrc::new(LogId(array_at(block, 24)), SegmentId(u64_at(block, 16))).of(&covered)
    }
}

/// Whether `found` is our magic number with some of its bytes still zero: a header that was being written when the power failed.
pub(crate) fn is_part_of_magic(found: u32) -> bool {
    found.to_le_bytes().iter().zip(MAGIC.to_le_bytes()).all(|(&byte, ours)| byte == 0 || byte == ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            segment: SegmentId(3),
            log_id: LogId([7; 16]),
            log: LogNumber(2),
            segment_bytes: 64 << 20,
            created: WallClock(1_700_000_000_000_000_000),
            previous: SegmentId(2),
        }
    }

    #[test]
    fn a_header_reads_back_and_starts_with_the_magic() {
        let block = header().encode();
        assert_eq!(block[..8], [0x32, 0x4c, 0x41, 0x57, 2, 0, 1, 0]);
        assert_eq!(SegmentHeader::decode(&block), Ok(header()));
    }

    #[test]
    fn any_flipped_bit_of_the_block_is_seen() {
        let block = header().encode();
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = block;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let fault = SegmentHeader::decode(&flipped).expect_err("a flipped bit");
            assert!(matches!(fault, SegmentHeaderFault::Crc { .. }), "bit {bit} is damage, not another file: {fault}");
        }
    }

    #[test]
    fn foreign_files_are_told_apart() {
        assert_eq!(SegmentHeader::decode(b"short"), Err(SegmentHeaderFault::Missing));
        assert_eq!(SegmentHeader::decode(&[0; BLOCK_BYTES]), Err(SegmentHeaderFault::Missing));
        assert_eq!(SegmentHeader::decode(&[b'x'; BLOCK_BYTES]), Err(SegmentHeaderFault::Magic { found: 0x7878_7878 }));
        // Version 2.0 of the family: magic, version 2 as u32, segment id as u32.
        let mut older = [0; BLOCK_BYTES];
        older[..8].copy_from_slice(&[0x32, 0x4c, 0x41, 0x57, 2, 0, 0, 0]);
        assert_eq!(
            SegmentHeader::decode(&older),
            Err(SegmentHeaderFault::Revision { found: Revision { major: 2, minor: 0 } })
        );
    }
}
