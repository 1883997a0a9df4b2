//! One node's disk: survives crashes of its node, as far as the seed lets it.
//!
//! ```text
//!   Op ──at its completion──► ops: checks, faults ──► names (directories) ─┬─ live: what everybody sees
//!                                                     content (bytes)     ─┘    │ sync, O_DSYNC
//!                                                                               ▼
//!   loss of power ─────────────────────────────────────────────────────────► durable, plus what chance kept of the rest
//! ```
//!
//! Invariants
//! - Writes are visible to reads at once, and durable after a sync of the file or when it is O_DSYNC; names are durable after a sync of
//!   their directory (with [`Journal::Ordered`] also after a sync of any file, as ext4 commits its journal then).
//! - What was durable changes by a fault of the plan or by a call of this type's corrupting methods only.
//! - An op takes effect at the instant of its completion. One that has not completed when power is lost has happened, or not, or in part.
//!
//! Limits: versions and lengths per file that a crash chooses from (`content.rs`), journal entries (`names.rs`). Beyond them the oldest
//! are forgotten or written back, which explores less and invents nothing.

mod content;
mod extents;
mod inspect;
mod names;
mod ops;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;

use self::content::{Content, CrashRules, Losses, PAGE, Style};
use self::names::NameOp;
pub(super) use self::ops::{Caller, Effect, OpenFile};
use super::faults::{Chaos, FaultKind};
use crate::time::WallClock;

/// Inode number of `/`.
const ROOT: u64 = 2;

/// Which changes of names a sync makes durable, and which a crash may drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// One journal in order, as ext4's `data=ordered`: any sync commits all of it, a crash drops its newest entries.
    Ordered,
    /// A sync commits the names of its directory only, a crash drops any entries on which no kept one builds.
    AnythingGoes,
}

/// What a disk is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Space for files, in bytes.
    pub capacity: u64,
    /// Bytes that it writes as one, usually: 512 or 4096. Direct I/O must be aligned to it.
    pub sector: usize,
    /// False: as tmpfs, opening with O_DIRECT fails with [`DirectUnsupported`](crate::driver::DirectUnsupported).
    pub direct: bool,
    /// What becomes of names.
    pub journal: Journal,
}

impl Default for DiskConfig {
    fn default() -> DiskConfig {
        DiskConfig { capacity: 16 << 30, sector: 4096, direct: true, journal: Journal::Ordered }
    }
}

#[derive(Clone, Debug)]
enum Node {
    File(Box<Content>),
    Dir { names: BTreeMap<OsString, u64>, durable: BTreeMap<OsString, u64> },
}

impl Node {
    fn empty_dir() -> Node {
        Node::Dir { names: BTreeMap::new(), durable: BTreeMap::new() }
    }
}

/// Names an open file of a node: the core's start and its handle.
pub(super) type LockOwner = (usize, u64);

#[derive(Clone, Debug)]
struct Inode {
    node: Node,
    /// Names that lead here; names that would after a crash; journal entries that mention it; open files.
    links: u64,
    durable_links: u64,
    journal_refs: u64,
    opens: u64,
    /// Its space counts as free already.
    released: bool,
    modified: WallClock,
    locked_by: Option<LockOwner>,
}

impl Inode {
    fn new(node: Node, modified: WallClock) -> Inode {
        Inode {
            node,
            links: 0,
            durable_links: 0,
            journal_refs: 0,
            opens: 0,
            released: false,
            modified,
            locked_by: None,
        }
    }
}

/// A disk. A clone is an image of it and costs no copy of the content.
#[derive(Clone, Debug)]
pub struct Disk {
    config: DiskConfig,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Numbers every write and change of length.
    seq: u64,
    journal: VecDeque<NameOp>,
    used_pages: u64,
}

impl Disk {
    /// An empty disk.
    ///
    /// # Panics
    /// When the sector is neither 512 nor 4096 bytes.
    pub fn new(config: DiskConfig) -> Disk {
        assert!(matches!(config.sector, 512 | PAGE), "a sector has 512 or 4096 bytes");
        let mut root = Inode::new(Node::empty_dir(), WallClock(super::clock::EPOCH_NS));
        (root.links, root.durable_links) = (1, 1);
        Disk {
            config,
            inodes: BTreeMap::from([(ROOT, root)]),
            next_inode: ROOT + 1,
            seq: 0,
            journal: VecDeque::new(),
            used_pages: 0,
        }
    }

    fn free_pages(&self) -> u64 {
        (self.config.capacity / PAGE as u64).saturating_sub(self.used_pages)
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Power is lost, after the ops in flight have happened or not. Open files and locks are gone; what was not synced is there, or
    /// lost, or in part, as the plan says.
    pub(super) fn lose_power(&mut self, chaos: &mut Chaos<'_>) {
        let style = if chaos.rolls(FaultKind::ReorderedWrite) {
            Style::Subset
        } else if chaos.rolls(FaultKind::LostUnsyncedWrite) {
            let oldest = self.oldest_unsynced().unwrap_or(self.seq + 1);
            let span = self.seq + 1 - oldest;
            // The last writes are what a crash endangers most: half of the time only they.
            let span = if chaos.rng.coin() { span.min(16) } else { span };
            Style::Prefix(self.seq + 1 - chaos.rng.below(span + 1))
        } else {
            Style::Keep
        };
        let rules = CrashRules { style, tear: chaos.rolls(FaultKind::TornWrite), sector: self.config.sector };
        let mut losses = Losses::default();
        for inode in self.inodes.values_mut() {
            if let Node::File(content) = &mut inode.node {
                content.crash(rules, chaos.rng, &mut losses);
            }
        }
        let happened = [
            (losses.reordered(), FaultKind::ReorderedWrite),
            (losses.any(), FaultKind::LostUnsyncedWrite),
            (rules.tear && losses.torn(), FaultKind::TornWrite),
        ];
        for (_, kind) in happened.into_iter().filter(|(happened, _)| *happened) {
            chaos.struck(kind);
        }
        self.crash_names(chaos);
        self.recount();
    }

    /// The process that had files open is gone; the kernel and its page cache live on.
    pub(super) fn close_all(&mut self) {
        let numbers: Vec<u64> = self.inodes.keys().copied().collect();
        for number in numbers {
            let inode = self.inode_mut(number);
            (inode.opens, inode.locked_by) = (0, None);
            self.settle(number);
        }
    }

    fn oldest_unsynced(&self) -> Option<u64> {
        let oldest = |inode: &Inode| match &inode.node {
            Node::File(content) => content.oldest_unsynced(),
            Node::Dir { .. } => None,
        };
        self.inodes.values().filter_map(oldest).min()
    }

    fn recount(&mut self) {
        let allocated = |inode: &Inode| match &inode.node {
            Node::File(content) => content.allocated(),
            Node::Dir { .. } => 0,
        };
        self.used_pages = self.inodes.values().map(allocated).sum();
    }
}

#[cfg(test)]
mod tests;
