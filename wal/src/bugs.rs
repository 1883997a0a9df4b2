//! Known bugs, for the simulator to find: what shows that its checkers have power.
//!
//! Each stands for a mistake that logs have really been shipped with. The feature `bugs` lets a log have exactly one of them, chosen when it
//! is opened by [`WalOptions::bug`](crate::WalOptions). Without the feature `Bugs` has no size, `has` is false at compile time, and nothing of
//! this is left in the program. Nothing enables the feature by default, and `gristmill --version` tells where it is on.

/// A bug of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An append is acknowledged when it is queued. A crash before its write takes away what a client was told is safe.
    AcknowledgedBeforeWrite,
    /// Batches are written without O_DSYNC and without a sync: they stay in the page cache or the device's cache, which a power cut empties.
    NothingSynced,
    /// A sync that failed is tried again. After the first error the kernel counts the lost pages as clean, so the second try succeeds
    /// and proves nothing (the "fsyncgate" of 2018).
    SyncTriedAgain,
    /// A write that ended short is taken for whole: the end of the batch is not on the disk, and it is acknowledged all the same.
    ShortWriteTaken,
    /// The directory is not synced after a segment got its name: after a power cut a file full of acknowledged records is not found any more.
    DirectoryNotSynced,
    /// CRCs of payloads and batches are not compared: a flipped bit becomes part of the state.
    ChecksumsSkipped,
    /// Damage is judged by what follows it and not by proof of acknowledgement. With valid records behind it, it counts as corruption,
    /// so blocks of a crash that reached the disk out of order stop the node; with none, as a torn tail, so an acknowledged one is cut.
    JudgedByWhatFollows,
    /// A trailer names as durable what is still in flight before it. After a crash that loses only that, the log is taken for corrupt.
    ProofAhead,
    /// The end of a batch's write acknowledges those before it too, which may still be in flight, and fail.
    AcknowledgedOutOfOrder,
    /// Recovery takes the newest segment for the one that is prepared ahead, and does not read it. Right after the log has moved on to it that
    /// cuts acknowledged records.
    NewestSegmentSkipped,
    /// A truncation changes the memory only: after a restart the entries that another leader has replaced are back.
    TruncationNotLogged,
    /// A log that is damaged below what is proven acknowledged is cut there like a torn tail, instead of being refused. The replica has lost
    /// what it promised to keep, and goes on voting (the "hole" that is purged after a lost log).
    CorruptionCut,
}

#[cfg(feature = "bugs")]
impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 12] = [
        Bug::AcknowledgedBeforeWrite,
        Bug::NothingSynced,
        Bug::SyncTriedAgain,
        Bug::ShortWriteTaken,
        Bug::DirectoryNotSynced,
        Bug::ChecksumsSkipped,
        Bug::JudgedByWhatFollows,
        Bug::ProofAhead,
        Bug::AcknowledgedOutOfOrder,
        Bug::NewestSegmentSkipped,
        Bug::TruncationNotLogged,
        Bug::CorruptionCut,
    ];
}

/// The bug that a log has, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bugs {
    #[cfg(feature = "bugs")]
    pub active: Option<Bug>,
}

impl Bugs {
    /// Whether the log has `bug`.
    #[cfg(feature = "bugs")]
    pub fn has(self, bug: Bug) -> bool {
        self.active == Some(bug)
    }

    /// Whether the log has a bug: it has none.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self, reason = "the same call as with the feature")]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
