//! One suite for every driver, on a disk file system and on tmpfs.
//!
//! Each case is an async function over a [`Case`]; the `suite!` macro makes a test of it per driver and directory. A driver
//! that this machine refuses (io_uring under seccomp) or a missing directory skips its tests and says so. Over the simulated driver
//! each case runs under several seeds; cases about real threads are left out there, since a simulation has none.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "the suite looks at the executor from outside: threads, processes, files"
)]

mod cancellation;
mod files;
mod processes;
mod scheduling;
mod simulated;
mod sockets;

use std::cell::Cell;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use gristmill_shardexec::executor::{Executor, ExecutorConfig, IoChoice, StartError};
use gristmill_shardexec::{executor_stats, time};

/// What a case runs with.
pub struct Case {
    /// An empty directory of its own.
    pub dir: PathBuf,
    /// Whether its file system is one without direct I/O.
    pub on_tmpfs: bool,
    /// Set by a case that ends with operations under way.
    pub leaves_operations: Rc<Cell<bool>>,
}

impl Case {
    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Where a case's directory is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The build directory: a disk file system on any machine that builds this.
    Disk,
    /// `/dev/shm`.
    Tmpfs,
}

/// A test that hangs is worse than one that fails: no case takes longer.
const CASE_DEADLINE: Duration = Duration::from_mins(2);

/// An executor, unless this machine refuses the driver.
pub fn executor(config: ExecutorConfig) -> Option<Executor> {
    match Executor::start(config) {
        Ok(executor) => Some(executor),
        Err(error @ StartError::UringUnavailable { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs one case.
pub fn run<F: Future<Output = ()>>(
    io: IoChoice,
    place: Place,
    config: fn() -> ExecutorConfig,
    case: impl FnOnce(Case) -> F,
) {
    let root = match place {
        Place::Disk => Path::new(env!("CARGO_TARGET_TMPDIR")),
        Place::Tmpfs => Path::new("/dev/shm"),
    };
    if !root.is_dir() {
        eprintln!("skipped: no directory {}", root.display());
        return;
    }
    let dir = tempfile::tempdir_in(root).unwrap();
    let Some(mut executor) = executor(ExecutorConfig { io, ..config() }) else { return };
    executor.block_on(async {
        let leaves_operations = Rc::new(Cell::new(false));
        let case = case(Case {
            dir: dir.path().to_owned(),
            on_tmpfs: place == Place::Tmpfs,
            leaves_operations: Rc::clone(&leaves_operations),
        });
        time::timeout(CASE_DEADLINE, case).await.expect("the case hangs");
        if !leaves_operations.get() {
            time::timeout(CASE_DEADLINE, settle()).await.expect("an operation leaked");
            assert_eq!(executor_stats().timers_armed, 0, "a timer leaked");
        }
    });
}

fn run_posix<F: Future<Output = ()>>(place: Place, config: fn() -> ExecutorConfig, case: impl FnOnce(Case) -> F) {
    run(IoChoice::Posix, place, config, case);
}

fn run_uring<F: Future<Output = ()>>(place: Place, config: fn() -> ExecutorConfig, case: impl FnOnce(Case) -> F) {
    run(IoChoice::Uring, place, config, case);
}

/// Waits until the driver has handed back every op, closes included.
pub async fn settle() {
    while executor_stats().ops_in_flight > 0 {
        time::sleep(Duration::from_millis(1)).await;
    }
}

macro_rules! suite {
    (sim; $($module:ident: $($case:ident),+;)+) => {
        suite!(@ sim_on_disk, crate::simulated::run, Place::Disk; $($module: $($case),+;)+);
        suite!(@ sim_on_tmpfs, crate::simulated::run, Place::Tmpfs; $($module: $($case),+;)+);
    };
    ($($module:ident: $($case:ident),+;)+) => {
        suite!(@ posix_on_disk, crate::run_posix, Place::Disk; $($module: $($case),+;)+);
        suite!(@ posix_on_tmpfs, crate::run_posix, Place::Tmpfs; $($module: $($case),+;)+);
        suite!(@ uring_on_disk, crate::run_uring, Place::Disk; $($module: $($case),+;)+);
        suite!(@ uring_on_tmpfs, crate::run_uring, Place::Tmpfs; $($module: $($case),+;)+);
    };
    (@ $name:ident, $run:path, $place:expr; $($module:ident: $($case:ident),+;)+) => {
        mod $name {
            use super::*;
            $(mod $module {
                use super::*;
                $(#[test]
                fn $case() {
                    $run($place, crate::$module::config, crate::$module::$case);
                })+
            })+
        }
    };
}

suite! {
    files: round_trip, short_read_at_the_end, direct_io, open_errors, lengths_and_metadata, names, directories, locks,
        whole_files, many_at_once;
    sockets: connect_refused, echo, half_close, large_transfer, many_connections, accept_loses_nothing, port_in_use,
        shared_port, peer_gone, concurrent_directions, ipv6;
    cancellation: dropped_recv, dropped_write, dropped_connect, dropped_offload, slots_run_out, dropped_executor,
        random_drops;
    scheduling: timers_under_load, background_does_not_starve_requests, offload_values_and_panics, wake_from_thread,
        spinning_sees_work, clocks_and_randomness, panics_stay_in_their_task;
}

// Left out: `offload_values_and_panics`, `wake_from_thread` and `spinning_sees_work`, which are about other threads. Offloaded jobs have a
// case of their own in `simulated`.
suite! { sim;
    files: round_trip, short_read_at_the_end, direct_io, open_errors, lengths_and_metadata, names, directories, locks,
        whole_files, many_at_once;
    sockets: connect_refused, echo, half_close, large_transfer, many_connections, accept_loses_nothing, port_in_use,
        shared_port, peer_gone, concurrent_directions, ipv6;
    cancellation: dropped_recv, dropped_write, dropped_connect, dropped_offload, slots_run_out, dropped_executor,
        random_drops;
    scheduling: timers_under_load, background_does_not_starve_requests, clocks_and_randomness, panics_stay_in_their_task;
    simulated: offloaded_jobs;
}
