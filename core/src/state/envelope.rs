//! The entry envelope: what the leader puts in front of a command's untouched body.
//!
//! ```text
//!        byte 0                                                    96                    96 + body
//!  WAL record: | EntryHeader, written by the leader at append       | body, as archived by |
//!              | (position, token, time, session, how to read body) | the client           |
//! ```
//!
//! Layout, all integers little-endian. The length is a multiple of 16, so a body right behind it stays 16-byte aligned.
//!
//! ```text
//!  0 layout version u8 = 1   1 codec u8          2 flags u16          4 command schema u16   6 reserved u16 = 0
//!  8 shard u32              12 HLC logical u32  16 term u64          24 index u64
//! 32 fencing token u64      40 HLC physical ms u64                   48 session u64         56 sequence u64
//! 64 key id u64             72 nonce 24 bytes   96 end
//! ```
//!
//! The WAL's record header carries the CRC that covers these bytes, so there is none in here. Fields of later features
//! (key id, nonce, the sealed flag) are fixed from the first day, because entries outlive the binary that wrote them.

use super::hlc::Hlc;
use gristmill_rpc::ids::{SessionId, ShardId};

/// Bytes of an encoded [`EntryHeader`].
pub const ENTRY_HEADER_BYTES: usize = 96;
/// The layout that this build writes, and the only one that it reads.
pub const ENTRY_LAYOUT: u8 = 1;
/// Bytes of the nonce of a sealed body.
pub const NONCE_BYTES: usize = 24;

const _: () = assert!(ENTRY_HEADER_BYTES.is_multiple_of(16));

/// How the body's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// There is no body.
    Empty = 0,
    /// An rkyv archive of `gristmill_rpc::schema::Command`, in clear.
    Rkyv = 1,
    /// The same archive, sealed under the key that the header names.
    RkyvSealed = 2,
}

impl Codec {
    fn from_wire(number: u8) -> Option<Codec> {
        [Codec::Empty, Codec::Rkyv, Codec::RkyvSealed].into_iter().find(|codec| *codec as u8 == number)
    }
}

/// Flags of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryFlags(u16);

impl EntryFlags {
    /// No flags.
    pub const NONE: EntryFlags = EntryFlags(0);
    /// The entry carries no command: it removes what has expired by its timestamp.
    pub const SWEEP: EntryFlags = EntryFlags(1);

    const KNOWN: u16 = Self::SWEEP.0;

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: EntryFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What the leader says about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// The shard whose log this is.
    pub shard: ShardId,
    /// Term of the entry's log id.
    pub term: u64,
    /// Index of the entry's log id: the version of all that it writes.
    pub index: u64,
    /// Origin fencing token, packed: term in the high 32 bits, sequence in the low 32.
    pub token: u64,
    /// The leader's hybrid logical clock when it proposed the entry.
    pub hlc: Hlc,
    /// The client's session, or [`SessionId::NONE`].
    pub session: SessionId,
    /// The client's sequence within the session.
    pub sequence: u64,
    /// Schema version of the command.
    pub schema: u16,
    /// How the body is encoded.
    pub codec: Codec,
    /// The content key of a sealed body; 0 in clear.
    pub key_id: u64,
    /// The nonce of a sealed body; zeroes in clear.
    pub nonce: [u8; NONCE_BYTES],
    /// What else is to be known.
    pub flags: EntryFlags,
}

/// Why bytes are not an entry header. Each is fatal for the replica: it cannot apply what it cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Fewer bytes than a header has.
    #[error("log entry of {length} bytes is shorter than its {ENTRY_HEADER_BYTES}-byte header; the log is damaged")]
    Truncated {
        /// The bytes there were.
        length: usize,
    },
    /// A layout that this build does not read.
    #[error("log entry has envelope layout {found}, this build reads {ENTRY_LAYOUT}; run the version that wrote it")]
    Layout {
        /// What stood there.
        found: u8,
    },
    /// A codec that this build does not know.
    #[error("log entry has body codec {found}, unknown to this build; run the version that wrote it")]
    Codec {
        /// What stood there.
        found: u8,
    },
    /// Flags that this build does not know.
    #[error("log entry has flags {found:#06x}, unknown to this build; run the version that wrote it")]
    Flags {
        /// What stood there.
        found: u16,
    },
    /// A reserved field is not zero.
    #[error("log entry has {found:#06x} in a reserved field; run the version that wrote it")]
    Reserved {
        /// What stood there.
        found: u16,
    },
}

impl EntryHeader {
    /// Of an entry without a body that removes what has expired by `hlc`. Where it stands is for the leader to fill in.
    pub fn sweep(hlc: Hlc) -> EntryHeader {
        EntryHeader {
            shard: ShardId(0),
            term: 0,
            index: 0,
            token: 0,
            hlc,
            session: SessionId::NONE,
            sequence: 0,
            schema: 0,
            codec: Codec::Empty,
            key_id: 0,
            nonce: [0; NONCE_BYTES],
            flags: EntryFlags::SWEEP,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; ENTRY_HEADER_BYTES] {
        let mut out = [0; ENTRY_HEADER_BYTES];
        out[0] = ENTRY_LAYOUT;
        out[1] = self.codec as u8;
        out[2..4].copy_from_slice(&self.flags.0.to_le_bytes());
        out[4..6].copy_from_slice(&self.schema.to_le_bytes());
        out[8..12].copy_from_slice(&self.shard.0.to_le_bytes());
        out[12..16].copy_from_slice(&self.hlc.logical.to_le_bytes());
        out[16..24].copy_from_slice(&self.term.to_le_bytes());
        out[24..32].copy_from_slice(&self.index.to_le_bytes());
        out[32..40].copy_from_slice(&self.token.to_le_bytes());
        out[40..48].copy_from_slice(&self.hlc.physical_ms.to_le_bytes());
        out[48..56].copy_from_slice(&self.session.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.sequence.to_le_bytes());
        out[64..72].copy_from_slice(&self.key_id.to_le_bytes());
        out[72..96].copy_from_slice(&self.nonce);
        out
    }

    /// Decodes the header at the front of an entry; the body is what follows it.
    pub fn decode(entry: &[u8]) -> Result<(EntryHeader, &[u8]), EnvelopeError> {
        let Some((bytes, body)) = entry.split_first_chunk::<ENTRY_HEADER_BYTES>() else {
            return Err(EnvelopeError::Truncated { length: entry.len() });
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[0] != ENTRY_LAYOUT {
            return Err(EnvelopeError::Layout { found: bytes[0] });
        }
        let codec = Codec::from_wire(bytes[1]).ok_or(EnvelopeError::Codec { found: bytes[1] })?;
        if u16_at(2) & !EntryFlags::KNOWN != 0 {
            return Err(EnvelopeError::Flags { found: u16_at(2) });
        }
        if u16_at(6) != 0 {
            return Err(EnvelopeError::Reserved { found: u16_at(6) });
        }
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&bytes[72..96]);
        let header = EntryHeader {
            shard: ShardId(u32_at(8)),
            term: u64_at(16),
            index: u64_at(24),
            token: u64_at(32),
            hlc: Hlc { physical_ms: u64_at(40), logical: u32_at(12) },
            session: SessionId(u64_at(48)),
            sequence: u64_at(56),
            schema: u16_at(4),
            codec,
            key_id: u64_at(64),
            nonce,
            flags: EntryFlags(u16_at(2)),
        };
        Ok((header, body))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use proptest::prelude::*;

    fn sample() -> EntryHeader {
        EntryHeader {
            shard: ShardId(0x0403_0201),
            term: 7,
            index: 0x1122_3344_5566_7788,
            token: 7 << 32 | 9,
            hlc: Hlc { physical_ms: 1_700_000_000_123, logical: 5 },
            session: SessionId(0xa1a2_a3a4_a5a6_a7a8),
            sequence: 42,
            schema: 1,
            codec: Codec::Rkyv,
            key_id: 0xb1b2,
            nonce: core::array::from_fn(|i| i as u8),
            flags: EntryFlags::SWEEP,
        }
    }

    /// Entries on disk outlive the code: a changed byte here is a changed format, and needs a new layout version.
    #[test]
    fn bytes_are_golden() {
        let golden = concat!(
            "01010100",
            "01000000",
            "01020304",
            "05000000",
            "0700000000000000",
            "8877665544332211",
            "0900000007000000",
            "7b68e5cf8b010000",
            "a8a7a6a5a4a3a2a1",
            "2a00000000000000",
            "b2b1000000000000",
            "000102030405060708090a0b0c0d0e0f1011121314151617",
        );
        assert_eq!(hex(&sample().encode()), golden);
    }

    #[test]
    fn foreign_bytes_are_refused_by_name() {
        let good = sample().encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            EntryHeader::decode(&bytes).expect_err("must be refused")
        };
        assert_eq!(with(0, 2), EnvelopeError::Layout { found: 2 });
        assert_eq!(with(1, 9), EnvelopeError::Codec { found: 9 });
        assert_eq!(with(3, 0x80), EnvelopeError::Flags { found: 0x8001 });
        assert_eq!(with(6, 1), EnvelopeError::Reserved { found: 1 });
        assert_eq!(EntryHeader::decode(&good[..95]), Err(EnvelopeError::Truncated { length: 95 }));
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_encode_took(
            shard: u32, term: u64, index: u64, token: u64, physical_ms: u64, logical: u32,
            session: u64, sequence: u64, schema: u16, key_id: u64, nonce: [u8; NONCE_BYTES],
            codec in prop_oneof![Just(Codec::Empty), Just(Codec::Rkyv), Just(Codec::RkyvSealed)],
            sweep: bool, body: Vec<u8>,
        ) {
            let header = EntryHeader {
                shard: ShardId(shard), term, index, token, hlc: Hlc { physical_ms, logical },
                session: SessionId(session), sequence, schema, codec, key_id, nonce,
                flags: if sweep { EntryFlags::SWEEP } else { EntryFlags::NONE },
            };
            let mut entry = header.encode().to_vec();
            entry.extend_from_slice(&body);
            prop_assert_eq!(EntryHeader::decode(&entry), Ok((header, body.as_slice())));
        }
    }
}
