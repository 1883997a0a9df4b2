//! Asking a node to stop from another thread: a signal handler, the embedding program.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Asked once, seen by the node's first core. Clones share it.
#[derive(Clone, Default)]
pub struct StopSignal {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl StopSignal {
    /// Not asked yet.
    pub fn new() -> StopSignal {
        StopSignal::default()
    }

    /// Asks the node to drain and stop. Asking again changes nothing.
    pub fn ask(&self) {
        self.shared.asked.store(true, Ordering::SeqCst);
        let waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether it was asked.
    pub fn is_asked(&self) -> bool {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Resolves once it was asked. One task may wait.
    pub(crate) async fn asked(&self) {
        poll_fn(|context| {
            // Register before looking: an `ask` between the two finds the waker.
            let mut waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner);
            *waker = Some(context.waker().clone());
            drop(waker);
            if self.is_asked() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
