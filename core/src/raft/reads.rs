//! Who may read the state right now.
//!
//! ```text
//!   read ─► sole voter? ──────────────────────────────────► now
//!           leads, lease good, own term's entry applied ──► now
//!           leads, lease gone ──► ask a quorum ──► applied ──► now
//!           else ─► NotLeader
//! ```
//!
//! A lease is a promise of a quorum to elect nobody else for a while. The leader counts it from when it *sent* what the quorum
//! answered, and takes [`LEASE_DRIFT_PERCENT`] off, for its clock may run slower than theirs. It counts for nothing
//! once the leadership was offered to another, who may be elected within it, nor after the leader was taken out of the voters.

use super::config::LEASE_DRIFT_PERCENT;
use super::errors::ReadError;
use super::group::{Group, is_sole_voter};
use super::runtime::BootInstant;
use super::types::TypeConfig;
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
        if let Some(unready) = self.0.unready() {
            return Err(unready.into());
        }
        let metrics = self.0.metrics();
        if let Err(fatal) = &metrics.running_state {
            return Err(ReadError::Stopped(self.0.reason_of(fatal)));
        }
        if is_sole_voter(metrics.membership_config.membership(), self.0.config.replica) {
            return Ok(());
        }
        if metrics.state != ServerState::Leader {
            return Err(ReadError::NotLeader { leader: metrics.current_leader });
        }
        if self.has_lease(&metrics) { Ok(()) } else { Err(ReadError::Unconfirmed) }
    }

    fn has_lease(&self, metrics: &RaftMetrics<TypeConfig>) -> bool {
        let (inner, own) = (&self.0, self.0.config.replica);
        let term = metrics.current_term;
        let may_count = !inner.moving.get()
            && inner.offered.get() != term
            && metrics.membership_config.membership().voter_ids().any(|voter| voter == own);
        // The first entry of its term brings along everything that was committed before.
        let is_current = inner.progress.applied().is_some_and(|applied| applied.term == term);
        let acknowledged = metrics.last_quorum_acked.map(SerdeInstant::into_inner);
        let in_time = acknowledged.is_some_and(|at| BootInstant::now() < at + self.read_lease());
        may_count && is_current && in_time
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
        // Within the lease at once, else by a round of heartbeats.
        let confirm = LinearizerOption::new(Some(self.read_lease()), true);
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
