//! The wake-up protocol of a core: at most one wake-up per park, and none lost.
//!
//! ```text
//!   sender                          receiver
//!   publish (ring tail or head)     parked = true
//!   fence(SeqCst)                   fence(SeqCst)
//!   parked? clear it -> unpark      anything published? -> withdraw, else park
//! ```
//!
//! This is Dekker's store-then-load on two locations. The two fences are totally ordered, so at least one side sees the other's
//! store: either the receiver finds the message and does not park, or the sender finds `parked` and wakes it. The compare-and-swap lets
//! only one of many senders pay for the wake-up. Removing either fence loses wake-ups; `model.rs` shows it.

use super::ring::CachePadded;
use super::sync::{AtomicBool, Ordering, fence};

/// "This core sleeps, or is about to": set by the core itself, claimed by whoever wakes it.
pub struct Bell {
    parked: CachePadded<AtomicBool>,
}

impl Bell {
    /// A bell of a core that is awake.
    pub fn new() -> Self {
        Self { parked: CachePadded(AtomicBool::new(false)) }
    }

    /// The sender's half, after it has published. `true` obliges the caller to unpark the core; nobody else will.
    #[inline]
    pub fn claim(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain load keeps the line shared while the core is awake, which is when it matters.
        self.parked.0.load(Ordering::Relaxed) && self.clear()
    }

    /// The receiver's half: announces the park. The caller must look at its rings once more before it sleeps.
    #[inline]
    pub fn announce(&self) {
        self.parked.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back after the park, or instead of it. `false` if a sender has claimed it: then a wake-up has
    /// come or is still to come, and the next park may end at once.
    #[inline]
    pub fn withdraw(&self) -> bool {
        self.parked.0.load(Ordering::Relaxed) && self.clear()
    }

    fn clear(&self) -> bool {
        // Not a swap: whoever loses the race has no business writing. (A swap would be right as well, since a read-modify-write
        // reads the newest value, but loom lets it read an older one and reports a wake-up that cannot get lost.)
        self.parked.0.compare_exchange(true, false, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}
