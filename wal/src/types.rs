//! The log's nouns.

use std::fmt;

/// Number of a log within its data directory: the directory is `log-NNN`. Fixed when the data directory is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogNumber(pub u16);

/// One consensus group (a shard's replica) that shares the log with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// Number of a record, dense from 1 over the log's whole life. 0 stands for "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The record after this one.
    #[must_use]
    pub const fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

/// Number of a segment. Never reused: a recycled file gets a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

/// Random name of a log, drawn at its creation and repeated in every segment, so that a file of another log is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub [u8; 16]);

/// Place of an entry in its group's Raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Raft log index.
    pub index: u64,
}

/// What a replica promised in its latest term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vote {
    /// Term.
    pub term: u64,
    /// Node that it voted for.
    pub node: u64,
    /// Incarnation of that node's replica.
    pub incarnation: u64,
    /// A quorum granted the vote: the node is leader of the term.
    pub committed: bool,
}

/// Last truncation of a group's log: the position that remained as the last one, if any did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TruncatedAfter(pub Option<LogPosition>);

/// Whether a group lives in this log. Of two logs that know a group, the higher epoch wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Home {
    /// Counts the group's moves between logs.
    pub epoch: u64,
    /// It moved away at this epoch: its entries here are void.
    pub retired: bool,
}

macro_rules! display {
    ($($type:ty => $format:literal),*) => { $(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    )* };
}
display!(LogNumber => "log {:03}", GroupId => "group {}", Lsn => "LSN {}", SegmentId => "segment {}");

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} index {}", self.term, self.index)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
