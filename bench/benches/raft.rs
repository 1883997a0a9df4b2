//! Proposals through consensus on the log, and consensus alone. See `gristmill_bench::raft`.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use gristmill_bench::disk;
use gristmill_bench::goals::{Bound, Comparison, Report, Settings, median};
use gristmill_bench::raft::{GroupUnderTest, Machine, Store};

/// Bytes of the value that each proposal puts.
const VALUE_BYTES: usize = 128;

/// Proposals in flight in the promise.
const IN_FLIGHT: usize = 1024;

/// Proposals a second that are promised on one core.
const TARGET_PER_S: f64 = 400e3;

fn main() {
    let settings = Settings::from_env();
    let dir = disk::scratch();
    let start = |name: &str, store, machine| GroupUnderTest::start(&dir.path().join(name), store, machine, VALUE_BYTES);
    let mut on_log = start("counter", Store::Wal, Machine::Counter);
    disk::describe(dir.path(), on_log.driver);
    let mut with_state = start("state", Store::Wal, Machine::State);
    let mut in_memory = start("memory", Store::Memory, Machine::Counter);
    if !settings.goals_only {
        criterion_rows(
            &settings,
            &mut [("log", &mut on_log), ("log-state", &mut with_state), ("memory", &mut in_memory)],
        );
    }
    let span = settings.pick(Duration::from_secs(2), Duration::from_millis(50));
    let mut report = Report::new(&settings);
    report.add(
        Comparison::new("raft-proposals-1024", "per-s", "target").goal(Bound::AtLeast(1.0)).measure_against_target(
            &settings,
            &mut on_log,
            |group| group.proposals_per_s(IN_FLIGHT, span),
            TARGET_PER_S,
        ),
    );
    // No goal of its own: what apply adds to consensus and the log.
    let applied: Vec<f64> = (0..settings.rounds).map(|_| with_state.proposals_per_s(IN_FLIGHT, span)).collect();
    eprintln!("# the same, applied to the state of a shard in a client's session: {:.0} per s", median(&applied));
    report.print();
}

/// Distributions of single figures, for comparison over time.
fn criterion_rows(settings: &Settings, groups: &mut [(&str, &mut GroupUnderTest)]) {
    let mut criterion = Criterion::default().without_plots().sample_size(10);
    if let Some(filter) = &settings.filter {
        criterion = criterion.with_filter(filter);
    }
    let span = Duration::from_millis(300);
    let mut rows = criterion.benchmark_group("raft");
    rows.throughput(Throughput::Elements(1));
    for (name, group) in groups {
        for in_flight in [1, 64, IN_FLIGHT, 8 * IN_FLIGHT] {
            rows.bench_function(format!("{name}/{in_flight}"), |bencher| {
                bencher.iter_custom(|iterations| {
                    Duration::from_secs_f64(iterations as f64 / group.proposals_per_s(in_flight, span))
                });
            });
        }
        rows.bench_function(format!("{name}/{IN_FLIGHT}-single"), |bencher| {
            bencher.iter_custom(|iterations| {
                Duration::from_secs_f64(iterations as f64 / group.single_proposals_per_s(IN_FLIGHT, span))
            });
        });
    }
    rows.finish();
}
