//! What ends a process, looked at from another one.
use std::process::Command;

use gristmill_shardexec::executor::{Class, ExecutorConfig, IoChoice, spawn, yield_now};
use gristmill_shardexec::{abort_on_panic, abort_on_panic_async};

const CHILD: &str = "GRISTMILL_TEST_CHILD";

/// Runs `body` in a child process that consists of the calling test alone; its stderr, and whether it was aborted.
fn in_child(test: &str, body: impl FnOnce()) -> Option<(String, bool)> {
    use std::os::unix::process::ExitStatusExt;
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    Some((String::from_utf8_lossy(&output.stderr).into_owned(), output.status.signal() == Some(6)))
}

fn run_in_task(task: impl Future<Output = ()> + 'static) {
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    let mut executor = super::executor(config).unwrap();
    executor.block_on(async {
        let _ = spawn(Class::Raft, "critical", task).await;
    });
}

#[test]
fn a_panic_in_critical_code_aborts() {
    let child = in_child("processes::a_panic_in_critical_code_aborts", || {
        run_in_task(async { abort_on_panic("the log", || panic!("half a change")) });
    });
    let Some((stderr, aborted)) = child else { return };
    assert!(aborted && stderr.contains("the log panicked half-way"), "{stderr}");
}

#[test]
fn a_panic_in_a_critical_future_aborts() {
    let child = in_child("processes::a_panic_in_a_critical_future_aborts", || {
        run_in_task(abort_on_panic_async("the cache", async {
            yield_now().await;
            panic!("half a change");
        }));
    });
    let Some((stderr, aborted)) = child else { return };
    assert!(aborted && stderr.contains("the cache panicked half-way"), "{stderr}");
}

#[test]
fn a_panic_outside_critical_code_does_not() {
    let child = in_child("processes::a_panic_outside_critical_code_does_not", || {
        run_in_task(async {
            assert_eq!(abort_on_panic("the log", || 5), 5);
            panic!("afterwards");
        });
    });
    let Some((stderr, aborted)) = child else { return };
    assert!(!aborted && stderr.contains("afterwards"), "{stderr}");
}
