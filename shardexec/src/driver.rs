//! The seam between the executor and the world.
//!
//! ```text
//!   op future ──submit(key, Op)──► Driver ──poll──► Completion{key, op, result} ──► op slab ──► waker
//!       └─ drop ──cancel(key)────►    │  the op, buffer included, always comes back
//! ```
//!
//! Contract of every driver
//! - An [`Op`] moves in and moves out again with its last [`Completion`], whatever happened: success, error or cancellation.
//!   Until then the executor neither reuses the key nor closes the handles named by the op.
//! - [`Driver::submit`] and [`Driver::cancel`] never block and never complete an op on the spot: completions come from
//!   [`Driver::poll`] only. The number of ops in flight is bounded by the executor's slab.
//! - Reads, writes and transfers may be short; the layer above continues reads and transfers, and takes a short write to a file for
//!   an error.
//! - Nothing else in the workspace reads a clock, a random source, a file or a socket.

pub(crate) mod files;
pub(crate) mod pool;
pub mod posix;
pub(crate) mod select;
pub(crate) mod system;

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::buf::IoBuf;
use crate::time::{Instant, WallClock};

/// Names one operation in flight: a slab slot and the count of its reuses, so that a late completion cannot meet a newer op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey {
    /// Index into the op slab.
    pub slot: u32,
    /// How often the slot had been used before.
    pub generation: u32,
}

impl OpKey {
    /// The key as 64 bits of io_uring user data: slot in the low half, generation in the high.
    pub const fn to_user_data(self) -> u64 {
        self.slot as u64 | (self.generation as u64) << 32
    }

    /// Inverse of [`OpKey::to_user_data`].
    pub const fn from_user_data(bits: u64) -> OpKey {
        OpKey { slot: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// An open file or socket in the driver's own numbering: a descriptor for `uring` and `posix`, an id in `sim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawHandle(pub u64);

/// How to open a file. Close-on-exec always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent open(2) flags")]
pub struct OpenFlags {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// Create it when missing.
    pub create: bool,
    /// Create it, and fail when it exists.
    pub create_new: bool,
    /// Cut it to zero length.
    pub truncate: bool,
    /// O_DIRECT: memory, offsets and lengths aligned; no page cache. Fails with [`io::ErrorKind::Unsupported`] where the file
    /// system has no direct I/O, even if its open(2) would accept the flag (tmpfs).
    pub direct: bool,
    /// O_DSYNC: a write returns once its data is durable.
    pub dsync: bool,
    /// Permission bits of a created file, before the umask.
    pub mode: u32,
}

/// The inner error of an open that failed with [`io::ErrorKind::Unsupported`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file system of {} has no direct I/O; write buffered and sync instead", path.display())]
pub struct DirectUnsupported {
    /// What was to be opened.
    pub path: PathBuf,
}

impl DirectUnsupported {
    /// Whether `error` is of this kind.
    pub fn caused(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<DirectUnsupported>)
    }
}

/// What direct I/O on a file needs, from STATX_DIOALIGN (4096 each where the kernel does not tell), in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of the memory.
    pub memory: u32,
    /// Of file offsets and lengths.
    pub offset: u32,
}

/// What kind of thing a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Symbolic link, device, pipe or socket.
    Other,
}

/// What is known about a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Length in bytes.
    pub len: u64,
    /// Bytes that the file system has allocated for it.
    pub allocated: u64,
    /// File or directory.
    pub kind: FileKind,
    /// Number of names.
    pub links: u64,
    /// Number of the file within its file system.
    pub inode: u64,
    /// Last change of content.
    pub modified: WallClock,
}

/// One name in a directory, `.` and `..` left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Last component of the path.
    pub name: OsString,
    /// File or directory.
    pub kind: FileKind,
}

/// About the file system that holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// statfs(2) magic number, e.g. `0xef53` for ext4.
    pub magic: u64,
    /// Size in bytes.
    pub bytes_total: u64,
    /// Bytes that an ordinary user may still write.
    pub bytes_available: u64,
}

/// How a listening socket is set up. SO_REUSEADDR always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// SO_REUSEPORT: several listeners share the port and the kernel spreads connections over them.
    pub reuse_port: bool,
    /// Connections that wait for an accept.
    pub backlog: u32,
}

/// Which directions of a connection to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownHow {
    /// No more receiving.
    Read,
    /// No more sending; the peer reads end of stream.
    Write,
    /// Neither.
    Both,
}

/// Work for another thread: must block, or would hold the core for long.
pub struct Job(Option<Box<dyn FnOnce() -> JobOutput + Send>>);

/// What a job made.
pub type JobOutput = Box<dyn Any + Send>;

impl Job {
    /// Wraps `work`.
    pub fn new(work: impl FnOnce() -> JobOutput + Send + 'static) -> Job {
        Job(Some(Box::new(work)))
    }

    /// Runs the work and catches its panic.
    ///
    /// # Panics
    /// When it ran before: a driver runs each job once.
    pub fn run(&mut self) -> Result<JobOutput, JobPanic> {
        let work = self.0.take().expect("a job runs once");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            .map_err(|payload| JobPanic(panic_message(&*payload)))
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").finish_non_exhaustive()
    }
}

/// A job panicked; its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPanic(pub String);

/// The text of a panic, as far as it is one.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic with a payload that is not text".to_owned()
    }
}

/// One operation. It owns everything that it needs, so that it can outlive the future that asked for it.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant's line explains its fields")]
pub enum Op {
    /// Open a file → [`OpOutput::Opened`].
    Open { path: PathBuf, flags: OpenFlags },
    /// Close a file, listener or socket → `Done`. Submitted once, after every other op on the handle has completed.
    Close { handle: RawHandle },
    /// Read into `buf[start..len]` from `offset` → `Count`, 0 at end of file.
    Read { file: RawHandle, buf: IoBuf, start: usize, offset: u64 },
    /// Write `buf[start..len]` at `offset` → `Count`.
    Write { file: RawHandle, buf: IoBuf, start: usize, offset: u64 },
    /// fdatasync or fsync → `Done`.
    Sync { file: RawHandle, data_only: bool },
    /// ftruncate → `Done`.
    SetLen { file: RawHandle, len: u64 },
    /// fallocate without changing content; extends the file → `Done`.
    Allocate { file: RawHandle, offset: u64, len: u64 },
    /// fstat → `Metadata`.
    FileMetadata { file: RawHandle },
    /// flock exclusively without waiting → `Done`, or an error of kind `WouldBlock` when another process holds it.
    LockExclusive { file: RawHandle },
    /// Ask a copy-on-write file system to write this (empty) file in place → `Done`, or `Unsupported`.
    SetNoCow { file: RawHandle },
    /// stat → `Metadata`.
    Metadata { path: PathBuf },
    /// statfs → `FileSystem`.
    FileSystem { path: PathBuf },
    /// mkdir → `Done`.
    CreateDir { path: PathBuf },
    /// Names in a directory, in no particular order → `Entries`.
    ReadDir { path: PathBuf },
    /// rename, replacing `to` → `Done`.
    Rename { from: PathBuf, to: PathBuf },
    /// Hard link → `Done`.
    Link { from: PathBuf, to: PathBuf },
    /// unlink → `Done`.
    RemoveFile { path: PathBuf },
    /// rmdir → `Done`.
    RemoveDir { path: PathBuf },
    /// fsync a directory, so that its names are durable → `Done`.
    SyncDir { path: PathBuf },
    /// Bind and listen → `Listening`.
    Listen { addr: SocketAddr, options: ListenOptions },
    /// Take a connection → `Accepted`. With `multishot` a driver may stay armed and complete it again with `more`.
    Accept { listener: RawHandle, multishot: bool },
    /// Open a connection → `Connected`.
    Connect { addr: SocketAddr },
    /// Append what has arrived to `buf`, within its capacity → `Count`, 0 at end of stream.
    Recv { socket: RawHandle, buf: IoBuf },
    /// Send `buf[start..len]` → `Count`.
    Send { socket: RawHandle, buf: IoBuf, start: usize },
    /// End one or both directions → `Done`.
    Shutdown { socket: RawHandle, how: ShutdownHow },
    /// TCP_NODELAY; on when a connection is made → `Done`.
    SetNoDelay { socket: RawHandle, on: bool },
    /// Run a job beside the core → `Offloaded`. In `sim` it runs inline at an instant that the seed picks.
    Offload { job: Job },
}

/// What an operation achieved.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant's line explains its fields")]
pub enum OpOutput {
    /// Nothing more to tell.
    Done,
    /// Bytes read, written, received or sent.
    Count(usize),
    /// The file, and what direct I/O needs when it was opened `direct`.
    Opened { file: RawHandle, direct: Option<DirectAlignment> },
    /// Metadata of a file.
    Metadata(Metadata),
    /// Names in a directory.
    Entries(Vec<DirEntry>),
    /// About a file system.
    FileSystem(FileSystem),
    /// The listener and its bound address.
    Listening { listener: RawHandle, local: SocketAddr },
    /// A connection, TCP_NODELAY set, and who made it.
    Accepted { socket: RawHandle, peer: SocketAddr },
    /// A connection, TCP_NODELAY set, and our own address.
    Connected { socket: RawHandle, local: SocketAddr },
    /// The job's value or its panic.
    Offloaded(Result<JobOutput, JobPanic>),
}

/// An operation's end, or one of several for a multishot op.
#[derive(Debug)]
pub struct Completion {
    /// The key given to [`Driver::submit`].
    pub key: OpKey,
    /// The op handed back. When `more` is set it is a copy: only ops without buffers are multishot.
    pub op: Op,
    /// Outcome; a cancelled op may still succeed, otherwise it fails with `ECANCELED`.
    pub result: io::Result<OpOutput>,
    /// The same key will complete again.
    pub more: bool,
}

/// How long [`Driver::poll`] may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    NoWait,
    /// Until a completion, an unpark, or the deadline on the monotonic clock (`None`: no deadline).
    Until(Option<Instant>),
}

/// Ends a parked [`Driver::poll`] from any thread. One that comes before the poll makes it return at once; only a poll that
/// may wait uses it up, so that none is lost between a last look for work and the wait.
pub trait Unpark: Send + Sync {
    /// Costs no system call while the core is awake.
    fn unpark(&self);
}

/// Everything that a core may ask of the world. One instance belongs to one executor and lives on its thread.
pub trait Driver {
    /// `uring`, `posix` or `sim`.
    fn name(&self) -> &'static str;

    /// Starts `op`. Never blocks. The slab bounds the number in flight.
    fn submit(&mut self, key: OpKey, op: Op);

    /// Asks to end an op early. Its completion still arrives. An unknown key is ignored: it may have completed already.
    fn cancel(&mut self, key: OpKey);

    /// Appends completions to `out`, waiting for the first as `wait` allows.
    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>);

    /// A handle that wakes a parked `poll`.
    fn unparker(&self) -> Arc<dyn Unpark>;

    /// CLOCK_MONOTONIC.
    fn now(&self) -> Instant;

    /// CLOCK_BOOTTIME: goes on while the machine is suspended. For leases.
    fn boottime(&self) -> Instant;

    /// CLOCK_REALTIME.
    fn wall_clock(&self) -> WallClock;

    /// The monotonic clock as slices and stalls are measured, read after every task poll. A simulated driver charges the
    /// poll's virtual cost here, so that traces repeat.
    fn budget_clock(&mut self) -> Instant {
        self.now()
    }

    /// Which of `ready` runnable tasks of a class goes next, counted from the one that waits longest. Asked only when the
    /// executor is configured to let the driver order tasks (simulation).
    fn pick_task(&mut self, ready: usize) -> usize {
        debug_assert!(ready > 0);
        0
    }

    /// Fills `out` from the system's (or the seed's) random source.
    fn fill_random(&mut self, out: &mut [u8]);

    /// Tells whoever runs the node one line: on stderr, or in the trace of a simulation.
    fn tell(&mut self, line: fmt::Arguments<'_>) {
        eprintln!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_round_trips() {
        for key in [
            OpKey { slot: 0, generation: 0 },
            OpKey { slot: u32::MAX, generation: 7 },
            OpKey { slot: 3, generation: u32::MAX },
        ] {
            assert_eq!(OpKey::from_user_data(key.to_user_data()), key);
        }
    }

    #[test]
    fn a_job_tells_its_panic() {
        let mut job = Job::new(|| panic!("lost {}", "it"));
        assert_eq!(job.run().err(), Some(JobPanic("lost it".to_owned())));
        let mut job = Job::new(|| Box::new(7u8));
        assert_eq!(job.run().ok().and_then(|value| value.downcast::<u8>().ok()), Some(Box::new(7)));
    }
}
