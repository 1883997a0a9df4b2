//! File operations as plain system calls, for threads that may block.
#![forbid(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, IFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::{
    DirEntry, DirectAlignment, DirectUnsupported, FileKind, FileSystem, Metadata, Op, OpOutput, OpenFlags, RawHandle,
};
use crate::buf::BUF_ALIGN;
use crate::time::WallClock;

/// Names that one directory listing may return: far above any directory of ours, far below what memory holds.
pub const READ_DIR_ENTRIES_MAX: usize = 1 << 20;

/// statfs magic of tmpfs, whose recent versions accept O_DIRECT and then ignore it.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What a file operation gave; a new descriptor still has to find its owner.
pub(crate) enum Output {
    Plain(OpOutput),
    Opened(OwnedFd, Option<DirectAlignment>),
}

/// The open file that `op` uses, if any.
pub(crate) fn file_of(op: &Op) -> Option<RawHandle> {
    match op {
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::Sync { file, .. }
        | Op::SetLen { file, .. }
        | Op::Allocate { file, .. }
        | Op::FileMetadata { file }
        | Op::LockExclusive { file }
        | Op::SetNoCow { file } => Some(*file),
        _ => None,
    }
}

/// Runs a file operation on this thread; it may block. `fd` is the op's open file.
pub(crate) fn run(op: &mut Op, fd: Option<&OwnedFd>) -> io::Result<Output> {
    let plain = match op {
        Op::Open { path, flags } => return open(path, *flags).map(|(fd, direct)| Output::Opened(fd, direct)),
        Op::Metadata { path } => OpOutput::Metadata(metadata(&rustix::fs::stat(&*path)?)),
        Op::FileSystem { path } => OpOutput::FileSystem(file_system(path)?),
        Op::CreateDir { path } => done(rustix::fs::mkdir(&*path, Mode::from_raw_mode(0o750)))?,
        Op::ReadDir { path } => OpOutput::Entries(read_dir(path)?),
        Op::Rename { from, to } => done(rustix::fs::rename(&*from, &*to))?,
        Op::Link { from, to } => done(rustix::fs::link(&*from, &*to))?,
        Op::RemoveFile { path } => done(rustix::fs::unlink(&*path))?,
        Op::RemoveDir { path } => done(rustix::fs::rmdir(&*path))?,
        Op::SyncDir { path } => done(rustix::fs::fsync(open_dir(path)?))?,
        _ => run_on_open_file(op, fd.expect("the op names an open file"))?,
    };
    Ok(Output::Plain(plain))
}

fn run_on_open_file(op: &mut Op, fd: &OwnedFd) -> io::Result<OpOutput> {
    match op {
        Op::Read { buf, start, offset, .. } => {
            Ok(OpOutput::Count(rustix::io::pread(fd, &mut buf.as_mut_slice()[*start..], *offset)?))
        }
        Op::Write { buf, start, offset, .. } => {
            Ok(OpOutput::Count(rustix::io::pwrite(fd, &buf.as_slice()[*start..], *offset)?))
        }
        Op::Sync { data_only: true, .. } => done(rustix::fs::fdatasync(fd)),
        Op::Sync { data_only: false, .. } => done(rustix::fs::fsync(fd)),
        Op::SetLen { len, .. } => done(rustix::fs::ftruncate(fd, *len)),
        Op::Allocate { offset, len, .. } => done(rustix::fs::fallocate(fd, FallocateFlags::empty(), *offset, *len)),
        Op::FileMetadata { .. } => Ok(OpOutput::Metadata(metadata(&rustix::fs::fstat(fd)?))),
        Op::LockExclusive { .. } => done(rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive)),
        Op::SetNoCow { .. } => set_no_cow(fd),
        other => unreachable!("{other:?} is not a file operation"),
    }
}

fn done(result: rustix::io::Result<()>) -> io::Result<OpOutput> {
    Ok(result.map(|()| OpOutput::Done)?)
}

/// open(2) flags.
pub(crate) fn open_flags(flags: OpenFlags) -> OFlags {
    let mut raw = OFlags::CLOEXEC;
    raw |= match (flags.read, flags.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    raw.set(OFlags::CREATE, flags.create || flags.create_new);
    raw.set(OFlags::EXCL, flags.create_new);
    raw.set(OFlags::TRUNC, flags.truncate);
    raw.set(OFlags::DIRECT, flags.direct);
    raw.set(OFlags::DSYNC, flags.dsync);
    raw
}

fn open(path: &Path, flags: OpenFlags) -> io::Result<(OwnedFd, Option<DirectAlignment>)> {
    let opened = rustix::fs::open(path, open_flags(flags), Mode::from_raw_mode(flags.mode));
    if flags.direct && matches!(opened, Err(Errno::INVAL)) {
        return Err(direct_unsupported(path));
    }
    let fd = opened?;
    let direct = if flags.direct { Some(direct_alignment(&fd, path)?) } else { None };
    Ok((fd, direct))
}

fn direct_unsupported(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, DirectUnsupported { path: path.to_owned() })
}

/// What direct I/O on `fd` needs, or that there is none.
pub(crate) fn direct_alignment(fd: impl AsFd, path: &Path) -> io::Result<DirectAlignment> {
    let statx = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        // The file system does not tell. O_DIRECT was accepted, so 4096 works everywhere, except where it means nothing.
        if rustix::fs::fstatfs(&fd)?.f_type as u64 == TMPFS_MAGIC {
            return Err(direct_unsupported(path));
        }
        return Ok(DirectAlignment { memory: BUF_ALIGN as u32, offset: BUF_ALIGN as u32 });
    }
    if statx.stx_dio_offset_align == 0 {
        return Err(direct_unsupported(path));
    }
    Ok(DirectAlignment { memory: statx.stx_dio_mem_align, offset: statx.stx_dio_offset_align })
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn kind(file_type: FileType) -> FileKind {
    match file_type {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        _ => FileKind::Other,
    }
}

#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
fn metadata(stat: &rustix::fs::Stat) -> Metadata {
    Metadata {
        len: stat.st_size as u64,
        allocated: stat.st_blocks as u64 * 512,
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        links: stat.st_nlink as u64,
        inode: stat.st_ino,
        modified: WallClock(stat.st_mtime as u64 * 1_000_000_000 + stat.st_mtime_nsec as u64),
    }
}

fn file_system(path: &Path) -> io::Result<FileSystem> {
    let info = rustix::fs::statfs(path)?;
    let block = info.f_bsize as u64;
    Ok(FileSystem {
        magic: info.f_type as u64,
        bytes_total: info.f_blocks * block,
        bytes_available: info.f_bavail * block,
    })
}

fn read_dir(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    let dir = open_dir(path)?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entries.len() == READ_DIR_ENTRIES_MAX {
            return Err(io::Error::other(format!("{} has more than {READ_DIR_ENTRIES_MAX} entries", path.display())));
        }
        let kind = match entry.file_type() {
            // Some file systems do not tell in the listing.
            FileType::Unknown => {
                kind(FileType::from_raw_mode(rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
            }
            known => kind(known),
        };
        entries.push(DirEntry { name: OsStr::from_bytes(name.to_bytes()).to_owned(), kind });
    }
    Ok(entries)
}

fn set_no_cow(fd: &OwnedFd) -> io::Result<OpOutput> {
    let unsupported = |error| match error {
        Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => io::ErrorKind::Unsupported.into(),
        other => io::Error::from(other),
    };
    let flags = rustix::fs::ioctl_getflags(fd).map_err(unsupported)?;
    done(rustix::fs::ioctl_setflags(fd, flags | IFlags::NOCOW)).map_err(|error| match error.raw_os_error() {
        Some(code) => unsupported(Errno::from_raw_os_error(code)),
        None => error,
    })
}
