//! The mesh under executors: parking, credits, fairness, departure.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Closed, MeshPort, TrySendError, mesh};
use crate::cores::{BodyPanic, Cores};
use crate::{Class, CoreId, Executor, ExecutorConfig, IoChoice, spawn, yield_now};

const DEADLINE: Duration = Duration::from_mins(1);

/// The drivers that this machine has: io_uring may be refused.
fn drivers() -> impl Iterator<Item = IoChoice> {
    let starts = |io: &IoChoice| Executor::start(ExecutorConfig { io: *io, ..ExecutorConfig::default() }).is_ok();
    [IoChoice::Uring, IoChoice::Posix].into_iter().filter(starts)
}

fn executor(core: u16) -> Executor {
    let config = ExecutorConfig { core: CoreId(core), io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("epoll is always there")
}

/// One executor a core, all on this thread, so that a test says who runs when.
fn attached<M: Send + 'static>(cores: usize, capacity: usize) -> Vec<(Executor, MeshPort<M>)> {
    let attach = |seat: super::MeshSeat<M>| {
        let mut executor = executor(seat.core().0);
        let port = executor.block_on(async { seat.attach() });
        (executor, port)
    };
    mesh(cores, capacity).into_iter().map(attach).collect()
}

/// A lost wake-up shall fail a test, not hang it.
async fn in_time<F: Future>(future: F) -> F::Output {
    crate::time::timeout(DEADLINE, future).await.expect("a wake-up was lost")
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn parked_cores_answer_each_other() {
    for io in drivers() {
        let mut seats = mesh::<u64>(2, 8).into_iter();
        let body = |core: CoreId| {
            let seat = seats.next().expect("one seat a core");
            move || async move {
                let port = seat.attach();
                for round in 0..2_000 {
                    if core == CoreId(0) {
                        port.send(CoreId(1), round).await.expect("the peer stays to the end");
                    }
                    assert_eq!(in_time(port.recv()).await, (CoreId(1 - core.0), round));
                    if core == CoreId(1) {
                        port.send(CoreId(0), round).await.expect("the peer stays to the end");
                    }
                }
                crate::executor_stats().parks
            }
        };
        let config = |_| ExecutorConfig { io, ..ExecutorConfig::default() };
        let cores = Cores::start(2, BodyPanic::Report, config, body).expect("cores start");
        for parks in cores.join() {
            assert!(parks.expect("no core panics") > 0, "without spinning, waiting is parking");
        }
    }
}

#[test]
fn every_message_arrives_once_and_in_order_through_rings_that_are_always_full() {
    const CORES: u16 = 3;
    const MESSAGES: u64 = 2_000;
    for io in drivers() {
        let mut seats = mesh::<u64>(usize::from(CORES), 2).into_iter();
        let body = |_| {
            let seat = seats.next().expect("one seat a core");
            move || async move {
                let port = seat.attach();
                let flood = |to| {
                    let port = port.clone();
                    spawn(Class::Request, "flood", async move {
                        for number in 0..MESSAGES {
                            port.send(to, number).await.expect("nobody leaves before the end");
                        }
                    })
                };
                let floods: Vec<_> = port.cores().map(flood).collect();
                let mut expected = [0; CORES as usize];
                for _ in 0..u64::from(CORES) * MESSAGES {
                    let (from, number) = in_time(port.recv()).await;
                    assert_eq!(number, expected[usize::from(from.0)]);
                    expected[usize::from(from.0)] += 1;
                }
                for flood in floods {
                    in_time(flood).await.expect("all was sent");
                }
            }
        };
        let config = |_| ExecutorConfig { io, ..ExecutorConfig::default() };
        let cores = Cores::start(usize::from(CORES), BodyPanic::Report, config, body).expect("cores start");
        for outcome in cores.join() {
            assert_eq!(outcome, Ok(()));
        }
    }
}

#[test]
fn senders_get_credits_in_the_order_of_their_waiting_and_nobody_overtakes() {
    let mut cores = attached::<&str>(1, 1);
    let (executor, port) = &mut cores[0];
    let me = port.core();
    executor.block_on(async {
        assert_eq!(port.try_send(me, "first"), Ok(()));
        let mut second = pin!(port.send(me, "second"));
        let mut given_up = Box::pin(port.send(me, "given up"));
        let mut third = pin!(port.send(me, "third"));
        assert!(poll_once(second.as_mut()).is_pending());
        assert!(poll_once(given_up.as_mut()).is_pending());
        assert!(poll_once(third.as_mut()).is_pending());
        drop(given_up);

        assert_eq!(port.try_recv(), Some((me, "first")));
        assert_eq!(port.try_send(me, "pushy"), Err(TrySendError::Full("pushy")), "the credit belongs to who waits");
        assert_eq!(port.try_send_batch(me, &mut ["pushy"].into_iter()), 0);
        assert!(poll_once(third.as_mut()).is_pending(), "it is the second's turn");
        assert_eq!(poll_once(second.as_mut()), Poll::Ready(Ok(())));
        assert!(poll_once(third.as_mut()).is_pending());
        assert_eq!(port.recv().await, (me, "second"));
        third.await.expect("its turn has come");
        assert_eq!(port.recv().await, (me, "third"));
        assert_eq!(port.try_recv(), None);
    });
}

#[test]
fn a_waiting_sender_is_woken_when_the_one_before_it_gives_up() {
    let mut cores = attached::<u32>(1, 1);
    let (executor, port) = &mut cores[0];
    let me = port.core();
    executor.block_on(async {
        assert_eq!(port.try_send(me, 1), Ok(()));
        let mut before = Box::pin(port.send(me, 2));
        assert!(poll_once(before.as_mut()).is_pending());
        let sender = spawn(Class::Request, "sender", {
            let port = port.clone();
            async move { port.send(me, 3).await }
        });
        yield_now().await;
        // The credit is first offered to `before`, which is never polled again.
        assert_eq!(port.recv().await, (me, 1));
        yield_now().await;
        drop(before);
        assert_eq!(sender.await.expect("no panic"), Ok(()));
        assert_eq!(port.recv().await, (me, 3));
    });
}

#[test]
fn a_peer_that_leaves_hands_messages_back() {
    let mut cores = attached::<u32>(2, 1);
    let (mut leaver, leaving) = cores.pop().expect("two cores");
    let (executor, port) = &mut cores[0];
    let to = leaving.core();
    assert_eq!(port.try_send(to, 1), Ok(()));
    let sender = executor.spawn(Class::Request, "sender", {
        let port = port.clone();
        async move { port.send(to, 2).await }
    });
    executor.block_on(yield_now());
    leaver.block_on(async { drop(leaving) });
    executor.block_on(async {
        assert_eq!(sender.await.expect("no panic"), Err(Closed(2)));
        assert_eq!(port.try_send(to, 3), Err(TrySendError::Closed(3)));
        assert_eq!(port.send(to, 4).await, Err(Closed(4)));
        assert_eq!(port.try_send_batch(to, &mut [5].into_iter()), 0);
    });
}

#[test]
fn one_busy_peer_does_not_shut_the_others_out() {
    let mut cores = attached::<u32>(3, 256);
    for (executor, port) in &mut cores[1..] {
        let sent = executor.block_on(async { port.try_send_batch(CoreId(0), &mut (0..256)) });
        assert_eq!(sent, 256);
    }
    let (executor, port) = &mut cores[0];
    executor.block_on(async {
        let first: Vec<CoreId> = (0..128).filter_map(|_| port.try_recv()).map(|(from, _)| from).collect();
        assert_eq!(first.iter().filter(|from| **from == CoreId(1)).count(), 64);
        assert_eq!(first.iter().filter(|from| **from == CoreId(2)).count(), 64);
        assert_eq!(std::iter::from_fn(|| port.try_recv()).count(), 512 - 128);
    });
}

#[test]
fn one_core_alone_receives_longer_runs_than_a_burst() {
    let mut cores = attached::<u32>(1, 256);
    let (executor, port) = &mut cores[0];
    executor.block_on(async {
        assert_eq!(port.try_send_batch(CoreId(0), &mut (0..200)), 200);
        for expected in 0..200 {
            assert_eq!(port.try_recv(), Some((CoreId(0), expected)));
        }
    });
}

#[test]
#[should_panic(expected = "one task of a core receives")]
fn two_receiving_tasks_are_a_bug() {
    let mut cores = attached::<u32>(1, 1);
    let (executor, port) = &mut cores[0];
    executor.block_on(async {
        let mut other = pin!(port.recv());
        assert!(poll_once(other.as_mut()).is_pending());
        port.recv().await
    });
}

#[test]
#[should_panic(expected = "belongs to its own core's executor")]
fn a_seat_is_not_taken_by_another_core() {
    let seat = mesh::<u32>(2, 1).pop().expect("two seats");
    executor(0).block_on(async { drop(seat.attach()) });
}

/// Steady state: whatever the first messages set up is there already.
#[test]
#[expect(clippy::disallowed_methods, reason = "counts what one thread allocates, executor included")]
fn a_hop_allocates_nothing() {
    const HOPS: u64 = 1_000;
    /// `block_on` makes a waker, and a queue of the executor may still grow once.
    const OF_THE_RUN: u64 = 8;
    for io in drivers() {
        let count = move |seat: super::MeshSeat<u64>| {
            let mut executor = Executor::start(ExecutorConfig { core: seat.core(), io, ..ExecutorConfig::default() })
                .expect("it starts");
            let (me, other) = (seat.core(), CoreId(1 - seat.core().0));
            let port = executor.block_on(async { seat.attach() });
            let mut allocations = |hops: u64| {
                let hop = async {
                    for round in 0..hops {
                        if me == CoreId(0) {
                            port.send(other, round).await.expect("the peer stays to the end");
                        }
                        assert_eq!(port.recv().await, (other, round));
                        if me == CoreId(1) {
                            port.send(other, round).await.expect("the peer stays to the end");
                        }
                    }
                };
                allocation_counter::measure(|| executor.block_on(hop)).count_total
            };
            allocations(100);
            allocations(HOPS)
        };
        let mut seats = mesh::<u64>(2, 8).into_iter();
        let mut start = || {
            let seat = seats.next().expect("two seats");
            std::thread::spawn(move || count(seat))
        };
        for core in [start(), start()] {
            let allocations = core.join().expect("no core panics");
            assert!(allocations <= OF_THE_RUN, "{allocations} allocations in {HOPS} hops, {io:?}");
        }
    }
}
