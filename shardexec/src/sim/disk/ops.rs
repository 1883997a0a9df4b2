//! Operations as the kernel would do them: checks and errors of Linux, faults of the plan.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::content::{Content, Fate, PAGE, SyncFate, pages_of};
use super::{Disk, Journal, LockOwner, Node};
use crate::buf::IoBuf;
use crate::driver::{DirectAlignment, DirectUnsupported, FileKind, FileSystem, Metadata, Op, OpOutput, OpenFlags};
use crate::sim::faults::{Chaos, FaultKind};
use crate::time::WallClock;

/// statfs magic numbers of what the disk plays: ext4, or tmpfs where there is no direct I/O.
const EXT4_MAGIC: u64 = 0xef53;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// An open file: what it is and how it was opened.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct OpenFile {
    pub inode: u64,
    flags: OpenFlags,
}

/// What an op achieved; a file that was opened still needs a handle.
#[derive(Debug)]
pub(in crate::sim) enum Effect {
    Plain(OpOutput),
    Opened(OpenFile, Option<DirectAlignment>),
}

/// An op's file and who asks.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct Caller {
    pub file: Option<OpenFile>,
    pub lock_owner: LockOwner,
    pub now: WallClock,
    /// The op was in flight when the node went down: nothing that it does is synced.
    pub crashing: bool,
}

fn fails<T>(error: Errno) -> io::Result<T> {
    Err(error.into())
}

fn done(result: io::Result<()>) -> io::Result<OpOutput> {
    result.map(|()| OpOutput::Done)
}

impl Disk {
    /// Does `op`.
    pub(in crate::sim) fn run(&mut self, op: &mut Op, caller: Caller, chaos: &mut Chaos<'_>) -> io::Result<Effect> {
        let now = caller.now;
        let output = match op {
            Op::Open { path, flags } => return self.open(path, *flags, now, chaos),
            Op::Metadata { path } => self.resolve(path).map(|number| OpOutput::Metadata(self.metadata(number))),
            Op::FileSystem { path } => self.resolve(path).map(|_| OpOutput::FileSystem(self.file_system())),
            Op::CreateDir { path } => Self::full(chaos).and_then(|()| done(self.create_dir(path, now))),
            Op::ReadDir { path } => self.entries(path).map(|mut entries| {
                chaos.rng.shuffle(&mut entries);
                OpOutput::Entries(entries)
            }),
            Op::Rename { from, to } => done(self.rename(from, to)),
            Op::Link { from, to } => done(self.link(from, to)),
            Op::RemoveFile { path } => done(self.remove(path, false)),
            Op::RemoveDir { path } => done(self.remove(path, true)),
            Op::SyncDir { path } => done(self.sync_dir(path, chaos)),
            _ => self.run_on_open_file(op, caller, chaos),
        };
        output.map(Effect::Plain)
    }

    fn run_on_open_file(&mut self, op: &mut Op, caller: Caller, chaos: &mut Chaos<'_>) -> io::Result<OpOutput> {
        let file = caller.file.expect("the op names an open file");
        match op {
            Op::Read { buf, start, offset, .. } => self.read_at(file, buf, *start, *offset, chaos).map(OpOutput::Count),
            Op::Write { buf, start, offset, .. } => {
                let aligned = is_aligned(buf, *start, self.config.sector);
                let write = Write { file, bytes: &buf.as_slice()[*start..], aligned, offset: *offset };
                self.write_at(&write, caller, chaos).map(OpOutput::Count)
            }
            Op::Sync { .. } => done(self.sync(file.inode, chaos)),
            Op::SetLen { len, .. } => done(self.set_len(file, *len, caller.now)),
            Op::Allocate { offset, len, .. } => {
                Self::full(chaos)?;
                done(self.allocate(file, *offset, *len))
            }
            Op::FileMetadata { .. } => Ok(OpOutput::Metadata(self.metadata(file.inode))),
            Op::LockExclusive { .. } => done(self.lock(file.inode, caller.lock_owner)),
            Op::SetNoCow { .. } => Err(io::ErrorKind::Unsupported.into()),
            other => unreachable!("{other:?} is not a file operation"),
        }
    }

    fn full(chaos: &mut Chaos<'_>) -> io::Result<()> {
        if chaos.strikes(FaultKind::DiskFull) { fails(Errno::NOSPC) } else { Ok(()) }
    }

    fn open(&mut self, path: &Path, flags: OpenFlags, now: WallClock, chaos: &mut Chaos<'_>) -> io::Result<Effect> {
        let creates = flags.create || flags.create_new;
        if creates && self.resolve(path).is_err() {
            Self::full(chaos)?;
        }
        let number = self.open_file(path, creates, flags.create_new, now)?;
        let is_dir = matches!(self.inode(number).node, Node::Dir { .. });
        if is_dir && (flags.write || creates) {
            return fails(Errno::ISDIR);
        }
        if flags.direct && !self.config.direct {
            // As on tmpfs, the file has come into being by then.
            return Err(io::Error::new(io::ErrorKind::Unsupported, DirectUnsupported { path: path.to_owned() }));
        }
        let file = OpenFile { inode: number, flags };
        if flags.truncate && !is_dir {
            self.set_len(file, 0, now)?;
        }
        self.inode_mut(number).opens += 1;
        let sector = self.config.sector as u32;
        let direct = flags.direct.then_some(DirectAlignment { memory: sector, offset: sector });
        Ok(Effect::Opened(file, direct))
    }

    /// An open file is closed, and its lock released.
    pub(in crate::sim) fn close(&mut self, file: OpenFile, owner: LockOwner) {
        let inode = self.inode_mut(file.inode);
        inode.opens -= 1;
        inode.locked_by = inode.locked_by.filter(|&held| held != owner);
        self.settle(file.inode);
    }

    fn metadata(&self, number: u64) -> Metadata {
        let inode = self.inode(number);
        let (kind, len, allocated) = match &inode.node {
            Node::File(content) => (FileKind::File, content.len(), content.allocated() * PAGE as u64),
            Node::Dir { .. } => (FileKind::Dir, PAGE as u64, PAGE as u64),
        };
        Metadata { len, allocated, kind, links: inode.links, inode: number, modified: inode.modified }
    }

    fn file_system(&self) -> FileSystem {
        let magic = if self.config.direct { EXT4_MAGIC } else { TMPFS_MAGIC };
        let bytes_available = self.free_pages() * PAGE as u64;
        FileSystem { magic, bytes_total: self.config.capacity.max(bytes_available), bytes_available }
    }

    fn lock(&mut self, number: u64, owner: LockOwner) -> io::Result<()> {
        let held = &mut self.inode_mut(number).locked_by;
        if held.is_some_and(|held| held != owner) {
            return fails(Errno::WOULDBLOCK);
        }
        *held = Some(owner);
        Ok(())
    }

    fn file(&mut self, number: u64) -> io::Result<&mut Content> {
        match &mut self.inode_mut(number).node {
            Node::File(content) => Ok(content),
            Node::Dir { .. } => fails(Errno::ISDIR),
        }
    }

    fn set_len(&mut self, file: OpenFile, len: u64, now: WallClock) -> io::Result<()> {
        if !file.flags.write && !file.flags.truncate {
            return fails(Errno::INVAL);
        }
        let seq = self.next_seq();
        let freed = self.file(file.inode)?.set_len(len, seq);
        self.used_pages -= freed;
        self.inode_mut(file.inode).modified = now;
        Ok(())
    }

    fn allocate(&mut self, file: OpenFile, offset: u64, len: u64) -> io::Result<()> {
        if !file.flags.write {
            return fails(Errno::BADF);
        }
        let Some(end) = offset.checked_add(len).filter(|_| len > 0) else { return fails(Errno::INVAL) };
        let free = self.free_pages();
        let seq = self.next_seq();
        let content = self.file(file.inode)?;
        let range = pages_of(offset, len);
        if content.unallocated(&range) > free {
            return fails(Errno::NOSPC);
        }
        let added = content.allocate(range);
        content.grow(end, seq, false);
        self.used_pages += added;
        Ok(())
    }

    fn sync(&mut self, number: u64, chaos: &mut Chaos<'_>) -> io::Result<()> {
        let fate = if chaos.strikes(FaultKind::SyncError) {
            SyncFate::Failed
        } else if chaos.strikes(FaultKind::LyingSync) {
            SyncFate::Lied
        } else {
            SyncFate::Durable
        };
        if let Node::File(content) = &mut self.inode_mut(number).node {
            content.sync(fate, chaos.rng);
        }
        match fate {
            SyncFate::Failed => fails(Errno::IO),
            SyncFate::Lied => Ok(()),
            SyncFate::Durable => {
                if self.config.journal == Journal::Ordered {
                    self.commit_all();
                } else if matches!(self.inode(number).node, Node::Dir { .. }) {
                    self.commit_dir(number);
                }
                Ok(())
            }
        }
    }

    fn sync_dir(&mut self, path: &Path, chaos: &mut Chaos<'_>) -> io::Result<()> {
        let number = self.resolve(path)?;
        if matches!(self.inode(number).node, Node::File(_)) {
            return fails(Errno::NOTDIR);
        }
        if chaos.strikes(FaultKind::SyncError) {
            return fails(Errno::IO);
        }
        if !chaos.strikes(FaultKind::LyingSync) {
            self.commit_dir(number);
        }
        Ok(())
    }

    fn read_at(
        &mut self,
        file: OpenFile,
        buf: &mut IoBuf,
        start: usize,
        offset: u64,
        chaos: &mut Chaos<'_>,
    ) -> io::Result<usize> {
        let sector = self.config.sector;
        if !file.flags.read {
            return fails(Errno::BADF);
        }
        let aligned = is_aligned(buf, start, sector) && offset.is_multiple_of(sector as u64);
        let content = self.file(file.inode)?;
        let mut out = &mut buf.as_mut_slice()[start..];
        if file.flags.direct && !(aligned && out.len().is_multiple_of(sector)) {
            return fails(Errno::INVAL);
        }
        if chaos.strikes(FaultKind::ReadError) || content.is_bad(offset, out.len() as u64) {
            return fails(Errno::IO);
        }
        let unit = if file.flags.direct { sector } else { 1 };
        if out.len() > unit && chaos.rolls(FaultKind::ShortRead) {
            let short = (1 + chaos.rng.index(out.len() / unit)) * unit;
            if short < out.len().min(content.len().saturating_sub(offset) as usize) {
                chaos.struck(FaultKind::ShortRead);
                out = &mut out[..short];
            }
        }
        let count = content.read(offset, out);
        if chaos.rolls(FaultKind::StaleRead) && content.read_stale(offset, &mut out[..count]) {
            chaos.struck(FaultKind::StaleRead);
        }
        Ok(count)
    }

    /// How many of `bytes` find space at `offset`.
    fn room(&mut self, file: OpenFile, offset: u64, len: usize) -> io::Result<usize> {
        let free = self.free_pages();
        let content = self.file(file.inode)?;
        let mut pages = pages_of(offset, len as u64);
        while content.unallocated(&pages) > free {
            pages.end -= 1;
        }
        let until = (pages.end * PAGE as u64).saturating_sub(offset).min(len as u64);
        if until == 0 && len > 0 { fails(Errno::NOSPC) } else { Ok(until as usize) }
    }

    fn write_at(&mut self, write: &Write<'_>, caller: Caller, chaos: &mut Chaos<'_>) -> io::Result<usize> {
        let Write { file, mut bytes, aligned, offset } = *write;
        let sector = self.config.sector;
        if !file.flags.write {
            return fails(Errno::BADF);
        }
        let whole = bytes.len().is_multiple_of(sector) && offset.is_multiple_of(sector as u64);
        if file.flags.direct && !(aligned && whole) {
            return fails(Errno::INVAL);
        }
        let Some(_) = offset.checked_add(bytes.len() as u64) else { return fails(Errno::FBIG) };
        Self::full(chaos)?;
        let unit = if file.flags.direct { sector } else { 1 };
        if bytes.len() > unit && chaos.strikes(FaultKind::ShortWrite) {
            bytes = &bytes[..(1 + chaos.rng.index(bytes.len() / unit - 1)) * unit];
        }
        bytes = &bytes[..self.room(file, offset, bytes.len())?];
        let failed = chaos.strikes(FaultKind::WriteError);
        if failed {
            bytes = &bytes[..chaos.rng.index(bytes.len() + 1) / sector * sector];
        }
        let fate = if caller.crashing || failed || !file.flags.dsync {
            Fate::Cached
        } else if chaos.strikes(FaultKind::LyingSync) {
            Fate::Lied
        } else {
            Fate::Durable
        };
        self.inode_mut(file.inode).modified = caller.now;
        let seq = self.next_seq();
        let (target, at, landing) = self.landing(file.inode, offset, bytes, chaos);
        let content = self.file(file.inode)?;
        let before = content.len();
        let added = content.allocate(pages_of(offset, bytes.len() as u64));
        content.grow(offset + bytes.len() as u64, seq, fate != Fate::Cached);
        let grew = content.len() > before;
        self.used_pages += added;
        self.file(target)?.write(at, landing, seq, fate);
        self.flip_some_bit(file.inode, chaos)?;
        if grew && fate == Fate::Durable && self.config.journal == Journal::Ordered {
            self.commit_all();
        }
        if failed { fails(Errno::IO) } else { Ok(bytes.len()) }
    }

    /// Where a write really goes: file, offset, and how much of it.
    fn landing<'b>(&mut self, file: u64, offset: u64, bytes: &'b [u8], chaos: &mut Chaos<'_>) -> (u64, u64, &'b [u8]) {
        if chaos.strikes(FaultKind::LostWrite) {
            return (file, offset, &[]);
        }
        if bytes.is_empty() || !chaos.rolls(FaultKind::MisdirectedWrite) {
            return (file, offset, bytes);
        }
        let mut targets: Vec<(u64, u64)> = Vec::new();
        for (&number, inode) in &self.inodes {
            if let Node::File(content) = &inode.node
                && content.len() > 0
                && (number == file || chaos.rng.below(4) == 0)
            {
                targets.push((number, content.len()));
            }
        }
        let Some(&(target, len)) = targets.get(chaos.rng.index(targets.len().max(1))) else {
            return (file, offset, bytes);
        };
        let sector = self.config.sector as u64;
        let at = chaos.rng.below(len.div_ceil(sector)) * sector;
        if (target, at) == (file, offset) {
            return (file, offset, bytes);
        }
        chaos.struck(FaultKind::MisdirectedWrite);
        (target, at, &bytes[..bytes.len().min((len - at) as usize)])
    }

    fn flip_some_bit(&mut self, number: u64, chaos: &mut Chaos<'_>) -> io::Result<()> {
        if !chaos.rolls(FaultKind::BitFlip) {
            return Ok(());
        }
        let content = self.file(number)?;
        // Each stored page is as likely as any other: most of a file that is written from its start hold no more than zeros.
        let pages = content.clean_pages();
        if pages.is_empty() {
            return Ok(());
        }
        let page = pages[chaos.rng.index(pages.len())];
        let at = page * PAGE as u64 + chaos.rng.below((content.len() - page * PAGE as u64).min(PAGE as u64));
        let bit = chaos.rng.below(8);
        content.corrupt(at, |byte| *byte ^= 1 << bit);
        chaos.struck(FaultKind::BitFlip);
        Ok(())
    }
}

/// A write under way.
struct Write<'a> {
    file: OpenFile,
    bytes: &'a [u8],
    /// Its memory is.
    aligned: bool,
    offset: u64,
}

/// Whether memory is aligned: decided by the buffer's kind and not by its address, which differs from run to run.
fn is_aligned(buf: &IoBuf, start: usize, sector: usize) -> bool {
    !matches!(buf, IoBuf::Vec(_)) && start.is_multiple_of(sector)
}
