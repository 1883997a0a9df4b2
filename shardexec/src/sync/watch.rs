//! The latest value of something, for many watchers.
#![forbid(unsafe_code)]

use std::cell::{Cell, Ref, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    value: RefCell<T>,
    /// Number of changes so far.
    version: Cell<u64>,
    senders: Cell<usize>,
    receivers: RefCell<Receivers>,
}

/// One waker place per receiver, so that giving up a wait and waiting again does not pile up wakers.
#[derive(Default)]
struct Receivers {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Receivers {
    fn add(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        })
    }

    fn alive(&self) -> usize {
        self.wakers.len() - self.free.len()
    }
}

/// A channel whose value is `initial` at first, which every receiver counts as seen.
pub fn channel<T>(initial: T) -> (Sender<T>, Receiver<T>) {
    let shared = Rc::new(Shared {
        value: RefCell::new(initial),
        version: Cell::new(0),
        senders: Cell::new(1),
        receivers: RefCell::default(),
    });
    let receiver = shared.receiver(0);
    (Sender { shared }, receiver)
}

/// No receiver is left; the value comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody watches the channel")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

/// Every sender is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watched value will not change any more")]
pub struct RecvError;

/// Changes the value.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

/// Watches the value.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
    seen: u64,
    place: usize,
}

impl<T> Shared<T> {
    fn receiver(self: &Rc<Self>, seen: u64) -> Receiver<T> {
        let place = self.receivers.borrow_mut().add();
        Receiver { shared: Rc::clone(self), seen, place }
    }

    fn notify(&self) {
        let count = self.receivers.borrow().wakers.len();
        for place in 0..count {
            let waker = self.receivers.borrow_mut().wakers[place].take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn changed(&self) {
        self.version.set(self.version.get() + 1);
        self.notify();
    }
}

impl<T> Sender<T> {
    /// Replaces the value and tells every receiver.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.shared.receivers.borrow().alive() == 0 {
            return Err(SendError(value));
        }
        let old = self.shared.value.replace(value);
        self.shared.changed();
        drop(old);
        Ok(())
    }

    /// Changes the value in place; receivers are told when `modify` returns true.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.shared.value.borrow_mut());
        if modified {
            self.shared.changed();
        }
        modified
    }

    /// The value. Do not hold the reference across an await: a send meanwhile panics.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// Another receiver, which has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        self.shared.receiver(self.shared.version.get())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.senders.set(self.shared.senders.get() + 1);
        Sender { shared: Rc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.senders.set(self.shared.senders.get() - 1);
        if self.shared.senders.get() == 0 {
            self.shared.notify();
        }
    }
}

impl<T> Receiver<T> {
    /// Waits for a value that this receiver has not seen, and counts it as seen.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        poll_fn(|cx| self.poll_changed(cx)).await
    }

    fn poll_changed(&mut self, cx: &Context<'_>) -> Poll<Result<(), RecvError>> {
        let version = self.shared.version.get();
        if self.seen != version {
            self.seen = version;
            return Poll::Ready(Ok(()));
        }
        if self.shared.senders.get() == 0 {
            return Poll::Ready(Err(RecvError));
        }
        let old = self.shared.receivers.borrow_mut().wakers[self.place].replace(cx.waker().clone());
        drop(old);
        Poll::Pending
    }

    /// The value. Do not hold the reference across an await: a send meanwhile panics.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// The value, counted as seen from now on.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.version.get();
        self.shared.value.borrow()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.shared.receiver(self.seen)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut receivers = self.shared.receivers.borrow_mut();
        let waker = receivers.wakers[self.place].take();
        receivers.free.push(self.place);
        drop(receivers);
        drop(waker);
    }
}
