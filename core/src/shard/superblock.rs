//! The superblock: what a data directory is and what never changes about it.
//!
//! ```text
//!  0 magic "GRISTMIL"   8 revision u32   12 shards u32   16 logs u16   18 zero u16   20 ring vnodes u32
//! 24 store id 16 bytes  40 created, ns since 1970 u64    48 cluster id 16 bytes
//! 64 node u64           72 incarnation u64               80 zero …    508 CRC-32 of bytes 0..508
//! ```
//!
//! ```text
//! A node that runs alone has zeros from 48 to 80.
//! ```
//!
//! Little-endian, one block of [`SUPERBLOCK_BYTES`] in the file `superblock`. Written once, to a temporary file that is
//! synced and renamed, so a crash leaves either none or a whole one.

use std::fmt;

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 512;
/// Name of its file in the data directory.
pub const SUPERBLOCK_FILE: &str = "superblock";
/// Most shards of one data directory.
pub const SHARDS_MAX: u32 = gristmill_rpc::limits::SHARDS_MAX;
/// Most logs of one data directory.
pub const LOGS_MAX: u16 = 999;

const MAGIC: [u8; 8] = *b"GRISTMIL";
const REVISION: u32 = 1;
const CRC_AT: usize = SUPERBLOCK_BYTES - 4;

/// The decoded superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the store, random.
    pub store: [u8; 16],
    /// Number of shards.
    pub shards: u32,
    /// Number of logs.
    pub logs: u16,
    /// Virtual nodes per shard on the ring.
    pub ring_vnodes: u32,
    /// When it was created, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Which replicas its logs are of; `None` where the node runs alone.
    pub member: Option<Member>,
}

/// One life of one node of one cluster: whose votes and entries the logs hold. Under another name they would count twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Identity of the cluster.
    pub cluster: [u8; 16],
    /// The node; from 1.
    pub node: u64,
    /// Which life of it; from 1.
    pub incarnation: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} (incarnation {}) of cluster ", self.node, self.incarnation)?;
        self.cluster.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why bytes are not a superblock that this build can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// Too short or too long.
    #[error("it has {found} bytes, a superblock has {SUPERBLOCK_BYTES}")]
    Length {
        /// Bytes found.
        found: usize,
    },
    /// Another program's file.
    #[error("it does not begin with the magic GRISTMIL: another program's file")]
    Magic,
    /// The CRC does not match.
    #[error("it is damaged: CRC {found:#010x}, computed {computed:#010x}")]
    Crc {
        /// What stood there.
        found: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// Written by another revision.
    #[error("it has revision {found}; this build reads revision {REVISION}")]
    Revision {
        /// What stood there.
        found: u32,
    },
    /// A number in it makes no sense although the CRC holds.
    #[error("its {field} of {found} is not possible")]
    Field {
        /// Which number.
        field: &'static str,
        /// What stood there.
        found: u64,
    },
}

impl Superblock {
    /// The superblock's bytes.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut out = [0; SUPERBLOCK_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&REVISION.to_le_bytes());
        out[12..16].copy_from_slice(&self.shards.to_le_bytes());
        out[16..18].copy_from_slice(&self.logs.to_le_bytes());
        out[20..24].copy_from_slice(&self.ring_vnodes.to_le_bytes());
        out[24..40].copy_from_slice(&self.store);
        out[40..48].copy_from_slice(&self.created_ns.to_le_bytes());
        if let Some(member) = &self.member {
            out[48..64].copy_from_slice(&member.cluster);
            out[64..72].copy_from_slice(&member.node.to_le_bytes());
            out[72..80].copy_from_slice(&member.incarnation.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and checks a superblock.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let bytes: &[u8; SUPERBLOCK_BYTES] =
            bytes.try_into().map_err(|_| SuperblockError::Length { found: bytes.len() })?;
        if bytes[0..8] != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let (found, computed) = (u32_at(bytes, CRC_AT), crc32fast::hash(&bytes[..CRC_AT]));
        if found != computed {
            return Err(SuperblockError::Crc { found, computed });
        }
        if u32_at(bytes, 8) != REVISION {
            return Err(SuperblockError::Revision { found: u32_at(bytes, 8) });
        }
        let superblock = Superblock {
            store: std::array::from_fn(|at| bytes[24 + at]),
            shards: u32_at(bytes, 12),
            logs: u16::from_le_bytes([bytes[16], bytes[17]]),
            ring_vnodes: u32_at(bytes, 20),
            created_ns: u64_at(bytes, 40),
            member: bytes[48..80].iter().any(|byte| *byte != 0).then(|| Member {
                cluster: std::array::from_fn(|at| bytes[48 + at]),
                node: u64_at(bytes, 64),
                incarnation: u64_at(bytes, 72),
            }),
        };
        superblock.check()
    }

    /// Refuses numbers that no creation could have written.
    fn check(self) -> Result<Superblock, SuperblockError> {
        let impossible = |field, found| Err(SuperblockError::Field { field, found });
        if self.shards == 0 || self.shards > SHARDS_MAX {
            return impossible("number of shards", u64::from(self.shards));
        }
        if self.logs == 0 || self.logs > LOGS_MAX || u32::from(self.logs) > self.shards {
            return impossible("number of logs", u64::from(self.logs));
        }
        if self.ring_vnodes == 0 || self.ring_vnodes > gristmill_rpc::limits::RING_VNODES_MAX {
            return impossible("number of virtual nodes", u64::from(self.ring_vnodes));
        }
        if let Some(member) = self.member {
            if member.node == 0 {
                return impossible("node id", 0);
            }
            if member.incarnation == 0 {
                return impossible("incarnation", 0);
            }
        }
        Ok(self)
    }
}

fn u32_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Superblock {
        Superblock {
            store: *b"0123456789abcdef",
            shards: 4,
            logs: 2,
            ring_vnodes: 150,
            created_ns: 0x1122_3344_5566_7788,
            member: None,
        }
    }

    fn of_a_cluster() -> Superblock {
        Superblock { member: Some(Member { cluster: *b"a cluster's name", node: 3, incarnation: 2 }), ..example() }
    }

    #[test]
    fn golden_bytes() {
        let bytes = example().encode();
        let mut expected = vec![0; SUPERBLOCK_BYTES];
        expected[..48].copy_from_slice(
            b"GRISTMIL\x01\0\0\0\x04\0\0\0\x02\0\0\0\x96\0\0\x000123456789abcdef\x88\x77\x66\x55\x44\x33\x22\x11",
        );
        let crc = crc32fast::hash(&expected[..508]);
        expected[508..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes.as_slice(), expected);
        assert_eq!(Superblock::decode(&bytes), Ok(example()));
        let bytes = of_a_cluster().encode();
        assert_eq!(&bytes[48..80], b"a cluster's name\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(Superblock::decode(&bytes), Ok(of_a_cluster()));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = example().encode();
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut garbled = bytes;
            garbled[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&garbled).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn impossible_numbers_are_refused_even_with_a_good_crc() {
        for broken in [
            Superblock { shards: 0, ..example() },
            Superblock { logs: 0, ..example() },
            Superblock { logs: 5, ..example() },
            Superblock { ring_vnodes: 0, ..example() },
            Superblock { member: Some(Member { cluster: [1; 16], node: 0, incarnation: 1 }), ..example() },
            Superblock { member: Some(Member { cluster: [1; 16], node: 1, incarnation: 0 }), ..example() },
            Superblock { shards: SHARDS_MAX + 1, ..example() },
        ] {
            assert!(matches!(Superblock::decode(&broken.encode()), Err(SuperblockError::Field { .. })), "{broken:?}");
        }
        assert_eq!(Superblock::decode(&[0; 511]), Err(SuperblockError::Length { found: 511 }));
        assert_eq!(Superblock::decode(&[0; 512]), Err(SuperblockError::Magic));
    }
}
