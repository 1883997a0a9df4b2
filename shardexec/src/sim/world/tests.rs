//! Determinism, time, crashes, and what the world says about its programs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::task::Poll;

use super::*;
use crate::buf::AlignedBuf;
use crate::executor::{spawn, yield_now};
use crate::fs::{self, File, OpenOptions};
use crate::mesh::mesh;
use crate::random::random_u64;
use crate::sim::faults::{FaultKind, FaultPlan};
use crate::time::{Instant, sleep};

mod cluster;
mod strikes;

use cluster::{call, serve_echo};

const FOREVER: Duration = Duration::from_hours(10);
const CORE: CoreId = CoreId(0);

fn config() -> ExecutorConfig {
    ExecutorConfig::default()
}

fn faulty(plan: FaultPlan) -> SimConfig {
    SimConfig { faults: plan, ..SimConfig::default() }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One node with one core that runs `main`.
fn lone<F: Future<Output = ()> + 'static>(seed: u64, main: impl FnOnce() -> F + 'static) -> (World, NodeId) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node(NodeConfig::default());
    world.start(node, CORE, &config(), main);
    (world, node)
}

/// Runs to the end, which must be a good one.
fn run(world: &mut World) {
    let stop = world.run_until(FOREVER, 10_000_000);
    assert_eq!(world.violations(), []);
    assert_eq!(stop, Stop::Done);
}

#[test]
fn tracing_lines_does_not_change_the_run() {
    let lines = Rc::new(Cell::new(0));
    let hash = |trace: bool| {
        let lines = Rc::clone(&lines);
        let sink: crate::sim::TraceSink = Box::new(move |_| lines.set(lines.get() + 1));
        let mut world = World::new(3, SimConfig { trace: trace.then_some(sink), ..SimConfig::default() });
        let node = world.add_node(NodeConfig::default());
        world.start(node, CORE, &config(), || async { fs::write_atomic("/f", b"x").await.unwrap() });
        run(&mut world);
        world.trace_hash()
    };
    assert_eq!(hash(true), hash(false));
    assert!(lines.get() >= 10, "{} lines", lines.get());
}

#[test]
fn what_a_core_tells_is_a_line_of_the_trace() {
    let lines: Rc<RefCell<Vec<String>>> = Rc::default();
    let told = Rc::clone(&lines);
    let sink: crate::sim::TraceSink = Box::new(move |line| told.borrow_mut().push(line.to_string()));
    let mut world = World::new(3, SimConfig { trace: Some(sink), ..SimConfig::default() });
    let node = world.add_node(NodeConfig::default());
    world.start(node, CORE, &config(), || async { crate::tell(format_args!("node {}", 7)) });
    run(&mut world);
    assert!(lines.borrow().iter().any(|line| line.ends_with("n0c0 says: node 7")), "{:?}", lines.borrow());
}

#[test]
fn a_process_that_is_reaped_is_no_fault_and_can_start_again() {
    let (mut world, node) = lone(1, pending);
    assert_eq!(world.run_until(ms(10), u64::MAX), Stop::Stuck);
    world.reap(node);
    world.reap(node);
    assert!(!world.is_running(node));
    assert_eq!(world.faults().total(), 0);
    world.start(node, CORE, &config(), || async { sleep(ms(1)).await });
    run(&mut world);
}

#[test]
fn time_is_virtual_and_deadlines_hold() {
    let (mut world, _) = lone(1, || async {
        let began = Instant::now();
        sleep(Duration::from_hours(1)).await;
        let slept = began.elapsed();
        assert!(slept >= Duration::from_hours(1) && slept < Duration::from_hours(1) + ms(1), "{slept:?}");
        let at = Instant::now();
        yield_now().await;
        assert!(at.elapsed() > Duration::ZERO, "a poll costs time");
    });
    run(&mut world);
    let now = world.now();
    assert!(now > Duration::from_mins(59) && now < Duration::from_mins(61), "{now:?}: clocks drift a little");
}

#[test]
fn yielding_for_ever_takes_time_for_ever() {
    let (mut world, _) = lone(1, || async {
        let until = Instant::now() + ms(100);
        while Instant::now() < until {
            crate::executor::yield_if_spent().await;
        }
    });
    run(&mut world);
    assert!(world.now() >= ms(99));
}

#[test]
fn clocks_differ_between_nodes_and_jump() {
    let mut world = World::new(5, SimConfig::default());
    let nodes: Vec<NodeId> = (0..3).map(|_| world.add_node(NodeConfig::default())).collect();
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    for &node in &nodes {
        let seen = Rc::clone(&seen);
        world.start(node, CORE, &config(), move || async move {
            seen.borrow_mut().insert(crate::time::WallClock::now().0 / 10_000_000);
            pending::<()>().await;
        });
    }
    assert_eq!(world.run_until(ms(1), u64::MAX), Stop::Stuck);
    assert_eq!(seen.borrow().len(), 3, "the skew shows: {seen:?}");
    let before = world.wall_clock(nodes[0]);
    world.jump_clock(nodes[0], 600_000_000_000);
    assert_eq!(world.wall_clock(nodes[0]).0 - before.0, 600_000_000_000);
    assert_eq!(world.faults().of(FaultKind::ClockLeap), 1);
}

#[test]
fn a_crash_at_any_await_keeps_what_was_acknowledged() {
    let mut moments = BTreeSet::new();
    for seed in 0..300 {
        let acknowledged = Rc::new(Cell::new(0u64));
        let plan = FaultPlan::honest().with(FaultKind::PowerLoss, 20_000).with(FaultKind::ProcessKill, 0);
        let mut world = World::new(seed, faulty(plan));
        let node = world.add_node(NodeConfig::default());
        let acknowledge = Rc::clone(&acknowledged);
        world.start(node, CORE, &config(), move || async move {
            for n in 1..=50u64 {
                fs::write_atomic("/counter", &n.to_le_bytes()).await.unwrap();
                acknowledge.set(n);
            }
        });
        match world.run_until(FOREVER, u64::MAX) {
            Stop::Down(struck, Down::PowerLoss) => assert_eq!(struck, node),
            stop => assert_eq!((stop, world.is_finished(node, CORE)), (Stop::Done, true)),
        }
        assert_eq!(world.violations(), []);
        moments.insert(world.steps());
        let found = world.disk(node, |disk| disk.read("/counter")).unwrap_or_default();
        let found = found.try_into().map_or(0, u64::from_le_bytes);
        let acknowledged = acknowledged.get();
        assert!((acknowledged..=acknowledged + 1).contains(&found), "seed {seed}: {found} after {acknowledged}");
    }
    assert!(moments.len() > 50, "crashes came at {} different moments", moments.len());
}

#[test]
fn an_unsynced_write_that_was_acknowledged_by_nobody_is_lost_under_some_seeds() {
    let lost = (0..100).filter(|&seed| {
        let (mut world, node) = lone(seed, || async {
            let file = OpenOptions::new().write(true).create(true).open("/f").await.unwrap();
            file.sync_all().await.unwrap();
            file.write_at(vec![1; 100], 0).await.0.unwrap();
        });
        world.set_faults(FaultPlan::honest());
        world.set_node_faults(node, Some(FaultPlan::honest().with(FaultKind::PowerLoss, 0)));
        world.run_until(FOREVER, u64::MAX);
        world.crash(node);
        assert!(!world.is_running(node));
        world.disk(node, |disk| disk.read("/f")).is_ok_and(|found| found.is_empty())
    });
    let lost = lost.count();
    assert!((20..100).contains(&lost), "{lost} of 100");
}

#[test]
fn a_kill_keeps_what_was_written_and_frees_locks() {
    let (mut world, node) = lone(1, || async {
        let file = OpenOptions::new().write(true).create(true).open("/f").await.unwrap();
        assert!(file.try_lock_exclusive().await.unwrap());
        file.write_at(b"kept".to_vec(), 0).await.0.unwrap();
        pending::<()>().await;
    });
    world.set_faults(
        FaultPlan::none().with(FaultKind::LostUnsyncedWrite, 1_000_000).with(FaultKind::LostDirOp, 1_000_000),
    );
    assert_eq!(world.run_until(FOREVER, u64::MAX), Stop::Stuck);
    world.kill(node);
    world.kill(node);
    world.start(node, CORE, &config(), || async {
        let file = File::open("/f").await.unwrap();
        assert!(file.try_lock_exclusive().await.unwrap(), "the lock went with its process");
        assert_eq!(file.read_at(vec![0; 4], 0).await.1, b"kept");
    });
    run(&mut world);
    assert_eq!(world.faults().of(FaultKind::ProcessKill), 1);
}

#[test]
fn a_machine_may_lose_power_after_its_process_was_killed() {
    let lost = (0..40).filter(|&seed| {
        let (mut world, node) = lone(seed, || async {
            let file = OpenOptions::new().write(true).create(true).open("/f").await.unwrap();
            file.sync_all().await.unwrap();
            file.write_at(vec![1; 10], 0).await.0.unwrap();
        });
        run(&mut world);
        world.set_faults(FaultPlan::none().with(FaultKind::LostUnsyncedWrite, 1_000_000));
        world.kill(node);
        assert_eq!(world.disk(node, |disk| disk.len("/f")).unwrap(), 10);
        world.crash(node);
        world.crash(node);
        assert_eq!(world.faults().of(FaultKind::PowerLoss), 1);
        world.disk(node, |disk| disk.len("/f")).unwrap() == 0
    });
    assert!((5..40).contains(&lost.count()));
}

#[test]
fn tasks_can_be_spawned_from_outside_while_the_world_runs() {
    let (mut world, node) = lone(1, || async { sleep(ms(50)).await });
    assert_eq!(world.run_until(ms(10), u64::MAX), Stop::Time);
    let wrote = Rc::new(Cell::new(false));
    let write = Rc::clone(&wrote);
    world.spawn(node, CORE, Class::Background, "late", async move {
        fs::write_atomic("/late", b"x").await.unwrap();
        write.set(true);
    });
    run(&mut world);
    assert!(wrote.get() && world.disk(node, |disk| disk.exists("/late")));
}

#[test]
fn ops_in_flight_at_a_crash_have_happened_or_not() {
    let outcomes: BTreeSet<_> = (0..200)
        .map(|seed| {
            let begun = Rc::new(Cell::new(false));
            let begin = Rc::clone(&begun);
            let (mut world, node) = lone(seed, move || async move {
                fs::write_atomic("/f", &[1; 8192]).await.unwrap();
                begin.set(true);
                let file = OpenOptions::new().write(true).dsync(true).direct(true).open("/f").await.unwrap();
                let mut write = std::pin::pin!(file.write_at(AlignedBuf::from(&[2; 8192][..]), 0));
                assert!(poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await.is_pending());
                crate::time::sleep(Duration::ZERO).await;
                fs::rename("/f", "/g").await.unwrap();
            });
            world.set_faults(FaultPlan::honest().with(FaultKind::PowerLoss, 0).with(FaultKind::ProcessKill, 0));
            while !begun.get() {
                assert_eq!(world.step(FOREVER), None);
            }
            for _ in 0..seed % 16 {
                world.step(FOREVER);
            }
            world.crash(node);
            let found = world.disk(node, |disk| disk.read("/f").or_else(|_| disk.read("/g")).unwrap());
            [found[0], found[4096], u8::from(found[..4096].windows(2).any(|pair| pair[0] != pair[1]))]
        })
        .collect();
    for expected in [[1, 1, 0], [2, 2, 0]] {
        assert!(outcomes.contains(&expected), "{outcomes:?}");
    }
    assert!(outcomes.len() >= 4, "some writes tear: {outcomes:?}");
}

#[test]
fn a_paused_process_stands_still_and_a_suspended_machine_with_its_clock() {
    for (machine, seen_ms) in [(false, 5000..5600), (true, 0..600)] {
        let ticks = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&ticks);
        let (mut world, node) = lone(1, || async move {
            for _ in 0..10 {
                seen.borrow_mut().push((Instant::now(), Instant::boottime_now()));
                sleep(ms(50)).await;
            }
        });
        world.run_until(ms(200), u64::MAX);
        let before = ticks.borrow().len();
        if machine {
            world.suspend(node, Duration::from_secs(5));
        } else {
            world.pause(node, Duration::from_secs(5));
        }
        world.run_until(ms(5100), u64::MAX);
        assert_eq!(ticks.borrow().len(), before, "nothing ran");
        run(&mut world);
        let ticks = ticks.borrow();
        let elapsed = (ticks[9].0 - ticks[0].0).as_millis() as u64;
        assert!(seen_ms.contains(&elapsed), "{elapsed} ms");
        assert!(ticks[9].1 - ticks[0].1 >= Duration::from_secs(5), "CLOCK_BOOTTIME saw it");
    }
}

#[test]
fn a_monotonic_clock_starts_anew_at_a_boot_and_goes_on_after_a_kill() {
    let (mut world, node) = lone(1, || async { pending().await });
    world.run_until(Duration::from_secs(100), u64::MAX);
    world.state.borrow_mut().now = 100_000_000_000;
    let before = world.monotonic(node);
    world.kill(node);
    assert_eq!(world.monotonic(node), before);
    world.start(node, CORE, &config(), || async { pending().await });
    world.crash(node);
    assert!(world.monotonic(node) < before);
}

#[test]
fn a_panic_is_a_violation_even_if_nobody_joins() {
    let (mut world, node) = lone(1, || async {
        drop(spawn(Class::Background, "broken", async { panic!("seven is not eight") }));
        sleep(ms(1)).await;
    });
    assert_eq!(world.run_until(FOREVER, u64::MAX), Stop::Done);
    let [violation] = world.violations() else { panic!("{:?}", world.violations()) };
    assert_eq!((violation.node, &*violation.message), (node, "seven is not eight"));
}

#[test]
fn limits_stop_the_world_where_they_should() {
    let (mut world, _) = lone(1, || async {
        loop {
            yield_now().await;
        }
    });
    let stop = world.run_until(FOREVER, 100);
    assert!(stop == Stop::Steps && (100..104).contains(&world.steps()));
    assert_eq!(world.run_until(ms(1), u64::MAX), Stop::Time);
    assert!(world.now() >= ms(1) && world.now() < ms(2));
}

#[test]
fn cores_of_a_node_talk_over_the_mesh() {
    let mut world = World::new(9, SimConfig::default());
    let node = world.add_node(NodeConfig::default());
    let sums = Rc::new(Cell::new(0));
    for (core, seat) in (0..3).map(CoreId).zip(mesh::<u64>(3, 2)) {
        let sums = Rc::clone(&sums);
        world.start(node, core, &config(), move || async move {
            let port = seat.attach();
            let sender = port.clone();
            let sending = spawn(Class::Request, "send", async move {
                for n in 0..200 {
                    for to in sender.cores() {
                        sender.send(to, n).await.unwrap();
                    }
                    if n % 50 == 0 {
                        sleep(ms(1)).await; // So that everybody parks now and then.
                    }
                }
            });
            for _ in 0..600 {
                let (_, n) = port.recv().await;
                sums.set(sums.get() + n);
            }
            sending.await.unwrap();
            sleep(ms(10)).await; // Peers still send.
        });
    }
    run(&mut world);
    assert_eq!(sums.get(), 3 * 3 * 199 * 200 / 2);
}

#[test]
fn random_bytes_differ_between_nodes_and_starts_and_repeat_with_the_seed() {
    let draw = |seed| {
        let drawn = Rc::new(RefCell::new(Vec::new()));
        let mut world = World::new(seed, SimConfig::default());
        let nodes = [0; 2].map(|_| world.add_node(NodeConfig::default()));
        for round in 0..2 {
            for node in nodes {
                let drawn = Rc::clone(&drawn);
                world.start(node, CORE, &config(), move || async move {
                    let drew = random_u64();
                    drawn.borrow_mut().push((node, round, drew));
                });
            }
            run(&mut world);
            for node in nodes {
                world.kill(node);
            }
        }
        let mut drawn = drawn.take();
        drawn.sort_unstable();
        drawn
    };
    let numbers: BTreeSet<u64> = draw(1).iter().chain(&draw(2)).map(|&(_, _, number)| number).collect();
    assert_eq!(numbers.len(), 8);
    assert_eq!(draw(1), draw(1));
}

struct OnDrop(Rc<Cell<bool>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn a_task_may_ask_for_its_own_end() {
    let dropped = Rc::new(Cell::new(false));
    let guard = OnDrop(Rc::clone(&dropped));
    let mut world = World::new(1, SimConfig::default());
    let node = world.add_node(NodeConfig::default());
    let sim = world.sim();
    world.start(node, CORE, &config(), move || async move {
        let _guard = guard;
        let file = OpenOptions::new().write(true).create(true).open("/f").await.unwrap();
        sim.request_down(node, Down::PowerLoss);
        let _ = file.write_at(vec![1; 10], 0).await;
        unreachable!("the node is down");
    });
    assert_eq!(world.run_until(FOREVER, u64::MAX), Stop::Down(node, Down::PowerLoss));
    assert!(dropped.get() && world.violations().is_empty());
}

#[test]
fn a_world_may_end_with_everything_under_way() {
    for seed in 0..20 {
        let mut world = World::new(seed, SimConfig::default());
        let nodes = [0; 2].map(|_| world.add_node(NodeConfig::default()));
        world.start(nodes[0], CORE, &config(), serve_echo);
        world.start(nodes[1], CORE, &config(), move || async move {
            for _ in 0..4 {
                spawn(Class::Request, "call", call(nodes[0], 1000, Rc::default()));
            }
            spawn(Class::Background, "job", async { drop(crate::offload(|| ()).await) });
            fs::write_atomic("/f", &vec![0; 100_000]).await.unwrap();
            pending::<()>().await;
        });
        world.run_until(FOREVER, 50 + seed * 10);
    }
}
