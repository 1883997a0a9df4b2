//! Files and directories.
//!
//! Reads and writes take a buffer by value and give it back: it belongs to the operation while the kernel may touch it.
//! A future that is dropped half-way takes its buffer with it once the kernel is done.
//! A read that ends early is continued. A write is not: what a second one would find on the disk nobody knows, so it is the
//! caller who decides, and a log decides to stop.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::buf::{AlignedBuf, OwnedBuf, OwnedBufMut};
pub use crate::driver::{DirEntry, DirectAlignment, DirectUnsupported, FileKind, FileSystem, Metadata};
use crate::driver::{Op, OpOutput, OpenFlags};
use crate::executor::ops::{Handle, OpFuture, OpResult};
use crate::executor::state::current;

/// How to open a file; every flag is off at first. Permission bits 0o640.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions(OpenFlags);

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// No flag set.
    pub const fn new() -> OpenOptions {
        OpenOptions(OpenFlags {
            read: false,
            write: false,
            create: false,
            create_new: false,
            truncate: false,
            direct: false,
            dsync: false,
            mode: 0o640,
        })
    }

    /// May be read.
    #[must_use]
    pub const fn read(mut self, on: bool) -> OpenOptions {
        self.0.read = on;
        self
    }

    /// May be written.
    #[must_use]
    pub const fn write(mut self, on: bool) -> OpenOptions {
        self.0.write = on;
        self
    }

    /// Create it when missing.
    #[must_use]
    pub const fn create(mut self, on: bool) -> OpenOptions {
        self.0.create = on;
        self
    }

    /// Create it, and fail with [`io::ErrorKind::AlreadyExists`] when it exists.
    #[must_use]
    pub const fn create_new(mut self, on: bool) -> OpenOptions {
        self.0.create_new = on;
        self
    }

    /// Cut it to zero length.
    #[must_use]
    pub const fn truncate(mut self, on: bool) -> OpenOptions {
        self.0.truncate = on;
        self
    }

    /// Bypass the page cache. Where the file system cannot, opening fails with [`io::ErrorKind::Unsupported`] (see
    /// [`DirectUnsupported`]); memory, offsets and lengths must be aligned as [`File::direct_alignment`] says.
    #[must_use]
    pub const fn direct(mut self, on: bool) -> OpenOptions {
        self.0.direct = on;
        self
    }

    /// A write returns once its data is durable.
    #[must_use]
    pub const fn dsync(mut self, on: bool) -> OpenOptions {
        self.0.dsync = on;
        self
    }

    /// Permission bits of a created file, before the umask.
    #[must_use]
    pub const fn mode(mut self, mode: u32) -> OpenOptions {
        self.0.mode = mode;
        self
    }

    /// Opens `path`.
    pub async fn open(self, path: impl AsRef<Path>) -> io::Result<File> {
        let core = current();
        let op = Op::Open { path: path.as_ref().to_owned(), flags: self.0 };
        match OpFuture::new(Rc::clone(&core), None, op).await.0? {
            OpOutput::Opened { file, direct } => Ok(File { handle: Handle::new(core, file), direct }),
            other => unreachable!("the driver answered an open with {other:?}"),
        }
    }
}

/// The kernel took fewer bytes of a write than it was given, and did not say why: that, it tells only who asks again. An
/// [`io::Error`] of kind [`io::ErrorKind::WriteZero`] around this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("short write: {written} of {wanted} bytes at offset {offset}")]
pub struct ShortWrite {
    /// Where the write began.
    pub offset: u64,
    /// Bytes taken.
    pub written: usize,
    /// Bytes given.
    pub wanted: usize,
}

impl ShortWrite {
    /// The short write that `error` is about, if it is about one.
    pub fn of(error: &io::Error) -> Option<ShortWrite> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<ShortWrite> for io::Error {
    fn from(short: ShortWrite) -> io::Error {
        io::Error::new(io::ErrorKind::WriteZero, short)
    }
}

/// An open file. Clones share it; it is closed when the last of them, and the last operation on it, is gone.
#[derive(Clone)]
pub struct File {
    handle: Rc<Handle>,
    direct: Option<DirectAlignment>,
}

impl File {
    /// Opens for reading.
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path).await
    }

    /// What direct I/O on this file needs; `None` when it was not opened `direct`.
    pub fn direct_alignment(&self) -> Option<DirectAlignment> {
        self.direct
    }

    /// Fills `buf[..len]` from `offset`; fewer bytes only at the end of the file.
    pub async fn read_at<B: OwnedBufMut>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        let mut buf = buf.into_io();
        let mut done = 0;
        let file = self.handle.raw();
        while done < buf.len() {
            let op = Op::Read { file, buf, start: done, offset: offset + done as u64 };
            let (result, op) = OpFuture::on(&self.handle, op).await;
            let Op::Read { buf: returned, .. } = op else { unreachable!("the driver returned another op") };
            buf = returned;
            match count(result) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), B::from_io(buf)),
            }
            if self.is_unaligned(done) {
                break; // Only the end of the file cuts a direct read off in mid-block, and asking again is not allowed there.
            }
        }
        (Ok(done), B::from_io(buf))
    }

    /// Writes the whole of `buf` at `offset`, in one operation that is never tried again. When the kernel takes less, that is an error
    /// that [`ShortWrite::of`] knows; on any error each part of `buf` may have been written or not.
    pub async fn write_at<B: OwnedBuf>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        let buf = buf.into_io();
        let wanted = buf.len();
        if wanted == 0 {
            return (Ok(0), B::from_io(buf));
        }
        let op = Op::Write { file: self.handle.raw(), buf, start: 0, offset };
        let (result, op) = OpFuture::on(&self.handle, op).await;
        let Op::Write { buf, .. } = op else { unreachable!("the driver returned another op") };
        let result = count(result).and_then(|written| {
            if written == wanted { Ok(written) } else { Err(ShortWrite { offset, written, wanted }.into()) }
        });
        (result, B::from_io(buf))
    }

    /// Makes content durable, and the length if it grew (fdatasync).
    pub async fn sync_data(&self) -> io::Result<()> {
        self.run(Op::Sync { file: self.handle.raw(), data_only: true }).await
    }

    /// Makes content and metadata durable (fsync).
    pub async fn sync_all(&self) -> io::Result<()> {
        self.run(Op::Sync { file: self.handle.raw(), data_only: false }).await
    }

    /// Cuts or extends with zeros to `len` bytes.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(Op::SetLen { file: self.handle.raw(), len }).await
    }

    /// Reserves space for `len` bytes from `offset`; the file grows to hold them.
    pub async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.run(Op::Allocate { file: self.handle.raw(), offset, len }).await
    }

    /// Length and more.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        metadata_of(OpFuture::on(&self.handle, Op::FileMetadata { file: self.handle.raw() }).await.0)
    }

    /// Locks the file against other processes for as long as it is open. False when another one holds it.
    pub async fn try_lock_exclusive(&self) -> io::Result<bool> {
        match self.run(Op::LockExclusive { file: self.handle.raw() }).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks a copy-on-write file system to write this file in place; the file must be empty. Elsewhere an error of kind
    /// [`io::ErrorKind::Unsupported`], harmless.
    pub async fn set_no_cow(&self) -> io::Result<()> {
        self.run(Op::SetNoCow { file: self.handle.raw() }).await
    }

    async fn run(&self, op: Op) -> io::Result<()> {
        done(OpFuture::on(&self.handle, op).await.0)
    }

    fn block(&self) -> usize {
        self.direct.map_or(1, |direct| direct.offset as usize)
    }

    fn is_unaligned(&self, done: usize) -> bool {
        !done.is_multiple_of(self.block())
    }
}

fn count(result: OpResult) -> io::Result<usize> {
    result.map(|output| match output {
        OpOutput::Count(n) => n,
        other => unreachable!("the driver answered a transfer with {other:?}"),
    })
}

fn done(result: OpResult) -> io::Result<()> {
    result.map(|output| match output {
        OpOutput::Done => {}
        other => unreachable!("the driver answered with {other:?} where nothing was asked"),
    })
}

fn metadata_of(result: OpResult) -> io::Result<Metadata> {
    result.map(|output| match output {
        OpOutput::Metadata(metadata) => metadata,
        other => unreachable!("the driver answered a stat with {other:?}"),
    })
}

async fn run(op: Op) -> OpResult {
    OpFuture::new(current(), None, op).await.0
}

fn owned(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().to_owned()
}

/// What is known about `path`.
pub async fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    metadata_of(run(Op::Metadata { path: owned(path) }).await)
}

/// About the file system that holds `path`.
pub async fn file_system(path: impl AsRef<Path>) -> io::Result<FileSystem> {
    run(Op::FileSystem { path: owned(path) }).await.map(|output| match output {
        OpOutput::FileSystem(info) => info,
        other => unreachable!("the driver answered a statfs with {other:?}"),
    })
}

/// Creates one directory.
pub async fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::CreateDir { path: owned(path) }).await)
}

/// Creates a directory and those above it that are missing.
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let mut missing = Vec::new();
    for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        match metadata(dir).await {
            Ok(found) if found.kind == FileKind::Dir => break,
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(dir),
            Err(error) => return Err(error),
        }
    }
    for dir in missing.into_iter().rev() {
        match create_dir(dir).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Names in a directory, sorted, so that no caller depends on the file system's order.
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<Vec<DirEntry>> {
    match run(Op::ReadDir { path: owned(path) }).await? {
        OpOutput::Entries(mut entries) => {
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        }
        other => unreachable!("the driver answered a directory listing with {other:?}"),
    }
}

/// Renames, replacing `to`. Durable after [`sync_dir`] of both directories.
pub async fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::Rename { from: owned(from), to: owned(to) }).await)
}

/// Gives a file another name.
pub async fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::Link { from: owned(from), to: owned(to) }).await)
}

/// Removes a name; the file goes with its last one.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::RemoveFile { path: owned(path) }).await)
}

/// Removes an empty directory.
pub async fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::RemoveDir { path: owned(path) }).await)
}

/// Makes the names in a directory durable.
pub async fn sync_dir(path: impl AsRef<Path>) -> io::Result<()> {
    done(run(Op::SyncDir { path: owned(path) }).await)
}

/// Reads a whole file of at most `bytes_max` bytes; a longer one is an error of kind [`io::ErrorKind::FileTooLarge`].
pub async fn read(path: impl AsRef<Path>, bytes_max: usize) -> io::Result<AlignedBuf> {
    let file = File::open(path).await?;
    let len = file.metadata().await?.len;
    if len > bytes_max as u64 {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (result, mut buf) = file.read_at(AlignedBuf::zeroed(len as usize), 0).await;
    buf.set_len(result?);
    Ok(buf)
}

/// Replaces the content of `path` so that after a crash either the old or the new one is there, whole. Writes
/// `path` + `.tmp`, syncs it, renames it, syncs the directory.
pub async fn write_atomic(path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(Path::new(&temporary)).await?;
    file.write_at(AlignedBuf::from(content), 0).await.0?;
    file.sync_all().await?;
    rename(Path::new(&temporary), path).await?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => sync_dir(dir).await,
        _ => sync_dir(".").await,
    }
}
