//! Fencing tokens: which leader, and which of its proposals, a write comes from.
//!
//! ```text
//!   63            32 31             0
//!  ┌────────────────┬────────────────┐   the origin token of an entry: its term equals that of the entry's log position,
//!  │ term           │ sequence       │   its sequence never falls along the log
//!  └────────────────┴────────────────┘
//! ```
//!
//! A leader holds one [`FencingTokenState`] a group: [`bump_term_token`](FencingTokenState::bump_term_token) when it is elected,
//! [`issue_token`](FencingTokenState::issue_token) for each batch of proposals. Tokens rise strictly over the group's life, because a
//! leader that restarts never resumes its old term. Who may write at all is a second notion, the writer term, checked against
//! the durable vote by the log itself ([`WalError::StaleToken`](crate::WalError::StaleToken)).
//!
//! Limits: terms and sequences have 32 bits. Past [`SEQUENCES_PER_TERM`] the leader should move to a new term; the last sequence is
//! never issued, so a token never carries into the term.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::SEQUENCES_PER_TERM;

/// Term in the high 32 bits, sequence in the low 32.
///
/// ```
/// use gristmill_wal::FencingToken;
/// let token = FencingToken::new(7, 9);
/// assert_eq!(token.raw(), (7 << 32) | 9);
/// assert_eq!((token.term(), token.seq()), (7, 9));
/// assert_eq!(token.bump_seq(), Ok(FencingToken::new(7, 10)));
/// assert_eq!(token.new_leader_term(), Ok(FencingToken::new(8, 0)));
/// assert!(token < FencingToken::new(8, 0));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

/// A token cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The term does not fit.
    #[error("term {term} does not fit the 32 bits of a fencing token: the group must be re-created")]
    TermTooLarge {
        /// The term.
        term: u64,
    },
    /// All sequences of the term are used up.
    #[error("term {term} has issued every sequence number: the leader must move to a new term")]
    SequencesExhausted {
        /// The term.
        term: u32,
    },
    /// A new leader's term is not above the one in use.
    #[error("term {got} does not follow term {have}: another leader was elected since")]
    TermNotNewer {
        /// In use.
        have: u32,
        /// Wanted.
        got: u64,
    },
}

impl FencingToken {
    /// Packs a term and a sequence.
    pub const fn new(term: u32, seq: u32) -> FencingToken {
        FencingToken((term as u64) << 32 | seq as u64)
    }

    /// The first token of a Raft term, which may have 64 bits elsewhere.
    pub fn first_of_term(term: u64) -> Result<FencingToken, TokenError> {
        u32::try_from(term).map(|term| FencingToken::new(term, 0)).map_err(|_| TokenError::TermTooLarge { term })
    }

    /// From the 64 bits on disk or wire.
    pub const fn from_raw(raw: u64) -> FencingToken {
        FencingToken(raw)
    }

    /// The 64 bits on disk or wire.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Term of the leader that issued it.
    pub const fn term(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Place among the leader's proposals.
    pub const fn seq(self) -> u32 {
        self.0 as u32
    }

    /// The next sequence of the same term.
    pub const fn bump_seq(self) -> Result<FencingToken, TokenError> {
        match self.seq().checked_add(1) {
            Some(seq) => Ok(FencingToken::new(self.term(), seq)),
            None => Err(TokenError::SequencesExhausted { term: self.term() }),
        }
    }

    /// The first token of the term after this one.
    pub const fn new_leader_term(self) -> Result<FencingToken, TokenError> {
        match self.term().checked_add(1) {
            Some(term) => Ok(FencingToken::new(term, 0)),
            None => Err(TokenError::TermTooLarge { term: self.term() as u64 + 1 }),
        }
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term(), self.seq())
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FencingToken({self})")
    }
}

/// What [`FencingTokenState`] needs of an atomic 64-bit integer: the real one, or a model checker's.
pub trait TokenCell {
    /// Reads it.
    fn load(&self) -> u64;
    /// Replaces `current` by `new`, or tells what is there.
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
}

impl TokenCell for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        AtomicU64::compare_exchange(self, current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// A leader's token counter: the next token to issue. Lock-free; may be read from any thread.
///
/// ```
/// use gristmill_wal::{FencingToken, FencingTokenState};
/// let state = FencingTokenState::new(FencingToken::new(3, 17)); // highest token that the log recovered
/// assert_eq!(state.bump_term_token(5), Ok(FencingToken::new(5, 0)));
/// assert_eq!(state.issue_token(), Ok(FencingToken::new(5, 0)));
/// assert_eq!(state.issue_token(), Ok(FencingToken::new(5, 1)));
/// assert!(state.bump_term_token(5).is_err());
/// ```
#[derive(Debug)]
pub struct FencingTokenState<C = AtomicU64> {
    next: C,
}

impl FencingTokenState {
    /// For a group whose log holds tokens up to `highest`. Nothing can be issued in that term any more: it was another leader's, or
    /// ours before a restart.
    pub fn new(highest: FencingToken) -> Self {
        FencingTokenState { next: AtomicU64::new(FencingToken::new(highest.term(), u32::MAX).raw()) }
    }
}

impl<C: TokenCell> FencingTokenState<C> {
    /// The token that would be issued next.
    pub fn current(&self) -> FencingToken {
        FencingToken::from_raw(self.next.load())
    }

    /// Takes the next token.
    pub fn issue_token(&self) -> Result<FencingToken, TokenError> {
        let mut token = self.current();
        loop {
            let next = token.bump_seq()?;
            match self.next.compare_exchange(token.raw(), next.raw()) {
                Ok(_) => return Ok(token),
                Err(now) => token = FencingToken::from_raw(now),
            }
        }
    }

    /// Starts the term that this node was elected in, at sequence 0. The term must be newer than the one in use.
    pub fn bump_term_token(&self, term: u64) -> Result<FencingToken, TokenError> {
        let first = FencingToken::first_of_term(term)?;
        let mut now = self.current();
        loop {
            if first.term() <= now.term() {
                return Err(TokenError::TermNotNewer { have: now.term(), got: term });
            }
            match self.next.compare_exchange(now.raw(), first.raw()) {
                Ok(_) => return Ok(first),
                Err(other) => now = FencingToken::from_raw(other),
            }
        }
    }

    /// So many sequences are used up that the leader should move to a new term.
    pub fn new_term_needed(&self) -> bool {
        self.current().seq() >= SEQUENCES_PER_TERM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u32, seq: u32) -> FencingTokenState {
        FencingTokenState { next: AtomicU64::new(FencingToken::new(term, seq).raw()) }
    }

    #[test]
    fn tokens_order_by_term_then_sequence() {
        assert!(FencingToken::new(1, u32::MAX) < FencingToken::new(2, 0));
        assert!(FencingToken::new(2, 1) > FencingToken::new(2, 0));
    }

    #[test]
    fn a_sequence_never_carries_into_the_term() {
        let state = at(4, u32::MAX - 1);
        assert_eq!(state.issue_token(), Ok(FencingToken::new(4, u32::MAX - 1)));
        assert_eq!(state.issue_token(), Err(TokenError::SequencesExhausted { term: 4 }));
        assert_eq!(state.current(), FencingToken::new(4, u32::MAX));
        assert!(FencingToken::new(4, u32::MAX).bump_seq().is_err());
        assert!(FencingToken::new(u32::MAX, 0).new_leader_term().is_err());
    }

    #[test]
    fn half_of_the_sequences_call_for_a_new_term_and_still_work() {
        let state = at(4, SEQUENCES_PER_TERM - 1);
        assert!(!state.new_term_needed());
        assert!(state.issue_token().is_ok());
        assert!(state.new_term_needed());
        assert!(state.issue_token().is_ok());
        assert_eq!(state.bump_term_token(9), Ok(FencingToken::new(9, 0)));
        assert!(!state.new_term_needed());
    }

    #[test]
    fn a_term_beyond_32_bits_is_an_error() {
        assert_eq!(FencingToken::first_of_term(1 << 32), Err(TokenError::TermTooLarge { term: 1 << 32 }));
        assert_eq!(at(4, 0).bump_term_token(1 << 32), Err(TokenError::TermTooLarge { term: 1 << 32 }));
    }

    #[test]
    fn a_recovered_state_issues_nothing_before_a_new_term() {
        let state = FencingTokenState::new(FencingToken::new(6, 2));
        assert!(state.issue_token().is_err());
        assert!(state.bump_term_token(6).is_err());
        assert_eq!(state.bump_term_token(7), Ok(FencingToken::new(7, 0)));
    }

    impl TokenCell for loom::sync::atomic::AtomicU64 {
        fn load(&self) -> u64 {
            loom::sync::atomic::AtomicU64::load(self, Ordering::Acquire)
        }
        fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
            loom::sync::atomic::AtomicU64::compare_exchange(self, current, new, Ordering::AcqRel, Ordering::Acquire)
        }
    }

    #[test]
    fn racing_issuers_and_a_new_term_never_share_a_token() {
        loom::model(|| {
            type State = FencingTokenState<loom::sync::atomic::AtomicU64>;
            let first = FencingToken::new(1, 0).raw();
            let state = loom::sync::Arc::new(State { next: loom::sync::atomic::AtomicU64::new(first) });
            let issuer = || {
                let state = loom::sync::Arc::clone(&state);
                loom::thread::spawn(move || state.issue_token().expect("far from the limit"))
            };
            let (one, two) = (issuer(), issuer());
            state.bump_term_token(2).expect("newer");
            let (one, two) = (one.join().expect("joined"), two.join().expect("joined"));
            assert_ne!(one, two);
            let highest = one.max(two);
            assert!(state.current() > highest, "what comes next is above all that was issued");
            assert_eq!(state.current().term(), 2);
        });
    }
}
