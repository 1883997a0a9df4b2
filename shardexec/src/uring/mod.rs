//! The io_uring driver: one ring per core, entered at most once per poll.
//!
//! ```text
//!   submit ──► in_flight[slot] owns the op ──► submission queue ──┐
//!                                └─ full: backlog ─► next poll    │ io_uring_enter: once per poll, and not at all while
//!   poll ◄── completion queue ◄── kernel ◄────────────────────────┘ there is nothing to submit and nothing deferred
//!     ▲ file and job threads (what the ring cannot do, or only through the kernel's own threads)
//!     └ eventfd, watched by one multishot poll: wake-ups from other threads
//! ```
//!
//! The ring is set up with SINGLE_ISSUER | DEFER_TASKRUN | COOP_TASKRUN: completions are made when this thread asks for them and
//! never interrupt it. TASKRUN_FLAG tells, without a system call, that asking is worth it.
//!
//! # What goes where
//! - Ring: reads, writes, syncs, closes, accepts (multishot), connects, receives, sends.
//! - Directly, because they return at once: listen, shutdown, socket options, flock without waiting.
//! - File threads, the pool of the `posix` driver: operations on paths and inodes. io_uring would hand nearly all of them to kernel
//!   threads of its own, so nothing is won; one implementation serves both drivers.
//!
//! # Invariants
//! - An op, its buffer included, stays in `in_flight` until the kernel's last completion for it, come what may: cancellation,
//!   and the drop of the driver, wait for it.
//! - A slot of `in_flight` is the slot of the op's [`OpKey`], so the executor's slab bounds ring, backlog and table.
//! - No completion is lost: the completion queue has room for every op and its cancellation; where a small RLIMIT_MEMLOCK forbids
//!   that, or multishot accepts overflow it, the kernel keeps the surplus and hands it over at the next enter.
//!
//! # Limits
//! At most [`OP_SLOTS_MAX`] ops in flight. The ring's own memory is all that counts against RLIMIT_MEMLOCK (kernels from 6.14 on):
//! its size follows the limit, down to 8 KiB.
//!
//! # Measured and left out
//! CPU time of the core per operation against what is here, medians of 9 alternating rounds, Linux 6.18, two virtual CPUs:
//! - registered files: 0.97–1.01 on a 64-byte echo;
//! - multishot receives into a provided buffer ring, copied into the op's own buffer as [`Op::Recv`] needs it: 0.94 on one
//!   connection, 1.00 on 64. Their other merit, that idle connections hold no buffers, takes an op that lends the driver's;
//! - registered buffers: 0.95 on a durable 4 KiB write, 0.87 (10 µs) on 256 KiB. To be had once the log's batches come from a pool
//!   of the driver's; they would count against RLIMIT_MEMLOCK;
//! - MSG_RING instead of the eventfd: a parked round trip is at 1.05 × bare eventfds already.
#![allow(unsafe_code)]

mod ops;
mod probe;
mod sockets;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use self::ops::{Connecting, InFlight};
pub use self::probe::Refusal;
use crate::driver::files::{self, Output};
use crate::driver::pool::{Finished, Pool, Work};
use crate::driver::system::{self, EventFdUnpark, RandomPool};
use crate::driver::{Completion, Driver, Op, OpKey, OpOutput, RawHandle, Unpark, Wait};
use crate::time::{Instant, WallClock};

/// Most operations in flight on one ring.
pub const OP_SLOTS_MAX: usize = 1 << 24;

/// How long the drop of a driver waits for the kernel to let go of the ops still in flight, in seconds.
const DRAIN_SECONDS_MAX: u64 = 10;

/// Of the poll on the wake-up eventfd.
const USER_DATA_WAKE: u64 = OpKey { slot: u32::MAX, generation: 0 }.to_user_data();

/// Of cancellations, whose own outcome tells nothing: the op that was to be cancelled completes in any case.
const USER_DATA_IGNORED: u64 = OpKey { slot: u32::MAX, generation: 1 }.to_user_data();

/// io_uring.
pub struct UringDriver {
    ring: IoUring,
    /// By slot of the op's key.
    in_flight: Vec<Option<InFlight>>,
    in_flight_count: usize,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    wake: Arc<EventFdUnpark>,
    wake_armed: bool,
    file_pool: Pool,
    job_pool: Pool,
    /// Ops that the pools have and owe.
    pooled: usize,
    finished: Vec<Finished>,
    /// Completions for the next poll.
    ready: Vec<Completion>,
    random: RandomPool,
    enters: u64,
}

impl UringDriver {
    /// Probes the kernel and sets a ring up for up to `op_slots` operations in flight. `file_threads` and `job_threads` bound the
    /// pools for what does not go through the ring. The driver must stay on the calling thread.
    pub fn start(op_slots: usize, file_threads: usize, job_threads: usize) -> Result<UringDriver, Refusal> {
        assert!(op_slots <= OP_SLOTS_MAX, "{op_slots} op slots are above the limit of {OP_SLOTS_MAX}");
        UringDriver::with_ring(probe::start(op_slots)?, file_threads, job_threads)
    }

    fn with_ring(ring: IoUring, file_threads: usize, job_threads: usize) -> Result<UringDriver, Refusal> {
        let wake = Arc::new(EventFdUnpark::new().map_err(|source| Refusal::Resources { source })?);
        let unpark = || Arc::clone(&wake) as Arc<dyn Unpark>;
        Ok(UringDriver {
            ring,
            in_flight: Vec::new(),
            in_flight_count: 0,
            backlog: VecDeque::new(),
            wake_armed: false,
            file_pool: Pool::new("gristmill-file", file_threads, unpark()),
            job_pool: Pool::new("gristmill-job", job_threads, unpark()),
            wake,
            pooled: 0,
            finished: Vec::new(),
            ready: Vec::new(),
            random: RandomPool::new(),
            enters: 0,
        })
    }

    /// System calls into the ring so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    fn submit_to_ring(&mut self, key: OpKey, op: Op, connecting: Option<Connecting>) {
        let slot = key.slot as usize;
        if self.in_flight.len() <= slot {
            self.in_flight.resize_with(slot + 1, || None);
        }
        let place = &mut self.in_flight[slot];
        assert!(place.is_none(), "{key:?} is in flight already");
        let in_flight = place.insert(InFlight { key, op, cancelled: false, connecting });
        let entry = in_flight.entry();
        self.in_flight_count += 1;
        self.queue(entry);
    }

    /// Entries are started in the order of their queueing, so that a cancellation follows its op.
    fn queue(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || push(&mut self.ring, &entry).is_err() {
            self.backlog.push_back(entry);
        }
    }

    fn submit_to_pool(&mut self, key: OpKey, op: Op) {
        let pool = if matches!(op, Op::Offload { .. }) { &mut self.job_pool } else { &mut self.file_pool };
        let fd = match files::file_of(&op).map(|file| borrow(file).try_clone_to_owned()) {
            Some(Ok(fd)) => Some(Arc::new(fd)),
            Some(Err(error)) => return self.complete_now(key, op, Err(error)),
            None => None,
        };
        match pool.submit(Work { key, op, fd }) {
            Ok(()) => self.pooled += 1,
            Err(Finished { key, op, result }) => {
                let result = result.map(|_| unreachable!("an op that could not be started has no output"));
                self.complete_now(key, op, result);
            }
        }
    }

    fn complete_now(&mut self, key: OpKey, op: Op, result: io::Result<OpOutput>) {
        self.ready.push(Completion { key, op, result, more: false });
    }

    fn connect(&mut self, key: OpKey, op: Op) {
        let Op::Connect { addr } = op else { unreachable!("called for connects") };
        match Connecting::new(addr) {
            Ok(connecting) => self.submit_to_ring(key, op, Some(connecting)),
            Err(error) => self.complete_now(key, op, Err(error)),
        }
    }

    fn collect_pools(&mut self, out: &mut Vec<Completion>) {
        if self.pooled == 0 {
            return;
        }
        self.file_pool.take_finished(&mut self.finished);
        self.job_pool.take_finished(&mut self.finished);
        self.pooled -= self.finished.len();
        for Finished { key, op, result } in self.finished.drain(..) {
            let result = result.map(|output| match output {
                Output::Plain(output) => output,
                Output::Opened(fd, direct) => OpOutput::Opened { file: ops::file_handle(fd), direct },
            });
            out.push(Completion { key, op, result, more: false });
        }
    }

    /// Takes everything out of the completion queue.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        while let Some(completion) = self.next_completion() {
            match completion.user_data() {
                USER_DATA_IGNORED => {}
                USER_DATA_WAKE => self.wake_armed = cqueue::more(completion.flags()),
                user_data => out.extend(self.complete(OpKey::from_user_data(user_data), &completion)),
            }
        }
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn complete(&mut self, key: OpKey, completion: &cqueue::Entry) -> Option<Completion> {
        let more = cqueue::more(completion.flags());
        let place = &mut self.in_flight[key.slot as usize];
        let in_flight = place.as_mut().filter(|in_flight| in_flight.key == key);
        let in_flight = in_flight.expect("the kernel completes what is in flight");
        let result = in_flight.outcome(completion.result());
        if more {
            let Op::Accept { listener, multishot: true } = in_flight.op else {
                unreachable!("only a multishot accept completes more than once")
            };
            let op = Op::Accept { listener, multishot: true };
            return result.map(|result| Completion { key, op, result, more });
        }
        let result = match result {
            Some(result) => result,
            None if in_flight.cancelled => Err(Errno::CANCELED.into()),
            None => {
                let entry = in_flight.entry();
                self.queue(entry);
                return None;
            }
        };
        let InFlight { op, .. } = place.take().expect("just looked at");
        self.in_flight_count -= 1;
        Some(Completion { key, op, result, more })
    }

    /// Whether entering the kernel would get something done. Costs no system call.
    fn has_kernel_work(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow() || !self.backlog.is_empty()
    }

    /// Submits what is queued, the backlog included.
    fn enter(&mut self, out: &mut Vec<Completion>) {
        loop {
            self.enters += 1;
            check_enter(self.ring.submit());
            if !self.refill_from_backlog() {
                return;
            }
            self.reap(out);
        }
    }

    /// Moves entries from the backlog to the submission queue. True: there is more to submit.
    fn refill_from_backlog(&mut self) -> bool {
        let mut moved = false;
        while let Some(entry) = self.backlog.front() {
            if push(&mut self.ring, entry).is_err() {
                break;
            }
            self.backlog.pop_front();
            moved = true;
        }
        moved
    }

    /// Submits what is queued and sleeps until a completion, an unpark or the deadline.
    fn enter_and_wait(&mut self, deadline: Option<Instant>) {
        self.enters += 1;
        let Some(deadline) = deadline else { return check_enter(self.ring.submit_and_wait(1)) };
        let timeout = deadline - system::monotonic();
        if timeout.is_zero() {
            return check_enter(self.ring.submit());
        }
        let timeout = types::Timespec::from(timeout);
        check_enter(self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout)));
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed {
            // Edge-triggered, as a multishot poll is: the eventfd is never read, each write to it counts.
            let poll = opcode::PollAdd::new(types::Fd(self.wake.fd().as_raw_fd()), libc::POLLIN as u32).multi(true);
            self.wake_armed = true;
            self.queue(poll.build().user_data(USER_DATA_WAKE));
        }
    }
}

/// Puts an entry into the submission queue, unless it is full.
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> Result<(), squeue::PushError> {
    // SAFETY: what the entry points to is owned by `in_flight` until the op's last completion, and `in_flight` outlives the ring's
    // interest in it (see `Drop`).
    unsafe { ring.submission().push(entry) }
}

fn borrow<'a>(file: RawHandle) -> BorrowedFd<'a> {
    // SAFETY: the executor closes a handle only after every op on it has completed, so it is open while this op is at work.
    unsafe { BorrowedFd::borrow_raw(ops::raw_fd(file)) }
}

fn check_enter(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // The deadline; a signal; the kernel short of memory or of room for completions: the next poll goes on.
        Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
        _ => panic!("io_uring_enter on our own ring: {error}"),
    }
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        match op {
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::Close { .. }
            | Op::Accept { .. }
            | Op::Recv { .. }
            | Op::Send { .. } => self.submit_to_ring(key, op, None),
            Op::Connect { .. } => self.connect(key, op),
            Op::Listen { addr, options } => {
                let listening = sockets::listen(addr, options);
                let result = listening
                    .map(|(socket, local)| OpOutput::Listening { listener: ops::socket_handle(socket), local });
                self.complete_now(key, op, result);
            }
            Op::Shutdown { socket, how } => {
                let result = sockets::shutdown(borrow(socket), how).map(|()| OpOutput::Done);
                self.complete_now(key, op, result);
            }
            Op::SetNoDelay { socket, on } => {
                let result = sockets::no_delay(borrow(socket), on).map(|()| OpOutput::Done);
                self.complete_now(key, op, result);
            }
            Op::LockExclusive { file } => {
                let locked = rustix::fs::flock(borrow(file), FlockOperation::NonBlockingLockExclusive);
                self.complete_now(key, op, locked.map(|()| OpOutput::Done).map_err(io::Error::from));
            }
            _ => self.submit_to_pool(key, op),
        }
    }

    fn cancel(&mut self, key: OpKey) {
        let place = self.in_flight.get_mut(key.slot as usize).and_then(Option::as_mut);
        if let Some(in_flight) = place.filter(|in_flight| in_flight.key == key) {
            in_flight.cancelled = true;
            self.queue(opcode::AsyncCancel::new(key.to_user_data()).build().user_data(USER_DATA_IGNORED));
        } else if let Some(Work { key, op, .. }) = self.file_pool.cancel(key).or_else(|| self.job_pool.cancel(key)) {
            self.pooled -= 1;
            self.complete_now(key, op, Err(Errno::CANCELED.into()));
        }
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        out.append(&mut self.ready);
        self.reap(out);
        self.collect_pools(out);
        self.arm_wake();
        let park = matches!(wait, Wait::Until(_)) && out.is_empty() && self.backlog.is_empty();
        match wait {
            Wait::Until(deadline) if park => {
                if self.wake.park() {
                    self.enter_and_wait(deadline);
                } else {
                    self.enter(out);
                }
                self.wake.unparked();
            }
            _ if self.has_kernel_work() => self.enter(out),
            _ => return,
        }
        self.reap(out);
        self.collect_pools(out);
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.wake) as Arc<dyn Unpark>
    }

    fn now(&self) -> Instant {
        system::monotonic()
    }

    fn boottime(&self) -> Instant {
        system::boottime()
    }

    fn wall_clock(&self) -> WallClock {
        system::wall_clock()
    }

    fn fill_random(&mut self, out: &mut [u8]) {
        self.random.fill(out);
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        let give_up = system::monotonic() + std::time::Duration::from_secs(DRAIN_SECONDS_MAX);
        let keys: Vec<OpKey> = self.in_flight.iter().flatten().map(|in_flight| in_flight.key).collect();
        for key in keys {
            self.cancel(key);
        }
        let mut unclaimed = Vec::new();
        while self.in_flight_count > 0 && system::monotonic() < give_up {
            self.enter(&mut unclaimed);
            self.enter_and_wait(Some(give_up));
            self.reap(&mut unclaimed);
        }
        for Completion { result, .. } in unclaimed {
            if let Ok(OpOutput::Accepted { socket, .. } | OpOutput::Connected { socket, .. }) = result {
                drop(ops::owned(socket));
            }
        }
        if self.in_flight_count > 0 {
            // The kernel may still write into these buffers: losing the memory is the lesser evil.
            eprintln!(
                "gristmill: {} operations did not end within {DRAIN_SECONDS_MAX} s; their memory is not freed",
                self.in_flight_count
            );
            std::mem::forget(std::mem::take(&mut self.in_flight));
        }
    }
}
