//! A small share of the simulation, for every test run: a few seeds, each kind of fault among them, and the same run twice.
//!
//! The command `sim` runs as many as one likes; CONTRIBUTING.md says how.

use gristmill_shardexec::sim::{FaultCounts, FaultKind};
use gristmill_tests::sim::plan::{DAMAGE, Strike};
use gristmill_tests::sim::{Outcome, RunOptions, Setup, run_seed, run_setup};
use std::ops::Range;

/// Fewer than the command's: this is a debug build.
const STEPS: u64 = 8_000;

/// Runs in which every kind must strike; two threads share them.
const SEEDS: u64 = 18;

/// Rates at which a kind is sure to strike in a few short runs.
fn forced_ppm(kind: FaultKind) -> u32 {
    use FaultKind as F;
    match kind {
        F::LostUnsyncedWrite | F::TornWrite | F::LostDirOp => 600_000,
        F::ReorderedWrite => 900_000,
        F::PowerLoss => 4_000,
        F::ProcessKill => 500,
        // Final for a log: more would leave no log to look at.
        F::WriteError | F::SyncError | F::ShortWrite => 2_000,
        F::ReadError | F::ShortRead => 20_000,
        F::LostWrite => 200_000,
        F::StaleRead => 700_000,
        F::LyingSync | F::MisdirectedWrite | F::BitFlip => 40_000,
        _ => 10_000,
    }
}

/// A setup in which every third kind, beginning with the seed's, strikes for sure. Disks are buffered, so that there is something
/// unsynced to lose. One node or three.
fn forced(seed: u64) -> Setup {
    let nodes = if seed % 4 == 1 { 3 } else { 1 };
    let mut setup = Setup::draw(seed, Some(nodes), STEPS);
    setup.damaged = if seed.is_multiple_of(2) { vec![nodes - 1] } else { Vec::new() };
    setup.churn &= setup.damaged.is_empty();
    setup.disks.iter_mut().for_each(|disk| disk.direct = false);
    // Reads of what was overwritten: a start reads the log, and what the kernel had cached is still there.
    let restarts = [STEPS / 2, STEPS * 3 / 4].into_iter();
    setup
        .strikes
        .extend(restarts.flat_map(|at| setup.damaged.iter().map(move |&node| Strike { at, node, power: None })));
    setup.strikes.sort_unstable();
    for (at, kind) in (0..).zip(FaultKind::ALL) {
        // What a loss of power costs needs one.
        if !u64::is_multiple_of(at + seed, 3) && kind != FaultKind::PowerLoss {
            continue;
        }
        if !DAMAGE.contains(&kind) {
            setup.faults = setup.faults.with(kind, forced_ppm(kind));
        }
        setup.damage = setup.damage.with(kind, forced_ppm(kind));
    }
    setup
}

#[test]
fn every_kind_of_fault_strikes_and_no_promise_breaks() {
    let (mut struck, mut acked, mut compared) = (FaultCounts::default(), 0, 0);
    let share = |seeds: Range<u64>| seeds.map(|seed| run_setup(forced(seed), STEPS, None)).collect::<Vec<Outcome>>();
    #[expect(clippy::disallowed_methods, reason = "whole worlds, each on its own thread: nothing of theirs is shared")]
    let outcomes = std::thread::scope(|scope| {
        let other = scope.spawn(|| share(SEEDS / 2..SEEDS));
        let mut outcomes = share(0..SEEDS / 2);
        outcomes.extend(other.join().expect("it says why"));
        outcomes
    });
    for outcome in outcomes {
        assert_eq!(outcome.violations, [], "seed {}", outcome.seed);
        struck.add(&outcome.faults);
        acked += outcome.acked;
        compared += outcome.compared.0;
    }
    let missing: Vec<&str> = struck.iter().filter(|&(_, count)| count == 0).map(|(kind, _)| kind.name()).collect();
    assert!(missing.is_empty(), "{missing:?} never struck");
    assert!(acked > 1000 && compared > 20, "{acked} acknowledged writes and {compared} compared states prove little");
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let run = |seed| run_seed(seed, RunOptions { nodes: Some(1), steps: STEPS }, None);
    let runs = [7, 7, 8].map(run);
    assert_eq!(runs[0].trace_hash, runs[1].trace_hash);
    assert_eq!((runs[0].steps, runs[0].acked, &runs[0].faults), (runs[1].steps, runs[1].acked, &runs[1].faults));
    assert_ne!(runs[0].trace_hash, runs[2].trace_hash);
}
