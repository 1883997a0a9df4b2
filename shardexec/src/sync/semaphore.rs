//! A counting semaphore, first come first served. Every other primitive that queues tasks is built on it.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Hands out permits in the order of asking. A clone shares the same permits.
#[derive(Clone)]
pub struct Semaphore {
    inner: Rc<Inner>,
}

struct Inner {
    /// Permits that are neither held nor granted to a waiter.
    free: Cell<usize>,
    closed: Cell<bool>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    state: Cell<WaitState>,
    waker: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitState {
    Waiting,
    Granted,
    /// The semaphore closed before a permit came free.
    Refused,
    /// Its future was dropped.
    Gone,
}

/// The semaphore was closed: no more permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the semaphore is closed")]
pub struct Closed;

impl Semaphore {
    /// A semaphore with `permits` permits.
    pub fn new(permits: usize) -> Semaphore {
        let inner = Inner { free: Cell::new(permits), closed: Cell::new(false), waiters: RefCell::default() };
        Semaphore { inner: Rc::new(inner) }
    }

    /// Permits that nobody holds. Zero while anyone waits.
    pub fn available(&self) -> usize {
        self.inner.free.get()
    }

    /// A permit, unless none is free.
    pub fn try_acquire(&self) -> Option<Permit> {
        self.try_take().then(|| Permit { semaphore: Some(self.clone()) })
    }

    /// Takes a permit for good, to be given back by [`Semaphore::release`]. False when none is free.
    pub fn try_take(&self) -> bool {
        let free = self.inner.free.get();
        if free == 0 || self.inner.closed.get() {
            return false;
        }
        self.inner.free.set(free - 1);
        true
    }

    /// Waits for a permit. Dropping the future gives up its place in the queue.
    pub fn acquire(&self) -> Acquire {
        Acquire { semaphore: self.clone(), waiter: None }
    }

    /// Adds a permit: a new one, or one that was [forgotten](Permit::forget) before.
    pub fn release(&self) {
        while let Some(waiter) = self.pop_waiter() {
            if waiter.state.get() == WaitState::Waiting {
                waiter.tell(WaitState::Granted);
                return;
            }
        }
        self.inner.free.set(self.inner.free.get() + 1);
    }

    /// Refuses everyone who waits and everyone who comes.
    pub fn close(&self) {
        self.inner.closed.set(true);
        while let Some(waiter) = self.pop_waiter() {
            if waiter.state.get() == WaitState::Waiting {
                waiter.tell(WaitState::Refused);
            }
        }
    }

    /// True after [`Semaphore::close`].
    pub fn is_closed(&self) -> bool {
        self.inner.closed.get()
    }

    /// A function of its own so that no borrow outlives it: wakers may run foreign code.
    fn pop_waiter(&self) -> Option<Rc<Waiter>> {
        self.inner.waiters.borrow_mut().pop_front()
    }
}

impl Waiter {
    fn tell(&self, state: WaitState) {
        self.state.set(state);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// One permit; dropping it gives it back.
pub struct Permit {
    semaphore: Option<Semaphore>,
}

impl Permit {
    /// Keeps the permit out until someone calls [`Semaphore::release`].
    pub fn forget(mut self) {
        self.semaphore = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(semaphore) = &self.semaphore {
            semaphore.release();
        }
    }
}

/// Future of [`Semaphore::acquire`].
pub struct Acquire {
    semaphore: Semaphore,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire {
    type Output = Result<Permit, Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(waiter) = &self.waiter else {
            if let Some(permit) = self.semaphore.try_acquire() {
                return Poll::Ready(Ok(permit));
            }
            if self.semaphore.is_closed() {
                return Poll::Ready(Err(Closed));
            }
            let waiter =
                Rc::new(Waiter { state: Cell::new(WaitState::Waiting), waker: Cell::new(Some(cx.waker().clone())) });
            self.semaphore.inner.waiters.borrow_mut().push_back(Rc::clone(&waiter));
            self.waiter = Some(waiter);
            return Poll::Pending;
        };
        match waiter.state.get() {
            WaitState::Waiting => {
                super::remember(&waiter.waker, cx);
                Poll::Pending
            }
            WaitState::Granted => {
                self.waiter = None;
                Poll::Ready(Ok(Permit { semaphore: Some(self.semaphore.clone()) }))
            }
            WaitState::Refused => Poll::Ready(Err(Closed)),
            WaitState::Gone => unreachable!("only the future's drop sets this"),
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match waiter.state.replace(WaitState::Gone) {
            // The permit was on its way to us: pass it on.
            WaitState::Granted => self.semaphore.release(),
            WaitState::Waiting => self.forget_waiter(&waiter),
            WaitState::Refused | WaitState::Gone => {}
        }
    }
}

impl Acquire {
    /// Leaves no trace in the queue, so that giving up again and again does not grow it.
    fn forget_waiter(&self, waiter: &Rc<Waiter>) {
        let mut waiters = self.semaphore.inner.waiters.borrow_mut();
        if let Some(at) = waiters.iter().rposition(|other| Rc::ptr_eq(other, waiter)) {
            waiters.remove(at);
        }
    }
}
