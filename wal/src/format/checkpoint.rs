//! A group's state at the head of a segment: the second copy of what peers cannot restore, and what frees older segments.

use super::payload::{decode_home, decode_vote, encode_home, encode_purge, encode_vote, position_at};
use super::{PayloadFault, put, u32_at, u64_at};
use crate::limits::MEMBERSHIP_BYTES_MAX;
use crate::token::FencingToken;
use crate::types::{Home, LogPosition, TruncatedAfter, Vote};

const FIXED_BYTES: usize = 176;
const HAS_VOTE: u32 = 1;
const HAS_COMMITTED: u32 = 1 << 1;
const HAS_PURGED: u32 = 1 << 2;
const HAS_TRUNCATED: u32 = 1 << 3;
const TRUNCATED_TO_SOME: u32 = 1 << 4;
const HAS_LAST: u32 = 1 << 5;
const HAS_MEMBERSHIP: u32 = 1 << 6;
const HAS_HOME: u32 = 1 << 7;
const ALL: u32 = (1 << 8) - 1;

/// Everything that the log knows about a group, its entries aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Latest vote.
    pub vote: Option<Vote>,
    /// Latest known commit position.
    pub committed: Option<LogPosition>,
    /// The group's log starts after this.
    pub purged: Option<LogPosition>,
    /// Latest truncation.
    pub truncated: Option<TruncatedAfter>,
    /// High-water mark: the group's log reached to here when the segment was opened. A log that ends below it, without a later
    /// truncation, has lost entries.
    pub last: Option<LogPosition>,
    /// Highest origin token ever seen.
    pub token_highest: FencingToken,
    /// Origin token of the entry at `last`, as far as known: a lower bound for what follows.
    pub token_last: FencingToken,
    /// Whether the group lives here.
    pub home: Option<Home>,
    /// Latest membership: position of its entry, encoded form.
    pub membership: Option<(LogPosition, Box<[u8]>)>,
    /// How many checkpoint records follow this one; 0 in the last. A segment whose run of checkpoints is complete can be replayed
    /// without the segments before it.
    pub remaining: u32,
}

impl Checkpoint {
    /// Size of the payload in bytes.
    pub fn encoded_bytes(&self) -> usize {
        FIXED_BYTES + self.membership.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        let membership = self.membership.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        assert!(membership.len() <= MEMBERSHIP_BYTES_MAX, "checked when it was saved");
        put(&mut out, 0, &self.flags().to_le_bytes());
        put(&mut out, 4, &self.remaining.to_le_bytes());
        put(&mut out, 8, &encode_vote(&self.vote.unwrap_or_default()));
        put(&mut out, 40, &encode_purge(self.committed.unwrap_or_default()));
        put(&mut out, 56, &encode_purge(self.purged.unwrap_or_default()));
        put(&mut out, 72, &encode_purge(self.truncated.and_then(|truncated| truncated.0).unwrap_or_default()));
        put(&mut out, 88, &encode_purge(self.last.unwrap_or_default()));
        put(&mut out, 104, &self.token_highest.raw().to_le_bytes());
        put(&mut out, 112, &self.token_last.raw().to_le_bytes());
        put(&mut out, 120, &encode_home(self.home.unwrap_or_default()));
        put(&mut out, 136, &encode_purge(self.membership.as_ref().map_or_else(LogPosition::default, |(at, _)| *at)));
        put(&mut out, 152, &(membership.len() as u32).to_le_bytes());
        out.extend_from_slice(membership);
        out
    }

    fn flags(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.vote.is_some(), HAS_VOTE)
            | bit(self.committed.is_some(), HAS_COMMITTED)
            | bit(self.purged.is_some(), HAS_PURGED)
            | bit(self.truncated.is_some(), HAS_TRUNCATED)
            | bit(self.truncated.is_some_and(|truncated| truncated.0.is_some()), TRUNCATED_TO_SOME)
            | bit(self.last.is_some(), HAS_LAST)
            | bit(self.membership.is_some(), HAS_MEMBERSHIP)
            | bit(self.home.is_some(), HAS_HOME)
    }

    /// Inverse of [`Checkpoint::encode`].
    pub fn decode(payload: &[u8]) -> Result<Checkpoint, PayloadFault> {
        if payload.len() < FIXED_BYTES {
            return Err(PayloadFault::Length { expected: FIXED_BYTES, got: payload.len() });
        }
        let flags = u32_at(payload, 0);
        let membership_bytes = u32_at(payload, 152) as usize;
        if flags & !ALL != 0 {
            return Err(PayloadFault::Field("checkpoint flags"));
        }
        if payload[156..FIXED_BYTES].iter().any(|&byte| byte != 0) {
            return Err(PayloadFault::Field("checkpoint reserved"));
        }
        if membership_bytes > MEMBERSHIP_BYTES_MAX || payload.len() != FIXED_BYTES + membership_bytes {
            return Err(PayloadFault::Field("checkpoint membership length"));
        }
        let has = |bit: u32| flags & bit != 0;
        let position = |bit: u32, at: usize| has(bit).then(|| position_at(payload, at));
        Ok(Checkpoint {
            vote: if has(HAS_VOTE) { Some(decode_vote(&payload[8..40])?) } else { None },
            committed: position(HAS_COMMITTED, 40),
            purged: position(HAS_PURGED, 56),
            truncated: has(HAS_TRUNCATED).then(|| TruncatedAfter(position(TRUNCATED_TO_SOME, 72))),
            last: position(HAS_LAST, 88),
            token_highest: FencingToken::from_raw(u64_at(payload, 104)),
            token_last: FencingToken::from_raw(u64_at(payload, 112)),
            home: if has(HAS_HOME) { Some(decode_home(&payload[120..136])?) } else { None },
            membership: position(HAS_MEMBERSHIP, 136).map(|at| (at, payload[FIXED_BYTES..].into())),
            remaining: u32_at(payload, 4),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_zero_are_different() {
        let full = Checkpoint {
            vote: Some(Vote::default()),
            committed: Some(LogPosition::default()),
            purged: Some(LogPosition::default()),
            truncated: Some(TruncatedAfter(Some(LogPosition::default()))),
            last: Some(LogPosition::default()),
            home: Some(Home::default()),
            membership: Some((LogPosition::default(), Box::default())),
            ..Checkpoint::default()
        };
        let cut_to_nothing = Checkpoint { truncated: Some(TruncatedAfter(None)), ..Checkpoint::default() };
        for checkpoint in [full, cut_to_nothing, Checkpoint::default()] {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint.clone()));
            assert_eq!(checkpoint.encode().len(), checkpoint.encoded_bytes());
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let checkpoint = Checkpoint {
            membership: Some((LogPosition { term: 1, index: 2 }, b"abc"[..].into())),
            ..Checkpoint::default()
        };
        let payload = checkpoint.encode();
        assert!(Checkpoint::decode(&payload[..payload.len() - 1]).is_err());
        assert!(Checkpoint::decode(&payload[..100]).is_err());
        let mut flagged = payload;
        flagged[1] = 1;
        assert_eq!(Checkpoint::decode(&flagged), Err(PayloadFault::Field("checkpoint flags")));
    }
}
