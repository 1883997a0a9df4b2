//! The executor: one per core, polling `!Send` tasks in three classes.
//!
//! ```text
//!   block_on ─► pick a task (class with work and budget) ─► poll it (panics caught, time charged, stalls noted)
//!                 ▲                                              │
//!                 │   due timers, wake-ups from other threads ◄──┘  after every poll
//!                 │   driver completions, sources                   every 50 µs while busy, always when idle
//!                 └── nothing runnable: spin within the budget, then park in the driver until the next deadline
//! ```
//!
//! Invariants
//! - Timers are checked after every task poll, so a sleep is late by at most one poll, whatever the load.
//! - A panic in a task ends that task only; its join handle tells. State shared between tasks must use
//!   [`abort_on_panic`](crate::panic::abort_on_panic) when a panic could leave it half changed.
//! - Dropping an executor drops its tasks, cancels their operations and waits for the driver to hand every buffer back.
//!
//! Limits: [`TASKS_MAX`], [`TIMERS_MAX`], `op_slots` of the [`ExecutorConfig`], [`MULTISHOT_RESULTS_MAX`].
#![forbid(unsafe_code)]

mod config;
mod join;
pub(crate) mod ops;
mod spin;
mod stall;
pub(crate) mod state;
mod tasks;
pub(crate) mod timers;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use config::{
    Class, ExecutorConfig, IoChoice, OP_SLOTS_DEFAULT, SPIN_BUDGET_PINNED, STALL_THRESHOLD_DEFAULT, Slices, SpinPolicy,
    TaskOrder,
};
pub use join::{JoinError, JoinHandle};
pub use ops::MULTISHOT_RESULTS_MAX;
pub use stall::{ExecutorStats, INCIDENTS_MAX, Incident, STALL_NAMES_MAX, StallReport};
use state::{Core, Entered, Next};
pub use tasks::TASKS_MAX;
use tasks::{MAIN_TASK, TaskHeader};
pub use timers::TIMERS_MAX;

use crate::driver::{Driver, Unpark, Wait, select};
use crate::time::Instant;

/// Looks at the wake-up flag between two looks at the driver while spinning.
const SPIN_CHECKS: u32 = 32;

/// Name under which the future of [`Executor::block_on`] appears in stall reports.
const MAIN_NAME: &str = "block_on";

/// Why an executor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread could not be pinned.
    #[error("cannot pin {core} to CPU {cpu}: {source}; choose a CPU that this process may use (see `taskset -p`)")]
    Pin {
        /// The executor.
        core: crate::CoreId,
        /// The CPU asked for.
        cpu: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// `IoChoice::Uring` on a machine where it cannot be had.
    #[error("io_uring is not available: {0}; {cure}, or start with `--io posix`", cure = .0.cure())]
    UringUnavailable(crate::uring::Refusal),
    /// The driver could not get its descriptors.
    #[error("cannot start the {driver} driver: {source}; check the limit on open files (`ulimit -n`)")]
    Driver {
        /// The driver.
        driver: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What [`Executor::run_for`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// More tasks are runnable.
    Runnable,
    /// Nothing to do before a completion, a wake-up, or this deadline.
    Idle(Option<Instant>),
}

/// A single-threaded executor over one driver.
pub struct Executor {
    core: Rc<Core>,
}

impl Executor {
    /// Starts on the calling thread with a production driver, pinning the thread if the configuration says so.
    pub fn start(config: ExecutorConfig) -> Result<Executor, StartError> {
        if let Some(cpu) = config.pin_to {
            pin_thread(cpu).map_err(|source| StartError::Pin { core: config.core, cpu, source })?;
        }
        let (driver, fallback) = select::start(&config)?;
        let executor = Executor::with_driver(driver, config);
        if let Some(reason) = fallback {
            executor.core.note(Incident::Fallback { driver: executor.core.driver_name, reason });
        }
        Ok(executor)
    }

    /// An executor over a driver of the caller's: simulation, tests.
    pub fn with_driver(driver: Box<dyn Driver>, config: ExecutorConfig) -> Executor {
        Executor { core: Core::new(driver, config) }
    }

    /// Spawns a task from outside.
    pub fn spawn<F>(&mut self, class: Class, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.core.spawn(class, name, future)
    }

    /// Runs until `future` is ready, and all tasks beside it meanwhile. Tasks that have not ended by then stay, and go on in
    /// the next call. A panic of `future` itself passes through.
    ///
    /// # Panics
    /// Within a task: a core runs one executor at a time.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let core = &self.core;
        let entered = Entered::enter(core);
        assert!(!entered.is_nested(), "block_on within a task: await the future instead");
        let mut future = pin!(future);
        let waker = TaskHeader::waker(MAIN_TASK, &core.shared);
        let mut cx = Context::from_waker(&waker);
        core.tasks.borrow_mut().wake(MAIN_TASK);
        loop {
            match core.next() {
                Next::Task(MAIN_TASK, class) => {
                    core.poll_begins(class);
                    let outcome = future.as_mut().poll(&mut cx);
                    core.poll_ended(class, MAIN_NAME);
                    if let Poll::Ready(output) = outcome {
                        return output;
                    }
                }
                Next::Task(id, _) => core.poll_task(id),
                Next::Nothing => {
                    wait_for_work(core);
                    continue;
                }
            }
            core.between_polls();
        }
    }

    /// Polls up to `polls_max` runnable tasks and never waits: the building block of a simulation, where many executors take
    /// turns on one thread.
    ///
    /// # Panics
    /// Within a task.
    pub fn run_for(&mut self, polls_max: u32) -> Pause {
        let core = &self.core;
        let entered = Entered::enter(core);
        assert!(!entered.is_nested(), "run_for within a task");
        core.withdraw_park();
        core.look_for_work();
        for _ in 0..polls_max {
            let Next::Task(id, _) = core.next() else {
                core.look_for_work();
                if core.has_runnable() || !core.announce_park() {
                    continue;
                }
                return Pause::Idle(core.park_deadline());
            };
            core.poll_task(id);
            core.between_polls();
        }
        Pause::Runnable
    }

    /// Counters since the start.
    pub fn stats(&self) -> ExecutorStats {
        self.core.stats()
    }

    /// Task polls that ended in a panic, caught.
    pub fn panics(&self) -> u64 {
        self.core.panics()
    }

    /// The text of the last of them.
    pub fn last_panic(&self) -> Option<String> {
        self.core.last_panic()
    }

    /// Ends the executor's wait for work from any thread.
    pub fn unparker(&self) -> Arc<dyn Unpark> {
        self.core.shared.unpark_handle()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _entered = Entered::enter(&self.core);
        self.core.shut_down();
    }
}

fn pin_thread(cpu: usize) -> std::io::Result<()> {
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Spins, then parks. Without spinning the driver is asked only once, by the poll that waits: what has been submitted and the
/// wait go to the kernel together.
fn wait_for_work(core: &Core) {
    core.drain_injected();
    core.poll_sources();
    if core.has_runnable() {
        return;
    }
    let budget = core.spinner.borrow().budget(core.loop_time());
    if !budget.is_zero() && spin(core, budget) {
        return;
    }
    if core.announce_park() {
        core.parks.set(core.parks.get() + 1);
        core.poll_driver(Wait::Until(core.park_deadline()));
        core.withdraw_park();
        core.drain_injected();
    }
    core.poll_sources();
}

/// True when work turned up within `budget`.
fn spin(core: &Core, budget: Duration) -> bool {
    let began = core.loop_time();
    let mut looked = began;
    loop {
        // Sources first: what they bring is awaited within nanoseconds, and to look everywhere takes many of them.
        for _ in 0..SPIN_CHECKS {
            core.poll_sources();
            if core.has_runnable() || core.shared.has_injected() {
                break;
            }
            std::hint::spin_loop();
        }
        if core.has_runnable() {
            core.read_budget_clock();
        } else {
            core.look_for_work();
        }
        let now = core.loop_time();
        if core.has_runnable() {
            core.spinner.borrow_mut().found_work(now);
            return true;
        }
        if !core.spinner.borrow_mut().looked(looked, now) {
            return false;
        }
        if now - began >= budget {
            core.spinner.borrow_mut().lost(now);
            return false;
        }
        looked = now;
    }
}

/// Spawns a task on the current executor. `name` appears in stall reports.
///
/// # Panics
/// Outside an executor.
#[track_caller]
pub fn spawn<F>(class: Class, name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    state::current().spawn(class, name, future)
}

/// Lets every other runnable task of the class go first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Yields when the running poll has used up the slice of its class (or half the stall threshold). Long loops call it every few microseconds of work; each
/// call reads the clock once (about 25 ns).
pub async fn yield_if_spent() {
    if slice_spent() {
        yield_now().await;
    }
}

/// Whether the running poll has used up the slice of its class: for synchronous code that can stop half-way.
///
/// # Panics
/// Outside an executor.
pub fn slice_spent() -> bool {
    state::with_current(|core| core.slice_spent())
}

/// `uring`, `posix` or `sim`.
///
/// # Panics
/// Outside an executor.
pub fn driver_name() -> &'static str {
    state::with_current(|core| core.driver_name)
}

/// The current executor's core.
///
/// # Panics
/// Outside an executor.
pub fn core_id() -> crate::CoreId {
    state::with_current(|core| core.config.core)
}

/// Counters of the current executor.
///
/// # Panics
/// Outside an executor.
pub fn executor_stats() -> ExecutorStats {
    state::with_current(|core| core.stats())
}

/// Tells whoever runs the node one line: stderr in production, the trace in a simulation.
///
/// # Panics
/// Outside an executor.
pub fn tell(line: fmt::Arguments<'_>) {
    state::with_current(|core| core.driver.borrow_mut().tell(line));
}

/// Waits for the next stall, panic or fallback of the current executor, each told once. At most [`INCIDENTS_MAX`] wait to be
/// fetched.
///
/// # Panics
/// Outside an executor.
pub async fn next_incident() -> Incident {
    let core = state::current();
    loop {
        if let Some(incident) = core.take_incident() {
            return incident;
        }
        core.incident.notified().await;
    }
}

/// Ends the current executor's wait for work from any thread.
///
/// # Panics
/// Outside an executor.
pub fn unparker() -> Arc<dyn Unpark> {
    state::with_current(|core| core.shared.unpark_handle())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod ops_tests;
