//! The op slab: who waits for which operation, and what must stay alive until the driver is done with it.
//!
//! ```text
//!   free ──submit──► waiting ──completion──► done ──future takes it──► free
//!                      └─ future dropped: cancel ──► abandoned ──last completion──► free
//! ```
//!
//! Invariants
//! - A slot is freed only after the driver's last completion for it; until then it holds the handle that the op uses.
//! - An abandoned op whose completion carries a fresh handle (an accept, a connect, an open) has that handle closed.
//! - At most `op_slots` ops of futures are in flight: a semaphore makes further ones wait, first come first served. Closes
//!   are exempt, because they happen in destructors that cannot wait; the number of open handles bounds them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::state::Core;
use crate::driver::{Completion, Op, OpKey, OpOutput, RawHandle};
use crate::sync::semaphore::Acquire;

/// Results of a multishot op that may wait to be taken; beyond it the op is cancelled and has to be started again.
pub const MULTISHOT_RESULTS_MAX: usize = 1024;

pub(crate) type OpResult = io::Result<OpOutput>;

enum State {
    Free,
    Waiting(Waker),
    Done(OpResult, Op),
    /// The future is gone (or never was): free at the last completion. `true` when it holds a permit of the op limit.
    Abandoned,
    /// A multishot op and the results that nobody has taken yet.
    Stream {
        results: VecDeque<OpResult>,
        waker: Option<Waker>,
        ended: bool,
    },
}

struct Slot {
    generation: u32,
    counted: bool,
    state: State,
    /// Keeps the op's file or socket open.
    handle: Option<Rc<Handle>>,
}

/// What has to happen once the slab is no longer borrowed: every field may run foreign code when dropped or called.
#[derive(Default)]
pub(crate) struct Aftermath {
    pub wake: Option<Waker>,
    pub unused_waker: Option<Waker>,
    pub handle: Option<Rc<Handle>>,
    pub op: Option<Op>,
    pub close: Option<RawHandle>,
    pub cancel: bool,
    pub freed_counted: bool,
}

#[derive(Default)]
pub(crate) struct Ops {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Ops that the driver holds.
    in_driver: usize,
    in_driver_max: usize,
}

impl Ops {
    /// Ops that the driver holds now.
    pub fn in_flight(&self) -> usize {
        self.in_driver
    }

    /// The most ops that the driver ever held together.
    pub fn in_flight_max(&self) -> usize {
        self.in_driver_max
    }

    /// Keys of the ops in flight that a future still waits for.
    pub fn awaited(&self) -> Vec<OpKey> {
        let awaited = |slot: &Slot| match &slot.state {
            State::Waiting(_) => true,
            State::Stream { ended, .. } => !ended,
            State::Free | State::Done(..) | State::Abandoned => false,
        };
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| awaited(slot));
        slots.map(|(at, slot)| OpKey { slot: at as u32, generation: slot.generation }).collect()
    }

    fn insert(&mut self, state: State, handle: Option<Rc<Handle>>, counted: bool) -> OpKey {
        let key = if let Some(slot) = self.free.pop() {
            let reused = &mut self.slots[slot as usize];
            debug_assert!(matches!(reused.state, State::Free));
            (reused.state, reused.handle, reused.counted) = (state, handle, counted);
            OpKey { slot, generation: reused.generation }
        } else {
            self.slots.push(Slot { generation: 0, counted, state, handle });
            OpKey { slot: self.slots.len() as u32 - 1, generation: 0 }
        };
        self.in_driver += 1;
        self.in_driver_max = self.in_driver_max.max(self.in_driver);
        key
    }

    fn free(&mut self, key: OpKey, after: &mut Aftermath) {
        let slot = &mut self.slots[key.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Free;
        after.handle = slot.handle.take();
        after.freed_counted = slot.counted;
        self.free.push(key.slot);
    }

    fn slot(&mut self, key: OpKey) -> &mut Slot {
        let slot = &mut self.slots[key.slot as usize];
        assert_eq!(slot.generation, key.generation, "an op key outlived its op");
        slot
    }

    /// Books a completion.
    pub fn complete(&mut self, completion: Completion) -> Aftermath {
        let Completion { key, op, result, more } = completion;
        if !more {
            self.in_driver -= 1;
        }
        let slot = self.slot(key);
        let mut after = Aftermath::default();
        match &mut slot.state {
            State::Waiting(_) => {
                assert!(!more, "only a multishot op completes more than once");
                let State::Waiting(waker) = std::mem::replace(&mut slot.state, State::Done(result, op)) else {
                    unreachable!("matched above")
                };
                after.wake = Some(waker);
            }
            State::Stream { results, waker, ended } => {
                // Only the slab itself cancels a stream, when too many results wait: that is no result.
                if more || !is_cancelled(&result) {
                    results.push_back(result);
                }
                *ended = !more;
                after.cancel = more && results.len() == MULTISHOT_RESULTS_MAX;
                after.wake = waker.take();
                after.op = Some(op);
            }
            State::Abandoned => {
                after.close = result.ok().as_ref().and_then(fresh_handle);
                after.op = Some(op);
                if !more {
                    self.free(key, &mut after);
                }
            }
            State::Free | State::Done(..) => panic!("the driver completed {key:?} twice"),
        }
        after
    }

    /// The future is gone. Returns whether the driver has to be told.
    fn abandon(&mut self, key: OpKey) -> (bool, Vec<RawHandle>, Aftermath) {
        let slot = self.slot(key);
        let mut after = Aftermath::default();
        let mut unclaimed = Vec::new();
        let running = match std::mem::replace(&mut slot.state, State::Abandoned) {
            State::Waiting(waker) => {
                after.unused_waker = Some(waker);
                true
            }
            State::Done(result, op) => {
                unclaimed.extend(result.ok().as_ref().and_then(fresh_handle));
                after.op = Some(op);
                false
            }
            State::Stream { results, ended, .. } => {
                unclaimed.extend(results.into_iter().flatten().filter_map(|output| fresh_handle(&output)));
                !ended
            }
            State::Free | State::Abandoned => unreachable!("a future abandons its op once"),
        };
        if !running {
            self.free(key, &mut after);
        }
        (running, unclaimed, after)
    }
}

fn is_cancelled(result: &OpResult) -> bool {
    let cancelled = rustix::io::Errno::CANCELED.raw_os_error();
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(cancelled))
}

/// The handle that an output brought into being.
fn fresh_handle(output: &OpOutput) -> Option<RawHandle> {
    match output {
        OpOutput::Opened { file: handle, .. }
        | OpOutput::Listening { listener: handle, .. }
        | OpOutput::Accepted { socket: handle, .. }
        | OpOutput::Connected { socket: handle, .. } => Some(*handle),
        OpOutput::Done
        | OpOutput::Count(_)
        | OpOutput::Metadata(_)
        | OpOutput::Entries(_)
        | OpOutput::FileSystem(_)
        | OpOutput::Offloaded(_) => None,
    }
}

/// An open file or socket; closed through the driver when the last reference goes, in-flight ops included.
pub(crate) struct Handle {
    core: Rc<Core>,
    raw: RawHandle,
}

impl Handle {
    pub fn new(core: Rc<Core>, raw: RawHandle) -> Rc<Handle> {
        Rc::new(Handle { core, raw })
    }

    pub fn raw(&self) -> RawHandle {
        self.raw
    }

    pub fn core(&self) -> &Rc<Core> {
        &self.core
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.close_handle(self.raw);
    }
}

/// One operation as a future. Dropping it in flight cancels the op.
pub(crate) struct OpFuture {
    core: Rc<Core>,
    handle: Option<Rc<Handle>>,
    stage: Stage,
}

enum Stage {
    New(Option<Op>),
    AwaitingSlot(Op, Acquire),
    InFlight(OpKey),
    Finished,
}

impl OpFuture {
    /// `handle`: the file or socket that `op` uses.
    pub fn new(core: Rc<Core>, handle: Option<Rc<Handle>>, op: Op) -> OpFuture {
        OpFuture { core, handle, stage: Stage::New(Some(op)) }
    }

    /// An op on `handle`.
    pub fn on(handle: &Rc<Handle>, op: Op) -> OpFuture {
        OpFuture::new(Rc::clone(handle.core()), Some(Rc::clone(handle)), op)
    }

    fn submit(&mut self, op: Op, cx: &Context<'_>) -> Poll<(OpResult, Op)> {
        let key = self.core.submit(op, |ops| ops.insert(State::Waiting(cx.waker().clone()), self.handle.take(), true));
        self.stage = Stage::InFlight(key);
        Poll::Pending
    }

    fn poll_in_flight(&mut self, key: OpKey, cx: &Context<'_>) -> Poll<(OpResult, Op)> {
        let mut ops = self.core.ops.borrow_mut();
        let slot = ops.slot(key);
        match &mut slot.state {
            State::Waiting(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            State::Done(..) => {
                let State::Done(result, op) = std::mem::replace(&mut slot.state, State::Free) else {
                    unreachable!("matched above")
                };
                let mut after = Aftermath::default();
                ops.free(key, &mut after);
                drop(ops);
                self.stage = Stage::Finished;
                self.core.settle(after);
                Poll::Ready((result, op))
            }
            State::Free | State::Abandoned | State::Stream { .. } => unreachable!("the future owns its op"),
        }
    }
}

impl Future for OpFuture {
    type Output = (OpResult, Op);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match &mut this.stage {
            Stage::New(op) => {
                let op = op.take().expect("an op future starts once");
                if this.core.op_permits.try_take() {
                    return this.submit(op, cx);
                }
                this.stage = Stage::AwaitingSlot(op, this.core.op_permits.acquire());
                self.poll(cx)
            }
            Stage::AwaitingSlot(_, acquire) => {
                let Poll::Ready(permit) = Pin::new(acquire).poll(cx) else { return Poll::Pending };
                permit.expect("the op limit is never closed").forget();
                let Stage::AwaitingSlot(op, _) = std::mem::replace(&mut this.stage, Stage::Finished) else {
                    unreachable!("matched above")
                };
                this.submit(op, cx)
            }
            Stage::InFlight(key) => {
                let key = *key;
                this.poll_in_flight(key, cx)
            }
            Stage::Finished => panic!("an op future was polled after its end"),
        }
    }
}

impl Drop for OpFuture {
    fn drop(&mut self) {
        if let Stage::InFlight(key) = self.stage {
            self.core.abandon(key);
        }
    }
}

/// A multishot op: armed once, gives many results. Falls back to one result per arming where the driver wants it so.
pub(crate) struct OpStream {
    core: Rc<Core>,
    key: Option<OpKey>,
}

impl OpStream {
    pub fn new(core: Rc<Core>) -> OpStream {
        OpStream { core, key: None }
    }

    /// The next result. Arms the op when it is not; `op` is called for that.
    pub fn poll_next(&mut self, handle: &Rc<Handle>, op: impl FnOnce() -> Op, cx: &Context<'_>) -> Poll<OpResult> {
        if let Some(key) = self.key {
            let mut ops = self.core.ops.borrow_mut();
            let State::Stream { results, waker, ended } = &mut ops.slot(key).state else {
                unreachable!("the stream owns its op")
            };
            if let Some(result) = results.pop_front() {
                return Poll::Ready(result);
            }
            if !*ended {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            drop(ops);
            self.disarm();
        }
        let state = State::Stream { results: VecDeque::new(), waker: Some(cx.waker().clone()), ended: false };
        self.key = Some(self.core.submit(op(), |ops| ops.insert(state, Some(Rc::clone(handle)), false)));
        Poll::Pending
    }

    fn disarm(&mut self) {
        if let Some(key) = self.key.take() {
            self.core.abandon(key);
        }
    }
}

impl Drop for OpStream {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl Core {
    fn submit(&self, op: Op, insert: impl FnOnce(&mut Ops) -> OpKey) -> OpKey {
        let key = insert(&mut self.ops.borrow_mut());
        self.driver.borrow_mut().submit(key, op);
        key
    }

    /// Closes a handle that nothing uses any more. Nobody waits for it.
    pub(super) fn close_handle(&self, raw: RawHandle) {
        self.submit(Op::Close { handle: raw }, |ops| ops.insert(State::Abandoned, None, false));
        if self.is_shut_down() {
            self.drain_ops(); // Nobody else polls the driver any more.
        }
    }

    fn abandon(&self, key: OpKey) {
        let (running, unclaimed, after) = self.ops.borrow_mut().abandon(key);
        if running {
            self.driver.borrow_mut().cancel(key);
        }
        for handle in unclaimed {
            self.close_handle(handle);
        }
        self.settle(after);
    }

    /// Does what a change of the slab entails, with nothing borrowed.
    pub(super) fn settle(&self, after: Aftermath) {
        if after.freed_counted {
            self.op_permits.release();
        }
        if let Some(waker) = after.wake {
            waker.wake();
        }
        if let Some(handle) = after.close {
            self.close_handle(handle);
        }
        drop((after.handle, after.op, after.unused_waker));
    }

    /// Books a driver's completion.
    pub(super) fn complete(&self, completion: Completion) {
        let key = completion.key;
        let after = self.ops.borrow_mut().complete(completion);
        if after.cancel {
            self.driver.borrow_mut().cancel(key);
        }
        self.settle(after);
    }
}
