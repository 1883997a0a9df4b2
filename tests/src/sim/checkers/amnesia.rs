//! A replica that comes back has in its log what it had told to be durable: others counted on it.
//!
//! On a disk that keeps its promises this must hold always. A disk that loses what it acknowledged can make a replica forget the
//! batches newer than its last mark without any trace: the residual window that the log documents. Then the run is outside of what
//! Raft can promise, and this checker is how the simulator knows.

use super::Broken;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::LogPosition;
use std::collections::BTreeMap;

/// What each replica was last known to hold durably.
#[derive(Default)]
pub struct Amnesia(BTreeMap<(u16, ShardId), LogPosition>);

impl Amnesia {
    /// The running replica shows its log as durable up to `durable`.
    pub fn holds(&mut self, node: u16, shard: ShardId, durable: LogPosition) {
        self.0.insert((node, shard), durable);
    }

    /// The replica has come back with a log that ends at `last`.
    pub fn returns(&mut self, node: u16, shard: ShardId, last: Option<LogPosition>) -> Result<(), Broken> {
        let known = self.0.remove(&(node, shard));
        if let Some(last) = last {
            self.0.insert((node, shard), last);
        }
        match known {
            Some(known) if last < Some(known) => {
                let detail =
                    format!("node {node}, shard {}: its log was durable up to {known} and ends at {last:?}", shard.0);
                Err(Broken::new("amnesia", detail))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_came_back_shorter_is_seen() {
        let at = |term, index| LogPosition { term, index };
        let mut checker = Amnesia::default();
        assert_eq!(checker.returns(0, ShardId(0), None), Ok(()));
        checker.holds(0, ShardId(0), at(1, 9));
        assert_eq!(checker.returns(0, ShardId(0), Some(at(1, 12))), Ok(()), "more than was told is no lie");
        checker.holds(0, ShardId(0), at(2, 10));
        assert!(checker.returns(0, ShardId(0), Some(at(1, 12))).is_err(), "longer, but of an older term");
        assert_eq!(checker.returns(0, ShardId(0), Some(at(1, 12))), Ok(()), "told once");
        assert!(checker.returns(0, ShardId(0), None).is_err());
    }
}
