//! Apply: log entries become state.
//!
//! ```text
//!  entry = header + archived command
//!    │ session known? ──yes──▶ the first answer again
//!    ▼
//!  Txn: operations by access ──▶ writes ──▶ Store::write ──▶ root, counters follow each change
//!    │                             ▲
//!    └─ verdict ──▶ answer record ─┤
//!       expired values, a few ─────┘
//! ```
//!
//! Invariants: the result of an entry depends on the state and the entry alone, never on how entries are batched, when
//! they are applied or whether the replica restarted in between. One entry is one write batch. What a command cannot do
//! is a verdict, the same on every replica; an [`ApplyError`] means that this replica cannot go on.

use super::catalog::{Catalog, NAMESPACES_MAX, Namespace};
use super::envelope::{Codec, EntryFlags, EntryHeader};
use super::events::{DerivedKeys, IndexSink, NoDerivedKeys, NoIndex};
use super::hlc::Hlc;
use super::key::{self, LogicalKey, Scope, Stamp, Table};
use super::outcome::{Rejection, Verdict, WriteOutcome};
use super::ranges::OwnedRanges;
use super::record::{Meta, Position};
use super::root::{RootAccumulator, StateRoot};
use super::session::{Lookup, SessionLimits, Sessions};
use super::store::{Change, Store, StoreError, Write, WriteBatch};
use super::txn::{Base, Effects, Stop, Swept, Txn};
use crate::bugs::{Bug, Bugs};
use gristmill_rpc::body::{BodyError, access_bytes};
use gristmill_rpc::ids::{SessionId, ShardId, Version};
use gristmill_rpc::schema::{ArchivedCommand, COMMAND_SCHEMA};

/// Expired values that any entry removes beside its own work. More than one, so that they cannot pile up under writes
/// that all expire.
pub const SWEPT_PER_ENTRY: usize = 8;
/// Expired values that an entry of its own removes ([`EntryFlags::SWEEP`]).
pub const SWEPT_PER_SWEEP: usize = 512;

/// A committed log entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Where it stands. What the header says of that is not looked at: the log has checked it.
    pub position: Position,
    /// Header and body; `None` for consensus's own entries, which only move the applied position.
    pub command: Option<(&'a EntryHeader, &'a [u8])>,
}

/// Why a replica cannot apply an entry. Fatal: it stops, and recovers or is replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The entry does not come after what is applied.
    #[error("log entry {found:?} cannot follow the applied entry {applied:?}; the log is out of order")]
    Order {
        /// What is applied.
        applied: Position,
        /// What came.
        found: Position,
    },
    /// The command's schema is not known to this build.
    #[error("log entry {index} has command schema {found}, this build knows {COMMAND_SCHEMA}; upgrade this node")]
    Schema {
        /// Its index.
        index: u64,
        /// The header's.
        found: u16,
    },
    /// The body is sealed, which this build cannot apply.
    #[error("log entry {index} has a sealed body, which this build does not support; upgrade this node")]
    Sealed {
        /// Its index.
        index: u64,
    },
    /// The body is not what the header says.
    #[error("log entry {index} has a malformed body: {source}")]
    Body {
        /// Its index.
        index: u64,
        /// What is wrong.
        source: BodyError,
    },
    /// The store failed.
    #[error("applying log entry {index}: {source}")]
    Store {
        /// Its index.
        index: u64,
        /// What happened.
        source: StoreError,
    },
}

impl ApplyError {
    /// The log index of the entry.
    pub fn index(&self) -> u64 {
        match self {
            ApplyError::Order { found, .. } => found.index,
            ApplyError::Schema { index, .. }
            | ApplyError::Sealed { index }
            | ApplyError::Body { index, .. }
            | ApplyError::Store { index, .. } => *index,
        }
    }
}

/// What a shard's state tells to others while it is applied.
pub struct Hooks {
    /// Follows the grains.
    pub index: Box<dyn IndexSink>,
    /// Derives the keys of relations.
    pub derived: Box<dyn DerivedKeys>,
}

impl Default for Hooks {
    /// Tells nobody.
    fn default() -> Hooks {
        Hooks { index: Box::new(NoIndex), derived: Box::new(NoDerivedKeys) }
    }
}

/// What apply has done since the state was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplyStats {
    /// Calls of [`ShardState::apply`].
    pub batches: u64,
    /// Entries, commands or not.
    pub entries: u64,
    /// Operations of commands that took effect.
    pub operations: u64,
    /// Commands that a session had answered before.
    pub duplicates: u64,
    /// Commands that a precondition stopped.
    pub preconditions_failed: u64,
    /// Commands that were rejected.
    pub rejected: u64,
    /// Values removed because they had expired.
    pub swept: u64,
}

/// The limits in force: the named constants, or smaller ones in tests. They decide verdicts, so all replicas of a shard
/// have the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateLimits {
    pub(super) namespaces: usize,
    pub(super) sessions: SessionLimits,
}

impl Default for StateLimits {
    fn default() -> StateLimits {
        StateLimits { namespaces: NAMESPACES_MAX, sessions: SessionLimits::default() }
    }
}

/// The state of one shard.
pub struct ShardState<S> {
    pub(super) shard: ShardId,
    pub(super) store: S,
    pub(super) owned: OwnedRanges,
    pub(super) catalog: Catalog,
    pub(super) sessions: Sessions,
    pub(super) root: RootAccumulator,
    pub(super) applied: Option<Position>,
    pub(super) hlc: Hlc,
    /// No value expires before this time. Spares entries the search for values that have expired.
    pub(super) next_expiry_ms: u64,
    namespaces_max: usize,
    pub(super) stats: ApplyStats,
    hooks: Hooks,
    pub(super) bugs: Bugs,
}

impl<S: Store> ShardState<S> {
    /// The state of a new shard, in an empty store.
    pub fn create(shard: ShardId, owned: &OwnedRanges, store: S, hooks: Hooks) -> Result<ShardState<S>, StoreError> {
        ShardState::create_with(shard, owned, store, hooks, StateLimits::default())
    }

    pub(super) fn create_with(
        shard: ShardId,
        owned: &OwnedRanges,
        mut store: S,
        hooks: Hooks,
        limits: StateLimits,
    ) -> Result<ShardState<S>, StoreError> {
        let key = key::single(Table::Owned, Scope::SHARD);
        let write = Write { key, op: Stamp::OP_META, value: Some(owned.encode()) };
        let mut fresh = true;
        store.write(WriteBatch { index: 0, writes: vec![write] }, &mut |change| fresh &= change.old.is_none())?;
        assert!(fresh, "a shard is created in an empty store");
        ShardState::open_with(shard, store, hooks, limits)
    }

    /// The state that a store holds, as the last [`ShardState::apply`] left it there.
    pub fn open(shard: ShardId, store: S, hooks: Hooks) -> Result<ShardState<S>, StoreError> {
        ShardState::open_with(shard, store, hooks, StateLimits::default())
    }

    pub(super) fn open_with(
        shard: ShardId,
        store: S,
        hooks: Hooks,
        limits: StateLimits,
    ) -> Result<ShardState<S>, StoreError> {
        let missing = StoreError::Dangling { what: "owned ranges", by: "the shard" };
        let owned = store.get(&key::single(Table::Owned, Scope::SHARD))?.ok_or(missing)?;
        let owned = OwnedRanges::decode(owned.value)?;
        let meta = store.get(&key::single(Table::Meta, Scope::SHARD))?;
        let (applied, hlc, root) = match meta.map(|record| Meta::decode(record.value)).transpose()? {
            Some(Meta { applied, hlc, root }) => (Some(applied), hlc, root),
            None => (None, Hlc::ZERO, RootAccumulator::of(&store)?),
        };
        let (catalog, sessions) = (Catalog::open(&store)?, Sessions::open(&store, limits.sessions)?);
        Ok(ShardState {
            shard,
            store,
            owned,
            catalog,
            sessions,
            root,
            applied,
            hlc,
            next_expiry_ms: 0,
            namespaces_max: limits.namespaces,
            stats: ApplyStats::default(),
            hooks,
            bugs: Bugs::default(),
        })
    }

    /// Applies committed entries in order and pushes one outcome for each; `None` for entries without a command.
    ///
    /// After an error the state is not to be used any more.
    pub fn apply(&mut self, entries: &[Entry<'_>], out: &mut Vec<Option<WriteOutcome>>) -> Result<(), ApplyError> {
        for entry in entries {
            let (position, index) = (entry.position, entry.position.index);
            if let Some(applied) = self.applied.filter(|applied| index <= applied.index || position.term < applied.term)
            {
                return Err(ApplyError::Order { applied, found: position });
            }
            let outcome = match entry.command {
                Some((header, body)) => self.apply_command(index, header, body)?,
                None => None,
            };
            self.applied = Some(position);
            out.push(outcome);
        }
        self.stats.batches += 1;
        self.stats.entries += entries.len() as u64;
        let Some(applied) = self.applied else { return Ok(()) };
        self.write_bookkeeping(applied).map_err(|source| ApplyError::Store { index: applied.index, source })
    }

    fn apply_command(
        &mut self,
        index: u64,
        header: &EntryHeader,
        body: &[u8],
    ) -> Result<Option<WriteOutcome>, ApplyError> {
        self.hlc = self.hlc.max(header.hlc);
        if self.bugs.has(Bug::LocalTimeInApply) {
            self.hlc.physical_ms = crate::shard::wall_ms();
        }
        let fatal = |source| ApplyError::Store { index, source };
        match header.codec {
            Codec::Empty => self.sweep(index, header.flags).map_err(fatal).map(|()| None),
            Codec::RkyvSealed => Err(ApplyError::Sealed { index }),
            Codec::Rkyv if header.schema != COMMAND_SCHEMA => Err(ApplyError::Schema { index, found: header.schema }),
            Codec::Rkyv => {
                let command =
                    access_bytes::<ArchivedCommand>(body).map_err(|source| ApplyError::Body { index, source })?;
                self.execute(index, header, command).map_err(fatal).map(Some)
            }
        }
    }

    fn sweep(&mut self, index: u64, flags: EntryFlags) -> Result<(), StoreError> {
        let limit = if flags.contains(EntryFlags::SWEEP) { SWEPT_PER_SWEEP } else { SWEPT_PER_ENTRY };
        let mut txn = Txn::new(self.base(index));
        let swept = self.sweep_if_due(&mut txn, limit)?;
        let effects = txn.finish();
        self.note_swept(swept);
        self.commit(index, effects)
    }

    fn execute(
        &mut self,
        index: u64,
        header: &EntryHeader,
        command: &ArchivedCommand,
    ) -> Result<WriteOutcome, StoreError> {
        let (session, sequence, version) = (header.session, header.sequence, Version(index));
        let outcome = |verdict| WriteOutcome { version, duplicate: false, verdict };
        if session != SessionId::NONE && !self.bugs.has(Bug::RetryAppliedAgain) {
            match self.sessions.look_up(&self.store, session, sequence)? {
                Lookup::New => {}
                Lookup::Known(known) => {
                    self.stats.duplicates += 1;
                    return Ok(known);
                }
                Lookup::TooOld => {
                    self.stats.rejected += 1;
                    return Ok(outcome(Verdict::Rejected(Rejection::SequenceTooOld { session: session.0, sequence })));
                }
            }
        }
        let (verdict, mut txn) = self.attempt(index, command)?;
        let swept = self.sweep_if_due(&mut txn, SWEPT_PER_ENTRY)?;
        let mut effects = txn.finish();
        self.note_swept(swept);
        self.note_verdict(verdict, command.operations.len());
        if session != SessionId::NONE && verdict.is_remembered() {
            self.sessions.remember(&self.store, session, sequence, (index, verdict), &mut effects.writes)?;
        }
        self.commit(index, effects)?;
        Ok(outcome(verdict))
    }

    /// Runs a command's operations: its verdict, and its effects if all went well, else none.
    fn attempt(&self, index: u64, command: &ArchivedCommand) -> Result<(Verdict, Txn<'_, S>), StoreError> {
        let mut txn = Txn::new(self.base(index));
        for (op, operation) in command.operations.iter().enumerate() {
            assert!(op < usize::from(Stamp::OP_SESSION), "commands have at most BATCH_OPS_MAX operations");
            match txn.operation(op as u16, operation) {
                Ok(()) => {}
                Err(Stop::Store(error)) => return Err(error),
                Err(Stop::Verdict(verdict)) if self.bugs.has(Bug::BatchAppliedInPart) => return Ok((verdict, txn)),
                Err(Stop::Verdict(verdict)) => return Ok((verdict, Txn::new(self.base(index)))),
            }
        }
        Ok((Verdict::Applied, txn))
    }

    fn sweep_if_due(&self, txn: &mut Txn<'_, S>, limit: usize) -> Result<Swept, StoreError> {
        if self.next_expiry_ms > self.hlc.physical_ms {
            return Ok(Swept { removed: 0, next_expiry_ms: self.next_expiry_ms });
        }
        txn.sweep(limit)
    }

    fn note_swept(&mut self, swept: Swept) {
        self.stats.swept += swept.removed as u64;
        self.next_expiry_ms = swept.next_expiry_ms;
    }

    fn note_verdict(&mut self, verdict: Verdict, operations: usize) {
        match verdict {
            Verdict::Applied => self.stats.operations += operations as u64,
            Verdict::PreconditionFailed { .. } => self.stats.preconditions_failed += 1,
            Verdict::Rejected(_) => self.stats.rejected += 1,
        }
    }

    fn base(&self, index: u64) -> Base<'_, S> {
        Base {
            store: &self.store,
            catalog: &self.catalog,
            owned: &self.owned,
            derived: &*self.hooks.derived,
            index,
            now_ms: self.hlc.physical_ms,
            namespaces_max: self.namespaces_max,
        }
    }

    fn commit(&mut self, index: u64, effects: Effects) -> Result<(), StoreError> {
        effects.tell(index, &self.store, &mut *self.hooks.index)?;
        effects.namespaces.into_iter().for_each(|namespace| self.catalog.insert(namespace));
        self.write(WriteBatch { index, writes: effects.writes })
    }

    /// Writes what changes with every batch, once for all its entries: counters and the shard's own record. Both follow
    /// from the entries alone, so their bytes and stamps do not depend on the batching.
    fn write_bookkeeping(&mut self, applied: Position) -> Result<(), StoreError> {
        for id in self.catalog.take_dirty() {
            let namespace = self.catalog.get(id).expect("only known namespaces are counted");
            let key = key::single(Table::Counters, namespace.scope);
            let value = Some(namespace.counters.encode());
            let index = namespace.counted_at;
            self.write(WriteBatch { index, writes: vec![Write { key, op: Stamp::OP_META, value }] })?;
        }
        let meta = Meta { applied, hlc: self.hlc, root: self.root.clone() };
        let key = key::single(Table::Meta, Scope::SHARD);
        let write = Write { key, op: Stamp::OP_META, value: Some(meta.encode()) };
        self.write(WriteBatch { index: applied.index, writes: vec![write] })
    }

    fn write(&mut self, batch: WriteBatch) -> Result<(), StoreError> {
        if batch.writes.is_empty() {
            return Ok(());
        }
        let (index, mut followed) = (batch.index, Ok(()));
        let (root, catalog, next_expiry_ms) = (&mut self.root, &mut self.catalog, &mut self.next_expiry_ms);
        self.store.write(batch, &mut |change| {
            if followed.is_ok() {
                root.follow(&change);
                followed = catalog.follow(&change, index).and_then(|()| follow_expiry(next_expiry_ms, &change));
            }
        })?;
        followed
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The last applied entry; `None` before the first.
    pub fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// The highest timestamp among the applied entries.
    pub fn hlc(&self) -> Hlc {
        self.hlc
    }

    /// The state root. Costs one short hash.
    pub fn root(&self) -> StateRoot {
        self.root.root()
    }

    /// The state root by a full scan. Costs a hash of everything.
    pub fn recompute_root(&self) -> Result<StateRoot, StoreError> {
        Ok(RootAccumulator::of(&self.store)?.root())
    }

    /// The partitions that the shard owns.
    pub fn owned(&self) -> &OwnedRanges {
        &self.owned
    }

    /// The namespaces, by number.
    pub fn namespaces(&self) -> impl ExactSizeIterator<Item = &Namespace> {
        self.catalog.iter()
    }

    /// Sessions with remembered answers, and how many answers.
    pub fn session_counts(&self) -> (usize, usize) {
        (self.sessions.len(), self.sessions.answers())
    }

    /// What apply has done so far.
    pub fn stats(&self) -> ApplyStats {
        self.stats
    }

    /// Bytes of memory that the state occupies, within some ten percent.
    pub fn memory_bytes(&self) -> u64 {
        self.store.memory_bytes() + self.catalog.memory_bytes() + self.sessions.memory_bytes()
    }

    /// The store, for reads of what this module does not know: relations.
    pub fn store(&self) -> &S {
        &self.store
    }
}

fn follow_expiry(next_expiry_ms: &mut u64, change: &Change<'_>) -> Result<(), StoreError> {
    if change.new.is_some() && change.key.first() == Some(&(Table::Expiry as u8)) {
        // A mark's expiry stands in the partition's place.
        *next_expiry_ms = (*next_expiry_ms).min(LogicalKey::decode(change.key)?.scope.partition);
    }
    Ok(())
}
