//! CRC-32 (ISO-HDLC, the one of zlib and Ethernet), seeded with a segment's id.

use crate::types::SegmentId;

/// The CRC of one segment: that of the segment's id (8 bytes) followed by the bytes in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentCrc {
    segment: SegmentId,
    seed: u32,
}

impl SegmentCrc {
    /// For the segment `id`.
    pub fn new(id: SegmentId) -> SegmentCrc {
        SegmentCrc { segment: id, seed: crc32fast::hash(&id.0.to_le_bytes()) }
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
    fn the_seed_is_the_id_in_front_of_the_bytes() {
        let crc = SegmentCrc::new(SegmentId(0x0102_0304_0506_0708));
        assert_eq!(crc.of(b"abc"), crc32fast::hash(&[8, 7, 6, 5, 4, 3, 2, 1, b'a', b'b', b'c']));
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926, "the check value of CRC-32/ISO-HDLC");
        assert_ne!(crc.of(b"abc"), SegmentCrc::new(SegmentId(9)).of(b"abc"));
    }
}
