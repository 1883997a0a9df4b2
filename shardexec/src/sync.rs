//! Channels and locks between the tasks of one executor. All are `!Send`: between threads use the mesh.
//!
//! Shapes follow tokio's, so that openraft's runtime traits wrap them thinly. Values and wakers are never dropped, nor tasks
//! woken, while an internal borrow is held: both may run foreign code that comes back.
#![forbid(unsafe_code)]

pub mod mpsc;
mod mutex;
mod notify;
pub mod oneshot;
pub mod semaphore;
pub mod watch;

pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Permit, Semaphore};

#[cfg(test)]
mod tests;
