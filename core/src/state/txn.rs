//! One entry's effects, gathered before any of them happens.
//!
//! ```text
//!  operations, in order ──▶ Txn: reads see what earlier operations wrote, then the store
//!                            │ all hold                      │ one does not
//!                            ▼                               ▼
//!                       one write batch                 nothing, and a verdict
//! ```

use super::catalog::{Catalog, Namespace, partition_of};
use super::events::{DerivedKeys, IndexEvent, IndexSink};
use super::grain::{GrainRef, encode_grain};
use super::key::{self, LogicalKey, NamespaceId, Scope, Stamp, SubjectToken, Table};
use super::outcome::{Rejection, Verdict};
use super::ranges::OwnedRanges;
use super::record::{Counters, NamespaceRecord, ValueRef};
use super::store::{Direction, KeyRange, RecordRef, Store, StoreError, Write};
use core::ops::ControlFlow;
use gristmill_rpc::ids::{GrainId, Version};
use gristmill_rpc::schema::{ArchivedExpected, ArchivedGrain, ArchivedOperation};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Up to so many writes are searched one by one; an index over more than these pays for itself.
const UNINDEXED_WRITES: usize = 8;

/// What an entry is applied against.
pub(super) struct Base<'a, S> {
    pub(super) store: &'a S,
    pub(super) catalog: &'a Catalog,
    pub(super) owned: &'a OwnedRanges,
    pub(super) derived: &'a dyn DerivedKeys,
    /// The entry's log index.
    pub(super) index: u64,
    /// The shard's time, as its log tells it.
    pub(super) now_ms: u64,
    /// Namespaces that the shard may have.
    pub(super) namespaces_max: usize,
}

/// Why an operation ends its command.
pub(super) enum Stop {
    /// As the log has it: the command's answer.
    Verdict(Verdict),
    /// Fatal.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Stop {
        Stop::Verdict(Verdict::Rejected(rejection))
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    /// Values removed.
    pub(super) removed: usize,
    /// Of the values in the store that are left, the first expires then; `u64::MAX` where none does.
    pub(super) next_expiry_ms: u64,
}

/// The mark of a value that expires.
struct Mark {
    key: Vec<u8>,
    value_key: Vec<u8>,
}

impl Mark {
    /// When the marked value expires, and its logical key.
    fn decode(mark: &[u8], record: &[u8]) -> Result<(u64, Vec<u8>), StoreError> {
        let malformed = StoreError::Record { what: "expiry", detail: "not a partition" };
        let partition = u64::from_be_bytes(record.try_into().map_err(|_| malformed)?);
        let decoded = LogicalKey::decode(mark)?;
        let scope = Scope { partition, namespace: decoded.scope.namespace };
        Ok((decoded.scope.partition, key::value(scope, &decoded.escaped_item()?)))
    }
}

/// What a command does to one grain in the end.
struct TouchedGrain {
    id: GrainId,
    namespace: NamespaceId,
    /// Logical key of the record from before the command; `None` where there was none.
    old_key: Option<Vec<u8>>,
    /// Logical key of the new record; `None` where the grain is gone.
    key: Option<Vec<u8>>,
}

/// See the module documentation.
pub(super) struct Txn<'a, S> {
    base: Base<'a, S>,
    writes: Vec<Write>,
    /// Positions of the first `indexed` writes.
    positions: FxHashMap<Vec<u8>, usize>,
    indexed: usize,
    /// New namespaces, and old ones whose record changes.
    namespaces: FxHashMap<Rc<str>, Namespace>,
    created: usize,
    grains: Vec<TouchedGrain>,
    grain_positions: FxHashMap<(NamespaceId, GrainId), usize>,
}

/// What a finished [`Txn`] leaves.
pub(super) struct Effects {
    pub(super) writes: Vec<Write>,
    /// By number.
    pub(super) namespaces: Vec<Namespace>,
    grains: Vec<TouchedGrain>,
}

impl<'a, S: Store> Txn<'a, S> {
    pub(super) fn new(base: Base<'a, S>) -> Txn<'a, S> {
        Txn {
            base,
            writes: Vec::new(),
            positions: FxHashMap::default(),
            indexed: 0,
            namespaces: FxHashMap::default(),
            created: 0,
            grains: Vec::new(),
            grain_positions: FxHashMap::default(),
        }
    }

    /// Performs one operation, the `op`th of its command.
    pub(super) fn operation(&mut self, op: u16, operation: &ArchivedOperation) -> Result<(), Stop> {
        match operation {
            ArchivedOperation::Put { namespace, key, value, ttl_ms } => {
                let scope = self.scope_to_write(op, namespace)?;
                let ttl_ms = ttl_ms.to_native();
                let expires_ms = (ttl_ms != 0).then(|| self.base.now_ms.saturating_add(ttl_ms));
                self.put_value(op, scope, key, &ValueRef { expires_ms, bytes: value })
            }
            ArchivedOperation::Delete { namespace, key } => match self.scope_to_read(op, namespace)? {
                Some(scope) => self.delete_value(op, scope, key),
                None => Ok(()),
            },
            ArchivedOperation::CompareAndSet { namespace, key, expected, value } => {
                let scope = self.scope_to_read(op, namespace)?;
                self.check_expected(op, scope, key, expected)?;
                match (value.as_ref(), scope) {
                    (Some(value), _) => {
                        let scope = self.scope_to_write(op, namespace)?;
                        self.put_value(op, scope, key, &ValueRef { expires_ms: None, bytes: value })
                    }
                    (None, Some(scope)) => self.delete_value(op, scope, key),
                    (None, None) => Ok(()),
                }
            }
            ArchivedOperation::PutGrain { grain } => self.put_grain(op, grain),
            ArchivedOperation::DeleteGrain { namespace, id } => match self.scope_to_read(op, namespace)? {
                Some(scope) => self.delete_grain(op, scope, GrainId(id.0)),
                None => Ok(()),
            },
        }
    }

    /// Removes up to `limit` of the values that have expired, except those that an operation has just written.
    pub(super) fn sweep(&mut self, limit: usize) -> Result<Swept, StoreError> {
        let (now_ms, mut marks) = (self.base.now_ms, Vec::new());
        let mut swept = Swept { removed: 0, next_expiry_ms: u64::MAX };
        let mut malformed = Ok(());
        self.base.store.scan(
            &KeyRange::prefix(vec![Table::Expiry as u8]),
            Direction::Forward,
            &mut |mark, record| {
                match Mark::decode(mark, record.value) {
                    Ok((expires_ms, _)) if expires_ms > now_ms || marks.len() == limit => {
                        swept.next_expiry_ms = expires_ms;
                        return ControlFlow::Break(());
                    }
                    Ok((_, value_key)) => marks.push(Mark { key: mark.to_vec(), value_key }),
                    Err(error) => malformed = Err(error),
                }
                if malformed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        )?;
        malformed?;
        for mark in marks {
            if self.position(&mark.key).is_none() {
                self.set(Stamp::OP_SWEEP, mark.value_key, None);
                self.set(Stamp::OP_SWEEP, mark.key, None);
                swept.removed += 1;
            }
        }
        Ok(swept)
    }

    /// All effects.
    pub(super) fn finish(self) -> Effects {
        let mut namespaces: Vec<_> = self.namespaces.into_values().collect();
        namespaces.sort_unstable_by_key(|namespace| namespace.scope.namespace);
        Effects { writes: self.writes, namespaces, grains: self.grains }
    }

    fn put_value(&mut self, op: u16, scope: Scope, user_key: &[u8], value: &ValueRef<'_>) -> Result<(), Stop> {
        let record_key = key::value(scope, user_key);
        self.unmark(op, scope, user_key, &record_key)?;
        if let Some(expires_ms) = value.expires_ms {
            let partition = scope.partition.to_be_bytes().to_vec();
            self.set(op, key::expiry(expires_ms, scope.namespace, user_key), Some(partition));
        }
        self.set(op, record_key, Some(value.encode()));
        Ok(())
    }

    fn delete_value(&mut self, op: u16, scope: Scope, user_key: &[u8]) -> Result<(), Stop> {
        let record_key = key::value(scope, user_key);
        self.unmark(op, scope, user_key, &record_key)?;
        self.set(op, record_key, None);
        Ok(())
    }

    /// Removes the mark of the value's expiry, if it has one. Namespaces in which nothing expires need no look.
    fn unmark(&mut self, op: u16, scope: Scope, user_key: &[u8], record_key: &[u8]) -> Result<(), Stop> {
        let expiring = self.base.catalog.get(scope.namespace).is_some_and(|namespace| namespace.counters.expiring > 0);
        if !expiring && self.writes.is_empty() {
            return Ok(());
        }
        let Some(old) = self.get(record_key)? else { return Ok(()) };
        if let Some(expires_ms) = ValueRef::decode(old.value)?.expires_ms {
            self.set(op, key::expiry(expires_ms, scope.namespace, user_key), None);
        }
        Ok(())
    }

    fn check_expected(
        &self,
        op: u16,
        scope: Option<Scope>,
        user_key: &[u8],
        expected: &ArchivedExpected,
    ) -> Result<(), Stop> {
        let record = match scope {
            Some(scope) => self.get(&key::value(scope, user_key))?,
            None => None,
        };
        let found = match record {
            Some(record) => Some((record.stamp.index, ValueRef::decode(record.value)?)),
            None => None,
        };
        let found = found.filter(|(_, value)| !value.expired_at(self.base.now_ms));
        let holds = match expected {
            ArchivedExpected::Absent => found.is_none(),
            ArchivedExpected::Version(version) => found.is_some_and(|(index, _)| index == version.0.to_native()),
            ArchivedExpected::Value(bytes) => found.is_some_and(|(_, value)| value.bytes == bytes.as_slice()),
        };
        if holds {
            return Ok(());
        }
        let found = found.map(|(index, _)| Version(index));
        Err(Stop::Verdict(Verdict::PreconditionFailed { operation: u32::from(op), found }))
    }

    fn put_grain(&mut self, op: u16, grain: &ArchivedGrain) -> Result<(), Stop> {
        let scope = self.scope_to_write(op, &grain.namespace)?;
        if let Some(vector) = grain.vector.as_ref() {
            self.check_dimensions(op, &grain.namespace, vector.len() as u32)?;
        }
        let id = GrainId(grain.id.0);
        let token = SubjectToken::of(&grain.subject);
        let (record_key, record) = (key::grain(scope, token, id), encode_grain(grain));
        let old_key = self.grain_key(scope, id)?;
        // Reads the old record, so before that is removed.
        self.derive(op, scope, id, old_key.as_deref(), Some(&GrainRef::decode(&record)?))?;
        self.touch(scope.namespace, id, old_key.clone(), Some(record_key.clone()));
        if old_key.as_ref() != Some(&record_key) {
            self.set(op, key::grain_id(scope, id), Some(token.0.to_vec()));
            if let Some(old_key) = old_key {
                self.set(op, old_key, None);
            }
        }
        self.set(op, record_key, Some(record));
        Ok(())
    }

    fn delete_grain(&mut self, op: u16, scope: Scope, id: GrainId) -> Result<(), Stop> {
        let Some(old_key) = self.grain_key(scope, id)? else { return Ok(()) };
        self.derive(op, scope, id, Some(&old_key), None)?;
        self.touch(scope.namespace, id, Some(old_key.clone()), None);
        self.set(op, key::grain_id(scope, id), None);
        self.set(op, old_key, None);
        Ok(())
    }

    /// Logical key of a grain's record, by its id.
    fn grain_key(&self, scope: Scope, id: GrainId) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(record) = self.get(&key::grain_id(scope, id))? else { return Ok(None) };
        let malformed = StoreError::Record { what: "grain id", detail: "not a subject token" };
        let token = SubjectToken(record.value.try_into().map_err(|_| malformed)?);
        Ok(Some(key::grain(scope, token, id)))
    }

    /// Writes the difference between the derived keys of the old grain and of the new one.
    fn derive(
        &mut self,
        op: u16,
        scope: Scope,
        id: GrainId,
        old_key: Option<&[u8]>,
        new: Option<&GrainRef<'_>>,
    ) -> Result<(), StoreError> {
        let keys_of = |grain: &GrainRef<'_>| {
            let mut keys = BTreeSet::new();
            self.base.derived.visit(scope, id, grain, &mut |key| {
                keys.insert(key);
            });
            keys
        };
        let mut old = BTreeSet::new();
        if let Some(old_key) = old_key {
            let record = self.get(old_key)?.ok_or(StoreError::Dangling { what: "grain", by: "its id" })?;
            old = keys_of(&GrainRef::decode(record.value)?);
        }
        let new = new.map(keys_of).unwrap_or_default();
        for key in old.difference(&new) {
            self.set(op, key.clone(), None);
        }
        for key in new.difference(&old) {
            self.set(op, key.clone(), Some(Vec::new()));
        }
        Ok(())
    }

    /// Notes what becomes of a grain. The first note has its old key from the store, later ones from the command itself.
    fn touch(&mut self, namespace: NamespaceId, id: GrainId, old_key: Option<Vec<u8>>, key: Option<Vec<u8>>) {
        let next = self.grains.len();
        let at = *self.grain_positions.entry((namespace, id)).or_insert(next);
        match self.grains.get_mut(at) {
            Some(touched) => touched.key = key,
            None => self.grains.push(TouchedGrain { id, namespace, old_key, key }),
        }
    }

    fn check_dimensions(&mut self, op: u16, name: &str, found: u32) -> Result<(), Stop> {
        let namespace = self.namespace(name).expect("the caller writes to it");
        let expected = namespace.dimensions;
        match expected {
            Some(expected) if expected == found => Ok(()),
            None if found > 0 => {
                let fixed = Namespace { dimensions: Some(found), ..namespace.clone() };
                self.set_namespace(op, fixed);
                Ok(())
            }
            _ => Err(Rejection::WrongDimension { operation: u32::from(op), expected, found }.into()),
        }
    }

    fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name).or_else(|| self.base.catalog.by_name(name))
    }

    fn set_namespace(&mut self, op: u16, namespace: Namespace) {
        let record = NamespaceRecord { id: namespace.scope.namespace, dimensions: namespace.dimensions };
        self.set(op, key::namespace(namespace.scope.partition, &namespace.name), Some(record.encode()));
        self.namespaces.insert(Rc::clone(&namespace.name), namespace);
    }

    /// Where a namespace's records are; `None` where nothing was ever written to it.
    fn scope_to_read(&self, op: u16, name: &str) -> Result<Option<Scope>, Stop> {
        let scope = self.namespace(name).map(|namespace| namespace.scope);
        let partition = scope.map_or_else(|| partition_of(name), |scope| scope.partition);
        if self.base.owned.contains(partition) {
            return Ok(scope);
        }
        Err(Rejection::WrongShard { operation: u32::from(op), partition }.into())
    }

    /// The same, creating the namespace if need be.
    fn scope_to_write(&mut self, op: u16, name: &str) -> Result<Scope, Stop> {
        if let Some(scope) = self.scope_to_read(op, name)? {
            return Ok(scope);
        }
        let number = self.base.catalog.len() + self.created;
        if number >= self.base.namespaces_max {
            return Err(Rejection::TooManyNamespaces { operation: u32::from(op) }.into());
        }
        self.created += 1;
        let scope = Scope { partition: partition_of(name), namespace: NamespaceId(number as u32 + 1) };
        let counters = Counters::default();
        self.set_namespace(op, Namespace { name: name.into(), scope, dimensions: None, counters, counted_at: 0 });
        Ok(scope)
    }

    /// The live record under a key, as the operations so far have left it.
    fn get(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError> {
        let pending = if self.writes.is_empty() { None } else { self.find(key) };
        let Some(write) = pending.map(|at| &self.writes[at]) else { return self.base.store.get(key) };
        let stamp = Stamp { index: self.base.index, op: write.op };
        Ok(write.value.as_deref().map(|value| RecordRef { stamp, value }))
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let behind = || self.writes[self.indexed..].iter().position(|write| write.key == key);
        self.positions.get(key).copied().or_else(|| behind().map(|at| at + self.indexed))
    }

    fn position(&mut self, key: &[u8]) -> Option<usize> {
        if self.writes.len() - self.indexed > UNINDEXED_WRITES {
            let new = self.writes[self.indexed..].iter().zip(self.indexed..);
            self.positions.extend(new.map(|(write, at)| (write.key.clone(), at)));
            self.indexed = self.writes.len();
        }
        self.find(key)
    }

    fn set(&mut self, op: u16, key: Vec<u8>, value: Option<Vec<u8>>) {
        match self.position(&key) {
            Some(at) => (self.writes[at].op, self.writes[at].value) = (op, value),
            None => self.writes.push(Write { key, op, value }),
        }
    }
}

impl Effects {
    /// Tells the indexes what happens to each grain in the end, in the order in which the command touched them. The store
    /// is as it was before the command.
    pub(super) fn tell(&self, index: u64, store: &impl Store, sink: &mut dyn IndexSink) -> Result<(), StoreError> {
        if self.grains.is_empty() {
            return Ok(());
        }
        let records: FxHashMap<&[u8], &[u8]> = self
            .writes
            .iter()
            .filter_map(|write| Some((write.key.as_slice(), write.value.as_deref()?)))
            .filter(|(key, _)| key[0] == Table::Grains as u8)
            .collect();
        let version = Version(index);
        for TouchedGrain { id, namespace, old_key, key } in &self.grains {
            let (id, namespace) = (*id, *namespace);
            let mut old = None;
            if let Some(old_key) = old_key {
                let record = store.get(old_key)?.ok_or(StoreError::Dangling { what: "grain", by: "its id" })?;
                old = Some(GrainRef::decode(record.value)?);
            }
            if let Some(key) = key {
                let grain = GrainRef::decode(records[key.as_slice()])?;
                sink.index(IndexEvent::PutGrain { namespace, id, version, grain, old });
            } else if let Some(old) = old {
                sink.index(IndexEvent::DeleteGrain { namespace, id, version, old });
            }
        }
        Ok(())
    }
}
