//! No network: each shard has one voter in this version, so there is nobody to talk to.
//!
//! Every call answers [`Unreachable`] with the reason. That is the truth, not a stand-in for success: openraft counts it
//! neither as a vote, nor as a pre-vote, nor as a replica.

use super::types::{RaftVote, ReplicaId, TypeConfig};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};
use std::future::Future;

/// The factory for a group of one voter.
pub(crate) struct NoPeers;

/// A peer that cannot be reached.
pub(crate) struct NoPeer {
    target: ReplicaId,
}

/// Why nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("replica {target} cannot be reached: this version keeps one voter a shard and speaks to no peers")]
struct OneVoterOnly {
    target: ReplicaId,
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = NoPeer;

    async fn new_client(&mut self, target: ReplicaId, _node: &EmptyNode) -> NoPeer {
        NoPeer { target }
    }
}

impl NoPeer {
    fn unreachable(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&OneVoterOnly { target: self.target })
    }

    fn refuse<T>(&self) -> Result<T, RPCError<TypeConfig>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }
}

impl RaftNetworkV2<TypeConfig> for NoPeer {
    type SnapshotData = super::state_machine::NoSnapshot;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.refuse()
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.refuse()
    }

    /// The default grants every pre-vote, which would let a cut-off replica drive the term up.
    async fn pre_vote(
        &mut self,
        _request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.refuse()
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: SnapshotOf<TypeConfig, Self::SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }

    async fn transfer_leader(
        &mut self,
        _request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.refuse()
    }
}
