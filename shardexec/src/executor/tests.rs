use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::*;
use crate::sync::{Notify, oneshot};
use crate::time::{Instant, sleep, sleep_until, timeout};

fn executor(io: IoChoice) -> Executor {
    Executor::start(ExecutorConfig { io, ..ExecutorConfig::default() }).unwrap()
}

/// False, and a line on stderr, where the kernel refuses io_uring.
fn has_uring() -> bool {
    let started = Executor::start(ExecutorConfig { io: IoChoice::Uring, ..ExecutorConfig::default() });
    if let Err(error) = &started {
        eprintln!("SKIPPED on io_uring: {error}");
    }
    started.is_ok()
}

/// Each function becomes a test on `posix` and one on `uring`. The others run under a clock or a driver of their own.
macro_rules! on_every_driver {
    ($($name:ident),* $(,)?) => {
        mod posix {
            $(#[test] fn $name() { super::$name(super::IoChoice::Posix); })*
        }
        mod uring {
            $(#[test] fn $name() {
                if super::has_uring() {
                    super::$name(super::IoChoice::Uring);
                }
            })*
        }
    };
}

on_every_driver!(
    tasks_run_and_give_their_values,
    a_panicking_task_ends_alone,
    a_panic_while_a_task_is_dropped_is_caught_too,
    abort_drops_the_task_at_its_next_turn,
    a_task_may_abort_itself,
    a_waker_kept_past_its_task_wakes_nobody,
    another_thread_can_wake_a_parked_core,
    timers_fire_in_order_and_never_early,
    a_timer_fires_although_tasks_never_let_the_core_idle,
    timeouts_give_up_and_leave_no_timer,
    dropping_the_executor_drops_its_tasks,
);

fn tasks_run_and_give_their_values(io: IoChoice) {
    let sum = executor(io).block_on(async {
        let tasks: Vec<_> = (0..100u64).map(|n| spawn(Class::Request, "add", async move { n * 2 })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, 9900);
}

fn a_panicking_task_ends_alone(io: IoChoice) {
    let mut executor = executor(io);
    executor.block_on(async {
        let bystander = spawn(Class::Request, "bystander", async {
            sleep(Duration::from_millis(1)).await;
            "fine"
        });
        let broken = spawn(Class::Raft, "broken", async {
            yield_now().await;
            panic!("shard {} is lost", 7);
        });
        assert_eq!(broken.await, Err(JoinError::Panicked("shard 7 is lost".to_owned())));
        assert_eq!(bystander.await, Ok("fine"));
        assert_eq!(executor_stats().panics, 1);
        // To print a panic may take long enough for a stall.
        let told = loop {
            if let Incident::Panic { message, .. } = next_incident().await {
                break message;
            }
        };
        assert_eq!(told, "shard 7 is lost");
    });
    assert_eq!(executor.block_on(async { 1 }), 1);
}

fn a_panic_while_a_task_is_dropped_is_caught_too(io: IoChoice) {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    executor(io).block_on(async {
        let task = spawn(Class::Request, "bomb", async {
            let _bomb = Bomb;
            pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        assert_eq!(task.await, Err(JoinError::Panicked("dropped".to_owned())));
    });
}

struct Flag(Rc<Cell<bool>>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

fn abort_drops_the_task_at_its_next_turn(io: IoChoice) {
    executor(io).block_on(async {
        let dropped = Rc::new(Cell::new(false));
        let flag = Flag(Rc::clone(&dropped));
        let task = spawn(Class::Request, "endless", async move {
            let _flag = flag;
            pending::<()>().await;
        });
        yield_now().await;
        task.abort();
        assert!(!dropped.get(), "not inside the aborter's poll");
        assert_eq!(task.await, Err(JoinError::Aborted));
        assert!(dropped.get());
    });
}

fn a_task_may_abort_itself(io: IoChoice) {
    executor(io).block_on(async {
        let handle: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
        let own = Rc::clone(&handle);
        let task = spawn(Class::Request, "self", async move {
            if let Some(handle) = own.borrow().as_ref() {
                handle.abort();
            }
            pending::<()>().await;
        });
        *handle.borrow_mut() = Some(task);
        let result = poll_fn(|cx| {
            let mut handle = handle.borrow_mut();
            std::pin::Pin::new(handle.as_mut().unwrap()).poll(cx)
        });
        // The borrow of `own` in the task and ours never overlap: polls do not nest.
        assert_eq!(result.await, Err(JoinError::Aborted));
    });
}

fn a_waker_kept_past_its_task_wakes_nobody(io: IoChoice) {
    executor(io).block_on(async {
        let kept: Rc<Cell<Option<Waker>>> = Rc::default();
        let keep = Rc::clone(&kept);
        spawn(
            Class::Request,
            "first",
            poll_fn(move |cx| {
                keep.set(Some(cx.waker().clone()));
                Poll::Ready(())
            }),
        )
        .await
        .unwrap();
        let polls = Rc::new(Cell::new(0));
        let count = Rc::clone(&polls);
        // Takes over the slot of the first task.
        let second = spawn(
            Class::Request,
            "second",
            poll_fn(move |_| {
                count.set(count.get() + 1);
                Poll::<()>::Pending
            }),
        );
        yield_now().await;
        kept.take().unwrap().wake();
        yield_now().await;
        assert_eq!(polls.get(), 1);
        second.abort();
    });
}

#[expect(clippy::disallowed_methods, reason = "the test is about a wake-up from a foreign thread")]
fn another_thread_can_wake_a_parked_core(io: IoChoice) {
    let mut executor = executor(io);
    for _ in 0..50 {
        let (to_thread, from_task) = std::sync::mpsc::channel::<Waker>();
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = std::sync::Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let waker = from_task.recv().unwrap();
            flag.store(true, std::sync::atomic::Ordering::SeqCst);
            waker.wake();
        });
        executor.block_on(async {
            spawn(Class::Request, "waits", async move {
                let mut sent = false;
                poll_fn(move |cx| {
                    if !std::mem::replace(&mut sent, true) {
                        to_thread.send(cx.waker().clone()).unwrap();
                    }
                    if done.load(std::sync::atomic::Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            })
            .await
            .unwrap();
        });
        thread.join().unwrap();
    }
}

fn timers_fire_in_order_and_never_early(io: IoChoice) {
    executor(io).block_on(async {
        let fired: Rc<RefCell<Vec<u64>>> = Rc::default();
        let began = Instant::now();
        let tasks: Vec<_> = [5u64, 1, 3, 2, 4]
            .into_iter()
            .map(|ms| {
                let fired = Rc::clone(&fired);
                spawn(Class::Request, "sleeper", async move {
                    let deadline = began + Duration::from_millis(ms);
                    sleep_until(deadline).await;
                    assert!(Instant::now() >= deadline);
                    fired.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*fired.borrow(), [1, 2, 3, 4, 5]);
        assert_eq!(executor_stats().timers_armed, 0);
    });
}

fn a_timer_fires_although_tasks_never_let_the_core_idle(io: IoChoice) {
    executor(io).block_on(async {
        let stop = Rc::new(Cell::new(false));
        for class in Class::ALL {
            let stop = Rc::clone(&stop);
            spawn(class, "busy", async move {
                while !stop.get() {
                    yield_now().await;
                }
            });
        }
        sleep(Duration::from_millis(10)).await;
        stop.set(true);
    });
}

fn timeouts_give_up_and_leave_no_timer(io: IoChoice) {
    executor(io).block_on(async {
        assert!(timeout(Duration::from_millis(1), pending::<()>()).await.is_err());
        assert_eq!(timeout(Duration::from_hours(1), async { 5 }).await, Ok(5));
        assert_eq!(timeout(Duration::ZERO, async { 5 }).await, Ok(5), "a ready future wins");
        assert_eq!(executor_stats().timers_armed, 0);
    });
}

/// Virtual clock: each poll costs a microsecond of budget, so that shares are exact.
mod virtual_time {
    use super::*;
    use crate::driver::{Completion, Op, OpKey};
    use crate::time::WallClock;

    pub struct Ticking {
        pub now_ns: u64,
        pub unpark: std::sync::Arc<Silent>,
    }
    pub struct Silent;
    impl Unpark for Silent {
        fn unpark(&self) {}
    }
    impl Driver for Ticking {
        fn name(&self) -> &'static str {
            "ticking"
        }
        fn submit(&mut self, _: OpKey, op: Op) {
            panic!("no I/O in this test: {op:?}");
        }
        fn cancel(&mut self, _: OpKey) {}
        fn poll(&mut self, wait: Wait, _: &mut Vec<Completion>) {
            if let Wait::Until(Some(deadline)) = wait {
                self.now_ns = self.now_ns.max(deadline.as_ns());
            }
        }
        fn unparker(&self) -> std::sync::Arc<dyn Unpark> {
            self.unpark.clone()
        }
        fn now(&self) -> Instant {
            Instant::from_ns(self.now_ns)
        }
        fn boottime(&self) -> Instant {
            self.now()
        }
        fn wall_clock(&self) -> WallClock {
            WallClock(self.now_ns)
        }
        fn budget_clock(&mut self) -> Instant {
            self.now_ns += 1000;
            self.now()
        }
        fn pick_task(&mut self, ready: usize) -> usize {
            ready - 1
        }
        fn fill_random(&mut self, out: &mut [u8]) {
            out.fill(4);
        }
    }

    pub fn executor(task_order: TaskOrder) -> Executor {
        let driver = Ticking { now_ns: 0, unpark: std::sync::Arc::new(Silent) };
        Executor::with_driver(Box::new(driver), ExecutorConfig { task_order, ..ExecutorConfig::default() })
    }
}

#[test]
fn under_full_load_classes_share_in_proportion_to_their_slices() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    for class in Class::ALL {
        for _ in 0..3 {
            executor.spawn(class, "busy", async {
                loop {
                    yield_now().await;
                }
            });
        }
    }
    assert_eq!(executor.run_for(50_000), Pause::Runnable);
    let busy = executor.stats().busy.map(|busy| busy.as_secs_f64());
    let total: f64 = busy.iter().sum();
    for (busy, share) in busy.into_iter().zip([0.4, 0.4, 0.2]) {
        assert!((busy / total - share).abs() < 0.02, "{} instead of {share}", busy / total);
    }
}

#[test]
fn urgent_work_goes_before_background_work() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    let order: Rc<RefCell<Vec<Class>>> = Rc::default();
    for class in [Class::Background, Class::Request, Class::Raft] {
        let order = Rc::clone(&order);
        executor.spawn(class, "note", async move { order.borrow_mut().push(class) });
    }
    assert_eq!(executor.run_for(10), Pause::Idle(None));
    assert_eq!(*order.borrow(), Class::ALL);
}

#[test]
fn a_background_task_yields_after_its_slice() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    executor.spawn(Class::Background, "long", async {
        for _ in 0..10_000 {
            yield_if_spent().await;
        }
    });
    assert_eq!(executor.run_for(100_000), Pause::Idle(None));
    let stats = executor.stats();
    // Each check costs a virtual microsecond: 10,000 of them in slices of 250.
    assert!((38..=42).contains(&stats.polls[Class::Background.index()]), "{stats:?}");
    assert_eq!(stats.stalls, 0, "{stats:?}");
}

#[test]
fn whoever_yields_when_told_is_never_reported() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    for class in Class::ALL {
        executor.spawn(class, "long", async {
            for _ in 0..5000 {
                yield_if_spent().await;
            }
        });
    }
    assert_eq!(executor.run_for(100_000), Pause::Idle(None));
    assert_eq!(executor.stats().stalls, 0, "{:?}", executor.stats());
}

#[test]
fn the_stall_detector_names_the_task() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    executor.spawn(Class::Background, "hog", async {
        for _ in 0..700 {
            let _spent = slice_spent(); // Costs a virtual microsecond and is ignored.
        }
    });
    executor.spawn(Class::Request, "quick", async {});
    executor.run_for(10);
    let stats = executor.stats();
    assert_eq!(stats.stalls, 1);
    assert_eq!((stats.stalled[0].task, stats.stalled[0].class), ("hog", Class::Background));
    assert!(stats.stalled[0].longest >= Duration::from_micros(700));
    assert_eq!(stats.stall_longest, stats.stalled[0].longest);
    let told = executor.block_on(next_incident());
    assert_eq!(told, Incident::Stall { task: "hog", class: Class::Background, held: stats.stall_longest });
}

#[test]
fn a_driver_may_order_tasks() {
    let mut executor = virtual_time::executor(TaskOrder::DriverPicks);
    let order: Rc<RefCell<Vec<u32>>> = Rc::default();
    for name in 0..4 {
        let order = Rc::clone(&order);
        executor.spawn(Class::Request, "note", async move { order.borrow_mut().push(name) });
    }
    executor.run_for(10);
    assert_eq!(*order.borrow(), [3, 2, 1, 0]);
}

#[test]
fn virtual_time_jumps_to_the_next_deadline() {
    let mut executor = virtual_time::executor(TaskOrder::Fifo);
    let slept = executor.block_on(async {
        let began = Instant::now();
        sleep(Duration::from_hours(24)).await;
        began.elapsed()
    });
    assert_eq!(slept.as_secs(), 86_400);
}

type Mailbox = Rc<RefCell<(u32, Option<Waker>)>>;

async fn player(own: Mailbox, other: Mailbox, rounds: u32) {
    for round in 0..rounds {
        poll_fn(|cx| {
            let mut own = own.borrow_mut();
            own.1 = Some(cx.waker().clone());
            if own.0 > round { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        other.borrow_mut().0 += 1;
        let waker = other.borrow_mut().1.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[test]
fn executors_take_turns_on_one_thread() {
    // As in a simulation: each node has its executor, and they wake each other's tasks.
    let (left_box, right_box): (Mailbox, Mailbox) = Default::default();
    left_box.borrow_mut().0 = 1;
    let mut left = virtual_time::executor(TaskOrder::Fifo);
    let mut right = virtual_time::executor(TaskOrder::Fifo);
    let left_done = left.spawn(Class::Raft, "left", player(Rc::clone(&left_box), Rc::clone(&right_box), 10));
    let right_done = right.spawn(Class::Raft, "right", player(right_box, left_box, 10));
    let mut turns = 0;
    while !(left_done.is_finished() && right_done.is_finished()) {
        assert_eq!(left.run_for(100), Pause::Idle(None));
        assert_eq!(right.run_for(100), Pause::Idle(None));
        turns += 1;
        assert!(turns <= 20, "a wake-up between executors was lost");
    }
}

fn dropping_the_executor_drops_its_tasks(io: IoChoice) {
    let mut executor = executor(io);
    let (sender, mut receiver) = oneshot::channel::<()>();
    let task = executor.spawn(Class::Request, "holds", async move {
        let _sender = sender;
        Notify::new().notified().await;
    });
    executor.block_on(yield_now());
    assert!(!task.is_finished());
    drop(executor);
    assert!(task.is_finished());
    assert!(receiver.try_recv().is_none());
}

#[test]
#[should_panic(expected = "outside an executor")]
fn futures_need_an_executor() {
    let _ = Instant::now();
}

#[test]
fn pinning_to_a_missing_cpu_says_so() {
    let config = ExecutorConfig { pin_to: Some(1 << 20), io: IoChoice::Posix, ..ExecutorConfig::default() };
    let error = Executor::start(config).err().unwrap().to_string();
    assert!(error.contains("cannot pin core 0 to CPU 1048576"), "{error}");
}
