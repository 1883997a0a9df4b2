//! "Something has happened", without a value.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakes tasks that wait for an event. One notification without a waiter is remembered.
#[derive(Default)]
pub struct Notify {
    stored: Cell<bool>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    told: Cell<Told>,
    waker: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    NotYet,
    /// By `notify_one`: if the waiter has gone, someone else must hear it.
    Alone,
    /// By `notify_waiters`.
    WithAll,
}

impl Notify {
    /// Nothing has happened yet.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes the task that waits longest; if none waits, the next one to come does not wait.
    pub fn notify_one(&self) {
        match self.pop() {
            Some(waiter) => waiter.tell(Told::Alone),
            None => self.stored.set(true),
        }
    }

    /// Wakes every task that waits now. Is not remembered.
    pub fn notify_waiters(&self) {
        let waiters = self.waiters.take();
        for waiter in waiters {
            waiter.tell(Told::WithAll);
        }
    }

    /// Waits for a notification. Waiting begins at the first poll.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, waiter: None }
    }

    fn pop(&self) -> Option<Rc<Waiter>> {
        self.waiters.borrow_mut().pop_front()
    }
}

impl Waiter {
    fn tell(&self, told: Told) {
        self.told.set(told);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Future of [`Notify::notified`].
pub struct Notified<'a> {
    notify: &'a Notify,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(waiter) = &self.waiter else {
            if self.notify.stored.replace(false) {
                return Poll::Ready(());
            }
            let waiter = Rc::new(Waiter { told: Cell::new(Told::NotYet), waker: Cell::new(Some(cx.waker().clone())) });
            self.notify.waiters.borrow_mut().push_back(Rc::clone(&waiter));
            self.waiter = Some(waiter);
            return Poll::Pending;
        };
        if waiter.told.get() == Told::NotYet {
            super::remember(&waiter.waker, cx);
            return Poll::Pending;
        }
        self.waiter = None;
        Poll::Ready(())
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match waiter.told.get() {
            Told::Alone => self.notify.notify_one(),
            Told::WithAll => {}
            Told::NotYet => {
                let mut waiters = self.notify.waiters.borrow_mut();
                if let Some(at) = waiters.iter().rposition(|other| Rc::ptr_eq(other, &waiter)) {
                    waiters.remove(at);
                }
            }
        }
    }
}
