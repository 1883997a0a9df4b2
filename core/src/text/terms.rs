//! A hash table from terms to small values, made to be grown fast and dropped at once.
//!
//! ```text
//!  slots:   [ 0 | 3 | 0 | 1 | 2 ... ]   open addressing, linear probing; entry number + 1, 0 = free
//!  entries: [ {start, length, hash, value} ... ]   in order of first insertion
//!  bytes:   "recalltantivybm25..."                 the terms, end to end
//! ```
//!
//! Three allocations whatever the number of terms, so dropping a table of 100,000 terms costs microseconds where a map
//! of boxed strings would hold the core for milliseconds. Entries are never removed one by one.

use rustc_hash::FxHasher;
use std::hash::Hasher;

const SLOTS_MIN: usize = 16;
/// A cleared table keeps its memory up to this many entries, so that one huge text does not pin its scratch space.
const ENTRIES_KEPT_MAX: usize = 4096;

#[derive(Debug, Clone)]
struct Entry<V> {
    start: u32,
    length: u32,
    hash: u32,
    value: V,
}

/// A map from term bytes to `V`. Iterates in order of first insertion.
#[derive(Debug, Clone)]
pub(super) struct TermTable<V> {
    slots: Vec<u32>,
    entries: Vec<Entry<V>>,
    bytes: Vec<u8>,
}

impl<V> Default for TermTable<V> {
    fn default() -> Self {
        TermTable { slots: Vec::new(), entries: Vec::new(), bytes: Vec::new() }
    }
}

impl<V> TermTable<V> {
    /// The terms, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        self.entries.iter().map(|entry| (self.term(entry), &entry.value))
    }

    /// The value of a term.
    pub fn get(&self, term: &[u8]) -> Option<&V> {
        if self.entries.is_empty() {
            return None;
        }
        match self.find(term, hash(term)) {
            Ok(entry) => Some(&self.entries[entry].value),
            Err(_) => None,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if self.entries.len() > ENTRIES_KEPT_MAX {
            *self = TermTable::default();
            return;
        }
        self.slots.fill(0);
        self.entries.clear();
        self.bytes.clear();
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
            + self.entries.capacity() * size_of::<Entry<V>>()
            + self.bytes.capacity()
    }

    fn term(&self, entry: &Entry<V>) -> &[u8] {
        &self.bytes[entry.start as usize..][..entry.length as usize]
    }

    /// The entry that holds the term, or the slot where it belongs.
    fn find(&self, term: &[u8], hash: u32) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let Some(number) = self.slots[slot].checked_sub(1) else { return Err(slot) };
            let entry = &self.entries[number as usize];
            if entry.hash == hash && self.term(entry) == term {
                return Ok(number as usize);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// At most half of the slots are used: probes stay short.
    fn grow(&mut self) {
        let length = (self.slots.len() * 2).max(SLOTS_MIN);
        let mask = length - 1;
        let mut slots = vec![0; length];
        for (number, entry) in self.entries.iter().enumerate() {
            let mut slot = entry.hash as usize & mask;
            while slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            slots[slot] = number as u32 + 1;
        }
        self.slots = slots;
    }
}

impl<V: Default> TermTable<V> {
    /// The value of a term, which is added with the default value if it is new.
    pub fn get_or_default(&mut self, term: &[u8]) -> &mut V {
        if self.entries.len() * 2 >= self.slots.len() {
            self.grow();
        }
        let hash = hash(term);
        let number = match self.find(term, hash) {
            Ok(number) => number,
            Err(slot) => {
                let start = u32::try_from(self.bytes.len()).expect("a term table holds less than 4 GiB of terms");
                self.bytes.extend_from_slice(term);
                self.entries.push(Entry { start, length: term.len() as u32, hash, value: V::default() });
                self.slots[slot] = self.entries.len() as u32;
                self.entries.len() - 1
            }
        };
        &mut self.entries[number].value
    }
}

fn hash(term: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(term);
    let hash = hasher.finish();
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn counts_like_a_map(words in prop::collection::vec("[a-f]{0,3}", 0..400)) {
            let mut table = TermTable::<u32>::default();
            let mut model = BTreeMap::<&str, u32>::new();
            for word in &words {
                *table.get_or_default(word.as_bytes()) += 1;
                *model.entry(word).or_default() += 1;
            }
            let mut got: Vec<_> = table.iter().map(|(term, count)| (std::str::from_utf8(term).unwrap(), *count)).collect();
            got.sort_unstable();
            prop_assert_eq!(got, model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
            for (word, count) in &model {
                prop_assert_eq!(table.get(word.as_bytes()), Some(count));
            }
            prop_assert_eq!(table.get(b"never"), None);
            table.clear();
            prop_assert_eq!(table.iter().count(), 0);
            prop_assert_eq!(table.get(b"a"), None);
        }
    }
}
