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
use crate::limits::{BLOCK_BYTES, DATA_OFFSET, RECORD_HEADER_BYTES, SEGMENT_BYTES_MAX};
use crate::recovery::{Listing, Replay, check_header, check_spare, read_head};
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
    let (head, len) = read_head(path).await?;
    let segment = match SegmentHeader::decode(&head) {
        Ok(header) => header.segment,
        Err(_) => check_header(path, SegmentId(0), &head, len)?.segment,
    };
    let segments = BTreeMap::from([(segment, path.to_owned())]);
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
            // As recovery: a mount point brings its own directory.
            (FileKind::Dir, _) if entry.name == "lost+found" => {}
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
    /// Why recovery would refuse the log whatever its records say: a file that is missing, damaged at its head, or none of the log's.
    pub refused: Option<String>,
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
    let refused = scanned.refusals.first().map(ToString::to_string);
    let refused = refused.or_else(|| missing_segments(files, &scanned).pop().map(|finding| finding.reason));
    let Some(header) = scanned.header else {
        let nothing = Foreign::Header(crate::format::SegmentHeaderFault::Missing);
        let nothing = WalError::Foreign { path: files.path.clone(), reason: nothing };
        return Err(scanned.refusals.into_iter().next().unwrap_or(nothing));
    };
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
    let verdict = if refused.is_some() { Verdict::Corrupt } else { scanned.scan.verdict() };
    let in_a_header = scanned.refusals.iter().find_map(|refusal| match refusal {
        WalError::Corrupt { path, damage } => Some((path.clone(), Damage::clone(damage))),
        _ => None,
    });
    let first = if scanned.scan.verdict() == Verdict::Corrupt {
        Some(scanned.scan.corruption())
    } else {
        scanned.scan.damages.first().cloned()
    };
    segments.retain(|segment: &SegmentSummary| segment.segment >= scanned.from);
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
        refused,
        first_damage: in_a_header.or(first.map(|damage| (files.segments[&damage.segment].clone(), damage))),
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
    /// A file that does not belong there, or whose header says so, or of a newer version.
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
    let mut findings: Vec<Finding> = scanned.refusals.iter().map(finding_of).collect();
    let corrupt = scanned.scan.verdict() == Verdict::Corrupt;
    let class_of = |damage: &Damage| match damage.kind {
        DamageKind::Contradiction { .. } | DamageKind::SegmentHeader(_) => FindingClass::Corruption,
        _ if corrupt && damage.lsn <= proven => FindingClass::Corruption,
        _ => FindingClass::TornTail,
    };
    let of_damage = |damage: &Damage, class| Finding {
        path: files.segments[&damage.segment].clone(),
        offset: damage.offset,
        bytes: damage.bytes,
        class,
        reason: damage.kind.to_string(),
    };
    for (number, damage) in scanned.scan.damages.iter().enumerate() {
        // Of a corrupt log recovery names the first one.
        let class = if corrupt && number == 0 { FindingClass::Corruption } else { class_of(damage) };
        findings.push(of_damage(damage, class));
    }
    findings.extend(scanned.scan.mark_damages.iter().map(|damage| of_damage(damage, FindingClass::Mark)));
    if corrupt && scanned.scan.damages.is_empty() {
        findings.push(of_damage(&scanned.scan.corruption(), FindingClass::Corruption));
    }
    findings.extend(missing_segments(files, &scanned));
    findings.sort_by(|a, b| (&a.path, a.offset).cmp(&(&b.path, b.offset)));
    let segments = files.segments.len();
    let path = files.path.clone();
    Ok(Verification { path, findings, segments, batches, records, last_lsn: good_lsn, proven_lsn: proven })
}

/// Segments that the others speak of. A single file says nothing about its neighbours.
fn missing_segments(files: &LogFiles, scanned: &Scanned) -> Vec<Finding> {
    let Scanned { scan, replay, .. } = scanned;
    if files.segments.values().any(|path| *path == files.path) {
        return Vec::new();
    }
    let finding =
        |reason| Finding { path: files.path.clone(), offset: 0, bytes: 0, class: FindingClass::Corruption, reason };
    let mut findings = Vec::new();
    if scan.oldest_segment.0 > 0 && !files.segments.contains_key(&scan.oldest_segment) {
        findings.push(finding(format!("{} is needed and not there", scan.oldest_segment)));
    }
    if let Some(lost) = scanned.lost {
        findings.push(finding(format!("{lost} is needed and not there")));
    }
    for (group, first) in replay.state.gaps() {
        findings
            .push(finding(format!("{group} has live entries from index {first} on in a segment that is not there")));
    }
    findings
}

/// A file that recovery would refuse.
fn finding_of(refusal: &WalError) -> Finding {
    let finding =
        |path: &Path, bytes, class, reason| Finding { path: path.to_owned(), offset: 0, bytes, class, reason };
    match refusal {
        WalError::Corrupt { path, damage } => {
            finding(path, damage.bytes, FindingClass::Corruption, damage.kind.to_string())
        }
        WalError::Foreign { path, reason } => finding(path, 0, FindingClass::Foreign, reason.to_string()),
        WalError::Newer { path, found } => {
            let reason = format!("revision {found}, newer than {REVISION}; run the version of gristmill that wrote it");
            finding(path, 0, FindingClass::Foreign, reason)
        }
        other => unreachable!("the check of a header does not end in: {other}"),
    }
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
    /// Where the scan that counts began.
    from: SegmentId,
    /// For each file that keeps recovery from scanning at all, what it would say.
    refusals: Vec<WalError>,
    /// Of any segment that has one.
    header: Option<SegmentHeader>,
    /// A segment that the others follow on and that is not there.
    lost: Option<SegmentId>,
}

/// Reads and scans file by file; `visit` sees each in memory.
async fn scan(files: &LogFiles, mut visit: impl FnMut(&ScannedFile<'_>, &[u8])) -> Result<Scanned, WalError> {
    let (listing, refusals) = check_files(files).await?;
    let mut from = listing.oldest;
    let (mut scan, mut replay) = scan_from(files, from, &listing, &mut visit).await?;
    while let Some(later) = scan.restart(from) {
        from = later;
        (scan, replay) = scan_from(files, from, &listing, &mut |_, _| ()).await?;
    }
    let header = listing.segments.values().next().copied();
    let lost = listing.lost_beginning(&scan);
    Ok(Scanned { scan, replay, from, refusals, header, lost })
}

/// Checks the heads of all files as recovery does, but goes on after a refusal.
async fn check_files(files: &LogFiles) -> Result<(Listing, Vec<WalError>), WalError> {
    let mut listing = Listing::new();
    let mut refusals = Vec::new();
    for (&id, path) in &files.segments {
        let (head, len) = read_head(path).await?;
        // Opening knows the log's number; here the first segment says it.
        let log = listing.segments.values().next().map(|first| first.log);
        let checked = check_header(path, id, &head, len).and_then(|header| listing.add(path, header, &head, log));
        refusals.extend(checked.err());
    }
    for path in &files.spares {
        match check_spare(path).await {
            Ok(_) => {}
            Err(error @ WalError::Io(_)) => return Err(error),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let stranger = |path: &PathBuf| WalError::Foreign { path: path.clone(), reason: Foreign::Name };
    refusals.extend(files.strangers.iter().map(stranger));
    Ok((listing, refusals))
}

async fn scan_from(
    files: &LogFiles,
    from: SegmentId,
    listing: &Listing,
    visit: &mut impl FnMut(&ScannedFile<'_>, &[u8]),
) -> Result<(LogScan, Replay), WalError> {
    let mut pair = (LogScan::default(), Replay::default());
    for (&id, path) in files.segments.range(from..) {
        let bytes = read_file(path).await?;
        let Some(file) = identify(id, path, &bytes, listing) else { continue };
        visit(&file, &bytes);
        let crc = file.crc;
        let (mut scan, mut replay) = pair;
        let outcome = offload(move || {
            scan.segment(crc, &bytes, &mut replay);
            (scan, replay)
        });
        pair = outcome.await.map_err(|error| WalError::io("scan", path, &std::io::Error::other(error.to_string())))?;
    }
    Ok(pair)
}

/// `None` when the file is none of the log's, or too short to hold anything.
fn identify<'a>(id: SegmentId, path: &'a Path, bytes: &[u8], listing: &Listing) -> Option<ScannedFile<'a>> {
    if bytes.len() < DATA_OFFSET {
        return None;
    }
    let header = match check_header(path, id, bytes, bytes.len() as u64) {
        Ok(_) => Some(*listing.segments.get(&id)?),
        // Cut short, or made longer.
        Err(WalError::Corrupt { .. }) => SegmentHeader::decode(bytes).ok(),
        Err(_) => return None,
    };
    // With a damaged header the ids come from the name, the neighbours, or what is left of the header itself.
    let log_id = header.map(|header| header.log_id).or(listing.log_id).unwrap_or_else(|| LogId(array_at(bytes, 24)));
    Some(ScannedFile { path, crc: SegmentCrc::new(log_id, id), header })
}
