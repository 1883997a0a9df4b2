//! Dropped futures: buffers outlive them, slots come back, and nothing is lost for the next operation.
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use gristmill_shardexec::buf::AlignedBuf;
use gristmill_shardexec::executor::{Class, ExecutorConfig, spawn, yield_now};
use gristmill_shardexec::fs::OpenOptions;
use gristmill_shardexec::net::TcpStream;
use gristmill_shardexec::{executor_stats, offload, time};

use super::sockets::{listen, pair, recv_exactly};
use super::{Case, settle};

/// Few slots, so that a leaked one shows.
pub fn config() -> ExecutorConfig {
    ExecutorConfig { op_slots: SLOTS, ..ExecutorConfig::default() }
}

const SLOTS: usize = 8;

/// Polls once and drops. The op is under way by then.
async fn start_and_drop<F: Future>(future: F) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _ = future.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

pub async fn dropped_recv(_: Case) {
    let (client, server) = pair().await;
    for round in 0..100u8 {
        start_and_drop(server.recv(Vec::with_capacity(4096))).await;
        if round % 2 == 0 {
            yield_now().await;
        }
        settle().await;
        client.send_all(vec![round; 10]).await.0.unwrap();
        assert_eq!(recv_exactly(&server, 10).await, [round; 10], "a cancelled receive took the next one's bytes");
    }
    assert!(executor_stats().ops_in_flight_max <= SLOTS + 8, "{:?}", executor_stats());
}

pub async fn dropped_write(case: Case) {
    let options = OpenOptions::new().read(true).write(true).create(true);
    let file = options.open(case.path("f")).await.unwrap();
    for round in 1..=100u8 {
        // The driver may or may not have begun; what it writes must come from memory that is still ours.
        start_and_drop(file.write_at(AlignedBuf::from(&vec![round; 65_536][..]), 0)).await;
        drop(AlignedBuf::from(&vec![0xdd; 65_536][..]));
        if round % 3 == 0 {
            settle().await;
        }
        file.write_at(vec![round; 100], 1 << 20).await.0.unwrap();
    }
    settle().await;
    let (read, content) = file.read_at(AlignedBuf::zeroed(65_536), 0).await;
    let read = read.unwrap();
    for page in content[..read].chunks(4096) {
        assert!((0..=100).contains(&page[0]) && page.iter().all(|byte| *byte == page[0]), "freed memory was written");
    }
    assert_eq!(file.read_at(vec![0; 100], 1 << 20).await.1, [100; 100]);
}

pub async fn dropped_connect(_: Case) {
    let listener = listen().await;
    let open_before = open_descriptors();
    for _ in 0..50 {
        start_and_drop(TcpStream::connect(listener.local_addr())).await;
        settle().await;
    }
    // Connections that were made all the same wait at the listener; take them off.
    while let Ok(accepted) = time::timeout(Duration::from_millis(20), listener.accept()).await {
        drop(accepted.unwrap());
    }
    let client = TcpStream::connect(listener.local_addr()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.send_all(b"still works".to_vec()).await.0.unwrap();
    assert_eq!(recv_exactly(&server, 11).await, b"still works");
    drop((client, server));
    // Other tests of this process open and close descriptors as well: only a leak of most of the fifty shows for sure.
    for _ in 0..200 {
        if open_descriptors() < open_before + 40 {
            return;
        }
        time::sleep(Duration::from_millis(5)).await;
    }
    panic!("descriptors leak: {open_before} before, {} after", open_descriptors());
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub async fn dropped_offload(_: Case) {
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..20 {
        let ran = Arc::clone(&ran);
        start_and_drop(offload(move || {
            ran.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }))
        .await;
    }
    assert_eq!(offload(|| 5).await.unwrap(), 5);
    settle().await;
    assert!(ran.load(Ordering::SeqCst) <= 20);
    assert_eq!(Arc::strong_count(&ran), 1, "a job's captures outlive it");
}

type Recv<'a> = Pin<Box<dyn Future<Output = (std::io::Result<usize>, Vec<u8>)> + 'a>>;

pub async fn slots_run_out(_: Case) {
    let mut pairs = Vec::new();
    for _ in 0..SLOTS {
        pairs.push(pair().await);
    }
    let (client, server) = pair().await;
    let mut waiting: Vec<Recv<'_>> =
        pairs.iter().map(|(_, server)| Box::pin(server.recv(Vec::with_capacity(10))) as Recv<'_>).collect();
    for recv in &mut waiting {
        poll_fn(|cx| {
            assert!(recv.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    let sender = spawn(Class::Request, "sender", async move { client.send_all(b"hello".to_vec()).await.0.unwrap() });
    time::sleep(Duration::from_millis(5)).await;
    assert!(!sender.is_finished(), "every slot is taken, so the send has to wait");
    drop(waiting.pop());
    sender.await.unwrap();
    assert_eq!(recv_exactly(&server, 5).await, b"hello");
    drop(waiting);
}

pub async fn dropped_executor(case: Case) {
    // Tasks with operations of every kind under way when this executor ends, right after the case.
    let file = OpenOptions::new().write(true).create(true).open(case.path("f")).await.unwrap();
    let listener = listen().await;
    let (client, server) = pair().await;
    spawn(Class::Request, "accept", async move { drop(listener.accept().await) });
    spawn(Class::Request, "recv", async move { drop(server.recv(Vec::with_capacity(10)).await) });
    spawn(Class::Background, "write", async move {
        loop {
            file.write_at(AlignedBuf::zeroed(1 << 16), 0).await.0.unwrap();
        }
    });
    spawn(Class::Background, "offload", async move { drop(offload(|| ()).await) });
    yield_now().await;
    yield_now().await;
    case.leaves_operations.set(true);
    LEFT_OPEN.with_borrow_mut(|open| open.push(client));
}

thread_local! {
    /// A stream that outlives its executor: closing it must neither hang nor crash.
    static LEFT_OPEN: std::cell::RefCell<Vec<TcpStream>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A small generator of its own, so that a failing run can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Gives `future` a few turns of the executor, then drops it.
async fn within_turns<F: Future>(turns: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..turns {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// More than a round of random drops can send.
const SENT_MAX: usize = 1 << 20;

pub async fn random_drops(case: Case) {
    for seed in 1..=10 {
        let file =
            OpenOptions::new().read(true).write(true).create(true).open(case.path(&format!("{seed}"))).await.unwrap();
        let (client, server) = pair().await;
        let tasks: Vec<_> = (0..6u64)
            .map(|task| {
                let (file, client, server) = (file.clone(), client.clone(), server.clone());
                spawn(Class::Request, "drops", async move {
                    let mut dice = Dice(seed * 1000 + task);
                    let mut outcomes = [0; 2];
                    for _ in 0..60 {
                        let turns = dice.roll(6);
                        let offset = dice.roll(16) * 4096;
                        let page = AlignedBuf::from(&[7; 4096][..]);
                        let completed = match dice.roll(5) {
                            0 => within_turns(turns, file.write_at(page, offset)).await.is_some(),
                            1 => within_turns(turns, file.read_at(page, offset)).await.is_some(),
                            2 => within_turns(turns, client.send_all(vec![9; 500])).await.is_some(),
                            3 => within_turns(turns, server.recv(Vec::with_capacity(700))).await.is_some(),
                            _ => within_turns(turns, offload(move || offset)).await.is_some(),
                        };
                        outcomes[usize::from(completed)] += 1;
                    }
                    outcomes
                })
            })
            .collect();
        let mut dropped = 0;
        for task in tasks {
            dropped += task.await.unwrap()[0];
        }
        assert!(dropped > 0, "seed {seed} cut nothing short");
        settle().await;
        // Whatever was cut short: pages are whole or empty, and the stream carries only what was sent.
        let (read, content) = file.read_at(AlignedBuf::zeroed(16 * 4096), 0).await;
        for page in content[..read.unwrap()].chunks(4096) {
            assert!(page.iter().all(|byte| *byte == page[0]) && matches!(page[0], 0 | 7), "seed {seed}");
        }
        client.shutdown(gristmill_shardexec::net::ShutdownHow::Write).await.unwrap();
        assert!(recv_exactly(&server, SENT_MAX).await.iter().all(|byte| *byte == 9), "seed {seed}");
    }
}
