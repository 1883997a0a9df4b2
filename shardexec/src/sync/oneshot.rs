//! One value, once.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
    sender_alive: Cell<bool>,
    receiver_alive: Cell<bool>,
}

/// A channel for one value.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Rc::new(Shared {
        value: Cell::new(None),
        waker: Cell::new(None),
        sender_alive: Cell::new(true),
        receiver_alive: Cell::new(true),
    });
    (Sender { shared: Rc::clone(&shared) }, Receiver { shared })
}

/// Sends the value.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

/// A future of the value.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
}

/// The sender was dropped without sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender was dropped without sending")]
pub struct RecvError;

impl<T> Sender<T> {
    /// Hands over the value, or gives it back when nobody waits any more.
    pub fn send(self, value: T) -> Result<(), T> {
        if !self.shared.receiver_alive.get() {
            return Err(value);
        }
        self.shared.value.set(Some(value));
        Ok(())
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.shared.receiver_alive.get()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.sender_alive.set(false);
        if let Some(waker) = self.shared.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The value, if it was sent and not yet received.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.value.take()
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, RecvError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(value) = self.shared.value.take() {
            return Poll::Ready(Ok(value));
        }
        if !self.shared.sender_alive.get() {
            return Poll::Ready(Err(RecvError));
        }
        super::remember(&self.shared.waker, cx);
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_alive.set(false);
        drop((self.shared.value.take(), self.shared.waker.take()));
    }
}
