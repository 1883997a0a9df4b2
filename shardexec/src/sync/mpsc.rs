//! Many senders, one receiver, a bounded queue.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::semaphore::Semaphore;

struct Shared<T> {
    queue: RefCell<VecDeque<T>>,
    /// One permit per free place; closed when the receiver goes.
    room: Semaphore,
    senders: Cell<usize>,
    receiver_waker: Cell<Option<Waker>>,
}

/// A channel that holds at most `capacity` values.
///
/// # Panics
/// When `capacity` is 0.
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a channel needs room for a value");
    let shared = Rc::new(Shared {
        queue: RefCell::default(),
        room: Semaphore::new(capacity),
        senders: Cell::new(1),
        receiver_waker: Cell::new(None),
    });
    (Sender { shared: Rc::clone(&shared) }, Receiver { shared })
}

/// The receiver is gone; the value comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel is closed")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

/// Why a value could not be sent at once; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// No room now.
    #[error("the channel is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the channel is closed")]
    Closed(T),
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Closed(_) => "Closed(..)",
        })
    }
}

/// Why nothing could be received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// Nothing now.
    #[error("the channel is empty")]
    Empty,
    /// Nothing ever: the senders are gone.
    #[error("the channel is closed")]
    Disconnected,
}

/// Sends values; clones share the channel.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

/// A sender that does not keep the channel open.
pub struct WeakSender<T> {
    shared: Rc<Shared<T>>,
}

/// Receives values in the order of sending.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Waits for room, first come first served.
    pub async fn send(&self, value: T) -> Result<(), SendError<T>> {
        if !self.shared.room.try_take() {
            match self.shared.room.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(SendError(value)),
            }
        }
        self.push(value);
        Ok(())
    }

    /// Sends without waiting.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.shared.room.try_take() {
            self.push(value);
            Ok(())
        } else if self.is_closed() {
            Err(TrySendError::Closed(value))
        } else {
            Err(TrySendError::Full(value))
        }
    }

    fn push(&self, value: T) {
        self.shared.queue.borrow_mut().push_back(value);
        self.shared.wake_receiver();
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.room.is_closed()
    }

    /// A sender that does not keep the channel open.
    pub fn downgrade(&self) -> WeakSender<T> {
        WeakSender { shared: Rc::clone(&self.shared) }
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
            self.shared.wake_receiver();
        }
    }
}

impl<T> WeakSender<T> {
    /// A sender, unless all of them are gone.
    pub fn upgrade(&self) -> Option<Sender<T>> {
        let senders = self.shared.senders.get();
        if senders == 0 {
            return None;
        }
        self.shared.senders.set(senders + 1);
        Some(Sender { shared: Rc::clone(&self.shared) })
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> WeakSender<T> {
        WeakSender { shared: Rc::clone(&self.shared) }
    }
}

impl<T> Shared<T> {
    fn wake_receiver(&self) {
        if let Some(waker) = self.receiver_waker.take() {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next value; `None` once the queue is empty and every sender is gone. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`Receiver::recv`] for hand-written futures.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.try_recv() {
            Ok(value) => Poll::Ready(Some(value)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => {
                super::remember(&self.shared.receiver_waker, cx);
                Poll::Pending
            }
        }
    }

    /// The next value if there is one now.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let value = self.shared.queue.borrow_mut().pop_front();
        match value {
            Some(value) => {
                self.shared.room.release();
                Ok(value)
            }
            None if self.shared.senders.get() == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Values that wait.
    pub fn len(&self) -> usize {
        self.shared.queue.borrow().len()
    }

    /// Whether no value waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.room.close();
        let unreceived = self.shared.queue.take();
        drop((unreceived, self.shared.receiver_waker.take()));
    }
}
