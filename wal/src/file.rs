//! Segment files: their names, how they come to be, how they are written.
//!
//! ```text
//!   (nothing) ──zeros over the whole length──► spare-N.tmp ──durable header with a fresh id──► wal-N.seg
//!                                                   ▲                                            │
//!                                                   └──────────── rename when freed ◄────────────┘
//! ```
//!
//! A name ending in `.seg` is given only after the header is durable, and the directory is synced before the first batch.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use gristmill_shardexec::buf::AlignedBuf;
use gristmill_shardexec::fs::{self, File, OpenOptions, ShortWrite};
use gristmill_shardexec::time::WallClock;

use crate::error::{IoFailure, WalError, tells_of_full_disk};
use crate::format::{SegmentCrc, SegmentHeader};
use crate::limits::BLOCK_BYTES;
use crate::options::Direct;
use crate::types::{LogId, LogNumber, SegmentId};

/// Bytes of one write of zeros.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// Name of a segment's file.
pub(crate) fn segment_name(segment: SegmentId) -> String {
    format!("wal-{:012}.seg", segment.0)
}

/// Name of a file that waits for an id. The number only keeps names apart; it is that of the segment it was, or is meant to be.
pub(crate) fn spare_name(number: SegmentId) -> String {
    format!("spare-{:012}.tmp", number.0)
}

/// What a name in the log's directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileName {
    Segment(SegmentId),
    Spare(SegmentId),
}

/// Reads a name that [`segment_name`] or [`spare_name`] made.
pub(crate) fn parse_name(name: &str) -> Option<FileName> {
    let number = |digits: &str| {
        let canonical = digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
        canonical.then(|| digits.parse().ok()).flatten().map(SegmentId)
    };
    let parsed = if let Some(rest) = name.strip_prefix("wal-") {
        FileName::Segment(number(rest.strip_suffix(".seg")?)?)
    } else {
        FileName::Spare(number(name.strip_prefix("spare-")?.strip_suffix(".tmp")?)?)
    };
    let canonical = match parsed {
        FileName::Segment(id) => segment_name(id),
        FileName::Spare(id) => spare_name(id),
    };
    (canonical == name).then_some(parsed)
}

/// What all segments of a log share.
#[derive(Clone, Debug)]
pub(crate) struct LogShape {
    pub dir: PathBuf,
    pub log_id: LogId,
    pub log: LogNumber,
    pub segment_bytes: u64,
    pub direct: Direct,
}

/// An open segment file.
pub(crate) struct SegmentFile {
    pub segment: SegmentId,
    pub path: PathBuf,
    pub crc: SegmentCrc,
    file: File,
    /// Each write must be followed by a sync: the file was not opened with O_DSYNC.
    sync_each: bool,
}

impl SegmentFile {
    /// Writes one buffer, by one write that is never tried again, and returns once it is durable.
    pub async fn write_durable(&self, buf: Arc<AlignedBuf>, offset: u64) -> Result<(), IoFailure> {
        let (result, _) = self.file.write_at(buf, offset).await;
        result.map_err(|error| IoFailure::new("write", &self.path, &error))?;
        if self.sync_each { self.sync().await } else { Ok(()) }
    }

    /// Makes durable what was written, by whomever.
    pub async fn sync(&self) -> Result<(), IoFailure> {
        self.file.sync_data().await.map_err(|error| IoFailure::new("sync", &self.path, &error))
    }

    /// Reads `bytes` from `offset`, both multiples of the block.
    pub async fn read(&self, offset: usize, bytes: usize) -> Result<AlignedBuf, WalError> {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES));
        let (result, mut buf) = self.file.read_at(AlignedBuf::zeroed(bytes), offset as u64).await;
        let read = result.map_err(|error| WalError::io("read", &self.path, &error))?;
        buf.set_len(read);
        Ok(buf)
    }

    /// Whether writes bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.file.direct_alignment().is_some()
    }

    /// Writes zeros, durable, over `from..to` where there is anything else.
    pub async fn zero(&self, from: u64, to: u64) -> Result<u64, WalError> {
        let zeros = Arc::new(AlignedBuf::zeroed(ZERO_CHUNK_BYTES));
        let mut zeroed = 0;
        let mut at = from as usize;
        while at < to as usize {
            let bytes = ZERO_CHUNK_BYTES.min(to as usize - at);
            if self.read(at, bytes).await?.iter().any(|&byte| byte != 0) {
                let chunk = if bytes == zeros.len() { Arc::clone(&zeros) } else { Arc::new(AlignedBuf::zeroed(bytes)) };
                self.write_durable(chunk, at as u64).await?;
                zeroed += bytes as u64;
            }
            at += bytes;
        }
        self.sync().await?;
        Ok(zeroed)
    }
}

/// Opens a segment's file for reading and durable writing.
pub(crate) async fn open_segment(shape: &LogShape, segment: SegmentId) -> Result<Rc<SegmentFile>, WalError> {
    let path = shape.dir.join(segment_name(segment));
    let (file, sync_each) =
        open_durable(&path, shape.direct).await.map_err(|error| WalError::io("open", &path, &error))?;
    let crc = SegmentCrc::new(shape.log_id, segment);
    Ok(Rc::new(SegmentFile { segment, path, crc, file, sync_each }))
}

async fn open_durable(path: &Path, direct: Direct) -> io::Result<(File, bool)> {
    let options = OpenOptions::new().read(true).write(true);
    if direct == Direct::Auto {
        match options.direct(true).dsync(true).open(path).await {
            Ok(file) if suits_blocks(&file) => return Ok((file, false)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    Ok((options.open(path).await?, true))
}

fn suits_blocks(file: &File) -> bool {
    file.direct_alignment().is_some_and(|needs| {
        BLOCK_BYTES.is_multiple_of(needs.memory.max(1) as usize)
            && BLOCK_BYTES.is_multiple_of(needs.offset.max(1) as usize)
    })
}

/// Creates a spare: zeros over the whole length, durable. A failure leaves no file behind.
pub(crate) async fn create_spare(shape: &LogShape, number: SegmentId) -> Result<PathBuf, WalError> {
    let path = shape.dir.join(spare_name(number));
    match write_zeros(&path, shape).await {
        Ok(()) => Ok(path),
        Err(error) => {
            let reported = WalError::io("prepare", &path, &error);
            // Whatever was allocated goes back: on a full disk it would be missed. A failure here changes nothing about the first.
            let _ = fs::remove_file(&path).await;
            Err(if is_disk_full(&error) { disk_full(shape) } else { reported })
        }
    }
}

pub(crate) fn disk_full(shape: &LogShape) -> WalError {
    WalError::DiskFull { dir: shape.dir.clone(), segment_bytes: shape.segment_bytes }
}

fn is_disk_full(error: &io::Error) -> bool {
    tells_of_full_disk(error.kind())
}

async fn write_zeros(path: &Path, shape: &LogShape) -> io::Result<()> {
    let options = OpenOptions::new().write(true).create_new(true);
    let file = match shape.direct {
        Direct::Auto => match options.direct(true).open(path).await {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                OpenOptions::new().write(true).create(true).truncate(true).open(path).await
            }
            other => other,
        },
        Direct::Off => options.open(path).await,
    }?;
    // In place on btrfs and its like; elsewhere there is nothing to ask for.
    if let Err(error) = file.set_no_cow().await
        && error.kind() != io::ErrorKind::Unsupported
    {
        return Err(error);
    }
    // Space first, in one piece and refused at once when the disk is full; zeros over it after, because an extent that is only
    // allocated costs a metadata update at its first write.
    match file.allocate(0, shape.segment_bytes).await {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        _ => {}
    }
    let zeros = Arc::new(AlignedBuf::zeroed(ZERO_CHUNK_BYTES.min(shape.segment_bytes as usize)));
    let mut at = 0;
    while at < shape.segment_bytes {
        let bytes = (zeros.len() as u64).min(shape.segment_bytes - at);
        let chunk =
            if bytes == zeros.len() as u64 { Arc::clone(&zeros) } else { Arc::new(AlignedBuf::zeroed(bytes as usize)) };
        at += match file.write_at(chunk, at).await.0 {
            Ok(_) => bytes,
            // The file holds nothing yet and goes if this fails, so here the rest may be tried: then the kernel says what is wrong.
            Err(error) => match ShortWrite::of(&error).map(|short| short.written / BLOCK_BYTES * BLOCK_BYTES) {
                None | Some(0) => return Err(error),
                Some(written) => written as u64,
            },
        };
    }
    file.sync_all().await
}

/// Makes a spare the segment `segment`: durable header, segment name, durable directory.
pub(crate) async fn adopt_spare(
    shape: &LogShape,
    spare: &Path,
    segment: SegmentId,
) -> Result<Rc<SegmentFile>, WalError> {
    match adopt(shape, spare, segment).await {
        // A copy-on-write file system may want room even for these. The next try makes another file, under the same names.
        Err(WalError::Io(failure)) if failure.is_disk_full() => {
            // What is in the way here is in the way of the next try, too, and told then.
            let _ = fs::remove_file(spare).await;
            Err(disk_full(shape))
        }
        adopted => adopted,
    }
}

async fn adopt(shape: &LogShape, spare: &Path, segment: SegmentId) -> Result<Rc<SegmentFile>, WalError> {
    let header = SegmentHeader {
        segment,
        log_id: shape.log_id,
        log: shape.log,
        segment_bytes: shape.segment_bytes,
        created: WallClock::now(),
    };
    let failed = |operation, error: &io::Error| WalError::io(operation, spare, error);
    let (file, sync_each) = open_durable(spare, shape.direct).await.map_err(|error| failed("open", &error))?;
    let crc = SegmentCrc::new(shape.log_id, segment);
    let path = shape.dir.join(segment_name(segment));
    let adopted = SegmentFile { segment, path, crc, file, sync_each };
    let block = Arc::new(AlignedBuf::from(&header.encode()[..]));
    adopted.write_durable(block, 0).await?;
    fs::rename(spare, &adopted.path).await.map_err(|error| failed("rename", &error))?;
    sync_dir(&shape.dir).await?;
    Ok(Rc::new(adopted))
}

/// Makes the names in `dir` durable.
pub(crate) async fn sync_dir(dir: &Path) -> Result<(), WalError> {
    fs::sync_dir(dir).await.map_err(|error| WalError::io("sync", dir, &error))
}

/// Takes a segment's name away. Durable after [`sync_dir`].
pub(crate) async fn free_segment(shape: &LogShape, segment: SegmentId) -> Result<PathBuf, WalError> {
    let (from, to) = (shape.dir.join(segment_name(segment)), shape.dir.join(spare_name(segment)));
    fs::rename(&from, &to).await.map_err(|error| WalError::io("rename", &from, &error))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_does() {
        for id in [1, 999_999_999_999, 1_000_000_000_000, u64::MAX] {
            assert_eq!(parse_name(&segment_name(SegmentId(id))), Some(FileName::Segment(SegmentId(id))));
            assert_eq!(parse_name(&spare_name(SegmentId(id))), Some(FileName::Spare(SegmentId(id))));
        }
        for name in
            ["wal-1.seg", "wal-0000000000001.seg", "wal-00000000001x.seg", "wal-000000000001.tmp", "notes.txt", ""]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
