//! Who belongs to a group: adding a replica that follows, changing who votes, handing over the leadership.
//!
//! ```text
//!   add_learner(new) ─► it catches up by the log ─► change_membership(voters) ─► joint ─► final ─► done
//! ```
//!
//! Only the leader can, one change at a time; openraft goes from one set of voters to another through a joint membership. Each
//! new voter must follow already, so that a change does not make the group wait for an empty log.

use super::codec::MEMBERS_MAX;
use super::errors::MembershipError;
use super::group::{Group, PROPOSE_ATTEMPTS_MAX, Unready};
use super::types::{ReplicaId, TypeConfig, to_position};
use gristmill_rpc::limits::VOTERS_MAX;
use gristmill_shardexec::time::timeout;
use gristmill_wal::LogPosition;
use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardReason, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{EmptyNode, RaftMetrics, ServerState};
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

/// How long [`Group::add_learner`] waits for the learner to catch up.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(10);

type Change = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

impl Group {
    /// Makes `replica` follow the group without a vote, and waits until it has caught up. Adding it again does no harm.
    ///
    /// # Errors
    /// [`MembershipError::Behind`] after [`CATCH_UP_MAX`]: it was added all the same.
    pub async fn add_learner(&self, replica: ReplicaId) -> Result<LogPosition, MembershipError> {
        self.check_member(replica)?;
        let members = {
            let metrics = self.0.metrics();
            metrics.membership_config.membership().nodes().filter(|(member, _)| **member != replica).count()
        };
        if members >= MEMBERS_MAX {
            return Err(refused(format!("the shard has {members} members, the most there may be")));
        }
        let at = self.change(|| self.0.core().add_learner(replica, EmptyNode {}, false)).await?;
        let has = |metrics: &RaftMetrics<TypeConfig>| {
            let replication = metrics.replication.as_ref();
            let matched = replication.and_then(|of| of.get(&replica)).and_then(|matched| matched.as_ref());
            let caught_up = matched.is_some_and(|matched| matched.index >= at.index);
            metrics.running_state.is_err() || metrics.state != ServerState::Leader || caught_up
        };
        if replica == self.0.config.replica {
            return Ok(at);
        }
        let waited_ms = CATCH_UP_MAX.as_millis() as u64;
        let caught_up = timeout(CATCH_UP_MAX, self.0.core().wait(None).metrics(has, "a learner")).await;
        match caught_up {
            Err(_) => Err(MembershipError::Behind { replica, waited_ms }),
            Ok(Ok(metrics)) if metrics.state == ServerState::Leader => Ok(at),
            Ok(_) => Err(MembershipError::Unknown),
        }
    }

    /// Replaces the voters by `voters`, each of whom follows already. With `retain` those who lose their vote go on following.
    pub async fn change_membership(
        &self,
        voters: BTreeSet<ReplicaId>,
        retain: bool,
    ) -> Result<LogPosition, MembershipError> {
        if voters.is_empty() || voters.len() > VOTERS_MAX {
            return Err(refused(format!("{} voters are not 1 to {VOTERS_MAX}", voters.len())));
        }
        voters.iter().try_for_each(|voter| self.check_member(*voter))?;
        self.change(|| self.0.core().change_membership(voters.clone(), retain)).await
    }

    /// Offers the leadership to another voter, which stands for election at once. Returns when this replica leads no more,
    /// or after two leases.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> {
        self.check_member(to)?;
        let (core, own) = (self.0.core(), self.0.config.replica);
        let (leader, term, votes) = {
            let metrics = self.0.metrics();
            let votes = metrics.membership_config.membership().voter_ids().any(|voter| voter == to);
            (metrics.current_leader, metrics.current_term, votes)
        };
        if leader != Some(own) {
            return Err(MembershipError::NotLeader { leader });
        }
        if to == own {
            return Ok(());
        }
        if !votes {
            return Err(refused(format!("replica {to} has no vote in the shard")));
        }
        // Before anybody can be elected in spite of the lease.
        self.0.offered.set(term);
        core.trigger().transfer_leader(to).await.map_err(|fatal| self.0.reason_of(&fatal))?;
        let over = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.running_state.is_err() || metrics.current_leader.is_some_and(|leader| leader != own)
        };
        match timeout(self.0.config.settings.leader_lease * 2, core.wait(None).metrics(over, "a leader")).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MembershipError::Unknown),
        }
    }

    /// Whether a change may name `replica`, and may be asked for here at all.
    fn check_member(&self, replica: ReplicaId) -> Result<(), MembershipError> {
        let peers = self.0.peers.as_ref().ok_or(MembershipError::Alone)?;
        match self.0.unready() {
            Some(Unready::Recovering { .. }) => return Err(MembershipError::Recovering),
            Some(Unready::Stopped(reason)) => return Err(reason.into()),
            None => {}
        }
        let own = self.0.config.replica;
        if replica.node == own.node && replica != own {
            return Err(refused(format!("node {} is here, and lives as {own}", own.node)));
        }
        if !peers.links.book().knows(replica.node) {
            return Err(refused(format!("node {} is not a node of this cluster", replica.node)));
        }
        Ok(())
    }

    /// Makes a change; renews the lease and tries again where that is all that lacks.
    async fn change<F: Future<Output = Change>>(&self, make: impl Fn() -> F) -> Result<LogPosition, MembershipError> {
        for _ in 1..PROPOSE_ATTEMPTS_MAX {
            match make().await {
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))
                    if forward.reason == ForwardReason::LeaseExpired =>
                {
                    if !self.0.renew_lease().await {
                        break;
                    }
                }
                made => return self.outcome(made),
            }
        }
        self.outcome(make().await)
    }

    fn outcome(&self, made: Change) -> Result<LogPosition, MembershipError> {
        match made {
            Ok(written) => Ok(to_position(&written.log_id)),
            Err(RaftError::Fatal(fatal)) => Err(self.0.reason_of(&fatal).into()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(MembershipError::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                let text = error.to_string().into();
                let busy = matches!(
                    error,
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)
                );
                Err(if busy { MembershipError::Busy(text) } else { MembershipError::Refused(text) })
            }
            Err(RaftError::APIError(_)) => Err(MembershipError::Unknown),
        }
    }
}

fn refused(text: String) -> MembershipError {
    MembershipError::Refused(text.into())
}
