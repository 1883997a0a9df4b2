//! One OS thread per core, each with an executor of its own.
//!
//! ```text
//!   Cores::start ─► thread gristmill-0: Executor::start ─► started ┐
//!                ─► thread gristmill-1: Executor::start ─► started ┼─► all well: every core runs its body
//!                ─► …                                              ┘   one failed: none does, its error is returned
//!   Cores::join  ◄─ what each body returned
//! ```
//!
//! Invariants
//! - No body begins before every core's executor has started, so a node starts whole or not at all.
//! - A body is made on its core's thread and may hold what is not `Send`.
//!
//! Panics: a task's panic is the executor's affair and ends that task. A panic that leaves a core's *body* would leave the node
//! with a core that answers nothing, while the others wait for it; so by default it aborts the process ([`BodyPanic::Abort`]).
#![forbid(unsafe_code)]

use std::future::Future;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::driver::panic_message;
use crate::executor::{Executor, ExecutorConfig, StartError};
use crate::mesh::MESH_CORES_MAX;
use crate::panic::abort_on_panic;
use crate::{CoreId, driver_name};

/// Cores of one node.
pub const CORES_MAX: usize = MESH_CORES_MAX;

/// What to do when a core's body panics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyPanic {
    /// Abort the process.
    #[default]
    Abort,
    /// End that core and report it to [`Cores::join`]. For tests, and for cores that do not depend on each other.
    Report,
}

/// Why a node's cores did not start.
#[derive(Debug, thiserror::Error)]
pub enum CoresError {
    /// The number is out of bounds.
    #[error("{0} cores: a node has 1 to {CORES_MAX}")]
    Count(usize),
    /// The operating system gave no thread.
    #[error("cannot start a thread for {core}: {source}; check `ulimit -u` and the memory limit")]
    Thread {
        /// The core.
        core: CoreId,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An executor did not start.
    #[error("{core} does not start: {source}")]
    Start {
        /// The core.
        core: CoreId,
        /// Why.
        source: StartError,
    },
}

/// A core whose body panicked, under [`BodyPanic::Report`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{core} panicked: {message}")]
pub struct CorePanic {
    /// The core.
    pub core: CoreId,
    /// The panic's text.
    pub message: String,
}

/// How a core runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreReport {
    /// The core.
    pub core: CoreId,
    /// The CPU that its thread is pinned to.
    pub cpu: Option<usize>,
    /// `uring` or `posix`.
    pub driver: &'static str,
}

/// The running cores of a node.
pub struct Cores<T> {
    threads: Vec<JoinHandle<Result<T, CorePanic>>>,
    reports: Vec<CoreReport>,
}

/// The CPUs that this process may use, in rising order. Containers and `taskset` restrict them.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// The CPU to pin `core` of `cores` to: one of its own among the allowed ones, or none where there are not enough for all (pinned
/// threads that share a CPU cannot make way for each other).
pub fn cpu_for(core: CoreId, cores: usize) -> Option<usize> {
    let allowed = allowed_cpus();
    if cores > allowed.len() { None } else { allowed.get(usize::from(core.0)).copied() }
}

impl<T: Send + 'static> Cores<T> {
    /// Starts `count` cores. `config` gives each its settings (the core's number in them is set here); `body` is called on the
    /// calling thread to make what is moved to the core's thread and called there, which gives the future that the core runs.
    pub fn start<B, F>(
        count: usize,
        on_panic: BodyPanic,
        mut config: impl FnMut(CoreId) -> ExecutorConfig,
        mut body: impl FnMut(CoreId) -> B,
    ) -> Result<Cores<T>, CoresError>
    where
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        if !(1..=CORES_MAX).contains(&count) {
            return Err(CoresError::Count(count));
        }
        let mut starting = Starting { threads: Vec::new(), go: Vec::new(), reports: Vec::new() };
        for core in (0..count as u16).map(CoreId) {
            let config = ExecutorConfig { core, ..config(core) };
            starting.start_core(config, on_panic, body(core))?;
        }
        Ok(starting.go())
    }

    /// How each core runs.
    pub fn reports(&self) -> &[CoreReport] {
        &self.reports
    }

    /// Waits for every core's body to end. Results in the order of core numbers.
    pub fn join(self) -> Vec<Result<T, CorePanic>> {
        let outcome = |thread: JoinHandle<_>| thread.join().expect("a core's thread catches the panics of its body");
        self.threads.into_iter().map(outcome).collect()
    }
}

/// Cores whose bodies have not begun. Dropped without [`Starting::go`], their threads end.
struct Starting<T> {
    threads: Vec<JoinHandle<Result<T, CorePanic>>>,
    /// One word to each thread; a dropped sender means "do not begin".
    go: Vec<Sender<()>>,
    reports: Vec<CoreReport>,
}

impl<T: Send + 'static> Starting<T> {
    /// Starts one thread and waits until its executor has started. One after the other, so that the first to fail is the one named,
    /// and a complaint that concerns all cores is made by the first.
    fn start_core<B, F>(&mut self, config: ExecutorConfig, on_panic: BodyPanic, body: B) -> Result<(), CoresError>
    where
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let (core, cpu) = (config.core, config.pin_to);
        let (go, gone) = channel();
        let (started, has_started) = channel();
        let run = move || run_core(config, on_panic, &started, &gone, body);
        let thread = spawn_thread(core, run).map_err(|source| CoresError::Thread { core, source })?;
        match has_started.recv() {
            Ok(Ok(driver)) => {
                self.reports.push(CoreReport { core, cpu, driver });
                self.threads.push(thread);
                self.go.push(go);
                Ok(())
            }
            Ok(Err(source)) => Err(CoresError::Start { core, source }),
            Err(_) => unreachable!("a core's thread says how it started, and nothing in there panics"),
        }
    }

    fn go(mut self) -> Cores<T> {
        for go in self.go.drain(..) {
            assert!(go.send(()).is_ok(), "a started core waits for the word");
        }
        Cores { threads: std::mem::take(&mut self.threads), reports: std::mem::take(&mut self.reports) }
    }
}

impl<T> Drop for Starting<T> {
    fn drop(&mut self) {
        self.go.clear();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that makes cores")]
fn spawn_thread<R: Send + 'static>(
    core: CoreId,
    run: impl FnOnce() -> R + Send + 'static,
) -> std::io::Result<JoinHandle<R>> {
    std::thread::Builder::new().name(format!("gristmill-{}", core.0)).spawn(run)
}

/// A core's thread from its first to its last moment.
fn run_core<T, B, F>(
    config: ExecutorConfig,
    on_panic: BodyPanic,
    started: &Sender<Result<&'static str, StartError>>,
    gone: &Receiver<()>,
    body: B,
) -> Result<T, CorePanic>
where
    B: FnOnce() -> F,
    F: Future<Output = T>,
{
    let core = config.core;
    let never_began = || Err(CorePanic { core, message: "never began".to_owned() });
    // Timers of parked threads are late by the slack, 50 µs unless told otherwise. A kernel that refuses leaves it at that.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut executor = match Executor::start(config) {
        Ok(executor) => executor,
        Err(error) => {
            drop(started.send(Err(error)));
            return never_began();
        }
    };
    drop(started.send(Ok(executor.block_on(async { driver_name() }))));
    if gone.recv().is_err() {
        return never_began();
    }
    let run = || executor.block_on(async move { body().await });
    match on_panic {
        BodyPanic::Abort => Ok(abort_on_panic("a core", run)),
        BodyPanic::Report => {
            catch_unwind(AssertUnwindSafe(run)).map_err(|payload| CorePanic { core, message: panic_message(&*payload) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IoChoice;
    use crate::mesh::mesh;

    fn posix(_: CoreId) -> ExecutorConfig {
        ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() }
    }

    #[test]
    fn each_core_runs_its_body_on_its_own_named_thread() {
        let body = |core: CoreId| {
            move || async move {
                assert_eq!(crate::core_id(), core);
                (core, std::thread::current().name().map(str::to_owned))
            }
        };
        let cores = Cores::start(3, BodyPanic::Report, posix, body).expect("threads start");
        assert_eq!(cores.reports().len(), 3);
        assert!(cores.reports().iter().all(|report| report.driver == "posix" && report.cpu.is_none()));
        for (core, outcome) in cores.join().into_iter().enumerate() {
            assert_eq!(outcome, Ok((CoreId(core as u16), Some(format!("gristmill-{core}")))));
        }
    }

    #[test]
    fn a_core_that_cannot_start_is_named_and_no_body_begins() {
        let config = |core: CoreId| ExecutorConfig { pin_to: (core.0 == 2).then_some(1 << 20), ..posix(core) };
        let started = Cores::<()>::start(3, BodyPanic::Report, config, |_| || async { unreachable!("must not begin") });
        let error = started.err().expect("core 2 cannot be pinned there");
        assert!(matches!(error, CoresError::Start { core: CoreId(2), source: StartError::Pin { .. } }), "{error}");
        let none = Cores::<()>::start(0, BodyPanic::Report, posix, |_| || async {});
        assert!(matches!(none.err(), Some(CoresError::Count(0))));
    }

    #[test]
    fn a_panic_ends_its_core_only_when_it_is_to_be_reported() {
        let body = |core: CoreId| move || async move { assert!(core.0 != 1, "core 1 breaks") };
        let outcomes = Cores::start(3, BodyPanic::Report, posix, body).expect("threads start").join();
        assert_eq!(outcomes[0], Ok(()));
        assert_eq!(outcomes[1], Err(CorePanic { core: CoreId(1), message: "core 1 breaks".to_owned() }));
        assert_eq!(outcomes[2], Ok(()));
    }

    #[test]
    fn cores_are_pinned_to_cpus_of_their_own_among_those_allowed() {
        let allowed = allowed_cpus();
        assert!(!allowed.is_empty());
        let cpus: Vec<_> = (0..allowed.len()).map(|core| cpu_for(CoreId(core as u16), allowed.len())).collect();
        assert_eq!(cpus, allowed.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(cpu_for(CoreId(0), allowed.len() + 1), None, "one CPU too few: nobody is pinned");

        let config = |core| ExecutorConfig { pin_to: cpu_for(core, 1), ..posix(core) };
        let cores =
            Cores::start(1, BodyPanic::Report, config, |_| || async { allowed_cpus() }).expect("it may be pinned");
        assert_eq!(cores.reports()[0].cpu, Some(allowed[0]));
        assert_eq!(cores.join(), [Ok(vec![allowed[0]])]);
    }

    #[test]
    fn seats_travel_to_their_cores() {
        let mut seats = mesh::<String>(2, 4).into_iter();
        let body = |core: CoreId| {
            let seat = seats.next().expect("one seat a core");
            move || async move {
                let port = seat.attach();
                let other = CoreId(1 - core.0);
                port.send(other, format!("from {core}")).await.expect("the peer is there");
                port.recv().await
            }
        };
        let outcomes = Cores::start(2, BodyPanic::Report, posix, body).expect("threads start").join();
        assert_eq!(outcomes[0], Ok((CoreId(1), "from core 1".to_owned())));
        assert_eq!(outcomes[1], Ok((CoreId(0), "from core 0".to_owned())));
    }
}
