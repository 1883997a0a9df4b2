//! A bounded lock-free single-producer single-consumer ring with credits.
//!
//! ```text
//!            head                     tail
//!             v                        v
//!   +----+----+----+----+----+----+----+----+
//!   |free|free| m3 | m4 | m5 | m6 | m7 |free|     credits = capacity - (tail - head)
//!   +----+----+----+----+----+----+----+----+
//!    consumer advances head     producer advances tail
//! ```
//!
//! Lamport's queue ("Specifying concurrent program modules", TOPLAS 1983) with each end's view of the other end's index cached,
//! as in FastForward/MCRingBuffer (Lee et al., "A lock-free, cache-efficient shared ring buffer", ANCS 2009) and Rigtorp's
//! `SPSCQueue`: an end touches the other end's cache line only when its cached view is used up.
//!
//! Invariants:
//! - `head <= tail <= head + capacity` in wrapping arithmetic; indices run freely and are masked on access.
//! - slots `head..tail` hold messages and belong to the consumer; the others belong to the producer.
//! - only the producer stores `tail` and `credit_wanted`; only the consumer stores `head`.
//!
//! Credits go back in batches of a quarter of the capacity, for giving them back costs a fence. A producer with none left has more
//! messages in the ring than that, so the consumer gives some back before it finds the ring empty. Nothing here blocks, allocates
//! (after construction) or knows an executor.

#![allow(unsafe_code)]

use super::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell, fence};
use std::mem::MaybeUninit;

/// The largest ring: beyond this a sender should be told to slow down, not be given more room.
pub const RING_CAPACITY_MAX: usize = 1 << 20;

/// Alone on its pair of cache lines: Intel's and AMD's prefetchers fetch lines in pairs.
#[repr(align(128))]
pub(super) struct CachePadded<T>(pub(super) T);

struct Shared<T> {
    /// The next position to be written.
    tail: CachePadded<AtomicUsize>,
    /// The first position whose slot has not been given back.
    head: CachePadded<AtomicUsize>,
    /// Flags that change rarely, so both ends keep the line cached.
    flags: CachePadded<Flags>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

struct Flags {
    /// The producer has somebody waiting for a credit.
    credit_wanted: AtomicBool,
    consumer_gone: AtomicBool,
}

// SAFETY: a slot is accessed by one end at a time (module invariants), and messages move from thread to thread, hence `T: Send`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; sharing `&Shared` gives access to slots only through the two ends, each of which exists once.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, position: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // The length is a power of two; masking also spares the bounds check.
        &self.slots[position & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut position = self.head.0.load(Ordering::Relaxed);
        while position != tail {
            // SAFETY: both ends are gone (`&mut self`), and slots `head..tail` hold messages that nobody has taken.
            self.slot(position).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            position = position.wrapping_add(1);
        }
    }
}

/// A ring for at least `capacity` messages (rounded up to a power of two).
///
/// Panics if `capacity` is 0 or above [`RING_CAPACITY_MAX`].
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity > 0, "a ring needs room for one message");
    assert!(capacity <= RING_CAPACITY_MAX, "ring capacity {capacity} is above {RING_CAPACITY_MAX}");
    let capacity = capacity.next_power_of_two();
    let shared = Arc::new(Shared {
        tail: CachePadded(AtomicUsize::new(0)),
        head: CachePadded(AtomicUsize::new(0)),
        flags: CachePadded(Flags { credit_wanted: AtomicBool::new(false), consumer_gone: AtomicBool::new(false) }),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    let producer = Producer { shared: Arc::clone(&shared), tail: 0, head_cached: 0 };
    let consumer = Consumer { shared, head: 0, head_released: 0, tail_cached: 0 };
    (producer, consumer)
}

/// The sending end.
#[repr(align(128))]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_cached: usize,
}

impl<T> Producer<T> {
    /// Messages the ring can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Messages that can be pushed now without overrunning the consumer. Looks at the consumer's index only when fewer than
    /// `wanted` are known of, so there may be more when the answer is `wanted` or above.
    #[inline]
    pub fn credits(&mut self, wanted: usize) -> usize {
        if self.credits_known() < wanted {
            // Acquire: the consumer's reads of the slots happen before our writes to them.
            self.head_cached = self.shared.head.0.load(Ordering::Acquire);
        }
        self.credits_known()
    }

    #[inline]
    fn credits_known(&self) -> usize {
        let in_flight = self.tail.wrapping_sub(self.head_cached);
        debug_assert!(in_flight <= self.capacity());
        self.capacity() - in_flight
    }

    /// Appends one message and publishes it, or hands it back when there is no credit.
    #[inline]
    pub fn push(&mut self, message: T) -> Result<(), T> {
        if self.credits(1) == 0 {
            return Err(message);
        }
        self.write(self.tail, message);
        self.publish(self.tail.wrapping_add(1));
        Ok(())
    }

    /// Takes messages from `messages` while there are credits, and publishes them together. Returns how many.
    pub fn push_batch(&mut self, messages: &mut impl Iterator<Item = T>) -> usize {
        let start = self.tail;
        let mut tail = start;
        'batch: loop {
            let credits = self.credits(1);
            for _ in 0..credits {
                let Some(message) = messages.next() else { break 'batch };
                self.write(tail, message);
                tail = tail.wrapping_add(1);
            }
            if credits == 0 {
                break;
            }
            // Publish what fits before looking for more room: the consumer can start on it.
            self.publish(tail);
        }
        self.publish(tail);
        tail.wrapping_sub(start)
    }

    #[inline]
    fn write(&mut self, position: usize, message: T) {
        // SAFETY: the caller holds a credit for `position`, so the slot is the producer's and holds no message.
        self.shared.slot(position).with_mut(|slot| unsafe {
            (*slot).write(message);
        });
    }

    #[inline]
    fn publish(&mut self, tail: usize) {
        self.tail = tail;
        // Release: the slots' contents are visible to whoever sees the new tail.
        self.shared.tail.0.store(tail, Ordering::Release);
    }

    /// Says whether somebody waits for a credit: while it is so, [`Consumer::release`] reports it and the receiver rings this
    /// core's bell. The flag by itself does not stop a wake-up from getting lost: before it sleeps, the sender must announce
    /// that on its [`Bell`](super::bell::Bell) and then look at [`Producer::credits`] once more.
    pub fn set_credit_wanted(&mut self, wanted: bool) {
        self.shared.flags.0.credit_wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether the consumer has been dropped: pushed messages would never be read.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.shared.flags.0.consumer_gone.load(Ordering::Acquire)
    }
}

/// The receiving end.
#[repr(align(128))]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    head_released: usize,
    tail_cached: usize,
}

/// What [`Consumer::pop`] hands out.
pub struct Popped<T> {
    /// The message.
    pub message: T,
    /// Credits were given back and the producer has somebody waiting for one: wake it.
    pub credit_waited_for: bool,
}

impl<T> Consumer<T> {
    /// Whether no message waits. A false "empty" is impossible for messages published before the call in happens-before order.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.head == self.tail_cached {
            // Acquire: pairs with the producer's release of the slots' contents.
            self.tail_cached = self.shared.tail.0.load(Ordering::Acquire);
        }
        self.head == self.tail_cached
    }

    /// Takes the oldest message.
    #[inline]
    pub fn pop(&mut self) -> Option<Popped<T>> {
        if self.is_empty() {
            return None;
        }
        let message = self.take();
        let credit_waited_for = self.release_is_due() && self.release();
        Some(Popped { message, credit_waited_for })
    }

    /// Hands up to `max` messages to `each`, oldest first, then gives their credits back together. Returns how many, and whether
    /// the producer has somebody waiting for a credit.
    pub fn pop_batch(&mut self, max: usize, mut each: impl FnMut(T)) -> (usize, bool) {
        let mut taken = 0;
        while taken < max && !self.is_empty() {
            // Advanced before `each` runs, so that a panic in it cannot make a message be dropped twice.
            let message = self.take();
            taken += 1;
            each(message);
        }
        (taken, taken > 0 && self.release())
    }

    #[inline]
    fn take(&mut self) -> T {
        let position = self.head;
        self.head = position.wrapping_add(1);
        // SAFETY: `position < tail`, so the slot holds a published message; `head` has moved on, so it is read only once.
        self.shared.slot(position).with(|slot| unsafe { (*slot).assume_init_read() })
    }

    #[inline]
    fn release_is_due(&self) -> bool {
        self.head.wrapping_sub(self.head_released) >= self.shared.slots.len().div_ceil(4)
    }

    /// Gives the credits of all taken messages back. Returns whether the producer has somebody waiting for one.
    #[inline]
    pub fn release(&mut self) -> bool {
        self.head_released = self.head;
        // Release: our reads of the slots happen before the producer's next writes to them.
        self.shared.head.0.store(self.head, Ordering::Release);
        // Pairs with the fence in `Bell::announce`: either we see that a credit is wanted, or the sender sees the new head.
        fence(Ordering::SeqCst);
        self.shared.flags.0.credit_wanted.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        // `Shared::drop` must not see the messages that were taken but not yet released.
        self.shared.head.0.store(self.head, Ordering::Release);
        self.shared.flags.0.consumer_gone.store(true, Ordering::Release);
    }
}
