//! Messages between the replicas of a group, over plain TCP, in frames of rpc's protocol.
//!
//! ```text
//!   openraft ── PeerClient (one per group and target) ──┐
//!   openraft ── PeerClient ─────────────────────────────┼─► Link (one per core and node) ═══ TCP ═══► server/connection.rs
//!   openraft ── PeerClient ──► AppendStream (pipelined) ┘                                                 │ dispatch, mesh
//!                                                                                                         ▼
//!                                        Group::receive ──► openraft ──► answer, back the same way    shard/replica.rs
//! ```
//!
//! `wire` translates, `link` carries, `book` knows who belongs to the cluster and where, `stream` keeps several appends under
//! way. The receiving side is an ordinary request: `group_peers` hands it to openraft.
//!
//! Invariants
//! - A failure is told as one: it counts neither as a vote, nor as a pre-vote, nor as a replica.
//! - Appends to a node leave in openraft's order; answers are given to it in the same order, up to the first that is no success.
//! - A message names the replica it is for; another life of that replica refuses it.
//! - Waiting is bounded by openraft's limits, and an append stream by [`STREAM_SILENCES`] of them.
//!
//! Deliberately absent: snapshots (logs are never purged, so catching up needs none), TLS, coalescing of heartbeats.

mod book;
mod link;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub use book::{ClusterId, PeerBook};
pub use link::LinkOptions;
pub use wire::WireError;

use super::state_machine::NoSnapshot;
use super::types::{RaftVote, ReplicaId, TypeConfig};
use futures_util::Stream;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::limits::FRAME_BODY_BYTES_MAX;
use gristmill_rpc::message::{Message, RequestMessage, read};
use gristmill_shardexec::random::random_u64;
use gristmill_shardexec::sync::oneshot;
use gristmill_shardexec::time::timeout;
use link::{CallError, Link};
use openraft::alias::SnapshotOf;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RPCTypes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use stream::AppendStream;

/// How many of openraft's limits for one append a stream waits for the next answer. A limit is one heartbeat; an answer waits
/// for the follower's disk, and to give up means to send the same entries again.
pub const STREAM_SILENCES: u32 = 10;
/// Pauses before openraft tries a target again that could not be reached.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(200);

/// A core's connections to the other nodes. A clone is the same set.
#[derive(Clone)]
pub struct PeerLinks(Rc<Links>);

struct Links {
    book: PeerBook,
    options: LinkOptions,
    by_node: RefCell<BTreeMap<u64, Link>>,
}

impl PeerLinks {
    /// No connections yet: each comes with the first message to its node.
    pub fn new(book: PeerBook, options: LinkOptions) -> PeerLinks {
        PeerLinks(Rc::new(Links { book, options, by_node: RefCell::default() }))
    }

    /// Who belongs to the cluster.
    pub fn book(&self) -> &PeerBook {
        &self.0.book
    }

    fn to(&self, node: u64) -> Link {
        let mut links = self.0.by_node.borrow_mut();
        links.entry(node).or_insert_with(|| Link::start(node, self.0.book.clone(), self.0.options)).clone()
    }
}

/// What a group has said to others.
#[derive(Debug, Default)]
pub(crate) struct PeerStats {
    pub appends_sent: Cell<u64>,
    pub appends_received: Cell<u64>,
    pub votes_sent: Cell<u64>,
}

/// Makes the clients of one group.
pub(crate) struct PeerNetwork {
    pub shard: ShardId,
    pub own: ReplicaId,
    /// `None`: the node runs alone.
    pub links: Option<PeerLinks>,
    pub stats: Rc<PeerStats>,
}

/// Talks to one replica of one group.
pub(crate) struct PeerClient {
    shard: ShardId,
    own: ReplicaId,
    target: ReplicaId,
    link: Option<Link>,
    stats: Rc<PeerStats>,
}

/// Why nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("replica {target} cannot be reached: this node is not part of a cluster")]
struct NoCluster {
    target: ReplicaId,
}

/// An answer that is none.
#[derive(Debug, thiserror::Error)]
#[error("replica {target} answers with what cannot be read: {reason}")]
struct BadAnswer {
    target: ReplicaId,
    reason: String,
}

/// An entry that no frame takes.
#[derive(Debug, thiserror::Error)]
#[error("an append of {bytes} bytes for replica {target} is over the {FRAME_BODY_BYTES_MAX} bytes of a frame")]
struct TooLarge {
    target: ReplicaId,
    bytes: usize,
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerClient;

    async fn new_client(&mut self, target: ReplicaId, _node: &EmptyNode) -> PeerClient {
        let link = self.links.as_ref().map(|links| links.to(target.node));
        PeerClient { shard: self.shard, own: self.own, target, link, stats: Rc::clone(&self.stats) }
    }
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type Answer = oneshot::Receiver<Result<Body, CallError>>;

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl PeerClient {
    fn send(&self, message: MessageType, body: Body, wait: Duration) -> Rpc<Answer> {
        if body.len() > FRAME_BODY_BYTES_MAX as usize {
            let error = TooLarge { target: self.target, bytes: body.len() };
            return Err(RPCError::Unreachable(Unreachable::new(&error)));
        }
        match &self.link {
            Some(link) => Ok(link.call(self.shard, message, body, wait)),
            None => Err(RPCError::Unreachable(self.no_cluster())),
        }
    }

    fn no_cluster(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&NoCluster { target: self.target })
    }

    fn send_append(&self, request: &AppendEntriesRequest<TypeConfig>, wait: Duration) -> Rpc<Answer> {
        count(&self.stats.appends_sent);
        self.send(MessageType::Append, wire::append(self.target, request), wait)
    }

    fn receive<M: Message>(&self, answer: Result<Result<Body, CallError>, oneshot::RecvError>) -> Rpc<M> {
        match answer {
            Ok(Ok(body)) => read::<M>(&body).map_err(|error| self.bad_answer(error.to_string())),
            Ok(Err(error)) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            // The link's task is gone: the core is going down.
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }

    fn bad_answer(&self, reason: String) -> RPCError<TypeConfig> {
        RPCError::Network(NetworkError::new(&BadAnswer { target: self.target, reason }))
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        RPCError::Timeout(Timeout { action, id: self.own, target: self.target, timeout })
    }

    async fn ask<M: RequestMessage>(&self, message: &M, action: RPCTypes, wait: Duration) -> Rpc<M::Reply> {
        let answer = self.send(M::TYPE, archive(message), wait)?;
        let answer = timeout(wait, answer).await.map_err(|_| self.timed_out(action, wait))?;
        self.receive(answer)
    }

    fn read_append(&self, reply: &gristmill_rpc::peer::AppendReply) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        wire::append_response(reply).map_err(|error| self.bad_answer(error.to_string()))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = NoSnapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let wait = option.soft_ttl();
        let answer = self.send_append(&request, wait)?;
        let answer = timeout(wait, answer).await;
        let answer = answer.map_err(|_| self.timed_out(RPCTypes::AppendEntries, wait))?;
        self.read_append(&self.receive(answer)?)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let stream: BoxStream<'s, _> = Box::pin(AppendStream::new(self, input, option.hard_ttl() * STREAM_SILENCES));
        Box::pin(std::future::ready(Ok(stream)))
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        count(&self.stats.votes_sent);
        let message = wire::vote(self.target, &request);
        let reply = self.ask(&message, RPCTypes::Vote, option.soft_ttl()).await?;
        wire::vote_response(&reply).map_err(|error| self.bad_answer(error.to_string()))
    }

    /// The default grants every pre-vote, which would let a cut-off replica drive the term up.
    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let message = wire::pre_vote(self.target, &request);
        let reply = self.ask(&message, RPCTypes::Vote, option.soft_ttl()).await?;
        wire::vote_response(&reply).map_err(|error| self.bad_answer(error.to_string()))
    }

    /// Logs are never purged, so openraft has no reason to ask for this.
    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, NoSnapshot>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        match snapshot.snapshot {}
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let message = wire::transfer(self.target, &request);
        let reply = self.ask(&message, RPCTypes::TransferLeader, option.soft_ttl()).await?;
        wire::transfer_response(&reply, &request).map_err(|error| self.bad_answer(error.to_string()))
    }

    /// Short, since a link that is down fails at once; and never the same on all nodes.
    fn backoff(&self) -> Option<Backoff> {
        let doubled = std::iter::successors(Some(RETRY_PAUSE_MIN), |pause| Some((*pause * 2).min(RETRY_PAUSE_MAX)));
        Some(Backoff::new(doubled.map(|whole| {
            let half = whole / 2;
            half + Duration::from_nanos(random_u64() % (half.as_nanos() as u64 + 1))
        })))
    }
}
