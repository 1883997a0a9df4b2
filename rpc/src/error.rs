//! Error codes of the protocol: what a program can decide by.

/// Why a request failed. The number is the wire format and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The frame is not of this protocol, or its header or body is damaged. The connection is closed.
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
    /// The shard refuses to serve because its log is damaged; the server's log and `status` say where.
    Quarantined = 40,
    /// The log reported a write error; the shard has stopped. The write may or may not be durable.
    LogFailed = 41,
    /// A defect of the server.
    Internal = 42,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [ErrorCode; 21] = [
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
        ErrorCode::Recovering,
        ErrorCode::Overloaded,
        ErrorCode::DeadlineExceeded,
        ErrorCode::NotLeader,
        ErrorCode::WrongShard,
        ErrorCode::DiskFull,
        ErrorCode::ShuttingDown,
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
        )
    }
}
