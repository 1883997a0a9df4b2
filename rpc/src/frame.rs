//! The frame: a fixed 64-byte header and a body.
//!
//! ```text
//!  0 magic u32 "GRML"   4 version u16    6 flags u16       8 body length u32
//! 12 message type u16  14 schema u16    16 shard u32      20 deadline ms u32 (relative, 0 = none)
//! 24 correlation u64   32 session u64   40 sequence u64   48 map version u64
//! 56 body CRC u32      60 header CRC u32 (of bytes 0..60)
//! ```
//!
//! All little-endian. The body begins right after the header, so it is 16-byte aligned wherever the header is.

use crate::error::ErrorCode;
use crate::ids::{SessionId, ShardId};
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};

/// `GRML` as little-endian bytes.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"GRML");
/// The protocol version of this build.
pub const PROTOCOL_VERSION: u16 = 1;

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum MessageType {
    /// [`crate::schema::Hello`]
    Hello = 1,
    /// [`crate::schema::HelloReply`]
    HelloReply = 2,
    /// [`crate::schema::Command`]
    Write = 10,
    /// [`crate::schema::WriteReply`]
    WriteReply = 11,
    /// [`crate::schema::GetRequest`]
    Get = 12,
    /// [`crate::schema::GetReply`]
    GetReply = 13,
    /// [`crate::schema::GetGrainRequest`]
    GetGrain = 14,
    /// [`crate::schema::GetGrainReply`]
    GetGrainReply = 15,
    /// [`crate::schema::ScanRequest`]
    Scan = 16,
    /// [`crate::schema::ScanReply`]
    ScanReply = 17,
    /// [`crate::schema::RecallRequest`]
    Recall = 18,
    /// [`crate::schema::RecallReply`]
    RecallReply = 19,
    /// [`crate::schema::StatusRequest`]
    Status = 20,
    /// [`crate::schema::StatusReply`]
    StatusReply = 21,
    /// [`crate::peer::PeerHello`]
    PeerHello = 30,
    /// [`crate::peer::PeerHelloReply`]
    PeerHelloReply = 31,
    /// [`crate::peer::PreVoteRequest`]
    PreVote = 32,
    /// [`crate::peer::VoteRequest`]
    Vote = 34,
    /// [`crate::peer::VoteReply`]
    VoteReply = 35,
    /// [`crate::peer::AppendRequest`]
    Append = 36,
    /// [`crate::peer::AppendReply`]
    AppendReply = 37,
    /// [`crate::peer::TransferLeaderRequest`]
    TransferLeader = 38,
    /// [`crate::peer::TransferLeaderReply`]
    TransferLeaderReply = 39,
    /// [`crate::peer::AddLearner`]
    AddLearner = 50,
    /// [`crate::peer::ChangeMembership`]
    ChangeMembership = 52,
    /// [`crate::peer::MembershipReply`]
    MembershipReply = 53,
    /// [`crate::schema::ErrorReply`]
    Error = 255,
}

impl MessageType {
    /// All message types, in the order of their numbers.
    pub const ALL: [MessageType; 27] = [
        MessageType::Hello,
        MessageType::HelloReply,
        MessageType::Write,
        MessageType::WriteReply,
        MessageType::Get,
        MessageType::GetReply,
        MessageType::GetGrain,
        MessageType::GetGrainReply,
        MessageType::Scan,
        MessageType::ScanReply,
        MessageType::Recall,
        MessageType::RecallReply,
        MessageType::Status,
        MessageType::StatusReply,
        MessageType::PeerHello,
        MessageType::PeerHelloReply,
        MessageType::PreVote,
        MessageType::Vote,
        MessageType::VoteReply,
        MessageType::Append,
        MessageType::AppendReply,
        MessageType::TransferLeader,
        MessageType::TransferLeaderReply,
        MessageType::AddLearner,
        MessageType::ChangeMembership,
        MessageType::MembershipReply,
        MessageType::Error,
    ];

    /// The type of a number from the wire; `None` where this version does not know it.
    pub fn from_wire(number: u16) -> Option<MessageType> {
        Self::ALL.into_iter().find(|message| *message as u16 == number)
    }

    /// The type that answers a request; `None` for what is no request. Any request may be answered by `Error` instead.
    pub fn reply(self) -> Option<MessageType> {
        match self {
            MessageType::Hello => Some(MessageType::HelloReply),
            MessageType::Write => Some(MessageType::WriteReply),
            MessageType::Get => Some(MessageType::GetReply),
            MessageType::GetGrain => Some(MessageType::GetGrainReply),
            MessageType::Scan => Some(MessageType::ScanReply),
            MessageType::Recall => Some(MessageType::RecallReply),
            MessageType::Status => Some(MessageType::StatusReply),
            MessageType::PeerHello => Some(MessageType::PeerHelloReply),
            MessageType::PreVote | MessageType::Vote => Some(MessageType::VoteReply),
            MessageType::Append => Some(MessageType::AppendReply),
            MessageType::TransferLeader => Some(MessageType::TransferLeaderReply),
            MessageType::AddLearner | MessageType::ChangeMembership => Some(MessageType::MembershipReply),
            MessageType::HelloReply
            | MessageType::WriteReply
            | MessageType::GetReply
            | MessageType::GetGrainReply
            | MessageType::ScanReply
            | MessageType::RecallReply
            | MessageType::StatusReply
            | MessageType::PeerHelloReply
            | MessageType::VoteReply
            | MessageType::AppendReply
            | MessageType::TransferLeaderReply
            | MessageType::MembershipReply
            | MessageType::Error => None,
        }
    }

    /// Whether this is a request that only replicas make of each other, on a connection that [`MessageType::PeerHello`]
    /// has made one between nodes.
    pub fn is_between_replicas(self) -> bool {
        matches!(self, MessageType::PreVote | MessageType::Vote | MessageType::Append | MessageType::TransferLeader)
    }
}

/// A frame header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Protocol version of the sender.
    pub version: u16,
    /// None defined yet; must be zero.
    pub flags: u16,
    /// Bytes of the body that follows.
    pub body_length: u32,
    /// A [`MessageType`] as its number: unknown ones survive decoding so that they can be answered.
    pub message_type: u16,
    /// Schema version of a command body; zero for other messages.
    pub schema: u16,
    /// The shard addressed, or [`ShardId::ANY`].
    pub shard: ShardId,
    /// The sender gives up after this many milliseconds; 0 means never.
    pub deadline_ms: u32,
    /// Chosen by the client, not 0, returned with the answer.
    pub correlation: u64,
    /// The client's session, or [`SessionId::NONE`]. In an error that names the leader: its node.
    pub session: SessionId,
    /// Grows by one with each new write of the session.
    pub sequence: u64,
    /// Version of the cluster map that the sender routed by; 0 means none.
    pub map_version: u64,
    /// CRC-32 of the body.
    pub body_crc: u32,
}

/// Why bytes are not a frame that this side takes. Three of them are final for the connection ([`FrameError::fatal`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not the magic.
    #[error(
        "not a gristmill frame: it begins with {found:#010x}, expected {FRAME_MAGIC:#010x}; is this the right port?"
    )]
    Magic {
        /// What stood there.
        found: u32,
    },
    /// The header's CRC does not match.
    #[error("frame header damaged: CRC {found:#010x}, computed {computed:#010x}")]
    HeaderCrc {
        /// What stood there.
        found: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The version is not ours.
    #[error("protocol version {found} is not supported; this side speaks {PROTOCOL_VERSION}")]
    Version {
        /// What stood there.
        found: u16,
    },
    /// Reserved flags are set.
    #[error("frame flags {found:#06x} are not defined in version {PROTOCOL_VERSION}")]
    Flags {
        /// What stood there.
        found: u16,
    },
    /// A client's frame bears the correlation that stands for the connection as a whole.
    #[error("correlation 0 is reserved; number requests from 1")]
    Correlation,
    /// The body is longer than the limit.
    #[error("frame body of {length} bytes is over the limit of {limit}; split the batch or shorten the value")]
    TooLarge {
        /// The length announced.
        length: u32,
        /// The limit in force.
        limit: u32,
    },
    /// The body's CRC does not match.
    #[error("frame body damaged: CRC {found:#010x}, computed {computed:#010x}")]
    BodyCrc {
        /// What the header said.
        found: u32,
        /// What the bytes give.
        computed: u32,
    },
}

impl FrameError {
    /// Where this frame ends and the next begins is lost, or no answer could say what it answers, so the connection must
    /// close. The other errors stand in a header whose CRC holds: the length is known, the body can be skipped and the
    /// connection goes on.
    pub fn fatal(self) -> bool {
        matches!(self, FrameError::Magic { .. } | FrameError::HeaderCrc { .. } | FrameError::Correlation)
    }

    /// The code that tells the peer.
    pub fn code(self) -> ErrorCode {
        match self {
            FrameError::Version { .. } => ErrorCode::UnsupportedVersion,
            FrameError::TooLarge { .. } => ErrorCode::TooLarge,
            FrameError::Magic { .. }
            | FrameError::HeaderCrc { .. }
            | FrameError::Flags { .. }
            | FrameError::Correlation
            | FrameError::BodyCrc { .. } => ErrorCode::BadFrame,
        }
    }
}

impl FrameHeader {
    /// A header for a body, with its length and CRC filled in.
    ///
    /// # Panics
    /// If the body is over [`FRAME_BODY_BYTES_MAX`]: callers check before they build a frame.
    pub fn for_body(message: MessageType, correlation: u64, body: &[u8]) -> FrameHeader {
        assert!(body.len() <= FRAME_BODY_BYTES_MAX as usize, "body over FRAME_BODY_BYTES_MAX");
        FrameHeader {
            version: PROTOCOL_VERSION,
            flags: 0,
            body_length: body.len() as u32,
            message_type: message as u16,
            schema: 0,
            shard: ShardId::ANY,
            deadline_ms: 0,
            correlation,
            session: SessionId::NONE,
            sequence: 0,
            map_version: 0,
            body_crc: crc32fast::hash(body),
        }
    }

    /// The header's bytes, with its CRC.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        out[8..12].copy_from_slice(&self.body_length.to_le_bytes());
        out[12..14].copy_from_slice(&self.message_type.to_le_bytes());
        out[14..16].copy_from_slice(&self.schema.to_le_bytes());
        out[16..20].copy_from_slice(&self.shard.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[24..32].copy_from_slice(&self.correlation.to_le_bytes());
        out[32..40].copy_from_slice(&self.session.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        out[48..56].copy_from_slice(&self.map_version.to_le_bytes());
        out[56..60].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and checks a header: magic, CRC, version, flags, length, in this order.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        header.check(FRAME_BODY_BYTES_MAX)?;
        Ok(header)
    }

    /// Decodes a header that is intact, whatever it says: only a wrong magic and a wrong CRC are errors. The layout
    /// is the same in every version of the protocol, so that even a foreign version can be answered and skipped.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != FRAME_MAGIC {
            return Err(FrameError::Magic { found: u32_at(0) });
        }
        let (found, computed) = (u32_at(60), crc32fast::hash(&bytes[..60]));
        if found != computed {
            return Err(FrameError::HeaderCrc { found, computed });
        }
        Ok(FrameHeader {
            version: u16_at(4),
            flags: u16_at(6),
            body_length: u32_at(8),
            message_type: u16_at(12),
            schema: u16_at(14),
            shard: ShardId(u32_at(16)),
            deadline_ms: u32_at(20),
            correlation: u64_at(24),
            session: SessionId(u64_at(32)),
            sequence: u64_at(40),
            map_version: u64_at(48),
            body_crc: u32_at(56),
        })
    }

    /// Checks version, flags and length against what this side takes.
    pub fn check(&self, body_bytes_max: u32) -> Result<(), FrameError> {
        if self.version != PROTOCOL_VERSION {
            return Err(FrameError::Version { found: self.version });
        }
        if self.flags != 0 {
            return Err(FrameError::Flags { found: self.flags });
        }
        if self.body_length > body_bytes_max {
            return Err(FrameError::TooLarge { length: self.body_length, limit: body_bytes_max });
        }
        Ok(())
    }

    /// Checks a body against this header.
    pub fn check_body(&self, body: &[u8]) -> Result<(), FrameError> {
        assert_eq!(body.len(), self.body_length as usize, "body and header belong together");
        let computed = crc32fast::hash(body);
        if computed == self.body_crc { Ok(()) } else { Err(FrameError::BodyCrc { found: self.body_crc, computed }) }
    }
}
