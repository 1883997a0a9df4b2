//! Between openraft's stream of committed entries and our batched [`StateMachine`].
//!
//! ```text
//!  committed entries ──> gather what is ready, up to APPLY_BATCH_MAX ──> room? ──> StateMachine::apply(batch) ──> outcomes
//!                                                                                                          │
//!  client <── responder, one per entry that was proposed here, called after its batch <────────────────────┘
//! ```
//!
//! Invariants: entries arrive in log order without gaps; one outcome per entry; an error is fatal for the replica, since
//! anything deterministic is an outcome. A panic is such an error: openraft catches none, so its worker would die with
//! writes unanswered and the rest of the replica alive. Snapshots do not exist in this version: none is reported, and asking for one is
//! a typed error.

use super::errors::StopReason;
use super::log_store::unreadable;
use super::types::{Entry, Outcome, RaftLogId, RaftStoredMembership, TypeConfig, to_log_id};
use crate::state::envelope::EntryHeader;
use futures_util::{Stream, StreamExt};
use gristmill_rpc::body::Body;
use gristmill_shardexec as shardexec;
use gristmill_wal::LogPosition;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;

/// Entries that one call of [`StateMachine::apply`] gets at the most. Between calls the core may turn to others.
pub const APPLY_BATCH_MAX: usize = 512;
/// Bytes of commands that one call of [`StateMachine::apply`] gets, unless one command alone has more: what the state machine
/// may grow by between two looks at its [`StateMachine::room`].
pub const APPLY_BATCH_BYTES_MAX: usize = 4 << 20;

/// An entry that is committed and must be applied now.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    /// Where it stands. Applied positions grow by one index each.
    pub position: LogPosition,
    /// The command, or `None` for consensus's own entries, which only move the applied position.
    pub command: Option<(&'a EntryHeader, &'a Body)>,
}

/// The state of one replica fails for good: it must stop and recover from its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("applying log entry {index} failed: {reason}; the replica stops and must be restarted")]
pub struct ApplyError {
    /// Index of the entry.
    pub index: u64,
    /// What happened.
    pub reason: String,
}

/// What a group's log drives. Apply is deterministic: the same entries give the same state and outcomes on every replica.
pub trait StateMachine {
    /// The last entry that is part of the state; `None` when there is none.
    fn applied(&self) -> Option<LogPosition>;

    /// Applies `batch` in order and pushes exactly one outcome per entry, also for entries without a command.
    ///
    /// What depends on the command alone (a failed precondition, a bad value) is an outcome. An error stops the replica.
    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError>;

    /// What to wait for before the next batch, where the state machine has to catch up with itself first; `None` when there is
    /// room now. Live traffic may be held back earlier, a replay only here.
    fn room(&self) -> Option<Room> {
        None
    }
}

/// Resolves once a state machine has room for another batch.
pub type Room = Pin<Box<dyn Future<Output = ()>>>;

/// What the rest of the group may know of the state machine at any time.
#[derive(Default)]
pub(crate) struct ApplyProgress {
    applied: Cell<Option<LogPosition>>,
    /// Others need the log, too: the last membership that was applied has more than one member.
    followed: Cell<bool>,
    /// Why applying ended: openraft passes on the text of an error only.
    ended_by: RefCell<Option<StopReason>>,
}

impl ApplyProgress {
    /// The last entry applied.
    pub(crate) fn applied(&self) -> Option<LogPosition> {
        self.applied.get()
    }

    /// Why applying ended, if it did.
    pub(crate) fn ended_by(&self) -> Option<StopReason> {
        self.ended_by.borrow().clone()
    }
}

/// The application's state machine and what consensus wants stored beside it. A clone shares both.
#[derive(Clone)]
pub(crate) struct Applier {
    machine: Rc<RefCell<Machine>>,
    progress: Rc<ApplyProgress>,
}

struct Machine {
    application: Box<dyn StateMachine>,
    /// Told the index up to which entries are applied.
    on_applied: Box<dyn Fn(u64)>,
    membership: RaftStoredMembership,
    outcomes: Vec<Outcome>,
}

impl Applier {
    pub(crate) fn new(application: Box<dyn StateMachine>, on_applied: Box<dyn Fn(u64)>) -> Applier {
        let progress = ApplyProgress::default();
        progress.applied.set(application.applied());
        let membership = RaftStoredMembership::default();
        let machine = Machine { application, on_applied, membership, outcomes: Vec::new() };
        Applier { machine: Rc::new(RefCell::new(machine)), progress: Rc::new(progress) }
    }

    pub(crate) fn progress(&self) -> Rc<ApplyProgress> {
        Rc::clone(&self.progress)
    }

    /// Waits until the state machine has room for another batch.
    pub(crate) async fn admit(&self) {
        // Not in one expression: the machine must not stay borrowed while this waits.
        let room = self.machine.borrow().application.room();
        if let Some(room) = room {
            room.await;
        }
    }

    /// Applies one batch; its outcomes stand in `Machine::outcomes` afterwards. After an error the state may be half
    /// changed: nothing may be applied to it or read from it any more.
    pub(crate) fn apply_batch(&self, entries: &[Entry]) -> Result<(), ApplyError> {
        let Some(first) = entries.first() else { return Ok(()) };
        catch_unwind(AssertUnwindSafe(|| self.apply_entries(entries))).unwrap_or_else(|payload| {
            let reason = format!("the state machine panicked: {}", panic_text(&*payload));
            Err(ApplyError { index: first.log_id.index, reason })
        })
    }

    fn apply_entries(&self, entries: &[Entry]) -> Result<(), ApplyError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let machine = &mut *self.machine.borrow_mut();
        let batch: Vec<Committed<'_>> = entries.iter().map(committed).collect();
        self.assert_follows(batch[0].position);
        machine.outcomes.clear();
        machine.application.apply(&batch, &mut machine.outcomes)?;
        assert_eq!(machine.outcomes.len(), batch.len(), "one outcome per entry");
        for entry in entries {
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.progress.followed.set(membership.nodes().count() > 1);
                machine.membership = RaftStoredMembership::new(Some(entry.log_id), membership.clone());
            }
        }
        self.progress.applied.set(Some(last.position()));
        if !self.progress.followed.get() {
            // With followers the entries may still be to be sent; the cache's own limit holds.
            (machine.on_applied)(last.log_id.index);
        }
        Ok(())
    }

    fn ended_by(&self, reason: StopReason) {
        *self.progress.ended_by.borrow_mut() = Some(reason);
    }

    fn assert_follows(&self, first: LogPosition) {
        if let Some(applied) = self.progress.applied.get() {
            assert_eq!(first.index, applied.index + 1, "entries are applied one after the other");
        }
    }

    async fn apply_and_answer(&self, entries: &mut Vec<Entry>, responders: &mut Responders) -> io::Result<()> {
        self.admit().await;
        if let Err(error) = self.apply_batch(entries) {
            self.ended_by(StopReason::Failed(error.to_string().into()));
            return Err(io::Error::other(error));
        }
        entries.clear();
        {
            let machine = &mut *self.machine.borrow_mut();
            for (responder, outcome) in responders.drain(..).zip(machine.outcomes.drain(..)) {
                if let Some(responder) = responder {
                    responder.send(outcome);
                }
            }
        }
        shardexec::yield_if_spent().await;
        Ok(())
    }
}

type Responders = Vec<Option<ApplyResponder<TypeConfig>>>;

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("with a payload that is not text")
}

fn committed(entry: &Entry) -> Committed<'_> {
    let command = match &entry.payload {
        EntryPayload::Normal(proposal) => Some((&proposal.header, &proposal.body)),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    };
    Committed { position: entry.position(), command }
}

/// Bytes of an entry's command.
pub(crate) fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.body.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = NoSnapshot;
    type SnapshotBuilder = NoSnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        Ok((self.progress.applied.get().map(to_log_id), self.machine.borrow().membership.clone()))
    }

    async fn apply<S>(&mut self, stream: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut ready = stream.ready_chunks(APPLY_BATCH_MAX);
        let mut entries = Vec::new();
        let mut responders = Vec::new();
        while let Some(chunk) = ready.next().await {
            let mut bytes = 0;
            for item in chunk {
                let (entry, responder) = item.inspect_err(|error| self.ended_by(unreadable(error)))?;
                bytes += command_bytes(&entry);
                if bytes > APPLY_BATCH_BYTES_MAX && !entries.is_empty() {
                    self.apply_and_answer(&mut entries, &mut responders).await?;
                    bytes = command_bytes(&entry);
                }
                entries.push(entry);
                responders.push(responder);
            }
            self.apply_and_answer(&mut entries, &mut responders).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<NoSnapshotBuilder> {
        force.then_some(NoSnapshotBuilder)
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshotBuilder {
        NoSnapshotBuilder
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMetaOf<TypeConfig>, snapshot: NoSnapshot) -> io::Result<()> {
        match snapshot {}
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, NoSnapshot>>> {
        Ok(None)
    }
}

/// A snapshot's data. There is none in this version, and the type says so.
pub(crate) enum NoSnapshot {}

/// Builds no snapshots.
pub(crate) struct NoSnapshotBuilder;

/// Asked for what does not exist yet.
#[derive(Debug, thiserror::Error)]
#[error("snapshots are not part of this version: a replica's state is rebuilt from its log")]
struct SnapshotsNotYet;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshotBuilder {
    type SnapshotData = NoSnapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, NoSnapshot>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, SnapshotsNotYet))
    }
}
