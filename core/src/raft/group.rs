//! One shard's replica: the handle that everything outside `raft` uses.
//!
//! ```text
//!            propose_many(batch)                                       read_permission()
//!                  │ admitted: number, size                                  │ ready, and the log has not failed
//!                  v                                                         v
//!  gate ──> openraft core ──> log append ──> flushed ──> committed ──> apply ──> outcomes
//!   ^ closed while the leader moves to a new term (its tokens are used up)
//!
//!  start ──> check ──> replay committed ──> (found the group) ──> stand for election ──> ready
//! ```
//!
//! Life: recovering -> ready -> stopped, never back; a log that failed stops the replica at the next look at it. A restarted leader never resumes its old term. An idle group of one
//! voter has no timer and burns no CPU.
//!
//! Limits: [`PROPOSALS_IN_FLIGHT_MAX`], [`PROPOSAL_BYTES_IN_FLIGHT_MAX`]; [`PROPOSE_ATTEMPTS_MAX`] for what openraft refuses before it writes.

mod view;

pub use view::{ReplicaView, Role};

use super::config::RaftSettings;
use super::errors::{ProposeError, ReadError, StartError, StopReason};
use super::log_store::WalLog;
use super::memory_store::MemoryLog;
use super::network::NoPeers;
use super::start::{GroupLog, LogSummary, RestartGuard, check_start, replay};
use super::state_machine::{Applier, ApplyProgress, StateMachine};
use super::tokens::TokenStamper;
use super::types::{Context, Outcome, Proposal, RaftVote, ReplicaId, TypeConfig, to_log_id, to_position};
use futures_util::StreamExt;
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec as shardexec;
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::time::{Instant, timeout};
use gristmill_shardexec::{Class, JoinHandle};
use gristmill_wal::{LogPosition, Promise, WalError};
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, LinearizableReadError, RaftError};
use openraft::raft::{VoteRequest, WriteResult};
use openraft::{Raft, RaftMetrics, ReadPolicy, ServerState};
use openraft_rt::WatchReceiver;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
const NOBODY: ReplicaId = ReplicaId { node: 0, incarnation: 0 };

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
    /// Serving.
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
    /// Voters of the membership in force.
    pub voters: usize,
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
}

type Core = Raft<TypeConfig, Applier>;

/// One shard's replica on this core. A clone is another handle to it.
#[derive(Clone)]
pub struct Group(Rc<Inner>);

struct Inner {
    config: GroupConfig,
    entry_bytes_max: usize,
    log_at_start: LogSummary,
    progress: Rc<ApplyProgress>,
    stamper: Rc<TokenStamper>,
    core: OnceCell<Core>,
    metrics: OnceCell<openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>>,
    ready: Cell<bool>,
    stopped: RefCell<Option<StopReason>>,
    /// Told at each change of `ready`, `stopped` and `moving`.
    changed: Notify,
    /// The leader is moving to a new term; proposals wait.
    moving: Cell<bool>,
    elections: Cell<u64>,
    leader_changes: Cell<u64>,
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
        match store.into() {
            GroupStore::Wal(log) => Group::start_on(config, log, machine),
            GroupStore::Memory(log) => Group::start_on(config, log, machine),
        }
    }

    fn start_on<L: GroupLog>(config: GroupConfig, log: L, machine: Box<dyn StateMachine>) -> Result<Group, StartError> {
        assert!(config.replica.node != NOBODY.node, "node ids start at 1");
        let raft_config = config.settings.to_openraft(format!("shard {}", config.shard.0))?;
        let summary = log.summary();
        check_start(&summary, machine.applied())?;
        let (releasing, asking, watched, stopping) = (log.clone(), log.clone(), log.clone(), log.clone());
        let flushing = log.clone();
        let applier = Applier::new(machine, Box::new(move |index| releasing.release(index)));
        let inner = Rc::new(Inner {
            config,
            entry_bytes_max: log.entry_bytes_max(),
            log_at_start: summary,
            progress: applier.progress(),
            stamper: log.stamper(),
            core: OnceCell::new(),
            metrics: OnceCell::new(),
            ready: Cell::new(false),
            stopped: RefCell::new(None),
            changed: Notify::new(),
            moving: Cell::new(false),
            elections: Cell::new(0),
            leader_changes: Cell::new(0),
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

    /// Waits until the group's phase or term may have changed.
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

    /// Whether this replica may answer a linearizable read from its state right now.
    ///
    /// With one voter nobody else can have committed anything, and whatever was acknowledged here is applied: a local
    /// check is enough. With several, [`Group::linearizable`] asks a quorum or the lease.
    pub fn read_permission(&self) -> Result<(), ReadError> {
        if let Some(unready) = self.0.unready() {
            return Err(unready.into());
        }
        let metrics = self.0.metrics();
        if let Err(fatal) = &metrics.running_state {
            return Err(ReadError::Stopped(self.0.reason_of(fatal)));
        }
        if self.0.progress.voters() == 1 {
            return Ok(());
        }
        Err(ReadError::NotLeader { leader: metrics.current_leader })
    }

    /// Waits until this replica's state holds everything acknowledged before the call, wherever it leads.
    pub async fn linearizable(&self) -> Result<(), ReadError> {
        match self.read_permission() {
            Err(ReadError::NotLeader { .. }) => {}
            decided => return decided,
        }
        match self.0.core().ensure_linearizable(ReadPolicy::LeaseRead).await {
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

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.0.unready().is_none() && self.0.metrics().state == ServerState::Leader
    }

    /// The group's figures.
    pub fn metrics(&self) -> GroupMetrics {
        let progress = &self.0.progress;
        let mut figures = GroupMetrics {
            phase: self.phase(),
            term: 0,
            leader: None,
            last_log: self.0.log_at_start.last,
            committed: self.0.log_at_start.committed,
            applied: progress.applied(),
            voters: progress.voters(),
            in_flight: self.0.in_flight.get(),
            leads: self.is_leader(),
            log_entries: 0,
            elections: self.0.elections.get(),
            leader_changes: self.0.leader_changes.get(),
            tokens_issued: self.0.stamper.issued(),
        };
        if let Some(receiver) = self.0.metrics.get() {
            let metrics = receiver.borrow_watched();
            figures.term = metrics.current_term;
            figures.leader = metrics.current_leader;
            let term_of_last = metrics.vote.leader_id.term;
            let last = metrics.last_log_index.map(|index| LogPosition { term: term_of_last, index });
            figures.last_log = last.or(figures.last_log);
            figures.committed = metrics.local_committed.as_ref().map(to_position).or(figures.committed);
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

enum Unready {
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
    fn core(&self) -> &Core {
        self.core.get().expect("a group that is ready has a core")
    }

    fn metrics(&self) -> std::cell::Ref<'_, RaftMetrics<TypeConfig>> {
        self.metrics.get().expect("a group that is ready has metrics").borrow_watched()
    }

    fn stop_reason(&self) -> Option<StopReason> {
        self.stopped.borrow().clone()
    }

    /// Why the replica does not serve, if that is so. A log that failed is found here, for no task watches it: with
    /// nothing in flight, consensus does not notice either.
    fn unready(&self) -> Option<Unready> {
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

    fn become_ready(&self) {
        if self.stopped.borrow().is_none() {
            self.ready.set(true);
        }
        self.changed.notify_waiters();
    }

    /// Stops for good. The first reason counts.
    fn stop(&self, reason: StopReason) {
        if self.stopped.borrow().is_some() {
            return;
        }
        self.ready.set(false);
        *self.stopped.borrow_mut() = Some(reason);
        self.changed.notify_waiters();
    }

    fn stopped_by(&self, fatal: &Fatal<TypeConfig>) {
        self.stop(self.reason_of(fatal));
    }

    fn reason_of(&self, fatal: &Fatal<TypeConfig>) -> StopReason {
        match fatal {
            Fatal::Stopped => StopReason::Shutdown,
            Fatal::Panicked => StopReason::Failed("its consensus task panicked".into()),
            Fatal::StorageError(error) => {
                self.progress.ended_by().unwrap_or_else(|| StopReason::LogFailed(error.to_string().into()))
            }
        }
    }

    fn reason_of_refusal(&self, error: &RaftError<TypeConfig, impl std::error::Error>) -> StopReason {
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
    async fn note_end_of_core(&self) {
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
        if self.progress.voters() == 1 {
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
            answers.resize_with(count, || Answer::Settled(Err(reason.clone().into())));
        }
        self.leave_spent_term();
        answers
    }

    /// A quorum's answer to a heartbeat renews the lease.
    async fn renew_lease(&self) -> bool {
        self.core().ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok()
    }

    async fn pass_gate(&self) {
        while self.moving.get() {
            self.changed.notified().await;
        }
    }

    /// Starts the move to a new term if this one's tokens are used up.
    fn leave_spent_term(self: &Rc<Self>) {
        let term = self.metrics().current_term;
        if self.moving.get() || !self.stamper.is_spent(term) {
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
    async fn move_to_new_term(&self, term: u64) -> Result<(), Fatal<TypeConfig>> {
        let core = self.core();
        let newest = to_log_id(LogPosition { term: term + 1, index: u64::MAX });
        let abdication =
            VoteRequest { vote: RaftVote::new(term + 1, NOBODY), last_log_id: Some(newest), leadership_transfer: true };
        core.vote(abdication).await.map_err(fatal_of)?;
        self.elections.set(self.elections.get() + 1);
        core.trigger().elect(false).await?;
        wait_until_leading(core, term + 1).await?;
        self.leader_changes.set(self.leader_changes.get() + 1);
        Ok(())
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

/// Stops a group whose start ends without having decided whether it serves: by a panic.
struct StopIfUnfinished<'a>(&'a Inner);

impl Drop for StopIfUnfinished<'_> {
    fn drop(&mut self) {
        if !self.0.ready.get() {
            self.0.stop(StopReason::Failed("its start panicked".into()));
        }
    }
}

fn fatal_of(error: RaftError<TypeConfig>) -> Fatal<TypeConfig> {
    match error {
        RaftError::Fatal(fatal) => fatal,
        RaftError::APIError(never) => match never {},
    }
}

/// Entries of a log that begins at index 0 and ends at `last`.
fn entries_to(last: Option<LogPosition>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}

/// Waits until this replica leads a term above `term`.
async fn wait_until_leading(core: &Core, term: u64) -> Result<(), Fatal<TypeConfig>> {
    let leads = |metrics: &RaftMetrics<TypeConfig>| {
        metrics.running_state.is_err() || (metrics.state == ServerState::Leader && metrics.current_term > term)
    };
    match core.wait(None).metrics(leads, "leading").await {
        Ok(metrics) => metrics.running_state,
        Err(_closed) => Err(Fatal::Stopped),
    }
}

/// Everything from a checked log to a group that serves.
async fn run_start<L: GroupLog>(
    inner: &Inner,
    config: Arc<openraft::Config>,
    mut log: L,
    applier: Applier,
) -> Result<(), StopReason> {
    let summary = inner.log_at_start;
    replay(&mut log, &applier, summary.committed).await.map_err(|error| error.stop_reason())?;
    let replica = inner.config.replica;
    let core = Core::build(replica, config, NoPeers, log, applier).await.map_err(|fatal| inner.reason_of(&fatal))?;
    assert!(inner.core.set(core.clone()).is_ok() && inner.metrics.set(core.metrics()).is_ok(), "a group starts once");
    core.run();
    let founded = core.is_initialized().await.map_err(|fatal| inner.reason_of(&fatal))?;
    if founded {
        stand_for_election(inner, &core, summary.voted).await?;
    } else {
        // Founding a group is an election of its own.
        inner.elections.set(inner.elections.get() + 1);
        core.initialize(BTreeSet::from([replica])).await.map_err(|error| inner.reason_of_refusal(&error))?;
    }
    wait_until_leading(&core, 0).await.map_err(|fatal| inner.reason_of(&fatal))?;
    inner.leader_changes.set(inner.leader_changes.get() + 1);
    // Returns once this term's first entry is applied, and with it everything before.
    core.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| inner.reason_of_refusal(&error))?;
    Ok(())
}

async fn stand_for_election(inner: &Inner, core: &Core, voted: bool) -> Result<(), StopReason> {
    let voters = core.voter_ids().count();
    let hold = inner.config.settings.restart_hold();
    RestartGuard::new(voters, voted, Instant::boottime_now(), hold).wait().await;
    if voters != 1 {
        return Err(StopReason::NeedsPeers { voters });
    }
    inner.elections.set(inner.elections.get() + 1);
    core.trigger().elect(false).await.map_err(|fatal| inner.reason_of(&fatal))
}
