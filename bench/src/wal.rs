//! Durable appends through the log, and the floors and peers beside them.
//!
//! ```text
//!   LogUnderTest   tasks ─► Wal::append ─► group commit ─► durable        one core, one executor
//!   RawRing        ring ─► prewritten file                               the floor, in `raw_ring`
//!   RaftEngine     threads ─► Engine::write(sync)                        the peer, with the feature `peers`
//! ```
//!
//! The log runs in its steady state: what was acknowledged long ago is purged as a flushed state would, so segments are recycled.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, driver_name, spawn};
use gristmill_wal::{AppendEntry, FencingToken, GroupId, LogNumber, LogPosition, Wal, WalOptions};

use crate::goals::median;

/// Entries that stay in the log behind the newest: what a flush of the state leaves.
const ENTRIES_KEPT: u64 = 16 << 10;

/// The one term of a bench.
const TERM: u64 = 1;

/// A running log on an executor of its own.
pub struct LogUnderTest {
    executor: Executor,
    log: Log,
    /// `uring` or `posix`.
    pub driver: &'static str,
}

/// What the tasks of a run share.
#[derive(Clone)]
struct Log {
    wal: Wal,
    next_index: Rc<Cell<u64>>,
}

const GROUP: GroupId = GroupId(1);

impl Log {
    /// Appends one entry and waits until it is durable.
    async fn append(&self, payload: &[u8]) {
        let index = self.next_index.replace(self.next_index.get() + 1);
        let entry = AppendEntry {
            position: LogPosition { term: TERM, index },
            token: FencingToken::first_of_term(TERM).expect("a small term"),
            kind: 1,
            parts: [payload, &[]],
        };
        let lsn = self.wal.append_unacknowledged(GROUP, TERM, &[entry]).expect("the log takes it");
        self.wal.durable(lsn).await.expect("a working disk");
    }

    /// Drops what a flushed state would no longer need.
    async fn purge(&self) {
        let newest = self.next_index.get();
        if let Some(index) = newest.checked_sub(ENTRIES_KEPT).filter(|&index| index > 1) {
            self.wal.purge(GROUP, LogPosition { term: TERM, index }).await.expect("a working disk");
        }
    }
}

impl LogUnderTest {
    /// Creates a log in `dir`, with production's settings.
    pub fn create(dir: &Path) -> LogUnderTest {
        let config = ExecutorConfig { io: IoChoice::Auto, ..ExecutorConfig::default() };
        let mut executor = Executor::start(config).expect("a driver");
        let (log, driver) = executor.block_on(async {
            let (wal, _) = Wal::open(dir, LogNumber(0), WalOptions::default()).await.expect("an empty directory");
            (Log { wal, next_index: Rc::new(Cell::new(1)) }, driver_name())
        });
        LogUnderTest { executor, log, driver }
    }

    /// Median microseconds of `appends` entries of `bytes`, one after the other.
    pub fn one_by_one_us(&mut self, bytes: usize, appends: usize) -> f64 {
        let (log, payload) = (self.log.clone(), vec![7; bytes]);
        self.executor.block_on(async move {
            let mut samples = Vec::with_capacity(appends);
            for _ in 0..appends {
                let began = Instant::now();
                log.append(&payload).await;
                samples.push(began.elapsed().as_secs_f64() * 1e6);
            }
            log.purge().await;
            median(&samples)
        })
    }

    /// Entries of `bytes` made durable a second by `writers` tasks, each of which waits for its own before the next.
    pub fn concurrent_per_s(&mut self, writers: usize, bytes: usize, span: Duration) -> f64 {
        let log = self.log.clone();
        self.executor.block_on(async move {
            let done = Rc::new(Cell::new(false));
            let payload: Rc<[u8]> = vec![7; bytes].into();
            let counted: Rc<RefCell<u64>> = Rc::default();
            let began = Instant::now();
            let tasks: Vec<_> = (0..writers)
                .map(|_| {
                    let (log, done, payload, counted) = (log.clone(), done.clone(), payload.clone(), counted.clone());
                    spawn(Class::Request, "appender", async move {
                        let mut appended = 0;
                        while !done.get() {
                            log.append(&payload).await;
                            appended += 1;
                        }
                        *counted.borrow_mut() += appended;
                    })
                })
                .collect();
            while began.elapsed() < span {
                gristmill_shardexec::time::sleep(Duration::from_millis(20)).await;
                log.purge().await;
            }
            done.set(true);
            for task in tasks {
                task.await.expect("appenders do not panic");
            }
            let (appended, took) = (*counted.borrow(), began.elapsed());
            appended as f64 / took.as_secs_f64()
        })
    }
}

impl Drop for LogUnderTest {
    fn drop(&mut self) {
        let wal = self.log.wal.clone();
        self.executor.block_on(async move { wal.close().await }).expect("the log closes");
    }
}

/// raft-engine with its default settings.
#[cfg(feature = "peers")]
pub struct RaftEngine(std::sync::Arc<raft_engine::Engine>);

#[cfg(feature = "peers")]
impl RaftEngine {
    /// Keys that each thread writes in turn.
    const KEYS: u64 = 1024;
    /// Writes between two requests to let old files go.
    const WRITES_PER_PURGE: u64 = 100_000;

    /// Opens an engine in `dir`.
    pub fn create(dir: &Path) -> RaftEngine {
        let dir = dir.to_str().expect("a UTF-8 path").to_owned();
        let config = raft_engine::Config { dir, ..raft_engine::Config::default() };
        RaftEngine(std::sync::Arc::new(raft_engine::Engine::open(config).expect("raft-engine opens")))
    }

    /// Values of `bytes` made durable a second by `threads` threads, each waiting for its own.
    pub fn concurrent_per_s(&self, threads: u64, bytes: usize, span: Duration) -> f64 {
        let began = Instant::now();
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let engine = std::sync::Arc::clone(&self.0);
                std::thread::spawn(move || {
                    let mut written = 0;
                    while began.elapsed() < span {
                        let mut batch = raft_engine::LogBatch::default();
                        let key = (written % Self::KEYS).to_le_bytes().to_vec();
                        batch.put(thread + 1, key, vec![7; bytes]).expect("a valid key");
                        engine.write(&mut batch, true).expect("a working disk");
                        written += 1;
                        if thread == 0 && written % (Self::WRITES_PER_PURGE / threads) == 0 {
                            engine.purge_expired_files().expect("a working disk");
                        }
                    }
                    written
                })
            })
            .collect();
        let written: u64 = workers.into_iter().map(|worker| worker.join().expect("no panic")).sum();
        written as f64 / began.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_runs_at_smoke_size() {
        let dir = crate::disk::scratch();
        let mut log = LogUnderTest::create(&dir.path().join("log"));
        let figures = [log.one_by_one_us(4096, 20), log.concurrent_per_s(64, 128, Duration::from_millis(50))];
        assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{figures:?}");
    }
}
