//! Messages between cores: spinning, parked, and what they allocate. See `gristmill_bench::mesh`.

use std::time::Duration;

use criterion::Criterion;
use gristmill_bench::goals::{Bound, Comparison, Report, Settings};
use gristmill_bench::mesh::{self, Trips};
use gristmill_shardexec::{IoChoice, SpinPolicy};

/// The promise for two cores that both spin, in microseconds.
const SPINNING_TARGET_US: f64 = 0.4;

/// Hops over which allocations are counted.
const HOPS: u64 = 10_000;

/// What starting and ending the measured stretch allocates, once: the waker of `block_on`, growth of a queue.
const ALLOCATIONS_OF_THE_RUN: u64 = 8;

fn main() {
    let settings = Settings::from_env();
    let short = Trips { samples: settings.pick(2_000, 20), per_sample: 100 };
    let long = Trips { samples: settings.pick(5_000, 50), per_sample: 1 };
    if !settings.goals_only {
        criterion_rows(&settings, short, long);
    }
    let mut report = Report::new(&settings);
    report.add(
        Comparison::new("mesh-round-trip-spinning", "us", "target").goal(Bound::AtMost(1.0)).measure_against_target(
            &settings,
            &mut (),
            |()| mesh::mesh_us(short, mesh::spinning()),
            SPINNING_TARGET_US,
        ),
    );
    report.add(Comparison::new("mesh-round-trip-parked", "us", "bare-eventfd").goal(Bound::AtMost(1.3)).measure(
        &settings,
        &mut (),
        |()| mesh::mesh_us(long, SpinPolicy::Never),
        |()| mesh::bare_eventfd_us(long),
    ));
    report.add(
        Comparison::new("mesh-allocations-per-hop", "allocations", "target")
            .goal(Bound::AtMost(0.0))
            .measure_against_target(&settings, &mut (), |()| allocations_per_hop(), 1.0),
    );
    report.add(Comparison::new("tcp-echo-parked", "us", "blocking-sockets").goal(Bound::AtMost(1.3)).measure(
        &settings,
        &mut (),
        |()| mesh::echo_us(long, IoChoice::Auto),
        |()| mesh::blocking_echo_us(long),
    ));
    report.print();
}

fn allocations_per_hop() -> f64 {
    let count = |hops: &mut dyn FnMut()| allocation_counter::measure(hops).count_total;
    let allocations = mesh::hops_counted(HOPS, count);
    allocations.saturating_sub(ALLOCATIONS_OF_THE_RUN) as f64 / HOPS as f64
}

/// Distributions of single figures, for comparison over time.
fn criterion_rows(settings: &Settings, short: Trips, long: Trips) {
    let mut criterion = Criterion::default().without_plots().sample_size(10);
    if let Some(filter) = &settings.filter {
        criterion = criterion.with_filter(filter);
    }
    let mut group = criterion.benchmark_group("mesh");
    let mut row = |name: &str, median_us: &dyn Fn() -> f64| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| Duration::from_secs_f64(median_us() / 1e6 * iterations as f64));
        });
    };
    row("round-trip-spinning", &|| mesh::mesh_us(short, mesh::spinning()));
    row("round-trip-bare-ring", &|| mesh::bare_ring_us(short));
    row("round-trip-parked", &|| mesh::mesh_us(long, SpinPolicy::Never));
    row("round-trip-bare-eventfd", &|| mesh::bare_eventfd_us(long));
    row("tcp-echo-uring", &|| mesh::echo_us(long, IoChoice::Auto));
    row("tcp-echo-posix", &|| mesh::echo_us(long, IoChoice::Posix));
    row("tcp-echo-blocking", &|| mesh::blocking_echo_us(long));
    group.finish();
}
