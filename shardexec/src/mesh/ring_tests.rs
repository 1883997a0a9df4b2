//! The ring on real threads and under miri; `model.rs` explores its interleavings.

use super::ring::ring;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts its drops, so that leaks and double drops show.
struct Counted(u64, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn messages_come_out_in_order_across_the_wrap() {
    let (mut producer, mut consumer) = ring::<u64>(3);
    assert_eq!(producer.capacity(), 4, "rounded up to a power of two");
    let mut next = 0;
    for round in 0..100_u64 {
        for _ in 0..=(round % 4) {
            assert_eq!(producer.push(next), Ok(()));
            next += 1;
        }
        let mut expected = next - (round % 4) - 1;
        while let Some(popped) = consumer.pop() {
            assert_eq!(popped.message, expected);
            expected += 1;
        }
        assert_eq!(expected, next);
    }
}

#[test]
fn a_sender_cannot_overrun_the_receiver() {
    let (mut producer, mut consumer) = ring::<u32>(8);
    for value in 0..8 {
        assert_eq!(producer.push(value), Ok(()));
    }
    assert_eq!(producer.credits(1), 0);
    assert_eq!(producer.push(99), Err(99));

    // Credits return after a quarter of the capacity, not one by one.
    assert!(consumer.pop().is_some());
    assert_eq!(producer.credits(1), 0);
    assert!(consumer.pop().is_some());
    assert_eq!(producer.credits(1), 2);
}

#[test]
fn batches_stop_at_the_last_credit_and_lose_nothing() {
    let (mut producer, mut consumer) = ring::<u32>(4);
    let mut source = 0..10_u32;
    assert_eq!(producer.push_batch(&mut source), 4);
    assert_eq!(source.next(), Some(4), "only what was pushed was taken from the source");

    let mut seen = Vec::new();
    assert_eq!(consumer.pop_batch(3, |message| seen.push(message)), (3, false));
    assert_eq!(producer.push_batch(&mut source), 3);
    assert_eq!(consumer.pop_batch(usize::MAX, |message| seen.push(message)), (4, false));
    assert_eq!(seen, [0, 1, 2, 3, 5, 6, 7]);
    assert_eq!(consumer.pop_batch(1, |_| unreachable!()), (0, false));
}

#[test]
fn release_reports_a_waiting_sender_until_it_stops_waiting() {
    let (mut producer, mut consumer) = ring::<u32>(1);
    assert_eq!(producer.push(1), Ok(()));
    producer.set_credit_wanted(true);
    assert!(consumer.pop().is_some_and(|popped| popped.credit_waited_for));
    assert_eq!(producer.push(2), Ok(()));
    producer.set_credit_wanted(false);
    assert!(consumer.pop().is_some_and(|popped| !popped.credit_waited_for));
}

#[test]
fn unread_messages_are_dropped_once() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (mut producer, mut consumer) = ring(8);
    for value in 0..7 {
        assert!(producer.push(Counted(value, Arc::clone(&drops))).is_ok());
    }
    // Taken but not yet released: the ring's own drop must not see it again.
    assert_eq!(consumer.pop().map(|popped| popped.message.0), Some(0));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    drop(consumer);
    assert!(producer.is_closed());
    drop(producer);
    assert_eq!(drops.load(Ordering::Relaxed), 7);
}

#[test]
fn a_panic_while_a_batch_is_handled_drops_each_message_once() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (mut producer, mut consumer) = ring(4);
    for value in 0..4 {
        assert!(producer.push(Counted(value, Arc::clone(&drops))).is_ok());
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        consumer.pop_batch(4, |message| assert!(message.0 < 1, "stop here"));
    }));
    assert!(outcome.is_err());
    drop((producer, consumer));
    assert_eq!(drops.load(Ordering::Relaxed), 4);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the ring stands alone from the executor; its two ends need two threads")]
fn two_threads_move_every_message_in_order() {
    let count: u64 = if cfg!(miri) { 200 } else { 200_000 };
    let (mut producer, mut consumer) = ring::<Box<u64>>(64);
    let sender = std::thread::spawn(move || {
        let mut source = (0..count).map(Box::new).peekable();
        while source.peek().is_some() {
            if producer.push_batch(&mut source) == 0 {
                std::thread::yield_now();
            }
        }
    });
    let mut expected = 0;
    while expected < count {
        let (taken, _) = consumer.pop_batch(16, |message| {
            assert_eq!(*message, expected);
            expected += 1;
        });
        if taken == 0 {
            std::thread::yield_now();
        }
    }
    assert!(consumer.pop().is_none());
    assert!(sender.join().is_ok());
}
