//! The logs of a node as they stand on its disk, read by the offline reader that `gristmill wal dump` uses.
//!
//! An image of the disk is mounted on a machine of its own, in a world where nothing goes wrong, so that looking changes nothing.

use super::checkers::logs::{LogEntry, ShardLog};
use gristmill::state::envelope::EntryHeader;
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec::sim::{Disk, NodeConfig, SimConfig, World};
use gristmill_shardexec::{CoreId, ExecutorConfig};
use gristmill_wal::format::{RecordHeader, RecordKind, Seal, decode_purge, decode_truncate, decode_vote};
use gristmill_wal::inspect::{DumpItem, dump, find_logs};
use gristmill_wal::{GroupId, LogPosition, Lsn, WalError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Where a node of the simulation keeps its data.
pub const DATA_DIR: &str = "/data";

/// The entry kind of a command, as the log has it.
const COMMAND: u8 = 1;

/// Virtual time that reading may take. It is counted on the image's machine.
const READING_MAX: Duration = Duration::from_mins(10);

/// Every shard's log: what recovery would find, the batches up to the first that is not whole.
///
/// # Errors
/// What the reader says of a log that it cannot make sense of.
pub fn read_logs(image: Disk) -> Result<BTreeMap<ShardId, ShardLog>, String> {
    let mut world = World::new(0, SimConfig::default());
    let node = world.add_node(NodeConfig::default());
    world.disk(node, |disk| *disk = image);
    let found = Rc::new(RefCell::new(None));
    let told = Rc::clone(&found);
    world.start(node, CoreId(0), &ExecutorConfig::default(), move || async move {
        *told.borrow_mut() = Some(read_all().await.map_err(|error| error.to_string()));
    });
    let stop = world.run_until(READING_MAX, u64::MAX);
    let outcome = found.borrow_mut().take();
    outcome.unwrap_or_else(|| Err(format!("reading ended with {stop:?}: {:?}", world.violations())))
}

async fn read_all() -> Result<BTreeMap<ShardId, ShardLog>, WalError> {
    let mut shards = BTreeMap::new();
    for files in find_logs(Path::new(DATA_DIR)).await? {
        let mut reader = Reader::default();
        dump(&files, |_, item| reader.take(&item)).await?;
        reader.prove();
        shards.extend(reader.shards);
    }
    Ok(shards)
}

/// Follows a log record by record; a batch counts once its trailer is there.
#[derive(Default)]
struct Reader {
    shards: BTreeMap<ShardId, ShardLog>,
    gathered: Vec<(RecordHeader, Vec<u8>)>,
    /// The last record of a whole batch.
    last: Lsn,
    /// What follows is not contiguous any more.
    lost: bool,
    seals: Seals,
}

/// What the trailers and marks of a log say, whatever lies between them.
#[derive(Default)]
struct Seals {
    /// The highest LSN that any names as durable.
    durable: Lsn,
    /// Where each group's log ended, by the LSN after which it did.
    ends: BTreeMap<(GroupId, Lsn), Option<LogPosition>>,
}

impl Seals {
    fn take(&mut self, seal: &Seal) {
        self.durable = self.durable.max(seal.durable_lsn);
        self.ends.extend(seal.table.iter().map(|row| ((row.group, row.last_lsn), row.last)));
    }

    /// Where the group's log cannot end before: its end at the highest LSN that is proven durable, or where a later record that is there, but
    /// not proven, took it back to.
    fn proven(&self, group: GroupId) -> Option<LogPosition> {
        let until = self.ends.range((group, Lsn(0))..=(group, self.durable)).next_back()?;
        let later = self.ends.range((group, self.durable.next())..=(group, Lsn(u64::MAX)));
        later.map(|(_, end)| *end).fold(*until.1, Option::min)
    }
}

impl Reader {
    /// Notes what is proven, once all is read.
    fn prove(&mut self) {
        for (&shard, log) in &mut self.shards {
            log.proven = self.seals.proven(group_of(shard));
        }
    }

    fn take(&mut self, item: &DumpItem<'_>) {
        match item {
            DumpItem::Segment(_) | DumpItem::Damage(_) => self.gathered.clear(),
            DumpItem::Mark(_, seal) => self.seals.take(seal),
            DumpItem::Record(header, payload) => self.gathered.push((*header, payload.to_vec())),
            DumpItem::Trailer(_, seal) => {
                self.seals.take(seal);
                for (header, payload) in std::mem::take(&mut self.gathered) {
                    self.lost |= self.last != Lsn(0) && header.lsn != self.last.next();
                    if !self.lost {
                        self.last = header.lsn;
                        self.apply(&header, &payload);
                    }
                }
            }
        }
    }

    fn apply(&mut self, header: &RecordHeader, payload: &[u8]) {
        let shard = ShardId(header.group.0 as u32);
        let log = self.shards.entry(shard).or_default();
        match header.kind {
            RecordKind::Entry => {
                let command = (header.entry_kind == COMMAND).then(|| command_of(payload)).flatten();
                let term = u64::from(header.token.term());
                let entry = LogEntry { term, token: header.token.raw(), digest: header_digest(payload), command };
                log.entries.insert(header.index, entry);
            }
            RecordKind::Vote => log.vote = decode_vote(payload).ok().or(log.vote),
            RecordKind::TruncateAfter => {
                if let Ok(after) = decode_truncate(payload) {
                    let keep = after.map_or(0, |after| after.index + 1);
                    drop(log.entries.split_off(&keep));
                }
            }
            RecordKind::Purge => {
                if let Ok(upto) = decode_purge(payload) {
                    log.entries = log.entries.split_off(&(upto.index + 1));
                    log.purged = Some(upto.index);
                }
            }
            _ => {}
        }
    }
}

/// A shard's group in its log.
fn group_of(shard: ShardId) -> GroupId {
    GroupId(u64::from(shard.0))
}

fn command_of(payload: &[u8]) -> Option<(u64, u64)> {
    let (header, _) = EntryHeader::decode(payload).ok()?;
    Some((header.session.0, header.sequence))
}

/// FNV-1a, folded: enough to tell two payloads apart.
fn header_digest(payload: &[u8]) -> u32 {
    let hash = payload
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 32)) as u32
}
