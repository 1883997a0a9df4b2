//! The exact index against a brute force, whatever the vectors, the slices and the changes in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::kernel::Kernel;
use crate::quantize::normalise;

/// A small deterministic generator (splitmix64): tests repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Roughly normal components of standard deviation 1: the sum of twelve uniform ones.
    fn vector(&mut self, dimension: usize) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1 << 24) as f32;
        (0..dimension).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }
}

/// What the segment must hold, kept the simple way.
#[derive(Default)]
struct Model {
    rows: BTreeMap<u32, (u64, Vec<f32>)>,
}

impl Model {
    fn push(&mut self, segment: &mut FlatSegment, id: u64, vector: &[f32]) -> u32 {
        let row = segment.push(id, vector).expect("an acceptable vector");
        let stored = segment.vector(row).expect("just pushed").to_vec();
        assert!(self.rows.insert(row, (id, stored)).is_none(), "row {row} was given twice");
        row
    }

    fn delete(&mut self, segment: &mut FlatSegment, row: u32) {
        segment.delete(row);
        self.rows.remove(&row).expect("the model deletes what it holds");
    }

    /// All rows scored in f32 and sorted.
    fn search(&self, segment: &FlatSegment, query: &[f32], k: usize, allowed: &Allowed) -> Vec<Hit> {
        let mut query = query.to_vec();
        if segment.metric() == Metric::Cosine {
            normalise(&mut query).expect("a query with a length");
        }
        let is_allowed = |row: &u32| match allowed {
            Allowed::All => true,
            Allowed::Rows(rows) => rows.contains(row),
        };
        let rows = self.rows.iter().filter(|(row, _)| is_allowed(row));
        let mut hits: Vec<Hit> = rows
            .map(|(&row, (id, vector))| Hit { score: segment.kernel.dot_f32(&query, vector), id: *id, row })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)).then(a.row.cmp(&b.row)));
        hits.truncate(k);
        hits
    }

    fn check(&self, segment: &FlatSegment, query: &[f32], k: usize, allowed: &Allowed) -> ScanCounters {
        let mut scan = segment.start(query, k, allowed.clone()).expect("a good query");
        while segment.step(&mut scan, 100) == Progress::More {}
        let counters = scan.counters();
        assert_eq!(segment.finish(scan), self.search(segment, query, k, allowed), "{} k {k}", segment.kernel.name());
        counters
    }
}

fn filled(dimension: usize, metric: Metric, vectors: &[Vec<f32>], kernel: Kernel) -> (FlatSegment, Model) {
    let mut segment = FlatSegment::new(dimension, metric, kernel).expect("a good dimension");
    let mut model = Model::default();
    for (index, vector) in vectors.iter().enumerate() {
        // Ids fall while rows rise, so that the order of ties shows.
        model.push(&mut segment, 1_000_000 - index as u64, vector);
    }
    (segment, model)
}

#[test]
fn every_kernel_metric_and_dimension_gives_the_brute_force_answer() {
    for dimension in [1, 3, 63, 64, 65, 384] {
        let mut random = Random(dimension as u64);
        let vectors: Vec<_> = (0..700).map(|_| random.vector(dimension)).collect();
        for kernel in Kernel::available() {
            for metric in [Metric::Cosine, Metric::InnerProduct] {
                let (segment, model) = filled(dimension, metric, &vectors, kernel);
                for k in [1, 10, 200, K_MAX] {
                    model.check(&segment, &random.vector(dimension), k, &Allowed::All);
                }
            }
        }
    }
}

#[test]
fn the_bound_spares_nearly_all_f32_products() {
    let mut random = Random(7);
    let vectors: Vec<_> = (0..4000).map(|_| random.vector(384)).collect();
    let (segment, model) = filled(384, Metric::Cosine, &vectors, Kernel::detect());
    let counters = model.check(&segment, &random.vector(384), 10, &Allowed::All);
    assert_eq!(counters.rows_scanned, 4000);
    assert!(counters.rows_reranked < 200, "{counters:?}");
}

#[test]
fn vectors_all_alike_are_ordered_by_id_and_still_found() {
    let vectors = vec![vec![0.25; 100]; 3000];
    for kernel in Kernel::available() {
        let (segment, model) = filled(100, Metric::Cosine, &vectors, kernel);
        model.check(&segment, &[1.0; 100], 20, &Allowed::All);
        model.check(&segment, &[-1.0; 100], 20, &Allowed::All);
    }
}

/// Scores of zero everywhere, and queries of zeros, which only the inner product allows.
#[test]
fn zeros_are_vectors_to_the_inner_product() {
    let mut vectors = vec![vec![0.0; 40]; 600];
    vectors.push(vec![1.0; 40]);
    let (segment, model) = filled(40, Metric::InnerProduct, &vectors, Kernel::detect());
    for query in [vec![0.0; 40], vec![1.0; 40], vec![-1.0; 40]] {
        model.check(&segment, &query, 3, &Allowed::All);
    }
}

#[test]
fn any_magnitude_keeps_the_answer_exact_and_the_scale_useful() {
    for magnitude in [1e-18_f32, 1e-6, 1.0, 300.0, 1e14] {
        let mut random = Random(11);
        let scaled = |vector: Vec<f32>| vector.into_iter().map(|value| value * magnitude).collect::<Vec<_>>();
        let vectors: Vec<_> = (0..2000).map(|_| scaled(random.vector(96))).collect();
        let (segment, model) = filled(96, Metric::InnerProduct, &vectors, Kernel::detect());
        let counters = model.check(&segment, &scaled(random.vector(96)), 10, &Allowed::All);
        assert!(counters.rows_reranked < 500, "magnitude {magnitude}: {counters:?}");
        assert!(segment.rows_clamped() <= 2000 / 8, "magnitude {magnitude}");
    }
}

#[test]
fn a_few_outliers_do_not_spoil_the_scale_for_the_others() {
    let mut random = Random(12);
    let mut vectors: Vec<_> = (0..2000).map(|_| random.vector(128)).collect();
    for index in 0..20 {
        let mut spike = vec![0.0; 128];
        spike[index] = 1.0;
        vectors[index * 100 + 50] = spike;
    }
    let (mut segment, mut model) = filled(128, Metric::Cosine, &vectors, Kernel::detect());
    assert_eq!(segment.wanted_quantizer().exponent(), 0);
    assert_eq!(segment.rows_clamped(), 20);
    assert!(segment.components_clamped() == 20);
    let counters = model.check(&segment, &random.vector(128), 10, &Allowed::All);
    assert!(counters.rows_reranked < 300, "{counters:?}");
    let spoilt = segment.chunks[0].block_error(0);
    model.delete(&mut segment, 50);
    assert!(segment.chunks[0].block_error(0) < spoilt / 2.0, "an outlier that went spoils its block no longer");
}

/// The data outgrow the scale after many rows were coded: chunk after chunk is coded anew while searches go on.
#[test]
fn searches_stay_exact_while_chunks_change_their_scale() {
    let dimension = 512; // 1,024 rows a chunk
    let mut random = Random(13);
    let mut segment = FlatSegment::new(dimension, Metric::InnerProduct, Kernel::detect()).expect("a good dimension");
    let mut model = Model::default();
    let mut mixed = false;
    for index in 0..3500 {
        let magnitude = if index < 2500 { 0.04 } else { 5.0 };
        let vector: Vec<f32> = random.vector(dimension).iter().map(|value| value * magnitude).collect();
        model.push(&mut segment, index, &vector);
        let exponents: Vec<i8> = segment.chunks.iter().map(|chunk| chunk.quantizer().exponent()).collect();
        if exponents.iter().any(|&exponent| exponent != exponents[0]) && !mixed {
            mixed = true;
            model.check(&segment, &vector, 10, &Allowed::All);
        }
    }
    assert!(mixed, "the test must see the change under way");
    let wanted = segment.wanted_quantizer();
    assert!(wanted.exponent() > 0);
    assert!(segment.chunks.iter().all(|chunk| chunk.quantizer() == wanted), "every chunk catches up");
    model.check(&segment, &random.vector(dimension), 10, &Allowed::All);
}

#[test]
fn one_log_gives_one_set_of_codes() {
    let build = |kernel| {
        let mut random = Random(14);
        let mut segment = FlatSegment::new(200, Metric::InnerProduct, kernel).expect("a good dimension");
        for id in 0..900 {
            let magnitude = if random.below(4) == 0 { 40.0 } else { 0.1 };
            let vector: Vec<f32> = random.vector(200).iter().map(|value| value * magnitude).collect();
            let row = segment.push(id, &vector).expect("an acceptable vector");
            if random.below(5) == 0 {
                segment.delete(row);
            }
        }
        let codes: Vec<i8> = segment.codes().flatten().copied().collect();
        let hits = segment.search(&random.vector(200), 50, Allowed::All).expect("a good query");
        (codes, hits)
    };
    let expected = build(Kernel::detect());
    for kernel in Kernel::available() {
        assert_eq!(build(kernel), expected, "{}", kernel.name());
    }
}

#[test]
fn allowed_rows_are_the_only_ones_found() {
    let mut random = Random(15);
    let vectors: Vec<_> = (0..3000).map(|_| random.vector(64)).collect();
    let (mut segment, mut model) = filled(64, Metric::Cosine, &vectors, Kernel::detect());
    for row in (0..3000).step_by(7) {
        model.delete(&mut segment, row);
    }
    for share in [1, 2, 10, 100, 1000] {
        let rows: Vec<u32> = (0..3100).filter(|_| random.below(share) == 0).collect();
        model.check(&segment, &random.vector(64), 10, &Allowed::Rows(rows));
    }
    model.check(&segment, &random.vector(64), 10, &Allowed::Rows(Vec::new()));
}

#[test]
#[should_panic(expected = "ascend")]
fn allowed_rows_out_of_order_are_our_own_bug() {
    let (segment, _) = filled(1, Metric::Cosine, &[vec![1.0], vec![1.0]], Kernel::detect());
    drop(segment.start(&[1.0], 1, Allowed::Rows(vec![1, 0])));
}

#[test]
fn a_deleted_row_is_zeroed_at_once_and_its_slot_used_again() {
    let mut random = Random(16);
    let vectors: Vec<_> = (0..100).map(|_| random.vector(70)).collect();
    let (mut segment, mut model) = filled(70, Metric::Cosine, &vectors, Kernel::detect());
    model.delete(&mut segment, 42);
    assert_eq!((segment.id(42), segment.vector(42)), (None, None));
    assert!(segment.chunks[0].vector(42).iter().all(|&value| value == 0.0), "vector overwritten");
    assert!(segment.chunks[0].row_codes(42, 1).iter().all(|&code| code == 0), "codes overwritten");
    model.check(&segment, &vectors[42], 100, &Allowed::All);
    let memory = segment.memory_bytes();
    assert_eq!(model.push(&mut segment, 7, &vectors[42]), 42);
    assert_eq!((segment.len(), segment.rows(), segment.memory_bytes()), (100, 100, memory));
    assert_eq!(segment.search(&vectors[42], 1, Allowed::All).expect("a good query")[0].id, 7);
}

#[test]
#[should_panic(expected = "row 1 is not live")]
fn deleting_twice_is_our_own_bug() {
    let (mut segment, _) = filled(1, Metric::Cosine, &[vec![1.0], vec![1.0]], Kernel::detect());
    segment.delete(1);
    segment.delete(1);
}

/// A recall yields between slices. Meanwhile rows go, and their slots are filled by other grains, which a filter may not have allowed.
#[test]
fn a_search_neither_loses_rows_nor_sees_rows_that_came_after_it_began() {
    let mut random = Random(17);
    let vectors: Vec<_> = (0..2000).map(|_| random.vector(64)).collect();
    let (mut segment, mut model) = filled(64, Metric::Cosine, &vectors, Kernel::detect());
    let query = random.vector(64);
    let mut scan = segment.start(&query, 300, Allowed::All).expect("a good query");
    let mut later = 0;
    while segment.step(&mut scan, 64) == Progress::More {
        let victim = random.below(2000) as u32;
        if model.rows.contains_key(&victim) {
            model.delete(&mut segment, victim);
        }
        // The best possible vector takes the slot, or a new one.
        segment.push(5, &query).expect("an acceptable vector");
        later += 1;
    }
    assert!(later > 20, "the search must have been interrupted");
    let hits = segment.finish(scan);
    assert!(hits.iter().all(|hit| hit.id != 5), "what came later is for later searches");
    let expected = model.search(&segment, &query, 300, &Allowed::All);
    // Rows deleted on the way may have taken places among the 300, so hits can be missing at the end, nowhere else.
    assert!(hits.len() > 250);
    assert_eq!(hits, expected[..hits.len()]);
}

#[test]
fn what_a_caller_gets_wrong_is_an_error_that_changes_nothing() {
    let flat = |dimension| FlatSegment::new(dimension, Metric::Cosine, Kernel::detect());
    assert_eq!(flat(0).err(), Some(VectorError::DimensionZero));
    assert_eq!(flat(5000).err(), Some(VectorError::DimensionTooLarge { dimension: 5000 }));
    let mut segment = flat(3).expect("a good dimension");
    let row = segment.push(1, &[1.0, 2.0, 3.0]).expect("an acceptable vector");
    let wrong = VectorError::WrongDimension { expected: 3, given: 2 };
    assert_eq!(segment.push(2, &[1.0, 2.0]), Err(wrong));
    assert_eq!(segment.search(&[1.0, 2.0], 1, Allowed::All), Err(wrong));
    assert!(matches!(segment.push(2, &[0.0, f32::NAN, 1.0]), Err(VectorError::NotFinite { component: 1, .. })));
    let infinite = VectorError::NotFinite { component: 2, value: f32::NEG_INFINITY };
    assert_eq!(segment.push(2, &[0.0, 1.0, f32::NEG_INFINITY]), Err(infinite));
    assert_eq!(segment.push(2, &[0.0, 1e30, 1.0]), Err(VectorError::TooLarge { component: 1, value: 1e30 }));
    assert_eq!(segment.push(2, &[0.0; 3]), Err(VectorError::ZeroLength));
    assert_eq!(segment.search(&[0.0; 3], 1, Allowed::All), Err(VectorError::ZeroLength));
    assert_eq!(segment.search(&[1.0; 3], 0, Allowed::All), Err(VectorError::WrongK { k: 0 }));
    assert_eq!(segment.search(&[1.0; 3], 9999, Allowed::All), Err(VectorError::WrongK { k: 9999 }));
    assert_eq!((segment.len(), segment.rows(), segment.id(row)), (1, 1, Some(1)));
    assert_eq!(segment.search(&[1.0; 3], 5, Allowed::All).map(|hits| hits.len()), Ok(1));
}

#[test]
fn an_empty_segment_answers_with_nothing_and_holds_little() {
    let segment = FlatSegment::new(384, Metric::Cosine, Kernel::detect()).expect("a good dimension");
    assert_eq!(segment.search(&[1.0; 384], 10, Allowed::All), Ok(Vec::new()));
    assert!(segment.is_empty());
    assert!(segment.memory_bytes() < 4096, "{} bytes", segment.memory_bytes());
}

#[test]
fn memory_is_codes_vectors_and_a_little_more() {
    let mut random = Random(18);
    let vectors: Vec<_> = (0..4096).map(|_| random.vector(384)).collect();
    let (segment, _) = filled(384, Metric::Cosine, &vectors, Kernel::detect());
    let per_row = segment.memory_bytes() / 4096;
    assert!((384 + 4 * 384..384 + 4 * 384 + 40).contains(&per_row), "{per_row} bytes a row");
}

#[test]
fn tiny_slices_make_progress_to_the_same_answer() {
    let mut random = Random(19);
    let vectors: Vec<_> = (0..1500).map(|_| random.vector(33)).collect();
    let (segment, _) = filled(33, Metric::InnerProduct, &vectors, Kernel::detect());
    let query = random.vector(33);
    let whole = segment.search(&query, 77, Allowed::All).expect("a good query");
    for budget in [0, 1, 63, 64, 65, 1000] {
        let mut scan = segment.start(&query, 77, Allowed::All).expect("a good query");
        let mut slices = 0;
        while segment.step(&mut scan, budget) == Progress::More {
            slices += 1;
            assert!(slices < 10_000, "no progress at budget {budget}");
        }
        assert_eq!(segment.finish(scan), whole, "budget {budget}");
    }
}

#[test]
#[should_panic(expected = "not done")]
fn finishing_too_early_is_our_own_bug() {
    let (segment, _) = filled(2, Metric::Cosine, &[vec![1.0, 2.0]], Kernel::detect());
    let scan = segment.start(&[1.0, 0.0], 1, Allowed::All).expect("a good query");
    segment.finish(scan);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any history of pushes and deletes, any magnitudes, any filter: the brute force's answer.
    #[test]
    fn any_history_gives_the_brute_force_answer(
        seed in any::<u64>(),
        dimension in 1_usize..150,
        steps in 1_usize..900,
        delete_one_in in 2_usize..12,
        spread in -4_i32..5,
        k in 1_usize..60,
        cosine in any::<bool>(),
        filter_one_in in 1_usize..5,
    ) {
        let mut random = Random(seed);
        let metric = if cosine { Metric::Cosine } else { Metric::InnerProduct };
        let kernels = Kernel::available();
        let kernel = kernels[random.below(kernels.len())];
        let mut segment = FlatSegment::new(dimension, metric, kernel).expect("a good dimension");
        let mut model = Model::default();
        for step in 0..steps {
            if random.below(delete_one_in) == 0 && !model.rows.is_empty() {
                let rows: Vec<u32> = model.rows.keys().copied().collect();
                model.delete(&mut segment, rows[random.below(rows.len())]);
            } else {
                let magnitude = 10.0_f32.powi(spread * random.below(3) as i32);
                let vector: Vec<f32> = random.vector(dimension).iter().map(|value| value * magnitude + 1e-9).collect();
                model.push(&mut segment, step as u64 % 50, &vector);
            }
        }
        prop_assert_eq!(segment.len(), model.rows.len());
        let allowed = match filter_one_in {
            1 => Allowed::All,
            share => Allowed::Rows((0..segment.rows()).filter(|_| random.below(share) == 0).collect()),
        };
        model.check(&segment, &random.vector(dimension), k, &allowed);
    }
}
