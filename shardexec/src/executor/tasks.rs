//! Tasks, who is runnable, and how wakers find them.
//!
//! ```text
//!   same thread:   Waker ─► run queue of the task's class            no lock, no atomic, no allocation
//!   other thread:  Waker ─► injection list (mutex) ─► unpark ─► drained into the run queues
//! ```
//!
//! A waker names its task by slot and generation, so that one kept past the task's end wakes nobody. "Same thread" means
//! that the executor which is polling right now is the task's own; anything else, another thread or another executor on
//! this thread, goes through the injection list, which is correct from anywhere.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use super::config::Class;
use super::state;
use crate::driver::Unpark;

/// Tasks alive at once on one executor.
pub const TASKS_MAX: usize = 1 << 20;

/// A task: slab slot and the count of its reuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    pub slot: u32,
    pub generation: u32,
}

/// The future given to `block_on`, which lives on the caller's stack and not in the slab.
pub(crate) const MAIN_TASK: TaskId = TaskId { slot: u32::MAX, generation: 0 };

/// The part of an executor that other threads may touch.
pub(crate) struct Shared {
    injected: Mutex<Vec<Arc<TaskHeader>>>,
    any_injected: AtomicBool,
    unpark: Arc<dyn Unpark>,
}

impl Shared {
    pub fn new(unpark: Arc<dyn Unpark>) -> Arc<Shared> {
        Arc::new(Shared { injected: Mutex::default(), any_injected: AtomicBool::new(false), unpark })
    }

    pub fn unpark_handle(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.unpark)
    }

    /// One relaxed load: cheap enough to ask after every poll.
    pub fn has_injected(&self) -> bool {
        self.any_injected.load(Ordering::Relaxed)
    }

    /// Bounded by the number of tasks: each is in the list at most once.
    fn inject(&self, header: Arc<TaskHeader>) {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner).push(header);
        self.any_injected.store(true, Ordering::Release);
        self.unpark.unpark();
    }

    pub fn take_injected(&self) -> Vec<Arc<TaskHeader>> {
        if !self.any_injected.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.injected.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a task's wakers point to.
pub(crate) struct TaskHeader {
    id: TaskId,
    shared: Arc<Shared>,
    in_injection_list: AtomicBool,
}

impl TaskHeader {
    pub fn waker(id: TaskId, shared: &Arc<Shared>) -> Waker {
        Waker::from(Arc::new(TaskHeader { id, shared: Arc::clone(shared), in_injection_list: AtomicBool::new(false) }))
    }

    /// The task's id, once the header has left the injection list.
    pub fn leave_injection_list(&self) -> TaskId {
        // A swap, not a store: it reads the last waker's swap, so that what this waker wrote before is seen by the poll that follows.
        self.in_injection_list.swap(false, Ordering::AcqRel);
        self.id
    }
}

impl Wake for TaskHeader {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if state::wake_if_local(&self.shared, self.id) {
            return;
        }
        if !self.in_injection_list.swap(true, Ordering::AcqRel) {
            self.shared.inject(Arc::clone(self));
        }
    }
}

/// The join handle's side of a task, whatever the task's type.
pub(crate) trait Join {
    /// The task ended without a value.
    fn fail(&self, error: super::join::JoinError);
}

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What is taken out of the slab while the task is polled.
pub(crate) struct TaskBody {
    pub future: TaskFuture,
    pub waker: Waker,
    pub join: Rc<dyn Join>,
}

struct Slot {
    generation: u32,
    class: Class,
    name: &'static str,
    queued: bool,
    aborted: bool,
    alive: bool,
    body: Option<TaskBody>,
}

/// A task taken out of the slab.
pub(crate) struct Taken {
    pub body: TaskBody,
    pub class: Class,
    pub name: &'static str,
    pub aborted: bool,
}

/// The task slab and the run queues.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
    run_queues: [VecDeque<TaskId>; 3],
    main_queued: bool,
}

impl Tasks {
    pub fn alive(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn runnable(&self, class: Class) -> usize {
        self.run_queues[class.index()].len()
    }

    pub fn any_runnable(&self) -> bool {
        self.run_queues.iter().any(|queue| !queue.is_empty())
    }

    /// Reserves a slot; the body follows in [`Tasks::start`].
    pub fn insert(&mut self, class: Class, name: &'static str) -> TaskId {
        assert!(self.alive() < TASKS_MAX, "more than {TASKS_MAX} tasks: something spawns without bound (now: {name})");
        if let Some(slot) = self.free.pop() {
            let reused = &mut self.slots[slot as usize];
            (reused.class, reused.name, reused.alive) = (class, name, true);
            return TaskId { slot, generation: reused.generation };
        }
        let fresh = Slot { generation: 0, class, name, queued: false, aborted: false, alive: true, body: None };
        self.slots.push(fresh);
        TaskId { slot: self.slots.len() as u32 - 1, generation: 0 }
    }

    pub fn start(&mut self, id: TaskId, body: TaskBody) {
        self.slots[id.slot as usize].body = Some(body);
        self.wake(id);
    }

    /// Makes a task runnable. One that has ended, or is runnable already, is left alone.
    pub fn wake(&mut self, id: TaskId) {
        if id == MAIN_TASK {
            if !self.main_queued {
                self.main_queued = true;
                self.run_queues[Class::Request.index()].push_back(id);
            }
            return;
        }
        let Some(slot) = Self::find(&mut self.slots, id) else { return };
        if !slot.queued {
            slot.queued = true;
            self.run_queues[slot.class.index()].push_back(id);
        }
    }

    /// Takes the `pick`-th runnable task of a class from its queue.
    pub fn pop_runnable(&mut self, class: Class, pick: usize) -> Option<TaskId> {
        let queue = &mut self.run_queues[class.index()];
        let id = if pick == 0 { queue.pop_front() } else { queue.remove(pick) }?;
        if id == MAIN_TASK {
            self.main_queued = false;
        }
        Some(id)
    }

    /// Takes a task out for its poll. `None` when it ended while it was queued.
    pub fn take(&mut self, id: TaskId) -> Option<Taken> {
        let slot = Self::find(&mut self.slots, id)?;
        slot.queued = false;
        let body = slot.body.take()?;
        Some(Taken { body, class: slot.class, name: slot.name, aborted: slot.aborted })
    }

    /// Puts a task back after a poll that left it pending.
    pub fn put_back(&mut self, id: TaskId, body: TaskBody) {
        let slot = &mut self.slots[id.slot as usize];
        debug_assert!(slot.alive && slot.generation == id.generation && slot.body.is_none());
        slot.body = Some(body);
    }

    /// Frees the slot of a task whose body has been taken out for good.
    pub fn remove(&mut self, id: TaskId) {
        let slot = &mut self.slots[id.slot as usize];
        assert!(slot.alive && slot.generation == id.generation && slot.body.is_none(), "a task ends once");
        slot.alive = false;
        slot.aborted = false;
        slot.queued = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
    }

    /// Marks a task to be dropped instead of polled, and makes it runnable for that.
    pub fn abort(&mut self, id: TaskId) {
        if let Some(slot) = Self::find(&mut self.slots, id) {
            slot.aborted = true;
            self.wake(id);
        }
    }

    /// Some task that is alive, for shutting down.
    pub fn any_alive(&self) -> Option<TaskId> {
        let at = self.slots.iter().position(|slot| slot.body.is_some())?;
        Some(TaskId { slot: at as u32, generation: self.slots[at].generation })
    }

    fn find(slots: &mut [Slot], id: TaskId) -> Option<&mut Slot> {
        slots.get_mut(id.slot as usize).filter(|slot| slot.alive && slot.generation == id.generation)
    }
}
