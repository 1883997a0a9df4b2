//! Payloads of the small record kinds.

use super::{PayloadFault, put, u32_at, u64_at};
use crate::types::{Home, LogPosition, Vote};

/// Bytes of a vote.
pub const VOTE_BYTES: usize = 32;
/// Bytes of an optional position.
pub const OPTIONAL_POSITION_BYTES: usize = 24;
/// Bytes of a position.
pub const POSITION_BYTES: usize = 16;
/// Bytes of a shard-home payload.
pub const HOME_BYTES: usize = 16;

/// `term, node, incarnation, committed (0 or 1) as u64`.
pub fn encode_vote(vote: &Vote) -> [u8; VOTE_BYTES] {
    let mut out = [0; VOTE_BYTES];
    put(&mut out, 0, &vote.term.to_le_bytes());
    put(&mut out, 8, &vote.node.to_le_bytes());
    put(&mut out, 16, &vote.incarnation.to_le_bytes());
    put(&mut out, 24, &u64::from(vote.committed).to_le_bytes());
    out
}

/// Inverse of [`encode_vote`].
pub fn decode_vote(payload: &[u8]) -> Result<Vote, PayloadFault> {
    expect_len(payload, VOTE_BYTES)?;
    Ok(Vote {
        term: u64_at(payload, 0),
        node: u64_at(payload, 8),
        incarnation: u64_at(payload, 16),
        committed: flag(u64_at(payload, 24), "vote committed")?,
    })
}

/// `term, index`.
pub fn encode_purge(position: LogPosition) -> [u8; POSITION_BYTES] {
    let mut out = [0; POSITION_BYTES];
    put(&mut out, 0, &position.term.to_le_bytes());
    put(&mut out, 8, &position.index.to_le_bytes());
    out
}

/// Inverse of [`encode_purge`].
pub fn decode_purge(payload: &[u8]) -> Result<LogPosition, PayloadFault> {
    expect_len(payload, POSITION_BYTES)?;
    Ok(position_at(payload, 0))
}

/// `present (0 or 1) as u64, term, index`.
pub fn encode_truncate(after: Option<LogPosition>) -> [u8; OPTIONAL_POSITION_BYTES] {
    let mut out = [0; OPTIONAL_POSITION_BYTES];
    if let Some(position) = after {
        put(&mut out, 0, &1_u64.to_le_bytes());
        put(&mut out, 8, &encode_purge(position));
    }
    out
}

/// Inverse of [`encode_truncate`].
pub fn decode_truncate(payload: &[u8]) -> Result<Option<LogPosition>, PayloadFault> {
    expect_len(payload, OPTIONAL_POSITION_BYTES)?;
    let position = position_at(payload, 8);
    if flag(u64_at(payload, 0), "position present")? {
        Ok(Some(position))
    } else if position == LogPosition::default() {
        Ok(None)
    } else {
        Err(PayloadFault::Field("absent position"))
    }
}

/// Same layout as [`encode_truncate`].
pub fn encode_committed(committed: Option<LogPosition>) -> [u8; OPTIONAL_POSITION_BYTES] {
    encode_truncate(committed)
}

/// Inverse of [`encode_committed`].
pub fn decode_committed(payload: &[u8]) -> Result<Option<LogPosition>, PayloadFault> {
    decode_truncate(payload)
}

/// `epoch u64, state u32 (1 here, 2 retired), zero u32`.
pub fn encode_home(home: Home) -> [u8; HOME_BYTES] {
    let mut out = [0; HOME_BYTES];
    put(&mut out, 0, &home.epoch.to_le_bytes());
    put(&mut out, 8, &(1 + u32::from(home.retired)).to_le_bytes());
    out
}

/// Inverse of [`encode_home`].
pub fn decode_home(payload: &[u8]) -> Result<Home, PayloadFault> {
    expect_len(payload, HOME_BYTES)?;
    if u32_at(payload, 12) != 0 {
        return Err(PayloadFault::Field("shard-home reserved"));
    }
    let retired = match u32_at(payload, 8) {
        1 => false,
        2 => true,
        _ => return Err(PayloadFault::Field("shard-home state")),
    };
    Ok(Home { epoch: u64_at(payload, 0), retired })
}

/// What precedes an encoded membership in its payload: the position of the entry that set it.
pub fn encode_membership_head(position: LogPosition) -> [u8; POSITION_BYTES] {
    encode_purge(position)
}

/// Position and encoded membership.
pub fn decode_membership(payload: &[u8]) -> Result<(LogPosition, &[u8]), PayloadFault> {
    if payload.len() < POSITION_BYTES {
        return Err(PayloadFault::Length { expected: POSITION_BYTES, got: payload.len() });
    }
    Ok((position_at(payload, 0), &payload[POSITION_BYTES..]))
}

pub(super) fn position_at(bytes: &[u8], at: usize) -> LogPosition {
    LogPosition { term: u64_at(bytes, at), index: u64_at(bytes, at + 8) }
}

fn expect_len(payload: &[u8], expected: usize) -> Result<(), PayloadFault> {
    if payload.len() == expected { Ok(()) } else { Err(PayloadFault::Length { expected, got: payload.len() }) }
}

fn flag(value: u64, field: &'static str) -> Result<bool, PayloadFault> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(PayloadFault::Field(field)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_read_back() {
        for committed in [false, true] {
            let vote = Vote { term: 7, node: 3, incarnation: 2, committed };
            assert_eq!(decode_vote(&encode_vote(&vote)), Ok(vote));
        }
        let position = LogPosition { term: 4, index: 90 };
        assert_eq!(decode_purge(&encode_purge(position)), Ok(position));
        for position in [None, Some(position), Some(LogPosition::default())] {
            assert_eq!(decode_truncate(&encode_truncate(position)), Ok(position));
            assert_eq!(decode_committed(&encode_committed(position)), Ok(position));
        }
        for retired in [false, true] {
            let home = Home { epoch: 11, retired };
            assert_eq!(decode_home(&encode_home(home)), Ok(home));
        }
        let mut membership = encode_membership_head(position).to_vec();
        membership.extend_from_slice(b"voters");
        assert_eq!(decode_membership(&membership), Ok((position, &b"voters"[..])));
    }

    #[test]
    fn values_that_nobody_writes_are_refused() {
        let mut vote = encode_vote(&Vote::default());
        vote[24] = 2;
        assert_eq!(decode_vote(&vote), Err(PayloadFault::Field("vote committed")));
        assert_eq!(decode_vote(&vote[1..]), Err(PayloadFault::Length { expected: 32, got: 31 }));
        let mut absent = encode_truncate(None);
        absent[8] = 1;
        assert_eq!(decode_truncate(&absent), Err(PayloadFault::Field("absent position")));
        assert_eq!(decode_home(&[0; 16]), Err(PayloadFault::Field("shard-home state")));
        assert!(decode_membership(&[0; 15]).is_err());
    }
}
