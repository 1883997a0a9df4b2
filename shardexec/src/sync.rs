//! Channels and locks between the tasks of one executor. All are `!Send`: between threads use the mesh.
//!
//! Shapes follow tokio's, so that openraft's runtime traits wrap them thinly. Values and wakers are never dropped, nor tasks
//! woken, while an internal borrow is held: both may run foreign code that comes back.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::task::{Context, Waker};

pub mod mpsc;
mod mutex;
mod notify;
pub mod oneshot;
pub mod semaphore;
pub mod watch;

pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Permit, Semaphore};

/// Keeps the waker of the task that is being polled, cloning it only when it is another one than before.
fn remember(place: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let waker = match place.take() {
        Some(waker) if waker.will_wake(cx.waker()) => waker,
        _ => cx.waker().clone(),
    };
    place.set(Some(waker));
}

#[cfg(test)]
mod tests;
