//! One shard's replica: the handle that everything outside `raft` uses.
//!
//! ```text
//!            propose_many(batch)                        reads: read_permission()       group_peers: receive()
//!                  │ admitted: number, size                     │ leads, lease                │ for this life of the replica
//!                  v                                            v                             v
//!  gate ──> openraft core ──> log append ──> flushed ──> committed ──> apply ──> outcomes
//!   ^ closed while the leader moves to a new term (its tokens are used up)
//! ```
//!
//! `life` starts it, keeps it quiet after a restart and follows its roles; `members` changes who belongs to it.
//!
//! Life: recovering -> ready -> stopped, never back; a log that failed stops the replica at the next look at it, which is within
//! a lease where there are others. Ready means that consensus runs here: a follower is ready
//! and says who leads. A restarted leader never resumes its old term. An idle group of one voter that nobody follows has no timer and burns no CPU.
//!
//! Limits: [`PROPOSALS_IN_FLIGHT_MAX`], [`PROPOSAL_BYTES_IN_FLIGHT_MAX`]; [`PROPOSE_ATTEMPTS_MAX`] for what openraft refuses before it writes.

mod view;

pub use view::{ReplicaView, Role};

use super::config::RaftSettings;
use super::errors::{ProposeError, ReadError, StartError, StopReason};
use super::group_peers::AppendLane;
use super::life::run_start;
use super::log_store::WalLog;
use super::memory_store::MemoryLog;
use super::network::{PeerLinks, PeerStats};
use super::start::{GroupLog, LogSummary, RestartGuard, check_start};
use super::state_machine::{Applier, ApplyProgress, StateMachine};
use super::tokens::TokenStamper;
use super::types::{Context, Outcome, Proposal, RaftMembership, ReplicaId, TypeConfig, to_position};
use futures_util::StreamExt;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::limits::REPLICATED_ENTRY_BYTES_MAX;
use gristmill_shardexec as shardexec;
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::time::timeout;
use gristmill_shardexec::{Class, JoinHandle};
use gristmill_wal::{LogPosition, Promise, WalError};
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, RaftError};
use openraft::raft::WriteResult;
use openraft::{Raft, RaftMetrics, ReadPolicy, ServerState};
use openraft_rt::WatchReceiver;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::bugs::Bug;
use crate::state::envelope::ENTRY_HEADER_BYTES;

/// Proposals of one group that wait for their outcome, at the most.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 16_384;
/// Bytes of those proposals, at the most.
pub const PROPOSAL_BYTES_IN_FLIGHT_MAX: usize = 64 << 20;
/// Times that a proposal is handed to openraft again after it refused it before writing.
pub const PROPOSE_ATTEMPTS_MAX: u32 = 4;

/// How long to wait for consensus to say why it ended, and for its end when the replica is shut down.
const END_OF_CORE_MAX: Duration = Duration::from_secs(5);

/// Nobody: a replica that cannot exist, for node ids start at 1. A leader that gives up its term votes for it.
pub(super) const NOBODY: ReplicaId = ReplicaId { node: 0, incarnation: 0 };

/// What a group is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct GroupConfig {
    /// The shard.
    pub shard: ShardId,
    /// This replica.
    pub replica: ReplicaId,
    /// Timers.
    pub settings: RaftSettings,
}

/// How a group takes part in a cluster.
#[derive(Clone)]
pub struct GroupPeers {
    /// The core's connections to the other nodes.
    pub links: PeerLinks,
    /// Founds the group if its log is empty. Exactly one replica of a group may: the others wait for a leader to add them.
    pub found: bool,
}

/// Where the group's log is kept.
#[derive(Clone)]
pub enum GroupStore {
    /// On the core's WAL.
    Wal(WalLog),
    /// In memory.
    Memory(MemoryLog),
}

impl From<WalLog> for GroupStore {
    fn from(log: WalLog) -> Self {
        GroupStore::Wal(log)
    }
}

impl From<MemoryLog> for GroupStore {
    fn from(log: MemoryLog) -> Self {
        GroupStore::Memory(log)
    }
}

/// A proposal that was committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Where it stands in the log.
    pub position: LogPosition,
    /// What the state machine answered.
    pub outcome: Outcome,
}

/// What a group is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Replaying its log, or not yet leader.
    Recovering {
        /// Entries applied so far.
        applied: u64,
        /// Entries to apply before it serves.
        target: u64,
    },
    /// Serving, as far as its role lets it.
    Ready,
    /// Stopped for good.
    Stopped(StopReason),
}

/// A group's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetrics {
    /// What it is doing.
    pub phase: Phase,
    /// The current term; 0 before consensus runs.
    pub term: u64,
    /// Who leads, as far as known.
    pub leader: Option<ReplicaId>,
    /// The last entry in the log.
    pub last_log: Option<LogPosition>,
    /// The last entry known committed.
    pub committed: Option<LogPosition>,
    /// The last entry applied.
    pub applied: Option<LogPosition>,
    /// What this replica is to the group.
    pub role: Role,
    /// Voters of the membership in force, by id.
    pub voters: Vec<ReplicaId>,
    /// Those who follow without a vote, by id.
    pub learners: Vec<ReplicaId>,
    /// Proposals that wait for their outcome.
    pub in_flight: usize,
    /// This replica leads and serves.
    pub leads: bool,
    /// Entries in the log.
    pub log_entries: u64,
    /// Elections that this replica started.
    pub elections: u64,
    /// Leaders that this replica has seen.
    pub leader_changes: u64,
    /// Fencing tokens that this replica issued.
    pub tokens_issued: u64,
    /// Appends sent to others, heartbeats included.
    pub appends_sent: u64,
    /// Appends received from leaders.
    pub appends_received: u64,
    /// Votes asked of others.
    pub votes_sent: u64,
}

pub(super) type Core = Raft<TypeConfig, Applier>;
type MetricsReceiver = openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// One shard's replica on this core. A clone is another handle to it.
#[derive(Clone)]
pub struct Group(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) config: GroupConfig,
    pub(super) peers: Option<GroupPeers>,
    pub(super) stats: Rc<PeerStats>,
    entry_bytes_max: usize,
    pub(super) log_at_start: LogSummary,
    pub(super) progress: Rc<ApplyProgress>,
    pub(super) stamper: Rc<TokenStamper>,
    pub(super) core: OnceCell<Core>,
    pub(super) metrics: OnceCell<MetricsReceiver>,
    /// Set once it is known what a restart binds the replica to; before, it takes no messages from others.
    pub(super) guard: OnceCell<RestartGuard>,
    /// Where appends of a leader wait for consensus, in order.
    pub(super) lane: RefCell<Option<AppendLane>>,
    ready: Cell<bool>,
    stopped: RefCell<Option<StopReason>>,
    /// Told at each change of `ready`, `stopped` and `moving`, and of the group's leader and membership.
    pub(super) changed: Notify,
    /// The leader is moving to a new term; proposals wait.
    pub(super) moving: Cell<bool>,
    /// In this term the replica has offered its leadership to another: its lease counts no more.
    pub(super) offered: Cell<u64>,
    pub(super) elections: TermCounter,
    pub(super) leader_changes: TermCounter,
    in_flight: Cell<usize>,
    bytes_in_flight: Cell<usize>,
    /// Promises room in the log for so many entries of so many bytes.
    promise: Box<dyn Fn(usize, usize) -> Result<Option<Promise>, WalError>>,
    /// Why the log takes nothing for good, if that is so.
    log_failure: Box<dyn Fn() -> Option<WalError>>,
    /// Makes an append that waits for space fail.
    stop_waiting: Box<dyn Fn()>,
    /// The last entry that the log has made durable.
    flushed: Box<dyn Fn() -> Option<LogPosition>>,
    start: Cell<Option<JoinHandle<()>>>,
}

/// Counts what happens once a term at the most, however often it is seen.
#[derive(Debug, Default)]
pub(super) struct TermCounter {
    last: Cell<u64>,
    count: Cell<u64>,
}

impl TermCounter {
    pub(super) fn note(&self, term: u64) {
        if term > self.last.get() {
            self.last.set(term);
            self.count.set(self.count.get() + 1);
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("shard", &self.0.config.shard)
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

impl Group {
    /// Checks the log against the state and starts the replica on the current executor. It serves once
    /// [`Group::ready`] returns; until then requests get `Recovering`.
    ///
    /// # Errors
    /// Log and state contradict each other, or the settings do. Nothing was voted or written then.
    pub fn start(
        config: GroupConfig,
        store: impl Into<GroupStore>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Group, StartError> {
        Group::start_with(config, None, store, machine)
    }

    /// The same for a replica that may have others: `peers` is how it reaches them.
    ///
    /// # Errors
    /// As [`Group::start`].
    pub fn start_with(
        config: GroupConfig,
        peers: Option<GroupPeers>,
        store: impl Into<GroupStore>,
        machine: Box<dyn StateMachine>,
    ) -> Result<Group, StartError> {
        match store.into() {
            GroupStore::Wal(log) => Group::start_on(config, peers, log, machine),
            GroupStore::Memory(log) => Group::start_on(config, peers, log, machine),
        }
    }

    fn start_on<L: GroupLog>(
        config: GroupConfig,
        peers: Option<GroupPeers>,
        log: L,
        machine: Box<dyn StateMachine>,
    ) -> Result<Group, StartError> {
        assert!(config.replica.node != NOBODY.node, "node ids start at 1");
        let raft_config = config.settings.to_openraft(format!("shard {}", config.shard.0))?;
        let summary = log.summary();
        check_start(&summary, machine.applied())?;
        let (releasing, asking, watched, stopping) = (log.clone(), log.clone(), log.clone(), log.clone());
        let flushing = log.clone();
        let applier = Applier::new(machine, Box::new(move |index| releasing.release(index)));
        // What does not fit into one append could never reach a follower.
        let replicated_max = if peers.is_some() { REPLICATED_ENTRY_BYTES_MAX } else { usize::MAX };
        let inner = Rc::new(Inner {
            config,
            peers,
            stats: Rc::default(),
            entry_bytes_max: log.entry_bytes_max().min(replicated_max),
            log_at_start: summary,
            progress: applier.progress(),
            stamper: log.stamper(),
            core: OnceCell::new(),
            metrics: OnceCell::new(),
            guard: OnceCell::new(),
            lane: RefCell::default(),
            ready: Cell::new(false),
            stopped: RefCell::new(None),
            changed: Notify::new(),
            moving: Cell::new(false),
            offered: Cell::new(0),
            elections: TermCounter::default(),
            leader_changes: TermCounter::default(),
            in_flight: Cell::new(0),
            bytes_in_flight: Cell::new(0),
            promise: Box::new(move |entries, bytes| asking.promise(entries, bytes)),
            log_failure: Box::new(move || watched.failure()),
            stop_waiting: Box::new(move || stopping.stop_waiting()),
            flushed: Box::new(move || flushing.flushed()),
            start: Cell::new(None),
        });
        let group = Group(Rc::clone(&inner));
        let start = shardexec::spawn(Class::Raft, "raft group start", async move {
            // A panic must not leave the group recovering for ever.
            let unfinished = StopIfUnfinished(&inner);
            match run_start(&inner, Arc::new(raft_config), log, applier).await {
                Ok(()) => inner.become_ready(),
                Err(reason) => inner.stop(reason),
            }
            drop(unfinished);
        });
        group.0.start.set(Some(start));
        Ok(group)
    }

    /// Waits until the group serves or has stopped.
    pub async fn ready(&self) -> Result<(), StopReason> {
        loop {
            if let Some(reason) = self.0.stop_reason() {
                return Err(reason);
            }
            if self.0.ready.get() {
                return Ok(());
            }
            self.0.changed.notified().await;
        }
    }

    /// Waits until the group's phase, term, leader or membership may have changed.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Entries that the log held when the group started: those that it replays.
    pub fn entries_at_start(&self) -> u64 {
        entries_to(self.0.log_at_start.last) - entries_to(self.0.log_at_start.purged)
    }

    /// What the group is doing.
    pub fn phase(&self) -> Phase {
        match self.0.unready() {
            None => Phase::Ready,
            Some(Unready::Stopped(reason)) => Phase::Stopped(reason),
            Some(Unready::Recovering { applied, target }) => Phase::Recovering { applied, target },
        }
    }

    /// Proposes a batch, in order, and waits until all of it is applied or refused; one result each.
    ///
    /// Batches are what makes this fast: the whole batch is one message to the consensus task and one append.
    pub async fn propose_many(&self, proposals: Vec<Proposal>) -> Vec<Result<Applied, ProposeError>> {
        if proposals.is_empty() {
            return Vec::new();
        }
        let _admitted = match self.admit(&proposals) {
            Ok(admitted) => admitted,
            Err(refused) => return vec![Err(refused); proposals.len()],
        };
        self.0.propose(proposals).await
    }

    /// [`Group::propose_many`] in the types of one context.
    pub async fn propose_in<C: Context>(&self, requests: Vec<C::Request>) -> Vec<Result<C::Response, ProposeError>> {
        let proposals = requests.into_iter().map(C::to_proposal).collect();
        let answer = |result: Result<Applied, ProposeError>| result.map(|applied| C::from_outcome(&applied.outcome));
        self.propose_many(proposals).await.into_iter().map(answer).collect()
    }

    /// Whether a command of `body_bytes` fits into an entry. A proposal that does not makes its whole batch fail.
    pub fn check_size(&self, body_bytes: usize) -> Result<(), ProposeError> {
        let (bytes, bytes_max) = (body_bytes + ENTRY_HEADER_BYTES, self.0.entry_bytes_max);
        if bytes > bytes_max { Err(ProposeError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    fn admit(&self, proposals: &[Proposal]) -> Result<InFlight, ProposeError> {
        let inner = &self.0;
        if let Some(unready) = inner.unready() {
            return Err(unready.into());
        }
        let mut total = 0;
        for proposal in proposals {
            self.check_size(proposal.body.len())?;
            total += proposal.body.len() + ENTRY_HEADER_BYTES;
        }
        let (in_flight, bytes) = (inner.in_flight.get(), inner.bytes_in_flight.get());
        let fits = in_flight + proposals.len() <= PROPOSALS_IN_FLIGHT_MAX;
        // A single batch above the limit of bytes goes through alone.
        if !fits || (bytes > 0 && bytes + total > PROPOSAL_BYTES_IN_FLIGHT_MAX) {
            return Err(ProposeError::Busy { in_flight, bytes });
        }
        // A proposal that the log cannot take would hold up the consensus task until the disk has space again.
        let room = (inner.promise)(proposals.len(), total).map_err(|error| inner.refusal(error))?;
        inner.in_flight.set(in_flight + proposals.len());
        inner.bytes_in_flight.set(bytes + total);
        Ok(InFlight { inner: Rc::clone(inner), count: proposals.len(), bytes: total, _room: room })
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.0.unready().is_none() && self.0.metrics().state == ServerState::Leader
    }

    /// The group's figures.
    pub fn metrics(&self) -> GroupMetrics {
        let (progress, stats) = (&self.0.progress, &self.0.stats);
        let mut figures = GroupMetrics {
            phase: self.phase(),
            term: 0,
            leader: None,
            last_log: self.0.log_at_start.last,
            committed: self.0.log_at_start.committed,
            applied: progress.applied(),
            role: Role::None,
            voters: Vec::new(),
            learners: Vec::new(),
            in_flight: self.0.in_flight.get(),
            leads: self.is_leader(),
            log_entries: 0,
            elections: self.0.elections.count.get(),
            leader_changes: self.0.leader_changes.count.get(),
            tokens_issued: self.0.stamper.issued(),
            appends_sent: stats.appends_sent.get(),
            appends_received: stats.appends_received.get(),
            votes_sent: stats.votes_sent.get(),
        };
        if let Some(receiver) = self.0.metrics.get() {
            figures.read(&receiver.borrow_watched());
        }
        figures.log_entries = entries_to(figures.last_log) - entries_to(self.0.log_at_start.purged);
        figures
    }

    /// Stops the replica, in bounded time also on a full disk. What is in flight is answered with `Stopped`; what was
    /// acknowledged stays in the log.
    pub async fn shutdown(&self) {
        self.0.stop(StopReason::Shutdown);
        (self.0.stop_waiting)();
        if let Some(core) = self.0.core.get() {
            // Errors are a task that panicked, which has stopped as well, and one that hangs, which will not be waited for.
            let _ = timeout(END_OF_CORE_MAX, core.shutdown()).await;
        } else if let Some(start) = self.0.start.take() {
            start.abort();
        }
    }
}

impl GroupMetrics {
    fn read(&mut self, metrics: &RaftMetrics<TypeConfig>) {
        self.term = metrics.current_term;
        self.leader = metrics.current_leader;
        let term_of_last = metrics.vote.leader_id.term;
        let last = metrics.last_log_index.map(|index| LogPosition { term: term_of_last, index });
        self.last_log = last.or(self.last_log);
        self.committed = metrics.local_committed.as_ref().map(to_position).or(self.committed);
        self.role = Role::of(metrics);
        let membership = metrics.membership_config.membership();
        self.voters = membership.voter_ids().collect();
        self.learners = membership.learner_ids().collect();
    }
}

/// Proposals counted as in flight until this is dropped.
struct InFlight {
    inner: Rc<Inner>,
    count: usize,
    bytes: usize,
    _room: Option<Promise>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.inner.in_flight.set(self.inner.in_flight.get() - self.count);
        self.inner.bytes_in_flight.set(self.inner.bytes_in_flight.get() - self.bytes);
    }
}

pub(super) enum Unready {
    Recovering { applied: u64, target: u64 },
    Stopped(StopReason),
}

impl From<Unready> for ProposeError {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Recovering { applied, target } => ProposeError::Recovering { applied, target },
            Unready::Stopped(reason) => ProposeError::Stopped(reason),
        }
    }
}

impl From<Unready> for ReadError {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Recovering { applied, target } => ReadError::Recovering { applied, target },
            Unready::Stopped(reason) => ReadError::Stopped(reason),
        }
    }
}

/// What became of one proposal.
enum Answer {
    Settled(Result<Applied, ProposeError>),
    /// Refused before anything was written: the leader has not heard from a quorum for a lease.
    LeaseExpired,
}

impl Inner {
    pub(super) fn core(&self) -> &Core {
        self.core.get().expect("a group that is ready has a core")
    }

    pub(super) fn metrics(&self) -> std::cell::Ref<'_, RaftMetrics<TypeConfig>> {
        self.metrics.get().expect("a group that is ready has metrics").borrow_watched()
    }

    /// Whether this replica is the only voter: nobody else can lead or commit.
    pub(super) fn is_alone(&self) -> bool {
        is_sole_voter(self.metrics().membership_config.membership(), self.config.replica)
    }

    pub(super) fn stop_reason(&self) -> Option<StopReason> {
        self.stopped.borrow().clone()
    }

    /// Why the replica does not serve, if that is so. A log that failed is found here: with nothing in flight, consensus does
    /// not notice, and where there are others `life` looks from time to time.
    pub(super) fn unready(&self) -> Option<Unready> {
        if let Some(error) = (self.log_failure)() {
            self.stop(StopReason::LogFailed(error.to_string().into()));
        }
        if self.ready.get() {
            return None;
        }
        if let Some(reason) = self.stop_reason() {
            return Some(Unready::Stopped(reason));
        }
        Some(Unready::Recovering {
            applied: entries_to(self.progress.applied()),
            target: entries_to(self.log_at_start.last),
        })
    }

    pub(super) fn become_ready(&self) {
        if self.stopped.borrow().is_none() {
            self.ready.set(true);
        }
        self.changed.notify_waiters();
    }

    /// Stops for good. The first reason counts. Unless it is a shutdown, which waits for that itself, consensus is ended as
    /// well: a leader that cannot serve must not keep the others from electing one that can.
    pub(super) fn stop(&self, reason: StopReason) {
        let ends_itself = reason == StopReason::Shutdown;
        if self.note_stop(reason) && !ends_itself {
            self.end_core();
        }
    }

    /// Whether it had not stopped before.
    fn note_stop(&self, reason: StopReason) -> bool {
        if self.stopped.borrow().is_some() {
            return false;
        }
        self.ready.set(false);
        *self.stopped.borrow_mut() = Some(reason);
        self.changed.notify_waiters();
        true
    }

    fn end_core(&self) {
        // Consensus may be in an append that waits for space, and would not hear of its end.
        (self.stop_waiting)();
        let Some(core) = self.core.get().cloned() else { return };
        shardexec::spawn(Class::Raft, "raft end", async move {
            let _ = timeout(END_OF_CORE_MAX, core.shutdown()).await;
        });
    }

    pub(super) fn stopped_by(&self, fatal: &Fatal<TypeConfig>) {
        self.stop(self.reason_of(fatal));
    }

    pub(super) fn reason_of(&self, fatal: &Fatal<TypeConfig>) -> StopReason {
        match fatal {
            Fatal::Stopped => self.stop_reason().unwrap_or(StopReason::Shutdown),
            Fatal::Panicked => StopReason::Failed("its consensus task panicked".into()),
            Fatal::StorageError(error) => {
                self.progress.ended_by().unwrap_or_else(|| StopReason::LogFailed(error.to_string().into()))
            }
        }
    }

    pub(super) fn reason_of_refusal(&self, error: &RaftError<TypeConfig, impl std::error::Error>) -> StopReason {
        match error {
            RaftError::Fatal(fatal) => self.reason_of(fatal),
            RaftError::APIError(error) => StopReason::Failed(error.to_string().into()),
        }
    }

    /// What a log that takes nothing means to a proposer. One that is not full has failed, and the replica with it.
    fn refusal(&self, error: WalError) -> ProposeError {
        if error.is_retriable() {
            return ProposeError::DiskFull(Box::new(error));
        }
        self.stop(StopReason::LogFailed(error.to_string().into()));
        self.stop_reason().expect("stopped just now").into()
    }

    /// Learns from the core, which has ended, why. One of its tasks may be gone and the core not know it: then it does
    /// not end, and the replica stops without it.
    pub(super) async fn note_end_of_core(&self) {
        if self.stopped.borrow().is_some() {
            return;
        }
        let ended = |metrics: &RaftMetrics<TypeConfig>| metrics.running_state.is_err();
        let Ok(end) = timeout(END_OF_CORE_MAX, self.core().wait(None).metrics(ended, "the end")).await else {
            self.stop(StopReason::Failed("its consensus lost proposals without a reason".into()));
            return;
        };
        match end {
            Ok(metrics) => self.stopped_by(&metrics.running_state.expect_err("waited for it")),
            // It ended without a last word.
            Err(_closed) => self.stopped_by(&Fatal::Panicked),
        }
    }

    async fn propose(self: &Rc<Self>, proposals: Vec<Proposal>) -> Vec<Result<Applied, ProposeError>> {
        if self.is_alone() {
            // No lease to expire, so no copies for another attempt.
            let answers = self.attempt(proposals).await;
            return answers.into_iter().map(Answer::settle).collect();
        }
        let mut results = vec![Err(ProposeError::Unknown); proposals.len()];
        let mut open: Vec<(usize, Proposal)> = proposals.into_iter().enumerate().collect();
        for _ in 0..PROPOSE_ATTEMPTS_MAX {
            let batch = open.iter().map(|(_, proposal)| proposal.clone()).collect();
            let mut refused = Vec::new();
            for ((slot, proposal), answer) in open.into_iter().zip(self.attempt(batch).await) {
                if matches!(answer, Answer::LeaseExpired) {
                    refused.push((slot, proposal));
                }
                results[slot] = answer.settle();
            }
            open = refused;
            if open.is_empty() || !self.renew_lease().await {
                break;
            }
        }
        results
    }

    /// Hands one batch to openraft and collects what became of it.
    async fn attempt(self: &Rc<Self>, proposals: Vec<Proposal>) -> Vec<Answer> {
        self.pass_gate().await;
        let count = proposals.len();
        let mut answers = Vec::with_capacity(count);
        if let Ok(mut results) = self.core().client_write_many(proposals).await {
            while let Some(Ok(result)) = results.next().await {
                answers.push(answer(result));
            }
        }
        if answers.len() < count {
            // Only the end of the core cuts the answers short.
            self.note_end_of_core().await;
            let reason = self.stop_reason().expect("noted just now");
            let told_refused = self.config.settings.bugs().has(Bug::InDoubtToldRefused);
            let error = match reason {
                _ if told_refused => ProposeError::Recovering { applied: 0, target: 0 },
                reason => reason.into(),
            };
            answers.resize_with(count, || Answer::Settled(Err(error.clone())));
        }
        self.leave_spent_term();
        answers
    }

    /// A quorum's answer to a heartbeat renews the lease.
    pub(super) async fn renew_lease(&self) -> bool {
        self.core().ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok()
    }
}

impl Answer {
    fn settle(self) -> Result<Applied, ProposeError> {
        match self {
            Answer::Settled(result) => result,
            Answer::LeaseExpired => Err(ProposeError::NotLeader { leader: None }),
        }
    }
}

fn answer(result: WriteResult<TypeConfig>) -> Answer {
    match result {
        Ok(written) => {
            Answer::Settled(Ok(Applied { position: to_position(&written.log_id), outcome: written.response }))
        }
        Err(ClientWriteError::ForwardToLeader(forward)) if forward.reason == ForwardReason::LeaseExpired => {
            Answer::LeaseExpired
        }
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            Answer::Settled(Err(ProposeError::NotLeader { leader: forward.leader_id }))
        }
        // Discarded after it was written; the other variants concern membership changes only.
        Err(_) => Answer::Settled(Err(ProposeError::Unknown)),
    }
}

/// Stops a group whose start ends without having decided whether it serves: by a panic, or with its executor.
struct StopIfUnfinished<'a>(&'a Inner);

impl Drop for StopIfUnfinished<'_> {
    fn drop(&mut self) {
        // An executor that is dropped takes no tasks any more, and consensus goes with it.
        let noted = !self.0.ready.get() && self.0.note_stop(StopReason::Failed("its start panicked".into()));
        if noted && std::thread::panicking() {
            self.0.end_core();
        }
    }
}

/// Whether `replica` alone decides under `membership`. Also false where nobody does.
pub(super) fn is_sole_voter(membership: &RaftMembership, replica: ReplicaId) -> bool {
    matches!(&membership.get_joint_config()[..], [voters] if voters.len() == 1 && voters.contains(&replica))
}

/// Entries of a log that begins at index 0 and ends at `last`.
fn entries_to(last: Option<LogPosition>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}
