//! loom models: `ring.rs` and `bell.rs` compiled a second time on loom's atomics and explored over all interleavings.
//!
//! They run inside plain `cargo test`. Each protocol also has a model with its fence taken out that must fail, which shows that
//! the models are able to find what they look for.

#![allow(clippy::unwrap_used, reason = "a failed join or lock fails the model")]

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

#[allow(clippy::duplicate_mod, reason = "compiled twice on purpose")]
#[path = "bell.rs"]
mod bell;
#[allow(clippy::duplicate_mod, dead_code, reason = "compiled twice on purpose; the models use a part of it")]
#[path = "ring.rs"]
mod ring;

use bell::Bell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;
use ring::ring;

/// Threads of a model are switched against their will at most this often: enough for every two-thread race here, and it keeps
/// the models at seconds.
const PREEMPTIONS_MAX: usize = 3;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

#[test]
fn messages_arrive_whole_and_in_order() {
    explore(|| {
        let (mut producer, mut consumer) = ring::<Box<usize>>(2);
        let sender = thread::spawn(move || {
            for value in 0..3 {
                let mut message = Box::new(value);
                while let Err(back) = producer.push(message) {
                    message = back;
                    thread::yield_now();
                }
            }
        });
        for expected in 0..3 {
            let popped = loop {
                match consumer.pop() {
                    Some(popped) => break popped,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(*popped.message, expected);
        }
        sender.join().unwrap();
    });
}

#[test]
fn batches_arrive_whole_and_in_order() {
    explore(|| {
        let (mut producer, mut consumer) = ring::<Box<usize>>(2);
        let sender = thread::spawn(move || {
            let mut source = (0..4).map(Box::new).peekable();
            while source.peek().is_some() {
                if producer.push_batch(&mut source) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < 4 {
            let (taken, _) = consumer.pop_batch(2, |message| {
                assert_eq!(*message, expected);
                expected += 1;
            });
            if taken == 0 {
                thread::yield_now();
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn unread_messages_are_freed_whoever_leaves_last() {
    // loom reports a leaked Arc, and its UnsafeCell a slot that is touched by both ends at once.
    explore(|| {
        let witness = Arc::new(());
        let (mut producer, mut consumer) = ring::<Arc<()>>(2);
        let sender = thread::spawn({
            let witness = Arc::clone(&witness);
            move || {
                let _ = producer.push(Arc::clone(&witness));
                let _ = producer.push(witness);
            }
        });
        let _ = consumer.pop();
        drop(consumer);
        sender.join().unwrap();
    });
}

/// A core's sleep: blocks until somebody has called `wake` since the last sleep, like an eventfd.
struct Sleep {
    awake: loom::sync::Mutex<bool>,
    woken: loom::sync::Condvar,
    wakes: AtomicUsize,
}

impl Sleep {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            awake: loom::sync::Mutex::new(false),
            woken: loom::sync::Condvar::new(),
            wakes: AtomicUsize::new(0),
        })
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Relaxed);
        *self.awake.lock().unwrap() = true;
        self.woken.notify_one();
    }

    fn sleep(&self) {
        let mut awake = self.awake.lock().unwrap();
        while !*awake {
            awake = self.woken.wait(awake).unwrap();
        }
        *awake = false;
    }
}

#[test]
fn a_parked_receiver_is_woken_for_every_message() {
    explore(|| {
        let (mut producer, mut consumer) = ring::<usize>(2);
        let bell = Arc::new(Bell::new());
        let sleep = Sleep::new();
        let sender = thread::spawn({
            let (bell, sleep) = (Arc::clone(&bell), Arc::clone(&sleep));
            move || {
                for value in 0..2 {
                    assert!(producer.push(value).is_ok());
                    if bell.claim() {
                        sleep.wake();
                    }
                }
            }
        });
        let mut parks = 0;
        for expected in 0..2 {
            let popped = loop {
                if let Some(popped) = consumer.pop() {
                    break popped;
                }
                bell.announce();
                parks += 1;
                if consumer.is_empty() {
                    sleep.sleep(); // a lost wake-up is a deadlock here, which loom reports
                }
                bell.withdraw();
            };
            assert_eq!(popped.message, expected);
        }
        sender.join().unwrap();
        assert!(sleep.wakes.load(Relaxed) <= parks, "at most one wake-up per park");
    });
}

#[test]
fn two_senders_pay_for_one_wake_up_only() {
    explore(|| {
        let (mut first, mut first_end) = ring::<usize>(1);
        let (mut second, mut second_end) = ring::<usize>(1);
        let bell = Arc::new(Bell::new());
        let sleep = Sleep::new();
        bell.announce();
        let send = |mut producer: ring::Producer<usize>| {
            let (bell, sleep) = (Arc::clone(&bell), Arc::clone(&sleep));
            thread::spawn(move || {
                assert!(producer.push(1).is_ok());
                if bell.claim() {
                    sleep.wake();
                }
            })
        };
        let _ = (first.credits(1), second.credits(1));
        let senders = [send(first), send(second)];
        if first_end.is_empty() && second_end.is_empty() {
            sleep.sleep();
        }
        bell.withdraw();
        for sender in senders {
            sender.join().unwrap();
        }
        assert!(sleep.wakes.load(Relaxed) <= 1);
        assert!(first_end.pop().is_some() && second_end.pop().is_some());
    });
}

#[test]
fn a_sender_out_of_credit_is_woken_for_every_credit() {
    explore(|| {
        let (mut producer, mut consumer) = ring::<usize>(1);
        let bell = Arc::new(Bell::new());
        let sleep = Sleep::new();
        let receiver = thread::spawn({
            let (bell, sleep) = (Arc::clone(&bell), Arc::clone(&sleep));
            move || {
                for expected in 0..3 {
                    let popped = loop {
                        match consumer.pop() {
                            Some(popped) => break popped,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!(popped.message, expected);
                    if popped.credit_waited_for && bell.claim() {
                        sleep.wake();
                    }
                }
            }
        });
        for value in 0..3 {
            let mut message = value;
            while let Err(back) = producer.push(message) {
                message = back;
                producer.set_credit_wanted(true);
                bell.announce();
                if producer.credits(1) == 0 {
                    sleep.sleep();
                }
                bell.withdraw();
            }
            producer.set_credit_wanted(false);
        }
        receiver.join().unwrap();
    });
}

/// The bell's protocol on bare flags, so that a fence can be left out.
fn dekker(sender_fence: bool, receiver_fence: bool) {
    explore(move || {
        let published = Arc::new(AtomicBool::new(false));
        let parked = Arc::new(AtomicBool::new(false));
        let sender = thread::spawn({
            let (published, parked) = (Arc::clone(&published), Arc::clone(&parked));
            move || {
                published.store(true, Relaxed);
                if sender_fence {
                    loom::sync::atomic::fence(SeqCst);
                }
                parked.load(Relaxed)
            }
        });
        parked.store(true, Relaxed);
        if receiver_fence {
            loom::sync::atomic::fence(SeqCst);
        }
        let found = published.load(Relaxed);
        assert!(sender.join().unwrap() || found, "the wake-up is lost");
    });
}

#[test]
fn both_fences_keep_the_wake_up() {
    dekker(true, true);
}

#[test]
#[should_panic(expected = "the wake-up is lost")]
fn without_the_senders_fence_the_model_loses_the_wake_up() {
    dekker(false, true);
}

#[test]
#[should_panic(expected = "the wake-up is lost")]
fn without_the_receivers_fence_the_model_loses_the_wake_up() {
    dekker(true, false);
}
