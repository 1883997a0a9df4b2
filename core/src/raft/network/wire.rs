//! Between openraft's messages and those on the wire.
//!
//! What comes from another node is checked for everything that openraft and the log take for granted: that a vote is of the
//! right kind, that terms fit and do not go back, that each entry is whole. A message that fails is refused; it must not stop
//! the replica.

use crate::raft::codec::{self, EntryError, EntryKind};
use crate::raft::types::{Entry, RaftLogId, RaftVote, ReplicaId, TypeConfig, to_log_id, to_position};
use gristmill_rpc::body::{Body, archive_sized};
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::limits::APPEND_ENTRY_OVERHEAD_BYTES;
use gristmill_rpc::peer::{
    AppendOutcome, AppendReply, AppendRequest, ArchivedAppendRequest, ArchivedBallot, ArchivedLogEntry,
    ArchivedLogPlace, ArchivedPreVoteRequest, ArchivedReplica, ArchivedTransferLeaderRequest, ArchivedVoteRequest,
    Ballot, LogEntry, LogPlace, PreVoteRequest, Replica, TransferLeaderReply, TransferOutcome, VoteReply,
};
use gristmill_wal::{FencingToken, LogPosition};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

/// Bytes of an append besides its entries.
const APPEND_HEAD_BYTES: usize = 256;

/// Why a message from another node cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A vote of the wrong kind, or of a term that tokens cannot carry.
    #[error("a vote of term {term} that {problem}")]
    Ballot {
        /// Its term.
        term: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The term of an entry goes back, is above the leader's, or is not that of its token.
    #[error("entry {index} of term {term} {problem}")]
    Term {
        /// Index of the entry.
        index: u64,
        /// Its term.
        term: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An entry that has a part that its kind does not have, or lacks one.
    #[error("entry {index} of kind {kind} does not have the parts of its kind")]
    Parts {
        /// Index of the entry.
        index: u64,
        /// Its kind.
        kind: u8,
    },
    /// An entry that the log could not hold either.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

pub(crate) fn replica(id: ReplicaId) -> Replica {
    Replica { node: id.node, incarnation: id.incarnation }
}

pub(crate) fn replica_of(archived: &ArchivedReplica) -> ReplicaId {
    ReplicaId { node: archived.node.to_native(), incarnation: archived.incarnation.to_native() }
}

pub(crate) fn ballot(vote: &RaftVote) -> Ballot {
    Ballot { term: vote.leader_id.term, candidate: replica(vote.leader_id.voted_for), committed: vote.is_committed() }
}

/// The vote of an answer, of any kind.
pub(crate) fn vote_of(ballot: Ballot) -> Result<RaftVote, WireError> {
    let Ballot { term, candidate, committed } = ballot;
    if u32::try_from(term).is_err() {
        return Err(WireError::Ballot { term, problem: "is beyond the 32 bits of a fencing token" });
    }
    let candidate = ReplicaId { node: candidate.node, incarnation: candidate.incarnation };
    Ok(if committed { RaftVote::new_committed(term, candidate) } else { RaftVote::new(term, candidate) })
}

fn vote_in(archived: &ArchivedBallot, committed: bool) -> Result<RaftVote, WireError> {
    let candidate = replica_of(&archived.candidate);
    let term = archived.term.to_native();
    if archived.committed != committed {
        let problem = if committed { "no quorum has agreed to" } else { "is a leader's, not a candidate's" };
        return Err(WireError::Ballot { term, problem });
    }
    vote_of(Ballot { term, candidate: replica(candidate), committed })
}

pub(crate) fn place(log_id: &RaftLogId) -> LogPlace {
    let LogPosition { term, index } = to_position(log_id);
    LogPlace { term, index }
}

pub(crate) fn log_id_of(place: LogPlace) -> RaftLogId {
    to_log_id(LogPosition { term: place.term, index: place.index })
}

fn log_id_in(archived: &ArchivedLogPlace) -> RaftLogId {
    log_id_of(LogPlace { term: archived.term.to_native(), index: archived.index.to_native() })
}

pub(crate) fn pre_vote(to: ReplicaId, request: &VoteRequest<TypeConfig>) -> PreVoteRequest {
    PreVoteRequest { to: replica(to), ballot: ballot(&request.vote), last: request.last_log_id.as_ref().map(place) }
}

pub(crate) fn vote(to: ReplicaId, request: &VoteRequest<TypeConfig>) -> gristmill_rpc::peer::VoteRequest {
    let PreVoteRequest { to, ballot, last } = pre_vote(to, request);
    gristmill_rpc::peer::VoteRequest { to, ballot, last, transfer: request.leadership_transfer }
}

pub(crate) fn pre_vote_in(archived: &ArchivedPreVoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    Ok(VoteRequest::new(vote_in(&archived.ballot, false)?, archived.last.as_ref().map(log_id_in)))
}

pub(crate) fn vote_request_in(archived: &ArchivedVoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let request = VoteRequest::new(vote_in(&archived.ballot, false)?, archived.last.as_ref().map(log_id_in));
    Ok(VoteRequest { leadership_transfer: archived.transfer, ..request })
}

pub(crate) fn vote_reply(response: &VoteResponse<TypeConfig>) -> VoteReply {
    VoteReply {
        ballot: ballot(&response.vote),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(place),
    }
}

pub(crate) fn vote_response(reply: &VoteReply) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse::new(vote_of(reply.ballot)?, reply.last.map(log_id_of), reply.granted))
}

/// An append's body. Commands are copied into it as they are, and nothing else of them is touched.
pub(crate) fn append(to: ReplicaId, request: &AppendEntriesRequest<TypeConfig>) -> Body {
    let bytes: usize = request.entries.iter().map(codec::payload_bytes).sum();
    let message = AppendRequest {
        to: replica(to),
        ballot: ballot(&request.vote),
        previous: request.prev_log_id.as_ref().map(place),
        committed: request.leader_commit.as_ref().map(place),
        entries: request.entries.iter().map(entry).collect(),
    };
    archive_sized(&message, APPEND_HEAD_BYTES + bytes + request.entries.len() * APPEND_ENTRY_OVERHEAD_BYTES)
}

fn entry(entry: &Entry) -> LogEntry {
    let encoded = codec::encode(entry);
    let (header, body) = match &entry.payload {
        EntryPayload::Blank => (None, Body::copy_from(&[])),
        EntryPayload::Normal(proposal) => (Some(encoded.header), proposal.body.clone()),
        EntryPayload::Membership(_) => (None, Body::copy_from(&encoded.membership)),
    };
    LogEntry {
        at: place(&entry.log_id),
        token: entry.token.expect("entries of a log are stamped").raw(),
        kind: encoded.kind as u8,
        header,
        body,
    }
}

/// The append that another node sent for a log of `shard`.
pub(crate) fn append_in(
    shard: ShardId,
    archived: &ArchivedAppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let vote = vote_in(&archived.ballot, true)?;
    let previous = archived.previous.as_ref().map(log_id_in);
    let mut term_min = previous.map_or(0, |previous| previous.leader_id.term);
    let mut entries = Vec::with_capacity(archived.entries.len());
    for entry in archived.entries.iter() {
        let entry = entry_in(shard, entry)?;
        let LogPosition { term, index } = entry.position();
        if term < term_min || term > vote.leader_id.term {
            return Err(WireError::Term {
                index,
                term,
                problem: "stands behind a later term, or is its leader's future",
            });
        }
        term_min = term;
        entries.push(entry);
    }
    let leader_commit = archived.committed.as_ref().map(log_id_in);
    Ok(AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit })
}

fn entry_in(shard: ShardId, archived: &ArchivedLogEntry) -> Result<Entry, WireError> {
    let position = to_position(&log_id_in(&archived.at));
    let token = FencingToken::from_raw(archived.token.to_native());
    let LogPosition { term, index } = position;
    if u64::from(token.term()) != term {
        return Err(WireError::Term { index, term, problem: "carries the token of another term" });
    }
    let header = archived.header.as_ref().map(|header| &header[..]);
    let body = archived.body.as_slice();
    let whole = match EntryKind::from_wire(archived.kind) {
        Some(EntryKind::Blank) => header.is_none() && body.is_empty(),
        Some(EntryKind::Normal) => header.is_some(),
        Some(EntryKind::Membership) => header.is_none(),
        None => true, // the codec says what is wrong
    };
    if !whole {
        return Err(WireError::Parts { index, kind: archived.kind });
    }
    Ok(codec::decode_parts(shard, position, token, archived.kind, header.unwrap_or_default(), body)?)
}

pub(crate) fn append_reply(response: &AppendEntriesResponse<TypeConfig>) -> AppendReply {
    let outcome = match response {
        AppendEntriesResponse::Success => AppendOutcome::Stored,
        AppendEntriesResponse::Conflict => AppendOutcome::Conflict,
        AppendEntriesResponse::HigherVote(vote) => AppendOutcome::HigherBallot(ballot(vote)),
        AppendEntriesResponse::PartialSuccess(_) => unreachable!("a replica stores all of an append or none of it"),
    };
    AppendReply { outcome }
}

pub(crate) fn append_response(reply: &AppendReply) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    Ok(match reply.outcome {
        AppendOutcome::Stored => AppendEntriesResponse::Success,
        AppendOutcome::Conflict => AppendEntriesResponse::Conflict,
        AppendOutcome::HigherBallot(ballot) => AppendEntriesResponse::HigherVote(vote_of(ballot)?),
    })
}

pub(crate) fn transfer(
    to: ReplicaId,
    request: &TransferLeaderRequest<TypeConfig>,
) -> gristmill_rpc::peer::TransferLeaderRequest {
    gristmill_rpc::peer::TransferLeaderRequest {
        to: replica(to),
        ballot: ballot(request.from_leader()),
        successor: replica(*request.to_node_id()),
        last: request.last_log_id().map(place),
    }
}

pub(crate) fn transfer_in(
    archived: &ArchivedTransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let (vote, successor) = (vote_in(&archived.ballot, true)?, replica_of(&archived.successor));
    Ok(TransferLeaderRequest::new(vote, successor, archived.last.as_ref().map(log_id_in)))
}

pub(crate) fn transfer_reply(response: &TransferLeaderResponse<TypeConfig>) -> TransferLeaderReply {
    let outcome = match response {
        Ok(()) => TransferOutcome::Accepted,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => TransferOutcome::VoteChanged(ballot(actual)),
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => TransferOutcome::Behind(actual.as_ref().map(place)),
    };
    TransferLeaderReply { outcome }
}

pub(crate) fn transfer_response(
    reply: &TransferLeaderReply,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, WireError> {
    Ok(match reply.outcome {
        TransferOutcome::Accepted => Ok(()),
        TransferOutcome::VoteChanged(actual) => {
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: vote_of(actual)? })
        }
        TransferOutcome::Behind(actual) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: actual.map(log_id_of),
        }),
    })
}
