//! What the logs on the disks must agree on.
//!
//! - **Log matching**: two logs that hold an entry of the same index and term hold the same entry, and the same before it.
//! - **Leader completeness**: what is committed stands in the log of every later leader, and so in every log that a later leader has
//!   written to.
//! - **Fencing**: along a log neither terms nor tokens go back, and a token's term is its entry's.

use super::Broken;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::{LogPosition, Vote};
use std::collections::BTreeMap;

/// An entry, as a log on a disk has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The term in its log id.
    pub term: u64,
    /// Its fencing token.
    pub token: u64,
    /// A digest of its payload.
    pub digest: u32,
    /// The session and sequence of a command; `None` for consensus's own entries.
    pub command: Option<(u64, u64)>,
}

/// One shard's log on one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLog {
    /// By index.
    pub entries: BTreeMap<u64, LogEntry>,
    /// Entries up to here are gone: the state held them.
    pub purged: Option<u64>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// The log proves itself that it was durable up to here.
    pub proven: Option<LogPosition>,
}

impl ShardLog {
    /// The last entry.
    pub fn last(&self) -> Option<LogPosition> {
        self.entries.last_key_value().map(|(&index, entry)| LogPosition { term: entry.term, index })
    }
}

/// What is known to be committed at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    term: u64,
    /// The term in which it was committed, or a later one.
    by: u64,
}

/// What all logs have shown so far.
#[derive(Default)]
pub struct Logs {
    /// By shard, index and term: the entry, and the term of the one before it.
    known: BTreeMap<(ShardId, u64, u64), (LogEntry, Option<u64>)>,
    committed: BTreeMap<ShardId, BTreeMap<u64, Committed>>,
    judged: u64,
}

impl Logs {
    /// Judges the log of `shard` on `node`, of which the replica there knows that it is committed up to `committed`.
    pub fn judge(
        &mut self,
        node: u16,
        shard: ShardId,
        log: &ShardLog,
        committed: Option<LogPosition>,
    ) -> Result<(), Broken> {
        self.judged += 1;
        fencing(node, shard, log)?;
        self.matching(node, shard, log)?;
        if let Some(committed) = committed {
            self.note_committed(node, shard, log, committed)?;
        }
        self.completeness(node, shard, log)
    }

    fn matching(&mut self, node: u16, shard: ShardId, log: &ShardLog) -> Result<(), Broken> {
        let mut before = None;
        for (&index, &entry) in &log.entries {
            let first = log.purged.is_some_and(|purged| purged + 1 == index);
            let key = (shard, index, entry.term);
            let (known, known_before) = *self.known.entry(key).or_insert((entry, before));
            let follows = first || known_before.is_none() || before.is_none() || known_before == before;
            if known != entry || !follows {
                let detail = format!(
                    "node {node}, shard {}, index {index}: {entry:?} after term {before:?}, elsewhere {known:?} after term {known_before:?}",
                    shard.0
                );
                return Err(Broken::new("log_matching", detail));
            }
            before = Some(entry.term);
        }
        Ok(())
    }

    fn note_committed(&mut self, node: u16, shard: ShardId, log: &ShardLog, upto: LogPosition) -> Result<(), Broken> {
        if log.entries.get(&upto.index).is_none_or(|entry| entry.term != upto.term) {
            return Ok(()); // Committed elsewhere, and not on this disk yet.
        }
        let known = self.committed.entry(shard).or_default();
        for (&index, entry) in log.entries.range(..=upto.index) {
            let now = Committed { term: entry.term, by: upto.term };
            let before = *known.entry(index).or_insert(now);
            if before.term != now.term {
                let detail = format!(
                    "node {node}, shard {}, index {index}: committed with term {} here and with term {} elsewhere",
                    shard.0, now.term, before.term
                );
                return Err(Broken::new("leader_completeness", detail));
            }
        }
        Ok(())
    }

    fn completeness(&self, node: u16, shard: ShardId, log: &ShardLog) -> Result<(), Broken> {
        let (Some(known), Some(last)) = (self.committed.get(&shard), log.last()) else { return Ok(()) };
        let first = log.purged.map_or(0, |purged| purged + 1);
        for (&index, committed) in known.range(first..) {
            let found = log.entries.get(&index).map(|entry| entry.term);
            if committed.by < last.term && found != Some(committed.term) {
                let detail = format!(
                    "node {node}, shard {}: the log ends at {last}, and at {index} it holds {found:?} instead of the entry of \
                     term {} that was committed by term {}",
                    shard.0, committed.term, committed.by
                );
                return Err(Broken::new("leader_completeness", detail));
            }
        }
        Ok(())
    }

    /// Logs judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// Entries of `shard` that are known to be committed.
    pub fn committed(&self, shard: ShardId) -> usize {
        self.committed.get(&shard).map_or(0, BTreeMap::len)
    }
}

fn fencing(node: u16, shard: ShardId, log: &ShardLog) -> Result<(), Broken> {
    let mut before: Option<(u64, LogEntry)> = None;
    for (&index, entry) in &log.entries {
        let goes_back =
            before.is_some_and(|(at, last)| at + 1 != index || last.term > entry.term || last.token > entry.token);
        if goes_back || entry.token >> 32 != entry.term {
            let detail = format!("node {node}, shard {}, index {index}: {entry:?} after {before:?}", shard.0);
            return Err(Broken::new("fencing", detail));
        }
        before = Some((index, *entry));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of entries given as (term, digest), from index 0.
    fn log(entries: &[(u64, u32)]) -> ShardLog {
        let entry = |&(term, digest): &(u64, u32)| LogEntry { term, token: term << 32, digest, command: None };
        ShardLog { entries: (0..).zip(entries.iter().map(entry)).collect(), ..ShardLog::default() }
    }

    fn checker_of(broken: Result<(), Broken>) -> &'static str {
        broken.expect_err("it is broken").checker
    }

    const S: ShardId = ShardId(0);

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { term, index }
    }

    #[test]
    fn logs_that_agree_pass() {
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2), (2, 3)]), Some(at(2, 2))), Ok(()));
        assert_eq!(logs.judge(1, S, &log(&[(1, 1), (1, 2)]), None), Ok(()), "behind");
        assert_eq!(
            logs.judge(2, S, &log(&[(1, 1), (1, 2), (1, 9)]), None),
            Ok(()),
            "an old tail that nobody committed"
        );
        assert_eq!(logs.judge(0, ShardId(1), &log(&[(1, 7)]), None), Ok(()), "another shard");
        assert_eq!((logs.judged(), logs.committed(S)), (4, 3));
    }

    #[test]
    fn an_entry_with_other_content_or_another_past_is_seen() {
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2)]), None), Ok(()));
        assert_eq!(checker_of(logs.judge(1, S, &log(&[(1, 1), (1, 7)]), None)), "log_matching");
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2), (3, 3)]), None), Ok(()));
        assert_eq!(checker_of(logs.judge(1, S, &log(&[(1, 1), (2, 2), (3, 3)]), None)), "log_matching");
    }

    #[test]
    fn a_later_leader_without_a_committed_entry_is_seen() {
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2), (1, 3)]), Some(at(1, 2))), Ok(()));
        assert_eq!(checker_of(logs.judge(1, S, &log(&[(1, 1), (2, 5)]), None)), "leader_completeness");
        // Committed by term 3 only: the leader of term 2 need not have had it.
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2), (3, 3)]), Some(at(3, 2))), Ok(()));
        assert_eq!(logs.judge(1, S, &log(&[(1, 1), (2, 5)]), None), Ok(()));
        assert_eq!(checker_of(logs.judge(1, S, &log(&[(1, 1), (2, 5), (4, 6)]), None)), "leader_completeness");
        // Two that take different entries for committed.
        let mut logs = Logs::default();
        assert_eq!(logs.judge(0, S, &log(&[(1, 1), (1, 2)]), Some(at(1, 1))), Ok(()));
        assert_eq!(checker_of(logs.judge(1, S, &log(&[(1, 1), (2, 2)]), Some(at(2, 1)))), "leader_completeness");
    }

    #[test]
    fn tokens_and_terms_that_go_back_are_seen() {
        let mut logs = Logs::default();
        assert_eq!(checker_of(logs.judge(0, S, &log(&[(2, 1), (1, 2)]), None)), "fencing");
        let mut foreign = log(&[(2, 1)]);
        foreign.entries.get_mut(&0).expect("one entry").token = 1 << 32;
        assert_eq!(checker_of(logs.judge(0, S, &foreign, None)), "fencing");
        let mut backward = log(&[(2, 1), (2, 2)]);
        backward.entries.get_mut(&0).expect("two entries").token += 5;
        assert_eq!(checker_of(logs.judge(0, S, &backward, None)), "fencing");
        let mut hole = log(&[(2, 1), (2, 2), (2, 3)]);
        hole.entries.remove(&1);
        assert_eq!(checker_of(logs.judge(0, S, &hole, None)), "fencing");
    }
}
