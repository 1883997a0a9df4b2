//! Known bugs above the log, for the simulator to find: what shows that its checkers have power.
//!
//! Each stands for a mistake that replicated stores have really been shipped with. The feature `bugs` lets a node have exactly one of them, chosen
//! by [`NodeConfig::bug`](crate::server::NodeConfig); those of the log are in `gristmill_wal::bugs`. Without the feature `Bugs` has no size,
//! `has` is false at compile time, and nothing of this is left in the program. Nothing enables the feature by default, and
//! `gristmill --version` tells where it is on.

/// A bug of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A vote is answered while its write is under way: a crash takes it back, and the replica votes a second time in that term.
    VoteNotAwaited,
    /// A vote is kept in memory only.
    VoteNotSaved,
    /// A voter grants every vote that it is asked for: one term has several leaders.
    VoteGrantedToAll,
    /// A restarted leader resumes its term. Entries are replicated before they are durable at the leader, so the same (term, index) may get
    /// other content.
    LeaderRestored,
    /// A restarted voter does not keep quiet for a lease. It elects a rival while the old leader still reads by the lease that it granted.
    LeaseForgotten,
    /// A leader reads without looking at its lease: one that was deposed and does not know answers from the past.
    LeaseUnchecked,
    /// Reads are served before the log is replayed.
    ReadBeforeReplay,
    /// A retry with the same session and sequence applies again.
    RetryAppliedAgain,
    /// A command whose precondition fails keeps the effects of the operations before it.
    BatchAppliedInPart,
    /// Apply takes the time from the local clock and not from the entry: replicas, and replays, come to different states.
    LocalTimeInApply,
    /// A write that was in flight when its replica stopped is answered as refused. It is in the log, and may apply after the restart.
    InDoubtToldRefused,
}

#[cfg(feature = "bugs")]
impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 11] = [
        Bug::VoteNotAwaited,
        Bug::VoteNotSaved,
        Bug::VoteGrantedToAll,
        Bug::LeaderRestored,
        Bug::LeaseForgotten,
        Bug::LeaseUnchecked,
        Bug::ReadBeforeReplay,
        Bug::RetryAppliedAgain,
        Bug::BatchAppliedInPart,
        Bug::LocalTimeInApply,
        Bug::InDoubtToldRefused,
    ];
}

/// The bug that a node has, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bugs {
    #[cfg(feature = "bugs")]
    pub active: Option<Bug>,
}

impl Bugs {
    /// Whether the node has `bug`.
    #[cfg(feature = "bugs")]
    pub fn has(self, bug: Bug) -> bool {
        self.active == Some(bug)
    }

    /// Whether the node has a bug: it has none.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self, reason = "the same call as with the feature")]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
