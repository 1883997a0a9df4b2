//! Error codes of the protocol: what a program can decide by; and [`Rejection`], an error on its way to the client.

use crate::limits::ERROR_MESSAGE_BYTES_MAX;
use crate::schema::ErrorReply;

/// Why a request failed. The number is the wire format and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The frame is not of this protocol, or its header or body is damaged. Where the header is damaged, the
    /// connection is closed, because the frame's end is lost.
    BadFrame = 1,
    /// The peer speaks no protocol version that the server speaks.
    UnsupportedVersion = 2,
    /// The body passed its CRC but is not a valid archive of its message type.
    BadBody = 3,
    /// A value is over its documented limit.
    TooLarge = 4,
    /// A field holds what it must not: an empty key, a NaN, no leg in a recall.
    InvalidArgument = 5,
    /// The vector's dimension is not the namespace's.
    WrongDimension = 6,
    /// Nothing was ever written to this namespace.
    UnknownNamespace = 7,
    /// The operations of one command route to different shards (EXDEV).
    CrossShard = 8,
    /// The message type is unknown or not allowed here.
    UnknownMessage = 9,
    /// The command schema or codec is not supported by this store.
    UnsupportedSchema = 10,
    /// The sequence is older than the session's window of remembered answers.
    SequenceTooOld = 11,
    /// A message between nodes on a connection that has not introduced itself as one, or for a node that is not part of
    /// that cluster.
    NotPeer = 12,
    /// The message is for another life of the replica, or for one that is not here.
    WrongReplica = 13,
    /// The shard is replaying its log; ask again.
    Recovering = 20,
    /// A queue is full; wait as told and ask again.
    Overloaded = 21,
    /// The deadline passed. A write may or may not have happened; retry it with the same session and sequence.
    DeadlineExceeded = 22,
    /// This replica does not lead the shard; ask the leader.
    NotLeader = 23,
    /// The shard is not here.
    WrongShard = 24,
    /// The disk is full; writes resume by themselves when there is room. Reads go on.
    DiskFull = 25,
    /// The server is shutting down; ask again after it is back.
    ShuttingDown = 26,
    /// Another change of the membership is under way, or the leader is too new to make one; ask again.
    MembershipBusy = 27,
    /// The shard refuses to serve because its log is damaged; the server's log and `status` say where.
    Quarantined = 40,
    /// The log reported a write error; the shard has stopped. The write may or may not be durable.
    LogFailed = 41,
    /// A defect of the server.
    Internal = 42,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [ErrorCode; 24] = [
        ErrorCode::BadFrame,
        ErrorCode::UnsupportedVersion,
        ErrorCode::BadBody,
        ErrorCode::TooLarge,
        ErrorCode::InvalidArgument,
        ErrorCode::WrongDimension,
        ErrorCode::UnknownNamespace,
        ErrorCode::CrossShard,
        ErrorCode::UnknownMessage,
        ErrorCode::UnsupportedSchema,
        ErrorCode::SequenceTooOld,
        ErrorCode::NotPeer,
        ErrorCode::WrongReplica,
        ErrorCode::Recovering,
        ErrorCode::Overloaded,
        ErrorCode::DeadlineExceeded,
        ErrorCode::NotLeader,
        ErrorCode::WrongShard,
        ErrorCode::DiskFull,
        ErrorCode::ShuttingDown,
        ErrorCode::MembershipBusy,
        ErrorCode::Quarantined,
        ErrorCode::LogFailed,
        ErrorCode::Internal,
    ];

    /// The code of a number from the wire; `None` where this version does not know it.
    pub fn from_wire(number: u16) -> Option<ErrorCode> {
        Self::ALL.into_iter().find(|code| *code as u16 == number)
    }

    /// Whether the same request may succeed later, unchanged.
    pub fn retriable(self) -> bool {
        matches!(
            self,
            ErrorCode::Recovering
                | ErrorCode::Overloaded
                | ErrorCode::DeadlineExceeded
                | ErrorCode::NotLeader
                | ErrorCode::WrongShard
                | ErrorCode::DiskFull
                | ErrorCode::ShuttingDown
                | ErrorCode::MembershipBusy
        )
    }
}

/// Why a request is refused: what a server sends back, and what a client finds before it sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// What a program decides by.
    pub code: ErrorCode,
    /// Wait at least this long before trying again; 0 means no advice.
    pub retry_after_ms: u32,
    /// With [`ErrorCode::NotLeader`]: the node that leads, as far as known; 0 otherwise.
    pub leader: u64,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl Rejection {
    /// A rejection without advice when to try again.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Rejection {
        Rejection { code, retry_after_ms: 0, leader: 0, message: message.into() }
    }

    /// The same, naming the node that leads.
    #[must_use]
    pub fn led_by(self, leader: u64) -> Rejection {
        Rejection { leader, ..self }
    }

    /// The same, with advice.
    #[must_use]
    pub fn retry_after_ms(self, retry_after_ms: u32) -> Rejection {
        Rejection { retry_after_ms, ..self }
    }

    /// The message for the wire. Its text is cut to [`ERROR_MESSAGE_BYTES_MAX`] at a character's border.
    pub fn to_reply(&self) -> ErrorReply {
        let cut = self.message.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX);
        ErrorReply {
            code: self.code as u16,
            retriable: self.code.retriable(),
            retry_after_ms: self.retry_after_ms,
            message: self.message[..cut].to_owned(),
        }
    }
}
