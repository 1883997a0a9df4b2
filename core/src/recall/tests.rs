//! Recall through the real state and indexes, against a brute force over all live grains.

use super::fusion::Fusion;
use super::rank::Ranked;
use super::*;
use crate::relation::{Pattern, RelationKeys};
use crate::state::apply::{Hooks, ShardState};
use crate::state::memory::MemoryStore;
use crate::state::ranges::OwnedRanges;
use crate::state::testing::{delete_grain, put_grain, run};
use crate::text::tests::naive_bm25;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::ids::{GrainId, ShardId};
use gristmill_rpc::schema::{Grain, LegHit, RecallReply, Relation, SearchHit};
use gristmill_shardexec::executor::Slices;
use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, JoinError, JoinHandle, spawn, yield_now};
use gristmill_vector::{Kernel, quantize};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

const NAMESPACE: &str = "ns";

type View = Rc<RefCell<ShardState<MemoryStore>>>;

/// An executor on which every look at the slice says that it is spent, so that all that can be interleaved is.
fn executor() -> Executor {
    let slices = Slices { raft: Duration::ZERO, request: Duration::ZERO, background: Duration::ZERO };
    Executor::start(ExecutorConfig { slices, io: IoChoice::Posix, ..ExecutorConfig::default() }).unwrap()
}

/// Ends a task that should still be running: it neither panicked nor gave up.
async fn stop<T>(task: JoinHandle<T>) {
    task.abort();
    assert!(matches!(task.await, Err(JoinError::Aborted)));
}

#[derive(Clone)]
struct World {
    index: RecallIndex,
    state: View,
    live: Rc<RefCell<BTreeMap<u8, Grain>>>,
}

impl World {
    fn new() -> World {
        let index = RecallIndex::new();
        let hooks = Hooks { index: Box::new(index.clone()), derived: Box::new(RelationKeys) };
        let state = ShardState::create(ShardId(0), &OwnedRanges::all(), MemoryStore::new(), hooks).unwrap();
        World { index, state: Rc::new(RefCell::new(state)), live: Rc::default() }
    }

    fn put(&self, grain: &Grain) {
        run(&mut self.state.borrow_mut(), 1, vec![put_grain(grain.clone())]);
        self.live.borrow_mut().insert(grain.id.0[0], grain.clone());
    }

    fn delete(&self, id: u8) {
        run(&mut self.state.borrow_mut(), 1, vec![delete_grain(NAMESPACE, id)]);
        self.live.borrow_mut().remove(&id);
    }

    async fn recall(&self, spec: &RecallSpec) -> RecallReply {
        self.index.recall(&*self.state, spec).await.unwrap()
    }
}

fn grain(id: u8, subject: &str) -> Grain {
    crate::state::testing::grain(NAMESPACE, id, subject, None)
}

fn relation(predicate: &str, object: &str) -> Relation {
    Relation { predicate: predicate.into(), object: object.into() }
}

fn spec() -> RecallSpec {
    RecallSpec { namespace: NAMESPACE.into(), ..RecallSpec::default() }
}

/// The reply as it follows from the live grains alone, leg by leg.
fn brute_force(live: &BTreeMap<u8, Grain>, spec: &RecallSpec) -> RecallReply {
    let passes = |grain: &&Grain| {
        spec.subject.as_ref().is_none_or(|subject| *subject == grain.subject)
            && spec.tags.iter().all(|tag| grain.tags.contains(tag))
    };
    let passing: BTreeSet<GrainId> = live.values().filter(passes).map(|grain| grain.id).collect();
    let candidates = spec.candidates();
    let best = |mut ranked: Vec<Ranked>| {
        ranked.retain(|ranked| passing.contains(&ranked.id));
        ranked.sort();
        ranked.truncate(candidates);
        ranked
    };
    let mut lists = [vec![], vec![], vec![]];
    if let Some(query) = &spec.text {
        let texts = live.values().filter_map(|grain| Some((grain.id, grain.text.as_deref()?)));
        lists[0] = best(naive_bm25(texts, query, usize::MAX).0);
    }
    if let Some(query) = &spec.vector {
        let unit = |vector: &[f32]| {
            let mut vector = vector.to_vec();
            quantize::normalise(&mut vector).unwrap();
            vector
        };
        let cosine = |vector: &[f32]| Kernel::detect().dot_f32(&unit(query), &unit(vector));
        let vectors = live.values().filter_map(|grain| Some((grain.id, grain.vector.as_deref()?)));
        lists[1] = best(vectors.map(|(id, vector)| Ranked { id, score: cosine(vector) }).collect());
    }
    if let Some(pattern) = &spec.relation {
        let fits = |part: &Option<String>, have: &str| part.as_ref().is_none_or(|part| part == have);
        let matches = |grain: &Grain| {
            let relations: BTreeSet<_> =
                grain.relations.iter().map(|relation| (&relation.predicate, &relation.object)).collect();
            let fit = relations.iter().filter(|(predicate, object)| {
                fits(&pattern.subject, &grain.subject)
                    && fits(&pattern.predicate, predicate)
                    && fits(&pattern.object, object)
            });
            fit.count()
        };
        let matching = live.values().map(|grain| Ranked { id: grain.id, score: matches(grain) as f32 });
        lists[2] = best(matching.filter(|ranked| ranked.score > 0.0).collect());
    }
    let fusion = Fusion::of(lists.iter().map(Vec::as_slice));
    let leg = |list: &[Ranked], id: GrainId| {
        let at = list.iter().position(|ranked| ranked.id == id)?;
        Some(LegHit { rank: at as u32 + 1, score: list[at].score })
    };
    let hits = fusion.iter().take(spec.limit()).zip(1..).map(|((ranked, _), rank)| {
        let grain = &live[&ranked.id.0[0]];
        SearchHit {
            id: ranked.id,
            subject: grain.subject.clone(),
            score: ranked.score,
            rank,
            text: leg(&lists[0], ranked.id),
            vector: leg(&lists[1], ranked.id),
            relation: leg(&lists[2], ranked.id),
            grain: spec.with_grains.then(|| grain.clone()),
        }
    });
    RecallReply { hits: hits.collect(), grains: live.len() as u64 }
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")].prop_map(str::to_owned)
}

fn words(count: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(word(), 0..count)
}

/// Components on a coarse grid, so that scores tie; never all zero.
fn vector() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-2i8..3, 4).prop_map(|mut grid| {
        grid[0] = if grid.iter().all(|x| *x == 0) { 1 } else { grid[0] };
        grid.iter().map(|x| f32::from(*x)).collect()
    })
}

fn grains() -> impl Strategy<Value = Grain> {
    let relations = prop::collection::vec((word(), word()), 0..4);
    (0u8..40, word(), prop::option::of(words(8)), prop::option::of(vector()), relations, words(3)).prop_map(
        |(id, subject, text, vector, relations, tags)| Grain {
            text: text.map(|words| words.join(" ")),
            vector,
            relations: relations.iter().map(|(predicate, object)| relation(predicate, object)).collect(),
            tags,
            ..grain(id, &subject)
        },
    )
}

fn specs() -> impl Strategy<Value = RecallSpec> {
    let part = || prop::option::of(word());
    let relation = (part(), part(), part())
        .prop_map(|(subject, predicate, object)| Pattern { subject, predicate, object })
        .prop_filter("one part must be given", |pattern| *pattern != Pattern::default());
    let filter = (words(2), prop::option::weighted(0.3, word()));
    let sizes = (0u32..8, 0u32..8, any::<bool>());
    (prop::option::of(words(4)), prop::option::of(vector()), prop::option::of(relation), filter, sizes).prop_map(
        |(text, vector, relation, (tags, subject), (limit, candidates, with_grains))| RecallSpec {
            text: text.map(|words| words.join(" ")),
            vector,
            relation,
            tags,
            subject,
            limit,
            candidates,
            with_grains,
            ..spec()
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Put(Grain),
    Delete(u8),
    Recall(RecallSpec),
    /// Head to segment, by the builder in the background.
    Seal,
    /// Let the builder go on.
    Yield,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => grains().prop_map(Step::Put),
        4 => (0u8..40).prop_map(Step::Delete),
        6 => specs().prop_map(Step::Recall),
        2 => Just(Step::Seal),
        4 => Just(Step::Yield),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Writes, deletes and recalls in any order, while segments are built and merged: every reply is the brute force's, hit
    /// for hit and score for score.
    #[test]
    fn answers_as_brute_force_does(steps in steps(), last in specs()) {
        executor().block_on(async {
            let world = World::new();
            // The namespace exists, and its vectors have four dimensions.
            world.put(&Grain { vector: Some(vec![1.0; 4]), ..grain(0, "a") });
            let index = world.index.clone();
            let builder = spawn(Class::Background, "maintain", async move { index.maintain().await.map(|_| ()) });
            for step in steps.iter().chain([&Step::Recall(last)]) {
                match step {
                    Step::Put(grain) => world.put(grain),
                    Step::Delete(id) => world.delete(*id),
                    Step::Recall(spec) => {
                        let expected = brute_force(&world.live.borrow(), spec);
                        assert_eq!(world.recall(spec).await, expected, "{spec:?}");
                    }
                    Step::Seal => world.index.seal_heads(),
                    Step::Yield => yield_now().await,
                }
            }
            stop(builder).await;
        });
    }
}

/// Everything matches; writers replace, remove and add all the time, heads are sealed and built. A grain that is there
/// from before a recall until after it, replaced or not, is among the hits; one that was not there at all never is.
#[test]
fn recalls_amid_writes_miss_nothing_and_invent_nothing() {
    const GRAINS: u8 = 250;
    executor().block_on(async {
        let world = World::new();
        let matching = |id: u8, turn: u32| Grain {
            text: Some(format!("word turn{turn}")),
            vector: Some(vec![1.0, f32::from(id), turn as f32]),
            // Elsewhere in key order after each replacement: a scan that is half-way may have the old keys before it and
            // the new ones behind.
            relations: vec![relation("kind", &format!("{:04}", turn.wrapping_mul(2_654_435_761) >> 20))],
            ..grain(id, "s")
        };
        for id in 0..GRAINS {
            world.put(&matching(id, 0));
        }
        let index = world.index.clone();
        let builder = spawn(Class::Background, "maintain", async move { index.maintain().await.map(|_| ()) });
        // What was there at some moment since it was last cleared, and what was not.
        let (seen, missed) = (Rc::new(RefCell::new(BTreeSet::new())), Rc::new(RefCell::new(BTreeSet::new())));
        let writer = {
            let (world, seen, missed) = (world.clone(), Rc::clone(&seen), Rc::clone(&missed));
            spawn(Class::Request, "writer", async move {
                for turn in 1u32.. {
                    let id = (turn.wrapping_mul(2_654_435_761) >> 16) as u8 % GRAINS;
                    if turn % 3 == 0 && world.live.borrow().contains_key(&id) {
                        world.delete(id);
                        missed.borrow_mut().insert(id);
                    } else {
                        world.put(&matching(id, turn));
                        seen.borrow_mut().insert(id);
                    }
                    if turn % 50 == 0 {
                        world.index.seal_heads();
                    }
                    yield_now().await;
                }
            })
        };
        let pattern = Pattern { predicate: Some("kind".into()), ..Pattern::default() };
        for turn in 0..60u8 {
            let all = RecallSpec { limit: 1000, ..spec() };
            let spec = match turn % 3 {
                0 => RecallSpec { text: Some("word".into()), ..all },
                1 => RecallSpec { vector: Some(vec![1.0, 2.0, 3.0]), ..all },
                _ => RecallSpec { relation: Some(pattern.clone()), ..all },
            };
            let live = || world.live.borrow().keys().copied().collect::<BTreeSet<u8>>();
            (*seen.borrow_mut(), *missed.borrow_mut()) = (live(), BTreeSet::new());
            missed.borrow_mut().extend((0..GRAINS).filter(|id| !seen.borrow().contains(id)));
            let reply = world.recall(&spec).await;
            let hits: BTreeSet<u8> = reply.hits.iter().map(|hit| hit.id.0[0]).collect();
            assert_eq!(hits.len(), reply.hits.len(), "no grain twice");
            assert!(hits.is_subset(&seen.borrow()), "a hit was never there: {:?}", hits.difference(&seen.borrow()));
            let throughout: BTreeSet<u8> = (0..GRAINS).filter(|id| !missed.borrow().contains(id)).collect();
            assert!(throughout.is_subset(&hits), "missed: {:?} by {spec:?}", throughout.difference(&hits));
        }
        assert!(world.index.stats().text_jobs > 3, "segments were built meanwhile");
        stop(writer).await;
        stop(builder).await;
    });
}

#[test]
fn all_three_legs_speak_and_say_what_they_found() {
    executor().block_on(async {
        let world = World::new();
        let about = |id, text: &str, vector: [f32; 2], object: &str| Grain {
            text: Some(text.into()),
            vector: Some(vector.to_vec()),
            relations: vec![relation("is_a", object)],
            ..grain(id, "s")
        };
        world.put(&about(1, "the kestrel hovers", [1.0, 0.0], "falcon"));
        world.put(&about(2, "the merlin is small", [0.8, 0.6], "falcon"));
        world.put(&about(3, "an essay on kestrels, not the kestrel", [0.0, 1.0], "essay"));
        let pattern = Pattern { object: Some("falcon".into()), ..Pattern::default() };
        let spec = RecallSpec {
            text: Some("kestrel".into()),
            vector: Some(vec![2.0, 0.0]),
            relation: Some(pattern),
            ..spec()
        };
        let reply = world.recall(&spec).await;
        assert_eq!(reply, brute_force(&world.live.borrow(), &spec));
        assert_eq!(reply.hits.iter().map(|hit| hit.id.0[0]).collect::<Vec<_>>(), [1, 2, 3]);
        let first = &reply.hits[0];
        assert_eq!((first.rank, first.subject.as_str()), (1, "s"));
        assert_eq!(first.vector, Some(LegHit { rank: 1, score: 1.0 }));
        assert_eq!(first.relation, Some(LegHit { rank: 1, score: 1.0 }));
        assert_eq!(first.text.map(|leg| leg.rank), Some(1));
        assert!(reply.hits[1].text.is_none() && reply.hits[2].relation.is_none());
    });
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_code() {
    executor().block_on(async {
        let world = World::new();
        let ask = async |spec: RecallSpec| world.index.recall(&*world.state, &spec).await.map(|reply| reply.hits.len());
        let vector = RecallSpec { vector: Some(vec![1.0, 2.0]), ..spec() };
        let error = ask(vector.clone()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::UnknownNamespace);

        world.put(&Grain { text: Some("text".into()), ..grain(1, "s") });
        assert_eq!(ask(vector.clone()).await, Ok(0), "a namespace without vectors has none to find");
        assert_eq!(ask(RecallSpec { text: Some("?!".into()), ..spec() }).await, Ok(0));

        world.put(&Grain { vector: Some(vec![1.0, 2.0, 3.0]), ..grain(2, "s") });
        let error = ask(vector).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::WrongDimension);
        assert!(error.to_string().contains("2 components") && error.to_string().contains("of 3"));
    });
}

#[test]
fn grains_beyond_the_size_of_a_reply_stay_behind() {
    executor().block_on(async {
        let world = World::new();
        let large = |id| Grain { text: Some("word".into()), payload: vec![id; 4 << 20], ..grain(id, "s") };
        for id in 1..4 {
            world.put(&large(id));
        }
        world.put(&Grain { text: Some("word word word".into()), ..grain(9, "s") });
        let spec = RecallSpec { text: Some("word".into()), with_grains: true, ..spec() };
        let reply = world.recall(&spec).await;
        let with: Vec<bool> = reply.hits.iter().map(|hit| hit.grain.is_some()).collect();
        assert_eq!(with, [true, true, false, false], "the small one and one large one fit");
        let archive = gristmill_rpc::body::archive(&reply);
        assert!(archive.as_slice().len() <= gristmill_rpc::limits::FRAME_BODY_BYTES_MAX as usize);
    });
}

/// Heads that grow too large in memory are sealed although none is due by itself, and the applier waits for the builder.
#[test]
fn many_small_heads_are_kept_in_bounds() {
    executor().block_on(async {
        let world = World::new();
        // Distinct words take the most memory.
        let mut word = 0u32;
        let mut namespace = 0;
        while world.index.stats().text_head_bytes <= limits::HEADS_BYTES_MAX as u64 {
            namespace += 1;
            let text = |word: &mut u32| {
                let words = (0..6000).map(|_| {
                    *word += 1;
                    format!("w{word}")
                });
                words.collect::<Vec<_>>().join(" ")
            };
            let grain = Grain { namespace: format!("n{namespace}"), text: Some(text(&mut word)), ..grain(1, "s") };
            run(&mut world.state.borrow_mut(), 1, vec![put_grain(grain)]);
        }
        assert_eq!(world.index.stats().text_segments, 0, "none is due by itself");
        let index = world.index.clone();
        let builder = spawn(Class::Background, "maintain", async move { index.maintain().await.map(|_| ()) });
        world.index.admit().await;
        assert!(world.index.stats().text_head_bytes <= limits::HEADS_BYTES_MAX as u64);
        world.index.settled().await;
        assert!(world.index.stats().text_head_bytes <= limits::HEADS_BYTES_SOFT as u64);
        stop(builder).await;
        let spec = RecallSpec { namespace: format!("n{namespace}"), text: Some(format!("w{word}")), ..spec() };
        assert_eq!(world.recall(&spec).await.hits.len(), 1);
    });
}
