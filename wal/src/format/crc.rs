//! CRC-32 (ISO-HDLC, the one of zlib and Ethernet), seeded with the log's and the segment's identity.

use crate::bugs::{Bug, Bugs};
use crate::limits::RECORD_HEADER_BYTES;
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
    /// The four bytes whose CRC is `seed`: in front of a header's other 60 they stand for both ids.
    prefix: [u8; 4],
    bugs: Bugs,
}

/// CRC-32/ISO-HDLC's polynomial, reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// The four bytes whose CRC is `crc`. Each value has exactly one such word, found by running the shift register backwards (Stigge et
/// al., "Reversing CRC: Theory and Practice", 2006).
fn word_of(crc: u32) -> [u8; 4] {
    let mut register = !crc;
    for _ in 0..32 {
        // Only the polynomial sets the top bit in a step forwards.
        let divided = register >> 31 == 1;
        register = if divided { ((register ^ POLYNOMIAL) << 1) | 1 } else { register << 1 };
    }
    (!register).to_le_bytes()
}

impl SegmentCrc {
    /// For the segment `segment` of the log `log_id`.
    pub fn new(log_id: LogId, segment: SegmentId) -> SegmentCrc {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&log_id.0);
        hasher.update(&segment.0.to_le_bytes());
        let seed = hasher.finalize();
        SegmentCrc { log_id, segment, seed, prefix: word_of(seed), bugs: Bugs::default() }
    }

    /// The same in a log that has `bugs`.
    pub(crate) fn with_bugs(self, bugs: Bugs) -> SegmentCrc {
        SegmentCrc { bugs, ..self }
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

    /// The same as [`SegmentCrc::of`] over all but the first four bytes of a record's header, which are overwritten by the word that
    /// stands for the ids. Made for the write path: 64 bytes are whole vectors, 60 are not.
    pub fn of_header(&self, header: &mut [u8; RECORD_HEADER_BYTES]) -> u32 {
        header[..4].copy_from_slice(&self.prefix);
        crc32fast::hash(header)
    }

    /// CRC of `bytes` within the segment.
    pub fn of(&self, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(bytes);
        hasher.finalize()
    }

    /// Whether `crc` is that of `bytes`, a payload's or a batch's.
    pub fn matches(&self, bytes: &[u8], crc: u32) -> bool {
        self.bugs.has(Bug::ChecksumsSkipped) || self.of(bytes) == crc
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

    #[test]
    fn a_header_has_the_crc_of_its_bytes_after_the_first_four() {
        for segment in 0..200 {
            let crc = SegmentCrc::new(LogId([segment as u8; 16]), SegmentId(segment));
            let mut header = std::array::from_fn(|at| (at as u64 * 37 + segment) as u8);
            let expected = crc.of(&header[4..]);
            assert_eq!(crc.of_header(&mut header), expected);
            assert_eq!(crc32fast::hash(&header[..4]), crc.seed, "the word that stands for the ids");
        }
    }
}
