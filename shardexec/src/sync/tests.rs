use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::executor::{Class, Executor, ExecutorConfig, IoChoice, spawn, yield_now};

fn on_executor<F: Future>(future: F) -> F::Output {
    Executor::start(ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() }).unwrap().block_on(future)
}

/// Polls once with a waker that wakes nobody.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn semaphore_serves_in_order_and_lets_nobody_overtake() {
    on_executor(async {
        let semaphore = Semaphore::new(2);
        let order: Rc<RefCell<Vec<u32>>> = Rc::default();
        let held = (semaphore.try_acquire().unwrap(), semaphore.try_acquire().unwrap());
        assert!(semaphore.try_acquire().is_none());
        let tasks: Vec<_> = (0..4)
            .map(|name| {
                let (semaphore, order) = (semaphore.clone(), Rc::clone(&order));
                spawn(Class::Request, "waits", async move {
                    let _permit = semaphore.acquire().await.unwrap();
                    order.borrow_mut().push(name);
                    yield_now().await;
                })
            })
            .collect();
        yield_now().await;
        drop(held);
        assert!(semaphore.try_acquire().is_none(), "the freed permits belong to those who wait");
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), [0, 1, 2, 3]);
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
fn a_permit_granted_to_a_dropped_waiter_is_passed_on() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.try_acquire().unwrap();
    let mut first = Box::pin(semaphore.acquire());
    let mut second = Box::pin(semaphore.acquire());
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    drop(held);
    drop(first);
    assert!(poll_once(second.as_mut()).is_ready());
    drop(second);
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn giving_up_leaves_no_trace_in_the_queue() {
    let semaphore = Semaphore::new(0);
    for _ in 0..1000 {
        let mut acquire = Box::pin(semaphore.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    semaphore.release();
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn a_closed_semaphore_refuses() {
    let semaphore = Semaphore::new(0);
    let mut waiting = Box::pin(semaphore.acquire());
    assert!(poll_once(waiting.as_mut()).is_pending());
    semaphore.close();
    assert!(matches!(poll_once(waiting.as_mut()), Poll::Ready(Err(semaphore::Closed))));
    semaphore.release();
    assert!(semaphore.try_acquire().is_none());
}

#[test]
fn oneshot_gives_the_value_or_says_why_not() {
    let (sender, receiver) = oneshot::channel();
    sender.send(5).unwrap();
    assert_eq!(poll_once(pin!(receiver)), Poll::Ready(Ok(5)));
    let (sender, receiver) = oneshot::channel::<u8>();
    drop(sender);
    assert_eq!(poll_once(pin!(receiver)), Poll::Ready(Err(oneshot::RecvError)));
    let (sender, receiver) = oneshot::channel();
    drop(receiver);
    assert!(sender.is_closed());
    assert_eq!(sender.send(7), Err(7));
}

#[test]
fn oneshot_wakes_its_receiver() {
    on_executor(async {
        let (sender, receiver) = oneshot::channel();
        let task = spawn(Class::Request, "receives", receiver);
        yield_now().await;
        assert!(!task.is_finished());
        sender.send("late").unwrap();
        assert_eq!(task.await.unwrap(), Ok("late"));
    });
}

#[test]
fn mpsc_is_bounded_and_keeps_order() {
    on_executor(async {
        let (sender, mut receiver) = mpsc::channel(2);
        sender.try_send(0).unwrap();
        sender.try_send(1).unwrap();
        assert_eq!(sender.try_send(2), Err(mpsc::TrySendError::Full(2)));
        let blocked = spawn(Class::Request, "sends", async move {
            for n in 2..100 {
                sender.send(n).await.unwrap();
            }
        });
        yield_now().await;
        assert_eq!(receiver.len(), 2);
        for n in 0..100 {
            assert_eq!(receiver.recv().await, Some(n));
        }
        assert_eq!(receiver.recv().await, None);
        assert_eq!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        blocked.await.unwrap();
    });
}

#[test]
fn mpsc_gives_values_back_when_the_receiver_is_gone() {
    on_executor(async {
        let (sender, receiver) = mpsc::channel(1);
        sender.send(1).await.unwrap();
        let mut waiting = Box::pin(sender.send(2));
        assert!(poll_once(waiting.as_mut()).is_pending());
        drop(receiver);
        assert_eq!(waiting.await, Err(mpsc::SendError(2)));
        assert_eq!(sender.try_send(3), Err(mpsc::TrySendError::Closed(3)));
        assert!(sender.is_closed());
    });
}

#[test]
fn weak_senders_do_not_keep_a_channel_open() {
    on_executor(async {
        let (sender, mut receiver) = mpsc::channel::<u8>(1);
        let weak = sender.downgrade();
        let second = weak.upgrade().unwrap();
        drop(sender);
        second.send(1).await.unwrap();
        drop(second);
        assert!(weak.upgrade().is_none());
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(receiver.recv().await, None);
    });
}

#[test]
fn values_may_come_back_to_the_channel_when_dropped() {
    struct Returns(Rc<Cell<u32>>, mpsc::Sender<Returns>);
    impl Drop for Returns {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            assert!(self.1.is_closed());
        }
    }
    let dropped = Rc::new(Cell::new(0));
    let (sender, receiver) = mpsc::channel(4);
    for _ in 0..3 {
        let value = Returns(Rc::clone(&dropped), sender.clone());
        assert!(sender.try_send(value).is_ok());
    }
    drop(receiver);
    assert_eq!(dropped.get(), 3);
}

#[test]
fn watch_tells_each_receiver_once_per_change() {
    on_executor(async {
        let (sender, mut first) = watch::channel(0);
        let mut second = first.clone();
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        first.changed().await.unwrap();
        assert_eq!(*first.borrow(), 2);
        assert!(poll_once(pin!(first.changed())).is_pending());
        assert_eq!(*second.borrow_and_update(), 2);
        assert!(poll_once(pin!(second.changed())).is_pending());
        assert!(!sender.send_if_modified(|_| false));
        assert!(poll_once(pin!(second.changed())).is_pending());
        let late = sender.subscribe();
        let task = spawn(Class::Request, "watches", async move {
            let mut late = late;
            late.changed().await.unwrap();
            *late.borrow_and_update()
        });
        yield_now().await;
        assert!(sender.send_if_modified(|value| {
            *value += 1;
            true
        }));
        assert_eq!(task.await.unwrap(), 3);
        drop(sender);
        first.changed().await.unwrap();
        assert_eq!(first.changed().await, Err(watch::RecvError));
    });
}

#[test]
fn watch_send_fails_when_nobody_watches() {
    let (sender, receiver) = watch::channel(0);
    drop(receiver);
    assert_eq!(sender.send(1), Err(watch::SendError(1)));
    assert_eq!(*sender.borrow(), 0);
    let again = sender.subscribe();
    sender.send(2).unwrap();
    assert_eq!(*again.borrow(), 2);
}

#[test]
fn mutex_holds_across_awaits() {
    on_executor(async {
        let counter = Rc::new(Mutex::new(0u32));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let counter = Rc::clone(&counter);
                spawn(Class::Request, "adds", async move {
                    let mut guard = counter.lock().await;
                    let before = *guard;
                    yield_now().await;
                    *guard = before + 1;
                })
            })
            .collect();
        yield_now().await;
        assert!(counter.try_lock().is_none());
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*counter.lock().await, 20);
    });
}

#[test]
fn a_mutex_survives_the_panic_of_its_holder() {
    on_executor(async {
        let value = Rc::new(Mutex::new(1));
        let inner = Rc::clone(&value);
        let broken = spawn(Class::Request, "panics", async move {
            let _guard = inner.lock().await;
            panic!("while holding the lock");
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(*value.lock().await, 1);
    });
}

#[test]
fn notify_remembers_one_and_passes_on_what_a_dropped_waiter_got() {
    let notify = Notify::new();
    notify.notify_one();
    notify.notify_one();
    assert!(poll_once(pin!(notify.notified())).is_ready());
    let mut first = Box::pin(notify.notified());
    let mut second = Box::pin(notify.notified());
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    notify.notify_one();
    drop(first);
    assert!(poll_once(second.as_mut()).is_ready());

    let mut third = Box::pin(notify.notified());
    assert!(poll_once(third.as_mut()).is_pending());
    notify.notify_waiters();
    assert!(poll_once(third.as_mut()).is_ready());
    assert!(poll_once(pin!(notify.notified())).is_pending(), "notify_waiters is not remembered");
}

#[test]
fn waking_never_happens_inside_a_borrow() {
    // A waker that comes back to the channel at once, as a foreign executor's may.
    struct Nosy(std::sync::Mutex<Option<Box<dyn FnMut() + Send>>>);
    impl std::task::Wake for Nosy {
        fn wake(self: std::sync::Arc<Self>) {
            if let Some(look) = self.0.lock().unwrap().as_mut() {
                look();
            }
        }
    }
    thread_local! {
        static CHANNEL: RefCell<Option<watch::Sender<u32>>> = const { RefCell::new(None) };
    }
    let (sender, mut receiver) = watch::channel(0);
    CHANNEL.set(Some(sender.clone()));
    let look = || CHANNEL.with_borrow(|sender| assert_eq!(*sender.as_ref().unwrap().subscribe().borrow(), 1));
    let waker = Waker::from(std::sync::Arc::new(Nosy(std::sync::Mutex::new(Some(Box::new(look))))));
    let mut changed = pin!(receiver.changed());
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    sender.send(1).unwrap();
    assert!(poll_once(changed).is_ready());
    CHANNEL.take();
    on_executor(poll_fn(|_| Poll::Ready(())));
}
