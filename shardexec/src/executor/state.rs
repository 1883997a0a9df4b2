//! One executor's state, and the pointer through which futures find it.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::config::{Class, ExecutorConfig, TaskOrder};
use super::join::{JoinError, JoinHandle, JoinState};
use super::ops::Ops;
use super::spin::Spinner;
use super::stall::{ExecutorStats, INCIDENTS_MAX, Incident, Stalls};
use super::tasks::{Shared, Taken, TaskBody, TaskId, Tasks};
use super::timers::Timers;
use crate::driver::{Completion, Driver, Wait, panic_message};
use crate::panic::abort_on_panic;
use crate::sync::Notify;
use crate::sync::semaphore::Semaphore;
use crate::time::Instant;

/// While tasks keep the core busy, the driver is polled this often.
const IO_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// While tasks keep the core busy, sources are polled once in this many task polls.
const SOURCE_STRIDE: u32 = 8;

/// Something beside the driver that brings work to this core: queues that other cores fill.
///
/// A spinning core polls its sources continuously and thus sees what came without any system call. Before it parks it announces
/// that; whoever then fills a queue has to unpark it (see [`Bell`](crate::mesh::bell::Bell)).
pub(crate) trait Source {
    /// Wakes the tasks that can go on.
    fn poll(&self);
    /// Makes fillers unpark this core from now on. False: there is already something for [`Source::poll`] to do.
    fn announce_park(&self) -> bool;
    /// The core is awake again.
    fn withdraw_park(&self);
}

thread_local! {
    /// The executor that is polling on this thread right now.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Runs `f` with the current executor.
///
/// # Panics
/// Outside an executor: a bug of the caller.
#[track_caller]
pub(crate) fn with_current<R>(f: impl FnOnce(&Rc<Core>) -> R) -> R {
    CURRENT.with_borrow(|current| match current {
        Some(core) => f(core),
        None => panic!("called outside an executor: only tasks and the future given to block_on may do this"),
    })
}

/// The current executor.
#[track_caller]
pub(crate) fn current() -> Rc<Core> {
    with_current(Rc::clone)
}

/// Wakes a task of the current executor; false when `shared` belongs to another one.
pub(super) fn wake_if_local(shared: &Arc<Shared>, id: TaskId) -> bool {
    CURRENT
        .try_with(|current| {
            let current = current.borrow();
            let Some(core) = current.as_ref().filter(|core| Arc::ptr_eq(&core.shared, shared)) else { return false };
            core.tasks.borrow_mut().wake(id);
            true
        })
        .unwrap_or(false)
}

/// Makes `core` the current executor while it lives.
pub(super) struct Entered {
    before: Option<Rc<Core>>,
}

impl Entered {
    pub fn enter(core: &Rc<Core>) -> Entered {
        Entered { before: CURRENT.replace(Some(Rc::clone(core))) }
    }

    /// True when the thread was already inside an executor.
    pub fn is_nested(&self) -> bool {
        self.before.is_some()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// What the loop does next.
pub(super) enum Next {
    Task(TaskId, Class),
    Nothing,
}

pub(crate) struct Core {
    pub config: ExecutorConfig,
    pub driver_name: &'static str,
    pub driver: RefCell<Box<dyn Driver>>,
    pub shared: Arc<Shared>,
    pub tasks: RefCell<Tasks>,
    pub timers: RefCell<Timers>,
    pub ops: RefCell<Ops>,
    pub op_permits: Semaphore,
    pub spinner: RefCell<Spinner>,
    sources: RefCell<Vec<Weak<dyn Source>>>,
    polls_since_sources: Cell<u32>,
    completions: RefCell<Vec<Completion>>,
    /// The last reading of the budget clock.
    now: Cell<Instant>,
    io_polled_at: Cell<Instant>,
    /// The earliest armed deadline or something earlier.
    next_deadline: Cell<Instant>,
    poll_started: Cell<Instant>,
    poll_class: Cell<Class>,
    budget_left_ns: [Cell<u64>; 3],
    polls: [Cell<u64>; 3],
    busy_ns: [Cell<u64>; 3],
    panics: Cell<u64>,
    last_panic: RefCell<Option<String>>,
    pub parks: Cell<u64>,
    stalls: RefCell<Stalls>,
    incidents: RefCell<VecDeque<Incident>>,
    /// There is an incident to fetch.
    pub incident: Notify,
    shut_down: Cell<bool>,
}

impl Core {
    pub fn new(driver: Box<dyn Driver>, config: ExecutorConfig) -> Rc<Core> {
        assert!(config.op_slots > 0, "an executor needs at least one op slot");
        let now = driver.now();
        Rc::new(Core {
            driver_name: driver.name(),
            shared: Shared::new(driver.unparker()),
            driver: RefCell::new(driver),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            ops: RefCell::default(),
            op_permits: Semaphore::new(config.op_slots),
            spinner: RefCell::new(Spinner::new(config.spin)),
            sources: RefCell::default(),
            polls_since_sources: Cell::new(0),
            completions: RefCell::default(),
            now: Cell::new(now),
            io_polled_at: Cell::new(now),
            next_deadline: Cell::new(Instant::MAX),
            poll_started: Cell::new(now),
            poll_class: Cell::new(Class::Request),
            budget_left_ns: Default::default(),
            polls: Default::default(),
            busy_ns: Default::default(),
            panics: Cell::new(0),
            last_panic: RefCell::default(),
            parks: Cell::new(0),
            stalls: RefCell::default(),
            incidents: RefCell::default(),
            incident: Notify::new(),
            shut_down: Cell::new(false),
            config,
        })
    }

    /// The monotonic clock, read afresh.
    pub fn clock(&self) -> Instant {
        self.driver.borrow().now()
    }

    /// The loop's last clock reading: not later than now, at most one poll old.
    pub fn loop_time(&self) -> Instant {
        self.now.get()
    }

    pub fn spawn<F>(self: &Rc<Self>, class: Class, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let state = JoinState::new();
        let id = self.tasks.borrow_mut().insert(class, name);
        let finish = Rc::clone(&state);
        let body = TaskBody {
            future: Box::pin(async move { finish.finish(Ok(future.await)) }),
            waker: super::tasks::TaskHeader::waker(id, &self.shared),
            join: Rc::clone(&state) as Rc<dyn super::tasks::Join>,
        };
        self.tasks.borrow_mut().start(id, body);
        JoinHandle::new(state, id, Rc::clone(self))
    }

    pub fn abort_task(&self, id: TaskId) {
        self.tasks.borrow_mut().abort(id);
    }

    /// Polls `source` from now on, until its last owner drops it.
    pub fn add_source(&self, source: Weak<dyn Source>) {
        self.sources.borrow_mut().push(source);
    }

    /// Whether the running poll has used up the slice of its class.
    pub fn slice_spent(&self) -> bool {
        let now = self.driver.borrow_mut().budget_clock();
        // Half the stall threshold at most: whoever yields when told to is never reported.
        let slice = self.config.slices.of(self.poll_class.get()).min(self.config.stall_threshold / 2);
        now - self.poll_started.get() >= slice
    }

    pub fn arm_timer(&self, deadline: Instant, waker: std::task::Waker) -> super::timers::TimerKey {
        if deadline < self.next_deadline.get() {
            self.next_deadline.set(deadline);
        }
        self.timers.borrow_mut().arm(deadline, waker)
    }

    /// Picks the next task: the most urgent class that has work and budget; refills budgets when only spent classes have work.
    pub(super) fn next(&self) -> Next {
        let mut tasks = self.tasks.borrow_mut();
        for round in 0..2 {
            for class in Class::ALL {
                let runnable = tasks.runnable(class);
                if runnable == 0 || self.budget_left_ns[class.index()].get() == 0 {
                    continue;
                }
                let pick = match self.config.task_order {
                    TaskOrder::Fifo => 0,
                    TaskOrder::DriverPicks => self.driver.borrow_mut().pick_task(runnable),
                };
                let id = tasks.pop_runnable(class, pick).expect("the driver picks below the number of runnable tasks");
                return Next::Task(id, class);
            }
            if !tasks.any_runnable() || round == 1 {
                break;
            }
            for class in Class::ALL {
                let slice = self.config.slices.of(class).as_nanos() as u64;
                self.budget_left_ns[class.index()].set(slice.max(1));
            }
        }
        Next::Nothing
    }

    /// Polls one task and deals with its end, whichever it is.
    pub(super) fn poll_task(&self, id: TaskId) {
        let Some(Taken { mut body, class, name, aborted }) = self.tasks.borrow_mut().take(id) else { return };
        if aborted {
            self.tasks.borrow_mut().remove(id);
            self.end_task(body, Some(JoinError::Aborted));
            return;
        }
        self.poll_begins(class);
        let outcome =
            catch_unwind(AssertUnwindSafe(|| body.future.as_mut().poll(&mut Context::from_waker(&body.waker))));
        self.poll_ended(class, name);
        match outcome {
            Ok(Poll::Pending) => self.tasks.borrow_mut().put_back(id, body),
            Ok(Poll::Ready(())) => {
                self.tasks.borrow_mut().remove(id);
                self.end_task(body, None);
            }
            Err(payload) => {
                let message = self.book_panic(&*payload);
                self.tasks.borrow_mut().remove(id);
                self.note(Incident::Panic { task: name, message: message.clone() });
                self.end_task(body, Some(JoinError::Panicked(message)));
            }
        }
    }

    /// Drops a task's future, which may itself panic, and tells the join handle.
    fn end_task(&self, body: TaskBody, error: Option<JoinError>) {
        let TaskBody { future, waker, join } = body;
        let dropped = catch_unwind(AssertUnwindSafe(move || drop((future, waker))));
        if let Err(payload) = dropped {
            join.fail(JoinError::Panicked(self.book_panic(&*payload)));
        }
        if let Some(error) = error {
            join.fail(error);
        }
    }

    fn book_panic(&self, payload: &(dyn std::any::Any + Send)) -> String {
        let message = panic_message(payload);
        self.panics.set(self.panics.get() + 1);
        self.last_panic.replace(Some(message.clone()));
        message
    }

    pub fn panics(&self) -> u64 {
        self.panics.get()
    }

    pub fn last_panic(&self) -> Option<String> {
        self.last_panic.borrow().clone()
    }

    pub(super) fn poll_begins(&self, class: Class) {
        self.poll_started.set(self.now.get());
        self.poll_class.set(class);
    }

    /// Charges the poll to its class and notes a stall.
    pub(super) fn poll_ended(&self, class: Class, name: &'static str) {
        let now = self.read_budget_clock();
        let held = now - self.poll_started.get();
        let held_ns = held.as_nanos() as u64;
        let at = class.index();
        self.polls[at].set(self.polls[at].get() + 1);
        self.busy_ns[at].set(self.busy_ns[at].get() + held_ns);
        self.budget_left_ns[at].set(self.budget_left_ns[at].get().saturating_sub(held_ns));
        if held > self.config.stall_threshold {
            let worth_telling = self.stalls.borrow_mut().record(name, class, held);
            if worth_telling {
                self.note(Incident::Stall { task: name, class, held });
            }
        }
    }

    /// Keeps an incident until it is fetched, if there is room for it.
    pub(super) fn note(&self, incident: Incident) {
        let mut incidents = self.incidents.borrow_mut();
        if incidents.len() < INCIDENTS_MAX {
            incidents.push_back(incident);
            self.incident.notify_one();
        }
    }

    pub(super) fn take_incident(&self) -> Option<Incident> {
        self.incidents.borrow_mut().pop_front()
    }

    /// Brings [`Core::loop_time`] up to date.
    pub(super) fn read_budget_clock(&self) -> Instant {
        let now = self.driver.borrow_mut().budget_clock();
        self.now.set(now);
        now
    }

    /// Between two task polls: due timers always, wake-ups from other threads always, I/O and sources every so often.
    pub(super) fn between_polls(&self) {
        let now = self.now.get();
        if now >= self.next_deadline.get() {
            self.fire_timers(now);
        }
        if self.shared.has_injected() {
            self.drain_injected();
        }
        let polls = self.polls_since_sources.get() + 1;
        self.polls_since_sources.set(polls);
        if polls >= SOURCE_STRIDE {
            self.poll_sources();
        }
        if now - self.io_polled_at.get() >= IO_POLL_INTERVAL {
            self.poll_driver(Wait::NoWait);
        }
    }

    /// Looks everywhere for work without waiting. Afterwards the clock reading is fresh.
    pub(super) fn look_for_work(&self) {
        self.drain_injected();
        self.poll_sources();
        self.poll_driver(Wait::NoWait);
    }

    pub(super) fn poll_sources(&self) {
        self.polls_since_sources.set(0);
        self.for_each_source(|source| source.poll());
    }

    /// Tells the sources that this core is about to park. False: one of them has work.
    pub(super) fn announce_park(&self) -> bool {
        self.sources.borrow_mut().retain(|source| source.strong_count() > 0);
        let mut idle = true;
        self.for_each_source(|source| idle &= source.announce_park());
        if !idle {
            self.withdraw_park();
        }
        idle
    }

    pub(super) fn withdraw_park(&self) {
        self.for_each_source(|source| source.withdraw_park());
    }

    fn for_each_source(&self, mut visit: impl FnMut(&dyn Source)) {
        let count = self.sources.borrow().len();
        for at in 0..count {
            // Not borrowed during the visit, so that it may add another source.
            let source = self.sources.borrow()[at].upgrade();
            if let Some(source) = source {
                visit(&*source);
            }
        }
    }

    pub(super) fn drain_injected(&self) {
        for header in self.shared.take_injected() {
            let id = header.leave_injection_list();
            self.tasks.borrow_mut().wake(id);
        }
    }

    fn fire_timers(&self, now: Instant) {
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { break };
            waker.wake();
        }
        self.next_deadline.set(self.timers.borrow_mut().next_deadline());
    }

    /// The deadline to park until.
    pub(super) fn park_deadline(&self) -> Option<Instant> {
        let next = self.timers.borrow_mut().next_deadline();
        self.next_deadline.set(next);
        (next != Instant::MAX).then_some(next)
    }

    pub(super) fn poll_driver(&self, wait: Wait) {
        let mut completions = self.completions.take();
        self.driver.borrow_mut().poll(wait, &mut completions);
        abort_on_panic("the executor's op slab", || {
            for completion in completions.drain(..) {
                self.complete(completion);
            }
        });
        self.completions.replace(completions);
        let now = self.read_budget_clock();
        self.io_polled_at.set(now);
        if now >= self.next_deadline.get() {
            self.fire_timers(now);
        }
    }

    pub(super) fn has_runnable(&self) -> bool {
        self.tasks.borrow().any_runnable()
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.shut_down.get()
    }

    /// Drops every task, then waits until the driver has handed back every op.
    pub(super) fn shut_down(&self) {
        loop {
            let Some(id) = self.tasks.borrow().any_alive() else { break };
            let Some(taken) = self.tasks.borrow_mut().take(id) else { break };
            self.tasks.borrow_mut().remove(id);
            self.end_task(taken.body, Some(JoinError::Aborted));
        }
        self.sources.take();
        let awaited = self.ops.borrow().awaited();
        for key in awaited {
            self.driver.borrow_mut().cancel(key);
        }
        self.drain_ops();
        self.shut_down.set(true);
    }

    pub(super) fn drain_ops(&self) {
        while self.ops.borrow().in_flight() > 0 {
            self.poll_driver(Wait::Until(None));
        }
    }

    pub fn stats(&self) -> ExecutorStats {
        let spinner = self.spinner.borrow();
        let stalls = self.stalls.borrow();
        let ops = self.ops.borrow();
        ExecutorStats {
            polls: self.polls.each_ref().map(Cell::get),
            busy: self.busy_ns.each_ref().map(|ns| Duration::from_nanos(ns.get())),
            panics: self.panics.get(),
            tasks_alive: self.tasks.borrow().alive(),
            timers_armed: self.timers.borrow().live(),
            ops_in_flight: ops.in_flight(),
            ops_in_flight_max: ops.in_flight_max(),
            parks: self.parks.get(),
            spins_won: spinner.won,
            spins_suspended: spinner.suspended,
            stalls: stalls.count,
            stall_longest: stalls.longest,
            stalled: stalls.by_name.clone(),
        }
    }
}
