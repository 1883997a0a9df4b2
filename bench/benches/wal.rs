//! Durable appends: one writer, many writers, the bare ring, and raft-engine. See `gristmill_bench::wal`.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use gristmill_bench::disk;
use gristmill_bench::goals::{Bound, Comparison, Report, Settings};
use gristmill_bench::raw_ring::RawRing;
use gristmill_bench::wal::LogUnderTest;

/// Bytes of the entry whose latency is promised.
const ONE_BYTES: usize = 4096;

/// Writers and bytes of an entry in the throughput's promise.
const WRITERS: usize = 1024;
const ENTRY_BYTES: usize = 128;

/// Entries a second that are promised on one core.
const TARGET_PER_S: f64 = 2e6;

/// Size of the floor's file: that of a segment.
const FILE_BYTES: u64 = 64 << 20;

struct Bench {
    log: LogUnderTest,
    ring: RawRing,
    #[cfg(feature = "peers")]
    raft_engine: gristmill_bench::wal::RaftEngine,
}

impl Bench {
    fn create(dir: &std::path::Path) -> Bench {
        Bench {
            log: LogUnderTest::create(&dir.join("log")),
            ring: RawRing::create(&dir.join("raw"), FILE_BYTES),
            #[cfg(feature = "peers")]
            raft_engine: gristmill_bench::wal::RaftEngine::create(&dir.join("raft-engine")),
        }
    }
}

fn main() {
    let settings = Settings::from_env();
    let dir = disk::scratch();
    let mut bench = Bench::create(dir.path());
    disk::describe(dir.path(), bench.log.driver);
    if !settings.goals_only {
        criterion_rows(&settings, &mut bench);
    }
    // Short rounds, and more of them: the disk's own latency drifts within a second.
    let appends = settings.pick(800, 50);
    let short = Settings { rounds: settings.rounds * settings.pick(5, 1), ..settings.clone() };
    let span = settings.pick(Duration::from_secs(2), Duration::from_millis(50));
    let mut report = Report::new(&settings);
    report.add(
        Comparison::new("wal-append-4k-p50", "us", "raw-ring")
            .goal(Bound::AtMost(1.15))
            .final_goal(Bound::AtMost(1.10))
            .measure(
                &short,
                &mut bench,
                |bench| bench.log.one_by_one_us(ONE_BYTES, appends),
                |bench| bench.ring.one_by_one_us(ONE_BYTES, appends),
            ),
    );
    report.add(
        Comparison::new("wal-appends-1024-writers", "per-s", "target")
            .goal(Bound::AtLeast(1.0))
            .measure_against_target(
                &settings,
                &mut bench,
                |bench| bench.log.concurrent_per_s(WRITERS, ENTRY_BYTES, span),
                TARGET_PER_S,
            ),
    );
    #[cfg(feature = "peers")]
    report.add(
        Comparison::new("wal-appends-vs-raft-engine", "per-s", "raft-engine-64-threads")
            .goal(Bound::AtLeast(3.0))
            .measure(
                &settings,
                &mut bench,
                |bench| bench.log.concurrent_per_s(WRITERS, ENTRY_BYTES, span),
                |bench| bench.raft_engine.concurrent_per_s(64, ENTRY_BYTES, span),
            ),
    );
    #[cfg(not(feature = "peers"))]
    eprintln!("!!! built without raft-engine, so its goal is missing: add --features peers");
    report.print();
}

/// Distributions of single figures, for comparison over time.
fn criterion_rows(settings: &Settings, bench: &mut Bench) {
    let mut criterion = Criterion::default().without_plots().sample_size(10);
    if let Some(filter) = &settings.filter {
        criterion = criterion.with_filter(filter);
    }
    let mut group = criterion.benchmark_group("wal");
    for bytes in [128, ONE_BYTES, 64 << 10] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("append-{bytes}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let us = bench.log.one_by_one_us(bytes, iterations.clamp(50, 4_000) as usize);
                Duration::from_secs_f64(us / 1e6 * iterations as f64)
            });
        });
    }
    group.throughput(Throughput::Bytes(ONE_BYTES as u64));
    group.bench_function("raw-ring-4096", |bencher| {
        bencher.iter_custom(|iterations| {
            let us = bench.ring.one_by_one_us(ONE_BYTES, iterations.clamp(50, 4_000) as usize);
            Duration::from_secs_f64(us / 1e6 * iterations as f64)
        });
    });
    group.throughput(Throughput::Elements(1));
    for writers in [1, 4, 16, 64, WRITERS, 8 * WRITERS] {
        group.bench_function(format!("writers-{writers}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let per_s = bench.log.concurrent_per_s(writers, ENTRY_BYTES, Duration::from_millis(300));
                Duration::from_secs_f64(iterations as f64 / per_s)
            });
        });
    }
    group.finish();
}
