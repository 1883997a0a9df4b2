//! The portable production driver: epoll for sockets, a small thread pool for files.
//!
//! ```text
//!   socket op ──try at once──► done
//!                └─ would block ─► waits at its socket ──epoll event──► tried again
//!   file op ──► file threads ──┐
//!   offload ──► job threads ───┴─► finished list ──unpark──► next poll
//! ```
//!
//! Invariants
//! - Every socket is non-blocking and registered edge-triggered once, for both directions, when it comes into being.
//! - A file's descriptor is shared with the thread that works on it, so that it cannot be closed and reused meanwhile.
#![forbid(unsafe_code)]

mod sockets;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use self::sockets::Sockets;
use super::files::{self, Output};
use super::pool::{Finished, Pool, Work};
use super::system::{self, EventFdUnpark, RandomPool};
use super::{Completion, Driver, Op, OpKey, OpOutput, RawHandle, Unpark, Wait};
use crate::time::{Instant, WallClock};

/// epoll events taken per poll; further ones stay in the kernel until the next.
const EVENTS_MAX: usize = 256;

/// epoll token of the wake-up descriptor; sockets use their descriptor numbers.
const WAKE_TOKEN: u64 = u64::MAX;

/// epoll and a thread pool.
pub struct PosixDriver {
    epoll: Arc<OwnedFd>,
    wake: Arc<EventFdUnpark>,
    sockets: Sockets,
    /// Open files by descriptor number.
    files: Vec<Option<Arc<OwnedFd>>>,
    file_pool: Pool,
    job_pool: Pool,
    finished: Vec<Finished>,
    /// Completions for the next poll.
    ready: Vec<Completion>,
    events: Vec<epoll::Event>,
    random: RandomPool,
    /// The kernel or a seccomp filter refuses epoll_pwait2, so deadlines are rounded up to whole milliseconds.
    coarse_timeouts: bool,
}

impl PosixDriver {
    /// With at most `file_threads` threads for files and `job_threads` for offloaded jobs, started as needed.
    pub fn new(file_threads: usize, job_threads: usize) -> io::Result<PosixDriver> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let wake = Arc::new(EventFdUnpark::new()?);
        epoll::add(&epoll, wake.fd(), EventData::new_u64(WAKE_TOKEN), EventFlags::IN | EventFlags::ET)?;
        let unpark = || Arc::clone(&wake) as Arc<dyn Unpark>;
        Ok(PosixDriver {
            sockets: Sockets::new(Arc::clone(&epoll)),
            file_pool: Pool::new("gristmill-file", file_threads, unpark()),
            job_pool: Pool::new("gristmill-job", job_threads, unpark()),
            epoll,
            wake,
            files: Vec::new(),
            finished: Vec::new(),
            ready: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            random: RandomPool::new(),
            coarse_timeouts: false,
        })
    }

    fn submit_file(&mut self, key: OpKey, op: Op) {
        let fd = files::file_of(&op).map(|file| {
            let slot = self.files.get(file.0 as usize).and_then(Option::as_ref);
            Arc::clone(slot.expect("an op names an open file"))
        });
        let refused = self.file_pool.submit(Work { key, op, fd }).err();
        self.finished.extend(refused);
    }

    fn close(&mut self, key: OpKey, handle: RawHandle) {
        if self.sockets.close(handle) {
            let (op, result) = (Op::Close { handle }, Ok(OpOutput::Done));
            self.ready.push(Completion { key, op, result, more: false });
            return;
        }
        // The last close of an unlinked file frees its blocks, which may take long: not on the core.
        let fd = self.files.get_mut(handle.0 as usize).and_then(Option::take);
        assert!(fd.is_some(), "{handle:?} is closed once");
        let refused = self.file_pool.submit(Work { key, op: Op::Close { handle }, fd }).err();
        self.finished.extend(refused);
    }

    /// Turns what the threads finished into completions.
    fn collect_finished(&mut self) {
        self.file_pool.take_finished(&mut self.finished);
        self.job_pool.take_finished(&mut self.finished);
        let mut finished = std::mem::take(&mut self.finished);
        for Finished { key, op, result } in finished.drain(..) {
            let result = result.map(|output| match output {
                Output::Plain(output) => output,
                Output::Opened(fd, direct) => OpOutput::Opened { file: self.adopt_file(fd), direct },
            });
            self.ready.push(Completion { key, op, result, more: false });
        }
        self.finished = finished;
    }

    fn adopt_file(&mut self, fd: OwnedFd) -> RawHandle {
        let number = fd.as_raw_fd() as usize;
        if self.files.len() <= number {
            self.files.resize(number + 1, None);
        }
        let before = self.files[number].replace(Arc::new(fd));
        assert!(before.is_none(), "descriptor {number} was closed behind the driver's back");
        RawHandle(number as u64)
    }

    fn wait_for_events(&mut self, wait: Wait) {
        let timeout = match wait {
            _ if !self.ready.is_empty() => Some(Duration::ZERO),
            Wait::NoWait => Some(Duration::ZERO),
            Wait::Until(deadline) => deadline.map(|deadline| deadline - system::monotonic()),
        };
        if wait == Wait::NoWait && self.sockets.nothing_waits() {
            return;
        }
        if timeout == Some(Duration::ZERO) {
            self.epoll_wait(timeout);
        } else if self.wake.park() {
            self.epoll_wait(timeout);
            self.wake.unparked();
        } else {
            self.epoll_wait(Some(Duration::ZERO));
            self.wake.unparked();
        }
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event.data.u64() {
                WAKE_TOKEN => self.wake.drain(),
                fd => self.sockets.on_event(fd as usize, event.flags, &mut self.ready),
            }
        }
        self.events = events;
    }

    fn epoll_wait(&mut self, timeout: Option<Duration>) {
        self.events.clear();
        let timeout = timeout.map(|timeout| self.timespec(timeout));
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&*self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::PERM) if !self.coarse_timeouts => self.coarse_timeouts = true,
            Err(error) => panic!("epoll_wait on our own descriptor: {error}"),
        }
    }

    fn timespec(&self, timeout: Duration) -> Timespec {
        let timeout = if self.coarse_timeouts {
            Duration::from_millis(timeout.as_nanos().div_ceil(1_000_000) as u64)
        } else {
            timeout
        };
        Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) }
    }
}

impl Driver for PosixDriver {
    fn name(&self) -> &'static str {
        "posix"
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        match op {
            Op::Close { handle } => self.close(key, handle),
            Op::Offload { .. } => {
                let refused = self.job_pool.submit(Work { key, op, fd: None }).err();
                self.finished.extend(refused);
            }
            Op::Listen { .. }
            | Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Recv { .. }
            | Op::Send { .. }
            | Op::Shutdown { .. }
            | Op::SetNoDelay { .. } => self.sockets.submit(key, op, &mut self.ready),
            _ => self.submit_file(key, op),
        }
    }

    fn cancel(&mut self, key: OpKey) {
        if self.sockets.cancel(key, &mut self.ready) {
            return;
        }
        let withdrawn = self.file_pool.cancel(key).or_else(|| self.job_pool.cancel(key));
        if let Some(Work { op: Op::Close { .. }, .. }) = &withdrawn {
            unreachable!("nobody cancels a close");
        }
        if let Some(Work { key, op, .. }) = withdrawn {
            self.ready.push(Completion { key, op, result: Err(Errno::CANCELED.into()), more: false });
        }
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        self.collect_finished();
        self.wait_for_events(wait);
        self.collect_finished();
        out.append(&mut self.ready);
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
