//! What can go wrong with a group, as its callers see it.

use super::config::RaftSettingsError;
use super::network::WireError;
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
    /// The membership in the log names other voters, and this node is not part of a cluster.
    #[error("the log names {voters} voters, but this node runs alone; start it as a node of its cluster")]
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
    /// It leads, but has not heard from a quorum for a while: the others must be asked first, which
    /// [`Group::linearizable`](super::Group::linearizable) does.
    #[error("this replica must ask the others whether it still leads the shard")]
    Unconfirmed,
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// A message of another replica was not taken. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefusal {
    /// This node is not part of a cluster.
    #[error("this node runs alone")]
    Alone,
    /// It is for another life of the replica.
    #[error("the message is for replica {to}, this is {here}")]
    WrongReplica {
        /// Whom it names.
        to: ReplicaId,
        /// Who is here.
        here: ReplicaId,
    },
    /// The replica is still replaying its log. Retriable.
    #[error("the replica is recovering; retry")]
    Recovering,
    /// The replica was started again just now and may have granted a lease before. Retriable.
    #[error("the replica was started again and keeps quiet until no lease that it may have granted is in force; retry")]
    Quiet,
    /// Too many appends wait. Retriable.
    #[error("too many appends wait; retry")]
    Busy,
    /// It cannot be what a replica sends.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// The membership was not changed, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// This node is not part of a cluster.
    #[error("this node runs alone; start it as a node of a cluster")]
    Alone,
    /// The replica is still replaying its log. Retriable.
    #[error("the shard is recovering; retry")]
    Recovering,
    /// Another replica leads, or none does. Retriable, elsewhere if a leader is named.
    #[error("this replica does not lead the shard (leader: {leader:?}); retry there")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<ReplicaId>,
    },
    /// Another change is under way, or the leader has not committed an entry of its own yet. Retriable.
    #[error("{0}; retry")]
    Busy(Rc<str>),
    /// The learner was added and has not caught up in time. Retriable: adding it again goes on waiting.
    #[error("replica {replica} was added and has not caught up within {waited_ms} ms; retry")]
    Behind {
        /// Who.
        replica: ReplicaId,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// It cannot be made.
    #[error("{0}")]
    Refused(Rc<str>),
    /// The leadership changed after the change was written: look at the membership.
    #[error("the shard's leadership changed before the change was confirmed; look at its members")]
    Unknown,
    /// The replica has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}
