//! What can go wrong, each with what happened, to what, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::format::{REVISION, Revision, SegmentHeaderFault};
use crate::scan::Damage;
use crate::token::{FencingToken, TokenError};
use crate::types::{GroupId, LogId, LogPosition, SegmentId, Vote};

/// An operation on a log failed. Cheap to clone: one failure is told to everybody who waits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The writer's term is older than the group's durable vote: it was deposed.
    #[error("{group}: a writer of term {got_term} was refused, the durable vote is of term {have_term}: it was deposed",
        got_term = got.term(), have_term = have.term())]
    StaleToken {
        /// Group written to.
        group: GroupId,
        /// First token of the durable vote's term.
        have: FencingToken,
        /// First token of the writer's term.
        got: FencingToken,
    },
    /// A vote would take back an earlier one.
    #[error("{group}: vote {got:?} cannot follow vote {have:?}: a replica never votes backwards or twice in a term")]
    VoteRegressed {
        /// Group voted in.
        group: GroupId,
        /// Saved vote.
        have: Vote,
        /// Refused vote.
        got: Vote,
    },
    /// A term or sequence is out of a token's range.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// An operation does not fit the group's log. A bug of the caller: nothing was changed.
    #[error("{group}: {rejected}")]
    Rejected {
        /// The group.
        group: GroupId,
        /// Why.
        rejected: Rejected,
    },
    /// A payload is larger than a record may be.
    #[error(
        "a payload of {bytes} bytes exceeds the log's limit of {limit} bytes: split it, or create the log with larger segments"
    )]
    TooLarge {
        /// Wanted.
        bytes: usize,
        /// Allowed.
        limit: usize,
    },
    /// The log holds as many groups, with as large memberships, as its segments can repeat.
    #[error("the log cannot take another group: it holds {groups}, and checkpoints may take {limit} bytes a segment")]
    TooManyGroups {
        /// Groups in the log.
        groups: usize,
        /// Bytes that checkpoints may take.
        limit: usize,
    },
    /// More bytes wait for the disk than the log may buffer. Retry when some have become durable.
    #[error("{pending} bytes wait for the disk, the limit is {limit}: slow down and retry")]
    Backlog {
        /// Bytes waiting.
        pending: usize,
        /// The most that may wait.
        limit: usize,
    },
    /// No room for another segment. Reads go on; writes are taken again once a segment could be prepared.
    #[error("disk full: cannot prepare a log segment of {segment_bytes} bytes in {dir}: free space; the log resumes by itself", dir = dir.display())]
    DiskFull {
        /// The log's directory.
        dir: PathBuf,
        /// Bytes needed.
        segment_bytes: u64,
    },
    /// The process or the system ran out of something, such as open files or memory, while a segment was prepared. As with a full disk.
    #[error("cannot prepare a log segment: {0}. {cure}; the log resumes by itself", cure = .0.shortage())]
    Exhausted(Box<IoFailure>),
    /// Acknowledged records are damaged.
    #[error("{path}: {damage}. The file was left as it is; restore it from a copy, or let the other replicas rebuild this one", path = path.display())]
    Corrupt {
        /// Damaged file.
        path: PathBuf,
        /// What and where.
        damage: Box<Damage>,
    },
    /// A segment that is needed is not there.
    #[error("{dir}: {segment} is missing and still needed: restore it from a copy, or let the other replicas rebuild this one", dir = dir.display())]
    MissingSegment {
        /// The log's directory.
        dir: PathBuf,
        /// The segment.
        segment: SegmentId,
    },
    /// A file in the log's directory does not belong there.
    #[error("{path}: {reason}. Move it out of the log's directory; nothing was changed", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that shows.
        reason: Foreign,
    },
    /// A segment of a newer format revision.
    #[error("{path}: a log segment of revision {found}, and this build reads up to {REVISION}. Run the version of gristmill that wrote it, or a newer one; nothing was changed", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: Revision,
    },
    /// An option makes no sense.
    #[error("log option {option}: {reason}")]
    Options {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading, listing or preparing failed; the log goes on.
    #[error("{0}")]
    Io(Box<IoFailure>),
    /// A write or sync failed, or a write ended short. That is final: nothing more is written or acknowledged, because what reached the
    /// disk is unknown.
    #[error("the log stopped: {0}. {cure}; unacknowledged writes may or may not be there", cure = .0.cure())]
    Failed(Box<IoFailure>),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    pub(crate) fn io(operation: &'static str, path: &Path, error: &io::Error) -> WalError {
        WalError::Io(Box::new(IoFailure::new(operation, path, error)))
    }

    /// A refusal, with the group that it is about.
    pub(crate) fn rejected(group: GroupId, rejected: Rejected) -> WalError {
        match rejected {
            Rejected::VoteFell { have, got } => WalError::VoteRegressed { group, have, got },
            rejected => WalError::Rejected { group, rejected },
        }
    }

    /// Whether the same call can succeed later without anybody's help.
    pub fn is_retriable(&self) -> bool {
        matches!(self, WalError::Backlog { .. } | WalError::DiskFull { .. } | WalError::Exhausted(_))
    }
}

/// Why an operation does not fit a group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// An entry does not follow the last one.
    #[error("an entry at {got} cannot follow: index {expected} comes next")]
    NotContiguous {
        /// Index that comes next.
        expected: u64,
        /// Entry's position.
        got: LogPosition,
    },
    /// Entries' terms never fall.
    #[error("an entry at {got} cannot follow an entry of term {have}")]
    TermFell {
        /// Term of the last entry.
        have: u64,
        /// Entry's position.
        got: LogPosition,
    },
    /// Along a log the origin tokens never fall.
    #[error("an entry with token {got} cannot follow one with token {have}")]
    TokenFell {
        /// Token of the last entry.
        have: FencingToken,
        /// Entry's token.
        got: FencingToken,
    },
    /// An entry's token is of another term than its position.
    #[error("an entry at {position} carries a token of term {term}", term = token.term())]
    TokenTerm {
        /// Entry's position.
        position: LogPosition,
        /// Its token.
        token: FencingToken,
    },
    /// A vote would take back an earlier one.
    #[error("vote {got:?} follows vote {have:?}")]
    VoteFell {
        /// Earlier vote.
        have: Vote,
        /// Later vote.
        got: Vote,
    },
    /// The log has another term at that index.
    #[error("the log holds term {have} at the index of {got}")]
    OtherTerm {
        /// Term in the log.
        have: u64,
        /// Position named.
        got: LogPosition,
    },
    /// Purged entries cannot come back.
    #[error("cannot truncate after {after:?}: entries through {purged} are purged")]
    TruncatesPurged {
        /// Truncation asked for.
        after: Option<LogPosition>,
        /// Purged through here.
        purged: LogPosition,
    },
    /// The group left this log.
    #[error("the group moved to another log at epoch {epoch}")]
    Retired {
        /// Epoch of the move.
        epoch: u64,
    },
    /// A move's epoch is not above the latest.
    #[error("epoch {got} is not above epoch {have}")]
    EpochFell {
        /// Latest epoch.
        have: u64,
        /// Epoch of the move.
        got: u64,
    },
    /// A checkpoint contradicts the records before it.
    #[error("a checkpoint disagrees with the records before it about `{0}`")]
    Checkpoint(&'static str),
}

/// How a file shows that it is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Neither a segment's nor a spare's name.
    #[error("this name is no log segment's")]
    Name,
    /// Right name, wrong content.
    #[error("not a segment of this log: {0}")]
    Header(SegmentHeaderFault),
    /// A revision that an older build wrote.
    #[error("a log segment of revision {0}, which this build does not read")]
    Revision(Revision),
    /// A segment of another log.
    #[error("a segment of the log {found}, among segments of the log {expected}")]
    OtherLog {
        /// In the file.
        found: LogId,
        /// In the others.
        expected: LogId,
    },
    /// A segment with another number or size than the log has.
    #[error("its header says {field} {found}, expected {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// In the file.
        found: u64,
        /// Of the log.
        expected: u64,
    },
}

/// An I/O error in a form that can be cloned and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoFailure {
    /// What was tried, e.g. `write`.
    pub operation: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// Kind of the error.
    pub kind: io::ErrorKind,
    /// The operating system's code, if it is one.
    pub os_error: Option<i32>,
    /// The error's text.
    pub message: String,
}

impl IoFailure {
    pub(crate) fn new(operation: &'static str, path: &Path, error: &io::Error) -> IoFailure {
        IoFailure {
            operation,
            path: path.to_owned(),
            kind: error.kind(),
            os_error: error.raw_os_error(),
            message: error.to_string(),
        }
    }
}

/// Whether an error of this kind says that there is no room: on the device (ENOSPC) or in somebody's share of it (EDQUOT).
pub(crate) fn tells_of_full_disk(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error of opening, allocating or renaming a file, which nothing was written by, passes when others give something back.
pub(crate) fn tells_of_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EINTR | EAGAIN | ENOMEM | ENFILE | EMFILE))
}

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

impl IoFailure {
    /// Whether the system said that there is no room. A short write says nothing: it may have been that, or the device.
    pub fn is_disk_full(&self) -> bool {
        tells_of_full_disk(self.kind)
    }

    /// Whether the system took a part of a write.
    pub fn is_short_write(&self) -> bool {
        self.kind == io::ErrorKind::WriteZero
    }

    /// Whether it can only have come from opening a file, because there are too many open ones already.
    pub(crate) fn is_too_many_files(&self) -> bool {
        matches!(self.os_error, Some(EMFILE | ENFILE))
    }

    /// What to do against a shortage that is not one of space.
    fn shortage(&self) -> &'static str {
        if self.is_too_many_files() { "Raise the limit of open files, or close some" } else { "Free memory" }
    }

    /// What to do about it once the log has stopped.
    fn cure(&self) -> &'static str {
        if self.is_disk_full() {
            "The disk is full: free space, then restart the node"
        } else if self.is_short_write() {
            "See that the disk is sound and has space, then restart the node"
        } else {
            "Restart the node once the disk is sound"
        }
    }
}

impl From<IoFailure> for WalError {
    /// Of something that is not final.
    fn from(failure: IoFailure) -> WalError {
        WalError::Io(Box::new(failure))
    }
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.operation, self.path.display(), self.message)
    }
}
