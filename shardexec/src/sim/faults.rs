//! What can go wrong, how likely it is, and how often it did.

use std::time::Duration;

use super::random::Rng;
use super::trace::{Trace, What};

macro_rules! fault_kinds {
    ($($(#[$doc:meta])+ $kind:ident = $name:literal;)+) => {
        /// A way in which the simulated world misbehaves.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FaultKind {
            $($(#[$doc])+ $kind,)+
        }

        impl FaultKind {
            /// How many kinds there are.
            pub const COUNT: usize = [$(FaultKind::$kind),+].len();

            /// Every kind.
            pub const ALL: [FaultKind; FaultKind::COUNT] = [$(FaultKind::$kind),+];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(FaultKind::$kind => $name,)+
                }
            }
        }
    };
}

fault_kinds! {
    /// Loss of power: data that was not synced is lost, from some write on. Rolled at each loss of power.
    LostUnsyncedWrite = "lost_unsynced_write";
    /// Loss of power: a write that was not synced is there in part. Rolled at each loss of power.
    TornWrite = "torn_write";
    /// Loss of power: of the data that was not synced, an arbitrary subset is there. Rolled at each loss of power.
    ReorderedWrite = "reordered_write";
    /// Loss of power: changes of directories that were not synced are lost. Rolled at each loss of power.
    LostDirOp = "lost_dir_op";
    /// A write is acknowledged and lands elsewhere. Rolled at each write.
    MisdirectedWrite = "misdirected_write";
    /// A write is acknowledged and never happens: later reads are stale. Rolled at each write.
    LostWrite = "lost_write";
    /// A sync, or a write to a file that is synced by each write, is acknowledged, and the data goes with the next loss of power. Rolled at each.
    LyingSync = "lying_sync";
    /// A read returns what a page held before its last change. Rolled at each read.
    StaleRead = "stale_read";
    /// A bit of a page that was durable flips. Rolled at each write.
    BitFlip = "bit_flip";
    /// A read fails with EIO.
    ReadError = "read_error";
    /// A write fails with EIO; any of it may have happened.
    WriteError = "write_error";
    /// A sync fails with EIO, and what it did not write counts as clean from then on: the next one succeeds, as on Linux.
    SyncError = "sync_error";
    /// A write takes only a part.
    ShortWrite = "short_write";
    /// A read gives only a part.
    ShortRead = "short_read";
    /// An op that needs space fails with ENOSPC.
    DiskFull = "disk_full";
    /// A disk op takes up to half a second.
    DiskStall = "disk_stall";
    /// A segment takes much longer than usual. Rolled at each segment.
    NetDelay = "net_delay";
    /// A segment is lost and sent again after a retransmission timeout. Rolled at each segment.
    NetDrop = "net_drop";
    /// A segment is overtaken by those after it, which wait for it at the receiver. Rolled at each segment.
    NetReorder = "net_reorder";
    /// A segment arrives, but its sender sees the connection reset: whoever sends again elsewhere does so twice. Rolled at each segment.
    NetDuplicate = "net_duplicate";
    /// A connection is reset on both sides, after part of a segment. Rolled at each segment.
    NetReset = "net_reset";
    /// For a while nothing gets from one node to another, while the way back works. Rolled at each tick.
    PartitionOneWay = "partition_one_way";
    /// For a while nothing gets through between some nodes and the others. Rolled at each tick.
    PartitionTwoWay = "partition_two_way";
    /// A node loses power. Rolled at each step.
    PowerLoss = "power_loss";
    /// A node's process is killed; its files stay as they are, torn ops apart. Rolled at each step.
    ProcessKill = "process_kill";
    /// A node's process is stopped for a while, and goes on as if nothing had happened. Rolled at each tick.
    ProcessPause = "process_pause";
    /// A node's wall clock jumps by up to 500 ms, either way. Rolled at each tick.
    ClockJump = "clock_jump";
    /// A node's wall clock jumps by 10 min, either way. Rolled at each tick.
    ClockLeap = "clock_leap";
}

/// How often tick faults are rolled.
pub const TICK: Duration = Duration::from_millis(50);

/// The likelihood of each kind of fault, in millionths per opportunity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    ppm: [u32; FaultKind::COUNT],
    /// At most so many nodes are struck down by the plan at once; more wait for their turn. A majority is usually spared.
    pub(super) nodes_down_max: usize,
    /// How long partitions and pauses of the plan last at most.
    pub(super) outage_max: Duration,
}

impl Default for FaultPlan {
    fn default() -> FaultPlan {
        FaultPlan::none()
    }
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub const fn none() -> FaultPlan {
        FaultPlan { ppm: [0; FaultKind::COUNT], nodes_down_max: 1, outage_max: Duration::from_secs(3) }
    }

    /// What an engine that keeps its promises survives on every node at once: honest disks that lose what was not synced, a
    /// hostile network, crashes, pauses and clocks that jump. No disk error, short writes among them, and no corruption: those are
    /// final for a log, and concern one node at a time.
    pub const fn honest() -> FaultPlan {
        use FaultKind as F;
        FaultPlan::none()
            .with(F::LostUnsyncedWrite, 700_000)
            .with(F::TornWrite, 500_000)
            .with(F::ReorderedWrite, 500_000)
            .with(F::LostDirOp, 700_000)
            .with(F::ShortRead, 2_000)
            .with(F::DiskStall, 500)
            .with(F::NetDelay, 5_000)
            .with(F::NetDrop, 2_000)
            .with(F::NetReorder, 2_000)
            .with(F::NetDuplicate, 500)
            .with(F::NetReset, 500)
            .with(F::PartitionOneWay, 3_000)
            .with(F::PartitionTwoWay, 3_000)
            .with(F::PowerLoss, 60)
            .with(F::ProcessKill, 60)
            .with(F::ProcessPause, 3_000)
            .with(F::ClockJump, 3_000)
            .with(F::ClockLeap, 500)
    }

    /// The same plan with `kind` at `ppm` millionths.
    #[must_use]
    pub const fn with(mut self, kind: FaultKind, ppm: u32) -> FaultPlan {
        assert!(ppm <= 1_000_000, "a likelihood is at most a million millionths");
        self.ppm[kind as usize] = ppm;
        self
    }

    /// The same plan, striking down at most `nodes` nodes at once.
    #[must_use]
    pub const fn nodes_down_max(mut self, nodes: usize) -> FaultPlan {
        self.nodes_down_max = nodes;
        self
    }

    /// The same plan with partitions and pauses of at most `outage`.
    #[must_use]
    pub const fn outage_max(mut self, outage: Duration) -> FaultPlan {
        self.outage_max = outage;
        self
    }

    /// Millionths for `kind`.
    pub const fn ppm(&self, kind: FaultKind) -> u32 {
        self.ppm[kind as usize]
    }

    /// Whether any of `kinds` can happen.
    pub(super) fn any(&self, kinds: &[FaultKind]) -> bool {
        kinds.iter().any(|&kind| self.ppm(kind) > 0)
    }
}

/// How often each kind of fault struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; FaultKind::COUNT]);

impl Default for FaultCounts {
    fn default() -> FaultCounts {
        FaultCounts([0; FaultKind::COUNT])
    }
}

impl FaultCounts {
    /// How often `kind` struck.
    pub const fn of(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }

    /// Faults of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Kinds and counts, in the order of [`FaultKind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64)> {
        FaultKind::ALL.into_iter().map(|kind| (kind, self.of(kind)))
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &FaultCounts) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    pub(super) fn count(&mut self, kind: FaultKind) {
        self.0[kind as usize] += 1;
    }
}

/// What decides whether something goes wrong right now, and takes note of it.
pub(super) struct Chaos<'a> {
    pub now: u64,
    /// Of the node that it happens on, for the trace.
    pub place: u64,
    pub rng: &'a mut Rng,
    pub plan: &'a FaultPlan,
    pub counts: &'a mut FaultCounts,
    pub trace: &'a mut Trace,
}

impl Chaos<'_> {
    /// Rolls for `kind`, and books it when it strikes.
    pub fn strikes(&mut self, kind: FaultKind) -> bool {
        let strikes = self.rng.chance(self.plan.ppm(kind));
        if strikes {
            self.struck(kind);
        }
        strikes
    }

    /// Rolls for `kind`; the caller says by [`Chaos::struck`] whether it had any effect.
    pub fn rolls(&mut self, kind: FaultKind) -> bool {
        self.rng.chance(self.plan.ppm(kind))
    }

    /// Books a fault.
    pub fn struck(&mut self, kind: FaultKind) {
        self.counts.count(kind);
        self.trace.event(self.now, self.place, What::Fault, [kind as u64, 0]);
        self.trace.line(self.now, format_args!("n{} fault {}", self.place, kind.name()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_of_their_own_and_plans_keep_them_apart() {
        let names: std::collections::BTreeSet<_> = FaultKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), FaultKind::COUNT);
        let plan = FaultPlan::none().with(FaultKind::BitFlip, 7);
        for kind in FaultKind::ALL {
            assert_eq!(plan.ppm(kind), if kind == FaultKind::BitFlip { 7 } else { 0 });
        }
        assert!(plan.any(&[FaultKind::TornWrite, FaultKind::BitFlip]) && !plan.any(&[FaultKind::TornWrite]));
    }

    #[test]
    fn counts_add_up() {
        let mut counts = FaultCounts::default();
        counts.count(FaultKind::NetDrop);
        let mut sum = counts.clone();
        sum.add(&counts);
        assert_eq!((sum.of(FaultKind::NetDrop), sum.total()), (2, 2));
        assert_eq!(sum.iter().filter(|&(_, count)| count > 0).count(), 1);
    }
}
