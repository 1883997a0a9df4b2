//! The suite over the simulated driver: each case under several seeds, in virtual time.
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use gristmill_shardexec::executor::{Class, ExecutorConfig, spawn};
use gristmill_shardexec::sim::{DiskConfig, NodeConfig, SimConfig, Stop, World};
use gristmill_shardexec::{CoreId, OffloadError, driver_name, executor_stats, fs, offload, time};

use super::{CASE_DEADLINE, Case, Place, settle};

/// Seeds per case.
const SEEDS: u64 = 5;

pub fn config() -> ExecutorConfig {
    ExecutorConfig::default()
}

/// Runs one case.
pub fn run<F: Future<Output = ()> + 'static>(place: Place, config: fn() -> ExecutorConfig, case: fn(Case) -> F) {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, SimConfig::default());
        let disk = DiskConfig { direct: place == Place::Disk, ..DiskConfig::default() };
        let node = world.add_node(NodeConfig { disk, faults: None });
        let ended = Rc::new(Cell::new(false));
        let end = Rc::clone(&ended);
        world.start(node, CoreId(0), &config(), move || async move {
            assert_eq!(driver_name(), "sim");
            fs::create_dir("/case").await.unwrap();
            let leaves_operations = Rc::new(Cell::new(false));
            let case = case(Case {
                dir: "/case".into(),
                on_tmpfs: place == Place::Tmpfs,
                leaves_operations: Rc::clone(&leaves_operations),
            });
            time::timeout(CASE_DEADLINE, case).await.expect("the case hangs");
            if !leaves_operations.get() {
                time::timeout(CASE_DEADLINE, settle()).await.expect("an operation leaked");
                assert_eq!(executor_stats().timers_armed, 0, "a timer leaked");
            }
            end.set(true);
        });
        let stop = world.run_until(Duration::from_hours(1), u64::MAX);
        assert!(ended.get(), "seed {seed}: the case ended with {stop:?}: {:?}", world.violations());
        assert_eq!(stop, Stop::Done, "seed {seed}");
    }
}

pub async fn offloaded_jobs(_: Case) {
    let jobs: Vec<_> = (0..100u64)
        .map(|n| spawn(Class::Background, "job", async move { offload(move || n * n).await.unwrap() }))
        .collect();
    let mut sum = 0;
    for job in jobs {
        sum += job.await.unwrap();
    }
    assert_eq!(sum, (0..100).map(|n| n * n).sum());
    let failed = offload(|| -> u8 { panic!("singular matrix") }).await;
    assert!(matches!(&failed, Err(OffloadError::Panicked(message)) if message == "singular matrix"), "{failed:?}");
    let before = time::Instant::now();
    assert_eq!(offload(|| "goes on").await.unwrap(), "goes on");
    assert!(before.elapsed() > Duration::ZERO, "a job takes virtual time");
}
