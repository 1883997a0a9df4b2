//! A replica's life inside its group: how it starts, keeps quiet after a restart, follows its role and changes terms.
//!
//! ```text
//!  start ──> check ──> replay committed ──┬─ log empty, founds ─────> found ──────────┐
//!                                         ├─ sole voter, own vote ──> stand ──────────┴─> lead, apply all ──> ready
//!                                         ├─ log empty, joins ──────> ready, silent until a leader adds it
//!                                         └─ one of several ────────> ready, takes entries ──guard over──> votes, campaigns
//! ```
//!
//! openraft's timer runs while there is somebody to talk to, and not before the restart guard is over; so does every vote.

use super::errors::StopReason;
use super::group::{Core, Inner, NOBODY, Unready, is_sole_voter};
use super::group_peers::AppendLane;
use super::network::PeerNetwork;
use super::start::{GroupLog, RestartGuard, replay};
use super::state_machine::Applier;
use super::types::{RaftVote, TypeConfig, to_log_id};
use crate::bugs::Bug;
use gristmill_shardexec as shardexec;
use gristmill_shardexec::Class;
use gristmill_shardexec::time::{Instant, timeout};
use gristmill_wal::LogPosition;
use openraft::errors::{Fatal, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use openraft::{RaftMetrics, ReadPolicy, ServerState};
use openraft_rt::WatchReceiver;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Everything from a checked log to a group that serves as far as its role lets it.
pub(super) async fn run_start<L: GroupLog>(
    inner: &Rc<Inner>,
    config: Arc<openraft::Config>,
    mut log: L,
    applier: Applier,
) -> Result<(), StopReason> {
    let summary = inner.log_at_start;
    replay(&mut log, &applier, summary.committed).await.map_err(|error| error.stop_reason())?;
    let replica = inner.config.replica;
    let network = PeerNetwork {
        shard: inner.config.shard,
        own: replica,
        links: inner.peers.as_ref().map(|peers| peers.links.clone()),
        stats: Rc::clone(&inner.stats),
    };
    let core = Core::build(replica, config, network, log, applier).await.map_err(|fatal| inner.reason_of(&fatal))?;
    assert!(inner.core.set(core.clone()).is_ok() && inner.metrics.set(core.metrics()).is_ok(), "a group starts once");
    core.run();
    let initialized = core.is_initialized().await.map_err(|fatal| inner.reason_of(&fatal))?;
    let founds = !initialized && inner.peers.as_ref().is_none_or(|peers| peers.found);
    let sole = founds || is_sole_voter(core.metrics().borrow_watched().membership_config.membership(), replica);
    let (now, hold) = (Instant::boottime_now(), inner.config.settings.restart_hold());
    let vote = summary.vote.filter(|_| !inner.config.settings.bugs().has(Bug::LeaseForgotten));
    let guard = RestartGuard::new(sole, replica, vote, now, hold);
    assert!(inner.guard.set(guard).is_ok(), "a group starts once");
    if inner.peers.is_some() {
        *inner.lane.borrow_mut() = Some(AppendLane::start(&core, Rc::downgrade(inner)));
    } else if sole {
        // Nobody can make it anything else meanwhile.
        guard.wait().await;
    } else {
        return Err(StopReason::NeedsPeers { voters: core.voter_ids().count() });
    }
    let alone = sole && guard.may_vote(Instant::boottime_now());
    if founds {
        core.initialize(BTreeSet::from([replica])).await.map_err(|error| inner.reason_of_refusal(&error))?;
    } else if alone {
        core.trigger().elect(false).await.map_err(|fatal| inner.reason_of(&fatal))?;
    }
    if alone {
        lead_alone(inner, &core).await?;
    }
    shardexec::spawn(Class::Raft, "raft roles", follow_roles(core.server_metrics(), Rc::downgrade(inner)));
    shardexec::spawn(Class::Raft, "raft restart guard", end_guard(guard, alone, Rc::downgrade(inner)));
    Ok(())
}

/// Waits until the only voter leads and has applied everything.
async fn lead_alone(inner: &Inner, core: &Core) -> Result<(), StopReason> {
    let term = wait_until_leading(core, 0).await.map_err(|fatal| inner.reason_of(&fatal))?;
    inner.elections.note(term);
    inner.leader_changes.note(term);
    // Returns once this term's first entry is applied, and with it everything before.
    core.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| inner.reason_of_refusal(&error))?;
    Ok(())
}

/// Notes each change of leader, role and membership, for as long as the replica runs.
///
/// Where there are others it also looks after the log once a lease: an idle leader writes nothing, so it would not notice that
/// its log has failed, and heartbeats would keep the others from replacing it.
async fn follow_roles(
    mut metrics: openraft::alias::WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    inner: Weak<Inner>,
) {
    loop {
        let look_pause = {
            let Some(inner) = inner.upgrade() else { return };
            inner.note_roles(&metrics.borrow_and_update());
            inner.has_others().then_some(inner.config.settings.leader_lease)
        };
        let changed = match look_pause {
            None => metrics.changed().await,
            Some(pause) => loop {
                if let Ok(changed) = timeout(pause, metrics.changed()).await {
                    break changed;
                }
                let Some(inner) = inner.upgrade() else { return };
                if matches!(inner.unready(), Some(Unready::Stopped(_))) {
                    return;
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// From now on the replica votes, and campaigns where it has a vote.
async fn end_guard(guard: RestartGuard, leads: bool, inner: Weak<Inner>) {
    guard.wait().await;
    let Some(inner) = inner.upgrade() else { return };
    inner.refresh_tick();
    if !leads && inner.is_alone() {
        // The timer does not run for it. An error is the end of the core, which says so itself.
        let _ = inner.core().trigger().elect(false).await;
    }
}

impl Inner {
    fn note_roles(&self, metrics: &RaftServerMetrics<TypeConfig>) {
        let (term, own) = (metrics.vote.leader_id.term, self.config.replica);
        if metrics.current_leader.is_some() {
            self.leader_changes.note(term);
        }
        let stands = matches!(metrics.state, ServerState::Candidate | ServerState::Leader);
        if stands && metrics.vote.leader_id.voted_for == own {
            self.elections.note(term);
        }
        self.refresh_tick();
        self.changed.notify_waiters();
    }

    /// The timer costs CPU, so it runs only while there are others.
    fn refresh_tick(&self) {
        let (Some(core), Some(guard)) = (self.core.get(), self.guard.get()) else { return };
        core.runtime_config().tick(self.has_others() && guard.may_vote(Instant::boottime_now()));
    }

    fn has_others(&self) -> bool {
        let metrics = self.metrics();
        metrics.membership_config.membership().nodes().any(|(member, _)| *member != self.config.replica)
    }

    pub(super) async fn pass_gate(&self) {
        while self.moving.get() {
            self.changed.notified().await;
        }
    }

    /// Starts the move to a new term if this one's tokens are used up.
    pub(super) fn leave_spent_term(self: &Rc<Self>) {
        let (term, leads) = {
            let metrics = self.metrics();
            (metrics.current_term, metrics.state == ServerState::Leader)
        };
        if self.moving.get() || !leads || !self.stamper.is_spent(term) {
            return;
        }
        self.moving.set(true);
        let inner = Rc::clone(self);
        shardexec::spawn(Class::Raft, "raft new term", async move {
            if let Err(fatal) = inner.move_to_new_term(term).await {
                inner.stopped_by(&fatal);
            }
            inner.moving.set(false);
            inner.changed.notify_waiters();
        });
    }

    /// Gives up `term` and stands for election again.
    ///
    /// openraft ignores an election that a leader asks for, so the leader first grants the next term to nobody, which
    /// makes it a follower, and then stands in the one after. Entries in flight stay in the log and are committed by the
    /// new term's first entry; their responders wait for that. New proposals wait at the gate: clients notice nothing.
    ///
    /// Where others vote they still hold to the lease of the old term. So the leader makes itself its successor, as in a
    /// transfer: that election passes over the lease, which was its own and which it has stopped to use.
    async fn move_to_new_term(&self, term: u64) -> Result<(), Fatal<TypeConfig>> {
        let (core, own) = (self.core(), self.config.replica);
        self.offered.set(term);
        let alone = self.is_alone();
        let newest = to_log_id(LogPosition { term: term + 1, index: u64::MAX });
        let nobody = RaftVote::new(term + 1, NOBODY);
        let abdication = VoteRequest { vote: nobody, last_log_id: Some(newest), leadership_transfer: true };
        core.vote(abdication).await.map_err(fatal_of)?;
        if alone {
            core.trigger().elect(false).await?;
        } else {
            // Refused only where another vote came in between: then somebody else stands.
            let _ = core.handle_transfer_leader(TransferLeaderRequest::new(nobody, own, None)).await?;
        }
        if self.peers.is_none() {
            // However slow the disk is, it leads in the end.
            let term = wait_until_leading(core, term + 1).await?;
            self.elections.note(term);
            self.leader_changes.note(term);
            return Ok(());
        }
        // A change of membership that was under way may have ended its being alone, so the wait is bounded also then.
        let led = |metrics: &RaftMetrics<TypeConfig>| {
            metrics.running_state.is_err() || (metrics.current_leader.is_some() && metrics.current_term > term + 1)
        };
        // Without a leader after that proposals are told so, as in any group that lost its own.
        let _ = timeout(self.config.settings.leader_lease * 2, core.wait(None).metrics(led, "a leader")).await;
        Ok(())
    }
}

fn fatal_of(error: RaftError<TypeConfig>) -> Fatal<TypeConfig> {
    match error {
        RaftError::Fatal(fatal) => fatal,
        RaftError::APIError(never) => match never {},
    }
}

/// Waits until this replica leads a term above `term`: which one.
async fn wait_until_leading(core: &Core, term: u64) -> Result<u64, Fatal<TypeConfig>> {
    let leads = |metrics: &RaftMetrics<TypeConfig>| {
        metrics.running_state.is_err() || (metrics.state == ServerState::Leader && metrics.current_term > term)
    };
    match core.wait(None).metrics(leads, "leading").await {
        Ok(metrics) => metrics.running_state.map(|()| metrics.current_term),
        Err(_closed) => Err(Fatal::Stopped),
    }
}
