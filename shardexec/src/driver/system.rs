//! Clocks, randomness and wake-up that the production drivers share.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::EventfdFlags;
use rustix::rand::GetRandomFlags;
use rustix::time::{ClockId, Timespec};

use super::Unpark;
use crate::time::{Instant, WallClock};

fn ns(time: Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub(crate) fn monotonic() -> Instant {
    Instant::from_ns(ns(rustix::time::clock_gettime(ClockId::Monotonic)))
}

pub(crate) fn boottime() -> Instant {
    Instant::from_ns(ns(rustix::time::clock_gettime(ClockId::Boottime)))
}

pub(crate) fn wall_clock() -> WallClock {
    WallClock(ns(rustix::time::clock_gettime(ClockId::Realtime)))
}

/// Random bytes fetched from the kernel ahead of use: one system call serves many small requests.
pub(crate) struct RandomPool {
    bytes: [u8; RandomPool::BYTES],
    used: usize,
}

impl RandomPool {
    const BYTES: usize = 512;

    pub fn new() -> RandomPool {
        RandomPool { bytes: [0; Self::BYTES], used: Self::BYTES }
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        if out.len() > Self::BYTES / 8 {
            return from_kernel(out);
        }
        if self.used + out.len() > Self::BYTES {
            from_kernel(&mut self.bytes);
            self.used = 0;
        }
        let taken = &mut self.bytes[self.used..self.used + out.len()];
        out.copy_from_slice(taken);
        taken.fill(0); // Bytes given out may become keys: keep no copy.
        self.used += out.len();
    }
}

fn from_kernel(mut out: &mut [u8]) {
    while !out.is_empty() {
        match rustix::rand::getrandom(&mut *out, GetRandomFlags::empty()) {
            Ok(n) => out = &mut out[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom fails only on kernels older than we support: {error}"),
        }
    }
}

const AWAKE: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

/// Wakes a parked driver through an eventfd, and costs no system call while it is awake.
///
/// ```text
///   AWAKE ──park──► PARKED ──unpark (writes the eventfd)──► NOTIFIED ──return──► AWAKE
///     └──unpark──► NOTIFIED ──park fails, polls without waiting──► AWAKE
/// ```
pub(crate) struct EventFdUnpark {
    fd: OwnedFd,
    state: AtomicU8,
}

impl EventFdUnpark {
    pub fn new() -> io::Result<EventFdUnpark> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFdUnpark { fd, state: AtomicU8::new(AWAKE) })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Announces a wait. False: somebody has called already, do not wait.
    pub fn park(&self) -> bool {
        self.state.compare_exchange(AWAKE, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends a wait, or takes note of the call that prevented it.
    pub fn unparked(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// Empties the eventfd after it woke the driver.
    pub fn drain(&self) {
        let mut count = [0; 8];
        // Nothing to read is fine: the write of an unpark that lost the race may come later and costs one spurious wake-up.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl Unpark for EventFdUnpark {
    fn unpark(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == PARKED {
            let written = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
            debug_assert!(written.is_ok(), "an eventfd takes 2^64 - 2 increments: {written:?}");
        }
    }
}
