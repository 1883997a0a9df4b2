//! At most one replica leads a term of a shard (Raft, election safety).

use super::Broken;
use gristmill::raft::ReplicaId;
use gristmill_rpc::ids::ShardId;
use std::collections::BTreeMap;

/// Who has led which term.
#[derive(Default)]
pub struct OneLeader(BTreeMap<(ShardId, u64), ReplicaId>);

impl OneLeader {
    /// `replica` was seen to lead `term`.
    pub fn leads(&mut self, shard: ShardId, term: u64, replica: ReplicaId) -> Result<(), Broken> {
        let first = *self.0.entry((shard, term)).or_insert(replica);
        if first == replica {
            return Ok(());
        }
        let detail = format!("shard {}: {first} and {replica} both lead term {term}", shard.0);
        Err(Broken::new("one_leader", detail))
    }

    /// Terms that had a leader.
    pub fn terms(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_term_are_seen() {
        let replica = |node| ReplicaId { node, incarnation: 1 };
        let mut checker = OneLeader::default();
        for (shard, term, node) in [(0, 1, 1), (0, 1, 1), (0, 2, 2), (1, 1, 3)] {
            assert_eq!(checker.leads(ShardId(shard), term, replica(node)), Ok(()));
        }
        assert!(checker.leads(ShardId(0), 2, replica(1)).is_err());
        assert_eq!(checker.terms(), 3);
    }
}
