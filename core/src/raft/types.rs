//! The one openraft type configuration, shared by every group of every context, and the values that travel through it.
//!
//! openraft sees requests and answers as bytes: a [`Proposal`] is a clear header plus an untouched body, an [`Outcome`]
//! is what apply answered. Each context (log, keys, audit) says in a [`Context`] how its own types become these.

use super::runtime::ShardRuntime;
use crate::state::envelope::EntryHeader;
use gristmill_rpc::body::Body;
use gristmill_wal::{FencingToken, LogPosition};
use openraft::entry::RaftEntry;
use openraft::impls::{BoxedErrorSource, ProgressResponder, leader_id_std};
use openraft::{EmptyNode, EntryPayload, LogId, Membership, OptionalSend, RaftTypeConfig, Vote};
use std::fmt;

/// Bytes of an [`Outcome`] that need no allocation.
pub const OUTCOME_INLINE_BYTES: usize = 46;

/// Who votes: a node in one of its lives.
///
/// A replica that lost its log comes back under a new incarnation, so an id is never reused and what the old one
/// promised is never mistaken for a promise of the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The node's id, as given to `--node-id`.
    pub node: u64,
    /// Counts the lives of this replica on that node, from 1.
    pub incarnation: u64,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.incarnation)
    }
}

/// What openraft's storage suite asks of a node id.
#[cfg(test)]
impl From<u64> for ReplicaId {
    fn from(node: u64) -> Self {
        ReplicaId { node, incarnation: 1 }
    }
}

/// The concrete types that openraft is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Outcome;
    type NodeId = ReplicaId;
    type Node = EmptyNode;
    type Term = u64;
    /// At most one leader a term. openraft's default allows several.
    type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = ShardRuntime;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    /// Proposals come in batches, so a vector beats openraft's default of one inline element.
    type Batch<T>
        = Vec<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type RaftLogId = LogId<CommittedLeaderId>;
pub(crate) type RaftVote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type RaftMembership = Membership<ReplicaId, EmptyNode>;
pub(crate) type RaftStoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Payload = EntryPayload<Proposal, ReplicaId, EmptyNode>;

/// A write on its way into the log. Cloning shares the body.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The clear part. Shard, term, index and token are stamped when the leader appends the entry; what stands there
    /// before is ignored.
    pub header: EntryHeader,
    /// The archived command, exactly as the client made it.
    pub body: Body,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} sequence {} body {} B", self.header.session.0, self.header.sequence, self.body.len())
    }
}

/// What apply answered to one entry: bytes whose meaning is the context's.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome(OutcomeBytes);

#[derive(Clone, PartialEq, Eq)]
enum OutcomeBytes {
    Inline { len: u8, bytes: [u8; OUTCOME_INLINE_BYTES] },
    Heap(Box<[u8]>),
}

impl Outcome {
    /// No bytes: the answer to entries that carry no command.
    pub const EMPTY: Outcome = Outcome(OutcomeBytes::Inline { len: 0, bytes: [0; OUTCOME_INLINE_BYTES] });

    /// Copies `bytes`; allocates above [`OUTCOME_INLINE_BYTES`] only.
    pub fn from_bytes(bytes: &[u8]) -> Outcome {
        if bytes.len() > OUTCOME_INLINE_BYTES {
            return Outcome(OutcomeBytes::Heap(bytes.into()));
        }
        let mut inline = [0; OUTCOME_INLINE_BYTES];
        inline[..bytes.len()].copy_from_slice(bytes);
        Outcome(OutcomeBytes::Inline { len: bytes.len() as u8, bytes: inline })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            OutcomeBytes::Inline { len, bytes } => &bytes[..usize::from(*len)],
            OutcomeBytes::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outcome").field(&self.as_bytes()).finish()
    }
}

/// What one kind of group (log, keys, audit) asks and answers, on top of the shared type configuration.
pub trait Context {
    /// What its clients ask.
    type Request;
    /// What its state machine answers.
    type Response;

    /// The request as the log carries it.
    fn to_proposal(request: Self::Request) -> Proposal;
    /// The answer as apply hands it out.
    fn to_outcome(response: &Self::Response) -> Outcome;
    /// The answer as the client sees it. The bytes come from [`Context::to_outcome`] of the same build.
    fn from_outcome(outcome: &Outcome) -> Self::Response;
}

/// One entry of the log. Cloning shares the body.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub log_id: RaftLogId,
    /// The origin token. `None` between the leader's proposal and its append, which stamps it.
    pub token: Option<FencingToken>,
    pub payload: Payload,
}

impl Entry {
    pub(crate) fn position(&self) -> LogPosition {
        to_position(&self.log_id)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.log_id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = Payload;

    fn new(log_id: RaftLogId, payload: Payload) -> Self {
        Entry { log_id, token: None, payload }
    }

    fn log_id_parts(&self) -> (&CommittedLeaderId, u64) {
        (self.log_id.committed_leader_id(), self.log_id.index())
    }

    fn set_log_id(&mut self, new: RaftLogId) {
        self.log_id = new;
    }

    fn get_membership(&self) -> Option<RaftMembership> {
        match &self.payload {
            EntryPayload::Membership(membership) => Some(membership.clone()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        }
    }
}

/// A position in the log as openraft names it.
pub(crate) fn to_log_id(position: LogPosition) -> RaftLogId {
    LogId::new(CommittedLeaderId::new(position.term), position.index)
}

/// A position in the log as the WAL names it.
pub(crate) fn to_position(log_id: &RaftLogId) -> LogPosition {
    LogPosition { term: log_id.leader_id.term, index: log_id.index }
}
