//! Keys, plans and scans against a plain list of relations.

use super::*;
use crate::recall::rank::Ranked;
use crate::state::grain::encode_grain;
use crate::state::key::NamespaceId;
use crate::state::memory::MemoryStore;
use crate::state::store::{Store, Write, WriteBatch};
use gristmill_rpc::schema::{Grain, Relation};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SCOPE: Scope = Scope { partition: 77, namespace: NamespaceId(3) };
const NEIGHBOUR: Scope = Scope { partition: 77, namespace: NamespaceId(4) };

/// Few values, so that patterns match; zero bytes and prefixes of each other among them.
fn part() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("ab"), Just("a\0"), Just("\0"), Just("b"), Just("\u{ff}")].prop_map(str::to_owned)
}

fn grain(id: u8, subject: &str, relations: &[(String, String)]) -> Grain {
    let relations =
        relations.iter().map(|(predicate, object)| Relation { predicate: predicate.clone(), object: object.clone() });
    Grain {
        id: GrainId([id; 16]),
        namespace: "ns".into(),
        subject: subject.into(),
        text: None,
        vector: None,
        relations: relations.collect(),
        tags: Vec::new(),
        payload: Vec::new(),
    }
}

fn keys(scope: Scope, grain: &Grain) -> Vec<Vec<u8>> {
    let record = encode_grain(grain);
    let mut keys = Vec::new();
    RelationKeys.visit(scope, grain.id, &GrainRef::decode(&record).unwrap(), &mut |key| keys.push(key));
    keys
}

fn write(store: &mut MemoryStore, index: u64, keys: BTreeSet<Vec<u8>>, value: Option<&[u8]>) {
    let writes = keys.into_iter().map(|key| Write { key, op: 0, value: value.map(<[u8]>::to_vec) }).collect();
    store.write(WriteBatch { index, writes }, &mut |_| {}).unwrap();
}

type Grains = BTreeMap<u8, (String, Vec<(String, String)>)>;

fn grains() -> impl Strategy<Value = Grains> {
    prop::collection::btree_map(0u8..30, (part(), prop::collection::vec((part(), part()), 0..5)), 0..30)
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let part = || prop::option::of(part());
    (part(), part(), part()).prop_map(|(subject, predicate, object)| Pattern { subject, predicate, object })
}

fn expected(grains: &Grains, pattern: &Pattern) -> Vec<Ranked> {
    let mut ranked = Vec::new();
    for (id, (subject, relations)) in grains {
        let fits = |part: &Option<String>, have: &str| part.as_ref().is_none_or(|part| part == have);
        let distinct: BTreeSet<_> = relations.iter().collect();
        let matches = distinct.iter().filter(|(predicate, object)| {
            fits(&pattern.subject, subject) && fits(&pattern.predicate, predicate) && fits(&pattern.object, object)
        });
        let matches = matches.count();
        let record = encode_grain(&grain(*id, subject, relations));
        assert_eq!(pattern.matches(&GrainRef::decode(&record).unwrap()) as usize, matches);
        if matches > 0 {
            ranked.push(Ranked { id: GrainId([*id; 16]), score: matches as f32 });
        }
    }
    ranked.sort();
    ranked
}

proptest! {
    /// Any pattern over any relations, in slices of any size; a neighbour's relations and what was removed never show.
    #[test]
    fn scans_find_what_a_filter_finds(grains in grains(), gone in grains(), pattern in pattern(), budget in 1usize..9) {
        let mut store = MemoryStore::new();
        let all = |scope, grains: &Grains| -> BTreeSet<Vec<u8>> {
            grains.iter().flat_map(|(id, (subject, relations))| keys(scope, &grain(*id, subject, relations))).collect()
        };
        write(&mut store, 1, all(SCOPE, &gone), Some(b""));
        write(&mut store, 2, all(NEIGHBOUR, &gone), Some(b""));
        let (old, new) = (all(SCOPE, &gone), all(SCOPE, &grains));
        write(&mut store, 3, new.clone(), Some(b""));
        write(&mut store, 4, old.difference(&new).cloned().collect(), None);

        let plan = pattern.plan(SCOPE);
        let given = [&pattern.subject, &pattern.predicate, &pattern.object].iter().filter(|part| part.is_some()).count();
        prop_assert_eq!(plan.bound, given, "every part that is given narrows the range");
        for limit in [0, 2, 100] {
            let mut scan = RelationScan::new(plan.clone(), limit);
            while !scan.step(&store, budget, &|_| true).unwrap() {}
            let mut expected = expected(&grains, &pattern);
            expected.truncate(limit);
            prop_assert_eq!(scan.finish(&|_| true), expected);
        }
    }

    /// Each order sorts by its parts, as strings sort, then by grain; and the key gives back subject and grain.
    #[test]
    fn key_order_is_the_order_of_the_parts(
        a in (part(), part(), part(), 0u8..3), b in (part(), part(), part(), 0u8..3),
    ) {
        for order in Order::ALL {
            let sorted = |(s, p, o, id): &(String, String, String, u8)| {
                let parts = order.parts().map(|part| match part {
                    Part::Subject => s.clone(),
                    Part::Predicate => p.clone(),
                    Part::Object => o.clone(),
                });
                let grain = GrainId([*id; 16]);
                let relation = RelationRef { subject: s, predicate: p, object: o, grain };
                ((parts, grain), relation.key(SCOPE, order))
            };
            let ((a_parts, a_key), (b_parts, b_key)) = (sorted(&a), sorted(&b));
            prop_assert_eq!(a_parts.cmp(&b_parts), a_key.cmp(&b_key));
            let (a_subject, a_grain) = subject_and_grain(&a_key, order).unwrap();
            let (b_subject, _) = subject_and_grain(&b_key, order).unwrap();
            prop_assert_eq!(a_subject == b_subject, a.0 == b.0);
            prop_assert_eq!(a_grain, GrainId([a.3; 16]));
        }
    }

    #[test]
    fn damaged_keys_are_errors(key: Vec<u8>) {
        for order in Order::ALL {
            let _ = subject_and_grain(&key, order);
        }
    }
}

/// each shape of pattern has its index, and `explain` names it.
#[test]
fn explain_names_the_index() {
    let plan = |subject: &str, predicate: &str, object: &str| {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        Pattern { subject: part(subject), predicate: part(predicate), object: part(object) }.plan(SCOPE).explain()
    };
    assert_eq!(plan("s", "", ""), "spo: subject");
    assert_eq!(plan("", "p", ""), "pso: predicate");
    assert_eq!(plan("", "", "o"), "osp: object");
    assert_eq!(plan("s", "p", ""), "spo: subject, predicate");
    assert_eq!(plan("s", "", "o"), "sop: subject, object");
    assert_eq!(plan("", "p", "o"), "pos: predicate, object");
    assert_eq!(plan("s", "p", "o"), "spo: subject, predicate, object");
}

#[test]
fn a_grain_that_is_not_admitted_does_not_count() {
    let mut store = MemoryStore::new();
    let has = |object: &str| ("has".to_owned(), object.to_owned());
    for id in 1..4 {
        let keys = keys(SCOPE, &grain(id, "bird", &[has("wings"), has("feathers")]));
        write(&mut store, u64::from(id), keys.into_iter().collect(), Some(b""));
    }
    let pattern = Pattern { predicate: Some("has".into()), ..Pattern::default() };
    let mut scan = RelationScan::new(pattern.plan(SCOPE), 10);
    while !scan.step(&store, 1, &|id| id != GrainId([2; 16])).unwrap() {}
    let ids: Vec<GrainId> = scan.finish(&|id| id != GrainId([1; 16])).iter().map(|ranked| ranked.id).collect();
    assert_eq!(ids, [GrainId([3; 16])], "one was kept out, one left meanwhile");
}
