//! A call into the log that panics half-way through a change ends the process.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::task::Waker;

use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, spawn};

use super::*;

/// Set in a process that makes one call only: its number.
const CHILD: &str = "GRISTMILL_WAL_ABORT_CHILD";
const G: GroupId = GroupId(7);

fn poll_once(future: impl Future) {
    let mut future = std::pin::pin!(future);
    let _whatever = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A call, and its name.
type Call = (&'static str, fn(Wal));

/// Every call that touches what the log's tasks share.
fn calls() -> Vec<Call> {
    vec![
        ("append", |wal| drop(wal.append(G, 1, &[], drop))),
        ("append_unacknowledged", |wal| drop(wal.append_unacknowledged(G, 1, &[]))),
        ("last_lsn", |wal| _ = wal.last_lsn()),
        ("durable", |wal| poll_once(wal.durable(Lsn(1)))),
        ("save_vote", |wal| drop(wal.save_vote(G, Vote::default()))),
        ("save_committed", |wal| drop(wal.save_committed(G, None))),
        ("save_membership", |wal| drop(wal.save_membership(G, LogPosition::default(), b""))),
        ("truncate_after", |wal| drop(wal.truncate_after(G, None))),
        ("purge", |wal| drop(wal.purge(G, LogPosition::default()))),
        ("save_home", |wal| drop(wal.save_home(G, Home { epoch: 1, retired: false }))),
        ("read", |wal| poll_once(wal.read(G, 0..1, 1))),
        ("group", |wal| drop(wal.group(G))),
        ("groups", |wal| drop(wal.groups())),
        ("position", |wal| _ = wal.position(G, 1)),
        ("promise", |wal| drop(wal.promise(1))),
        ("admit", |wal| drop(wal.admit(1))),
        ("append_bytes_max", |wal| _ = wal.append_bytes_max()),
        ("payload_bytes_max", |wal| _ = wal.payload_bytes_max()),
        ("close", |wal| poll_once(wal.close())),
        ("stats", |wal| _ = wal.stats()),
        ("next_incident", |wal| poll_once(wal.next_incident())),
        ("drop", drop),
    ]
}

/// Makes the call while the log is borrowed, which is a bug that panics within it; the executor would go on after that.
fn call_into_a_borrowed_log(call: fn(Wal)) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(async {
        let (wal, _) = Wal::open(dir.path(), LogNumber(0), WalOptions::small()).await.expect("opens");
        let shared = Rc::clone(&wal.shared);
        let outcome = spawn(Class::Raft, "caller", async move {
            let _borrowed = shared.inner.borrow_mut();
            call(wal);
        });
        let _panicked = outcome.await;
    });
}

/// They were wrapped in the log's own tasks only: in a shard's task such a panic was caught, and the log used on.
#[test]
fn a_panic_in_a_call_aborts_the_process() {
    if let Some(number) = std::env::var_os(CHILD) {
        let number: usize = number.to_str().and_then(|number| number.parse().ok()).expect("a number");
        return call_into_a_borrowed_log(calls()[number].1);
    }
    for (number, (name, _)) in calls().into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().expect("the test binary"));
        child.args(["--exact", "wal::abort_tests::a_panic_in_a_call_aborts_the_process", "--nocapture"]);
        let output = child.env(CHILD, number.to_string()).output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{name}: {stderr}");
        assert!(stderr.contains("the log") && stderr.contains("half-way"), "{name}: {stderr}");
    }
}
