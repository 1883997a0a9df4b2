//! The namespaces of a shard: their numbers, vector dimensions and live counts.
//!
//! A namespace comes into being with its first write and gets the next number. Records in the store are what counts; this
//! is their image in memory, looked up once an operation.

use super::key::{LogicalKey, NamespaceId, Scope, Table};
use super::record::{Counters, NamespaceRecord, ValueRef};
use super::store::{Change, Direction, KeyRange, Store, StoreError};
use core::ops::ControlFlow;
use gristmill_rpc::ring::namespace_point;
use rustc_hash::FxHashMap;
use std::rc::Rc;

/// Namespaces of one shard at the most. Bounds the memory of the image: a few hundred bytes each.
pub const NAMESPACES_MAX: usize = 1 << 20;

/// What a name takes in memory, as a rule.
const NAMESPACE_NAME_BYTES: usize = 48;

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Rc<str>,
    /// Where its records are.
    pub scope: Scope,
    /// Of all its vectors; `None` until the first.
    pub dimensions: Option<u32>,
    /// Its live records.
    pub counters: Counters,
    /// Log index of the last change of `counters`.
    pub(super) counted_at: u64,
}

/// All namespaces. Number n is at position n - 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    namespaces: Vec<Namespace>,
    by_name: FxHashMap<Rc<str>, NamespaceId>,
    /// Namespaces whose counters changed since they were last written to the store.
    dirty: Vec<NamespaceId>,
}

impl Catalog {
    /// The image of what a store holds.
    pub(super) fn open(store: &impl Store) -> Result<Catalog, StoreError> {
        let mut found = Vec::new();
        each(store, Table::Namespaces, &mut |key, value, _| {
            let name = String::from_utf8(key.escaped_item()?.into_owned())
                .map_err(|_| StoreError::Record { what: "namespace", detail: "name is not UTF-8" })?;
            found.push((NamespaceRecord::decode(value)?, key.scope.partition, name));
            Ok(())
        })?;
        found.sort_unstable_by_key(|(record, _, _)| record.id);
        let mut catalog = Catalog::default();
        for (record, partition, name) in found {
            if catalog.next_id() != record.id {
                return Err(StoreError::Record { what: "namespace", detail: "numbers have a gap" });
            }
            catalog.insert(Namespace {
                name: name.into(),
                scope: Scope { partition, namespace: record.id },
                dimensions: record.dimensions,
                counters: Counters::default(),
                counted_at: 0,
            });
        }
        each(store, Table::Counters, &mut |key, value, index| {
            let dangling = StoreError::Dangling { what: "namespace", by: "a counter" };
            let namespace = catalog.get_mut(key.scope.namespace).ok_or(dangling)?;
            (namespace.counters, namespace.counted_at) = (Counters::decode(value)?, index);
            Ok(())
        })?;
        Ok(catalog)
    }

    pub(super) fn len(&self) -> usize {
        self.namespaces.len()
    }

    pub(super) fn next_id(&self) -> NamespaceId {
        NamespaceId(self.namespaces.len() as u32 + 1)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Namespace> {
        self.by_name.get(name).and_then(|id| self.get(*id))
    }

    pub(super) fn get(&self, id: NamespaceId) -> Option<&Namespace> {
        self.namespaces.get((id.0 as usize).checked_sub(1)?)
    }

    fn get_mut(&mut self, id: NamespaceId) -> Option<&mut Namespace> {
        self.namespaces.get_mut((id.0 as usize).checked_sub(1)?)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Namespace> {
        self.namespaces.iter()
    }

    /// Adds a new namespace or replaces the record of an old one.
    pub(super) fn insert(&mut self, namespace: Namespace) {
        let id = namespace.scope.namespace;
        if let Some(old) = self.get_mut(id) {
            assert_eq!(old.name, namespace.name, "a namespace keeps its number");
            *old = namespace;
            return;
        }
        assert_eq!(id, self.next_id(), "numbers are dense");
        self.by_name.insert(Rc::clone(&namespace.name), id);
        self.namespaces.push(namespace);
    }

    /// Follows a change of the store in the counters.
    pub(super) fn follow(&mut self, change: &Change<'_>, index: u64) -> Result<(), StoreError> {
        let table = change.key.first().and_then(|byte| Table::from_byte(*byte));
        let Some(table @ (Table::Values | Table::Grains)) = table else { return Ok(()) };
        let (before, after) = (i64::from(change.old.is_some()), i64::from(change.new.is_some()));
        let expires = |record: Option<super::store::RecordRef<'_>>| match record {
            Some(record) if table == Table::Values => {
                Ok(i64::from(ValueRef::decode(record.value)?.expires_ms.is_some()))
            }
            _ => Ok::<i64, StoreError>(0),
        };
        let expiring = expires(change.new)? - expires(change.old)?;
        if after == before && expiring == 0 {
            return Ok(());
        }
        let id = LogicalKey::decode(change.key)?.scope.namespace;
        let namespace = self.get_mut(id).ok_or(StoreError::Dangling { what: "namespace", by: "a record" })?;
        let counters = &mut namespace.counters;
        let count = if table == Table::Values { &mut counters.values } else { &mut counters.grains };
        let short = StoreError::Record { what: "counters", detail: "counts fewer records than there are" };
        *count = count.checked_add_signed(after - before).ok_or(short.clone())?;
        counters.expiring = counters.expiring.checked_add_signed(expiring).ok_or(short)?;
        if namespace.counted_at != index {
            namespace.counted_at = index;
            self.dirty.push(id);
        }
        Ok(())
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let each = size_of::<Namespace>() + size_of::<(Rc<str>, NamespaceId)>() * 2 + NAMESPACE_NAME_BYTES;
        (self.namespaces.len() * each) as u64
    }

    /// Takes the namespaces whose counters are to be written, each once.
    pub(super) fn take_dirty(&mut self) -> Vec<NamespaceId> {
        let mut dirty = core::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }
}

/// Where a namespace's records are, once it has a number.
pub(super) fn partition_of(name: &str) -> u64 {
    namespace_point(name.as_bytes())
}

/// Visits each record of a table: key, bytes, version.
pub(super) fn each<F>(store: &impl Store, table: Table, visit: &mut F) -> Result<(), StoreError>
where
    F: FnMut(LogicalKey<'_>, &[u8], u64) -> Result<(), StoreError>,
{
    let mut result = Ok(());
    store.scan(&KeyRange::prefix(vec![table as u8]), Direction::Forward, &mut |key, record| {
        result = LogicalKey::decode(key)
            .map_err(StoreError::from)
            .and_then(|key| visit(key, record.value, record.stamp.index));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}
