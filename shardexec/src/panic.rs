//! Panics that must not be survived.
//!
//! The executor catches a task's panic and goes on, which is right for state that belongs to that task. Code that changes
//! state shared by a whole core (the log, a cache, the scheduler) runs under [`abort_on_panic`] instead: half a change may be
//! worse than a restart.
#![forbid(unsafe_code)]

use std::future::{Future, poll_fn};
use std::pin::pin;

/// Runs `critical`; if it panics, prints which `part` is broken and aborts the process.
pub fn abort_on_panic<R>(part: &'static str, critical: impl FnOnce() -> R) -> R {
    let guard = AbortOnPanic { part };
    let result = critical();
    std::mem::forget(guard);
    result
}

/// Like [`abort_on_panic`], for every poll of a future.
pub async fn abort_on_panic_async<F: Future>(part: &'static str, critical: F) -> F::Output {
    let mut critical = pin!(critical);
    poll_fn(|cx| abort_on_panic(part, || critical.as_mut().poll(cx))).await
}

/// Dropped only by unwinding.
struct AbortOnPanic {
    part: &'static str,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        eprintln!(
            "gristmill: {} panicked half-way through a change; aborting, the log restores it at restart",
            self.part
        );
        std::process::abort();
    }
}
