//! A replica as an onlooker sees it.

use super::{Group, Inner};
use crate::raft::errors::StopReason;
use crate::raft::log_store::vote_to_wal;
use crate::raft::types::{ReplicaId, TypeConfig, to_position};
use gristmill_wal::{LogPosition, Vote};
use openraft::{RaftMetrics, ServerState};
use openraft_rt::WatchReceiver;

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Consensus does not run yet, or not any more.
    #[default]
    None,
    /// Receives the log, has no vote; or waits to be made a member.
    Learner,
    /// Receives the log, votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    pub(super) fn of(metrics: &RaftMetrics<TypeConfig>) -> Role {
        match metrics.state {
            _ if metrics.running_state.is_err() => Role::None,
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::None,
        }
    }
}

/// A replica's figures at one moment, taken without changing anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Which replica.
    pub replica: ReplicaId,
    /// What it is in its group.
    pub role: Role,
    /// Its term; 0 before consensus runs.
    pub term: u64,
    /// The last vote that it made durable in this life; `None` before consensus runs.
    pub vote: Option<Vote>,
    /// Who leads, as far as it knows.
    pub leader: Option<ReplicaId>,
    /// Index of the last entry in its log, durable or not.
    pub last_log: Option<u64>,
    /// The last entry that its log has made durable, as far as consensus was told.
    pub durable: Option<LogPosition>,
    /// The last entry that it knows to be committed.
    pub committed: Option<LogPosition>,
    /// The last entry in its state.
    pub applied: Option<LogPosition>,
    /// Whether it serves.
    pub ready: bool,
    /// Why it has stopped, if it has noticed.
    pub stopped: Option<StopReason>,
}

impl Group {
    /// Looks at the replica. Unlike [`Group::phase`] this does not even ask the log whether it failed.
    pub fn view(&self) -> ReplicaView {
        self.0.view()
    }
}

impl Inner {
    fn view(&self) -> ReplicaView {
        let mut view = ReplicaView {
            replica: self.config.replica,
            role: Role::None,
            term: 0,
            vote: None,
            leader: None,
            last_log: self.log_at_start.last.map(|last| last.index),
            durable: (self.flushed)(),
            committed: self.log_at_start.committed,
            applied: self.progress.applied(),
            ready: self.ready.get(),
            stopped: self.stop_reason(),
        };
        if let Some(receiver) = self.metrics.get() {
            let metrics = receiver.borrow_watched();
            view.role = Role::of(&metrics);
            view.term = metrics.current_term;
            view.vote = Some(vote_to_wal(&metrics.vote));
            view.leader = metrics.current_leader;
            view.last_log = metrics.last_log_index.or(view.last_log);
            view.committed = metrics.local_committed.as_ref().map(to_position).or(view.committed);
        }
        view
    }
}
