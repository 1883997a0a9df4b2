//! What other replicas of the group ask of this one.
//!
//! ```text
//!   frame ─► for this life of the replica? ─┬─ pre-vote, vote, transfer ─► restart guard over? ─► openraft ─► answer
//!                                           └─ append ─► lane, in the order of the frames ─────► openraft ─► answer once durable
//! ```
//!
//! Invariants
//! - Nothing is answered for another life of the replica, nor before its log was checked and replayed.
//! - Until the restart guard is over no vote and no pre-vote is answered, whoever asks: a lease that was granted before the
//!   restart may still be in force.
//! - Appends reach openraft in the order in which their frames came, so a pipeline does not conflict with itself.
//! - At most [`APPENDS_WAITING_MAX`] appends wait; the next is refused.

use super::errors::PeerRefusal;
use super::group::{Core, Group, Inner, Unready};
use super::network::{WireError, wire};
use super::types::TypeConfig;
use crate::bugs::Bug;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::peer::{ArchivedAppendRequest, ArchivedReplica};
use gristmill_rpc::validate::ReplicaRef;
use gristmill_shardexec as shardexec;
use gristmill_shardexec::Class;
use gristmill_shardexec::sync::mpsc;
use gristmill_shardexec::time::Instant;
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::Poll;

/// Appends of one group that wait for consensus or the log, each in turn.
pub const APPENDS_WAITING_MAX: usize = 256;

/// Takes the answer to one message.
pub(crate) type PeerAnswer = Box<dyn FnOnce(Result<Body, PeerRefusal>)>;

/// What is asked about leadership, checked.
enum Question {
    PreVote(VoteRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
}

impl Group {
    /// Serves a message of another replica of the group.
    pub(crate) fn receive(&self, message: ReplicaRef<'_>, answer: PeerAnswer) {
        let begun = match message {
            ReplicaRef::Append(request) => {
                return match self.0.take_append(request) {
                    Ok(request) => self.0.queue_append(Append { request, answer }),
                    Err(refusal) => answer(Err(refusal)),
                };
            }
            ReplicaRef::PreVote(request) => {
                self.0.admit_vote(&request.to, || Ok(Question::PreVote(wire::pre_vote_in(request)?)))
            }
            ReplicaRef::Vote(request) => {
                self.0.admit_vote(&request.to, || Ok(Question::Vote(wire::vote_request_in(request)?)))
            }
            ReplicaRef::TransferLeader(request) => {
                self.0.admit_vote(&request.to, || Ok(Question::Transfer(wire::transfer_in(request)?)))
            }
        };
        match begun {
            Ok((core, question)) => self.0.ask(core, question, answer),
            Err(refusal) => answer(Err(refusal)),
        }
    }
}

impl Inner {
    /// Whether this replica takes a message for `to` now.
    fn admit(&self, to: &ArchivedReplica) -> Result<&Core, PeerRefusal> {
        let (to, here) = (wire::replica_of(to), self.config.replica);
        if self.peers.is_none() {
            return Err(PeerRefusal::Alone);
        }
        if to != here {
            return Err(PeerRefusal::WrongReplica { to, here });
        }
        if let Some(Unready::Stopped(reason)) = self.unready() {
            return Err(PeerRefusal::Stopped(reason));
        }
        match (self.core.get(), self.guard.get()) {
            (Some(core), Some(_guard)) => Ok(core),
            _ => Err(PeerRefusal::Recovering),
        }
    }

    /// The same for a message about leadership, which must say `what`.
    fn admit_vote(
        &self,
        to: &ArchivedReplica,
        what: impl FnOnce() -> Result<Question, WireError>,
    ) -> Result<(Core, Question), PeerRefusal> {
        let core = self.admit(to)?;
        let guard = self.guard.get().expect("a replica that takes messages has it");
        if !guard.may_vote(Instant::boottime_now()) {
            return Err(PeerRefusal::Quiet);
        }
        Ok((core.clone(), what()?))
    }

    fn take_append(&self, request: &ArchivedAppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, PeerRefusal> {
        self.admit(&request.to)?;
        let request = wire::append_in(self.config.shard, request)?;
        self.stats.appends_received.set(self.stats.appends_received.get() + 1);
        Ok(request)
    }

    fn queue_append(&self, append: Append) {
        match &*self.lane.borrow() {
            Some(lane) => lane.push(append),
            None => (append.answer)(Err(PeerRefusal::Recovering)),
        }
    }

    fn ask(self: &Rc<Self>, core: Core, question: Question, answer: PeerAnswer) {
        let inner = Rc::clone(self);
        shardexec::spawn(Class::Raft, "raft vote", async move {
            let answered = match question {
                Question::PreVote(request) => core.pre_vote(request).await.map(|it| archive(&wire::vote_reply(&it))),
                Question::Vote(request) => {
                    let asked = request.vote;
                    let voted = core.vote(request).await.map(|mut it| {
                        if inner.config.settings.bugs().has(Bug::VoteGrantedToAll) {
                            (it.vote, it.vote_granted) = (asked, true);
                        }
                        it
                    });
                    voted.map(|it| archive(&wire::vote_reply(&it)))
                }
                Question::Transfer(request) => {
                    let handled = core.handle_transfer_leader(request).await;
                    handled.map(|it| archive(&wire::transfer_reply(&it))).map_err(RaftError::Fatal)
                }
            };
            answer(answered.map_err(|error| PeerRefusal::Stopped(inner.reason_of_refusal(&error))));
        });
    }
}

struct Append {
    request: AppendEntriesRequest<TypeConfig>,
    answer: PeerAnswer,
}

/// Hands appends to consensus one after the other, without waiting for the answer to the one before.
pub(super) struct AppendLane(mpsc::Sender<Append>);

impl AppendLane {
    /// Lives as long as its group.
    pub(super) fn start(core: &Core, inner: Weak<Inner>) -> AppendLane {
        let (sender, receiver) = mpsc::channel(APPENDS_WAITING_MAX);
        shardexec::spawn(Class::Raft, "raft appends", run_lane(core.clone(), receiver, inner));
        AppendLane(sender)
    }

    fn push(&self, append: Append) {
        match self.0.try_send(append) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(append)) => (append.answer)(Err(PeerRefusal::Busy)),
            // Its task ends with the group only.
            Err(mpsc::TrySendError::Closed(append)) => (append.answer)(Err(PeerRefusal::Recovering)),
        }
    }
}

async fn run_lane(core: Core, mut appends: mpsc::Receiver<Append>, inner: Weak<Inner>) {
    let mut under_way = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            // New ones are polled in the order in which they are pushed, and each asks for its place in openraft's queue
            // when it is polled first.
            let mut ended = false;
            while under_way.len() < APPENDS_WAITING_MAX
                && let Poll::Ready(next) = appends.poll_recv(cx)
            {
                let Some(append) = next else {
                    ended = true;
                    break;
                };
                under_way.push(serve_append(core.clone(), append, inner.clone()));
            }
            match under_way.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) if ended => return Poll::Ready(()),
                _ => return Poll::Pending,
            }
        }
    })
    .await;
}

async fn serve_append(core: Core, append: Append, inner: Weak<Inner>) {
    let answered = match core.append_entries(append.request).await {
        Ok(response) => Ok(archive(&wire::append_reply(&response))),
        Err(error) => Err(match inner.upgrade() {
            Some(inner) => PeerRefusal::Stopped(inner.reason_of_refusal(&error)),
            None => PeerRefusal::Recovering,
        }),
    };
    (append.answer)(answered);
}
