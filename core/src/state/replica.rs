//! A shard's state as its replica's state machine: shared, within one core, by the group that applies to it and by those
//! who read it.

use super::apply::{Entry, ShardState};
use super::memory::MemoryStore;
use super::outcome::WriteOutcome;
use super::record::Position;
use super::store::StoreError;
use crate::bugs::Bugs;
use crate::metrics::{Histogram, Labels, Registry, names};
use crate::raft::{ApplyError, Committed, Context, Outcome, Proposal, StateMachine};
use gristmill_wal::LogPosition;
use std::cell::{Ref, RefCell};
use std::rc::{Rc, Weak};

const _: () = assert!(super::outcome::OUTCOME_BYTES_MAX <= crate::raft::OUTCOME_INLINE_BYTES);

type State = ShardState<MemoryStore>;
type Figure = fn(&State) -> u64;

/// The state of one replica. A clone is the same state.
#[derive(Clone)]
pub struct ReplicaState {
    state: Rc<RefCell<State>>,
    batch_size: Option<Histogram>,
}

impl ReplicaState {
    /// Shares a state.
    pub fn new(state: State) -> ReplicaState {
        ReplicaState { state: Rc::new(RefCell::new(state)), batch_size: None }
    }

    /// The state, to read. Not to be held across an await: apply could not go on.
    pub fn read(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// From now on the state has `bugs`.
    pub(crate) fn set_bugs(&self, bugs: Bugs) {
        self.state.borrow_mut().bugs = bugs;
    }

    /// See [`ShardState::find_next_expiry_ms`].
    pub fn find_next_expiry_ms(&self) -> Result<u64, StoreError> {
        self.state.borrow_mut().find_next_expiry_ms()
    }

    /// Shows the state's figures in a registry, under the shard's number. To be called before the state is handed to its
    /// group, on the clone that is.
    pub fn measure(&mut self, registry: &Registry) {
        let labels = Labels::from([("shard", self.read().shard().0.to_string())]);
        self.batch_size = Some(registry.histogram(names::APPLY_BATCH_SIZE, labels.clone()));
        let figures: [(_, Figure); 14] = [
            (names::APPLIED_INDEX, |state| state.applied().map_or(0, |applied| applied.index)),
            (names::APPLY_BATCHES, |state| state.stats().batches),
            (names::APPLIED_ENTRIES, |state| state.stats().entries),
            (names::APPLIED_OPERATIONS, |state| state.stats().operations),
            (names::DUPLICATE_COMMANDS, |state| state.stats().duplicates),
            (names::FAILED_PRECONDITIONS, |state| state.stats().preconditions_failed),
            (names::REJECTED_COMMANDS, |state| state.stats().rejected),
            (names::EXPIRED_VALUES_SWEPT, |state| state.stats().swept),
            (names::STATE_MEMORY, State::memory_bytes),
            (names::NAMESPACES, |state| state.namespaces().len() as u64),
            (names::VALUES, |state| state.namespaces().map(|namespace| namespace.counters.values).sum()),
            (names::GRAINS, |state| state.namespaces().map(|namespace| namespace.counters.grains).sum()),
            (names::SESSIONS, |state| state.session_counts().0 as u64),
            (names::SESSION_ANSWERS, |state| state.session_counts().1 as u64),
        ];
        for (definition, figure) in figures {
            let state: Weak<RefCell<State>> = Rc::downgrade(&self.state);
            registry.observe(definition, labels.clone(), move || {
                state.upgrade().map_or(0, |state| figure(&state.borrow()) as i64)
            });
        }
    }
}

impl StateMachine for ReplicaState {
    fn applied(&self) -> Option<LogPosition> {
        self.read().applied().map(|Position { term, index }| LogPosition { term, index })
    }

    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        let entries: Vec<_> = batch
            .iter()
            .map(|Committed { position, command }| Entry {
                position: Position { term: position.term, index: position.index },
                command: command.map(|(header, body)| (header, body.as_slice())),
            })
            .collect();
        let mut outcomes = Vec::with_capacity(entries.len());
        let applied = self.state.borrow_mut().apply(&entries, &mut outcomes);
        applied.map_err(|error| ApplyError { index: error.index(), reason: error.to_string() })?;
        if let Some(batch_size) = &self.batch_size {
            batch_size.record(entries.len() as u64);
        }
        out.extend(outcomes.iter().map(ShardContext::to_outcome));
        Ok(())
    }
}

/// What a shard's group is asked and answers.
pub struct ShardContext;

impl Context for ShardContext {
    type Request = Proposal;
    /// `None` for entries without a command: sweeps, and consensus's own.
    type Response = Option<WriteOutcome>;

    fn to_proposal(request: Proposal) -> Proposal {
        request
    }

    fn to_outcome(response: &Option<WriteOutcome>) -> Outcome {
        response.map_or(Outcome::EMPTY, |outcome| Outcome::from_bytes(&outcome.encode()))
    }

    fn from_outcome(outcome: &Outcome) -> Option<WriteOutcome> {
        let bytes = outcome.as_bytes();
        (!bytes.is_empty()).then(|| WriteOutcome::decode(bytes).expect("apply encoded it"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::Hooks;
    use super::super::outcome::Verdict;
    use super::super::ranges::OwnedRanges;
    use super::super::testing::{OwnedEntry, put};
    use super::*;
    use gristmill_rpc::ids::{ShardId, Version};

    fn new_replica() -> ReplicaState {
        let state = State::create(ShardId(3), &OwnedRanges::all(), MemoryStore::new(), Hooks::default());
        ReplicaState::new(state.expect("new"))
    }

    fn apply(replica: &mut ReplicaState, entries: &[OwnedEntry]) -> Result<Vec<Outcome>, ApplyError> {
        let batch: Vec<_> = entries
            .iter()
            .map(|entry| Committed {
                position: LogPosition { term: entry.position.term, index: entry.position.index },
                command: entry.command.as_ref().map(|(header, body)| (header, body)),
            })
            .collect();
        let mut out = Vec::new();
        replica.apply(&batch, &mut out).map(|()| out)
    }

    #[test]
    fn outcomes_survive_the_trip_through_consensus() {
        let mut replica = new_replica();
        assert_eq!(replica.applied(), None);
        let entries = [OwnedEntry::blank(0), OwnedEntry::command(1, 5, vec![put("a", b"k", b"v")])];
        let outcomes = apply(&mut replica, &entries).expect("applies");
        let responses: Vec<_> = outcomes.iter().map(ShardContext::from_outcome).collect();
        let applied = WriteOutcome { version: Version(1), duplicate: false, verdict: Verdict::Applied };
        assert_eq!(responses, [None, Some(applied)]);
        assert_eq!(replica.applied(), Some(LogPosition { term: 1, index: 1 }));
        assert_eq!(replica.read().get("a", b"k", 5), Ok(Some((Version(1), &b"v"[..]))));
    }

    #[test]
    fn fatal_errors_name_the_entry() {
        let mut replica = new_replica();
        let entry = OwnedEntry::command(7, 1, vec![]).with(|header| header.schema = 9);
        let error = apply(&mut replica, &[entry]).expect_err("unknown schema");
        assert_eq!(error.index, 7);
        assert!(error.reason.contains("schema 9"), "{}", error.reason);
    }

    #[test]
    fn figures_show_under_the_shards_number() {
        let (mut replica, registry) = (new_replica(), Registry::new(0));
        replica.measure(&registry);
        let entries: Vec<_> = (1..=4).map(|n| OwnedEntry::command(n, 1, vec![put("a", &[n as u8], b"v")])).collect();
        apply(&mut replica, &entries).expect("applies");
        let snapshot = registry.snapshot();
        for (name, value) in [("applied_index", 4), ("values", 4), ("namespaces", 1), ("apply_batch_size", 1)] {
            assert_eq!(snapshot.total(name), Some(value), "{name}");
        }
        assert!(snapshot.find("values", &Labels::from([("shard", "3".into())])).is_some());
        drop(replica);
        assert_eq!(registry.snapshot().total("values"), Some(0), "the registry does not keep the state alive");
    }
}
