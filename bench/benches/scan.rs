//! Kernels, quantiser and exact scan, then the scan's goal. `--goals` skips the first part; a name filters it.

#![allow(clippy::disallowed_methods, reason = "a bench measures the machine: ambient time is its subject")]
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use gristmill_bench::goals::Settings;
use gristmill_bench::scan::{self, DIMENSION, K, Vectors};
use gristmill_vector::kernel::{CodeLine, codes, codes_mut};
use gristmill_vector::quantize::Quantizer;
use gristmill_vector::{Allowed, FlatSegment, Kernel, Metric, VectorIndex};

/// Rows that one kernel call of a scan scores.
const BLOCK_ROWS: usize = gristmill_vector::limits::BLOCK_ROWS;

/// Sizes of the published curve, and of the head that every recall scans.
const SEGMENT_ROWS: [usize; 3] = [8_192, 32_768, 131_072];

/// Sizes of allowed lists; at about 16,000 a graph takes over.
const ALLOWED_ROWS: [usize; 3] = [708, 7_000, 16_000];

fn main() {
    let settings = Settings::from_env();
    if !settings.goals_only {
        let mut criterion = Criterion::default();
        if let Some(filter) = &settings.filter {
            criterion = criterion.with_filter(filter);
        }
        kernels(&mut criterion);
        coding(&mut criterion);
        searches(&mut criterion);
        criterion.final_summary();
    }
    scan::goals(&settings).print();
}

/// Products out of the L1 and L2 caches.
fn kernels(criterion: &mut Criterion) {
    let mut vectors = Vectors::new(3);
    let quantizer = Quantizer::new(DIMENSION, 0).expect("a good dimension");
    let mut lines = vec![CodeLine::ZERO; BLOCK_ROWS * DIMENSION / size_of::<CodeLine>()];
    for row in codes_mut(&mut lines).chunks_exact_mut(DIMENSION) {
        quantizer.encode(&vectors.next_vector(), row);
    }
    let rows = codes(&lines);
    let query = &rows[..DIMENSION];
    let (a, b) = (vectors.next_vector(), vectors.next_vector());
    let mut group = criterion.benchmark_group("kernel");
    for kernel in Kernel::available() {
        group.throughput(Throughput::Elements(BLOCK_ROWS as u64));
        let mut products = [0; BLOCK_ROWS];
        group.bench_function(BenchmarkId::new("dot_i8_rows", kernel.name()), |bencher| {
            bencher.iter(|| kernel.dot_i8_rows(query, black_box(rows), &mut products));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("dot_i8", kernel.name()), |bencher| {
            bencher.iter(|| kernel.dot_i8(query, black_box(&rows[DIMENSION..2 * DIMENSION])));
        });
        group.bench_function(BenchmarkId::new("dot_f32", kernel.name()), |bencher| {
            bencher.iter(|| kernel.dot_f32(&a, black_box(&b)));
        });
    }
    group.finish();
}

/// What apply pays for a vector.
fn coding(criterion: &mut Criterion) {
    let mut vectors = Vectors::new(4);
    let vector = vectors.next_vector();
    let quantizer = Quantizer::new(DIMENSION, 0).expect("a good dimension");
    let mut code = [0; DIMENSION];
    criterion.bench_function("quantize/encode", |bencher| {
        bencher.iter(|| quantizer.encode(black_box(&vector), &mut code));
    });
    let mut segment = FlatSegment::new(DIMENSION, Metric::Cosine, Kernel::detect()).expect("a good dimension");
    segment.push(1, &vector).expect("an acceptable vector");
    criterion.bench_function("flat/delete-and-push", |bencher| {
        bencher.iter(|| {
            segment.delete(0);
            segment.push(1, black_box(&vector)).expect("an acceptable vector")
        });
    });
}

fn searches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flat");
    let query = Vectors::new(5).next_vector();
    for rows in SEGMENT_ROWS {
        let segment = scan::segment(rows, Kernel::detect());
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new("search", rows), |bencher| {
            bencher.iter(|| segment.search(black_box(&query), K, Allowed::All));
        });
    }
    let rows = SEGMENT_ROWS[SEGMENT_ROWS.len() - 1];
    let segment = scan::segment(rows, Kernel::detect());
    for allowed in ALLOWED_ROWS {
        let list: Vec<u32> = (0..allowed).map(|index| (index * rows / allowed) as u32).collect();
        group.throughput(Throughput::Elements(allowed as u64));
        group.bench_function(BenchmarkId::new("search-allowed", allowed), |bencher| {
            bencher.iter_batched(
                || Allowed::Rows(list.clone()),
                |list| segment.search(black_box(&query), K, list),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
