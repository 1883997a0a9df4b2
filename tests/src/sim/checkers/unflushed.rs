//! Who stands for election has made durable what it stands with.
//!
//! On becoming leader openraft counts its whole log as flushed, whatever storage has said (its issue #2118). With a log that writes
//! votes and entries independently, a quorum could then count entries of the leader's that a power cut takes away. Here both go through
//! one log in order: a candidate's vote for itself is durable before it asks anybody, and so is every entry before that vote. Nothing is
//! appended in between, for appends of older terms are refused from the vote on. So the claim comes true before it is made.

use super::Broken;
use gristmill_rpc::ids::ShardId;

/// A replica that stands for election with a durable vote shows the last entry of its log, and the last durable one.
pub fn stands(node: u16, shard: ShardId, last_log: Option<u64>, durable: Option<u64>) -> Result<(), Broken> {
    if durable == last_log {
        return Ok(());
    }
    let detail = format!(
        "node {node}, shard {}: its vote for itself is durable and its log reaches to {last_log:?}, durable only to {durable:?}",
        shard.0
    );
    Err(Broken::new("unflushed", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_with_entries_in_flight_is_seen() {
        assert_eq!(stands(0, ShardId(0), None, None), Ok(()));
        assert_eq!(stands(0, ShardId(0), Some(7), Some(7)), Ok(()));
        assert!(stands(0, ShardId(0), Some(7), Some(6)).is_err());
        assert!(stands(0, ShardId(0), Some(0), None).is_err());
    }
}
