//! A lock that may be held across awaits.
#![forbid(unsafe_code)]

use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use super::semaphore::{Permit, Semaphore};

/// Gives out its value to one task at a time, first come first served.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

/// The value, while the lock is held.
pub struct MutexGuard<'a, T> {
    // Field order matters: the borrow ends before the next task gets its turn.
    value: RefMut<'a, T>,
    _turn: Permit,
}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Mutex<T> {
        Mutex { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for the lock.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let turn = self.turn.acquire().await.expect("the semaphore is never closed");
        MutexGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    /// The lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let turn = self.turn.try_acquire()?;
        Some(MutexGuard { value: self.value.borrow_mut(), _turn: turn })
    }

    /// The value of a mutex that nobody else has.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
