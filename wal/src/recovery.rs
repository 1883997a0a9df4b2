//! Opening a log: scan, judge, rebuild, cut.
//!
//! ```text
//!   names ─► headers, marks ─► scan each segment (beside the core) ─► verdict
//!                                                                       ├─ corrupt: error, bytes untouched
//!                                                                       └─ clean, torn: sync ─► zero the cut ─► free later segments
//! ```
//!
//! Nothing is written before the verdict. What was read and nothing proves is made durable before it counts as such: a process that died
//! between a write and its flush leaves bytes that only the device's cache holds, or, where writes are buffered, the page cache. And the
//! proof of what stays is written before what lies behind it is cut.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use gristmill_shardexec::fs::{self, FileKind};
use gristmill_shardexec::offload;
use gristmill_shardexec::random::fill_random;
use gristmill_shardexec::time::Instant;

use crate::bugs::Bug;
use crate::error::{Foreign, WalError};
use crate::file::{
    FileName, LogShape, SegmentFile, adopt_spare, create_spare, free_segment, open_segment, parse_name, segment_name,
    sync_dir,
};
use crate::format::{
    REVISION, RecordHeader, SegmentCrc, SegmentHeader, SegmentHeaderFault, TrailerHash, is_part_of_magic,
};
use crate::inner::{Resume, Spare, Told, mark, mark_slot};
use crate::limits::{BLOCK_BYTES, DATA_OFFSET};
use crate::options::WalOptions;
use crate::scan::{BatchSink, Damage, DamageKind, GoodBatch, LogScan, MARK_SLOTS, MarkSlot, Verdict, read_mark};
use crate::state::{LogState, ReplayFault};
use crate::types::{LogId, LogNumber, Lsn, SegmentId};
use crate::writer::mark_block;

/// What opening a log found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The log's directory.
    pub dir: PathBuf,
    /// The log's random name.
    pub log_id: LogId,
    /// The log was created now.
    pub created: bool,
    /// Writes bypass the page cache.
    pub direct: bool,
    /// Segments replayed.
    pub segments: usize,
    /// Batches replayed.
    pub batches: u64,
    /// Records replayed.
    pub records: u64,
    /// Live entries found.
    pub entries: u64,
    /// Groups found, retired ones included.
    pub groups: usize,
    /// Last record of the log.
    pub last_lsn: Lsn,
    /// Highest LSN that trailers and marks prove durable.
    pub proven_lsn: Lsn,
    /// The torn tail that was cut, if there was one.
    pub torn: Option<TornTail>,
    /// Marks that could not be read. They lose nothing.
    pub damaged_marks: Vec<(PathBuf, Damage)>,
    /// How long it took.
    pub duration: Duration,
}

/// A tail that a crash left half written. None of it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// File that the log now ends in.
    pub path: PathBuf,
    /// Where it ends, in bytes.
    pub offset: u64,
    /// Bytes zeroed behind that.
    pub bytes_zeroed: u64,
    /// Later segments that were dropped.
    pub segments_dropped: usize,
    /// What was found first.
    pub damage: Damage,
}

/// Where a long recovery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Segments replayed.
    pub segments_done: usize,
    /// Segments in all.
    pub segments_total: usize,
    /// Records replayed.
    pub records: u64,
}

/// Segment files of a log, their headers checked.
#[derive(Debug)]
pub(crate) struct Listing {
    pub segments: BTreeMap<SegmentId, SegmentHeader>,
    /// Files without an id that were written over their whole length.
    pub spares: Vec<PathBuf>,
    /// Those that perhaps were not.
    pub unfinished: Vec<PathBuf>,
    /// Highest number in any name or header.
    pub highest: SegmentId,
    /// Highest oldest segment named by a mark.
    pub oldest: SegmentId,
    pub log_id: Option<LogId>,
    pub segment_bytes: u64,
}

/// Rebuilds the state from good batches.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub state: LogState,
    /// The latest batches, those that no trailer read so far proves: as many as were in flight at once, and a few.
    unproven: VecDeque<Stretch>,
}

/// A batch where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    last_lsn: Lsn,
    segment: SegmentId,
    pub start: u64,
    /// Behind its trailer.
    pub end: u64,
    crc: u32,
    hash: TrailerHash,
}

impl Stretch {
    /// Whether `bytes`, read from its place, are the batch.
    pub fn holds(&self, crc: &SegmentCrc, bytes: &[u8]) -> bool {
        let Some(trailer_at) = bytes.len().checked_sub(BLOCK_BYTES) else { return false };
        let (records, trailer) = bytes.split_at(trailer_at);
        bytes.len() as u64 == self.end - self.start
            && crc.matches(records, self.crc)
            && TrailerHash::of_block(trailer) == self.hash
    }
}

impl BatchSink for Replay {
    fn segment(&mut self, _segment: SegmentId) {}

    fn batch(&mut self, batch: &GoodBatch<'_>) -> Result<(), Box<(RecordHeader, ReplayFault)>> {
        let segment = batch.trailer.segment;
        if self.state.segments.back().is_none_or(|life| life.segment != segment) {
            self.state.open_segment(segment);
        }
        for header in batch.records {
            self.state.replay(header, batch.bytes).map_err(|fault| Box::new((*header, fault)))?;
        }
        while self.unproven.front().is_some_and(|stretch| stretch.last_lsn <= batch.seal.durable_lsn) {
            self.unproven.pop_front();
        }
        self.unproven.push_back(Stretch {
            last_lsn: batch.trailer.lsn,
            segment,
            start: u64::from(batch.seal.batch_offset),
            end: u64::from(batch.trailer.offset) + BLOCK_BYTES as u64,
            crc: batch.seal.batch_crc,
            hash: TrailerHash::of_block(&batch.bytes[batch.trailer.offset as usize..]),
        });
        Ok(())
    }
}

/// Opens or creates the log in `dir`.
pub(crate) async fn recover(
    dir: &Path,
    log: LogNumber,
    options: &WalOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(LogShape, Resume, RecoveryReport), WalError> {
    let began = Instant::now();
    fs::create_dir_all(dir).await.map_err(|error| WalError::io("create", dir, &error))?;
    let listing = list(dir, Some(log)).await?;
    let shape = LogShape {
        dir: dir.to_owned(),
        log_id: listing.log_id.unwrap_or_else(draw_log_id),
        log,
        segment_bytes: if listing.segments.is_empty() { options.segment_bytes } else { listing.segment_bytes },
        direct: options.direct,
        bugs: options.bugs(),
    };
    if listing.segments.is_empty() {
        return create(shape, listing, began).await;
    }
    let (scan, replay) = scan_from_oldest(&shape, &listing, progress).await?;
    judge(&shape, &listing, &scan, &replay)?;
    resume(shape, listing, scan, replay, began).await
}

fn draw_log_id() -> LogId {
    let mut id = [0; 16];
    fill_random(&mut id);
    LogId(id)
}

/// Lists the directory and checks every header; changes nothing.
pub(crate) async fn list(dir: &Path, log: Option<LogNumber>) -> Result<Listing, WalError> {
    let entries = fs::read_dir(dir).await.map_err(|error| WalError::io("list", dir, &error))?;
    let mut listing = Listing::new();
    for entry in entries {
        let path = dir.join(&entry.name);
        // A mount point brings its own directory.
        if entry.kind == FileKind::Dir && entry.name == "lost+found" {
            continue;
        }
        match entry.name.to_str().and_then(parse_name).filter(|_| entry.kind == FileKind::File) {
            Some(FileName::Segment(id)) => {
                listing.highest = listing.highest.max(id);
                let (head, len) = read_head(&path).await?;
                listing.add(&path, check_header(&path, id, &head, len)?, &head, log)?;
            }
            Some(FileName::Spare(id)) => {
                listing.highest = listing.highest.max(id);
                let header = check_spare(&path).await?;
                listing.highest = listing.highest.max(header.map_or(SegmentId(0), |header| header.segment));
                // The header comes after the zeros. Without one a crash may have left a part of them, and space that is allocated only.
                if header.is_some() { listing.spares.push(path) } else { listing.unfinished.push(path) }
            }
            None => return Err(WalError::Foreign { path, reason: Foreign::Name }),
        }
    }
    Ok(listing)
}

/// Header and mark slots of a segment file, as far as they are there, and the file's length.
pub(crate) async fn read_head(path: &Path) -> Result<(Vec<u8>, u64), WalError> {
    let failed = |error: &std::io::Error| WalError::io("read", path, error);
    let file = fs::File::open(path).await.map_err(|error| failed(&error))?;
    let len = file.metadata().await.map_err(|error| failed(&error))?.len;
    let (read, mut head) = file.read_at(vec![0; DATA_OFFSET], 0).await;
    head.truncate(read.map_err(|error| failed(&error))?);
    Ok((head, len))
}

/// What a segment file is by its header: `head` are its first blocks, `len` is its length, `id` what its name says. An error of a header that
/// is damaged, or of a file that belongs elsewhere.
pub(crate) fn check_header(path: &Path, id: SegmentId, head: &[u8], len: u64) -> Result<SegmentHeader, WalError> {
    let corrupt = |bytes, kind| {
        let damage = Box::new(Damage { segment: id, offset: 0, bytes, kind, lsn: Lsn(0) });
        Err(WalError::Corrupt { path: path.to_owned(), damage })
    };
    let foreign = |reason| Err(WalError::Foreign { path: path.to_owned(), reason });
    let header = match SegmentHeader::decode(head) {
        Ok(header) => header,
        Err(fault @ SegmentHeaderFault::Magic { .. }) => return foreign(Foreign::Header(fault)),
        Err(SegmentHeaderFault::Revision { found }) if found > REVISION => {
            return Err(WalError::Newer { path: path.to_owned(), found });
        }
        Err(SegmentHeaderFault::Revision { found }) => return foreign(Foreign::Revision(found)),
        Err(fault) => return corrupt(BLOCK_BYTES as u64, DamageKind::SegmentHeader(fault)),
    };
    if header.segment != id {
        return foreign(Foreign::Field { field: "segment", found: header.segment.0, expected: id.0 });
    }
    if len != header.segment_bytes {
        let (found, expected) = (len, header.segment_bytes);
        return corrupt(found, DamageKind::Length { found, expected });
    }
    Ok(header)
}

impl Listing {
    pub fn new() -> Listing {
        Listing {
            segments: BTreeMap::new(),
            spares: Vec::new(),
            unfinished: Vec::new(),
            highest: SegmentId(0),
            oldest: SegmentId(0),
            log_id: None,
            segment_bytes: 0,
        }
    }

    /// Takes a segment among the others of its log.
    pub fn add(
        &mut self,
        path: &Path,
        header: SegmentHeader,
        head: &[u8],
        log: Option<LogNumber>,
    ) -> Result<(), WalError> {
        let foreign = |reason| WalError::Foreign { path: path.to_owned(), reason };
        let field = |field, found, expected| foreign(Foreign::Field { field, found, expected });
        let expected = *self.log_id.get_or_insert(header.log_id);
        if header.log_id != expected {
            return Err(foreign(Foreign::OtherLog { found: header.log_id, expected }));
        }
        if let Some(log) = log.filter(|log| *log != header.log) {
            return Err(field("log number", u64::from(header.log.0), u64::from(log.0)));
        }
        if self.segment_bytes != 0 && header.segment_bytes != self.segment_bytes {
            return Err(field("segment size", header.segment_bytes, self.segment_bytes));
        }
        self.segment_bytes = header.segment_bytes;
        self.oldest = self.oldest.max(oldest_told(&header, head));
        self.segments.insert(header.segment, header);
        Ok(())
    }

    /// The segment that is lost of a log without a single good batch whose first segment follows on another. A segment is freed only
    /// when a later one holds records that replace its own, so such a log has lost them all; one with records knows by them
    /// what it lacks.
    pub fn lost_beginning(&self, scan: &LogScan) -> Option<SegmentId> {
        let first = self.segments.values().next()?;
        (scan.good_lsn == Lsn(0) && first.previous > SegmentId(0)).then_some(first.previous)
    }
}

/// Highest segment that the marks of a segment name as the oldest needed one.
pub(crate) fn oldest_told(header: &SegmentHeader, head: &[u8]) -> SegmentId {
    let crc = SegmentCrc::new(header.log_id, header.segment);
    let told = MARK_SLOTS.into_iter().map(|slot| match read_mark(&crc, head, slot) {
        MarkSlot::Valid(_, seal) => seal.oldest_segment,
        _ => SegmentId(0),
    });
    told.max().unwrap_or_default()
}

/// A spare holds nothing that is needed, but it must be ours: zeros at its head, or a segment's header, or what a power cut left of one.
pub(crate) async fn check_spare(path: &Path) -> Result<Option<SegmentHeader>, WalError> {
    let (head, _) = read_head(path).await?;
    match SegmentHeader::decode(&head) {
        Ok(header) => Ok(Some(header)),
        Err(SegmentHeaderFault::Magic { found }) if !is_part_of_magic(found) => {
            let reason = Foreign::Header(SegmentHeaderFault::Magic { found });
            Err(WalError::Foreign { path: path.to_owned(), reason })
        }
        Err(_) => Ok(None),
    }
}

async fn create(
    shape: LogShape,
    listing: Listing,
    began: Instant,
) -> Result<(LogShape, Resume, RecoveryReport), WalError> {
    // Half-made files of an earlier try: their sizes may differ, so they are made anew.
    remove_all(&listing.spares).await?;
    remove_all(&listing.unfinished).await?;
    let first = SegmentId(listing.highest.0 + 1);
    let spare = create_spare(&shape, first).await?;
    let file = adopt_spare(&shape, &spare, first, SegmentId(0)).await?;
    if let Some(parent) = shape.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent).await?;
    }
    let mut state = LogState::default();
    state.open_segment(first);
    let report = report(&shape, &LogScan::default(), &state, file.is_direct(), began);
    let resume = Resume {
        state,
        files: BTreeMap::from([(first, file)]),
        spares: Vec::new(),
        next_segment: SegmentId(first.0 + 1),
        segment: first,
        offset: DATA_OFFSET,
        last_lsn: Lsn(0),
        previous: LogScan::default().good_hash,
        told: Told::default(),
        mark_sequence: 0,
    };
    Ok((shape, resume, RecoveryReport { created: true, ..report }))
}

async fn remove_all(paths: &[PathBuf]) -> Result<(), WalError> {
    for path in paths {
        fs::remove_file(path).await.map_err(|error| WalError::io("remove", path, &error))?;
    }
    Ok(())
}

/// Scans the segments from the oldest one needed. When a damage turns out to lie in a segment that a later one declares unneeded, scans
/// again from there.
async fn scan_from_oldest(
    shape: &LogShape,
    listing: &Listing,
    progress: &mut dyn FnMut(Progress),
) -> Result<(LogScan, Replay), WalError> {
    let mut from = listing.oldest;
    loop {
        let (scan, replay) = scan_from(shape, listing, from, progress).await?;
        match scan.restart(from) {
            Some(later) => from = later,
            None => return Ok((scan, replay)),
        }
    }
}

async fn scan_from(
    shape: &LogShape,
    listing: &Listing,
    from: SegmentId,
    progress: &mut dyn FnMut(Progress),
) -> Result<(LogScan, Replay), WalError> {
    let mut pair = (LogScan::with_bugs(shape.bugs), Replay::default());
    let mut total = listing.segments.range(from..).count();
    if shape.bugs.has(Bug::NewestSegmentSkipped) && total > 1 {
        total -= 1;
    }
    for (done, (&id, _)) in listing.segments.range(from..).take(total).enumerate() {
        let path = shape.dir.join(segment_name(id));
        let bytes = read_whole(shape, id).await?;
        let crc = shape.crc(id);
        let (mut scan, mut replay) = pair;
        pair = offload(move || {
            scan.segment(crc, &bytes, &mut replay);
            (scan, replay)
        })
        .await
        .map_err(|error| WalError::io("scan", &path, &std::io::Error::other(error.to_string())))?;
        progress(Progress { segments_done: done + 1, segments_total: total, records: pair.0.records });
    }
    Ok(pair)
}

async fn read_whole(shape: &LogShape, id: SegmentId) -> Result<gristmill_shardexec::buf::AlignedBuf, WalError> {
    open_segment(shape, id).await?.read(0, shape.segment_bytes as usize).await
}

fn judge(shape: &LogShape, listing: &Listing, scan: &LogScan, replay: &Replay) -> Result<(), WalError> {
    let missing = |segment| Err(WalError::MissingSegment { dir: shape.dir.clone(), segment });
    if scan.oldest_segment.0 > 0 && !listing.segments.contains_key(&scan.oldest_segment) {
        return missing(scan.oldest_segment);
    }
    if let Some(segment) = listing.lost_beginning(scan) {
        return missing(segment);
    }
    if scan.verdict() == Verdict::Corrupt {
        let damage = Box::new(scan.corruption());
        return Err(WalError::Corrupt { path: shape.dir.join(segment_name(damage.segment)), damage });
    }
    if !replay.state.gaps().is_empty() {
        let oldest = listing.segments.keys().next().expect("a log has segments");
        return missing(SegmentId(oldest.0.saturating_sub(1)));
    }
    Ok(())
}

async fn resume(
    shape: LogShape,
    listing: Listing,
    scan: LogScan,
    mut replay: Replay,
    began: Instant,
) -> Result<(LogShape, Resume, RecoveryReport), WalError> {
    let current = scan.good_end.segment;
    if replay.state.segments.is_empty() {
        replay.state.open_segment(current);
    }
    let oldest = replay.state.segments.front().expect("just opened").segment.max(scan.oldest_segment);
    let mut files = BTreeMap::new();
    for id in listing.segments.range(oldest..=current).map(|(id, _)| *id) {
        files.insert(id, open_segment(&shape, id).await?);
    }
    // What is below the oldest needed segment is free already.
    replay.state.forget_below(oldest);
    sync_unproven(&files, &replay, &scan).await?;
    let file = Rc::clone(&files[&current]);
    let mut mark_sequence = read_mark_sequence(&file).await?;
    let mut told = Told { durable: scan.proven, oldest };
    if !scan.damages.is_empty() && scan.good_lsn > Lsn(0) {
        // What is cut may hold the only proof of what stays.
        mark_sequence += 1;
        told.durable = scan.good_lsn;
        let (slot, seal) = (mark_slot(mark_sequence), mark(&replay.state, told, scan.good_hash, mark_sequence));
        file.write_durable(mark_block(&file, slot, told.durable, &seal), slot).await?;
    }
    let torn = cut(&shape, &listing, &scan, &file).await?;
    remove_all(&listing.unfinished).await?;
    let mut spares: Vec<_> = listing.spares.iter().map(|path| Spare { path: path.clone(), was: None }).collect();
    let unneeded: Vec<_> = listing.segments.keys().filter(|id| **id < oldest || **id > current).copied().collect();
    for id in unneeded {
        spares.push(Spare { path: free_segment(&shape, id).await?, was: None });
    }
    sync_dir(&shape.dir).await?;
    let mut usable = Vec::new();
    for spare in spares {
        match fs::metadata(&spare.path).await {
            Ok(found) if found.len == shape.segment_bytes => usable.push(spare),
            _ => remove_all(&[spare.path]).await?,
        }
    }
    let report = RecoveryReport { torn, ..report(&shape, &scan, &replay.state, file.is_direct(), began) };
    let resume = Resume {
        state: replay.state,
        files,
        spares: usable,
        next_segment: SegmentId(listing.highest.0 + 1),
        segment: current,
        offset: scan.good_end.offset as usize,
        last_lsn: scan.good_lsn,
        previous: scan.good_hash,
        told,
        mark_sequence,
    };
    Ok((shape, resume, report))
}

/// Makes durable what is about to count as such.
async fn sync_unproven(
    files: &BTreeMap<SegmentId, Rc<SegmentFile>>,
    replay: &Replay,
    scan: &LogScan,
) -> Result<(), WalError> {
    let mut to_sync = BTreeMap::new();
    for batch in replay.unproven.iter().filter(|batch| batch.last_lsn > scan.proven) {
        if let Some(file) = files.get(&batch.segment) {
            file.write_again(batch).await?;
            to_sync.insert(batch.segment, file);
        }
    }
    for file in to_sync.values() {
        file.sync().await?;
    }
    Ok(())
}

/// Zeroes what lies behind the last good batch, if anything of this life does.
async fn cut(
    shape: &LogShape,
    listing: &Listing,
    scan: &LogScan,
    file: &SegmentFile,
) -> Result<Option<TornTail>, WalError> {
    let Some(damage) = scan.damages.first() else { return Ok(None) };
    assert_eq!(scan.verdict(), Verdict::Torn, "judged before");
    let bytes_zeroed = file.zero(scan.good_end.offset, shape.segment_bytes).await?;
    Ok(Some(TornTail {
        path: file.path.clone(),
        offset: scan.good_end.offset,
        bytes_zeroed,
        segments_dropped: listing.segments.range(SegmentId(file.segment.0 + 1)..).count(),
        damage: damage.clone(),
    }))
}

async fn read_mark_sequence(file: &SegmentFile) -> Result<u64, WalError> {
    let head = file.read(0, DATA_OFFSET).await?;
    let sequences = MARK_SLOTS.iter().map(|slot| match read_mark(&file.crc, &head, *slot) {
        MarkSlot::Valid(_, seal) => seal.mark_sequence,
        _ => 0,
    });
    Ok(sequences.max().unwrap_or(0))
}

fn report(shape: &LogShape, scan: &LogScan, state: &LogState, direct: bool, began: Instant) -> RecoveryReport {
    let place = |damage: &Damage| (shape.dir.join(segment_name(damage.segment)), damage.clone());
    RecoveryReport {
        dir: shape.dir.clone(),
        log_id: shape.log_id,
        created: false,
        direct,
        segments: state.segments.len(),
        batches: scan.batches,
        records: scan.records,
        entries: state.live_entries,
        groups: state.groups.len(),
        last_lsn: scan.good_lsn,
        proven_lsn: scan.proven,
        torn: None,
        damaged_marks: scan.mark_damages.iter().map(place).collect(),
        duration: began.elapsed(),
    }
}
