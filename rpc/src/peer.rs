//! What nodes of one cluster say to each other, and what changes who they are: the bodies of the frames between replicas.
//!
//! ```text
//!   Hello ─▶ PeerHello (which cluster, which node) ─▶ PreVote │ Vote │ Append │ TransferLeader, many in flight, any order
//! ```
//!
//! A frame's header names the shard, the body names the replica: a message for another life of the replica is refused, so
//! what was promised in one life is never taken for a promise of the next. An entry carries its leader's header and the
//! command's archive as the very bytes that the client made.

#![allow(missing_docs, reason = "rkyv's derive emits archived variant fields without documentation")]

use crate::body::Body;
use rkyv::{Archive, Deserialize, Serialize};

/// Bytes of the clear header that a leader puts in front of a command.
pub const ENTRY_HEADER_BYTES: usize = 96;

/// A replica: a node in one of its lives.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct Replica {
    /// The node's id, from 1.
    pub node: u64,
    /// Counts the lives of this replica on that node, from 1.
    pub incarnation: u64,
}

/// For whom a replica votes in a term, and whether a quorum has agreed.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct Ballot {
    /// The term.
    pub term: u64,
    /// The candidate; node 0 stands for nobody.
    pub candidate: Replica,
    /// The candidate leads the term.
    pub committed: bool,
}

/// A position in a shard's log.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct LogPlace {
    /// The term of the leader that wrote the entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// Makes a connection one between nodes: the first frame after the hello.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct PeerHello {
    /// The cluster that the sender belongs to.
    pub cluster: [u8; 16],
    /// The sender.
    pub from: Replica,
    /// The node that the sender believes to speak to.
    pub to_node: u64,
    /// The sender's number of shards, which is the same on all nodes of a cluster.
    pub shards: u32,
    /// The sender's virtual nodes per shard, likewise.
    pub ring_vnodes: u32,
}

/// The answer to [`PeerHello`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct PeerHelloReply {
    /// Who answers.
    pub replica: Replica,
}

/// Asks whether a vote would be granted. Changes nothing.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct PreVoteRequest {
    /// For whom this is.
    pub to: Replica,
    /// The vote that would be asked for.
    pub ballot: Ballot,
    /// The candidate's last entry.
    pub last: Option<LogPlace>,
}

/// Asks for a vote.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct VoteRequest {
    /// For whom this is.
    pub to: Replica,
    /// The vote asked for.
    pub ballot: Ballot,
    /// The candidate's last entry.
    pub last: Option<LogPlace>,
    /// The leader itself has asked for this election, so its lease does not stand against it.
    pub transfer: bool,
}

/// The answer to [`VoteRequest`] and [`PreVoteRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct VoteReply {
    /// The vote of the answering replica, durable.
    pub ballot: Ballot,
    /// The vote was granted, or would be.
    pub granted: bool,
    /// Its last entry.
    pub last: Option<LogPlace>,
}

/// Entries from the leader. Without entries a heartbeat.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct AppendRequest {
    /// For whom this is.
    pub to: Replica,
    /// The leader's vote.
    pub ballot: Ballot,
    /// The entry right before the first one; `None` at the beginning of the log.
    pub previous: Option<LogPlace>,
    /// Up to where a quorum has the log.
    pub committed: Option<LogPlace>,
    /// One after the other, at most `limits::APPEND_ENTRIES_MAX`.
    pub entries: Vec<LogEntry>,
}

/// One entry of a log.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct LogEntry {
    /// Where it stands.
    pub at: LogPlace,
    /// Its origin fencing token: term in the high 32 bits, sequence in the low 32.
    pub token: u64,
    /// 0: no content, 1: a command, 2: a membership.
    pub kind: u8,
    /// The header that the leader put in front of a command; `None` for other kinds.
    pub header: Option<[u8; ENTRY_HEADER_BYTES]>,
    /// A command as its client archived it, or a membership as the log holds it.
    pub body: Body,
}

/// The answer to [`AppendRequest`], once what it says is durable.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct AppendReply {
    /// What became of it.
    pub outcome: AppendOutcome,
}

/// What became of an append.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub enum AppendOutcome {
    /// All entries are in the log.
    Stored,
    /// The entry before the first one is not in the log.
    Conflict,
    /// The replica has seen a higher vote.
    HigherBallot(Ballot),
}

/// Tells that the leader gives up in favour of another replica.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct TransferLeaderRequest {
    /// For whom this is.
    pub to: Replica,
    /// The vote of the leader that gives up.
    pub ballot: Ballot,
    /// Who is to lead.
    pub successor: Replica,
    /// The last entry that the successor must have.
    pub last: Option<LogPlace>,
}

/// The answer to [`TransferLeaderRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct TransferLeaderReply {
    /// What became of it.
    pub outcome: TransferOutcome,
}

/// What became of a transfer.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub enum TransferOutcome {
    /// It was taken up.
    Accepted,
    /// The replica holds another vote by now, this one.
    VoteChanged(Ballot),
    /// The successor's log ends here and lacks entries.
    Behind(Option<LogPlace>),
}

/// Makes a replica follow a shard without a vote. Only the leader can.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct AddLearner {
    /// The shard.
    pub shard: u32,
    /// Who joins.
    pub replica: Replica,
}

/// Replaces the voters of a shard. Each new one must follow it already. Only the leader can.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct ChangeMembership {
    /// The shard.
    pub shard: u32,
    /// Who votes from now on, 1 to `limits::VOTERS_MAX`, each once.
    pub voters: Vec<Replica>,
    /// Those who no longer vote go on following.
    pub retain: bool,
}

/// The answer to [`AddLearner`] and [`ChangeMembership`], once the new membership is committed.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct MembershipReply {
    /// Where in the log it stands.
    pub at: LogPlace,
}
