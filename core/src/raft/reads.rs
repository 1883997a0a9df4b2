//! Who may read the state right now.
//!
//! ```text
//!   read ─► nobody else can ever belong to it ────────────► now
//!           leads, own term's entry applied, sole voter ──► now
//!           leads, own term's entry applied, lease good ──► now
//!           leads, lease gone ──► ask a quorum ──► applied ──► now
//!           else ─► NotLeader
//! ```
//!
//! A lease is a promise of a quorum to elect nobody else for a while. The leader counts it from when it *sent* what the quorum
//! answered, and takes [`LEASE_DRIFT_PERCENT`] off, for its clock may run slower than theirs. It counts for nothing
//! once the leadership was offered to another, who may be elected within it, nor after the leader was taken out of the voters.
//!
//! A replica that is the only voter by its own log may be so by an entry that was never committed, or long ago; only one that
//! leads knows better, and its state is current only with its own term's first entry.

use super::config::LEASE_DRIFT_PERCENT;
use super::errors::ReadError;
use super::group::{Group, Unready, is_sole_voter};
use super::runtime::BootInstant;
use super::types::TypeConfig;
use crate::bugs::Bug;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::metrics::SerdeInstant;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{RaftMetrics, ServerState};
use openraft_rt::Instant;
use std::time::Duration;

impl Group {
    /// Whether this replica may answer a linearizable read from its state right now. Whatever was acknowledged is applied
    /// here then, so a local check is enough.
    ///
    /// # Errors
    /// [`ReadError::Unconfirmed`]: it leads, but its lease is gone; [`Group::linearizable`] asks the others.
    pub fn read_permission(&self) -> Result<(), ReadError> {
        let bugs = self.0.config.settings.bugs();
        if let Some(unready) = self.0.unready() {
            let too_early = bugs.has(Bug::ReadBeforeReplay) && matches!(unready, Unready::Recovering { .. });
            return if too_early { Ok(()) } else { Err(unready.into()) };
        }
        let metrics = self.0.metrics();
        if let Err(fatal) = &metrics.running_state {
            return Err(ReadError::Stopped(self.0.reason_of(fatal)));
        }
        let sole = is_sole_voter(metrics.membership_config.membership(), self.0.config.replica);
        if sole && self.0.peers.is_none() {
            return Ok(());
        }
        if metrics.state != ServerState::Leader {
            return Err(ReadError::NotLeader { leader: metrics.current_leader });
        }
        // The first entry of its term brings along everything that was committed before.
        let is_current = self.0.progress.applied().is_some_and(|applied| applied.term == metrics.current_term);
        let has_lease = sole || bugs.has(Bug::LeaseUnchecked) || self.has_lease(&metrics);
        if is_current && has_lease { Ok(()) } else { Err(ReadError::Unconfirmed) }
    }

    fn has_lease(&self, metrics: &RaftMetrics<TypeConfig>) -> bool {
        let acknowledged = metrics.last_quorum_acked.map(SerdeInstant::into_inner);
        let in_time = acknowledged.is_some_and(|at| BootInstant::now() < at + self.read_lease());
        self.lease_counts(metrics) && in_time
    }

    /// Whether a lease, if there is one, keeps others from being elected.
    fn lease_counts(&self, metrics: &RaftMetrics<TypeConfig>) -> bool {
        let (inner, own) = (&self.0, self.0.config.replica);
        !inner.moving.get()
            && inner.offered.get() != metrics.current_term
            && metrics.membership_config.membership().voter_ids().any(|voter| voter == own)
    }

    fn read_lease(&self) -> Duration {
        self.0.config.settings.leader_lease * (100 - LEASE_DRIFT_PERCENT) / 100
    }

    /// Waits until this replica's state holds everything acknowledged before the call, wherever it leads.
    pub async fn linearizable(&self) -> Result<(), ReadError> {
        match self.read_permission() {
            Err(ReadError::Unconfirmed) => {}
            decided => return decided,
        }
        // Within the lease at once, else by a round of heartbeats that begins now.
        let age_max = if self.lease_counts(&self.0.metrics()) { self.read_lease() } else { Duration::ZERO };
        let confirm = LinearizerOption::new(Some(age_max), true);
        match self.0.core().ensure_linearizable(confirm).await {
            Ok(_read_log_id) => Ok(()),
            Err(RaftError::Fatal(fatal)) => Err(ReadError::Stopped(self.0.reason_of(&fatal))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReadError::NotLeader { leader: None })
            }
        }
    }
}
