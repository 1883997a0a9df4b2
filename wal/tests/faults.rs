//! Writes that the kernel refuses or cuts short: the first of them is the log's last, and nothing acknowledged is lost.
//!
//! The faults are real. A limit on the size of files (RLIMIT_FSIZE) lets the kernel take the part of a write that lies below it, and
//! refuse the next one with EFBIG: no other fault of a device can be had without root. It counts for the whole process, so each
//! test runs in one of its own. What a full disk does instead is tested on a real one, in the whole-system tests.
#![allow(clippy::disallowed_methods, reason = "tests look at files behind the log's back")]

mod support;

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gristmill_shardexec::IoChoice;
use gristmill_shardexec::time::{sleep, timeout};
use gristmill_wal::limits::{BLOCK_BYTES, DATA_OFFSET};
use gristmill_wal::{GroupId, Incident, IoFailure, Lsn, Vote, Wal, WalError, WalOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Dir, append, append_with, in_child, indexes, open_with, position, run_on, try_append};

const G: GroupId = GroupId(7);
/// Entries of one append: about 21 KiB of records, so a batch is several blocks long.
const APPEND_ENTRIES: u64 = 100;
/// Appends after which the log must have met its limit.
const APPENDS_MAX: u64 = 100;
const EFBIG: i32 = 27;

on_every_driver!(
    a_short_write_is_the_last_one,
    a_refused_write_is_the_last_one,
    the_first_error_ends_all_writes_in_flight,
    a_segment_that_cannot_be_prepared_stops_the_log,
    a_log_that_lacks_file_handles_waits_for_them,
    what_waits_for_a_file_that_cannot_be_made_is_told_so,
);

/// Name of the test that a function has become.
fn test_name(io: IoChoice, function: &str) -> String {
    format!("{}::{function}", if io == IoChoice::Posix { "posix" } else { "uring" })
}

/// Until this is dropped, no file of this process may grow beyond, or be written behind, `bytes`.
struct FileLimit(Rlimit);

impl FileLimit {
    fn new(bytes: u64) -> FileLimit {
        let before = getrlimit(Resource::Fsize);
        setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), ..before }).expect("lowering is allowed");
        FileLimit(before)
    }
}

impl Drop for FileLimit {
    fn drop(&mut self) {
        setrlimit(Resource::Fsize, self.0).expect("the upper limit has not changed");
    }
}

/// Until this is dropped, this process can open no file.
struct HandleLimit(Rlimit);

impl HandleLimit {
    fn new() -> HandleLimit {
        let before = getrlimit(Resource::Nofile);
        let lowest_free = std::fs::File::open("/dev/null").expect("opened").as_raw_fd() as u64;
        setrlimit(Resource::Nofile, Rlimit { current: Some(lowest_free), ..before }).expect("lowering is allowed");
        HandleLimit(before)
    }
}

impl Drop for HandleLimit {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).expect("the upper limit has not changed");
    }
}

/// The signal that goes with EFBIG would end the process.
fn survive_the_signal() {
    signal_hook::flag::register(rustix::process::Signal::XFSZ.as_raw(), Arc::new(AtomicBool::new(false)))
        .expect("a signal that can be handled");
}

fn options(writes_in_flight: usize) -> WalOptions {
    WalOptions { segment_bytes: 1 << 20, pending_bytes_max: 256 << 10, writes_in_flight, ..WalOptions::small() }
}

/// A log whose next segment is ready, so that the limit meets nothing but its writes.
async fn ready_log(dir: &Dir, writes_in_flight: usize) -> Wal {
    let (wal, _) = open_with(dir, options(writes_in_flight)).await.expect("the log opens");
    timeout(Duration::from_mins(1), async {
        while wal.stats().segments_ready == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the next segment is prepared");
    wal
}

/// What a log told about its appends, in the order of telling: the index of the last entry, and its fate.
type Told = Rc<RefCell<Vec<(u64, Result<(), WalError>)>>>;

/// Appends until the log refuses. Returns the LSNs of the appends and the error.
async fn append_until_refused(wal: &Wal, told: &Told, wait: bool) -> (Vec<Lsn>, WalError) {
    let mut lsns = Vec::new();
    for round in 0..APPENDS_MAX {
        let (first, last) = (round * APPEND_ENTRIES + 1, (round + 1) * APPEND_ENTRIES);
        match try_append(wal, G, 1, 1, first..=last - 1) {
            Ok(_) => {}
            Err(WalError::Backlog { .. }) => panic!("the test must leave the log time"),
            Err(error) => return (lsns, error),
        }
        let told = Rc::clone(told);
        lsns.push(append_with(wal, G, 1, last, move |outcome| told.borrow_mut().push((last, outcome))));
        if wait || round % 3 == 2 {
            // Its error is the stored one, which the next append is refused with.
            let _ = wal.flush().await;
        } else {
            sleep(Duration::from_micros(200)).await;
        }
    }
    panic!("the limit stopped nothing");
}

/// Writes against a limit of `limit` bytes; checks that the first error was the end and that everything acknowledged is found again.
/// Returns what failed and how many appends were acknowledged.
fn write_into_the_limit(io: IoChoice, dir: &Dir, limit: u64, writes_in_flight: usize) -> (IoFailure, u64) {
    let told = Told::default();
    let failure = run_on(io, async {
        let wal = ready_log(dir, writes_in_flight).await;
        let _limit = FileLimit::new(limit);
        let (lsns, error) = append_until_refused(&wal, &told, writes_in_flight == 1).await;
        let fates = told.borrow().clone();
        assert_the_log_has_ended(&wal, &fates, &lsns, &error).await;
        let WalError::Failed(failure) = error else { panic!("{error}") };
        *failure
    });
    let acknowledged = told.borrow().iter().filter(|(_, fate)| fate.is_ok()).count() as u64 * APPEND_ENTRIES;
    run_on(io, async {
        let (wal, report) = open_with(dir, options(writes_in_flight)).await.expect("the log opens again");
        let found = indexes(&wal, G).await;
        let last = found.len() as u64;
        assert_eq!(found, (1..=last).collect::<Vec<_>>());
        assert!(last >= acknowledged, "{acknowledged} were acknowledged, {last} are there: {report:?}");
        append(&wal, G, 1, last + 1..=last + 10);
        wal.close().await.expect("the log goes on");
    });
    (failure, acknowledged)
}

async fn assert_the_log_has_ended(wal: &Wal, told: &[(u64, Result<(), WalError>)], lsns: &[Lsn], error: &WalError) {
    let refused = Err(error.clone());
    assert!(!error.is_retriable(), "{error}");
    let expected: Vec<u64> = (1..=lsns.len() as u64).map(|round| round * APPEND_ENTRIES).collect();
    assert_eq!(told.iter().map(|(last, _)| *last).collect::<Vec<_>>(), expected, "everybody is told, once, in order");
    let acknowledged = told.iter().take_while(|(_, fate)| fate.is_ok()).count();
    assert!(told[acknowledged..].iter().all(|(_, fate)| *fate == refused), "nothing is acknowledged after an error");
    for (at, lsn) in lsns.iter().enumerate() {
        assert_eq!(wal.durable(*lsn).await, if at < acknowledged { Ok(()) } else { refused.clone() });
    }
    let last = told.last().map_or(0, |(last, _)| *last);
    assert_eq!(try_append(wal, G, 1, 1, last + 1..=last + 1).map(drop), refused);
    assert_eq!(wal.save_vote(G, Vote { term: 9, node: 1, ..Vote::default() }).await, refused);
    assert_eq!(wal.save_committed(G, Some(position(1, 1))), refused);
    assert_eq!(wal.truncate_after(G, None).await, refused);
    assert_eq!(wal.admit(1), refused);
    let batches = wal.stats().batches;
    sleep(Duration::from_millis(5)).await;
    assert_eq!(wal.stats().batches, batches, "nothing more is written");
    let read = wal.read(G, 1..u64::MAX, usize::MAX).await.map(drop);
    assert_eq!(read, refused, "what is in memory may not be on disk: nobody reads it any more");
    assert_eq!(wal.close().await, refused);
}

/// The kernel took a part of a batch, and the rest was written by a second call as if nothing had been: on a disk that has begun to
/// fail, the log went on and acknowledged.
fn a_short_write_is_the_last_one(io: IoChoice) {
    in_child(&test_name(io, "a_short_write_is_the_last_one"), || {
        survive_the_signal();
        let (mut short, mut acknowledged) = (0, 0);
        for dir in Dir::both() {
            for blocks in 1..=12 {
                let limit = (DATA_OFFSET + blocks * BLOCK_BYTES) as u64;
                let (failure, before) = write_into_the_limit(io, &dir, limit, 1);
                assert!(failure.is_short_write() || failure.os_error == Some(EFBIG), "{failure}");
                assert!(!failure.is_disk_full() && failure.operation == "write", "{failure}");
                if failure.is_short_write() {
                    assert!(failure.message.contains("short write"), "{failure}");
                    assert!(
                        WalError::Failed(Box::new(failure)).to_string().contains("has space"),
                        "it may have been that"
                    );
                    short += 1;
                }
                acknowledged += before;
                std::fs::remove_dir_all(dir.log()).expect("removed");
            }
        }
        assert!(short >= 12 && acknowledged > 0, "vacuous: {short} short writes, {acknowledged} acknowledged");
    });
}

fn a_refused_write_is_the_last_one(io: IoChoice) {
    in_child(&test_name(io, "a_refused_write_is_the_last_one"), || {
        survive_the_signal();
        for dir in Dir::both() {
            let (failure, acknowledged) = write_into_the_limit(io, &dir, DATA_OFFSET as u64, 1);
            assert_eq!((failure.os_error, acknowledged), (Some(EFBIG), 0), "{failure}");
            assert!(!failure.is_short_write() && !failure.is_disk_full());
        }
    });
}

/// Writes of several batches are under way when one fails: those that end well after it are not acknowledged either.
fn the_first_error_ends_all_writes_in_flight(io: IoChoice) {
    in_child(&test_name(io, "the_first_error_ends_all_writes_in_flight"), || {
        survive_the_signal();
        let mut acknowledged = 0;
        for dir in Dir::both() {
            for blocks in [30, 41, 52, 63, 74] {
                let limit = (DATA_OFFSET + blocks * BLOCK_BYTES) as u64;
                acknowledged += write_into_the_limit(io, &dir, limit, 8).1;
                std::fs::remove_dir_all(dir.log()).expect("removed");
            }
        }
        assert!(acknowledged > 0, "vacuous: nothing was acknowledged before the error");
    });
}

/// An error other than a full disk, while the next segment is made: the log does not wait for a disk that is broken.
fn a_segment_that_cannot_be_prepared_stops_the_log(io: IoChoice) {
    in_child(&test_name(io, "a_segment_that_cannot_be_prepared_stops_the_log"), || {
        survive_the_signal();
        for dir in Dir::both() {
            let told = Told::default();
            run_on(io, async {
                let (wal, _) = open_with(&dir, options(1)).await.expect("the log opens");
                // Before the task that prepares has had a turn.
                let _limit = FileLimit::new(512 << 10);
                let (lsns, error) = append_until_refused(&wal, &told, true).await;
                let fates = told.borrow().clone();
                assert_the_log_has_ended(&wal, &fates, &lsns, &error).await;
                let WalError::Failed(failure) = error else { panic!("{error}") };
                assert_eq!((failure.operation, failure.os_error), ("prepare", Some(EFBIG)), "{failure}");
            });
            let spares = std::fs::read_dir(dir.log()).expect("listed").count();
            assert_eq!(spares, 1, "what could not be made is not left lying about");
        }
    });
}

/// Connections had taken all file handles of the process when the log wanted its next segment: that ended the log for good, and the node
/// with it, although a moment later there were handles again.
fn a_log_that_lacks_file_handles_waits_for_them(io: IoChoice) {
    in_child(&test_name(io, "a_log_that_lacks_file_handles_waits_for_them"), || {
        for dir in Dir::both() {
            let next = run_on(io, async {
                let wal = ready_log(&dir, 2).await;
                let limit = HandleLimit::new();
                let (mut next, mut last) = (1, Lsn(0));
                let error = loop {
                    match try_append(&wal, G, 1, 1, next..=next + 99) {
                        Ok(lsn) => last = lsn,
                        Err(error) => break error,
                    }
                    // What was accepted while the file was still being made waits for it.
                    if let Ok(written) = timeout(Duration::from_secs(1), wal.durable(last)).await {
                        written.expect("what is accepted is written");
                    }
                    next += 100;
                    assert!(next < 100_000, "the limit stopped nothing");
                };
                assert!(matches!(error, WalError::Exhausted(_)) && error.is_retriable(), "{error}");
                assert!(error.to_string().contains("open files"), "{error}");
                assert_eq!(wal.next_incident().await, Some(Incident::Unprepared { reason: error.to_string() }));
                assert!(wal.stats().unprepared && !wal.stats().disk_full);
                assert!(wal.promise(100 << 10).is_err());
                assert_eq!(indexes(&wal, G).await, (1..next).collect::<Vec<_>>());
                drop(limit);
                timeout(Duration::from_mins(1), async {
                    while wal.admit(100 << 10).is_err() {
                        sleep(Duration::from_millis(1)).await;
                    }
                })
                .await
                .expect("the log resumes by itself");
                assert!(!wal.stats().unprepared);
                wal.durable(last).await.expect("what is accepted is written");
                append(&wal, G, 1, next..=next + 999);
                wal.close().await.expect("closed");
                next + 1000
            });
            run_on(io, async {
                let (wal, _) = open_with(&dir, options(2)).await.expect("the log opens");
                assert_eq!(indexes(&wal, G).await, (1..next).collect::<Vec<_>>());
            });
        }
    });
}

/// The log had moved on to a segment whose file could not be made: it went on accepting entries that waited for that file, and closing it
/// never came to an end.
fn what_waits_for_a_file_that_cannot_be_made_is_told_so(io: IoChoice) {
    in_child(&test_name(io, "what_waits_for_a_file_that_cannot_be_made_is_told_so"), || {
        for dir in Dir::both() {
            let next = run_on(io, async {
                let (wal, _) = open_with(&dir, options(1)).await.expect("the log opens");
                let mut next = 1;
                while wal.stats().batch_bytes + (DATA_OFFSET as u64) + (64 << 10) < options(1).segment_bytes {
                    wal.durable(append(&wal, G, 1, next..=next + 99)).await.expect("durable");
                    next += 100;
                }
                assert_eq!(wal.stats().rotations, 0);
                wal.close().await.expect("closed");
                next
            });
            run_on(io, async {
                let (wal, _) = open_with(&dir, options(1)).await.expect("the log opens");
                // Before the task that prepares has had a turn.
                let _limit = HandleLimit::new();
                let accepted = append(&wal, G, 1, next..=next + 399);
                assert_eq!((wal.stats().rotations, wal.stats().segments_ready), (1, 0));
                let Some(Incident::Unprepared { reason }) = wal.next_incident().await else { panic!("an incident") };
                let error = try_append(&wal, G, 1, 1, next + 400..=next + 400)
                    .expect_err("it would wait for nobody knows what");
                assert!(matches!(error, WalError::Exhausted(_)) && error.to_string() == reason, "{error}");
                assert!(wal.promise(1).is_err() && wal.admit(1).is_err());
                let closed = timeout(Duration::from_mins(1), wal.close()).await.expect("it comes to an end");
                assert!(matches!(closed, Err(WalError::Exhausted(_))), "{closed:?}");
                assert_eq!(wal.durable(accepted).await, closed);
            });
            run_on(io, async {
                let (wal, _) = open_with(&dir, options(1)).await.expect("the log opens");
                let found = indexes(&wal, G).await;
                assert!((next - 1..next + 399).contains(&(found.len() as u64)), "{}", found.len());
            });
        }
    });
}
