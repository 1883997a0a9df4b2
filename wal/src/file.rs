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
use gristmill_shardexec::sync::Mutex;
use gristmill_shardexec::time::WallClock;

use crate::bugs::{Bug, Bugs};
use crate::error::{IoFailure, WalError, tells_of_shortage};
use crate::format::{SegmentCrc, SegmentHeader};
use crate::limits::BLOCK_BYTES;
use crate::options::Direct;
use crate::recovery::Stretch;
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
    pub bugs: Bugs,
}

impl LogShape {
    /// The CRC of a segment of the log.
    pub fn crc(&self, segment: SegmentId) -> SegmentCrc {
        SegmentCrc::new(self.log_id, segment).with_bugs(self.bugs)
    }
}

/// An open segment file.
pub(crate) struct SegmentFile {
    pub segment: SegmentId,
    pub path: PathBuf,
    pub crc: SegmentCrc,
    file: File,
    /// Each write must be followed by a sync: the file was not opened with O_DSYNC.
    sync_each: bool,
    /// Held from such a write to the end of its sync. The kernel tells an error of writing back to one sync of an open file and forgets
    /// it: a second sync under way at the same time would take it for its own, and the first acknowledge what is lost.
    turn: Mutex<()>,
    bugs: Bugs,
}

impl SegmentFile {
    fn new(shape: &LogShape, segment: SegmentId, file: File, sync_each: bool) -> SegmentFile {
        let path = shape.dir.join(segment_name(segment));
        let (crc, bugs) = (shape.crc(segment), shape.bugs);
        SegmentFile { segment, path, crc, file, sync_each, turn: Mutex::new(()), bugs }
    }

    /// Writes one buffer, by one write that is never tried again, and returns once it is durable.
    pub async fn write_durable(&self, buf: Arc<AlignedBuf>, offset: u64) -> Result<(), IoFailure> {
        if !self.sync_each {
            return self.write(buf, offset).await;
        }
        let _turn = self.turn.lock().await;
        self.write(buf, offset).await?;
        self.sync().await
    }

    async fn write(&self, buf: Arc<AlignedBuf>, offset: u64) -> Result<(), IoFailure> {
        let (result, _) = self.file.write_at(buf, offset).await;
        match result {
            Err(error) if self.bugs.has(Bug::ShortWriteTaken) && ShortWrite::of(&error).is_some() => Ok(()),
            written => written.map(drop).map_err(|error| IoFailure::new("write", &self.path, &error)),
        }
    }

    /// Makes durable what was written, by whomever.
    pub async fn sync(&self) -> Result<(), IoFailure> {
        let synced = match self.file.sync_data().await {
            Err(_) if self.bugs.has(Bug::SyncTriedAgain) => self.file.sync_data().await,
            first => first,
        };
        synced.map_err(|error| IoFailure::new("sync", &self.path, &error))
    }

    /// Reads `bytes` from `offset`, both multiples of the block.
    pub async fn read(&self, offset: usize, bytes: usize) -> Result<AlignedBuf, WalError> {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES));
        let (result, mut buf) = self.file.read_at(AlignedBuf::zeroed(bytes), offset as u64).await;
        let read = result.map_err(|error| WalError::io("read", &self.path, &error))?;
        buf.set_len(read);
        Ok(buf)
    }

    /// Whether writes go through the page cache, each with a sync of its own, one after the other.
    pub fn syncs_each(&self) -> bool {
        self.sync_each
    }

    /// Writes `batch`, read from this file, back to where it lies, if that is what it takes to make it durable. A sync alone does not do
    /// where there is a page cache: after one that failed the cache holds the bytes, takes them for clean, and syncs nothing. Durable
    /// only after [`SegmentFile::sync`].
    pub async fn write_again(&self, batch: &Stretch) -> Result<(), WalError> {
        if !self.sync_each {
            return Ok(());
        }
        let bytes = self.read(batch.start as usize, (batch.end - batch.start) as usize).await?;
        if !batch.holds(&self.crc, &bytes) {
            let changed = io::Error::other(format!("the batch at offset {} changed after it was read", batch.start));
            return Err(WalError::io("read", &self.path, &changed));
        }
        Ok(self.write(Arc::new(bytes), batch.start).await?)
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
    let (file, sync_each) = open_durable(&path, shape).await.map_err(|error| WalError::io("open", &path, &error))?;
    Ok(Rc::new(SegmentFile::new(shape, segment, file, sync_each)))
}

/// The file, and whether each of its writes needs a sync.
async fn open_durable(path: &Path, shape: &LogShape) -> io::Result<(File, bool)> {
    let options = OpenOptions::new().read(true).write(true);
    let durable = !shape.bugs.has(Bug::NothingSynced);
    if shape.direct == Direct::Auto {
        match options.direct(true).dsync(durable).open(path).await {
            Ok(file) if suits_blocks(&file) => return Ok((file, false)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    Ok((options.open(path).await?, durable))
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
    let made = match open_spare(&path, shape).await {
        Ok(file) => write_zeros(file, shape).await.map_err(|error| WalError::io("prepare", &path, &error)),
        Err(error) => Err(shortage("prepare", &path, &error)),
    };
    match made {
        Ok(()) => Ok(path),
        Err(error) => {
            // Whatever was allocated goes back: on a full disk it would be missed. A failure here changes nothing about the first.
            let _ = fs::remove_file(&path).await;
            Err(told(shape, error))
        }
    }
}

/// An error of something that wrote nothing.
fn shortage(operation: &'static str, path: &Path, error: &io::Error) -> WalError {
    let failure = Box::new(IoFailure::new(operation, path, error));
    if tells_of_shortage(error) { WalError::Exhausted(failure) } else { WalError::Io(failure) }
}

/// `error`, or what it means for the log.
fn told(shape: &LogShape, error: WalError) -> WalError {
    match error {
        WalError::Io(failure) if failure.is_disk_full() => disk_full(shape),
        WalError::Io(failure) if failure.is_too_many_files() => WalError::Exhausted(failure),
        other => other,
    }
}

pub(crate) fn disk_full(shape: &LogShape) -> WalError {
    WalError::DiskFull { dir: shape.dir.clone(), segment_bytes: shape.segment_bytes }
}

/// An empty file with room for a segment.
async fn open_spare(path: &Path, shape: &LogShape) -> io::Result<File> {
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
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(file),
    }
}

async fn write_zeros(file: File, shape: &LogShape) -> io::Result<()> {
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

/// Makes a spare the segment `segment`, which follows on `previous`: durable header, segment name, durable directory.
pub(crate) async fn adopt_spare(
    shape: &LogShape,
    spare: &Path,
    segment: SegmentId,
    previous: SegmentId,
) -> Result<Rc<SegmentFile>, WalError> {
    match adopt(shape, spare, segment, previous).await {
        Ok(file) => Ok(file),
        // A copy-on-write file system may want room even for these. The next try makes another file, under the same names.
        Err(error) => {
            let told = told(shape, error);
            if told.is_retriable() {
                // What is in the way here is in the way of the next try, too, and told then.
                let _ = fs::remove_file(spare).await;
            }
            Err(told)
        }
    }
}

async fn adopt(
    shape: &LogShape,
    spare: &Path,
    segment: SegmentId,
    previous: SegmentId,
) -> Result<Rc<SegmentFile>, WalError> {
    let header = SegmentHeader {
        segment,
        log_id: shape.log_id,
        log: shape.log,
        segment_bytes: shape.segment_bytes,
        created: WallClock::now(),
        previous,
    };
    let failed = |operation, error: &io::Error| shortage(operation, spare, error);
    let (file, sync_each) = open_durable(spare, shape).await.map_err(|error| failed("open", &error))?;
    let adopted = SegmentFile::new(shape, segment, file, sync_each);
    let block = Arc::new(AlignedBuf::from(&header.encode()[..]));
    adopted.write_durable(block, 0).await?;
    fs::rename(spare, &adopted.path).await.map_err(|error| failed("rename", &error))?;
    if !shape.bugs.has(Bug::DirectoryNotSynced) {
        sync_dir(&shape.dir).await?;
    }
    Ok(Rc::new(adopted))
}

/// Makes the names in `dir` durable.
pub(crate) async fn sync_dir(dir: &Path) -> Result<(), WalError> {
    fs::sync_dir(dir).await.map_err(|error| {
        let failure = IoFailure::new("sync", dir, &error);
        // The directory could not even be opened.
        if failure.is_too_many_files() { WalError::Exhausted(Box::new(failure)) } else { failure.into() }
    })
}

/// Takes a segment's name away. Durable after [`sync_dir`].
pub(crate) async fn free_segment(shape: &LogShape, segment: SegmentId) -> Result<PathBuf, WalError> {
    let (from, to) = (shape.dir.join(segment_name(segment)), shape.dir.join(spare_name(segment)));
    fs::rename(&from, &to).await.map_err(|error| shortage("rename", &from, &error))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, spawn, yield_now};

    /// Of two buffered writes the second waits until the first is synced: their syncs would share one error of writing back.
    #[test]
    fn a_buffered_write_has_the_file_to_itself_until_it_is_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        let (segment, path) = (SegmentId(1), dir.path().to_owned());
        let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
        Executor::start(config).expect("an executor starts").block_on(async move {
            let log_id = LogId([7; 16]);
            let (log, segment_bytes, bugs) = (LogNumber(0), 256 << 10, Bugs::default());
            let shape = LogShape { dir: path, log_id, log, segment_bytes, direct: Direct::Off, bugs };
            let spare = create_spare(&shape, segment).await.expect("made");
            let file = adopt_spare(&shape, &spare, segment, SegmentId(0)).await.expect("adopted");
            assert!(file.syncs_each());
            let writes = [1_u64, 2].map(|block| {
                let file = Rc::clone(&file);
                spawn(Class::Raft, "write", async move {
                    file.write_durable(Arc::new(AlignedBuf::zeroed(BLOCK_BYTES)), block * BLOCK_BYTES as u64).await
                })
            });
            let mut busy = 0;
            while !writes.iter().all(gristmill_shardexec::JoinHandle::is_finished) {
                busy += u64::from(file.turn.try_lock().is_none());
                yield_now().await;
            }
            assert!(busy > 0 && file.turn.try_lock().is_some(), "{busy}");
            for write in writes {
                write.await.expect("ran").expect("written");
            }
        });
    }

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
