//! Faults of the plan that concern a node as a whole: shown by their effect.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::{CORE, FOREVER, config, faulty, lone, ms, run};
use crate::fs::OpenOptions;
use crate::sim::faults::{FaultKind, FaultPlan};
use crate::sim::{Down, NodeConfig, Stop, World};
use crate::time::{Instant, WallClock, sleep};

const ALWAYS: u32 = 1_000_000;

/// Monotonic and wall clock of one node, read once a millisecond for `secs` under `plan`.
fn readings(seed: u64, plan: FaultPlan, secs: u64) -> (World, Vec<(Instant, WallClock)>) {
    let readings = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&readings);
    let (mut world, _) = lone(seed, || async move {
        loop {
            seen.borrow_mut().push((Instant::now(), WallClock::now()));
            sleep(ms(1)).await;
        }
    });
    world.set_faults(plan);
    assert_eq!(world.run_until(Duration::from_secs(secs), u64::MAX), Stop::Time);
    assert_eq!(world.violations(), []);
    let readings = readings.take();
    (world, readings)
}

/// By how many milliseconds the wall clock went differently from the monotonic one, at each reading where it did.
fn jumps_ms(readings: &[(Instant, WallClock)]) -> Vec<i64> {
    let offset = |(monotonic, wall): (Instant, WallClock)| wall.0 as i64 - monotonic.as_ns() as i64;
    let jumps = readings.windows(2).map(|pair| (offset(pair[1]) - offset(pair[0])) / 1_000_000);
    jumps.filter(|&jump| jump != 0).collect()
}

#[test]
fn a_clock_jumps_by_half_a_second_or_leaps_by_ten_minutes() {
    assert_eq!(jumps_ms(&readings(1, FaultPlan::none(), 5).1), [], "without a fault they go alike");

    let (world, seen) = readings(1, FaultPlan::none().with(FaultKind::ClockJump, 200_000), 5);
    let jumps = jumps_ms(&seen);
    assert!(jumps.len() > 5 && jumps.iter().all(|jump| jump.abs() <= 500), "{jumps:?}");
    assert!(jumps.iter().any(|&jump| jump > 0) && jumps.iter().any(|&jump| jump < 0), "{jumps:?}");
    assert!(world.faults().of(FaultKind::ClockJump) >= jumps.len() as u64);

    let jumps = jumps_ms(&readings(1, FaultPlan::none().with(FaultKind::ClockLeap, 200_000), 5).1);
    assert!(jumps.len() > 5 && jumps.iter().all(|jump| jump.abs() == 600_000), "{jumps:?}");
}

#[test]
fn a_paused_process_misses_time() {
    let longest = |plan| {
        let seen = readings(2, plan, 10).1;
        seen.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap()
    };
    assert!(longest(FaultPlan::none()) < ms(2));
    let pause = longest(FaultPlan::none().with(FaultKind::ProcessPause, 100_000));
    assert!(pause > ms(100) && pause <= Duration::from_secs(3) + ms(2), "{pause:?}");
}

#[test]
fn a_suspension_that_ends_early_costs_the_clock_no_more_than_it_lasted() {
    let (mut world, node) = lone(6, || async { sleep(Duration::from_secs(10)).await });
    world.run_until(ms(100), u64::MAX);
    let before = world.monotonic(node);
    world.suspend(node, Duration::from_hours(1));
    world.run_until(Duration::from_secs(2), u64::MAX);
    world.heal();
    let after = world.monotonic(node);
    assert!(after >= before && after - before < ms(1), "{:?}", after - before);
    run(&mut world);
}

#[test]
fn a_stalled_disk_is_slow() {
    let time_of_writes = |ppm| {
        let took = Rc::new(Cell::new(Duration::ZERO));
        let elapsed = Rc::clone(&took);
        let (mut world, _) = lone(3, || async move {
            let file = OpenOptions::new().write(true).create(true).open("/f").await.unwrap();
            let began = Instant::now();
            for _ in 0..20 {
                file.write_at(vec![1; 100], 0).await.0.unwrap();
            }
            elapsed.set(began.elapsed());
        });
        world.set_faults(FaultPlan::none().with(FaultKind::DiskStall, ppm));
        run(&mut world);
        took.get()
    };
    assert!(time_of_writes(0) < ms(20));
    assert!(time_of_writes(ALWAYS) > ms(1000));
}

#[test]
fn the_plan_takes_nodes_down_but_not_too_many_at_once() {
    for how in [Down::PowerLoss, Down::Kill] {
        let plan = FaultPlan::none().with(how.kind(), 10_000).nodes_down_max(2);
        let mut world = World::new(4, faulty(plan));
        let nodes: Vec<_> = (0..5).map(|_| world.add_node(NodeConfig::default())).collect();
        for &node in &nodes {
            world.start(node, CORE, &config(), || async {
                loop {
                    sleep(ms(1)).await;
                }
            });
        }
        let mut down = Vec::new();
        while let Stop::Down(node, struck) = world.run_until(Duration::from_secs(10), u64::MAX) {
            assert_eq!(struck, how);
            down.push(node);
        }
        assert_eq!(down.len(), 2, "{down:?}");
        assert_eq!(nodes.iter().filter(|&&node| world.is_running(node)).count(), 3);
        assert_eq!(world.faults().of(how.kind()), 2);
    }
}

#[test]
fn healing_ends_every_fault_and_wakes_who_was_paused() {
    let mut plan = FaultPlan::none().outage_max(Duration::from_hours(1));
    for kind in [FaultKind::ProcessPause, FaultKind::ClockJump, FaultKind::DiskStall, FaultKind::PartitionTwoWay] {
        plan = plan.with(kind, ALWAYS);
    }
    let mut world = World::new(5, faulty(plan.clone()));
    let nodes = [NodeConfig::default(), NodeConfig { faults: Some(plan), ..NodeConfig::default() }];
    let ticks = Rc::new(Cell::new(0));
    for node in nodes.map(|config| world.add_node(config)) {
        let ticks = Rc::clone(&ticks);
        world.start(node, CORE, &config(), || async move {
            while ticks.get() < 10_000 {
                ticks.set(ticks.get() + 1);
                sleep(ms(1)).await;
            }
        });
    }
    world.run_until(Duration::from_secs(5), u64::MAX);
    assert!(ticks.get() < 1000, "both are paused");
    world.heal();
    let before = world.faults();
    assert_eq!(world.run_until(FOREVER, u64::MAX), Stop::Done);
    assert_eq!((world.faults(), ticks.get()), (before, 10_000));
}
