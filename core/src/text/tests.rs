//! The index against one naive BM25 over all live documents.

use super::bm25::Bm25;
use super::*;
use crate::recall::rank::Ranked;
use gristmill_rpc::ids::GrainId;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// An index with what is alive in it: grain n is the document of slot n.
#[derive(Default)]
struct World {
    index: TextIndex,
    analyzer: Analyzer,
    live: BTreeMap<u32, (u64, String)>,
    rows: u64,
    /// A job was begun.
    busy: bool,
    /// It was handed out.
    running: Option<Job>,
}

struct Alive<'a>(&'a BTreeMap<u32, (u64, String)>);

impl Judge for Alive<'_> {
    fn admit(&self, slot: u32, row: u64) -> Option<GrainId> {
        (self.0.get(&slot)?.0 == row).then(|| grain(slot))
    }
}

/// Ids run against slots, so that ties are not decided by accident.
fn grain(slot: u32) -> GrainId {
    GrainId(u128::from(u32::MAX - slot).to_be_bytes())
}

#[derive(Debug, Clone)]
enum Step {
    Put(u32, String),
    Delete(u32),
    Seal,
    /// Begin a job, pick some of its documents, or finish it.
    Job,
    Abandon,
}

impl World {
    fn put(&mut self, slot: u32, text: &str) {
        self.delete(slot);
        self.rows += 1;
        self.index.insert(self.rows, slot, text, &mut self.analyzer);
        self.live.insert(slot, (self.rows, text.to_owned()));
    }

    fn delete(&mut self, slot: u32) {
        if let Some((row, text)) = self.live.remove(&slot) {
            self.index.remove(row, &text, &mut self.analyzer);
        }
    }

    fn begin(&mut self) -> bool {
        self.index.begin()
    }

    /// Picks some of a job's documents.
    fn pick(&mut self, documents: u32) {
        self.running = self.index.pick(&Alive(&self.live), documents);
    }

    fn finish(&mut self) {
        while self.running.is_none() {
            self.pick(3);
        }
        let job = self.running.take().unwrap();
        self.index.install(job.run().unwrap());
        self.busy = false;
    }

    fn build(&mut self) {
        if self.begin() {
            self.finish();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(slot, text) => self.put(*slot, text),
            Step::Delete(slot) => self.delete(*slot),
            Step::Seal => self.index.seal(),
            Step::Job if !self.busy => self.busy = self.begin(),
            Step::Job if self.running.is_none() => self.pick(5),
            Step::Job => self.finish(),
            Step::Abandon => {
                if std::mem::take(&mut self.busy) {
                    self.running = None;
                    self.index.abandon();
                }
            }
        }
    }

    fn search(&mut self, query: &str, limit: usize, budget: usize) -> Vec<Ranked> {
        let query = self.analyzer.query(query);
        let judge = Alive(&self.live);
        let mut search = self.index.search(&query, limit, &judge).unwrap();
        while !search.step(&judge, budget).unwrap() {}
        search.finish(&judge)
    }

    fn naive(&mut self, query: &str, limit: usize) -> Vec<Ranked> {
        let documents = self.live.iter().map(|(slot, (_, text))| (grain(*slot), text.as_str()));
        let (ranked, statistics) = naive_bm25(documents, query, limit);
        assert_eq!(self.index.statistics(), statistics);
        ranked
    }

    fn check(&mut self, query: &str, limit: usize) {
        let naive = self.naive(query, limit);
        for budget in [1, 64, usize::MAX] {
            assert_eq!(self.search(query, limit, budget), naive, "query {query:?}, limit {limit}, budget {budget}");
        }
    }
}

/// BM25 straight from its definition, over all documents at once.
pub(crate) fn naive_bm25<'a>(
    texts: impl Iterator<Item = (GrainId, &'a str)>,
    query: &str,
    limit: usize,
) -> (Vec<Ranked>, Statistics) {
    let mut analyzer = Analyzer::default();
    let mut statistics = Statistics::default();
    let mut documents = Vec::new();
    for (id, text) in texts {
        let (counts, length) = analyzer.counts(text);
        statistics.docs += 1;
        statistics.terms += u64::from(length);
        let counts: BTreeMap<Vec<u8>, u32> = counts.iter().map(|(term, count)| (term.to_vec(), *count)).collect();
        documents.push((id, counts, super::bm25::length_code(length)));
    }
    let bm25 = Bm25::new(statistics);
    let mut terms = Vec::new();
    for term in analyzer.query(query).terms {
        let df = documents.iter().filter(|(_, counts, _)| counts.contains_key(term.as_bytes())).count();
        if df > 0 {
            terms.push((bm25.weight(df as u64), term));
        }
    }
    terms.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut ranked = Vec::new();
    for (id, counts, length) in &documents {
        let score: f32 = terms.iter().fold(0.0, |sum, (weight, term)| match counts.get(term.as_bytes()) {
            Some(frequency) => sum + bm25.score(*weight, *frequency, *length),
            None => sum,
        });
        if score > 0.0 {
            ranked.push(Ranked { id: *id, score });
        }
    }
    ranked.sort();
    ranked.truncate(limit);
    (ranked, statistics)
}

/// Words with a skewed distribution, as in language.
fn text() -> impl Strategy<Value = String> {
    prop::collection::vec((0u32..12, 0u32..6), 0..25)
        .prop_map(|words| words.iter().map(|(a, b)| format!("w{}", a * b / 3)).collect::<Vec<_>>().join(" "))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u32..60, text()).prop_map(|(slot, text)| Step::Put(slot, text)),
        3 => (0u32..60).prop_map(Step::Delete),
        2 => Just(Step::Seal),
        4 => Just(Step::Job),
        1 => Just(Step::Abandon),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever was written, deleted, sealed, built and merged, and in the middle of a job too: rank and score are those
    /// of the naive BM25, to the bit.
    #[test]
    fn finds_what_naive_bm25_finds(
        steps in prop::collection::vec(step(), 1..120),
        queries in prop::collection::vec((text(), 1usize..12), 3),
    ) {
        let mut world = World::default();
        for (at, step) in steps.iter().enumerate() {
            world.step(step);
            if at % 16 == 0 {
                world.check(&queries[0].0, queries[0].1);
            }
        }
        for (query, limit) in &queries {
            world.check(query, *limit);
        }
    }
}

/// A fixed corpus with its ranking, written down once: a change of tokenizer, formula or order shows here.
#[test]
fn golden_ranks() {
    let corpus = [
        "The write-ahead log is written before the data.",
        "A log segment is recycled once no shard needs it.",
        "Raft replicates a log; the leader appends, followers acknowledge.",
        "Vectors are quantised to int8 codes and scanned exactly.",
        "The leader's lease is checked before a read.",
        "Log log log: the log of logs.",
        "",
        "Segments are merged in the background.",
    ];
    let mut world = World::default();
    for (slot, text) in corpus.iter().enumerate() {
        world.put(slot as u32, text);
    }
    let mut ranks = |query: &str| -> Vec<(usize, String)> {
        let slot_of = |id: GrainId| (0..corpus.len()).find(|slot| grain(*slot as u32) == id).unwrap();
        world.search(query, 10, usize::MAX).iter().map(|hit| (slot_of(hit.id), format!("{:.4}", hit.score))).collect()
    };
    let expect =
        |want: &[(usize, &str)]| want.iter().map(|(slot, score)| (*slot, (*score).to_owned())).collect::<Vec<_>>();
    assert_eq!(ranks("log segment"), expect(&[(1, "2.1691"), (5, "1.1834"), (2, "0.6358"), (0, "0.6358")]));
    let lease = [(4, "4.9140"), (2, "1.6268"), (0, "0.6376"), (7, "0.5331"), (5, "0.5029")];
    assert_eq!(ranks("the LEADER's lease"), expect(&lease));
    assert_eq!(ranks("unheard of"), expect(&[(5, "1.8298")]));
    assert_eq!(ranks("unheard word"), expect(&[]));
    assert_eq!(ranks(""), expect(&[]));
}

/// tantivy's own search over the same texts, in one segment and with nothing deleted, finds the same with the same scores
/// but for the order in which it adds.
#[test]
fn agrees_with_tantivy_itself() {
    use tantivy::collector::TopDocs;
    use tantivy::query::QueryParser;
    use tantivy::schema::{Schema, TEXT};

    let words = ["wal", "raft", "grain", "recall", "shard", "lease", "fsync", "token"];
    let texts: Vec<String> = (0..200usize)
        .map(|slot| {
            (0..slot % 17).map(|at| words[(slot * slot + at * at * 3 + at) % (1 + slot % 8)]).collect::<Vec<_>>()
        })
        .map(|words| words.join(" "))
        .collect();
    let mut schema = Schema::builder();
    let field = schema.add_text_field("text", TEXT);
    let mut writer = tantivy::Index::builder()
        .schema(schema.build())
        .settings(tantivy::IndexSettings { docstore_compress_dedicated_thread: false, ..Default::default() })
        .single_segment_index_writer::<tantivy::TantivyDocument>(super::directory::SegmentFiles::default(), 4 << 20)
        .unwrap();
    let mut world = World::default();
    for (slot, text) in texts.iter().enumerate() {
        let mut document = tantivy::TantivyDocument::default();
        document.add_text(field, text);
        writer.add_document(document).unwrap();
        world.put(slot as u32, text);
        if slot == 120 {
            world.index.seal();
            world.build();
        }
    }
    let index = writer.finalize().unwrap();
    let searcher = index.reader().unwrap().searcher();
    for query in ["wal", "raft fsync", "token lease shard wal", "grain grain recall"] {
        let parsed = QueryParser::for_index(&index, vec![field]).parse_query(query).unwrap();
        let theirs = searcher.search(&parsed, &TopDocs::with_limit(1000).order_by_score()).unwrap();
        let ours: BTreeMap<GrainId, f32> =
            world.search(query, 1000, usize::MAX).iter().map(|hit| (hit.id, hit.score)).collect();
        assert_eq!(theirs.len(), ours.len());
        for (score, address) in theirs {
            let ours = ours[&grain(address.doc_id)];
            assert!((ours - score).abs() <= score * 1e-6, "{query:?}, document {}: {ours} and {score}", address.doc_id);
        }
    }
}

/// Enough documents for several tantivy blocks, full windows, frequent terms with maxima, and pruning.
#[test]
fn large_segments_rank_as_naive_bm25_does() {
    let mut world = World::default();
    let mut seed = 1u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for slot in 0..6000u32 {
        // Zipf-like: word w<r> with a chance that falls with r.
        let words = 1 + random(30);
        let words: Vec<_> = (0..words).map(|_| format!("w{}", (1 << random(12)) + random(5) - 1)).collect();
        world.put(slot, &words.join(" "));
        if slot % 7 == 0 {
            world.delete(slot / 2);
        }
        if slot % 1000 == 999 {
            world.index.seal();
            world.build();
        }
        if slot == 4500 {
            world.index.seal();
            assert!(world.begin());
            world.pick(200);
        }
        if slot == 4900 {
            world.finish();
        }
    }
    for query in ["w0 w1 w2 w3", "w7", "w1 w2049 w1024 w33 w0", "w2050 w2051", "w0 w0 w0 w16", "none w5"] {
        for limit in [1, 10, 200, 5000] {
            world.check(query, limit);
        }
    }
}

#[test]
fn eight_small_segments_become_one_and_dead_documents_leave() {
    let mut world = World::default();
    for slot in 0..80u32 {
        world.put(slot, &format!("common word{slot}"));
        if slot % 10 == 9 {
            world.index.seal();
            world.build();
        }
    }
    assert_eq!(world.index.segments(), 8);
    assert!(world.index.is_due());
    assert!(world.begin());
    world.pick(6);
    world.delete(5);
    world.put(6, "common again");
    world.check("common word5 word6", 100);
    world.finish();
    assert_eq!((world.index.segments(), world.index.unbuilt()), (1, 1));
    world.check("common word5 word6", 100);
    assert!(!world.index.is_due());
    for slot in 10..60 {
        world.delete(slot);
    }
    assert!(world.index.is_due(), "a segment of mostly dead documents is rewritten");
    world.build();
    assert!(!world.index.is_due());
    world.check("common word7 word70", 100);
    for slot in 0..80 {
        world.delete(slot);
    }
    world.build();
    assert_eq!(world.index.segments(), 0, "a segment without live documents goes");
    world.check("common", 10);
}

/// A search that others' writes overtake answers for the moment at which it ends.
#[test]
fn a_search_catches_up_with_what_came_meanwhile() {
    let mut world = World::default();
    for slot in 0..50 {
        world.put(slot, &format!("word number{slot}"));
    }
    world.index.seal();
    world.build();
    let query = world.analyzer.query("word");
    let mut search = world.index.search(&query, 100, &Alive(&world.live)).unwrap();
    // Replaced before the search came to it, deleted, new, new but already in a segment, new but dead again.
    world.put(7, "word again");
    world.delete(8);
    world.put(60, "word");
    world.index.seal();
    world.build();
    world.put(61, "a new word");
    world.put(62, "word word word");
    world.delete(62);
    let judge = Alive(&world.live);
    while !search.step(&judge, 1).unwrap() {}
    world.index.catch_up(&mut search, &judge).unwrap();
    let mut found: Vec<GrainId> = search.finish(&judge).iter().map(|hit| hit.id).collect();
    found.sort();
    let mut expected: Vec<GrainId> = world.live.keys().map(|slot| grain(*slot)).collect();
    expected.sort();
    assert_eq!(found, expected);
}
