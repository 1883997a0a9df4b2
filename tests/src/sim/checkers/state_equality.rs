//! State-machine safety: whoever has applied the entry at an index has applied the same entry, and has the same state.

use super::Broken;
use gristmill::state::root::StateRoot;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::LogPosition;
use std::collections::BTreeMap;

/// State roots by shard and applied index, and who showed each first.
#[derive(Default)]
pub struct StateEquality {
    roots: BTreeMap<(ShardId, u64), (u64, StateRoot, u16)>,
    compared: u64,
}

impl StateEquality {
    /// The replica on `node` has the state `root` after the entry at `applied`.
    pub fn shows(&mut self, node: u16, shard: ShardId, applied: LogPosition, root: StateRoot) -> Result<(), Broken> {
        let key = (shard, applied.index);
        let Some(&(term, first, by)) = self.roots.get(&key) else {
            self.roots.insert(key, (applied.term, root, node));
            return Ok(());
        };
        self.compared += 1;
        if (term, first) == (applied.term, root) {
            return Ok(());
        }
        let detail = format!(
            "shard {}, applied {}: node {by} had term {term} root {first}, node {node} has term {} root {root}",
            shard.0, applied.index, applied.term
        );
        Err(Broken::new("state_equality", detail))
    }

    /// Comparisons of a state with one shown before, by another replica or before a restart.
    pub fn compared(&self) -> u64 {
        self.compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_differ_are_seen() {
        let at = |term, index| LogPosition { term, index };
        let (one, other) = (StateRoot([1; 32]), StateRoot([2; 32]));
        let mut checker = StateEquality::default();
        assert_eq!(checker.shows(0, ShardId(0), at(1, 7), one), Ok(()));
        assert_eq!(checker.shows(1, ShardId(0), at(1, 7), one), Ok(()));
        assert_eq!(checker.shows(1, ShardId(0), at(1, 8), other), Ok(()));
        assert_eq!(checker.shows(1, ShardId(1), at(1, 7), other), Ok(()));
        assert_eq!(checker.compared(), 1);
        assert!(checker.shows(2, ShardId(0), at(1, 7), other).is_err(), "another state");
        assert!(checker.shows(2, ShardId(0), at(2, 7), one).is_err(), "another entry");
    }
}
