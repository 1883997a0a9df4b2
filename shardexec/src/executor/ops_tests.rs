//! The op slab against a driver that completes what and when the test says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::driver::{Completion, Op, OpKey, OpOutput, RawHandle};
use crate::fs::{OpenOptions, ShortWrite};
use crate::net::{ListenOptions, TcpListener, TcpStream};
use crate::time::WallClock;

#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

#[derive(Default)]
struct Script {
    in_flight: BTreeMap<OpKey, Op>,
    cancelled: Vec<OpKey>,
    closed: Vec<RawHandle>,
    ready: Vec<Completion>,
}

impl Scripted {
    /// The one op in flight that `wanted` picks.
    fn find(&self, wanted: impl Fn(&Op) -> bool) -> OpKey {
        let script = self.0.borrow();
        let mut found = script.in_flight.iter().filter(|(_, op)| wanted(op));
        let (key, _) = found.next().expect("no such op in flight");
        assert!(found.next().is_none());
        *key
    }

    fn complete(&self, key: OpKey, result: io::Result<OpOutput>) {
        let mut script = self.0.borrow_mut();
        let op = script.in_flight.remove(&key).expect("in flight");
        script.ready.push(Completion { key, op, result, more: false });
    }

    fn complete_more(&self, key: OpKey, result: io::Result<OpOutput>) {
        let mut script = self.0.borrow_mut();
        let Some(Op::Accept { listener, multishot }) = script.in_flight.get(&key) else { panic!("not multishot") };
        let op = Op::Accept { listener: *listener, multishot: *multishot };
        script.ready.push(Completion { key, op, result, more: true });
    }

    fn closed(&self) -> Vec<RawHandle> {
        self.0.borrow().closed.clone()
    }
}

struct Silent;

impl Unpark for Silent {
    fn unpark(&self) {}
}

impl Driver for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn submit(&mut self, key: OpKey, op: Op) {
        let mut script = self.0.borrow_mut();
        match op {
            Op::Close { handle } => {
                script.closed.push(handle);
                script.ready.push(Completion { key, op, result: Ok(OpOutput::Done), more: false });
            }
            Op::Connect { .. } => {
                let result = Ok(OpOutput::Connected { socket: RawHandle(1), local: addr() });
                script.ready.push(Completion { key, op, result, more: false });
            }
            Op::Listen { .. } => {
                let result = Ok(OpOutput::Listening { listener: RawHandle(2), local: addr() });
                script.ready.push(Completion { key, op, result, more: false });
            }
            Op::Open { .. } => {
                let result = Ok(OpOutput::Opened { file: RawHandle(3), direct: None });
                script.ready.push(Completion { key, op, result, more: false });
            }
            op => assert!(script.in_flight.insert(key, op).is_none(), "a key in flight was reused"),
        }
    }
    fn cancel(&mut self, key: OpKey) {
        self.0.borrow_mut().cancelled.push(key);
    }
    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        let mut script = self.0.borrow_mut();
        if wait != Wait::NoWait && script.ready.is_empty() {
            // Only the end of an executor comes here: cancelled ops fail now.
            for key in std::mem::take(&mut script.cancelled) {
                let Some(op) = script.in_flight.remove(&key) else { continue };
                let result = Err(io::Error::from_raw_os_error(125));
                script.ready.push(Completion { key, op, result, more: false });
            }
            assert!(!script.ready.is_empty(), "the executor would park for ever");
        }
        out.append(&mut script.ready);
    }
    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::new(Silent)
    }
    fn now(&self) -> Instant {
        Instant::from_ns(1)
    }
    fn boottime(&self) -> Instant {
        self.now()
    }
    fn wall_clock(&self) -> WallClock {
        WallClock(1)
    }
    fn fill_random(&mut self, out: &mut [u8]) {
        out.fill(1);
    }
}

fn addr() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}

fn executor(op_slots: usize) -> (Executor, Scripted) {
    let driver = Scripted::default();
    let config = ExecutorConfig { op_slots, ..ExecutorConfig::default() };
    (Executor::with_driver(Box::new(driver.clone()), config), driver)
}

async fn start_and_drop<F: Future>(future: F) {
    let mut future = pin!(future);
    poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Lets the executor book what the driver has ready.
fn settle(executor: &mut Executor) {
    assert!(matches!(executor.run_for(100), Pause::Idle(_)));
}

#[test]
fn a_dropped_receive_keeps_buffer_and_socket_until_the_last_completion() {
    let (mut executor, driver) = executor(4);
    let stream = executor.block_on(TcpStream::connect(addr())).unwrap();
    executor.block_on(start_and_drop(stream.recv(Vec::with_capacity(100))));
    drop(stream);
    settle(&mut executor);
    let key = driver.find(|op| matches!(op, Op::Recv { .. }));
    assert_eq!(driver.0.borrow().cancelled, [key]);
    assert_eq!(driver.closed(), [], "the op still uses the socket");
    assert_eq!(executor.stats().ops_in_flight, 1);
    driver.complete(key, Ok(OpOutput::Count(7)));
    settle(&mut executor);
    assert_eq!(driver.closed(), [RawHandle(1)]);
    assert_eq!(executor.stats().ops_in_flight, 0);
}

#[test]
fn a_slot_is_reused_under_another_key() {
    let (mut executor, driver) = executor(1);
    let stream = executor.block_on(TcpStream::connect(addr())).unwrap();
    let mut keys = Vec::new();
    for _ in 0..3 {
        executor.block_on(start_and_drop(stream.recv(Vec::with_capacity(1))));
        let key = driver.find(|op| matches!(op, Op::Recv { .. }));
        driver.complete(key, Err(io::Error::from_raw_os_error(125)));
        settle(&mut executor);
        keys.push(key);
    }
    assert!(keys.windows(2).all(|pair| pair[0].slot == pair[1].slot && pair[0].generation < pair[1].generation));
}

#[test]
fn ops_beyond_the_limit_wait_in_order() {
    let (mut executor, driver) = executor(1);
    let stream = executor.block_on(TcpStream::connect(addr())).unwrap();
    let sends: Vec<_> = (0..3u8)
        .map(|n| {
            let stream = stream.clone();
            executor.spawn(Class::Request, "sends", async move { stream.send_all(vec![n]).await.0 })
        })
        .collect();
    for n in 0..3u8 {
        settle(&mut executor);
        let first_byte = move |op: &Op| matches!(op, Op::Send { buf, .. } if buf.as_slice() == [n]);
        driver.complete(driver.find(first_byte), Ok(OpOutput::Count(1)));
    }
    settle(&mut executor);
    assert!(sends.iter().all(JoinHandle::is_finished));
    assert_eq!(executor.stats().ops_in_flight_max, 1);
}

#[test]
fn a_connection_that_comes_for_nobody_is_closed() {
    let (mut executor, driver) = executor(4);
    let listener = executor.block_on(TcpListener::bind(addr(), ListenOptions::default())).unwrap();
    executor.block_on(start_and_drop(listener.accept()));
    let key = driver.find(|op| matches!(op, Op::Accept { .. }));
    driver.complete_more(key, Ok(OpOutput::Accepted { socket: RawHandle(10), peer: addr() }));
    settle(&mut executor);
    assert_eq!(driver.closed(), [], "the listener keeps it for the next accept");
    let (stream, _) = executor.block_on(listener.accept()).unwrap();
    drop(stream);
    driver.complete_more(key, Ok(OpOutput::Accepted { socket: RawHandle(11), peer: addr() }));
    settle(&mut executor);
    drop(listener);
    assert_eq!(driver.closed(), [RawHandle(10), RawHandle(11)], "accepted, never asked for");
    driver.complete_more(key, Ok(OpOutput::Accepted { socket: RawHandle(12), peer: addr() }));
    settle(&mut executor);
    driver.complete(key, Ok(OpOutput::Accepted { socket: RawHandle(13), peer: addr() }));
    settle(&mut executor);
    let all = [10, 11, 12, 13, 2].map(RawHandle);
    assert_eq!(driver.closed(), all, "the listener goes last, after its op");
}

#[test]
fn a_multishot_op_is_cancelled_when_nobody_takes_its_results() {
    let (mut executor, driver) = executor(4);
    let listener = executor.block_on(TcpListener::bind(addr(), ListenOptions::default())).unwrap();
    executor.block_on(start_and_drop(listener.accept()));
    let key = driver.find(|op| matches!(op, Op::Accept { .. }));
    for n in 0..MULTISHOT_RESULTS_MAX as u64 {
        assert_eq!(driver.0.borrow().cancelled, []);
        driver.complete_more(key, Ok(OpOutput::Accepted { socket: RawHandle(100 + n), peer: addr() }));
        settle(&mut executor);
    }
    assert_eq!(driver.0.borrow().cancelled, [key]);
    driver.complete(key, Err(io::Error::from_raw_os_error(125)));
    settle(&mut executor);
    for _ in 0..MULTISHOT_RESULTS_MAX {
        executor.block_on(listener.accept()).unwrap();
    }
    // Its own cancellation is not an error of the listener's: the op is armed again.
    executor.block_on(start_and_drop(listener.accept()));
    let again = driver.find(|op| matches!(op, Op::Accept { .. }));
    assert_ne!(again, key);
}

#[test]
fn short_sends_are_continued() {
    let (mut executor, driver) = executor(4);
    let stream = executor.block_on(TcpStream::connect(addr())).unwrap();
    let task = executor.spawn(Class::Request, "sends", async move { stream.send_all(vec![5; 10]).await });
    for (start, count) in [(0, 3), (3, 6), (9, 1)] {
        settle(&mut executor);
        let key = driver.find(move |op| matches!(op, Op::Send { start: at, .. } if *at == start));
        driver.complete(key, Ok(OpOutput::Count(count)));
    }
    let (result, buf) = executor.block_on(task).unwrap();
    assert!(result.is_ok() && buf == [5; 10]);
}

/// A write that the kernel cut short was continued behind the log's back, and the log acknowledged what may have cost it a
/// failing disk's last warning. What cannot be known is not tried again; the same goes for an interrupted write.
#[test]
fn short_and_interrupted_writes_are_errors_and_not_continued() {
    let (mut executor, driver) = executor(4);
    let file = executor.block_on(OpenOptions::new().write(true).open("a file")).unwrap();
    let outcomes = [Ok(OpOutput::Count(0)), Ok(OpOutput::Count(9)), Err(io::ErrorKind::Interrupted.into())];
    let expected = [io::ErrorKind::WriteZero, io::ErrorKind::WriteZero, io::ErrorKind::Interrupted];
    for (outcome, expected) in outcomes.into_iter().zip(expected) {
        let written = outcome.as_ref().ok().map(|output| match output {
            OpOutput::Count(count) => *count,
            _ => unreachable!("made above"),
        });
        let task = executor.spawn(Class::Request, "writes", {
            let file = file.clone();
            async move { file.write_at(vec![5; 10], 40).await }
        });
        settle(&mut executor);
        driver.complete(driver.find(|op| matches!(op, Op::Write { .. })), outcome);
        let (result, buf) = executor.block_on(task).unwrap();
        let error = result.expect_err("not all of it was written");
        assert_eq!(error.kind(), expected);
        let short = written.map(|written| ShortWrite { offset: 40, written, wanted: 10 });
        assert_eq!(ShortWrite::of(&error), short);
        assert_eq!(buf, [5; 10], "the buffer comes back");
        assert!(driver.0.borrow().in_flight.is_empty(), "nothing is tried again");
    }
}
