//! The memory store: an ordered map of the newest version of each record.
//!
//! A B-tree for each table. Keys keep their first 32 bytes inline, as four big-endian words: comparisons during a descent
//! touch the node and nothing else, and the common keys (plain values with user keys up to 17 bytes, answers of sessions)
//! need no allocation of their own. Nor do short values.

use super::key::Stamp;
use super::store::{Change, Direction, KeyRange, RecordRef, Store, StoreError, WriteBatch};
use core::cmp::Ordering;
use core::ops::{Bound, ControlFlow};
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};

/// First bytes that a key can have.
const TABLES: usize = 1 << u8::BITS;
const INLINE_WORDS: usize = 4;
const INLINE_BYTES: usize = INLINE_WORDS * 8;

/// What a record costs beside its bytes: its slot in a node that is two thirds full, and the allocator's share.
const RECORD_OVERHEAD_BYTES: u64 = (size_of::<MemoryKey>() + size_of::<MemoryRecord>()) as u64 * 3 / 2 + 16;

#[derive(Debug, Clone, PartialEq, Eq)]
struct MemoryKey {
    /// The first bytes, padded with zeroes.
    words: [u64; INLINE_WORDS],
    length: u32,
    /// The bytes beyond the inline ones.
    rest: Box<[u8]>,
}

impl MemoryKey {
    fn new(bytes: &[u8]) -> MemoryKey {
        let mut inline = [0; INLINE_BYTES];
        let split = bytes.len().min(INLINE_BYTES);
        inline[..split].copy_from_slice(&bytes[..split]);
        let mut words = [0; INLINE_WORDS];
        for (word, chunk) in words.iter_mut().zip(inline.as_chunks().0) {
            *word = u64::from_be_bytes(*chunk);
        }
        MemoryKey { words, length: bytes.len() as u32, rest: bytes[split..].into() }
    }

    /// Writes the whole key to `out`, replacing what it holds.
    fn restore(&self, out: &mut Vec<u8>) {
        out.clear();
        for word in self.words {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.truncate(self.length as usize);
        out.extend_from_slice(&self.rest);
    }
}

impl Ord for MemoryKey {
    /// Byte order. Where the padded inline bytes tie, a shorter key is a prefix of the longer one up to the inline
    /// length (the padding is the smallest byte), so the rest decides, and then the length.
    fn cmp(&self, other: &MemoryKey) -> Ordering {
        self.words
            .cmp(&other.words)
            .then_with(|| self.rest.cmp(&other.rest))
            .then_with(|| self.length.cmp(&other.length))
    }
}

impl PartialOrd for MemoryKey {
    fn partial_cmp(&self, other: &MemoryKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Longest value that is kept inline: answers of sessions and subject tokens are.
const INLINE_VALUE_BYTES: usize = 22;

#[derive(Debug, Clone)]
enum MemoryValue {
    Inline { length: u8, bytes: [u8; INLINE_VALUE_BYTES] },
    Heap(Box<[u8]>),
}

impl MemoryValue {
    fn new(value: Vec<u8>) -> MemoryValue {
        if value.len() > INLINE_VALUE_BYTES {
            return MemoryValue::Heap(value.into_boxed_slice());
        }
        let mut bytes = [0; INLINE_VALUE_BYTES];
        bytes[..value.len()].copy_from_slice(&value);
        MemoryValue::Inline { length: value.len() as u8, bytes }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            MemoryValue::Inline { length, bytes } => &bytes[..usize::from(*length)],
            MemoryValue::Heap(bytes) => bytes,
        }
    }

    /// Bytes beside the record's own.
    fn heap_bytes(&self) -> u64 {
        match self {
            MemoryValue::Inline { .. } => 0,
            MemoryValue::Heap(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Debug, Clone)]
struct MemoryRecord {
    stamp: Stamp,
    value: MemoryValue,
}

impl MemoryRecord {
    fn as_ref(&self) -> RecordRef<'_> {
        RecordRef { stamp: self.stamp, value: self.value.as_slice() }
    }
}

type Records = BTreeMap<MemoryKey, MemoryRecord>;

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    /// By the first byte of the key: a table's records stay together, and one table's size does not slow the others.
    tables: Vec<Records>,
    len: usize,
    heap_bytes: u64,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore { tables: vec![Records::new(); TABLES], len: 0, heap_bytes: 0 }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Number of live records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn put(&mut self, key: &[u8], stamp: Stamp, value: Vec<u8>, report: &mut dyn FnMut(Change<'_>)) {
        let record = MemoryRecord { stamp, value: MemoryValue::new(value) };
        self.heap_bytes += record.value.heap_bytes();
        match self.tables[table_of(key)].entry(MemoryKey::new(key)) {
            Entry::Occupied(mut entry) => {
                let old = entry.insert(record);
                self.heap_bytes -= old.value.heap_bytes();
                report(Change { key, old: Some(old.as_ref()), new: Some(entry.get().as_ref()) });
            }
            Entry::Vacant(entry) => {
                self.len += 1;
                self.heap_bytes += entry.key().rest.len() as u64;
                report(Change { key, old: None, new: Some(entry.insert(record).as_ref()) });
            }
        }
    }

    fn remove(&mut self, key: &[u8], report: &mut dyn FnMut(Change<'_>)) {
        let old = self.tables[table_of(key)].remove_entry(&MemoryKey::new(key));
        if let Some((key, record)) = &old {
            self.len -= 1;
            self.heap_bytes -= key.rest.len() as u64 + record.value.heap_bytes();
        }
        report(Change { key, old: old.as_ref().map(|(_, record)| record.as_ref()), new: None });
    }

    /// The records of one table that are in a range.
    fn range_of(&self, table: usize, range: &KeyRange) -> Range<'_, MemoryKey, MemoryRecord> {
        let start = Bound::Included(MemoryKey::new(&range.start));
        let end = range.end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(MemoryKey::new(end)));
        self.tables[table].range((start, end))
    }
}

/// Where a key's records are. The empty key, which only bounds of ranges are, is before all.
fn table_of(key: &[u8]) -> usize {
    key.first().map_or(0, |byte| usize::from(*byte))
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError> {
        Ok(self.tables[table_of(key)].get(&MemoryKey::new(key)).map(MemoryRecord::as_ref))
    }

    fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        visit: &mut dyn FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let (first, last) = (table_of(&range.start), range.end.as_ref().map_or(TABLES - 1, |end| table_of(end)));
        let mut key = Vec::new();
        let mut visit = |(memory_key, record): (&MemoryKey, &MemoryRecord)| {
            memory_key.restore(&mut key);
            visit(&key, record.as_ref())
        };
        for at in first..=last {
            let stopped = match direction {
                Direction::Forward => self.range_of(at, range).try_for_each(&mut visit),
                Direction::Reverse => self.range_of(last - (at - first), range).rev().try_for_each(&mut visit),
            };
            if stopped.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: WriteBatch, report: &mut dyn FnMut(Change<'_>)) -> Result<(), StoreError> {
        for write in batch.writes {
            match write.value {
                Some(value) => self.put(&write.key, Stamp { index: batch.index, op: write.op }, value, report),
                None => self.remove(&write.key, report),
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.heap_bytes + self.len as u64 * RECORD_OVERHEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Write;
    use super::*;
    use proptest::prelude::*;

    type Model = BTreeMap<Vec<u8>, (Stamp, Vec<u8>)>;

    /// Keys around the inline length, with bytes that padding could confuse.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let byte = || prop_oneof![Just(0u8), Just(1), Just(0xff)];
        (0usize..3, prop::collection::vec(byte(), 0..4))
            .prop_map(|(padding, tail)| [vec![7; [0, INLINE_BYTES - 2, INLINE_BYTES + 3][padding]], tail].concat())
    }

    fn scanned(store: &MemoryStore, range: &KeyRange, direction: Direction) -> Vec<(Vec<u8>, Stamp, Vec<u8>)> {
        let mut out = Vec::new();
        let mut visit = |key: &[u8], record: RecordRef<'_>| {
            out.push((key.to_vec(), record.stamp, record.value.to_vec()));
            ControlFlow::Continue(())
        };
        store.scan(range, direction, &mut visit).expect("memory does not fail");
        out
    }

    proptest! {
        #[test]
        fn keys_order_as_their_bytes(a in key(), b in key()) {
            prop_assert_eq!(MemoryKey::new(&a).cmp(&MemoryKey::new(&b)), a.cmp(&b));
            let mut restored = vec![9];
            MemoryKey::new(&a).restore(&mut restored);
            prop_assert_eq!(restored, a);
        }

        /// Against a plain ordered map: contents, reported changes, ranges both ways, and memory back to zero.
        #[test]
        fn behaves_as_an_ordered_map(
            writes in prop::collection::vec((key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..40))), 0..60),
            start in key(), end in prop::option::of(key()),
        ) {
            let mut store = MemoryStore::new();
            let mut model = Model::new();
            for (index, (key, value)) in writes.into_iter().enumerate() {
                let stamp = Stamp { index: index as u64, op: 3 };
                let old = match value.clone() {
                    Some(value) => model.insert(key.clone(), (stamp, value)),
                    None => model.remove(&key),
                };
                let batch = WriteBatch { index: index as u64, writes: vec![Write { key: key.clone(), op: 3, value }] };
                let mut reported = Vec::new();
                store.write(batch, &mut |change| {
                    let own = |record: RecordRef<'_>| (record.stamp, record.value.to_vec());
                    reported.push((change.key.to_vec(), change.old.map(own), change.new.map(own)));
                }).expect("memory does not fail");
                prop_assert_eq!(reported, vec![(key.clone(), old, model.get(&key).cloned())]);
                let found = store.get(&key).expect("memory does not fail").map(|r| (r.stamp, r.value.to_vec()));
                prop_assert_eq!(found.as_ref(), model.get(&key));
            }
            let range = KeyRange { start: start.clone(), end: end.clone() };
            let mut expected: Vec<_> = model.iter()
                .filter(|(key, _)| **key >= start && end.as_ref().is_none_or(|end| *key < end))
                .map(|(key, (stamp, value))| (key.clone(), *stamp, value.clone())).collect();
            prop_assert_eq!(&scanned(&store, &range, Direction::Forward), &expected);
            expected.reverse();
            prop_assert_eq!(&scanned(&store, &range, Direction::Reverse), &expected);

            let held: usize = model
            .iter()
            .map(|(key, (_, value))| {
                let value = if value.len() > INLINE_VALUE_BYTES { value.len() } else { 0 };
                value + key.len().saturating_sub(INLINE_BYTES)
            })
            .sum();
        prop_assert_eq!(store.memory_bytes(), held as u64 + model.len() as u64 * RECORD_OVERHEAD_BYTES);
        }
    }

    #[test]
    fn a_scan_stops_when_told() {
        let mut store = MemoryStore::new();
        let writes = (0..9u8).map(|i| Write { key: vec![i], op: 0, value: Some(vec![]) }).collect();
        store.write(WriteBatch { index: 1, writes }, &mut |_| {}).expect("memory does not fail");
        let mut seen = 0;
        let mut visit = |_: &[u8], _: RecordRef<'_>| {
            seen += 1;
            if seen == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        store.scan(&KeyRange::all(), Direction::Forward, &mut visit).expect("memory does not fail");
        assert_eq!(seen, 4);
    }
}
