//! What can go wrong with a group, as its callers see it.

use super::config::RaftSettingsError;
use super::start::Quarantine;
use super::types::ReplicaId;
use gristmill_wal::WalError;
use std::rc::Rc;

/// A replica was not started. The log is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings contradict each other.
    #[error(transparent)]
    Settings(#[from] RaftSettingsError),
    /// Log and state contradict each other.
    #[error(transparent)]
    Quarantined(#[from] Quarantine),
}

/// Why a group has stopped for good. It must be started again, which recovers it from its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// [`Group::shutdown`](super::Group::shutdown) was called.
    #[error("the replica was shut down")]
    Shutdown,
    /// Its log takes no more writes, or cannot be read.
    #[error("the replica stopped: {0}")]
    LogFailed(Rc<str>),
    /// What its log holds cannot be replayed: acknowledged entries are damaged or missing.
    #[error("the replica stopped: {0}")]
    Damaged(Rc<str>),
    /// A defect of its own: its state cannot take an entry, or one of its tasks panicked.
    #[error("the replica stopped: {0}")]
    Failed(Rc<str>),
    /// The membership in the log names other voters, and this version speaks to no peers.
    #[error(
        "the log names {voters} voters, this version runs one voter a shard; start it with the version that wrote it"
    )]
    NeedsPeers {
        /// Voters of the membership in the log.
        voters: usize,
    },
}

/// A proposal was not applied here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The replica is still replaying its log. Retriable.
    #[error("the shard is recovering, at entry {applied} of {target}; retry")]
    Recovering {
        /// Entries applied so far.
        applied: u64,
        /// Entries to apply before the shard serves.
        target: u64,
    },
    /// Another replica leads, or none does. Nothing was written. Retriable, elsewhere if a leader is named.
    #[error("this replica does not lead the shard (leader: {leader:?}); retry there")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<ReplicaId>,
    },
    /// Too much is in flight. Nothing was written. Retriable.
    #[error("{in_flight} proposals of {bytes} bytes are in flight in the shard; retry")]
    Busy {
        /// Proposals in flight.
        in_flight: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The log's disk is full. Nothing was written; reads go on. Retriable once there is space.
    #[error(transparent)]
    DiskFull(Box<WalError>),
    /// The command does not fit into one log entry. Not retriable.
    #[error("a command of {bytes} bytes exceeds the log's limit of {bytes_max}; split it")]
    TooLarge {
        /// Bytes of the command with its header.
        bytes: usize,
        /// The most that the log takes.
        bytes_max: usize,
    },
    /// The leadership changed after the entry was written: it may or may not have been committed. Retry with the same
    /// session and sequence; it applies once.
    #[error("the shard's leadership changed before the write was confirmed; retry with the same session and sequence")]
    Unknown,
    /// The replica has stopped. What was in flight may or may not be in the log.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// A linearizable read is not possible here and now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The replica is still replaying its log. Retriable.
    #[error("the shard is recovering, at entry {applied} of {target}; retry")]
    Recovering {
        /// Entries applied so far.
        applied: u64,
        /// Entries to apply before the shard serves.
        target: u64,
    },
    /// Another replica leads, or none does. Retriable.
    #[error("this replica does not lead the shard (leader: {leader:?}); retry there")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<ReplicaId>,
    },
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}
