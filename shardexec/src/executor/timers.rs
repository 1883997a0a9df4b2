//! Deadlines in order.
//!
//! A binary heap of (deadline, sequence number) over a slab of wakers. Cancelling only empties the slab slot; the heap entry
//! goes stale and is dropped when it surfaces, or in one sweep once stale entries outnumber live ones. So arming and firing
//! cost O(log n), cancelling O(1) amortised: consensus arms and drops far more timers than ever fire.
//!
//! Invariant: timers fire in the order of (deadline, armed first), and never before their deadline.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use crate::time::Instant;

/// Timers armed at once on one executor.
pub const TIMERS_MAX: usize = 1 << 20;

/// Below this many stale heap entries no sweep is worth it.
const SWEEP_MIN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    deadline: Instant,
    seq: u64,
    slot: u32,
}

/// Names an armed timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    slot: u32,
    seq: u64,
}

struct Slot {
    /// Sequence number of the timer that owns the slot; a heap entry with another one is stale.
    seq: u64,
    waker: Option<Waker>,
}

#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    seq: u64,
}

impl Timers {
    /// Timers that are armed.
    pub fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn arm(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        assert!(self.live() < TIMERS_MAX, "more than {TIMERS_MAX} timers: something arms and never drops");
        self.seq += 1;
        let (seq, waker) = (self.seq, Some(waker));
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Slot { seq, waker };
            slot
        } else {
            self.slots.push(Slot { seq, waker });
            self.slots.len() as u32 - 1
        };
        self.heap.push(Reverse(Entry { deadline, seq, slot }));
        TimerKey { slot, seq }
    }

    /// Whether the timer still waits for its deadline.
    pub fn is_armed(&self, key: TimerKey) -> bool {
        self.slots[key.slot as usize].seq == key.seq
    }

    /// Replaces the waker of an armed timer if it would wake another task.
    pub fn update_waker(&mut self, key: TimerKey, waker: &Waker) {
        debug_assert!(self.is_armed(key));
        if let Some(current) = &mut self.slots[key.slot as usize].waker {
            current.clone_from(waker);
        }
    }

    /// Disarms; nothing happens when it fired before. The waker comes back so that it is dropped outside any borrow.
    pub fn cancel(&mut self, key: TimerKey) -> Option<Waker> {
        if !self.is_armed(key) {
            return None;
        }
        let waker = self.vacate(key.slot);
        let stale = self.heap.len() - self.live();
        if stale > SWEEP_MIN && stale > self.live() {
            let slots = &self.slots;
            self.heap.retain(|Reverse(entry)| slots[entry.slot as usize].seq == entry.seq);
        }
        waker
    }

    /// The earliest deadline; [`Instant::MAX`] when there is none.
    pub fn next_deadline(&mut self) -> Instant {
        while let Some(Reverse(entry)) = self.heap.peek() {
            if self.slots[entry.slot as usize].seq == entry.seq {
                return entry.deadline;
            }
            self.heap.pop();
        }
        Instant::MAX
    }

    /// Takes the next timer whose deadline is not after `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        if self.next_deadline() > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.vacate(entry.slot)
    }

    fn vacate(&mut self, slot: u32) -> Option<Waker> {
        let vacated = &mut self.slots[slot as usize];
        vacated.seq = 0;
        self.free.push(slot);
        vacated.waker.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;
    use std::task::Wake;

    use super::*;

    struct Log(u32, Arc<Mutex<Vec<u32>>>);
    impl Wake for Log {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    fn fire(timers: &mut Timers, now: u64) {
        while let Some(waker) = timers.pop_due(Instant::from_ns(now)) {
            waker.wake();
        }
    }

    #[test]
    fn fires_by_deadline_then_by_arming_order_and_never_early() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut timers = Timers::default();
        for (name, deadline) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 40)] {
            timers.arm(Instant::from_ns(deadline), Waker::from(Arc::new(Log(name, Arc::clone(&log)))));
        }
        fire(&mut timers, 9);
        assert_eq!(*log.lock().unwrap(), []);
        fire(&mut timers, 30);
        assert_eq!(*log.lock().unwrap(), [2, 4, 3, 1]);
        assert_eq!(timers.next_deadline(), Instant::from_ns(40));
        assert_eq!(timers.live(), 1);
    }

    #[test]
    fn cancelled_timers_neither_fire_nor_pile_up() {
        let mut timers = Timers::default();
        let kept = timers.arm(Instant::from_ns(5), Waker::noop().clone());
        for round in 0..100_000u64 {
            let key = timers.arm(Instant::from_ns(1_000_000 + round), Waker::noop().clone());
            assert!(timers.cancel(key).is_some());
            assert!(!timers.is_armed(key), "a reused slot must not look like the old timer");
            assert!(timers.cancel(key).is_none());
        }
        assert!(timers.heap.len() <= SWEEP_MIN + 2, "{} stale entries", timers.heap.len());
        assert!(timers.slots.len() <= 2);
        assert!(timers.is_armed(kept));
        assert!(timers.pop_due(Instant::from_ns(5)).is_some());
        assert_eq!(timers.next_deadline(), Instant::MAX);
    }
}
