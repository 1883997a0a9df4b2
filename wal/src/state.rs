//! Everything that a log knows, as its records tell it: groups, and how many live entries each segment holds.
//!
//! Pure. Recovery replays records into it; the running log keeps it current with the same transitions.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::error::Rejected;
use crate::format::{
    Checkpoint, PayloadFault, RecordHeader, RecordKind, decode_committed, decode_home, decode_membership, decode_purge,
    decode_truncate, decode_vote,
};
use crate::group::Group;
use crate::index::Location;
use crate::limits::RECORD_HEADER_BYTES;
use crate::types::{GroupId, LogPosition, Lsn, SegmentId};

/// A segment that records were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentLife {
    pub segment: SegmentId,
    /// Live entries in it.
    pub live: u64,
    /// The record that took the latest entry away: the segment is free only once that one is durable.
    pub freed_by: Lsn,
    /// The last checkpoint of its opening run, when that is complete.
    pub opened_by: Option<Lsn>,
}

/// Why a record that is intact cannot be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    /// Its payload cannot be read.
    #[error(transparent)]
    Payload(#[from] PayloadFault),
    /// It does not fit what the records before it led to.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// A position's term does not fit a token.
    #[error("a position of term {0}, beyond 32 bits")]
    Term(u64),
    /// The distance to its group's previous record is wrong: a record of the group is missing.
    #[error("its group's previous record should be {expected} LSNs back, it says {found}")]
    Back {
        /// By the records before it.
        expected: u32,
        /// In the record.
        found: u32,
    },
    /// A segment opened with an incomplete run of checkpoints.
    #[error("a record follows an incomplete run of checkpoints")]
    OpeningRun,
}

/// Groups and segments.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub groups: FxHashMap<GroupId, Group>,
    /// Ascending by id; the last is the current one.
    pub segments: VecDeque<SegmentLife>,
    /// Bytes that one checkpoint run takes, headers included.
    pub checkpoint_bytes: usize,
    /// Sum of live entries.
    pub live_entries: u64,
}

impl LogState {
    /// Starts a segment.
    pub fn open_segment(&mut self, segment: SegmentId) {
        assert!(self.segments.back().is_none_or(|last| last.segment < segment), "segment ids rise");
        // Nothing to repeat: the segment stands alone from its first byte.
        let opened_by = self.groups.is_empty().then_some(Lsn(0));
        self.segments.push_back(SegmentLife { segment, live: 0, freed_by: Lsn(0), opened_by });
    }

    pub fn current_mut(&mut self) -> &mut SegmentLife {
        self.segments.back_mut().expect("a log has a current segment")
    }

    /// The lowest segment that is needed, given what is durable: free ones below it hold no live entry, what emptied them is durable,
    /// and so is the opening run of the one that takes over.
    pub fn oldest_needed(&self, durable: Lsn) -> SegmentId {
        let mut oldest = self.segments.front().expect("a log has a current segment").segment;
        for (life, successor) in self.segments.iter().zip(self.segments.iter().skip(1)) {
            if life.live > 0 || life.freed_by > durable {
                break;
            }
            // One whose run crashes have left incomplete cannot take over, the one after it can.
            if successor.opened_by.is_some_and(|lsn| lsn <= durable) {
                oldest = successor.segment;
            }
        }
        oldest
    }

    /// Forgets segments below `oldest`.
    pub fn forget_below(&mut self, oldest: SegmentId) {
        while self.segments.front().is_some_and(|life| life.segment < oldest) {
            let life = self.segments.pop_front().expect("just seen");
            assert_eq!(life.live, 0, "a segment with live entries is needed");
        }
    }

    /// The group whose entries keep the oldest segment.
    pub fn pinning_group(&self) -> Option<GroupId> {
        let oldest = self.segments.front()?.segment;
        let mut pinning: Vec<_> = self
            .groups
            .iter()
            .filter(|(_, group)| group.index.oldest_segment() == Some(oldest))
            .map(|(id, _)| *id)
            .collect();
        pinning.sort_unstable();
        pinning.first().copied()
    }

    /// Applies an intact record at `bytes[header.offset..]`.
    pub fn replay(&mut self, header: &RecordHeader, bytes: &[u8]) -> Result<(), ReplayFault> {
        let start = header.offset as usize + RECORD_HEADER_BYTES;
        let payload = &bytes[start..start + header.payload_bytes as usize];
        let life = self.current_mut();
        assert_eq!(life.segment, header.segment, "records are replayed segment by segment");
        if header.kind == RecordKind::Checkpoint {
            return self.replay_checkpoint(header, payload);
        }
        if life.opened_by.is_none() {
            return Err(ReplayFault::OpeningRun);
        }
        let group = self.groups.entry(header.group).or_default();
        let expected = group.back(header.lsn);
        if header.group_back != expected {
            return Err(ReplayFault::Back { expected, found: header.group_back });
        }
        let mut freed = Freed { segments: &mut self.segments, live: &mut self.live_entries, by: header.lsn };
        replay_into(group, header, payload, &mut freed)?;
        group.last_lsn = header.lsn;
        Ok(())
    }

    fn replay_checkpoint(&mut self, header: &RecordHeader, payload: &[u8]) -> Result<(), ReplayFault> {
        let checkpoint = Checkpoint::decode(payload)?;
        let first = self.segments.len() == 1;
        let remaining = checkpoint.remaining;
        let group = self.groups.entry(header.group).or_default();
        // In the first segment the group's earlier records are gone, unless its run of checkpoints was begun anew.
        if first && group.last_lsn == Lsn(0) {
            group.restore(checkpoint);
        } else {
            let expected = group.back(header.lsn);
            if header.group_back != expected {
                return Err(ReplayFault::Back { expected, found: header.group_back });
            }
            group.agree(&checkpoint)?;
        }
        group.last_lsn = header.lsn;
        if remaining == 0 {
            self.current_mut().opened_by = Some(header.lsn);
        }
        Ok(())
    }

    /// After replay: groups with live entries in segments that are not there, and the first such index.
    pub fn gaps(&self) -> Vec<(GroupId, u64)> {
        let gap = |group: &Group| {
            let first = group.purged.map_or(0, |purged| purged.index + 1);
            group.absent_through.filter(|&absent| absent >= first).map(|_| first)
        };
        let mut gaps: Vec<_> =
            self.groups.iter().filter_map(|(id, group)| gap(group).map(|first| (*id, first))).collect();
        gaps.sort_unstable();
        gaps
    }

    /// Bytes of one run of checkpoints, headers included.
    pub fn measure_checkpoints(&mut self) {
        self.checkpoint_bytes =
            self.groups.values().map(|group| crate::format::record_bytes(group.checkpoint_bytes())).sum();
    }
}

/// Books entries that vanished.
pub(crate) struct Freed<'a> {
    pub segments: &'a mut VecDeque<SegmentLife>,
    pub live: &'a mut u64,
    pub by: Lsn,
}

impl Freed<'_> {
    fn book(&mut self, segment: SegmentId, entries: u64) {
        if entries == 0 {
            return;
        }
        *self.live -= entries;
        let at = self.segments.partition_point(|life| life.segment < segment);
        let life = &mut self.segments[at];
        assert_eq!(life.segment, segment, "live entries lie in known segments");
        life.live -= entries;
        life.freed_by = self.by;
    }

    /// As the callback of the group's transitions.
    pub fn sink(&mut self) -> impl FnMut(SegmentId, u64) + '_ {
        |segment, entries| self.book(segment, entries)
    }
}

fn replay_into(
    group: &mut Group,
    header: &RecordHeader,
    payload: &[u8],
    freed: &mut Freed<'_>,
) -> Result<(), ReplayFault> {
    match header.kind {
        RecordKind::Entry => {
            let position = LogPosition { term: u64::from(header.token.term()), index: header.index };
            group.check_entry(position, header.token)?;
            let at = Location { segment: header.segment, offset: header.offset, payload_bytes: header.payload_bytes };
            group.entry(position, header.token, at);
            freed.segments.back_mut().expect("current").live += 1;
            *freed.live += 1;
        }
        RecordKind::Vote => {
            let vote = decode_vote(payload)?;
            group.check_vote(&vote)?;
            group.vote = Some(vote);
        }
        RecordKind::Membership => {
            let (position, bytes) = decode_membership(payload)?;
            group.membership = Some((position, bytes.into()));
        }
        RecordKind::TruncateAfter => {
            let after = decode_truncate(payload)?;
            after.map_or(Ok(()), check_term_fits)?;
            group.check_truncate(after)?;
            group.truncate(after, freed.sink());
        }
        RecordKind::Purge => {
            let through = decode_purge(payload)?;
            check_term_fits(through)?;
            group.check_purge(through)?;
            group.purge(through, freed.sink());
        }
        RecordKind::Committed => group.committed = decode_committed(payload)?,
        RecordKind::ShardHome => {
            let home = decode_home(payload)?;
            group.check_home(home)?;
            group.set_home(home, freed.sink());
        }
        RecordKind::Checkpoint | RecordKind::Trailer | RecordKind::Mark => {
            unreachable!("{} records are not replayed into a group", header.kind.name())
        }
    }
    Ok(())
}

fn check_term_fits(position: LogPosition) -> Result<(), ReplayFault> {
    if u32::try_from(position.term).is_ok() { Ok(()) } else { Err(ReplayFault::Term(position.term)) }
}
