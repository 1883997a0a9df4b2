//! A grain's acknowledged text is read by its id and recalled by its word, and what it replaced is not.
//!
//! Each grain has one writer, which has one write under way at a time: so a grain is a register with a known order of writes, and what
//! a read may find follows from the writes around it. A write of unknown outcome may take effect at any later moment.

use super::Broken;
use crate::sim::history::{GrainChange, GrainKey, GrainRead, Moment, Record, ValueId, WriteEnd};
use std::collections::BTreeMap;

/// One write of a grain.
struct Write {
    invoked: Moment,
    /// `None`: unknown, it may still happen.
    returned: Option<Moment>,
    word: Option<ValueId>,
}

/// Judges every read and every recall of a grain.
pub fn judge(records: &[Record]) -> Result<(), Broken> {
    let mut writes: BTreeMap<GrainKey, Vec<Write>> = BTreeMap::new();
    for record in records {
        let Record::Write(write) = record else { continue };
        let returned = match write.end {
            WriteEnd::Applied { .. } => Some(write.returned),
            WriteEnd::Unknown => None,
            WriteEnd::Failed { .. } | WriteEnd::NotApplied => continue,
        };
        for (grain, change) in &write.grains {
            let word = match change {
                GrainChange::Put(word) => Some(*word),
                GrainChange::Delete => None,
            };
            writes.entry(*grain).or_default().push(Write { invoked: write.invoked, returned, word });
        }
    }
    for record in records {
        if let Record::Grain(read) = record {
            judge_read(read, writes.get(&read.grain).map_or(&[], Vec::as_slice))?;
        }
    }
    Ok(())
}

fn judge_read(read: &GrainRead, writes: &[Write]) -> Result<(), Broken> {
    // What stood there for certain when the read began, and what may have replaced it until its end. A write whose outcome is unknown
    // may take effect at any time after its beginning, also after later writes that are certain.
    let certain = writes.iter().filter(|write| write.returned.is_some_and(|returned| returned < read.invoked));
    let last = certain.max_by_key(|write| write.returned);
    let since = last.map_or(0, |last| last.invoked);
    let begun = |write: &&Write| write.invoked < read.returned;
    let maybe = writes.iter().filter(begun).filter(|write| write.returned.is_none() || write.invoked > since);
    let mut possible: Vec<Option<ValueId>> = maybe.map(|write| write.word).collect();
    possible.push(last.and_then(|last| last.word));
    let right = match read.recalled {
        None => possible.contains(&read.found),
        // A recall tells of this word only.
        Some(word) if read.found == Some(word) => possible.contains(&Some(word)),
        Some(word) => read.found.is_none() && possible.iter().any(|found| *found != Some(word)),
    };
    if right {
        return Ok(());
    }
    let detail = format!("{read:?}, where it can only have been one of {possible:?}");
    Err(Broken::new("grains", detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::history::{KeyId, WriteRecord};
    use gristmill_rpc::ids::{ShardId, Version};

    const GRAIN: GrainKey = KeyId { space: 7, key: 1 };

    fn write(at: Moment, word: Option<u64>, known: bool) -> Record {
        let change = word.map_or(GrainChange::Delete, |word| GrainChange::Put(ValueId(word)));
        let end = if known { WriteEnd::Applied { version: Version(at), duplicate: false } } else { WriteEnd::Unknown };
        Record::Write(WriteRecord {
            client: 0,
            session: 1,
            sequence: at,
            shard: ShardId(0),
            invoked: at,
            returned: at + 5,
            changes: Vec::new(),
            grains: vec![(GRAIN, change)],
            end,
        })
    }

    fn get(at: Moment, found: Option<u64>) -> Record {
        let found = found.map(ValueId);
        Record::Grain(GrainRead { client: 1, invoked: at, returned: at + 1, grain: GRAIN, recalled: None, found })
    }

    fn recall(at: Moment, word: u64, found: bool) -> Record {
        let (recalled, found) = (Some(ValueId(word)), found.then_some(ValueId(word)));
        Record::Grain(GrainRead { client: 1, invoked: at, returned: at + 1, grain: GRAIN, recalled, found })
    }

    #[test]
    fn acknowledged_grains_must_be_found_and_replaced_ones_must_not() {
        let history = [write(10, Some(1), true), write(30, Some(2), true), write(50, None, true)];
        let judged = |more: &[Record]| judge(&[&history[..], more].concat()).is_ok();
        assert!(judged(&[get(1, None), get(20, Some(1)), get(40, Some(2)), get(60, None)]));
        assert!(judged(&[get(12, None), get(12, Some(1)), recall(12, 1, true), recall(12, 1, false)]), "under way");
        assert!(judged(&[recall(20, 1, true), recall(40, 1, false), recall(40, 2, true), recall(60, 2, false)]));
        assert!(!judged(&[get(20, None)]), "lost");
        assert!(!judged(&[recall(20, 1, false)]), "acknowledged and not recalled");
        assert!(!judged(&[recall(40, 1, true)]), "replaced and recalled");
        assert!(!judged(&[get(60, Some(2))]) && !judged(&[recall(60, 2, true)]), "deleted and found");
        assert!(!judged(&[get(20, Some(9))]), "invented");
    }

    #[test]
    fn an_unknown_write_may_show_at_any_later_time() {
        let history = [write(10, Some(1), false), write(30, Some(2), true)];
        let judged = |more: &[Record]| judge(&[&history[..], more].concat()).is_ok();
        assert!(judged(&[get(20, None), get(20, Some(1)), get(40, Some(1)), get(40, Some(2))]));
        assert!(!judged(&[get(5, Some(1))]), "before it began");
        assert!(!judged(&[get(40, None)]), "2 was acknowledged");
    }
}
