//! One group's state in a log, and what each record does to it.
//!
//! The same transitions run when an operation is accepted and when its record is replayed, so a log that was written can be
//! replayed. Every transition checks first and changes nothing when it refuses.

use crate::error::Rejected;
use crate::format::Checkpoint;
use crate::index::{EntryIndex, Location};
use crate::token::FencingToken;
use crate::types::{Home, LogPosition, Lsn, SegmentId, TruncatedAfter, Vote};

/// State of a group, entries included.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub vote: Option<Vote>,
    pub committed: Option<LogPosition>,
    /// `committed` is newer than what the log's records say.
    pub committed_unsaved: bool,
    pub purged: Option<LogPosition>,
    pub truncated: Option<TruncatedAfter>,
    /// End of the log: the last entry, or `purged` when none is left.
    pub last: Option<LogPosition>,
    pub token_highest: FencingToken,
    /// Token of the entry at `last`, or a lower bound.
    pub token_last: FencingToken,
    pub home: Option<Home>,
    pub membership: Option<(LogPosition, Box<[u8]>)>,
    pub index: EntryIndex,
    /// During replay: entries up to here lie in segments below the first one replayed. They must turn out purged or truncated.
    pub absent_through: Option<u64>,
    /// The group's latest record.
    pub last_lsn: Lsn,
    /// The batch that this group has a row in, and which.
    pub row: BatchRow,
}

/// Row of a group in the table of the batch numbered `batch`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BatchRow {
    pub batch: u64,
    pub row: u8,
}

impl Group {
    /// What `group_back` of a record at `lsn` must say.
    pub fn back(&self, lsn: Lsn) -> u32 {
        match self.last_lsn {
            Lsn(0) => 0,
            previous => u32::try_from(lsn.0 - previous.0).unwrap_or(u32::MAX),
        }
    }

    /// Refuses whatever a group does that moved away.
    pub fn check_here(&self) -> Result<(), Rejected> {
        match self.home {
            Some(Home { epoch, retired: true }) => Err(Rejected::Retired { epoch }),
            _ => Ok(()),
        }
    }

    pub fn check_entry(&self, position: LogPosition, token: FencingToken) -> Result<(), Rejected> {
        self.check_here()?;
        Group::check_succession(self.last, self.token_last, position, token)
    }

    /// Whether an entry at `position` with `token` can follow the last one.
    pub fn check_succession(
        last: Option<LogPosition>,
        token_last: FencingToken,
        position: LogPosition,
        token: FencingToken,
    ) -> Result<(), Rejected> {
        if u64::from(token.term()) != position.term {
            return Err(Rejected::TokenTerm { position, token });
        }
        if let Some(last) = last {
            if position.index != last.index + 1 {
                return Err(Rejected::NotContiguous { expected: last.index + 1, got: position });
            }
            if position.term < last.term {
                return Err(Rejected::TermFell { have: last.term, got: position });
            }
        }
        if token < token_last {
            return Err(Rejected::TokenFell { have: token_last, got: token });
        }
        Ok(())
    }

    /// Appends an entry that `check_entry` accepted.
    pub fn entry(&mut self, position: LogPosition, token: FencingToken, at: Location) {
        if self.index.next() != position.index {
            self.index.restart_at(position.index);
        }
        self.index.push(position.term, at);
        self.last = Some(position);
        self.token_last = token;
        self.token_highest = self.token_highest.max(token);
    }

    /// The durable vote's first token, when it is newer than a writer of `term`: that writer was deposed (F-05).
    pub fn fence_against(&self, term: u64) -> Option<FencingToken> {
        self.vote.filter(|vote| term < vote.term).map(|vote| floor_token(LogPosition { term: vote.term, index: 0 }))
    }

    pub fn check_vote(&self, vote: &Vote) -> Result<(), Rejected> {
        self.check_here()?;
        let Some(have) = self.vote else { return Ok(()) };
        let same_candidate = (have.node, have.incarnation) == (vote.node, vote.incarnation);
        let rises = (vote.term, vote.committed) >= (have.term, have.committed);
        // Whoever voted for the loser of an election follows its winner: a quorum has decided, so this grants nothing twice.
        let is_decided = vote.committed && !have.committed;
        if rises && (vote.term > have.term || same_candidate || is_decided) {
            Ok(())
        } else {
            Err(Rejected::VoteFell { have, got: *vote })
        }
    }

    /// Where the log would end, or why it cannot be truncated there.
    pub fn check_truncate(&self, after: Option<LogPosition>) -> Result<(), Rejected> {
        self.check_here()?;
        match (after, self.purged) {
            (None, Some(purged)) => Err(Rejected::TruncatesPurged { after, purged }),
            (Some(at), Some(purged)) if at.index < purged.index => Err(Rejected::TruncatesPurged { after, purged }),
            (Some(at), _) => self.check_term(at),
            (None, None) => Ok(()),
        }
    }

    /// A position that lies within the log must be the one that the log has there.
    fn check_term(&self, at: LogPosition) -> Result<(), Rejected> {
        let purged_term = self.purged.filter(|purged| purged.index == at.index).map(|purged| purged.term);
        match self.index.term_at(at.index).or(purged_term) {
            Some(have) if have != at.term => Err(Rejected::OtherTerm { have, got: at }),
            _ => Ok(()),
        }
    }

    /// Drops the entries behind `after`. What their tokens were does not matter: a new leader may replace them by entries of an older
    /// term than theirs.
    pub fn truncate(&mut self, after: Option<LogPosition>, freed: impl FnMut(SegmentId, u64)) {
        self.truncated = Some(TruncatedAfter(after));
        let Some(last) = self.last else { return };
        let keep = after.map_or(0, |at| at.index + 1);
        if keep > last.index {
            return;
        }
        self.index.truncate(keep, freed);
        self.absent_through =
            self.absent_through.and_then(|absent| absent.min(keep).checked_sub(u64::from(keep <= absent)));
        self.last = after.or(self.purged);
        self.token_last = self.last.map_or_else(FencingToken::default, floor_token);
    }

    pub fn check_purge(&self, through: LogPosition) -> Result<(), Rejected> {
        self.check_here()?;
        self.check_term(through)
    }

    /// Drops the entries up to `through`; when that lies beyond the end, the log goes on behind it (a snapshot was installed).
    pub fn purge(&mut self, through: LogPosition, mut freed: impl FnMut(SegmentId, u64)) {
        if self.purged.is_some_and(|purged| purged.index >= through.index) {
            return;
        }
        self.purged = Some(through);
        self.absent_through = self.absent_through.filter(|&absent| absent > through.index);
        let first = through.index + 1;
        if self.last.is_none_or(|last| last.index <= through.index) {
            self.index.truncate(0, &mut freed);
            self.index.restart_at(first);
            if self.last != Some(through) {
                self.last = Some(through);
                self.token_last = floor_token(through);
            }
        } else {
            self.index.purge(first.max(self.index.first()), freed);
        }
    }

    pub fn check_home(&self, home: Home) -> Result<(), Rejected> {
        match self.home {
            Some(have) if home.epoch < have.epoch || (home.epoch == have.epoch && have.retired && !home.retired) => {
                Err(Rejected::EpochFell { have: have.epoch, got: home.epoch })
            }
            _ => Ok(()),
        }
    }

    /// Settles where the group lives. A group that left keeps nothing but the epoch.
    pub fn set_home(&mut self, home: Home, freed: impl FnMut(SegmentId, u64)) {
        if home.retired {
            self.index.truncate(0, freed);
            *self = Group { last_lsn: self.last_lsn, row: self.row, ..Group::default() };
        }
        self.home = Some(home);
    }

    /// The group at the head of a segment; `remaining` is the caller's to fill.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            truncated: self.truncated,
            last: self.last,
            token_highest: self.token_highest,
            token_last: self.token_last,
            home: self.home,
            membership: self.membership.clone(),
            remaining: 0,
        }
    }

    /// Bytes of the group's checkpoint record's payload.
    pub fn checkpoint_bytes(&self) -> usize {
        Checkpoint::default().encoded_bytes() + self.membership.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// Takes the state of a checkpoint in the first segment that is replayed.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        let next = checkpoint.last.map_or(0, |last| last.index + 1);
        let absent_through = checkpoint.last.filter(|last| checkpoint.purged != Some(*last)).map(|last| last.index);
        let mut index = EntryIndex::default();
        index.restart_at(next);
        *self = Group {
            vote: checkpoint.vote,
            committed: checkpoint.committed,
            committed_unsaved: false,
            purged: checkpoint.purged,
            truncated: checkpoint.truncated,
            last: checkpoint.last,
            token_highest: checkpoint.token_highest,
            token_last: checkpoint.token_last,
            home: checkpoint.home,
            membership: checkpoint.membership,
            index,
            absent_through,
            last_lsn: self.last_lsn,
            row: self.row,
        };
    }

    /// Compares the state that earlier records led to with a later checkpoint; takes the checkpoint's commit position, which may be ahead.
    pub fn agree(&mut self, checkpoint: &Checkpoint) -> Result<(), Rejected> {
        let fields = [
            ("vote", self.vote == checkpoint.vote),
            ("purged", self.purged == checkpoint.purged),
            ("truncated after", self.truncated == checkpoint.truncated),
            ("high-water mark", self.last == checkpoint.last),
            ("highest token", self.token_highest == checkpoint.token_highest),
            ("last token", self.token_last == checkpoint.token_last),
            ("home", self.home == checkpoint.home),
            ("membership", self.membership == checkpoint.membership),
        ];
        if let Some((field, _)) = fields.iter().find(|(_, equal)| !equal) {
            return Err(Rejected::Checkpoint(field));
        }
        self.committed = checkpoint.committed;
        Ok(())
    }
}

/// The lowest token that an entry at `position` can have.
fn floor_token(position: LogPosition) -> FencingToken {
    FencingToken::first_of_term(position.term).expect("terms beyond 32 bits are refused before they get here")
}
