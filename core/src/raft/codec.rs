//! How a log entry becomes the two parts of a WAL record, and back.
//!
//! ```text
//!  kind        part 0 (header)        part 1 (body)
//!  Blank       -                      -
//!  Normal      EntryHeader, 96 bytes  the command, untouched
//!  Membership  -                      version u32 | configs u32 | (voters u32 | id 16 B ...) ... | members u32 | id 16 B ...
//! ```
//!
//! Position and token stand in the WAL's own record header too; they are compared after each read, because a record that
//! answers for another entry must never be applied. Integers are little-endian.

use super::types::{Entry, Payload, Proposal, RaftMembership, ReplicaId, to_log_id};
use crate::state::envelope::{ENTRY_HEADER_BYTES, EntryHeader, EnvelopeError};
use gristmill_rpc::body::Body;
use gristmill_rpc::ids::ShardId;
use gristmill_wal::{FencingToken, LogPosition};
use openraft::{EmptyNode, EntryPayload};
use std::collections::BTreeSet;

/// Replicas of one group, learners included, at the most. Far above any sane replication factor.
pub(crate) const MEMBERS_MAX: usize = 64;
/// Voter sets of a joint membership at the most; Raft needs two.
pub(crate) const VOTER_SETS_MAX: usize = 4;
/// Bytes of the largest encoded membership.
const MEMBERSHIP_BYTES_MAX: usize = 8 + (VOTER_SETS_MAX + 1) * (4 + MEMBERS_MAX * 16);
const _: () = assert!(MEMBERSHIP_BYTES_MAX <= gristmill_wal::limits::MEMBERSHIP_BYTES_MAX);
/// Layout of an encoded membership.
const MEMBERSHIP_VERSION: u32 = 1;

/// What a record holds. The numbers are part of the log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    Blank = 0,
    Normal = 1,
    Membership = 2,
}

impl EntryKind {
    pub(crate) fn from_wire(number: u8) -> Option<EntryKind> {
        [EntryKind::Blank, EntryKind::Normal, EntryKind::Membership].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Why a record is not an entry of this group. Each means damage or another version's log; the replica must not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A kind that this build does not know.
    #[error("log entry {index} has kind {found}, unknown to this build; run the version that wrote it")]
    Kind {
        /// Index of the entry.
        index: u64,
        /// What stood there.
        found: u8,
    },
    /// The header in front of the body is unreadable.
    #[error("log entry {index}: {source}")]
    Header {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// The record says one position, shard or token and the header behind it another.
    #[error(
        "log entry {index} of term {term} carries the header of shard {shard}, entry {header_index} of term {header_term}; the log is damaged"
    )]
    Mismatch {
        /// Index in the record.
        index: u64,
        /// Term in the record.
        term: u64,
        /// Shard in the header.
        shard: u32,
        /// Index in the header.
        header_index: u64,
        /// Term in the header.
        header_term: u64,
    },
    /// A membership that breaks its own layout or limits.
    #[error("log entry {index} holds no readable membership ({reason}); the log is damaged")]
    Membership {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// An entry's header and body as the WAL takes them. Borrows the body.
pub(crate) struct EncodedEntry {
    pub kind: EntryKind,
    /// Only for [`EntryKind::Normal`].
    pub header: [u8; ENTRY_HEADER_BYTES],
    /// Only for [`EntryKind::Membership`].
    pub membership: Vec<u8>,
}

impl EncodedEntry {
    /// The record's two parts.
    pub(crate) fn parts<'a>(&'a self, entry: &'a Entry) -> [&'a [u8]; 2] {
        match &entry.payload {
            EntryPayload::Blank => [&[], &[]],
            EntryPayload::Normal(proposal) => [&self.header, &proposal.body],
            EntryPayload::Membership(_) => [&[], &self.membership],
        }
    }
}

/// Bytes that `entry` takes in the log, apart from the record's header.
pub(crate) fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(proposal) => ENTRY_HEADER_BYTES + proposal.body.len(),
        EntryPayload::Membership(_) => MEMBERSHIP_BYTES_MAX,
    }
}

/// Encodes what stands in front of `entry`'s body, once it is stamped.
pub(crate) fn encode(entry: &Entry) -> EncodedEntry {
    const NO_HEADER: [u8; ENTRY_HEADER_BYTES] = [0; ENTRY_HEADER_BYTES];
    match &entry.payload {
        EntryPayload::Blank => EncodedEntry { kind: EntryKind::Blank, header: NO_HEADER, membership: Vec::new() },
        EntryPayload::Normal(proposal) => {
            EncodedEntry { kind: EntryKind::Normal, header: proposal.header.encode(), membership: Vec::new() }
        }
        EntryPayload::Membership(membership) => {
            EncodedEntry { kind: EntryKind::Membership, header: NO_HEADER, membership: encode_membership(membership) }
        }
    }
}

/// The entry that a record of `shard`'s log holds.
pub(crate) fn decode(
    shard: ShardId,
    position: LogPosition,
    token: FencingToken,
    kind: u8,
    data: &[u8],
) -> Result<Entry, EntryError> {
    let header_bytes = if kind == EntryKind::Normal as u8 { ENTRY_HEADER_BYTES.min(data.len()) } else { 0 };
    let (header, body) = data.split_at(header_bytes);
    decode_parts(shard, position, token, kind, header, body)
}

/// The same where header and body lie apart. Only commands have a header.
pub(crate) fn decode_parts(
    shard: ShardId,
    position: LogPosition,
    token: FencingToken,
    kind: u8,
    header: &[u8],
    body: &[u8],
) -> Result<Entry, EntryError> {
    let index = position.index;
    let payload = match EntryKind::from_wire(kind).ok_or(EntryError::Kind { index, found: kind })? {
        EntryKind::Blank => Payload::Blank,
        EntryKind::Normal => {
            let header = decode_header(shard, position, token, header)?;
            Payload::Normal(Proposal { header, body: Body::copy_from(body) })
        }
        EntryKind::Membership => Payload::Membership(decode_membership(index, body)?),
    };
    Ok(Entry { log_id: to_log_id(position), token: Some(token), payload })
}

fn decode_header(
    shard: ShardId,
    position: LogPosition,
    token: FencingToken,
    bytes: &[u8],
) -> Result<EntryHeader, EntryError> {
    let index = position.index;
    let (header, _behind) = EntryHeader::decode(bytes).map_err(|source| EntryError::Header { index, source })?;
    let same = header.shard == shard
        && header.term == position.term
        && header.index == position.index
        && header.token == token.raw();
    if !same {
        return Err(EntryError::Mismatch {
            index,
            term: position.term,
            shard: header.shard.0,
            header_index: header.index,
            header_term: header.term,
        });
    }
    Ok(header)
}

/// A membership's bytes. Node data is empty: addresses live in the cluster map, under the same ids.
pub(crate) fn encode_membership(membership: &RaftMembership) -> Vec<u8> {
    let sets = membership.get_joint_config();
    assert!(sets.len() <= VOTER_SETS_MAX, "a membership of {} voter sets", sets.len());
    let mut out = Vec::new();
    let put_ids = |out: &mut Vec<u8>, ids: &mut dyn ExactSizeIterator<Item = &ReplicaId>| {
        assert!(ids.len() <= MEMBERS_MAX, "a membership of {} replicas", ids.len());
        out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        for id in ids {
            out.extend_from_slice(&id.node.to_le_bytes());
            out.extend_from_slice(&id.incarnation.to_le_bytes());
        }
    };
    out.extend_from_slice(&MEMBERSHIP_VERSION.to_le_bytes());
    out.extend_from_slice(&(sets.len() as u32).to_le_bytes());
    for set in sets {
        put_ids(&mut out, &mut set.iter());
    }
    let members: Vec<_> = membership.nodes().map(|(id, EmptyNode {})| id).collect();
    put_ids(&mut out, &mut members.into_iter());
    out
}

/// The membership that entry `index` holds.
pub(crate) fn decode_membership(index: u64, bytes: &[u8]) -> Result<RaftMembership, EntryError> {
    let wrong = |reason| EntryError::Membership { index, reason };
    let mut rest = Reader(bytes);
    if rest.u32().ok_or_else(|| wrong("truncated"))? != MEMBERSHIP_VERSION {
        return Err(wrong("unknown layout version"));
    }
    let sets = rest.u32().ok_or_else(|| wrong("truncated"))? as usize;
    if sets > VOTER_SETS_MAX {
        return Err(wrong("too many voter sets"));
    }
    let mut voters = Vec::with_capacity(sets);
    for _ in 0..sets {
        voters.push(rest.ids().ok_or_else(|| wrong("truncated or too long voter set"))?);
    }
    let members = rest.ids().ok_or_else(|| wrong("truncated or too long member list"))?;
    if !rest.0.is_empty() {
        return Err(wrong("trailing bytes"));
    }
    if voters.is_empty() || voters.iter().any(|set| set.is_empty() || !set.is_subset(&members)) {
        return Err(wrong("a voter is no member, or there is none"));
    }
    Ok(RaftMembership::new_with_defaults(voters, members))
}

/// Takes fixed-width values off the front of untrusted bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn ids(&mut self) -> Option<BTreeSet<ReplicaId>> {
        let count = self.u32()? as usize;
        if count > MEMBERS_MAX {
            return None;
        }
        (0..count)
            .map(|_| {
                let node = u64::from_le_bytes(self.take()?);
                Some(ReplicaId { node, incarnation: u64::from_le_bytes(self.take()?) })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::to_position;
    use crate::state::envelope::{Codec, EntryFlags, NONCE_BYTES};
    use crate::state::hlc::Hlc;
    use gristmill_rpc::ids::SessionId;
    use openraft::entry::RaftEntry;

    const SHARD: ShardId = ShardId(5);
    const AT: LogPosition = LogPosition { term: 2, index: 40 };
    const TOKEN: FencingToken = FencingToken::new(2, 8);

    fn normal(shard: ShardId, at: LogPosition, token: FencingToken) -> Entry {
        let header = EntryHeader {
            shard,
            term: at.term,
            index: at.index,
            token: token.raw(),
            hlc: Hlc { physical_ms: 3, logical: 4 },
            session: SessionId(6),
            sequence: 7,
            schema: 1,
            codec: Codec::Rkyv,
            key_id: 0,
            nonce: [0; NONCE_BYTES],
            flags: EntryFlags::NONE,
        };
        let payload = Payload::Normal(Proposal { header, body: Body::copy_from(b"command") });
        Entry { log_id: to_log_id(at), token: Some(token), payload }
    }

    fn bytes_of(entry: &Entry) -> (u8, Vec<u8>) {
        let encoded = encode(entry);
        let bytes = encoded.parts(entry).concat();
        assert!(bytes.len() <= payload_bytes(entry));
        (encoded.kind as u8, bytes)
    }

    fn joint() -> RaftMembership {
        let id = |node| ReplicaId { node, incarnation: node + 10 };
        let voters = vec![BTreeSet::from([id(1), id(2)]), BTreeSet::from([id(2), id(3)])];
        RaftMembership::new_with_defaults(voters, [id(4)])
    }

    #[test]
    fn every_kind_of_entry_comes_back() {
        let mut blank = Entry::new(to_log_id(AT), Payload::Blank);
        let mut membership = Entry::new(to_log_id(AT), Payload::Membership(joint()));
        (blank.token, membership.token) = (Some(TOKEN), Some(TOKEN));
        for entry in [blank, membership, normal(SHARD, AT, TOKEN)] {
            let (kind, bytes) = bytes_of(&entry);
            let back = decode(SHARD, AT, TOKEN, kind, &bytes).unwrap();
            assert_eq!(to_position(&back.log_id), AT);
            assert_eq!(back.token, Some(TOKEN));
            assert_eq!(bytes_of(&back), (kind, bytes));
            assert_eq!(back.get_membership(), entry.get_membership());
        }
    }

    #[test]
    fn a_record_that_answers_for_another_entry_is_refused() {
        let other = LogPosition { index: 41, ..AT };
        for entry in
            [normal(ShardId(6), AT, TOKEN), normal(SHARD, other, TOKEN), normal(SHARD, AT, FencingToken::new(2, 9))]
        {
            let (kind, bytes) = bytes_of(&entry);
            let refused = decode(SHARD, AT, TOKEN, kind, &bytes).unwrap_err();
            assert!(matches!(refused, EntryError::Mismatch { index: 40, .. }), "{refused}");
        }
        let (kind, bytes) = bytes_of(&normal(SHARD, AT, TOKEN));
        let cut = decode(SHARD, AT, TOKEN, kind, &bytes[..50]).unwrap_err();
        assert!(matches!(cut, EntryError::Header { index: 40, .. }));
        assert_eq!(decode(SHARD, AT, TOKEN, 3, &bytes).unwrap_err(), EntryError::Kind { index: 40, found: 3 });
    }

    /// The layout is part of the log's format: these bytes may only change together with `MEMBERSHIP_VERSION`.
    #[test]
    fn memberships_have_golden_bytes() {
        let words = |id: u32| [id, 0, id + 10, 0];
        let golden: Vec<u8> = [&[1, 2, 2][..], &words(1), &words(2), &[2], &words(2), &words(3), &[4]]
            .concat()
            .into_iter()
            .chain([1, 2, 3, 4].into_iter().flat_map(words))
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(encode_membership(&joint()), golden);
        assert_eq!(decode_membership(0, &golden).unwrap(), joint());
    }

    #[test]
    fn damaged_memberships_are_errors_never_panics() {
        let golden = encode_membership(&joint());
        for cut in 0..golden.len() {
            assert!(decode_membership(0, &golden[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..golden.len() {
            for bit in 0..8 {
                let mut bytes = golden.clone();
                bytes[at] ^= 1 << bit;
                // A flip may give another valid membership; the record's CRC is what finds that.
                let _ = decode_membership(0, &bytes);
            }
        }
        let huge = [1_u32, 1, u32::MAX].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        assert!(decode_membership(0, &huge).is_err());
        let stranger = [1_u32, 1, 1, 7, 0, 1, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        assert!(decode_membership(0, &stranger).is_err(), "the one voter is no member");
        assert!(decode_membership(0, &[golden, vec![0]].concat()).is_err(), "trailing bytes");
    }
}
