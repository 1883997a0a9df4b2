//! A replica that comes back holds what its log proves durable, or it does not come back.
//!
//! This binds on a disk that broke its word as well, where [`super::amnesia`] has to excuse what is forgotten: trailers and marks that
//! are still there say what was acknowledged, and a log that is damaged below that must be refused, never cut.

use super::Broken;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::LogPosition;
use std::collections::BTreeMap;

/// What the log of each replica that is starting proves.
#[derive(Default)]
pub struct Proof(BTreeMap<(u16, ShardId), LogPosition>);

impl Proof {
    /// The log on the disk of a node that starts proves that it was durable up to `proven`.
    pub fn proves(&mut self, node: u16, shard: ShardId, proven: Option<LogPosition>) {
        match proven {
            Some(proven) => self.0.insert((node, shard), proven),
            None => self.0.remove(&(node, shard)),
        };
    }

    /// Something has happened to a disk since: what was read before counts no more.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// The replica has come back with a log that ends at `last`.
    pub fn returns(&mut self, node: u16, shard: ShardId, last: Option<LogPosition>) -> Result<(), Broken> {
        match self.0.remove(&(node, shard)) {
            Some(proven) if last < Some(proven) => {
                let detail = format!(
                    "node {node}, shard {}: its log proved to be durable up to {proven} and serves up to {last:?}",
                    shard.0
                );
                Err(Broken::new("proof", detail))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_cut_below_its_proof_is_seen() {
        let at = |term, index| Some(LogPosition { term, index });
        let mut checker = Proof::default();
        assert_eq!(checker.returns(0, ShardId(0), None), Ok(()), "nothing is proven");
        checker.proves(0, ShardId(0), at(2, 9));
        assert_eq!(checker.returns(1, ShardId(0), at(1, 3)), Ok(()), "another node");
        assert_eq!(checker.returns(0, ShardId(0), at(2, 9)), Ok(()));
        assert_eq!(checker.returns(0, ShardId(0), at(2, 4)), Ok(()), "once a start");
        checker.proves(0, ShardId(0), at(2, 9));
        assert!(checker.returns(0, ShardId(0), at(2, 8)).is_err());
        checker.proves(0, ShardId(0), at(2, 9));
        assert!(checker.returns(0, ShardId(0), None).is_err());
        checker.proves(0, ShardId(0), at(2, 9));
        checker.forget();
        assert_eq!(checker.returns(0, ShardId(0), None), Ok(()));
    }
}
