//! What one shard's log drives: its state, and the indexes that follow it.
//!
//! ```text
//!   consensus ─ committed batch ─► ReplicaState ─┬─► outcomes
//!                                                └─► grains stored and removed ─► RecallIndex
//!   reads ─► ReplicaState          recall ─► RecallIndex, in slices, then the grains from the state
//! ```
//!
//! Invariants: the heads of the indexes are bounded, also in a replay, because apply waits for them; indexes follow inside the same apply, so a recall sees whatever was answered before it; nothing holds the
//! borrow of the state across an await.

use super::sweep::ExpiryAlarm;
use crate::bugs::Bugs;
use crate::metrics::Registry;
use crate::raft::{ApplyError, Committed, Outcome, Room, StateMachine};
use crate::recall::{MaintainError, RecallIndex, RecallSpec, RecallStats, StateView};
use crate::relation::RelationKeys;
use crate::state::apply::{ApplyStats, Hooks, ShardState};
use crate::state::hlc::Hlc;
use crate::state::memory::MemoryStore;
use crate::state::outcome::WriteOutcome;
use crate::state::ranges::OwnedRanges;
use crate::state::read::{ReadError, ScanRun, ScanSpec};
use crate::state::replica::ReplicaState;
use crate::state::root::StateRoot;
use gristmill_rpc::body::{Body, access};
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::ids::{GrainId, ShardId, Version};
use gristmill_rpc::ring::Ring;
use gristmill_rpc::schema::{
    ArchivedGetGrainRequest, ArchivedGetRequest, ArchivedRecallRequest, ArchivedScanRequest, ErrorReply, GetGrainReply,
    GetReply, RecallReply, Versioned, WriteReply,
};
use gristmill_wal::LogPosition;
use std::convert::Infallible;
use std::rc::Rc;

/// State and indexes of one shard. A clone is the same machine.
#[derive(Clone)]
pub(crate) struct Machine {
    state: ReplicaState,
    index: RecallIndex,
    alarm: Rc<ExpiryAlarm>,
}

/// How much a shard holds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) namespaces: u64,
    pub(crate) values: u64,
    pub(crate) grains: u64,
}

impl Machine {
    /// An empty machine: the state is rebuilt from the log.
    pub(crate) fn new(shard: ShardId, ring: &Ring, registry: &Registry) -> Machine {
        Machine::over(RecallIndex::new(), shard, ring, registry)
    }

    /// The same over an empty index of the caller's.
    pub(super) fn over(index: RecallIndex, shard: ShardId, ring: &Ring, registry: &Registry) -> Machine {
        let hooks = Hooks { index: Box::new(index.clone()), derived: Box::new(RelationKeys) };
        let owned = OwnedRanges::of_ring(ring, shard);
        let state = ShardState::create(shard, &owned, MemoryStore::new(), hooks)
            .expect("an empty store in memory takes its first record");
        let mut state = ReplicaState::new(state);
        state.measure(registry);
        Machine { state, index, alarm: Rc::default() }
    }

    /// The same machine, with `bugs`.
    pub(crate) fn with_bugs(self, bugs: Bugs) -> Machine {
        self.state.set_bugs(bugs);
        self
    }

    /// What consensus applies to.
    pub(crate) fn state_machine(&self) -> Box<dyn StateMachine> {
        Box::new(Driven(self.clone()))
    }

    /// The reply that an outcome stands for.
    pub(crate) fn reply_to(outcome: &Outcome) -> Result<WriteReply, Rejection> {
        let decoded = WriteOutcome::decode(outcome.as_bytes());
        let outcome = decoded.map_err(|error| Rejection::new(ErrorCode::Internal, error.to_string()))?;
        outcome.to_reply().map_err(rejection_of_reply)
    }

    pub(crate) fn get(&self, request: &ArchivedGetRequest, now_ms: u64) -> Result<GetReply, Rejection> {
        let state = self.state.read();
        let found = state.get(&request.namespace, &request.key, now_ms).map_err(|error| read_rejection(&error))?;
        Ok(GetReply { value: found.map(|(version, value)| Versioned { version, value: value.to_vec() }) })
    }

    pub(crate) fn get_grain(&self, request: &ArchivedGetGrainRequest) -> Result<GetGrainReply, Rejection> {
        let (state, id) = (self.state.read(), GrainId(request.id.0));
        let found = state.grain(&request.namespace, id).map_err(|error| read_rejection(&error))?;
        Ok(match found {
            Some((version, grain)) => GetGrainReply { grain: Some(grain.to_grain(&request.namespace, id)), version },
            None => GetGrainReply { grain: None, version: Version(0) },
        })
    }

    /// A step of a scan; true once its page is complete.
    pub(crate) fn scan_step(&self, run: &mut ScanRun, now_ms: u64) -> Result<bool, Rejection> {
        run.step(&self.state.read(), now_ms).map_err(|error| read_rejection(&error))
    }

    /// Finds the best grains. Yields between slices of the legs.
    pub(crate) async fn recall(&self, body: &Body) -> Result<RecallReply, Rejection> {
        let spec = RecallSpec::from(access::<ArchivedRecallRequest>(body)?);
        let found = self.index.recall(self, &spec).await;
        found.map_err(|error| Rejection::new(error.code(), error.to_string()))
    }

    /// Waits until the indexes have room for more writes.
    pub(crate) async fn admit(&self) {
        self.index.admit().await;
    }

    /// Keeps the indexes in shape; ends only by an error.
    pub(crate) async fn maintain(&self) -> Result<Infallible, MaintainError> {
        self.index.maintain().await
    }

    /// When the first value expires, by the wall clock's milliseconds; `u64::MAX` where none does.
    pub(super) fn find_next_expiry_ms(&self) -> u64 {
        self.state.find_next_expiry_ms().expect("apply made every mark, and memory does not fail")
    }

    /// Rings when a value is stored that expires before all others.
    pub(super) fn expiry_alarm(&self) -> &ExpiryAlarm {
        &self.alarm
    }

    /// The state root by a full scan, in hex digits.
    #[cfg(test)]
    pub(super) fn recomputed_root(&self) -> String {
        self.state.read().recompute_root().expect("memory does not fail").to_string()
    }

    /// What the indexes hold.
    pub(crate) fn index_stats(&self) -> RecallStats {
        self.index.stats()
    }

    /// The highest timestamp among the applied entries.
    pub(crate) fn latest_hlc(&self) -> Hlc {
        self.state.read().hlc()
    }

    /// The last entry in the state, and the state's root.
    pub(crate) fn root_at(&self) -> (Option<LogPosition>, StateRoot) {
        let root = self.state.read().root();
        (self.state.applied(), root)
    }

    /// The state root, in hex digits.
    pub(crate) fn state_root(&self) -> String {
        self.state.read().root().to_string()
    }

    /// Live records of all namespaces.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for namespace in self.state.read().namespaces() {
            counts.namespaces += 1;
            counts.values += namespace.counters.values;
            counts.grains += namespace.counters.grains;
        }
        counts
    }

    /// What apply has done since the start.
    pub(crate) fn stats(&self) -> ApplyStats {
        self.state.read().stats()
    }

    /// Bytes of memory of the state, indexes apart.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.state.read().memory_bytes()
    }
}

/// What consensus drives: the state, held back by the indexes that follow it, and watched by the sweeper.
struct Driven(Machine);

impl StateMachine for Driven {
    fn applied(&self) -> Option<LogPosition> {
        self.0.state.applied()
    }

    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        self.0.state.apply(batch, out)?;
        self.0.alarm.applied(self.0.state.read().no_expiry_before_ms());
        Ok(())
    }

    fn room(&self) -> Option<Room> {
        if self.0.index.has_room() {
            return None;
        }
        let index = self.0.index.clone();
        Some(Box::pin(async move { index.admit().await }))
    }
}

impl StateView for Machine {
    type Store = MemoryStore;

    fn read<T>(&self, look: impl FnOnce(&ShardState<MemoryStore>) -> T) -> T {
        look(&self.state.read())
    }
}

/// What a request asks to be scanned.
pub(crate) fn scan_of(request: &ArchivedScanRequest) -> ScanRun {
    let spec = ScanSpec {
        namespace: request.namespace.as_str().to_owned(),
        start: request.start.to_vec(),
        end: request.end.to_vec(),
        prefix: request.prefix.to_vec(),
        reverse: request.reverse,
    };
    ScanRun::new(spec, request.limit.to_native())
}

fn read_rejection(error: &ReadError) -> Rejection {
    Rejection::new(error.code(), error.to_string())
}

fn rejection_of_reply(reply: ErrorReply) -> Rejection {
    let code = ErrorCode::from_wire(reply.code).unwrap_or(ErrorCode::Internal);
    Rejection::new(code, reply.message).retry_after_ms(reply.retry_after_ms)
}
