//! The exact vector scan against the bandwidth of the machine.
//!
//! The floor is a plain read: a vectorised sum over the very same code array, in the same run. It is written in safe Rust and compiles to
//! 16-byte loads over 16 independent sums, which out of memory reads as fast as hand-written AVX2 and faster than AVX-512 (measured on
//! Zen 4), so it is no easy mark. The array is larger than any last-level cache (300,000 × 384 B = 115 MB).

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use gristmill_vector::quantize::normalise;
use gristmill_vector::{Allowed, FlatSegment, Kernel, Metric, Progress, VectorIndex};

use crate::data;
use crate::goals::{Bound, Comparison, Report, Settings};

/// Components of the vectors: those of small sentence embedding models.
pub const DIMENSION: usize = 384;

/// Hits asked for.
pub const K: usize = 10;

/// Rows of the array that the goal is measured on.
const ROWS_FULL: usize = 300_000;

const ROWS_SMOKE: usize = 3_000;

/// Searches in a round.
const SEARCHES: usize = 8;

/// Deterministic vectors (splitmix64; each component a sum of four uniform bytes, so roughly normal), scaled to length 1.
#[derive(Debug)]
pub struct Vectors(u64);

impl Vectors {
    /// The sequence of one seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next vector of [`DIMENSION`] components.
    pub fn next_vector(&mut self) -> Vec<f32> {
        let mut vector: Vec<f32> = (0..DIMENSION / 2).flat_map(|_| self.pair()).collect();
        normalise(&mut vector).expect("random components are not all zero");
        vector
    }

    fn pair(&mut self) -> [f32; 2] {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bytes = (mixed ^ (mixed >> 31)).to_le_bytes();
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| f32::from(byte)).sum::<f32>() - 510.0;
        [sum(&bytes[..4]), sum(&bytes[4..])]
    }
}

/// A segment of random vectors.
pub fn segment(rows: usize, kernel: Kernel) -> FlatSegment {
    let mut vectors = Vectors::new(1);
    let mut segment = FlatSegment::new(DIMENSION, Metric::Cosine, kernel).expect("a good dimension");
    for id in 0..rows as u64 {
        segment.push(id, &vectors.next_vector()).expect("an acceptable vector");
    }
    segment
}

/// Measures the goals of the scan.
pub fn goals(settings: &Settings) -> Report {
    let mut report = Report::new(settings);
    let kernel = Kernel::detect();
    eprintln!("kernel {}", kernel.name());
    let segment = segment(settings.pick(ROWS_FULL, ROWS_SMOKE), kernel);
    let bytes = segment.codes().map(<[i8]>::len).sum::<usize>();
    let mut vectors = Vectors::new(2);
    let queries: Vec<_> = (0..SEARCHES).map(|_| vectors.next_vector()).collect();
    let comparison = Comparison::new("scan-int8-384", "GB/s", "plain-read").goal(Bound::AtLeast(0.8));
    report.add(comparison.measure(
        settings,
        &mut (),
        |()| bandwidth(bytes, |index| search(&segment, &queries[index])),
        |()| bandwidth(bytes, |_| plain_read(&segment)),
    ));
    if let Some(folder) =
        data::folder("no recall of the real embeddings is measured, the goal stands on random vectors")
    {
        print_recall(&folder, settings);
    }
    report
}

/// GB/s over the searches or reads of one round.
fn bandwidth<T>(bytes: usize, mut pass: impl FnMut(usize) -> T) -> f64 {
    let start = Instant::now();
    for index in 0..SEARCHES {
        black_box(pass(index));
    }
    (SEARCHES * bytes) as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn search(segment: &FlatSegment, query: &[f32]) -> usize {
    segment.search(query, K, Allowed::All).expect("a good query").len()
}

/// Sums all codes of the segment as 64-bit words.
fn plain_read(segment: &FlatSegment) -> u64 {
    const LANES: usize = 32;
    let mut sums = [0_u64; LANES];
    for codes in segment.codes() {
        let (blocks, _) = codes.as_chunks::<{ 8 * LANES }>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(word.map(|code| code as u8)));
            }
        }
    }
    sums.iter().fold(0, |all, &sum| all ^ sum)
}

/// Searches the real embeddings and compares with their exact neighbours. On stderr: it is no goal, and must be 1.
fn print_recall(folder: &Path, settings: &Settings) {
    let base = data::read_floats(&folder.join("base.f16.npy"));
    let queries = data::read_floats(&folder.join("queries_public.f32.npy"));
    let truth = data::read_integers(&folder.join("truth_public.i32.npy"));
    // The truth is by inner product of the float16 vectors, whose lengths are 1 only nearly.
    let mut segment = FlatSegment::new(base.columns, Metric::InnerProduct, Kernel::detect()).expect("a good dimension");
    for (id, vector) in base.rows().enumerate() {
        segment.push(id as u64, vector).expect("an acceptable vector");
    }
    let (mut found, mut reranked, mut searches) = (0, 0, 0);
    for (query, truth) in queries.rows().zip(truth.rows()).take(settings.pick(usize::MAX, 20)) {
        let mut scan = segment.start(query, K, Allowed::All).expect("a good query");
        while segment.step(&mut scan, usize::MAX) == Progress::More {}
        reranked += scan.counters().rows_reranked;
        searches += 1;
        found += segment.finish(scan).iter().filter(|hit| truth[..K].contains(&(hit.id as i32))).count();
    }
    eprintln!(
        "recall@{K} {:.4} over {searches} queries and {} real embeddings, {:.1} rows a query scored in f32",
        found as f64 / (K * searches) as f64,
        segment.len(),
        reranked as f64 / searches as f64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bench_runs_at_smoke_size() {
        let lines = goals(&Settings::smoke()).to_string();
        assert_eq!(lines.lines().count(), 1);
        assert!(lines.starts_with("goal scan-int8-384 ours "), "{lines}");
    }

    #[test]
    fn the_plain_read_reads_every_code() {
        let mut segment = segment(200, Kernel::detect());
        let before = plain_read(&segment);
        segment.delete(199);
        assert_ne!(plain_read(&segment), before);
    }
}
