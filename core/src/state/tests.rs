//! The state as a whole, against a naive model: random histories, in batches of any split, with and without restarts.

use super::apply::{ApplyError, Hooks, SWEPT_PER_ENTRY, SWEPT_PER_SWEEP, ShardState, StateLimits};
use super::envelope::Codec;
use super::events::{DerivedKeys, IndexEvent, IndexSink};
use super::grain::GrainRef;
use super::key::{self, LogicalKey, NamespaceId, Scope, Table};
use super::memory::MemoryStore;
use super::outcome::{Rejection, Verdict, WriteOutcome};
use super::ranges::OwnedRanges;
use super::read::{ReadError, ScanSpec};
use super::record::{Counters, Position};
use super::store::{Store, Write, WriteBatch};
use super::testing::{OwnedEntry, cas, delete, delete_grain, dump, grain, put, put_for, put_grain, run, try_apply};
use core::ops::ControlFlow;
use gristmill_rpc::ids::{GrainId, ShardId, Version};
use gristmill_rpc::ring::{Ring, namespace_point};
use gristmill_rpc::schema::{Expected, Grain, Operation, Relation};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

type State = ShardState<MemoryStore>;

/// Grains as an index sees them: their versions and subjects.
type Mirror = BTreeMap<(NamespaceId, GrainId), (Version, String)>;

#[derive(Default, Clone)]
struct MirrorIndex {
    mirror: Rc<RefCell<Mirror>>,
}

impl IndexSink for MirrorIndex {
    fn index(&mut self, event: IndexEvent<'_>) {
        let mut mirror = self.mirror.borrow_mut();
        match event {
            IndexEvent::PutGrain { namespace, id, version, grain, old } => {
                let replaced = mirror.insert((namespace, id), (version, grain.subject().into()));
                let replaced = replaced.as_ref().map(|(_, subject)| subject.as_str());
                assert_eq!(old.map(|old| old.subject()), replaced, "the old grain is the one before the command");
            }
            IndexEvent::DeleteGrain { namespace, id, old, .. } => {
                let removed = mirror.remove(&(namespace, id)).expect("only what existed is removed");
                assert_eq!(old.subject(), removed.1);
            }
        }
    }
}

/// One key per relation: enough to see that apply writes exactly the difference.
struct OneOrder;

impl OneOrder {
    fn key(scope: Scope, id: GrainId, subject: &str, (predicate, object): (&str, &str)) -> Vec<u8> {
        let mut out = key::single(Table::RelationsSpo, scope);
        for part in [subject, predicate, object] {
            key::push_escaped(&mut out, part.as_bytes());
        }
        out.extend_from_slice(&id.0);
        out
    }
}

impl DerivedKeys for OneOrder {
    fn visit(&self, scope: Scope, id: GrainId, grain: &GrainRef<'_>, visit: &mut dyn FnMut(Vec<u8>)) {
        for relation in grain.relations() {
            visit(OneOrder::key(scope, id, grain.subject(), relation));
        }
    }
}

fn hooks(index: &MirrorIndex) -> Hooks {
    Hooks { index: Box::new(index.clone()), derived: Box::new(OneOrder) }
}

fn new_state_with(index: &MirrorIndex) -> State {
    State::create(ShardId(0), &OwnedRanges::all(), MemoryStore::new(), hooks(index)).expect("new")
}

fn new_state() -> State {
    new_state_with(&MirrorIndex::default())
}

/// A restart: the state is opened from its records, the index is built anew from its grains.
fn restart(state: &State) -> (State, MirrorIndex) {
    let index = MirrorIndex::default();
    let state = State::open(ShardId(0), state.store().clone(), hooks(&index)).expect("own store");
    for namespace in state.namespaces() {
        let visit = &mut |id, version, grain: GrainRef<'_>| {
            index.mirror.borrow_mut().insert((namespace.scope.namespace, id), (version, grain.subject().into()));
            ControlFlow::Continue(())
        };
        state.each_grain(namespace.scope, visit).expect("own grains");
    }
    (state, index)
}

/// Version, bytes, expiry.
type ModelValue = (u64, Vec<u8>, u64);

/// The naive model: what is stored, without keys, batches or expiry marks.
#[derive(Default, Clone)]
struct Model {
    now_ms: u64,
    values: BTreeMap<(String, Vec<u8>), ModelValue>,
    grains: BTreeMap<(String, GrainId), (u64, Grain)>,
    dimensions: BTreeMap<String, u32>,
    namespaces: Vec<String>,
    answers: BTreeMap<(u64, u64), WriteOutcome>,
}

impl Model {
    fn live(&self, namespace: &str, key: &[u8]) -> Option<(u64, &[u8])> {
        let (version, bytes, expires) = self.values.get(&(namespace.into(), key.into()))?;
        (*expires > self.now_ms).then_some((*version, bytes))
    }

    fn apply(
        &mut self,
        index: u64,
        now_ms: u64,
        session: Option<(u64, u64)>,
        operations: &[Operation],
    ) -> WriteOutcome {
        self.now_ms = self.now_ms.max(now_ms);
        if let Some(known) = session.and_then(|session| self.answers.get(&session)) {
            return WriteOutcome { duplicate: true, ..*known };
        }
        let mut after = self.clone();
        let verdict = operations
            .iter()
            .enumerate()
            .find_map(|(op, operation)| after.operation(index, op as u32, operation).err())
            .unwrap_or(Verdict::Applied);
        if verdict == Verdict::Applied {
            *self = after;
        }
        let outcome = WriteOutcome { version: Version(index), duplicate: false, verdict };
        if let Some(session) = session {
            self.answers.insert(session, outcome);
        }
        outcome
    }

    fn operation(&mut self, index: u64, operation_at: u32, operation: &Operation) -> Result<(), Verdict> {
        match operation {
            Operation::Put { namespace, key, value, ttl_ms } => {
                let expires = if *ttl_ms == 0 { u64::MAX } else { self.now_ms + ttl_ms };
                self.create(namespace);
                self.values.insert((namespace.clone(), key.clone()), (index, value.clone(), expires));
            }
            Operation::Delete { namespace, key } => {
                self.values.remove(&(namespace.clone(), key.clone()));
            }
            Operation::CompareAndSet { namespace, key, expected, value } => {
                let live = self.live(namespace, key);
                let holds = match expected {
                    Expected::Absent => live.is_none(),
                    Expected::Version(version) => live.is_some_and(|(found, _)| found == version.0),
                    Expected::Value(bytes) => live.is_some_and(|(_, found)| found == bytes),
                };
                if !holds {
                    let found = live.map(|(version, _)| Version(version));
                    return Err(Verdict::PreconditionFailed { operation: operation_at, found });
                }
                match value {
                    Some(value) => {
                        self.create(namespace);
                        self.values.insert((namespace.clone(), key.clone()), (index, value.clone(), u64::MAX));
                    }
                    None => drop(self.values.remove(&(namespace.clone(), key.clone()))),
                }
            }
            Operation::PutGrain { grain } => {
                if let Some(found) = grain.vector.as_ref().map(|vector| vector.len() as u32) {
                    let expected = self.dimensions.get(&grain.namespace).copied();
                    if found == 0 || expected.is_some_and(|expected| expected != found) {
                        let rejection = Rejection::WrongDimension { operation: operation_at, expected, found };
                        return Err(Verdict::Rejected(rejection));
                    }
                    self.dimensions.insert(grain.namespace.clone(), found);
                }
                self.create(&grain.namespace);
                self.grains.insert((grain.namespace.clone(), grain.id), (index, grain.clone()));
            }
            Operation::DeleteGrain { namespace, id } => {
                self.grains.remove(&(namespace.clone(), *id));
            }
        }
        Ok(())
    }

    fn create(&mut self, namespace: &str) {
        if !self.namespaces.iter().any(|name| name == namespace) {
            self.namespaces.push(namespace.into());
        }
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "ü"];
const KEYS: [&[u8]; 5] = [b"k", b"k\0", b"k\0\xff", b"l", b"\xff"];

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(&NAMESPACES[..]).prop_map(Into::into)
}

fn user_key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(&KEYS[..]).prop_map(Into::into)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..2, 0..2)
}

fn any_grain() -> impl Strategy<Value = Grain> {
    let word = || prop::sample::select(&["x", "y", "z\0"][..]).prop_map(String::from);
    let vector = prop_oneof![4 => Just(None), 8 => Just(Some(2)), 1 => Just(Some(3)), 1 => Just(Some(0))];
    (0u8..3, namespace(), word(), vector, prop::collection::vec((word(), word()), 0..3), bytes()).prop_map(
        |(id, namespace, subject, vector, relations, payload)| Grain {
            text: Some(subject.repeat(2)),
            relations: relations.into_iter().map(|(predicate, object)| Relation { predicate, object }).collect(),
            payload,
            ..grain(&namespace, id, &subject, vector.map(|n| vec![0.5; n]))
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let expected = prop_oneof![
        Just(Expected::Absent),
        (1u64..30).prop_map(|version| Expected::Version(Version(version))),
        bytes().prop_map(Expected::Value),
    ];
    let ttl = prop_oneof![Just(0u64), 1u64..30];
    prop_oneof![
        4 => (namespace(), user_key(), bytes(), ttl)
            .prop_map(|(namespace, key, value, ttl_ms)| Operation::Put { namespace, key, value, ttl_ms }),
        2 => (namespace(), user_key()).prop_map(|(namespace, key)| Operation::Delete { namespace, key }),
        2 => (namespace(), user_key(), expected, prop::option::of(bytes())).prop_map(
            |(namespace, key, expected, value)| Operation::CompareAndSet { namespace, key, expected, value }
        ),
        4 => any_grain().prop_map(|grain| Operation::PutGrain { grain }),
        1 => (namespace(), 0u8..3).prop_map(|(namespace, id)| delete_grain(&namespace, id)),
    ]
}

/// One entry of a history, without its index: time passed, session and sequence, operations; no operations = a sweep or
/// one of consensus's own.
#[derive(Debug, Clone)]
struct Step {
    /// Negative where the leader's clock is behind its predecessor's.
    passed_ms: i64,
    session: Option<(u64, u64)>,
    operations: Vec<Operation>,
    blank: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let session = prop::option::of((1u64..3, 0u64..12));
    let operations = prop_oneof![
        6 => prop::collection::vec(operation(), 1..2),
        3 => prop::collection::vec(operation(), 2..5),
        1 => prop::collection::vec(operation(), 10..20),
        1 => Just(vec![]),
    ];
    (-6i64..12, session, operations, any::<bool>()).prop_map(|(passed_ms, session, operations, blank)| Step {
        passed_ms,
        session,
        operations,
        blank,
    })
}

/// The entries of a history, and what the model says of them.
fn play(steps: &[Step]) -> (Vec<OwnedEntry>, Vec<Option<WriteOutcome>>, Model) {
    let (mut entries, mut outcomes, mut model, mut now_ms) = (vec![], vec![], Model::default(), 1_000);
    for (index, step) in (1..).zip(steps) {
        now_ms = u64::saturating_add_signed(now_ms, step.passed_ms);
        if step.operations.is_empty() {
            if step.blank {
                entries.push(OwnedEntry::blank(index));
            } else {
                entries.push(OwnedEntry::sweep(index, now_ms));
                model.now_ms = model.now_ms.max(now_ms);
            }
            outcomes.push(None);
            continue;
        }
        let entry = OwnedEntry::command(index, now_ms, step.operations.clone());
        entries.push(match step.session {
            Some((session, sequence)) => entry.in_session(session, sequence),
            None => entry,
        });
        outcomes.push(Some(model.apply(index, now_ms, step.session, &step.operations)));
    }
    (entries, outcomes, model)
}

fn all_of(namespace: &str) -> ScanSpec {
    ScanSpec { namespace: namespace.into(), start: vec![], end: vec![], prefix: vec![], reverse: false }
}

fn check_reads(state: &State, model: &Model) {
    let now_ms = model.now_ms;
    for name in NAMESPACES {
        if !model.namespaces.iter().any(|known| known == name) {
            assert_eq!(state.get(name, b"k", now_ms), Err(ReadError::UnknownNamespace { namespace: name.into() }));
            continue;
        }
        for key in KEYS {
            let expected = model.live(name, key).map(|(version, bytes)| (Version(version), bytes));
            assert_eq!(state.get(name, key, now_ms), Ok(expected));
        }
        for id in 0u8..3 {
            let id = GrainId([id; 16]);
            let expected =
                model.grains.get(&(name.into(), id)).map(|(version, grain)| (Version(*version), grain.clone()));
            let found = state.grain(name, id).expect("namespace is known");
            assert_eq!(found.map(|(version, grain)| (version, grain.to_grain(name, id))), expected);
        }
        let all = ScanSpec { namespace: name.into(), start: vec![], end: vec![], prefix: vec![], reverse: false };
        let scanned = state.scan(&all, 100, now_ms).expect("namespace is known").items;
        let scanned: Vec<_> = scanned.into_iter().map(|item| (item.key, item.version.0, item.value)).collect();
        let expected: Vec<_> = model
            .values
            .keys()
            .filter(|(namespace, _)| namespace == name)
            .filter_map(|(_, key)| model.live(name, key).map(|(version, bytes)| (key.clone(), version, bytes.to_vec())))
            .collect();
        assert_eq!(scanned, expected);
    }
    let names: Vec<_> = state.namespaces().map(|namespace| namespace.name.to_string()).collect();
    assert_eq!(names, model.namespaces, "numbered in the order of their first writes");
    for namespace in state.namespaces() {
        assert_eq!(namespace.dimensions, model.dimensions.get(&*namespace.name).copied());
    }
}

/// What must hold whatever happened: root, counters, expiry marks, relation keys and index agree with the records.
fn check_invariants(state: &State, model: &Model, mirror: &Mirror) {
    assert_eq!(state.recompute_root(), Ok(state.root()));
    let mut counters: BTreeMap<NamespaceId, Counters> = BTreeMap::new();
    let (mut marks, mut expiring, mut relations) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (key, _, value) in dump(state.store()) {
        let decoded = LogicalKey::decode(&key).expect("own keys");
        let counted = counters.entry(decoded.scope.namespace).or_default();
        match decoded.table {
            Table::Values => {
                counted.values += 1;
                if value[1] == 1 {
                    counted.expiring += 1;
                    let expires = u64::from_le_bytes(value[2..10].try_into().expect("eight bytes"));
                    expiring.insert(key::expiry(
                        expires,
                        decoded.scope.namespace,
                        &decoded.escaped_item().expect("own"),
                    ));
                }
            }
            Table::Grains => counted.grains += 1,
            Table::Expiry => drop(marks.insert(key)),
            Table::RelationsSpo => drop(relations.insert(key)),
            _ => {}
        }
    }
    assert_eq!(marks, expiring, "exactly the values that expire are marked");
    for namespace in state.namespaces() {
        let counted = counters.get(&namespace.scope.namespace).copied().unwrap_or_default();
        assert_eq!(namespace.counters, counted);
    }
    let (mut expected_relations, mut expected_mirror) = (BTreeSet::new(), Mirror::new());
    for ((name, id), (version, grain)) in &model.grains {
        let scope = state.namespace(name).expect("it has grains").scope;
        for relation in &grain.relations {
            let relation = (&*relation.predicate, &*relation.object);
            expected_relations.insert(OneOrder::key(scope, *id, &grain.subject, relation));
        }
        expected_mirror.insert((scope.namespace, *id), (Version(*version), grain.subject.clone()));
    }
    assert_eq!(relations, expected_relations);
    assert_eq!(*mirror, expected_mirror);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn behaves_as_the_model(steps in prop::collection::vec(step(), 0..40)) {
        let (entries, expected, model) = play(&steps);
        let index = MirrorIndex::default();
        let mut state = new_state_with(&index);
        let mut outcomes = Vec::new();
        for entry in entries {
            outcomes.extend(try_apply(&mut state, &[entry]).expect("applies"));
        }
        prop_assert_eq!(outcomes, expected);
        check_reads(&state, &model);
        check_invariants(&state, &model, &index.mirror.borrow());
    }

    /// Damage below is an error or goes unnoticed where nothing depends on it, but is never a panic: one record is changed
    /// or lost, then the state is opened, written to and read from end to end.
    #[test]
    fn a_damaged_store_never_panics(
        steps in prop::collection::vec(step(), 1..20),
        more in prop::collection::vec(step(), 1..20),
        victim: prop::sample::Index,
        damage in prop_oneof![
            Just(None),
            (any::<prop::sample::Index>(), any::<u8>()).prop_map(Some),
        ],
    ) {
        let (entries, ..) = play(&steps);
        let mut state = new_state();
        try_apply(&mut state, &entries).expect("applies");
        let records = dump(state.store());
        let (key, stamp, mut value) = records[victim.index(records.len())].clone();
        let value = damage.map(|(at, byte)| {
            if !value.is_empty() {
                let at = at.index(value.len());
                value[at] = byte;
            }
            value
        });
        let mut store = state.store().clone();
        let writes = vec![Write { key, op: stamp.op, value }];
        store.write(WriteBatch { index: stamp.index, writes }, &mut |_| {}).expect("memory does not fail");
        let Ok(mut state) = State::open(ShardId(0), store, Hooks::default()) else { return Ok(()) };
        for namespace in state.namespaces() {
            let name = &*namespace.name;
            for key in KEYS {
                let _ = state.get(name, key, 0);
            }
            let _ = state.scan(&all_of(name), 100, 0);
            let _ = state.each_grain(namespace.scope, &mut |_, _, _| ControlFlow::Continue(()));
        }
        let (later, ..) = play(&[steps, more].concat());
        let _ = try_apply(&mut state, &later[entries.len()..]);
    }

    /// Batches of any split, restarts from the store between any of them: the same records to the last byte and stamp,
    /// the same outcomes, the same root. (Also shows that a second run of the same log gives the same.)
    #[test]
    fn batching_and_restarts_change_nothing(
        steps in prop::collection::vec(step(), 1..40),
        cuts in prop::collection::vec((1usize..7, any::<bool>()), 40),
    ) {
        let (entries, ..) = play(&steps);
        let whole_index = MirrorIndex::default();
        let mut whole = new_state_with(&whole_index);
        let expected = try_apply(&mut whole, &entries).expect("applies");

        let mut index = MirrorIndex::default();
        let (mut state, mut outcomes, mut rest) = (new_state_with(&index), Vec::new(), &entries[..]);
        for (length, restarts) in cuts {
            let (batch, after) = rest.split_at(length.min(rest.len()));
            outcomes.extend(try_apply(&mut state, batch).expect("applies"));
            rest = after;
            if restarts {
                (state, index) = restart(&state);
            }
        }
        outcomes.extend(try_apply(&mut state, rest).expect("applies"));
        prop_assert_eq!(outcomes, expected);
        prop_assert_eq!(dump(state.store()), dump(whole.store()));
        prop_assert_eq!(state.root(), whole.root());
        prop_assert_eq!(&*index.mirror.borrow(), &*whole_index.mirror.borrow());
        prop_assert_eq!((state.applied(), state.hlc()), (whole.applied(), whole.hlc()));
    }
}

#[test]
fn a_command_applies_as_a_whole_or_not_at_all() {
    let mut state = new_state();
    run(&mut state, 1, vec![put("a", b"x", b"1")]);
    let before = (state.root(), state.store().len());
    let operations = vec![put("a", b"y", b"2"), put("new", b"z", b"3"), cas("a", b"x", Expected::Absent, None)];
    let outcome = run(&mut state, 2, operations);
    let found = Some(Version(1));
    assert_eq!(outcome.verdict, Verdict::PreconditionFailed { operation: 2, found });
    assert_eq!(state.get("a", b"y", 2), Ok(None));
    assert!(state.get("new", b"z", 2).is_err(), "not even the namespace came into being");
    assert_eq!((state.root(), state.store().len()), before);
}

#[test]
fn operations_see_what_earlier_ones_of_their_command_wrote() {
    let mut state = new_state();
    let operations = vec![
        put("a", b"x", b"1"),
        cas("a", b"x", Expected::Version(Version(1)), Some(b"2")),
        cas("a", b"x", Expected::Value(b"2".to_vec()), None),
        cas("a", b"x", Expected::Absent, Some(b"3")),
    ];
    assert_eq!(run(&mut state, 1, operations).verdict, Verdict::Applied);
    assert_eq!(state.get("a", b"x", 1), Ok(Some((Version(1), &b"3"[..]))));
}

#[test]
fn the_first_vector_fixes_the_dimension() {
    let mut state = new_state();
    let with = |id, n| put_grain(grain("a", id, "s", Some(vec![0.0; n])));
    assert_eq!(run(&mut state, 1, vec![with(1, 3)]).verdict, Verdict::Applied);
    let rejection = Rejection::WrongDimension { operation: 1, expected: Some(3), found: 4 };
    assert_eq!(run(&mut state, 1, vec![with(2, 3), with(3, 4)]).verdict, Verdict::Rejected(rejection));
    assert_eq!(state.grain("a", GrainId([2; 16])), Ok(None), "nothing of the command took effect");
    run(&mut state, 1, vec![delete_grain("a", 1)]);
    assert_eq!(run(&mut state, 1, vec![with(1, 4)]).verdict, Verdict::Rejected(rejection_at(0, Some(3), 4)));
    let other = Operation::PutGrain { grain: grain("b", 1, "s", Some(vec![0.0; 4])) };
    assert_eq!(run(&mut state, 1, vec![other]).verdict, Verdict::Applied, "other namespaces are free");
}

fn rejection_at(operation: u32, expected: Option<u32>, found: u32) -> Rejection {
    Rejection::WrongDimension { operation, expected, found }
}

#[test]
fn a_shard_has_a_limited_number_of_namespaces() {
    let limits = StateLimits { namespaces: 2, ..StateLimits::default() };
    let owned = OwnedRanges::all();
    let mut state = State::create_with(ShardId(0), &owned, MemoryStore::new(), Hooks::default(), limits).expect("new");
    run(&mut state, 1, vec![put("a", b"k", b"v")]);
    let refused = Verdict::Rejected(Rejection::TooManyNamespaces { operation: 1 });
    assert_eq!(run(&mut state, 1, vec![put("b", b"k", b"v"), put("c", b"k", b"v")]).verdict, refused);
    assert_eq!(run(&mut state, 1, vec![put("c", b"k", b"v"), put("a", b"k", b"w")]).verdict, Verdict::Applied);
    assert_eq!(run(&mut state, 1, vec![delete("b", b"k")]).verdict, Verdict::Applied, "nothing to create");
}

/// P-03 at apply: a command for a namespace of another shard has the same answer on every replica, and no effect.
#[test]
fn foreign_namespaces_are_refused() {
    let ring = Ring::new(2, 150);
    let foreign = (0..99).map(|n| format!("ns-{n}")).find(|name| ring.shard_of(name) == Some(ShardId(1))).expect("one");
    let owned = OwnedRanges::of_ring(&ring, ShardId(0));
    let mut state = State::create(ShardId(0), &owned, MemoryStore::new(), Hooks::default()).expect("new");
    let partition = namespace_point(foreign.as_bytes());
    let refused = Verdict::Rejected(Rejection::WrongShard { operation: 0, partition });
    for operation in [
        put(&foreign, b"k", b"v"),
        delete(&foreign, b"k"),
        cas(&foreign, b"k", Expected::Absent, None),
        put_grain(grain(&foreign, 1, "s", None)),
        delete_grain(&foreign, 1),
    ] {
        assert_eq!(run(&mut state, 1, vec![operation]).verdict, refused);
    }
    assert!(matches!(state.get(&foreign, b"k", 1), Err(ReadError::WrongShard { .. })));
    // It may become this shard's later, so the answer is not remembered.
    let entry = OwnedEntry::command(6, 1, vec![put(&foreign, b"k", b"v")]).in_session(1, 1);
    try_apply(&mut state, &[entry]).expect("applies");
    assert_eq!(state.session_counts(), (0, 0));
}

#[test]
fn expired_values_are_hidden_at_once_and_removed_by_the_log() {
    let mut state = new_state();
    let many = SWEPT_PER_ENTRY + 3;
    let puts = (0..many).map(|n| put_for("a", &[n as u8], b"v", 10)).collect();
    run(&mut state, 100, puts);
    assert!(state.get("a", &[0], 109).expect("known").is_some());
    assert_eq!(state.get("a", &[0], 110), Ok(None), "hidden by the reader's time");
    let count = |state: &State| state.namespaces().next().expect("one").counters;
    assert_eq!(count(&state).expiring, many as u64);

    // An expired value does not count for preconditions, although it is still there.
    let outcome = run(&mut state, 110, vec![cas("a", &[200], Expected::Absent, None)]);
    assert_eq!(outcome.verdict, Verdict::Applied);
    assert_eq!(count(&state).values, 3, "an entry removes a few");
    let outcome = run(&mut state, 110, vec![cas("a", &[many as u8 - 1], Expected::Absent, Some(b"w"))]);
    assert_eq!(outcome.verdict, Verdict::Applied);
    assert_eq!(count(&state), Counters { values: 1, grains: 0, expiring: 0 });
    assert_eq!(state.get("a", &[many as u8 - 1], 200).expect("known").map(|(_, v)| v), Some(&b"w"[..]));
    assert_eq!(state.stats().swept as usize, many - 1);
}

#[test]
fn a_sweep_entry_removes_many_and_only_what_has_expired() {
    let mut state = new_state();
    for chunk in 0..2u8 {
        let puts = (0..=255u8).map(|n| put_for("a", &[chunk, n], b"v", 10 + u64::from(n % 2) * 100)).collect();
        run(&mut state, 0, puts);
    }
    let index = state.applied().expect("applied").index + 1;
    assert_eq!(try_apply(&mut state, &[OwnedEntry::sweep(index, 50)]), Ok(vec![None]));
    assert_eq!(state.stats().swept, 256);
    try_apply(&mut state, &[OwnedEntry::sweep(index + 1, 500)]).expect("applies");
    assert_eq!(state.stats().swept as usize, SWEPT_PER_SWEEP.min(512));
    assert_eq!(state.recompute_root(), Ok(state.root()));
}

/// A retry after the answer was lost must not append, count or overwrite again: here the second try would fail its
/// precondition, had the first not been remembered.
#[test]
fn a_retry_gets_the_first_answer() {
    let mut state = new_state();
    let entry =
        |index| OwnedEntry::command(index, 1, vec![cas("a", b"k", Expected::Absent, Some(b"v"))]).in_session(9, 4);
    let first = try_apply(&mut state, &[entry(1)]).expect("applies")[0].expect("a command");
    let again = try_apply(&mut state, &[entry(2)]).expect("applies")[0].expect("a command");
    assert_eq!(first, WriteOutcome { version: Version(1), duplicate: false, verdict: Verdict::Applied });
    assert_eq!(again, WriteOutcome { duplicate: true, ..first });
    assert_eq!(state.get("a", b"k", 1), Ok(Some((Version(1), &b"v"[..]))));
    let stats = state.stats();
    assert_eq!((stats.operations, stats.duplicates, stats.entries), (1, 1, 2));

    // A failed precondition is an answer too: applying it later would contradict what the client was told.
    let failing =
        |index| OwnedEntry::command(index, 1, vec![cas("a", b"k", Expected::Absent, Some(b"w"))]).in_session(9, 5);
    try_apply(&mut state, &[failing(3)]).expect("applies");
    run(&mut state, 1, vec![delete("a", b"k")]);
    let again = try_apply(&mut state, &[failing(5)]).expect("applies")[0].expect("a command");
    let found = Some(Version(1));
    let verdict = Verdict::PreconditionFailed { operation: 0, found };
    assert_eq!(again, WriteOutcome { version: Version(3), duplicate: true, verdict });
}

#[test]
fn entries_that_cannot_be_applied_are_fatal() {
    let mut state = new_state();
    run(&mut state, 1, vec![put("a", b"k", b"v")]);
    let entry = || OwnedEntry::command(2, 1, vec![put("a", b"k", b"w")]);
    let applied = Position { term: 1, index: 1 };
    assert_eq!(
        try_apply(&mut state, &[OwnedEntry::blank(1)]),
        Err(ApplyError::Order { applied, found: Position { term: 1, index: 1 } })
    );
    let unknown = try_apply(&mut state, &[entry().with(|header| header.schema = 9)]);
    assert_eq!(unknown, Err(ApplyError::Schema { index: 2, found: 9 }));
    let sealed = try_apply(&mut state, &[entry().with(|header| header.codec = Codec::RkyvSealed)]);
    assert_eq!(sealed, Err(ApplyError::Sealed { index: 2 }));
    let mut garbled = entry();
    garbled.command.as_mut().expect("a command").1 = gristmill_rpc::body::Body::copy_from(&[0xff; 32]);
    assert!(matches!(try_apply(&mut state, &[garbled]), Err(ApplyError::Body { index: 2, .. })));
}

/// Replicas of different versions must agree, so what a log makes of a state may only change with a command schema.
#[test]
fn the_root_of_a_history_is_golden() {
    let mut state = new_state();
    let related = Grain {
        text: Some("one two".into()),
        relations: vec![Relation { predicate: "is_a".into(), object: "bird".into() }],
        tags: vec!["t".into()],
        payload: vec![1, 2],
        ..grain("a", 1, "tit", Some(vec![0.25, -1.0]))
    };
    let operations = [
        vec![put("a", b"k\0", b"v"), put_for("b", b"x", b"y", 10), put_grain(related)],
        vec![cas("a", b"k\0", Expected::Version(Version(1)), Some(b"w")), delete("b", b"none")],
        vec![cas("a", b"k\0", Expected::Absent, None)],
        vec![put("c", b"k", &[7; 5000]), delete_grain("a", 9)],
    ];
    for (index, operations) in (1..).zip(operations) {
        let entry = OwnedEntry::command(index, 100 * index, operations).in_session(5, index);
        try_apply(&mut state, &[entry]).expect("applies");
    }
    assert_eq!(state.root().to_string(), "1a76ef4c01ec4978e507b93f9d6ee8bb5b78883f1db540b77b6a4fe9742d4fe0");
    assert_eq!(state.store().len(), 17, "what expired is swept, answers and relations are there");
}

#[test]
fn a_new_state_is_written_at_once_and_opens_again() {
    let state = new_state();
    let reopened = State::open(ShardId(0), state.store().clone(), Hooks::default()).expect("own store");
    assert_eq!((reopened.applied(), reopened.root()), (None, state.root()));
    assert_eq!(reopened.owned(), &OwnedRanges::all());
    let empty = State::open(ShardId(0), MemoryStore::new(), Hooks::default());
    assert!(empty.is_err(), "a store that holds no shard");
}
