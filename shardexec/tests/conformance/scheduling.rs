//! Timers, classes, offload and wake-ups with a real driver underneath.
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use gristmill_shardexec::buf::AlignedBuf;
use gristmill_shardexec::executor::{Class, ExecutorConfig, JoinError, SpinPolicy, spawn, yield_if_spent, yield_now};
use gristmill_shardexec::fs::OpenOptions;
use gristmill_shardexec::random::{fill_random, random_u64};
use gristmill_shardexec::sync::mpsc;
use gristmill_shardexec::time::{Instant, WallClock, sleep, sleep_until};
use gristmill_shardexec::{OffloadError, executor_stats, offload};

use super::Case;
use super::sockets::{pair, recv_exactly};

pub fn config() -> ExecutorConfig {
    ExecutorConfig { spin: SpinPolicy::For(Duration::from_micros(100)), ..ExecutorConfig::default() }
}

/// Tasks of every class that never let the core idle, until the flag is set.
fn keep_busy() -> Rc<Cell<bool>> {
    let stop = Rc::new(Cell::new(false));
    for class in Class::ALL {
        let stop = Rc::clone(&stop);
        spawn(class, "busy", async move {
            while !stop.get() {
                yield_now().await;
            }
        });
    }
    stop
}

pub async fn timers_under_load(_: Case) {
    let stop = keep_busy();
    let (client, server) = pair().await;
    let echo = spawn(Class::Request, "echo", async move {
        loop {
            let bytes = recv_exactly(&server, 1).await;
            if bytes.is_empty() {
                return;
            }
            server.send_all(bytes).await.0.unwrap();
        }
    });
    let began = Instant::now();
    let (log, mut fired) = mpsc::channel(64);
    for ms in [30u64, 10, 20] {
        let log = log.clone();
        spawn(Class::Request, "sleeper", async move {
            let deadline = began + Duration::from_millis(ms);
            sleep_until(deadline).await;
            assert!(Instant::now() >= deadline);
            log.send(ms).await.unwrap();
        });
    }
    drop(log);
    let mut order = Vec::new();
    while order.len() < 3 {
        client.send_all(vec![1]).await.0.unwrap();
        assert_eq!(recv_exactly(&client, 1).await, [1]);
        order.extend(fired.try_recv().ok());
    }
    assert_eq!(order, [10, 20, 30]);
    stop.set(true);
    drop(client);
    echo.await.unwrap();
}

pub async fn background_does_not_starve_requests(case: Case) {
    let stop = Rc::new(Cell::new(false));
    let hog = Rc::clone(&stop);
    let background = spawn(Class::Background, "hog", async move {
        let mut work = 0u64;
        while !hog.get() {
            work = work.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if work.is_multiple_of(64) {
                yield_if_spent().await;
            }
        }
    });
    let file = OpenOptions::new().read(true).write(true).create(true).open(case.path("f")).await.unwrap();
    for round in 0..50u8 {
        file.write_at(vec![round; 100], 0).await.0.unwrap();
        assert_eq!(file.read_at(AlignedBuf::zeroed(100), 0).await.1[..], [round; 100]);
    }
    stop.set(true);
    background.await.unwrap();
}

pub async fn offload_values_and_panics(_: Case) {
    let jobs: Vec<_> = (0..100u64)
        .map(|n| spawn(Class::Background, "job", async move { offload(move || n * n).await.unwrap() }))
        .collect();
    let mut sum = 0;
    for job in jobs {
        sum += job.await.unwrap();
    }
    assert_eq!(sum, (0..100).map(|n| n * n).sum());
    let here = std::thread::current().id();
    assert!(offload(move || std::thread::current().id() != here).await.unwrap());
    let failed = offload(|| -> u8 { panic!("singular matrix") }).await;
    assert!(matches!(&failed, Err(OffloadError::Panicked(message)) if message == "singular matrix"), "{failed:?}");
    assert_eq!(offload(|| "goes on").await.unwrap(), "goes on");
}

/// A value that another thread sets, and the waker that it calls then.
struct Signal {
    set: AtomicBool,
    waker: std::sync::Mutex<Option<Waker>>,
}

impl Signal {
    fn new() -> Arc<Signal> {
        Arc::new(Signal { set: AtomicBool::new(false), waker: std::sync::Mutex::default() })
    }

    fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker.lock().unwrap().take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            if self.set.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

pub async fn wake_from_thread(_: Case) {
    let pauses = [Duration::ZERO, Duration::from_micros(20), Duration::from_micros(300)];
    for round in 0..300 {
        let signal = Signal::new();
        let setter = Arc::clone(&signal);
        let pause = pauses[round % pauses.len()];
        let thread = std::thread::spawn(move || {
            std::thread::sleep(pause);
            setter.set();
        });
        spawn(Class::Raft, "waits", async move { signal.wait().await }).await.unwrap();
        thread.join().unwrap();
    }
}

pub async fn spinning_sees_work(_: Case) {
    // Two threads in turn, thousands of times: a lost wake-up hangs, whether the core spins or parks at that moment.
    let ball = Arc::new(AtomicU32::new(0));
    let other = Arc::clone(&ball);
    let wakers: Arc<std::sync::Mutex<Option<Waker>>> = Arc::default();
    let to_wake = Arc::clone(&wakers);
    let thread = std::thread::spawn(move || {
        for round in 0..2000 {
            while other.load(Ordering::Acquire) != round * 2 + 1 {
                std::thread::yield_now();
            }
            other.store(round * 2 + 2, Ordering::Release);
            if let Some(waker) = to_wake.lock().unwrap().take() {
                waker.wake();
            }
        }
    });
    for round in 0..2000 {
        ball.store(round * 2 + 1, Ordering::Release);
        poll_fn(|cx| {
            *wakers.lock().unwrap() = Some(cx.waker().clone());
            if ball.load(Ordering::Acquire) == round * 2 + 2 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    thread.join().unwrap();
    let stats = executor_stats();
    assert!(stats.parks + stats.spins_won + stats.spins_suspended > 0, "{stats:?}");
}

pub async fn clocks_and_randomness(_: Case) {
    let (before, boot_before) = (Instant::now(), Instant::boottime_now());
    sleep(Duration::from_millis(2)).await;
    assert!(before.elapsed() >= Duration::from_millis(2));
    assert!(Instant::boottime_now() - boot_before >= Duration::from_millis(2));
    let year_2020 = 1_577_836_800_000_000_000;
    assert!(WallClock::now().0 > year_2020);
    let numbers: std::collections::BTreeSet<u64> = (0..1000).map(|_| random_u64()).collect();
    assert_eq!(numbers.len(), 1000);
    let mut bytes = vec![0; 100_000];
    fill_random(&mut bytes);
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    assert!((390_000..410_000).contains(&ones), "{ones} of 800,000 bits");
}

pub async fn panics_stay_in_their_task(case: Case) {
    let file = OpenOptions::new().write(true).create(true).open(case.path("f")).await.unwrap();
    let panicking: Vec<_> = (0..10u8)
        .map(|n| {
            let file = file.clone();
            spawn(Class::Raft, "panics", async move {
                file.write_at(vec![n; 100], 0).await.0.unwrap();
                panic!("task {n}");
            })
        })
        .collect();
    for (n, task) in panicking.into_iter().enumerate() {
        assert_eq!(task.await, Err(JoinError::Panicked(format!("task {n}"))));
    }
    file.write_at(vec![1; 100], 0).await.0.unwrap();
}
