//! `gristmill wal inspect|dump|verify`: looks into logs without touching them.

use super::args::{WalCommand, WalDirArgs};
use super::{ExitStatus, Failure, Outcome, show};
use crate::shard::data_dir::{log_dir_name, missing_logs, read_superblock};
use crate::shard::superblock::Superblock;
use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice, fs};
use gristmill_wal::LogNumber;
use gristmill_wal::format::{RecordHeader, RecordKind};
use gristmill_wal::inspect::{
    DumpItem, FindingClass, GroupSummary, LogFiles, LogSummary, Verification, dump, find_logs, inspect, verify,
};
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};

pub(super) fn run(command: &WalCommand) -> Outcome {
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    let mut executor = Executor::start(config).map_err(|error| broken(&error))?;
    executor.block_on(async {
        match command {
            WalCommand::Inspect(args) => inspect_all(args).await,
            WalCommand::Dump(args) => dump_all(args).await,
            WalCommand::Verify(args) => verify_all(args).await,
        }
    })
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ExitStatus::Broken, error.to_string())
}

/// What a directory holds, and what it should.
struct Found {
    superblock: Option<Superblock>,
    logs: Vec<LogFiles>,
    /// Directories of logs that the superblock tells of and that hold no segment.
    missing: Vec<PathBuf>,
}

async fn find(directory: &Path) -> Result<Found, Failure> {
    if let Err(error) = fs::metadata(directory).await
        && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    {
        let message = format!("{}: {error}; name a data directory or a log-NNN directory", directory.display());
        return Err(Failure::usage(message));
    }
    let mut logs = find_logs(directory).await.map_err(|error| broken(&error))?;
    let superblock = read_superblock(directory).await.map_err(|error| broken(&error))?;
    let missing = match &superblock {
        Some(superblock) => missing_logs(directory, superblock).await.map_err(|error| broken(&error))?,
        None => Vec::new(),
    };
    if let Some(superblock) = &superblock {
        let named: Vec<PathBuf> =
            (0..superblock.logs).map(|log| directory.join(log_dir_name(LogNumber(log)))).collect();
        for files in logs.extract_if(.., |files| !named.contains(&files.path)) {
            eprintln!("gristmill: {} is none of the store's {} logs, ignored", files.path.display(), named.len());
        }
    }
    logs.retain(|files| !missing.contains(&files.path));
    if logs.is_empty() && missing.is_empty() {
        let message = format!("{} holds no log; name a data directory or a log-NNN directory", directory.display());
        return Err(Failure::new(ExitStatus::Broken, message));
    }
    Ok(Found { superblock, logs, missing })
}

impl Found {
    fn print_missing(&self) {
        for path in &self.missing {
            show::line(&format!("{}: missing, or without a segment; restore it from a backup", path.display()));
        }
    }
}

async fn inspect_all(args: &WalDirArgs) -> Outcome {
    let found = find(&args.directory).await?;
    let mut summaries = Vec::new();
    for files in &found.logs {
        summaries.push(inspect(files).await.map_err(|error| broken(&error))?);
    }
    let shards = found.superblock.map(|superblock| superblock.shards);
    if args.json {
        let logs: Vec<Value> = summaries.iter().map(summary_json).collect();
        show::line(&json!({ "shards": shards, "logs": logs, "missing_logs": found.missing }).to_string());
    } else {
        if let Some(shards) = shards {
            show::line(&format!("{}: {shards} shards in {} logs", args.directory.display(), summaries.len()));
        }
        for summary in &summaries {
            show::print(summary_text(summary).as_bytes());
        }
        found.print_missing();
    }
    Ok(if found.missing.is_empty() { ExitStatus::Done } else { ExitStatus::Broken })
}

fn summary_json(summary: &LogSummary) -> Value {
    let segments: Vec<Value> = summary
        .segments
        .iter()
        .map(|segment| {
            json!({
                "segment": segment.segment.0,
                "path": segment.path,
                "records": segment.records,
                "batches": segment.batches,
                "used_bytes": segment.used_bytes,
            })
        })
        .collect();
    let shards: Vec<Value> = summary.groups.iter().map(group_json).collect();
    json!({
        "path": summary.path,
        "magic": format!("{:#010x}", summary.magic),
        "revision": summary.revision.to_string(),
        "log": summary.log.0,
        "segment_bytes": summary.segment_bytes,
        "segments": segments,
        "spares": summary.spares,
        "shards": shards,
        "last_lsn": summary.last_lsn.0,
        "proven_lsn": summary.proven_lsn.0,
        "highest_token": summary.token_highest.raw(),
        "verdict": format!("{:?}", summary.verdict),
        "refused": summary.refused,
        "first_damage": summary.first_damage.as_ref().map(|(path, damage)| format!("{}: {damage}", path.display())),
    })
}

fn group_json(group: &GroupSummary) -> Value {
    let state = &group.state;
    let position = |at: Option<gristmill_wal::LogPosition>| at.map(|at| json!({ "term": at.term, "index": at.index }));
    json!({
        "shard": group.group.0,
        "vote": state.vote.map(|vote| json!({ "term": vote.term, "node": vote.node, "committed": vote.committed })),
        "committed": position(state.committed),
        "purged": position(state.purged),
        "last": position(state.last),
        "first_index": group.first_index,
        "entries": group.entries,
        "highest_token": state.token_highest.raw(),
    })
}

fn summary_text(summary: &LogSummary) -> String {
    let mut lines = vec![
        format!("{}", summary.path.display()),
        format!("  magic {:#010x}, revision {}, log {}", summary.magic, summary.revision, summary.log.0),
        format!(
            "  {} segments of {} bytes, {} spare; last lsn {}, proven durable through {}",
            summary.segments.len(),
            summary.segment_bytes,
            summary.spares,
            summary.last_lsn.0,
            summary.proven_lsn.0
        ),
        format!("  highest token {}", summary.token_highest),
        format!("  verdict {:?}", summary.verdict),
    ];
    if let Some(refused) = &summary.refused {
        lines.push(format!("  refused: {refused}"));
    }
    if let Some((path, damage)) = &summary.first_damage {
        lines.push(format!("  first damage {}: {damage}", path.display()));
    }
    for segment in &summary.segments {
        lines.push(format!(
            "  segment {}: {} records in {} batches, {} bytes used",
            segment.segment.0, segment.records, segment.batches, segment.used_bytes
        ));
    }
    for group in &summary.groups {
        let last = group.state.last.map_or("none".to_owned(), |last| last.to_string());
        let vote = group.state.vote.map_or(0, |vote| vote.term);
        lines.push(format!(
            "  shard {}: {} entries, last {last}, vote of term {vote}, highest token {}",
            group.group.0, group.entries, group.state.token_highest
        ));
    }
    lines.join("\n") + "\n"
}

async fn dump_all(args: &WalDirArgs) -> Outcome {
    for files in find(&args.directory).await?.logs {
        let json = args.json;
        dump(&files, |path, item| show::line(&dump_line(path, &item, json))).await.map_err(|error| broken(&error))?;
    }
    Ok(ExitStatus::Done)
}

/// One line of a dump: JSON or text. Payloads are named by their length: they are users' data.
fn dump_line(path: &Path, item: &DumpItem<'_>, json: bool) -> String {
    let of_record = |what: &str, header: &RecordHeader, durable: Option<u64>| {
        json!({
            "item": what,
            "offset": header.offset,
            "lsn": header.lsn.0,
            "shard": header.group.0,
            "index": header.index,
            "token": header.token.to_string(),
            "payload_bytes": header.payload_bytes,
            "durable_lsn": durable,
        })
    };
    let mut value = match item {
        DumpItem::Segment(header) => json!({ "item": "segment", "segment": header.segment.0, "log": header.log.0 }),
        DumpItem::Mark(header, seal) => of_record("mark", header, Some(seal.durable_lsn.0)),
        DumpItem::Record(header, _) => of_record(kind_name(header.kind), header, None),
        DumpItem::Trailer(header, seal) => of_record("trailer", header, Some(seal.durable_lsn.0)),
        DumpItem::Damage(damage) => json!({ "item": "damage", "offset": damage.offset, "reason": damage.to_string() }),
    };
    if json {
        value["path"] = json!(path);
        return value.to_string();
    }
    let fields = value.as_object().into_iter().flatten().filter(|(name, value)| *name != "item" && !value.is_null());
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={value}")).collect();
    format!("{:<16} {}", value["item"].as_str().unwrap_or_default(), fields.join(" "))
}

fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Entry => "entry",
        RecordKind::Vote => "vote",
        RecordKind::Membership => "membership",
        RecordKind::TruncateAfter => "truncate-after",
        RecordKind::Purge => "purge",
        RecordKind::Committed => "committed",
        RecordKind::ShardHome => "shard-home",
        RecordKind::Checkpoint => "checkpoint",
        RecordKind::Trailer => "trailer",
        RecordKind::Mark => "mark",
    }
}

async fn verify_all(args: &WalDirArgs) -> Outcome {
    let mut results = Vec::new();
    let found = find(&args.directory).await?;
    for files in &found.logs {
        results.push(verify(files).await.map_err(|error| broken(&error))?);
    }
    if args.json {
        let logs: Vec<Value> = results.iter().map(verification_json).collect();
        show::line(&json!({ "logs": logs, "missing_logs": found.missing }).to_string());
    } else {
        for result in &results {
            print_verification(result);
        }
        found.print_missing();
    }
    let clean = found.missing.is_empty() && results.iter().all(Verification::is_clean);
    Ok(if clean { ExitStatus::Done } else { ExitStatus::Broken })
}

fn class_name(class: FindingClass) -> &'static str {
    match class {
        FindingClass::Corruption => "corruption",
        FindingClass::TornTail => "torn tail",
        FindingClass::Mark => "damaged mark",
        FindingClass::Foreign => "foreign file",
    }
}

fn verification_json(result: &Verification) -> Value {
    let findings: Vec<Value> = result
        .findings
        .iter()
        .map(|finding| {
            json!({
                "path": finding.path,
                "offset": finding.offset,
                "bytes": finding.bytes,
                "class": class_name(finding.class),
                "reason": finding.reason,
            })
        })
        .collect();
    json!({
        "path": result.path,
        "segments": result.segments,
        "batches": result.batches,
        "records": result.records,
        "findings": findings,
    })
}

fn print_verification(result: &Verification) {
    let (segments, batches, records) = (result.segments, result.batches, result.records);
    let path = result.path.display();
    show::line(&format!("{path}: {records} records in {batches} batches in {segments} segments"));
    for finding in &result.findings {
        let (path, class) = (finding.path.display(), class_name(finding.class));
        show::line(&format!("  {path} offset {}: {class}: {}", finding.offset, finding.reason));
    }
}
