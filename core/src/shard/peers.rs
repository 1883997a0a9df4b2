//! What other replicas and operators ask of a shard's group, and how its refusals read on the wire.

use super::replica::{Shard, stop_code};
use crate::raft::{MembershipError, PeerRefusal, ReplicaId};
use crate::server::reply::{Answer, ReplyTo};
use gristmill_rpc::body::archive;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::peer::{ArchivedAddLearner, ArchivedChangeMembership, ArchivedReplica, LogPlace, MembershipReply};
use gristmill_rpc::validate::ReplicaRef;
use gristmill_shardexec::{Class, spawn};
use gristmill_wal::LogPosition;
use std::rc::Rc;

/// Advice to a replica or an operator whose message comes too early.
const EARLY_RETRY_AFTER_MS: u32 = 20;

impl Shard {
    /// Hands a message of another replica to consensus.
    pub(super) fn receive(&self, message: ReplicaRef<'_>, reply: ReplyTo) {
        let id = self.id();
        match self.group() {
            Ok(group) => group.receive(
                message,
                Box::new(move |answer| {
                    let rejection = |refusal: PeerRefusal| {
                        let rejection = Rejection::new(refusal_code(&refusal), format!("shard {}: {refusal}", id.0));
                        advise(rejection)
                    };
                    reply.answer(answer.map_err(rejection));
                }),
            ),
            Err(rejection) => reply.answer(Err(rejection)),
        }
    }

    /// Adds a learner; a task waits until it has caught up.
    pub(super) fn add_learner(self: &Rc<Self>, request: &ArchivedAddLearner, reply: ReplyTo) {
        let (shard, replica) = (Rc::clone(self), replica_of(&request.replica));
        spawn(Class::Request, "add learner", async move {
            let added = match shard.group() {
                Ok(group) => shard.membership_answer(group.add_learner(replica).await),
                Err(rejection) => Err(rejection),
            };
            reply.answer(added);
        });
    }

    /// Replaces the voters.
    pub(super) fn change_membership(self: &Rc<Self>, request: &ArchivedChangeMembership, reply: ReplyTo) {
        let voters = request.voters.iter().map(replica_of).collect();
        let (shard, retain) = (Rc::clone(self), request.retain);
        spawn(Class::Request, "change membership", async move {
            let changed = match shard.group() {
                Ok(group) => shard.membership_answer(group.change_membership(voters, retain).await),
                Err(rejection) => Err(rejection),
            };
            reply.answer(changed);
        });
    }

    fn membership_answer(&self, changed: Result<LogPosition, MembershipError>) -> Answer {
        let LogPosition { term, index } = changed.map_err(|error| self.membership_rejection(&error))?;
        Ok(archive(&MembershipReply { at: LogPlace { term, index } }))
    }

    fn membership_rejection(&self, error: &MembershipError) -> Rejection {
        let code = match error {
            MembershipError::Alone => ErrorCode::NotPeer,
            MembershipError::Recovering => ErrorCode::Recovering,
            MembershipError::NotLeader { leader } => return self.not_leader(error, *leader),
            MembershipError::Busy(_) | MembershipError::Behind { .. } => ErrorCode::MembershipBusy,
            MembershipError::Refused(_) => ErrorCode::InvalidArgument,
            MembershipError::Unknown => ErrorCode::DeadlineExceeded,
            MembershipError::Stopped(reason) => stop_code(reason),
        };
        advise(Rejection::new(code, format!("shard {}: {error}", self.id().0)))
    }

    /// Names the leader, or says when to look again where there is none.
    pub(super) fn not_leader(&self, error: &impl std::fmt::Display, leader: Option<ReplicaId>) -> Rejection {
        let rejection = Rejection::new(ErrorCode::NotLeader, format!("shard {}: {error}", self.id().0));
        match leader {
            Some(leader) => rejection.led_by(leader.node),
            None => rejection.retry_after_ms(EARLY_RETRY_AFTER_MS),
        }
    }
}

fn refusal_code(refusal: &PeerRefusal) -> ErrorCode {
    match refusal {
        PeerRefusal::Alone => ErrorCode::NotPeer,
        PeerRefusal::WrongReplica { .. } => ErrorCode::WrongReplica,
        PeerRefusal::Recovering | PeerRefusal::Quiet => ErrorCode::Recovering,
        PeerRefusal::Busy => ErrorCode::Overloaded,
        PeerRefusal::Malformed(_) => ErrorCode::InvalidArgument,
        PeerRefusal::Stopped(reason) => stop_code(reason),
    }
}

fn advise(rejection: Rejection) -> Rejection {
    if rejection.code.retriable() { rejection.retry_after_ms(EARLY_RETRY_AFTER_MS) } else { rejection }
}

fn replica_of(archived: &ArchivedReplica) -> ReplicaId {
    ReplicaId { node: archived.node.to_native(), incarnation: archived.incarnation.to_native() }
}
