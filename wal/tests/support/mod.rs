//! What the log's tests share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
use gristmill_wal::{
    AppendEntry, FencingToken, GroupId, LogNumber, LogPosition, Lsn, RecoveryReport, Wal, WalError, WalOptions,
};

/// A directory that goes with the test.
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// On the file system of the build directory: O_DIRECT as a rule.
    pub fn disk() -> Dir {
        Dir(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory in the build directory"))
    }

    /// In shared memory: no O_DIRECT on older kernels.
    pub fn memory() -> Dir {
        Dir(tempfile::tempdir_in("/dev/shm").expect("a directory in shared memory"))
    }

    pub fn both() -> [Dir; 2] {
        [Dir::disk(), Dir::memory()]
    }

    /// The log's directory.
    pub fn log(&self) -> PathBuf {
        self.0.path().join("log-000")
    }
}

/// Runs a test's future on an executor of its own, then drops everything as a crash of the process would.
pub fn run<F: Future>(future: F) -> F::Output {
    run_on(IoChoice::Posix, future)
}

/// As [`run`], on a driver.
pub fn run_on<F: Future>(io: IoChoice, future: F) -> F::Output {
    let config = ExecutorConfig { io, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(future)
}

/// False, and a line on stderr, where the kernel refuses io_uring.
pub fn has_uring() -> bool {
    let started = Executor::start(ExecutorConfig { io: IoChoice::Uring, ..ExecutorConfig::default() });
    if let Err(error) = &started {
        eprintln!("SKIPPED on io_uring: {error}");
    }
    started.is_ok()
}

/// Set in a process that consists of one test alone.
const CHILD: &str = "GRISTMILL_WAL_TEST_CHILD";

/// Runs `body` in a process of its own, in which nothing but the test of that name runs. For what changes the whole process.
pub fn in_child(test: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let exe = std::env::current_exe().expect("the test binary");
    let child = std::process::Command::new(exe).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output();
    let child = child.expect("the test binary runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{test} in a process of its own: {}\n{stdout}\n{stderr}", child.status);
    assert!(stdout.contains("1 passed"), "the child ran this very test: {stdout}");
}

/// Each function becomes a test on `posix` and one on `uring`.
#[macro_export]
macro_rules! on_every_driver {
    ($($name:ident),* $(,)?) => {
        mod posix {
            $(#[test] fn $name() { super::$name(gristmill_shardexec::IoChoice::Posix); })*
        }
        mod uring {
            $(#[test] fn $name() {
                if super::support::has_uring() {
                    super::$name(gristmill_shardexec::IoChoice::Uring);
                }
            })*
        }
    };
}

pub async fn open(dir: &Dir) -> Wal {
    open_with(dir, WalOptions::small()).await.expect("the log opens").0
}

pub async fn open_with(dir: &Dir, options: WalOptions) -> Result<(Wal, RecoveryReport), WalError> {
    open_path(&dir.log(), options).await
}

pub async fn open_path(path: &Path, options: WalOptions) -> Result<(Wal, RecoveryReport), WalError> {
    Wal::open(path, LogNumber(0), options).await
}

pub fn position(term: u64, index: u64) -> LogPosition {
    LogPosition { term, index }
}

/// Token, kind and payload of the entry that tests append at a position. Sequences rise with the index.
pub fn entry(term: u64, index: u64) -> (FencingToken, u8, Vec<u8>) {
    let token = FencingToken::new(term as u32, index as u32);
    let len = (index * 37 % 300) as usize;
    (token, (index % 251) as u8, (0..len).map(|n| (n as u64 ^ index ^ (term << 3)) as u8).collect())
}

pub fn try_append(
    wal: &Wal,
    group: GroupId,
    writer_term: u64,
    term: u64,
    range: RangeInclusive<u64>,
) -> Result<Lsn, WalError> {
    let contents: Vec<_> = range.clone().map(|index| entry(term, index)).collect();
    let entries: Vec<_> = range
        .zip(&contents)
        .map(|(index, (token, kind, payload))| {
            // Both parts, when there is enough for two.
            let (head, body) = payload.split_at(if payload.len() > 48 { 48 } else { 0 });
            let parts = if head.is_empty() { [body, &[]] } else { [head, body] };
            AppendEntry { position: position(term, index), token: *token, kind: *kind, parts }
        })
        .collect();
    wal.append_unacknowledged(group, writer_term, &entries)
}

pub fn try_append_payload(
    wal: &Wal,
    group: GroupId,
    writer_term: u64,
    position: LogPosition,
    payload: &[u8],
) -> Result<Lsn, WalError> {
    let token = FencingToken::new(position.term as u32, position.index as u32);
    let entry = AppendEntry { position, token, kind: 1, parts: [payload, &[]] };
    wal.append_unacknowledged(group, writer_term, &[entry])
}

/// Appends the test's entries as leader of their own term.
pub fn append(wal: &Wal, group: GroupId, term: u64, range: RangeInclusive<u64>) -> Lsn {
    try_append(wal, group, term, term, range).expect("accepted")
}

/// Appends one entry as leader of its own term; `done` learns its fate.
pub fn append_with(
    wal: &Wal,
    group: GroupId,
    term: u64,
    index: u64,
    done: impl FnOnce(Result<(), WalError>) + 'static,
) -> Lsn {
    let (token, kind, payload) = entry(term, index);
    let entry = AppendEntry { position: position(term, index), token, kind, parts: [&payload, &[]] };
    wal.append(group, term, &[entry], done).expect("accepted")
}

/// Indexes of all live entries; checks that each holds what tests append there.
pub async fn indexes(wal: &Wal, group: GroupId) -> Vec<u64> {
    try_indexes(wal, group).await.expect("readable")
}

/// As [`indexes`], of a log that may have stopped.
pub async fn try_indexes(wal: &Wal, group: GroupId) -> Result<Vec<u64>, WalError> {
    let (mut next, mut found) = (0, Vec::new());
    loop {
        let entries = wal.read(group, next..u64::MAX, 16 << 10).await?;
        let Some(last) = entries.last() else { return Ok(found) };
        next = last.position.index + 1;
        for stored in &entries {
            let (token, kind, payload) = entry(stored.position.term, stored.position.index);
            assert_eq!((stored.token, stored.kind, &stored.data[..]), (token, kind, &payload[..]));
            found.push(stored.position.index);
        }
    }
}
