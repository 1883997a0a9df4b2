//! What only this driver can get wrong; `conformance` holds what every driver must do.

use super::probe::RingSize;
use super::*;
use crate::buf::{AlignedBuf, IoBuf};
use crate::driver::{ListenOptions, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// A driver with keys handed out, and completions kept until somebody asks for them.
struct Bench {
    driver: UringDriver,
    next_slot: u32,
    completed: Vec<Completion>,
}

impl Bench {
    fn new(op_slots: usize) -> Option<Bench> {
        Bench::with(UringDriver::start(op_slots, 1, 1))
    }

    /// `None`, with a word on stderr, on a machine that refuses io_uring altogether.
    fn with(driver: Result<UringDriver, Refusal>) -> Option<Bench> {
        match driver {
            Ok(driver) => Some(Bench { driver, next_slot: 0, completed: Vec::new() }),
            Err(refusal @ Refusal::Resources { .. }) => panic!("{refusal}"),
            Err(refusal) => {
                eprintln!("skipped: {refusal}; {}", refusal.cure());
                None
            }
        }
    }

    fn submit(&mut self, op: Op) -> OpKey {
        let key = OpKey { slot: self.next_slot, generation: 3 };
        self.next_slot += 1;
        self.driver.submit(key, op);
        key
    }

    fn poll(&mut self) {
        let deadline = self.driver.now() + SOON;
        self.driver.poll(Wait::Until(Some(deadline)), &mut self.completed);
        assert!(self.driver.now() < deadline, "nothing completed in {SOON:?}");
    }

    fn finish(&mut self, key: OpKey) -> Completion {
        loop {
            if let Some(at) = self.completed.iter().position(|completion| completion.key == key) {
                return self.completed.remove(at);
            }
            self.poll();
        }
    }

    fn run(&mut self, op: Op) -> OpOutput {
        let key = self.submit(op);
        self.finish(key).result.expect("the op succeeds")
    }

    fn open(&mut self, path: PathBuf) -> RawHandle {
        let flags = OpenFlags {
            read: true,
            write: true,
            create: true,
            create_new: false,
            truncate: false,
            direct: false,
            dsync: false,
            mode: 0o600,
        };
        let OpOutput::Opened { file, .. } = self.run(Op::Open { path, flags }) else { panic!("an open opens") };
        file
    }

    /// A listener, a client's end and the accepted end.
    fn connection(&mut self) -> (RawHandle, RawHandle, RawHandle) {
        let options = ListenOptions { reuse_port: false, backlog: 8 };
        let addr = "127.0.0.1:0".parse().expect("an address");
        let OpOutput::Listening { listener, local } = self.run(Op::Listen { addr, options }) else {
            panic!("a listen listens")
        };
        let accept = self.submit(Op::Accept { listener, multishot: false });
        let OpOutput::Connected { socket: client, local: ours } = self.run(Op::Connect { addr: local }) else {
            panic!("a connect connects")
        };
        let Ok(OpOutput::Accepted { socket: server, peer }) = self.finish(accept).result else {
            panic!("an accept accepts")
        };
        assert_eq!(peer, ours);
        (listener, client, server)
    }
}

#[test]
fn a_burst_beyond_the_submission_queue_completes() {
    burst(Bench::new(4096));
}

#[test]
fn a_burst_far_beyond_the_completion_queue_completes() {
    let ring = probe::start_sized(RingSize::SMALLEST);
    burst(Bench::with(ring.and_then(|ring| UringDriver::with_ring(ring, 1, 1))));
}

fn burst(bench: Option<Bench>) {
    let Some(mut bench) = bench else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = bench.open(dir.path().join("file"));
    let buf = IoBuf::from(AlignedBuf::from(&[7; 64][..]));
    bench.run(Op::Write { file, buf, start: 0, offset: 0 });
    let keys: Vec<OpKey> = (0..4000)
        .map(|_| bench.submit(Op::Read { file, buf: AlignedBuf::zeroed(64).into(), start: 0, offset: 0 }))
        .collect();
    assert!(!bench.driver.backlog.is_empty(), "the burst is meant to be longer than the queue");
    while bench.completed.len() < keys.len() {
        bench.poll();
    }
    assert!(bench.driver.backlog.is_empty());
    for Completion { op, result, .. } in &bench.completed {
        assert!(matches!(result, Ok(OpOutput::Count(64))));
        assert!(matches!(op, Op::Read { buf, .. } if buf.as_slice() == [7; 64]));
    }
    bench.completed.clear();
    bench.run(Op::Close { handle: file });
}

#[test]
fn a_cancellation_behind_a_full_queue_follows_its_op() {
    let Some(mut bench) = Bench::new(4096) else { return };
    let (_, client, server) = bench.connection();
    let keys: Vec<OpKey> = (0..1500)
        .map(|_| {
            let key = bench.submit(Op::Recv { socket: server, buf: Vec::with_capacity(16).into() });
            bench.driver.cancel(key);
            key
        })
        .collect();
    for key in keys {
        let Completion { op, result, more, .. } = bench.finish(key);
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(libc::ECANCELED));
        assert!(matches!(op, Op::Recv { buf, .. } if buf.capacity() == 16 && buf.is_empty()));
        assert!(!more);
    }
    // Nothing that comes later was eaten by a cancelled receive.
    bench.run(Op::Send { socket: client, buf: b"late".to_vec().into(), start: 0 });
    let key = bench.submit(Op::Recv { socket: server, buf: Vec::with_capacity(16).into() });
    assert!(matches!(bench.finish(key).op, Op::Recv { buf, .. } if buf.as_slice() == b"late"));
}

#[test]
fn receiving_appends_to_what_the_buffer_holds() {
    let Some(mut bench) = Bench::new(64) else { return };
    let (_, client, server) = bench.connection();
    bench.run(Op::Send { socket: client, buf: b"xdef".to_vec().into(), start: 1 });
    let mut buf = AlignedBuf::with_capacity(100);
    buf.extend_from_slice(b"abc");
    let key = bench.submit(Op::Recv { socket: server, buf: buf.into() });
    let Completion { op, result, .. } = bench.finish(key);
    assert!(matches!(result, Ok(OpOutput::Count(3))));
    assert!(matches!(op, Op::Recv { buf, .. } if buf.as_slice() == b"abcdef"));
}

#[test]
fn one_armed_accept_gives_many_connections() {
    let Some(mut bench) = Bench::new(64) else { return };
    let (listener, ..) = bench.connection();
    let accept = bench.submit(Op::Accept { listener, multishot: true });
    let name = rustix::net::getsockname(borrow(listener)).expect("a listener has a name");
    let addr = name.try_into().expect("an internet address");
    for _ in 0..5 {
        bench.run(Op::Connect { addr });
        let Completion { result, more, .. } = bench.finish(accept);
        assert!(matches!(result, Ok(OpOutput::Accepted { .. })) && more);
    }
    bench.driver.cancel(accept);
    let Completion { result, more, .. } = bench.finish(accept);
    assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(libc::ECANCELED));
    assert!(!more);
}

#[test]
fn a_connection_that_nobody_answers_is_refused() {
    let Some(mut bench) = Bench::new(64) else { return };
    // A port that was just bound and let go: nothing listens there.
    let (listener, ..) = bench.connection();
    let name = rustix::net::getsockname(borrow(listener)).expect("a listener has a name");
    bench.run(Op::Close { handle: listener });
    let key = bench.submit(Op::Connect { addr: name.try_into().expect("an internet address") });
    let error = bench.finish(key).result.expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn idle_polls_that_may_not_wait_make_no_system_call() {
    let Some(mut bench) = Bench::new(64) else { return };
    let (_, client, server) = bench.connection();
    bench.submit(Op::Recv { socket: server, buf: Vec::with_capacity(16).into() });
    bench.driver.poll(Wait::NoWait, &mut bench.completed);
    let before = bench.driver.enters();
    for _ in 0..1000 {
        bench.driver.poll(Wait::NoWait, &mut bench.completed);
    }
    assert_eq!(bench.driver.enters(), before);
    assert!(bench.completed.is_empty());
    // One poll, one enter: it submits the send, and later ones find the receive deferred without being told to look.
    let send = bench.submit(Op::Send { socket: client, buf: b"x".to_vec().into(), start: 0 });
    bench.driver.poll(Wait::NoWait, &mut bench.completed);
    assert_eq!(bench.driver.enters(), before + 1);
    bench.finish(send);
    while bench.completed.is_empty() {
        bench.driver.poll(Wait::NoWait, &mut bench.completed);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a wake-up comes from another thread")]
fn unpark_ends_a_wait_and_prevents_the_next() {
    let Some(mut bench) = Bench::new(64) else { return };
    let unparker = bench.driver.unparker();
    for round in 0..100 {
        let waker = std::thread::spawn({
            let unparker = Arc::clone(&unparker);
            move || {
                if round % 2 == 0 {
                    std::thread::yield_now();
                }
                unparker.unpark();
            }
        });
        bench.poll();
        waker.join().expect("the waker ends");
    }
    let enters = bench.driver.enters();
    unparker.unpark();
    unparker.unpark();
    bench.poll();
    assert!(bench.driver.enters() <= enters + 2);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let Some(mut bench) = Bench::new(64) else { return };
    let deadline = bench.driver.now() + Duration::from_millis(3);
    while bench.driver.now() < deadline {
        bench.driver.poll(Wait::Until(Some(deadline)), &mut bench.completed);
    }
    assert!(bench.completed.is_empty());
    let past = bench.driver.now();
    bench.driver.poll(Wait::Until(Some(past)), &mut bench.completed);
}

#[test]
fn a_driver_dropped_with_ops_in_flight_waits_for_the_kernel() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(mut bench) = Bench::new(64) else { return };
    let (listener, _, server) = bench.connection();
    bench.submit(Op::Recv { socket: server, buf: Vec::with_capacity(16).into() });
    bench.submit(Op::Accept { listener, multishot: true });
    let file = bench.open(dir.path().join("file"));
    bench.submit(Op::Write { file, buf: AlignedBuf::zeroed(1 << 20).into(), start: 0, offset: 0 });
    bench.submit(Op::Sync { file, data_only: true });
    let Bench { driver, .. } = bench;
    drop(driver);
    #[expect(clippy::disallowed_methods, reason = "the driver is gone")]
    let written = std::fs::metadata(dir.path().join("file")).expect("it is there").len();
    assert!(
        written == 1 << 20 || written == 0,
        "a write that was cancelled before it began, or a whole one: {written}"
    );
}

/// Runs `f` on a thread on which `io_uring_setup` fails with `errno`, as a container's seccomp profile makes it. Filters are per thread.
#[expect(clippy::disallowed_methods, reason = "a filter of system calls is a thread's, and for good")]
fn with_io_uring_refused<R: Send>(errno: i32, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse_io_uring(errno);
            f()
        });
        thread.join().expect("the thread ends well")
    })
}

fn refuse_io_uring(errno: i32) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls take plain numbers and a pointer to a program that lives through the call.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(installed, "seccomp: {}", io::Error::last_os_error());
}

#[test]
fn a_refusal_names_the_sandbox_and_the_cure() {
    let refusal = with_io_uring_refused(libc::EPERM, || UringDriver::start(64, 1, 1).err().expect("refused"));
    assert!(matches!(refusal, Refusal::Sandbox { call: "io_uring_setup", .. } | Refusal::Sysctl(_)), "{refusal:?}");
    assert!(refusal.cure().contains("seccomp") || refusal.cure().contains("sysctl"));
    let refusal = with_io_uring_refused(libc::ENOSYS, || UringDriver::start(64, 1, 1).err().expect("refused"));
    assert!(matches!(refusal, Refusal::Missing { call: "io_uring_setup" }), "{refusal:?}");
}

const CHILD: &str = "GRISTMILL_TEST_MEMLOCK_CHILD";

/// Kernels from 6.14 on charge rings to RLIMIT_MEMLOCK, where containers commonly allow 64 KiB: a ring of the usual size did not
/// start there.
#[test]
fn it_starts_with_a_memlock_limit_of_64_kib() {
    if std::env::var_os(CHILD).is_some() {
        return with_little_locked_memory();
    }
    let this_test = "uring::tests::it_starts_with_a_memlock_limit_of_64_kib";
    let exe = std::env::current_exe().expect("the test binary");
    let child = std::process::Command::new(exe).args([this_test, "--exact"]).env(CHILD, "1").output().expect("runs");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "the child ran this very test");
}

fn with_little_locked_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let limit = Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    setrlimit(Resource::Memlock, limit).expect("lowering a limit is allowed");
    let mut sets = capabilities(None).expect("a thread has capabilities");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    sets.permitted.remove(CapabilitySet::IPC_LOCK);
    sets.inheritable.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).expect("giving up a capability is allowed");

    let started = UringDriver::start(OP_SLOTS, 1, 1);
    if matches!(started, Err(Refusal::Resources { .. })) && !rustix::process::geteuid().is_root() {
        // The limit is one for all processes of a user, and the rings of other tests have used it up: epoll then.
        let mut executor = crate::Executor::start(crate::ExecutorConfig::default()).expect("it starts in any case");
        return executor.block_on(async { assert_eq!(crate::driver_name(), "posix") });
    }
    let Some(mut bench) = Bench::with(started) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = bench.open(Path::new(dir.path()).join("file"));
    bench.run(Op::Write { file, buf: AlignedBuf::zeroed(1 << 20).into(), start: 0, offset: 0 });
}

/// As many as an executor has by default.
const OP_SLOTS: usize = 4096;

#[test]
fn where_io_uring_is_refused_auto_falls_back_and_a_demand_for_it_fails() {
    use crate::{Executor, ExecutorConfig, IoChoice, StartError, driver_name};
    with_io_uring_refused(libc::EPERM, || {
        let mut executor = Executor::start(ExecutorConfig::default()).expect("epoll is always there");
        assert_eq!(executor.block_on(async { driver_name() }), "posix");

        let demand = ExecutorConfig { io: IoChoice::Uring, ..ExecutorConfig::default() };
        let error = Executor::start(demand).err().expect("refused");
        assert!(matches!(error, StartError::UringUnavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("seccomp") || text.contains("sysctl"), "it names a cure: {text}");
    });
    if UringDriver::start(64, 1, 1).is_ok() {
        let mut executor = Executor::start(ExecutorConfig::default()).expect("it starts");
        assert_eq!(executor.block_on(async { driver_name() }), "uring");
    }
}
