//! Origin tokens: which leader put an entry into the log, and in which of its batches.
//!
//! A token is (term, sequence). Its term is the term of the entry's log id; the sequence counts a leader's append batches
//! from 0, so tokens never decrease along a log. Entries that arrive from another leader bring their token along.
//! At `SEQUENCES_PER_TERM` the leader is to move to a new term (see `group`), long before the 32 bits end.

use super::types::Entry;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::{FencingToken, FencingTokenState, LogPosition, TokenError as WalTokenError};
use openraft::EntryPayload;
use std::cell::Cell;

/// An entry that must not enter the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is no token to give.
    #[error(transparent)]
    Exhausted(#[from] WalTokenError),
    /// An entry from elsewhere whose token names another term than its log id.
    #[error("log entry {index} of term {term} carries a fencing token of term {token_term}; it is refused")]
    ForeignTerm {
        /// Index of the entry.
        index: u64,
        /// Term of its log id.
        term: u64,
        /// Term in its token.
        token_term: u32,
    },
}

/// Stamps what one replica appends: each entry's token, and in front of each command where it stands.
#[derive(Debug)]
pub(crate) struct TokenStamper {
    shard: ShardId,
    tokens: FencingTokenState,
    sequences_max: u32,
    issued: Cell<u64>,
}

impl TokenStamper {
    /// For `shard`'s log, whose highest token is `highest`. `sequences_max` are issued before a new term is due.
    pub(crate) fn new(shard: ShardId, highest: FencingToken, sequences_max: u32) -> TokenStamper {
        assert!(sequences_max > 0, "a term needs a sequence number");
        TokenStamper { shard, tokens: FencingTokenState::new(highest), sequences_max, issued: Cell::new(0) }
    }

    /// Checks the tokens of entries that have one, gives all others the batch's token, and completes the headers.
    pub(crate) fn stamp(&self, entries: &mut [Entry]) -> Result<(), TokenError> {
        let mut batch: Option<FencingToken> = None;
        for entry in entries {
            let LogPosition { term, index } = entry.position();
            let token = match (entry.token, batch) {
                (Some(token), _) => check(entry, token)?,
                (None, Some(token)) if u64::from(token.term()) == term => token,
                (None, _) => *batch.insert(self.issue(term)?),
            };
            entry.token = Some(token);
            if let EntryPayload::Normal(proposal) = &mut entry.payload {
                let header = &mut proposal.header;
                (header.shard, header.term, header.index, header.token) = (self.shard, term, index, token.raw());
            }
        }
        Ok(())
    }

    /// Tokens issued so far.
    pub(crate) fn issued(&self) -> u64 {
        self.issued.get()
    }

    /// Whether the leader of `term` should move on.
    pub(crate) fn is_spent(&self, term: u64) -> bool {
        let next = self.tokens.current();
        u64::from(next.term()) == term && next.seq() >= self.sequences_max
    }

    fn issue(&self, term: u64) -> Result<FencingToken, WalTokenError> {
        if term == BOOTSTRAP_TERM {
            return FencingToken::first_of_term(term);
        }
        if u64::from(self.tokens.current().term()) != term {
            self.tokens.bump_term_token(term)?;
        }
        let token = self.tokens.issue_token()?;
        self.issued.set(self.issued.get() + 1);
        Ok(token)
    }
}

/// The term of the entry that founds a group. No leader wrote it, so it is no leader's proposal.
const BOOTSTRAP_TERM: u64 = 0;

fn check(entry: &Entry, token: FencingToken) -> Result<FencingToken, TokenError> {
    let position = entry.position();
    if u64::from(token.term()) == position.term {
        return Ok(token);
    }
    Err(TokenError::ForeignTerm { index: position.index, term: position.term, token_term: token.term() })
}

#[cfg(test)]
mod tests {
    use super::super::types::{Payload, to_log_id};
    use super::*;
    use gristmill_wal::limits::SEQUENCES_PER_TERM;
    use openraft::entry::RaftEntry;

    fn entries(positions: &[(u64, u64)]) -> Vec<Entry> {
        let blank = |&(term, index)| Entry::new(to_log_id(LogPosition { term, index }), Payload::Blank);
        positions.iter().map(blank).collect()
    }

    fn tokens(entries: &[Entry]) -> Vec<(u32, u32)> {
        entries.iter().map(|entry| entry.token.map(|token| (token.term(), token.seq())).unwrap()).collect()
    }

    #[test]
    fn a_term_starts_at_sequence_zero_and_counts_batches() {
        let stamper = TokenStamper::new(ShardId(1), FencingToken::default(), SEQUENCES_PER_TERM);
        let stamp = |positions: &[(u64, u64)]| {
            let mut batch = entries(positions);
            stamper.stamp(&mut batch).unwrap();
            tokens(&batch)
        };
        assert_eq!(stamp(&[(0, 0)]), [(0, 0)], "the founding entry");
        assert_eq!(stamp(&[(3, 0), (3, 1)]), [(3, 0), (3, 0)]);
        assert_eq!(stamp(&[(3, 2)]), [(3, 1)]);
        assert_eq!(stamp(&[(7, 3), (7, 4)]), [(7, 0), (7, 0)]);
        assert_eq!(stamp(&[(7, 5)]), [(7, 1)]);
    }

    #[test]
    fn entries_of_another_leader_keep_their_tokens() {
        let stamper = TokenStamper::new(ShardId(1), FencingToken::new(9, 4), SEQUENCES_PER_TERM);
        let mut batch = entries(&[(4, 10), (5, 11)]);
        batch[0].token = Some(FencingToken::new(4, 77));
        batch[1].token = Some(FencingToken::new(5, 0));
        stamper.stamp(&mut batch).unwrap();
        assert_eq!(tokens(&batch), [(4, 77), (5, 0)]);

        batch[1].token = Some(FencingToken::new(6, 0));
        let refused = stamper.stamp(&mut batch).unwrap_err();
        assert_eq!(refused, TokenError::ForeignTerm { index: 11, term: 5, token_term: 6 });
    }

    #[test]
    fn limits_of_term_and_sequence() {
        let stamper = TokenStamper::new(ShardId(1), FencingToken::default(), 3);
        let too_large = WalTokenError::TermTooLarge { term: 1 << 32 };
        assert_eq!(stamper.stamp(&mut entries(&[(1 << 32, 0)])).unwrap_err(), too_large.into());
        for index in 0..3 {
            assert!(!stamper.is_spent(2));
            stamper.stamp(&mut entries(&[(2, index)])).unwrap();
        }
        assert!(stamper.is_spent(2), "three batches used the three sequences");
        stamper.stamp(&mut entries(&[(2, 4)])).unwrap();
        stamper.stamp(&mut entries(&[(5, 5)])).unwrap();
        assert!(!stamper.is_spent(5), "another term starts afresh");
    }

    #[test]
    fn a_restarted_replica_issues_nothing_in_an_old_term() {
        let stamper = TokenStamper::new(ShardId(1), FencingToken::new(6, 2), SEQUENCES_PER_TERM);
        assert!(stamper.stamp(&mut entries(&[(6, 9)])).is_err());
        assert!(stamper.stamp(&mut entries(&[(5, 9)])).is_err());
        assert!(stamper.stamp(&mut entries(&[(7, 9)])).is_ok());
    }
}
