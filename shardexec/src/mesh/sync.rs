//! The atomics that the lock-free code is written on: std's here, loom's in the unit tests.
//!
//! `ring.rs` and `bell.rs` name only `super::sync`, so `model.rs` can compile the very same files a second time against loom.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// `std::cell::UnsafeCell` behind loom's closure API, so that loom can watch every access to the slots.
#[repr(transparent)]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Runs `f` on a pointer for reading; the caller guarantees that nobody writes meanwhile.
    #[inline]
    pub(super) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get().cast_const())
    }

    /// Runs `f` on a pointer for writing; the caller guarantees that nobody else accesses the value meanwhile.
    #[inline]
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
