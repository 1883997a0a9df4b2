//! Votes are monotonic: a replica's term never falls, in one term it votes for one candidate only, and no restart undoes either. Whom others
//! have elected it follows in that term, whoever it voted for.

use super::Broken;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::Vote;
use std::collections::BTreeMap;

/// The last vote that each replica was seen to have made durable.
#[derive(Default)]
pub struct Votes(BTreeMap<(u16, ShardId), Vote>);

impl Votes {
    /// The replica of `shard` on `node` shows `vote` as durable. It is the newest from now on, also where it is refused.
    pub fn shows(&mut self, node: u16, shard: ShardId, vote: Vote) -> Result<(), Broken> {
        let Some(before) = self.0.insert((node, shard), vote) else { return Ok(()) };
        let same_term = before.term == vote.term;
        let wrong = if vote.term < before.term {
            "a term that is over"
        } else if same_term
            && (before.node, before.incarnation) != (vote.node, vote.incarnation)
            && (before.committed || !vote.committed)
        {
            "a second candidate in one term"
        } else if same_term && before.committed && !vote.committed {
            "a leader that it no longer knows of"
        } else {
            return Ok(());
        };
        let detail = format!("node {node}, shard {}: {vote:?} after {before:?}: {wrong}", shard.0);
        Err(Broken::new("votes", detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_that_go_back_are_seen() {
        let vote = |term, node, committed| Vote { term, node, incarnation: 1, committed };
        let judge = |votes: &[Vote]| {
            let mut checker = Votes::default();
            votes.iter().map(|vote| checker.shows(0, ShardId(0), *vote).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(judge(&[vote(1, 1, false), vote(1, 1, true), vote(2, 3, false), vote(2, 3, false)]), [true; 4]);
        assert_eq!(judge(&[vote(2, 1, false), vote(1, 1, false)]), [true, false]);
        assert_eq!(judge(&[vote(2, 1, false), vote(2, 3, false)]), [true, false]);
        assert_eq!(judge(&[vote(2, 1, true), vote(2, 1, false)]), [true, false]);
        assert_eq!(judge(&[vote(2, 1, false), vote(2, 3, true)]), [true, true], "the others elected 3");
        assert_eq!(judge(&[vote(2, 1, true), vote(2, 3, true)]), [true, false], "two leaders");
        let mut checker = Votes::default();
        assert!(checker.shows(0, ShardId(0), vote(5, 1, true)).is_ok());
        assert!(
            checker.shows(1, ShardId(0), vote(4, 1, true)).is_ok()
                && checker.shows(0, ShardId(1), vote(4, 1, true)).is_ok()
        );
    }
}
