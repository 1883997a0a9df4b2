//! What must hold before consensus may start on a log, and how a replica gets its state back.
//!
//! ```text
//!  log summary + state's applied position ──> check ──> refused: quarantined, openraft never sees the log
//!                                               │
//!                                               └──> replay what is known committed ──> openraft ──> elect ──> ready
//! ```
//!
//! openraft itself would "clean the hole" when the state is ahead of the log: purge, forget and vote. That replica has lost
//! entries that it acknowledged, so its vote could undo a commit. The check below is what keeps it out.

use super::errors::StopReason;
use super::group::NOBODY;
use super::log_store::unreadable;
use super::state_machine::{APPLY_BATCH_BYTES_MAX, APPLY_BATCH_MAX, Applier, ApplyError, command_bytes};
use super::tokens::TokenStamper;
use super::types::{Entry, ReplicaId, TypeConfig};
use gristmill_shardexec as shardexec;
use gristmill_shardexec::time::Instant;
use gristmill_wal::{LogPosition, Promise, Vote, WalError};
use openraft::storage::{RaftLogReader, RaftLogStorage};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// A log that a group can run on.
pub(crate) trait GroupLog:
    RaftLogStorage<TypeConfig, LogReader = Self> + RaftLogReader<TypeConfig> + Clone
{
    /// What the log durably knows, before anyone votes with it.
    fn summary(&self) -> LogSummary;
    /// Issues this replica's tokens.
    fn stamper(&self) -> Rc<TokenStamper>;
    /// Memory for entries up to `index` is no longer needed.
    fn release(&self, index: u64);
    /// Bytes of the largest command, header included, that the log takes.
    fn entry_bytes_max(&self) -> usize;
    /// Promises room for entries whose commands take `bytes`, headers included, unless the log's disk is full or it has failed.
    fn promise(&self, entries: usize, bytes: usize) -> Result<Option<Promise>, WalError>;
    /// Why the log takes nothing for good, if that is so.
    fn failure(&self) -> Option<WalError>;
    /// The group stops: an append that waits for space fails instead.
    fn stop_waiting(&self);
    /// The last entry that is durable, as far as was told.
    fn flushed(&self) -> Option<LogPosition>;
}

/// What a log durably knows of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSummary {
    /// Entries up to here are gone for good: the state holds them.
    pub purged: Option<LogPosition>,
    /// The last entry, or the last purged one when there is no other.
    pub last: Option<LogPosition>,
    /// The highest position that was recorded as committed.
    pub committed: Option<LogPosition>,
    /// The replica's last vote, if it ever voted.
    pub vote: Option<Vote>,
}

/// Why a replica must not take part in consensus. It serves nothing until an operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Quarantine {
    /// The state holds entries that the log lost.
    #[error(
        "the log ends at {last:?} but the state is at {applied}: acknowledged entries were lost; \
         the replica is quarantined, restore it from a peer or a backup"
    )]
    LogBehindState {
        /// The last entry in the log.
        last: Option<LogPosition>,
        /// The last entry in the state.
        applied: LogPosition,
    },
    /// The log says itself that entries were committed which it does not hold.
    #[error(
        "the log ends at {last:?} but {committed} was recorded as committed: acknowledged entries were lost; \
         the replica is quarantined, restore it from a peer or a backup"
    )]
    LogBehindCommit {
        /// The last entry in the log.
        last: Option<LogPosition>,
        /// The highest position recorded as committed.
        committed: LogPosition,
    },
    /// Entries between the state and the log's first entry are gone.
    #[error(
        "the state is at {applied:?} but the log starts after {purged}: the entries between them are gone; \
         the replica is quarantined, restore it from a peer or a backup"
    )]
    StateBehindLog {
        /// The last entry in the state.
        applied: Option<LogPosition>,
        /// The last entry that was purged.
        purged: LogPosition,
    },
}

/// Decides whether consensus may start: the log must hold everything that state and log are known to have held.
pub fn check_start(log: &LogSummary, applied: Option<LogPosition>) -> Result<(), Quarantine> {
    if let Some(applied) = applied
        && log.last < Some(applied)
    {
        return Err(Quarantine::LogBehindState { last: log.last, applied });
    }
    if let Some(committed) = log.committed
        && log.last < Some(committed)
    {
        return Err(Quarantine::LogBehindCommit { last: log.last, committed });
    }
    if let Some(purged) = log.purged
        && applied < Some(purged)
    {
        return Err(Quarantine::StateBehindLog { applied, purged });
    }
    Ok(())
}

/// Keeps a restarted replica of a group with several voters quiet for as long as a lease that it may have granted.
///
/// It neither campaigns nor answers votes meanwhile (`life`, `group_peers`). openraft forgets granted leases in a restart: a
/// follower killed and back within the lease could elect a rival while the old leader still serves reads alone. An only
/// voter whose last vote is its own has granted nobody a lease, hence nothing to wait for. The clock is BOOTTIME, so that a
/// suspended machine does not stretch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartGuard {
    until: Option<Instant>,
}

impl RestartGuard {
    /// `sole`: replica `own` is the only voter by its own log. `vote` is its last one. `now` and all later readings are BOOTTIME.
    ///
    /// A replica that is no voter by its own log keeps quiet as well: it may be one by the leader's. So does an only voter
    /// that voted for another: what made it the only one may not be committed.
    pub fn new(sole: bool, own: ReplicaId, vote: Option<Vote>, now: Instant, hold: Duration) -> RestartGuard {
        // A leader that moves to a new term votes for nobody.
        let for_itself =
            |vote: &Vote| vote.node == NOBODY.node || (vote.node, vote.incarnation) == (own.node, own.incarnation);
        RestartGuard { until: vote.filter(|vote| !(sole && for_itself(vote))).map(|_| now + hold) }
    }

    /// Whether the replica may stand for election and answer votes and pre-votes.
    pub fn may_vote(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// Returns once [`RestartGuard::may_vote`] holds.
    pub(crate) async fn wait(&self) {
        let Some(until) = self.until else { return };
        loop {
            let now = Instant::boottime_now();
            if self.may_vote(now) {
                return;
            }
            shardexec::time::sleep(until.saturating_duration_since(now)).await;
        }
    }
}

/// Replay failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("log entry {index} cannot be read, although the log reaches to {upto}; the log is damaged")]
    Missing { index: u64, upto: u64 },
}

impl ReplayError {
    /// What it means to the replica.
    pub(crate) fn stop_reason(&self) -> StopReason {
        match self {
            ReplayError::Read(error) => unreadable(error),
            ReplayError::Apply(_) => StopReason::Failed(self.to_string().into()),
            ReplayError::Missing { .. } => StopReason::Damaged(self.to_string().into()),
        }
    }
}

/// Applies the entries up to `committed` to the state, in large batches, giving way to other tasks between them.
///
/// openraft would do the same 64 entries at a time and without a break.
pub(crate) async fn replay<L: GroupLog>(
    log: &mut L,
    applier: &Applier,
    committed: Option<LogPosition>,
) -> Result<(), ReplayError> {
    let Some(committed) = committed else { return Ok(()) };
    let end = committed.index + 1;
    let mut next = applier.progress().applied().map_or(0, |applied| applied.index + 1);
    while next < end {
        let entries: Vec<Entry> = log.limited_get_log_entries(next, end).await?;
        if entries.first().is_none_or(|first| first.log_id.index != next) {
            return Err(ReplayError::Missing { index: next, upto: committed.index });
        }
        for batch in batches(&entries) {
            applier.admit().await;
            applier.apply_batch(batch)?;
            shardexec::yield_if_spent().await;
        }
        next += entries.len() as u64;
        assert!(next <= end, "a read returns no more than was asked for");
    }
    Ok(())
}

/// Entries in the batches that a state machine takes.
fn batches(mut entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += command_bytes(entry);
            bytes <= APPLY_BATCH_BYTES_MAX
        };
        let count = entries.iter().take(APPLY_BATCH_MAX).take_while(fits).count().max(1);
        let (batch, rest) = entries.split_at_checked(count)?;
        entries = rest;
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { term, index }
    }

    #[test]
    fn a_log_that_covers_state_and_commits_may_start() {
        let log = LogSummary { last: Some(at(2, 9)), committed: Some(at(2, 9)), ..LogSummary::default() };
        assert_eq!(check_start(&log, Some(at(2, 7))), Ok(()));
        assert_eq!(check_start(&LogSummary::default(), None), Ok(()));
        let log = LogSummary { purged: Some(at(2, 9)), last: Some(at(2, 9)), ..LogSummary::default() };
        assert_eq!(check_start(&log, Some(at(2, 9))), Ok(()));
    }

    #[test]
    fn a_log_that_lost_entries_is_quarantined() {
        let (last, applied) = (Some(at(2, 6)), at(2, 7));
        let log = LogSummary { last, ..LogSummary::default() };
        assert_eq!(check_start(&log, Some(applied)), Err(Quarantine::LogBehindState { last, applied }));
        let empty = LogSummary::default();
        assert_eq!(check_start(&empty, Some(applied)), Err(Quarantine::LogBehindState { last: None, applied }));

        let committed = at(2, 8);
        let log = LogSummary { last, committed: Some(committed), ..LogSummary::default() };
        assert_eq!(check_start(&log, None), Err(Quarantine::LogBehindCommit { last, committed }));
    }

    #[test]
    fn the_same_index_of_an_older_term_is_another_entry() {
        let (last, applied) = (Some(at(2, 7)), at(3, 7));
        let log = LogSummary { last, ..LogSummary::default() };
        assert_eq!(check_start(&log, Some(applied)), Err(Quarantine::LogBehindState { last, applied }));
    }

    #[test]
    fn a_state_that_the_log_can_no_longer_feed_is_quarantined() {
        let purged = at(2, 6);
        let log = LogSummary { purged: Some(purged), last: Some(at(2, 9)), ..LogSummary::default() };
        assert_eq!(check_start(&log, None), Err(Quarantine::StateBehindLog { applied: None, purged }));
        let applied = Some(at(2, 5));
        assert_eq!(check_start(&log, applied), Err(Quarantine::StateBehindLog { applied, purged }));
    }

    #[test]
    fn only_a_restarted_replica_with_peers_holds_still() {
        let start = Instant::from_ns(1_000_000_000);
        let hold = Duration::from_millis(165);
        let own = ReplicaId { node: 3, incarnation: 2 };
        let vote = |node| Some(Vote { term: 5, node, incarnation: 2, committed: true });
        let guard = RestartGuard::new(false, own, vote(3), start, hold);
        assert!(!guard.may_vote(start));
        assert!(!guard.may_vote(start + hold - Duration::from_nanos(1)));
        assert!(guard.may_vote(start + hold));
        assert!(RestartGuard::new(true, own, vote(3), start, hold).may_vote(start), "no lease without peers");
        assert!(RestartGuard::new(true, own, vote(NOBODY.node), start, hold).may_vote(start), "it was changing terms");
        assert!(RestartGuard::new(false, own, None, start, hold).may_vote(start), "it never granted one");
        let granted = RestartGuard::new(true, own, vote(1), start, hold);
        assert!(!granted.may_vote(start), "another leads by its vote, whatever its log says");
        let earlier_life = Some(Vote { incarnation: 1, ..vote(3).unwrap() });
        assert!(!RestartGuard::new(true, own, earlier_life, start, hold).may_vote(start), "that was another replica");
    }
}
