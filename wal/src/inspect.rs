//! Looking at a log without touching it: what `gristmill wal inspect`, `dump` and `verify` print.
//!
//! Everything here only reads, also a log that another process has open (then the tail may look torn). It runs on any executor and goes through
//! the same scanner as recovery, but goes on after a damage, so that [`verify`] names every one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gristmill_shardexec::buf::AlignedBuf;
use gristmill_shardexec::fs::{self, FileKind};
use gristmill_shardexec::offload;
use gristmill_shardexec::time::WallClock;

use crate::error::{Foreign, WalError};
use crate::file::{FileName, parse_name};
use crate::format::{MAGIC, REVISION, RecordHeader, RecordKind, Revision, Seal, SegmentCrc, SegmentHeader, array_at};
use crate::limits::{BLOCK_BYTES, RECORD_HEADER_BYTES, SEGMENT_BYTES_MAX};
use crate::recovery::Replay;
use crate::scan::{Damage, DamageKind, Item, LogScan, MARK_SLOTS, MarkSlot, Verdict, Walk, read_mark};
use crate::token::FencingToken;
use crate::types::{GroupId, LogId, LogNumber, Lsn, SegmentId};
use crate::wal::{GroupState, group_state};

/// The segment files of one log, or a single one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// What was named: a log's directory, or a file.
    pub path: PathBuf,
    /// Segments by id.
    pub segments: BTreeMap<SegmentId, PathBuf>,
    /// Files without an id; they hold nothing that is needed.
    pub spares: Vec<PathBuf>,
    /// Files that do not belong there.
    pub strangers: Vec<PathBuf>,
}

/// Finds logs: `path` is a segment file, a log's directory, or a data directory with `log-NNN` directories in it.
pub async fn find_logs(path: &Path) -> Result<Vec<LogFiles>, WalError> {
    let failed = |error: std::io::Error| WalError::io("look at", path, &error);
    if fs::metadata(path).await.map_err(failed)?.kind == FileKind::File {
        return Ok(vec![single_file(path).await?]);
    }
    let mut logs = Vec::new();
    let here = list(path).await?;
    if !here.segments.is_empty() {
        logs.push(here);
    }
    for entry in fs::read_dir(path).await.map_err(failed)? {
        if entry.kind == FileKind::Dir && entry.name.to_str().is_some_and(|name| name.starts_with("log-")) {
            logs.push(list(&path.join(entry.name)).await?);
        }
    }
    Ok(logs)
}

async fn single_file(path: &Path) -> Result<LogFiles, WalError> {
    let bytes = read_file(path).await?;
    let reason = |fault| WalError::Foreign { path: path.to_owned(), reason: Foreign::Header(fault) };
    let header = SegmentHeader::decode(&bytes).map_err(reason)?;
    let segments = BTreeMap::from([(header.segment, path.to_owned())]);
    Ok(LogFiles { path: path.to_owned(), segments, spares: Vec::new(), strangers: Vec::new() })
}

async fn list(dir: &Path) -> Result<LogFiles, WalError> {
    let mut files =
        LogFiles { path: dir.to_owned(), segments: BTreeMap::new(), spares: Vec::new(), strangers: Vec::new() };
    for entry in fs::read_dir(dir).await.map_err(|error| WalError::io("list", dir, &error))? {
        let path = dir.join(&entry.name);
        match (entry.kind, entry.name.to_str().and_then(parse_name)) {
            (FileKind::File, Some(FileName::Segment(id))) => drop(files.segments.insert(id, path)),
            (FileKind::File, Some(FileName::Spare(_))) => files.spares.push(path),
            (FileKind::Dir, _) => {}
            _ => files.strangers.push(path),
        }
    }
    Ok(files)
}

async fn read_file(path: &Path) -> Result<AlignedBuf, WalError> {
    fs::read(path, SEGMENT_BYTES_MAX as usize).await.map_err(|error| WalError::io("read", path, &error))
}

/// What a log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSummary {
    /// What was looked at.
    pub path: PathBuf,
    /// First four bytes of each segment.
    pub magic: u32,
    /// Format.
    pub revision: Revision,
    /// The log's random name.
    pub log_id: LogId,
    /// Its number in the data directory.
    pub log: LogNumber,
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    /// Segments, ascending.
    pub segments: Vec<SegmentSummary>,
    /// Files that wait for an id.
    pub spares: usize,
    /// Groups, ascending.
    pub groups: Vec<GroupSummary>,
    /// Last record.
    pub last_lsn: Lsn,
    /// Highest LSN that trailers and marks prove durable.
    pub proven_lsn: Lsn,
    /// Highest origin token of any group.
    pub token_highest: FencingToken,
    /// What recovery would find.
    pub verdict: Verdict,
    /// The damage that recovery would name first.
    pub first_damage: Option<(PathBuf, Damage)>,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its id.
    pub segment: SegmentId,
    /// Its file.
    pub path: PathBuf,
    /// When the file got the id.
    pub created: WallClock,
    /// Valid records, trailers left out.
    pub records: u64,
    /// Batches that ended with a valid trailer.
    pub batches: u64,
    /// Lowest and highest LSN of valid records.
    pub lsns: Option<(Lsn, Lsn)>,
    /// End of the last valid record, in bytes.
    pub used_bytes: u64,
    /// Durable LSNs of valid marks.
    pub marks: Vec<Lsn>,
}

/// One group of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupId,
    /// Its state after the last good batch.
    pub state: GroupState,
    /// Index of the first live entry, if there is any.
    pub first_index: Option<u64>,
    /// Live entries.
    pub entries: u64,
}

/// Summarises a log.
pub async fn inspect(files: &LogFiles) -> Result<LogSummary, WalError> {
    let mut segments = Vec::new();
    let scanned = scan(files, |file, bytes| segments.push(summarise_segment(file, bytes))).await?;
    let header = scanned.header.ok_or_else(|| WalError::Foreign {
        path: files.path.clone(),
        reason: Foreign::Header(crate::format::SegmentHeaderFault::Missing),
    })?;
    let state = scanned.replay.state;
    let mut groups: Vec<GroupSummary> = state
        .groups
        .iter()
        .map(|(id, group)| GroupSummary {
            group: *id,
            state: group_state(group),
            first_index: (!group.index.is_empty()).then(|| group.index.first()),
            entries: group.index.next() - group.index.first(),
        })
        .collect();
    groups.sort_unstable_by_key(|group| group.group);
    let verdict = scanned.scan.verdict();
    let first = if verdict == Verdict::Corrupt {
        Some(scanned.scan.corruption())
    } else {
        scanned.scan.damages.first().cloned()
    };
    Ok(LogSummary {
        path: files.path.clone(),
        magic: MAGIC,
        revision: REVISION,
        log_id: header.log_id,
        log: header.log,
        segment_bytes: header.segment_bytes,
        segments,
        spares: files.spares.len(),
        token_highest: groups.iter().map(|group| group.state.token_highest).max().unwrap_or_default(),
        groups,
        last_lsn: scanned.scan.good_lsn,
        proven_lsn: scanned.scan.proven,
        verdict,
        first_damage: first.map(|damage| (files.segments[&damage.segment].clone(), damage)),
    })
}

fn summarise_segment(file: &ScannedFile<'_>, bytes: &[u8]) -> SegmentSummary {
    let mut summary = SegmentSummary {
        segment: file.crc.segment(),
        path: file.path.to_owned(),
        created: file.header.map_or(WallClock(0), |header| header.created),
        records: 0,
        batches: 0,
        lsns: None,
        used_bytes: 0,
        marks: Vec::new(),
    };
    for slot in MARK_SLOTS {
        if let MarkSlot::Valid(_, seal) = read_mark(&file.crc, bytes, slot) {
            summary.marks.push(seal.durable_lsn);
        }
    }
    for item in Walk::new(file.crc, bytes) {
        let Item::Record(header) = item else { continue };
        summary.used_bytes = u64::from(header.offset) + header.record_bytes() as u64;
        if header.kind == RecordKind::Trailer {
            summary.batches += 1;
        } else {
            summary.records += 1;
            let first = summary.lsns.map_or(header.lsn, |(first, _)| first);
            summary.lsns = Some((first, header.lsn));
        }
    }
    summary
}

/// One line of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpItem<'a> {
    /// A segment begins.
    Segment(SegmentHeader),
    /// A mark slot that is not empty.
    Mark(RecordHeader, Seal),
    /// A valid record with its payload.
    Record(RecordHeader, &'a [u8]),
    /// A batch's end.
    Trailer(RecordHeader, Seal),
    /// Something that is not what it should be.
    Damage(Damage),
}

/// Shows everything in the log, in the order of the files.
pub async fn dump(files: &LogFiles, mut show: impl FnMut(&Path, DumpItem<'_>)) -> Result<(), WalError> {
    scan(files, |file, bytes| {
        if let Some(header) = file.header {
            show(file.path, DumpItem::Segment(header));
        }
        dump_segment(file, bytes, &mut |item| show(file.path, item));
    })
    .await
    .map(drop)
}

fn dump_segment(file: &ScannedFile<'_>, bytes: &[u8], show: &mut dyn FnMut(DumpItem<'_>)) {
    let segment = file.crc.segment();
    let damage = |offset: usize, bytes: usize, kind| {
        DumpItem::Damage(Damage { segment, offset: offset as u64, bytes: bytes as u64, kind, lsn: Lsn(0) })
    };
    for slot in MARK_SLOTS {
        match read_mark(&file.crc, bytes, slot) {
            MarkSlot::Valid(header, seal) => show(DumpItem::Mark(header, seal)),
            MarkSlot::Damaged(kind) => show(damage(slot, BLOCK_BYTES, kind)),
            MarkSlot::Empty | MarkSlot::Stale => {}
        }
    }
    for item in Walk::new(file.crc, bytes) {
        match item {
            Item::Record(header) => {
                let start = header.offset as usize + RECORD_HEADER_BYTES;
                let payload = &bytes[start..start + header.payload_bytes as usize];
                match (header.kind, Seal::decode(&header, payload)) {
                    (RecordKind::Trailer, Ok(seal)) => show(DumpItem::Trailer(header, seal)),
                    _ => show(DumpItem::Record(header, payload)),
                }
            }
            Item::DamagedPayload(header) => {
                show(damage(header.offset as usize, header.record_bytes(), DamageKind::Payload(header.kind)));
            }
            Item::Gap { start, end, fault } => show(damage(start, end - start, DamageKind::Record(fault))),
        }
    }
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingClass {
    /// At or below the proven LSN: acknowledged records are damaged.
    Corruption,
    /// Above it: a crash left it half written, and recovery cuts it. Normal after a crash, not after a clean shutdown.
    TornTail,
    /// A mark: it lowers what can be proven, and loses nothing.
    Mark,
    /// A file that does not belong there, or whose header says so.
    Foreign,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Length in bytes, as far as known.
    pub bytes: u64,
    /// What it means.
    pub class: FindingClass,
    /// What is wrong, for people.
    pub reason: String,
}

/// Result of [`verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// What was looked at.
    pub path: PathBuf,
    /// Everything found, by file and offset.
    pub findings: Vec<Finding>,
    /// Segments read.
    pub segments: usize,
    /// Contiguous good batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Last of them.
    pub last_lsn: Lsn,
    /// Highest LSN that trailers and marks prove durable.
    pub proven_lsn: Lsn,
}

impl Verification {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Reads every byte of a log and names whatever is not as it should be.
pub async fn verify(files: &LogFiles) -> Result<Verification, WalError> {
    let scanned = scan(files, |_, _| ()).await?;
    let LogScan { proven, good_lsn, batches, records, .. } = scanned.scan;
    let mut findings = scanned.findings;
    for stranger in &files.strangers {
        findings.push(foreign(stranger, &Foreign::Name));
    }
    let class_of = |damage: &Damage| match damage.kind {
        DamageKind::Contradiction { .. } | DamageKind::SegmentHeader(_) => FindingClass::Corruption,
        _ if scanned.scan.verdict() == Verdict::Corrupt && damage.lsn <= proven => FindingClass::Corruption,
        _ => FindingClass::TornTail,
    };
    let of_damage = |damage: &Damage, class| Finding {
        path: files.segments[&damage.segment].clone(),
        offset: damage.offset,
        bytes: damage.bytes,
        class,
        reason: damage.kind.to_string(),
    };
    findings.extend(scanned.scan.damages.iter().map(|damage| of_damage(damage, class_of(damage))));
    findings.extend(scanned.scan.mark_damages.iter().map(|damage| of_damage(damage, FindingClass::Mark)));
    if scanned.scan.verdict() == Verdict::Corrupt && scanned.scan.damages.is_empty() {
        findings.push(of_damage(&scanned.scan.corruption(), FindingClass::Corruption));
    }
    findings.extend(missing_segments(files, &scanned.scan, &scanned.replay));
    findings.sort_by(|a, b| (&a.path, a.offset).cmp(&(&b.path, b.offset)));
    let segments = files.segments.len();
    let path = files.path.clone();
    Ok(Verification { path, findings, segments, batches, records, last_lsn: good_lsn, proven_lsn: proven })
}

/// Segments that the others speak of. A single file says nothing about its neighbours.
fn missing_segments(files: &LogFiles, scan: &LogScan, replay: &Replay) -> Vec<Finding> {
    if files.segments.values().any(|path| *path == files.path) {
        return Vec::new();
    }
    let finding =
        |reason| Finding { path: files.path.clone(), offset: 0, bytes: 0, class: FindingClass::Corruption, reason };
    let mut findings = Vec::new();
    if scan.oldest_segment.0 > 0 && !files.segments.contains_key(&scan.oldest_segment) {
        findings.push(finding(format!("{} is needed and not there", scan.oldest_segment)));
    }
    for (group, first) in replay.state.gaps() {
        findings
            .push(finding(format!("{group} has live entries from index {first} on in a segment that is not there")));
    }
    findings
}

fn foreign(path: &Path, reason: &Foreign) -> Finding {
    Finding { path: path.to_owned(), offset: 0, bytes: 0, class: FindingClass::Foreign, reason: reason.to_string() }
}

/// A file while it is in memory.
struct ScannedFile<'a> {
    path: &'a Path,
    crc: SegmentCrc,
    /// `None` when it is damaged.
    header: Option<SegmentHeader>,
}

struct Scanned {
    scan: LogScan,
    replay: Replay,
    findings: Vec<Finding>,
    /// Of the last segment that has one.
    header: Option<SegmentHeader>,
}

/// Reads and scans file by file; `visit` sees each in memory.
async fn scan(files: &LogFiles, mut visit: impl FnMut(&ScannedFile<'_>, &[u8])) -> Result<Scanned, WalError> {
    let mut scanned =
        Scanned { scan: LogScan::default(), replay: Replay::default(), findings: Vec::new(), header: None };
    for (&id, path) in files.segments.range(oldest_needed(files).await?..) {
        let bytes = read_file(path).await?;
        let Some(file) = check_header(id, path, &bytes, &mut scanned) else { continue };
        visit(&file, &bytes);
        let crc = file.crc;
        let Scanned { mut scan, mut replay, findings, header } = scanned;
        let outcome = offload(move || {
            scan.segment(crc, &bytes, &mut replay);
            (scan, replay)
        });
        let (scan, replay) =
            outcome.await.map_err(|error| WalError::io("scan", path, &std::io::Error::other(error.to_string())))?;
        scanned = Scanned { scan, replay, findings, header };
    }
    Ok(scanned)
}

/// Segments that were freed and wait for recycling are left out, as recovery does.
async fn oldest_needed(files: &LogFiles) -> Result<SegmentId, WalError> {
    let mut oldest = SegmentId(0);
    for path in files.segments.values() {
        let bytes = read_head(path).await?;
        let Ok(header) = SegmentHeader::decode(&bytes) else { continue };
        let crc = SegmentCrc::new(header.log_id, header.segment);
        for slot in MARK_SLOTS.into_iter().filter(|slot| slot + BLOCK_BYTES <= bytes.len()) {
            if let MarkSlot::Valid(_, seal) = read_mark(&crc, &bytes, slot) {
                oldest = oldest.max(seal.oldest_segment);
            }
        }
    }
    Ok(oldest)
}

async fn read_head(path: &Path) -> Result<Vec<u8>, WalError> {
    let failed = |error: std::io::Error| WalError::io("read", path, &error);
    let file = fs::File::open(path).await.map_err(failed)?;
    let (read, mut head) = file.read_at(vec![0; crate::limits::DATA_OFFSET], 0).await;
    head.truncate(read.map_err(failed)?);
    Ok(head)
}

/// `None` when nothing behind the header can be made sense of.
fn check_header<'a>(id: SegmentId, path: &'a Path, bytes: &[u8], scanned: &mut Scanned) -> Option<ScannedFile<'a>> {
    let finding = |class, reason: String| Finding {
        path: path.to_owned(),
        offset: 0,
        bytes: BLOCK_BYTES.min(bytes.len()) as u64,
        class,
        reason,
    };
    let header = match SegmentHeader::decode(bytes) {
        Ok(header) => {
            if header.segment != id || header.segment_bytes != bytes.len() as u64 {
                let reason = format!("the header is of {} with {} bytes", header.segment, header.segment_bytes);
                scanned.findings.push(finding(FindingClass::Foreign, reason));
                return None;
            }
            scanned.header = Some(header);
            Some(header)
        }
        Err(fault) => {
            let kind = DamageKind::SegmentHeader(fault);
            scanned.findings.push(finding(FindingClass::Corruption, kind.to_string()));
            None
        }
    };
    if bytes.len() < crate::limits::DATA_OFFSET {
        return None;
    }
    // With a damaged header the ids come from the name, the neighbours, or what is left of the header itself.
    let log_id = header.or(scanned.header).map_or_else(|| LogId(array_at(bytes, 24)), |header| header.log_id);
    Some(ScannedFile { path, crc: SegmentCrc::new(log_id, id), header })
}
