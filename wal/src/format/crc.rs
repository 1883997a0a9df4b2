//! CRC-32 (ISO-HDLC, the one of zlib and Ethernet), seeded with the log's and the segment's identity.

use crate::types::{LogId, SegmentId};

/// The CRC of one segment: that of the log's id (16 bytes), the segment's id (8 bytes) and then the bytes in question.
///
/// The segment's id keeps bytes of an earlier life of the file apart, the log's id those of other logs; and as that one is random, a
/// client cannot make a payload that passes for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentCrc {
    log_id: LogId,
    segment: SegmentId,
    seed: u32,
}

impl SegmentCrc {
    /// For the segment `segment` of the log `log_id`.
    pub fn new(log_id: LogId, segment: SegmentId) -> SegmentCrc {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&log_id.0);
        hasher.update(&segment.0.to_le_bytes());
        SegmentCrc { log_id, segment, seed: hasher.finalize() }
    }

    /// For another segment of the same log.
    #[must_use]
    pub fn sibling(&self, segment: SegmentId) -> SegmentCrc {
        SegmentCrc::new(self.log_id, segment)
    }

    /// Whose CRC it is.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// CRC of `bytes` within the segment.
    pub fn of(&self, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(bytes);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_both_ids_in_front_of_the_bytes() {
        let log_id = LogId(*b"0123456789abcdef");
        let crc = SegmentCrc::new(log_id, SegmentId(0x0102_0304_0506_0708));
        let whole = b"0123456789abcdef\x08\x07\x06\x05\x04\x03\x02\x01abc";
        assert_eq!(crc.of(b"abc"), crc32fast::hash(whole));
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926, "the check value of CRC-32/ISO-HDLC");
        assert_ne!(crc.of(b"abc"), crc.sibling(SegmentId(9)).of(b"abc"));
        assert_ne!(crc.of(b"abc"), SegmentCrc::new(LogId::default(), crc.segment()).of(b"abc"));
    }
}
