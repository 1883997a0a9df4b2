//! One shard on the core that owns it: writes gather into batches for consensus, reads are answered from the state.
//!
//! ```text
//!   serve ─┬─ write ─► queue ─► proposer: one batch at a time is gathered while earlier ones are in flight
//!          │                       └─► Group::propose_many ─► outcomes ─► answers
//!          ├─ get, short scan ─► permission to read ─► state ─► answer, at once (a task where the others must be asked first)
//!          ├─ long scan, recall ─► permission ─► a task that waits for its turn and yields between slices ─► answer
//!          └─ votes and appends of other replicas, changes of the membership ─► peers
//! ```
//!
//! Invariants
//! - A write is answered after it is durable and applied, never before; a read sees every write answered before it.
//! - At most [`QUEUE_MAX`] writes and [`QUEUE_BYTES_MAX`] bytes wait in the queue; the next is told `Overloaded`.
//! - At most [`SCANS_MAX`] long scans and [`RECALLS_MAX`] recalls run at once, and `WAITING_MAX` of each wait.
//! - What is found to have missed its deadline before its work begins is not done, be it a write or a read.
//! - Nothing is served before the shard's log is replayed: `Recovering`, retriable.

use super::figures::{ShardMetrics, observe_group};
use super::machine::{Counts, Machine, scan_of};
use super::sweep::sweep;
use super::turns::Turns;
use super::wall_ms;
use super::watch::watch;
use crate::metrics::{Event, Registry};
use crate::raft::{
    Applied, Group, GroupMetrics, Phase as GroupPhase, Proposal, ProposeError, ReadError, ReplicaId, Role, StopReason,
};
use crate::recall::RecallStats;
use crate::server::hosted::ShardView;
use crate::server::reply::{Answer, ReplyTo};
use crate::state::envelope::{Codec, EntryFlags, EntryHeader, NONCE_BYTES};
use crate::state::hlc::{Hlc, HlcClock};
use crate::state::read::ScanRun;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::frame::FrameHeader;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::schema::ScanReply;
use gristmill_rpc::validate::{self, RequestRef};
use gristmill_shardexec::sync::semaphore::Permit;
use gristmill_shardexec::sync::{Notify, Semaphore};
use gristmill_shardexec::time::Instant;
use gristmill_shardexec::{Class, JoinError, spawn, tell, yield_if_spent};
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Long scans that run at once, each of which gathers a page; further ones wait.
pub(super) const SCANS_MAX: usize = 16;
/// Recalls that run at once, each of which holds the candidates of its legs; further ones wait.
pub(super) const RECALLS_MAX: usize = 16;
/// Writes that wait for the proposer.
pub(crate) const QUEUE_MAX: usize = 16 << 10;
/// Bytes of the bodies of writes that wait for the proposer.
pub(crate) const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Writes that one batch takes.
const BATCH_MAX: usize = 1024;
/// Bytes of bodies that one batch takes, unless one write alone has more.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Batches in flight: the next gathers while these are with the log.
const BATCHES_IN_FLIGHT_MAX: usize = 8;
/// Advice to a client that met a full queue.
const OVERLOADED_RETRY_AFTER_MS: u32 = 5;
/// Advice to a client that met a full disk.
const DISK_FULL_RETRY_AFTER_MS: u32 = 1000;
/// Advice to a client that met a replaying shard.
const RECOVERING_RETRY_AFTER_MS: u32 = 20;

/// One shard.
pub(crate) struct Shard {
    id: ShardId,
    machine: Machine,
    phase: RefCell<Phase>,
    queue: RefCell<Queue>,
    queued: Notify,
    in_flight: Semaphore,
    pub(super) scans: Turns,
    pub(super) recalls: Turns,
    clock: RefCell<HlcClock>,
    refused: Cell<u64>,
    metrics: ShardMetrics,
    registry: Registry,
}

enum Phase {
    /// Its log is being opened.
    Opening,
    /// Consensus runs; it may still be replaying.
    Running(Group),
    /// It could not start, or was told to stop.
    Down(Rejection),
}

#[derive(Default)]
struct Queue {
    writes: VecDeque<Write>,
    bytes: usize,
}

struct Write {
    header: FrameHeader,
    body: Body,
    deadline: Option<Instant>,
    reply: ReplyTo,
}

/// A shard's figures, as `status` shows them.
#[derive(Debug, Serialize)]
pub(crate) struct ShardStatus {
    shard: u32,
    /// `opening`, `recovering`, `serving` or `down`.
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    role: Role,
    /// The node that leads, as far as known.
    leader: Option<u64>,
    /// The nodes that vote.
    voters: Vec<u64>,
    /// The nodes that follow without a vote.
    learners: Vec<u64>,
    term: u64,
    last_log: u64,
    commit: u64,
    applied: u64,
    in_flight: usize,
    queued: usize,
    refused: u64,
    state_root: String,
    #[serde(flatten)]
    counts: Counts,
    duplicates: u64,
    state_memory_bytes: u64,
    index: Value,
}

impl Shard {
    /// A shard whose log is not open yet.
    pub(crate) fn new(id: ShardId, machine: Machine, registry: &Registry) -> Rc<Shard> {
        let shard = Rc::new(Shard {
            id,
            machine,
            phase: RefCell::new(Phase::Opening),
            queue: RefCell::default(),
            queued: Notify::new(),
            in_flight: Semaphore::new(BATCHES_IN_FLIGHT_MAX),
            scans: Turns::new("scans", SCANS_MAX),
            recalls: Turns::new("recalls", RECALLS_MAX),
            clock: RefCell::new(HlcClock::starting_after(Hlc::ZERO)),
            refused: Cell::new(0),
            metrics: ShardMetrics::register(registry, id),
            registry: registry.clone(),
        });
        observe_group(registry, &shard);
        shard.keep(Class::Raft, "shard proposer", Rc::clone(&shard).propose());
        shard.keep(Class::Background, "recall index", Rc::clone(&shard).maintain());
        shard.keep(Class::Background, "expiry sweeper", sweep(Rc::clone(&shard)));
        shard
    }

    /// Runs one of the tasks that the shard lives by. One that panics stops the shard: without it requests would wait for
    /// ever.
    pub(super) fn keep(self: &Rc<Self>, class: Class, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let (shard, task) = (Rc::clone(self), spawn(class, name, task));
        spawn(Class::Background, "shard supervisor", async move {
            if let Err(JoinError::Panicked(message)) = task.await {
                shard.fail(&format!("its task {name:?} panicked: {message}")).await;
            }
        });
    }

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    /// What consensus applies to.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Serves from here on, as far as the group does.
    pub(crate) fn run(&self, group: Group) {
        if self.is_down() {
            // One of its tasks failed before its log was open.
            spawn(Class::Background, "shard shutdown", async move { group.shutdown().await });
            return;
        }
        spawn(Class::Background, "shard watch", watch(self.id, group.clone(), self.registry.clone()));
        *self.phase.borrow_mut() = Phase::Running(group);
    }

    /// Serves nothing from here on; requests are told why.
    pub(crate) fn refuse(&self, rejection: Rejection) {
        *self.phase.borrow_mut() = Phase::Down(rejection);
    }

    /// Stops consensus. Writes in flight are answered first or told that they are unknown.
    pub(crate) async fn shutdown(&self) {
        self.stop(Rejection::new(ErrorCode::ShuttingDown, "the server is shutting down; ask again later")).await;
    }

    /// Stops for a reason that nobody asked for.
    async fn fail(&self, reason: &str) {
        tell(format_args!("gristmill: shard {} stops: {reason}", self.id.0));
        self.registry.emit(wall_ms(), Event::ReplicaStopped { shard: self.id.0, reason: reason.to_owned() });
        let message = format!("shard {} stopped: {reason}; restart the server", self.id.0);
        self.stop(Rejection::new(ErrorCode::Internal, message)).await;
    }

    async fn stop(&self, reason: Rejection) {
        let before = self.phase.replace(Phase::Down(reason.clone()));
        // The proposer may be gone, or wait for what does not come any more.
        let queued = std::mem::take(&mut *self.queue.borrow_mut());
        for write in queued.writes {
            write.reply.answer(Err(reason.clone()));
        }
        if let Phase::Running(group) = before {
            group.shutdown().await;
        }
    }

    /// Serves one request of this shard. The request was checked by the core that took it; its archive is checked once
    /// more here, because it came over the mesh as plain bytes.
    pub(crate) fn serve(self: &Rc<Self>, header: &FrameHeader, body: Body, deadline: Option<Instant>, reply: ReplyTo) {
        let answer = match validate::request(header, &body) {
            Ok(RequestRef::Write(_)) => {
                self.enqueue(Write { header: *header, body, deadline, reply });
                return;
            }
            Ok(RequestRef::Recall(_)) => {
                self.recall(body, deadline, reply);
                return;
            }
            Ok(RequestRef::Scan(scan)) => {
                self.scan(scan_of(scan), deadline, reply);
                return;
            }
            Ok(RequestRef::Replica(message)) => {
                self.receive(message, reply);
                return;
            }
            Ok(RequestRef::AddLearner(request)) => {
                self.add_learner(request, reply);
                return;
            }
            Ok(RequestRef::ChangeMembership(request)) => {
                self.change_membership(request, reply);
                return;
            }
            Ok(request) => match in_time(deadline).and_then(|()| self.permit_read()) {
                Ok(Permission::Now) => self.read(&request),
                Ok(Permission::AskFirst) => {
                    self.read_later(*header, body, deadline, reply);
                    return;
                }
                Err(rejection) => Err(rejection),
            },
            Err(rejection) => Err(rejection),
        };
        reply.answer(answer);
    }

    /// Answers a read once a quorum has confirmed that this replica leads.
    fn read_later(self: &Rc<Self>, header: FrameHeader, body: Body, deadline: Option<Instant>, reply: ReplyTo) {
        let shard = Rc::clone(self);
        spawn(Class::Request, "read", async move {
            let confirmed = shard.confirm_read().await.and_then(|()| in_time(deadline));
            let request = confirmed.and_then(|()| validate::request(&header, &body));
            reply.answer(request.and_then(|request| shard.read(&request)));
        });
    }

    /// Answers a read from the state.
    fn read(&self, request: &RequestRef<'_>) -> Answer {
        let now_ms = wall_ms();
        match request {
            RequestRef::Get(get) => Ok(archive(&self.machine.get(get, now_ms)?)),
            RequestRef::GetGrain(get) => Ok(archive(&self.machine.get_grain(get)?)),
            _ => unreachable!("served elsewhere"),
        }
    }

    fn permit_read(&self) -> Result<Permission, Rejection> {
        match self.group()?.read_permission() {
            Ok(()) => Ok(Permission::Now),
            Err(ReadError::Unconfirmed) => Ok(Permission::AskFirst),
            Err(error) => Err(self.read_rejection(&error)),
        }
    }

    /// Waits until the state may be read, asking the other replicas where that must be.
    async fn confirm_read(&self) -> Result<(), Rejection> {
        let group = self.group()?;
        group.linearizable().await.map_err(|error| self.read_rejection(&error))
    }

    /// A short scan is answered at once; a long one goes on as a task, of which [`SCANS_MAX`] run at once.
    fn scan(self: &Rc<Self>, mut run: ScanRun, deadline: Option<Instant>, reply: ReplyTo) {
        let permission = in_time(deadline).and_then(|()| self.permit_read());
        let complete = match &permission {
            Ok(Permission::Now) => self.machine.scan_step(&mut run, wall_ms()),
            Ok(Permission::AskFirst) => Ok(false),
            Err(rejection) => Err(rejection.clone()),
        };
        if let Ok(false) = complete {
            let turn = self.scans.try_take();
            if turn.is_none() {
                // It holds nothing while it waits.
                run.restart();
            }
            let shard = Rc::clone(self);
            spawn(Class::Request, "scan", async move {
                let confirmed = match permission {
                    Ok(Permission::AskFirst) => shard.confirm_read().await,
                    _ => Ok(()),
                };
                reply.answer(match confirmed {
                    Ok(()) => shard.go_on_scanning(run, turn, deadline).await,
                    Err(rejection) => Err(rejection),
                });
            });
            return;
        }
        reply.answer(complete.map(|_| page_of(run)));
    }

    async fn go_on_scanning(&self, mut run: ScanRun, turn: Option<Permit>, deadline: Option<Instant>) -> Answer {
        let _turn = match turn {
            Some(turn) => turn,
            None => self.wait_for_turn(&self.scans, deadline).await?,
        };
        loop {
            yield_if_spent().await;
            if self.machine.scan_step(&mut run, wall_ms())? {
                break;
            }
        }
        // To archive a large page is a step of its own, and so is to send it.
        yield_if_spent().await;
        let page = page_of(run);
        yield_if_spent().await;
        Ok(page)
    }

    /// Every recall is a task, of which [`RECALLS_MAX`] run at once.
    fn recall(self: &Rc<Self>, body: Body, deadline: Option<Instant>, reply: ReplyTo) {
        if let Err(rejection) = in_time(deadline).and_then(|()| self.permit_read().map(drop)) {
            reply.answer(Err(rejection));
            return;
        }
        let shard = Rc::clone(self);
        spawn(Class::Request, "recall", async move { reply.answer(shard.recall_in_turn(&body, deadline).await) });
    }

    async fn recall_in_turn(&self, body: &Body, deadline: Option<Instant>) -> Answer {
        let _turn = self.wait_for_turn(&self.recalls, deadline).await?;
        let found = self.machine.recall(body).await?;
        // To archive many hits with their grains is a step of its own, and so is to send them.
        yield_if_spent().await;
        let hits = archive(&found);
        yield_if_spent().await;
        Ok(hits)
    }

    /// Waits for a turn and finds out whether to use it: the deadline may have passed, or the shard stopped.
    async fn wait_for_turn(&self, turns: &Turns, deadline: Option<Instant>) -> Result<Permit, Rejection> {
        let turn = turns.take().await?;
        in_time(deadline)?;
        self.confirm_read().await?;
        Ok(turn)
    }

    fn enqueue(&self, write: Write) {
        if let Err(rejection) = self.admit(&write) {
            self.refused.set(self.refused.get() + 1);
            write.reply.answer(Err(rejection));
            return;
        }
        let mut queue = self.queue.borrow_mut();
        queue.bytes += write.body.len();
        queue.writes.push_back(write);
        self.queued.notify_one();
    }

    fn admit(&self, write: &Write) -> Result<(), Rejection> {
        // Here and not in its batch, of which it would take the others along.
        self.group()?.check_size(write.body.len()).map_err(|error| self.propose_rejection(&error))?;
        let queue = self.queue.borrow();
        if queue.writes.len() >= QUEUE_MAX || queue.bytes + write.body.len() > QUEUE_BYTES_MAX {
            let message = format!(
                "shard {} has {} writes of {} bytes waiting; slow down and try again",
                self.id.0,
                queue.writes.len(),
                queue.bytes
            );
            return Err(Rejection::new(ErrorCode::Overloaded, message).retry_after_ms(OVERLOADED_RETRY_AFTER_MS));
        }
        Ok(())
    }

    /// Gathers writes into batches and proposes them, for as long as the shard lives.
    async fn propose(self: Rc<Self>) {
        loop {
            if self.queue.borrow().writes.is_empty() {
                self.queued.notified().await;
                continue;
            }
            self.machine.admit().await;
            let permit = self.in_flight.acquire().await;
            let batch = self.take_batch();
            let group = self.group();
            let shard = Rc::clone(&self);
            match group {
                Ok(group) => {
                    // The proposal task starts before the next batch is taken, so batches keep their order.
                    let (proposals, replies, began) = shard.stamp(batch);
                    shard.metrics.proposed(proposals.len());
                    spawn(Class::Raft, "shard batch", async move {
                        let outcomes = group.propose_many(proposals).await;
                        assert_eq!(outcomes.len(), replies.len(), "one outcome per proposal");
                        shard.metrics.settled(outcomes.len(), Instant::now() - began);
                        for (outcome, reply) in outcomes.into_iter().zip(replies) {
                            reply.answer(shard.write_answer(outcome));
                        }
                        drop(permit);
                    });
                }
                Err(rejection) => {
                    for write in batch {
                        write.reply.answer(Err(rejection.clone()));
                    }
                }
            }
        }
    }

    /// Builds index segments as they fall due. A shard whose indexes cannot follow must stop: their heads would grow.
    async fn maintain(self: Rc<Self>) {
        let Err(error) = self.machine.maintain().await;
        self.fail(&error.to_string()).await;
    }

    /// Whether the shard serves nothing any more.
    pub(super) fn is_down(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Down(_))
    }

    /// Proposes an entry that removes expired values, and waits until it is applied.
    pub(super) async fn propose_sweep(&self) -> Result<(), ProposeError> {
        let Ok(group) = self.group() else {
            return Err(ProposeError::Recovering { applied: 0, target: 0 });
        };
        let hlc = {
            let mut clock = self.clock.borrow_mut();
            clock.observe_committed(self.machine.latest_hlc());
            clock.tick(wall_ms())
        };
        let proposal = Proposal { header: EntryHeader::sweep(hlc), body: Body::copy_from(&[]) };
        let mut outcomes = group.propose_many(vec![proposal]).await;
        outcomes.pop().expect("one outcome per proposal").map(drop)
    }

    fn take_batch(&self) -> Vec<Write> {
        let mut queue = self.queue.borrow_mut();
        let mut bytes = 0;
        let mut count = 0;
        for write in queue.writes.iter().take(BATCH_MAX) {
            if count > 0 && bytes + write.body.len() > BATCH_BYTES_MAX {
                break;
            }
            bytes += write.body.len();
            count += 1;
        }
        queue.bytes -= bytes;
        queue.writes.drain(..count).collect()
    }

    /// Gives each write its time; also tells it by the monotonic clock. Writes whose deadline has passed are answered
    /// instead: they were never proposed.
    fn stamp(&self, batch: Vec<Write>) -> (Vec<Proposal>, Vec<ReplyTo>, Instant) {
        let (now, wall_ms) = (Instant::now(), wall_ms());
        let mut clock = self.clock.borrow_mut();
        clock.observe_committed(self.machine.latest_hlc());
        let mut proposals = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for write in batch {
            if write.deadline.is_some_and(|deadline| deadline <= now) {
                write.reply.answer(Err(too_late()));
                continue;
            }
            proposals.push(Proposal { header: entry_header(&write.header, clock.tick(wall_ms)), body: write.body });
            replies.push(write.reply);
        }
        (proposals, replies, now)
    }

    fn write_answer(&self, outcome: Result<Applied, ProposeError>) -> Answer {
        match outcome {
            Ok(applied) => Machine::reply_to(&applied.outcome).map(|reply| archive(&reply)),
            Err(error) => Err(self.propose_rejection(&error)),
        }
    }

    pub(super) fn group(&self) -> Result<Group, Rejection> {
        match &*self.phase.borrow() {
            Phase::Running(group) => Ok(group.clone()),
            Phase::Opening => Err(self.recovering("its log is being opened")),
            Phase::Down(rejection) => Err(rejection.clone()),
        }
    }

    fn recovering(&self, how_far: &str) -> Rejection {
        let message = format!("shard {} is recovering: {how_far}; try again", self.id.0);
        Rejection::new(ErrorCode::Recovering, message).retry_after_ms(RECOVERING_RETRY_AFTER_MS)
    }

    fn propose_rejection(&self, error: &ProposeError) -> Rejection {
        let code = match error {
            ProposeError::Recovering { applied, target } => {
                return self.recovering(&format!("entry {applied} of {target} is applied"));
            }
            ProposeError::Busy { .. } => {
                return Rejection::new(ErrorCode::Overloaded, error.to_string())
                    .retry_after_ms(OVERLOADED_RETRY_AFTER_MS);
            }
            ProposeError::NotLeader { leader } => return self.not_leader(error, *leader),
            ProposeError::TooLarge { .. } => ErrorCode::TooLarge,
            ProposeError::DiskFull(_) => {
                return Rejection::new(ErrorCode::DiskFull, format!("shard {}: {error}", self.id.0))
                    .retry_after_ms(DISK_FULL_RETRY_AFTER_MS);
            }
            ProposeError::Unknown => ErrorCode::DeadlineExceeded,
            ProposeError::Stopped(reason) => match self.why_down(reason) {
                Some(rejection) => return rejection,
                None => stop_code(reason),
            },
        };
        Rejection::new(code, format!("shard {}: {error}", self.id.0))
    }

    /// Why the shard is down, where the group knows only that it was told to stop.
    fn why_down(&self, told: &StopReason) -> Option<Rejection> {
        match (&*self.phase.borrow(), told) {
            (Phase::Down(rejection), StopReason::Shutdown) => Some(rejection.clone()),
            _ => None,
        }
    }

    fn read_rejection(&self, error: &ReadError) -> Rejection {
        let code = match error {
            ReadError::Recovering { applied, target } => {
                return self.recovering(&format!("entry {applied} of {target} is applied"));
            }
            ReadError::NotLeader { leader } => return self.not_leader(error, *leader),
            // Nobody could confirm it in time.
            ReadError::Unconfirmed => return self.not_leader(error, None),
            ReadError::Stopped(reason) => match self.why_down(reason) {
                Some(rejection) => return rejection,
                None => stop_code(reason),
            },
        };
        Rejection::new(code, format!("shard {}: {error}", self.id.0))
    }

    /// The figures of the shard's group; `None` while there is none.
    pub(super) fn group_metrics(&self) -> Option<GroupMetrics> {
        match &*self.phase.borrow() {
            Phase::Running(group) => Some(group.metrics()),
            Phase::Opening | Phase::Down(_) => None,
        }
    }

    /// The shard as an onlooker sees it, who changes nothing.
    pub(crate) fn view(&self) -> ShardView {
        let (replica, refused) = match &*self.phase.borrow() {
            Phase::Opening => (None, None),
            Phase::Running(group) => (Some(group.view()), None),
            Phase::Down(rejection) => (None, Some(rejection.message.clone())),
        };
        ShardView { shard: self.id, replica, refused }
    }

    /// The shard's figures.
    pub(crate) fn status(&self) -> ShardStatus {
        let machine = &self.machine;
        let (phase, reason, metrics) = self.describe_phase();
        let index = |position: Option<gristmill_wal::LogPosition>| position.map_or(0, |position| position.index);
        let of_group = |pick: fn(&GroupMetrics) -> Option<gristmill_wal::LogPosition>| {
            metrics.as_ref().map_or(0, |metrics| index(pick(metrics)))
        };
        let nodes = |pick: fn(&GroupMetrics) -> &Vec<ReplicaId>| {
            metrics.iter().flat_map(pick).map(|replica| replica.node).collect()
        };
        ShardStatus {
            shard: self.id.0,
            phase,
            reason,
            role: metrics.as_ref().map_or(Role::default(), |metrics| metrics.role),
            leader: metrics.as_ref().and_then(|metrics| metrics.leader).map(|leader| leader.node),
            voters: nodes(|metrics| &metrics.voters),
            learners: nodes(|metrics| &metrics.learners),
            term: metrics.as_ref().map_or(0, |metrics| metrics.term),
            last_log: of_group(|metrics| metrics.last_log),
            commit: of_group(|metrics| metrics.committed),
            applied: of_group(|metrics| metrics.applied),
            in_flight: metrics.as_ref().map_or(0, |metrics| metrics.in_flight),
            queued: self.queue.borrow().writes.len(),
            refused: self.refused.get(),
            state_root: machine.state_root(),
            counts: machine.counts(),
            duplicates: machine.stats().duplicates,
            state_memory_bytes: machine.memory_bytes(),
            index: index_json(&self.machine.index_stats()),
        }
    }

    fn describe_phase(&self) -> (&'static str, Option<String>, Option<GroupMetrics>) {
        match &*self.phase.borrow() {
            Phase::Opening => ("opening", None, None),
            Phase::Down(rejection) => ("down", Some(rejection.message.clone()), None),
            Phase::Running(group) => match group.phase() {
                GroupPhase::Ready => ("serving", None, Some(group.metrics())),
                GroupPhase::Recovering { applied, target } => {
                    ("recovering", Some(format!("entry {applied} of {target} is applied")), Some(group.metrics()))
                }
                GroupPhase::Stopped(reason) => ("down", Some(reason.to_string()), Some(group.metrics())),
            },
        }
    }
}

/// When a read that is permitted may look at the state.
#[derive(Debug, Clone, Copy)]
enum Permission {
    Now,
    /// Once a quorum has confirmed that this replica leads.
    AskFirst,
}

/// Refuses to begin what nobody waits for any more.
fn in_time(deadline: Option<Instant>) -> Result<(), Rejection> {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => Err(too_late()),
        _ => Ok(()),
    }
}

fn too_late() -> Rejection {
    let message = "the deadline passed while the request waited; it was not done";
    Rejection::new(ErrorCode::DeadlineExceeded, message)
}

/// The clear part of a log entry. Shard, term, index and token are the leader's to fill in.
fn entry_header(frame: &FrameHeader, hlc: Hlc) -> EntryHeader {
    EntryHeader {
        codec: Codec::Rkyv,
        flags: EntryFlags::NONE,
        schema: frame.schema,
        shard: frame.shard,
        hlc,
        term: 0,
        index: 0,
        token: 0,
        session: frame.session,
        sequence: frame.sequence,
        key_id: 0,
        nonce: [0; NONCE_BYTES],
    }
}

/// What the indexes hold, as `status` shows it.
fn index_json(stats: &RecallStats) -> Value {
    json!({
        "texts": stats.texts,
        "texts_unbuilt": stats.texts_unbuilt,
        "text_segments": stats.text_segments,
        "vectors": stats.vectors,
        "vectors_refused": stats.vectors_refused,
        "text_heads_bytes_max": stats.text_heads_bytes_max,
        "memory_bytes": stats.text_head_bytes + stats.text_segment_bytes + stats.vector_bytes + stats.roster_bytes,
    })
}

fn page_of(run: ScanRun) -> Body {
    let page = run.into_page();
    archive(&ScanReply { items: page.items, more: page.more })
}

pub(super) fn stop_code(reason: &StopReason) -> ErrorCode {
    match reason {
        StopReason::Shutdown => ErrorCode::ShuttingDown,
        StopReason::Failed(_) => ErrorCode::Internal,
        StopReason::LogFailed(_) => ErrorCode::LogFailed,
        StopReason::Damaged(_) | StopReason::NeedsPeers { .. } => ErrorCode::Quarantined,
    }
}
