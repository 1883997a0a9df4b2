//! The state root: one hash of a shard's live contents, kept up to date at a cost proportional to the change.
//!
//! An additive multiset hash after Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing: Incrementality at
//! Reduced Cost" (EUROCRYPT 1997), in the vector form of LtHash (Lewi, Kim, Maykov and Weis, "Securing Update
//! Propagation with Homomorphic Hashing", 2019): each record is hashed to sixteen 64-bit lanes by keyed BLAKE3, the
//! accumulator is their sum, lane by lane. Putting a record adds its lanes, removing it subtracts them, so the order of
//! writes does not matter and the contents do. A full scan gives the same accumulator.
//!
//! A record's hash covers its whole stored key, stamp included, and its bytes as stored: sealed bytes stay sealed. Tables
//! that follow from others are left out ([`Table::in_root`]).
//!
//! Strength: 1,024 bits of sum. Two different states with one root, made on purpose, cost about 2^64 steps with as much
//! memory (Wagner's generalised birthday attack); by accident they do not happen. A 256-bit sum would fall to 2^32
//! steps, LtHash's 16,384 bits would cost up to 2 µs a record (1,024 bits: 0.1 µs and the record's own hashing).

use super::key::{Table, push_stamp};
use super::store::{Change, Direction, KeyRange, RecordRef, Store, StoreError};
use core::fmt;
use core::ops::ControlFlow;

const LANES: usize = 16;
/// Bytes of an encoded accumulator.
pub const ACCUMULATOR_BYTES: usize = LANES * 8;

const RECORD_KEY: &[u8; 32] = b"gristmill state root record v1  ";
const ROOT_KEY: &[u8; 32] = b"gristmill state root v1         ";

/// The root of a state. Equal roots mean equal contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateRoot(pub [u8; 32]);

impl fmt::Display for StateRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The sum of the hashes of all records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootAccumulator {
    lanes: [u64; LANES],
    scratch: Vec<u8>,
}

impl RootAccumulator {
    /// Of the records that a store holds, by a full scan.
    pub fn of(store: &impl Store) -> Result<RootAccumulator, StoreError> {
        let mut root = RootAccumulator::default();
        let mut visit = |key: &[u8], record: RecordRef<'_>| {
            root.follow(&Change { key, old: None, new: Some(record) });
            ControlFlow::Continue(())
        };
        store.scan(&KeyRange::all(), Direction::Forward, &mut visit)?;
        Ok(root)
    }

    /// Follows a change of the store.
    pub fn follow(&mut self, change: &Change<'_>) {
        if !change.key.first().and_then(|byte| Table::from_byte(*byte)).is_some_and(Table::in_root) {
            return;
        }
        if let Some(old) = change.old {
            let lanes = self.hash(change.key, old);
            self.lanes.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum = sum.wrapping_sub(lane));
        }
        if let Some(new) = change.new {
            let lanes = self.hash(change.key, new);
            self.lanes.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum = sum.wrapping_add(lane));
        }
    }

    /// The root.
    pub fn root(&self) -> StateRoot {
        StateRoot(*blake3::keyed_hash(ROOT_KEY, &self.encode()).as_bytes())
    }

    /// The accumulator's bytes: the lanes, little-endian.
    pub fn encode(&self) -> [u8; ACCUMULATOR_BYTES] {
        let mut out = [0; ACCUMULATOR_BYTES];
        for (bytes, lane) in out.as_chunks_mut().0.iter_mut().zip(self.lanes) {
            *bytes = lane.to_le_bytes();
        }
        out
    }

    /// The accumulator of its bytes.
    pub fn decode(bytes: &[u8; ACCUMULATOR_BYTES]) -> RootAccumulator {
        let mut root = RootAccumulator::default();
        for (lane, bytes) in root.lanes.iter_mut().zip(bytes.as_chunks().0) {
            *lane = u64::from_le_bytes(*bytes);
        }
        root
    }

    /// The lanes of one record: keyed BLAKE3 of (stored key's length as u32, stored key, bytes), in XOF mode.
    fn hash(&mut self, key: &[u8], record: RecordRef<'_>) -> [u64; LANES] {
        self.scratch.clear();
        self.scratch.extend_from_slice(&((key.len() + super::key::STAMP_BYTES) as u32).to_le_bytes());
        self.scratch.extend_from_slice(key);
        push_stamp(&mut self.scratch, record.stamp);
        let mut hasher = blake3::Hasher::new_keyed(RECORD_KEY);
        hasher.update(&self.scratch).update(record.value);
        let mut bytes = [0; ACCUMULATOR_BYTES];
        hasher.finalize_xof().fill(&mut bytes);
        RootAccumulator::decode(&bytes).lanes
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{self, NamespaceId, Scope, Stamp};
    use super::super::memory::MemoryStore;
    use super::super::store::{Write, WriteBatch};
    use super::*;
    use proptest::prelude::*;

    const SCOPE: Scope = Scope { partition: 7, namespace: NamespaceId(1) };

    /// Applies writes, one batch each, and follows them.
    fn follow(writes: &[(u8, u64, Option<Vec<u8>>)]) -> (MemoryStore, RootAccumulator) {
        let (mut store, mut root) = (MemoryStore::new(), RootAccumulator::default());
        for (user_key, index, value) in writes {
            let write = Write { key: key::value(SCOPE, &[*user_key]), op: 0, value: value.clone() };
            let batch = WriteBatch { index: *index, writes: vec![write] };
            store.write(batch, &mut |change| root.follow(&change)).expect("memory does not fail");
        }
        (store, root)
    }

    fn root_of(writes: &[(u8, u64, Option<&[u8]>)]) -> StateRoot {
        let owned: Vec<_> = writes.iter().map(|(k, i, v)| (*k, *i, v.map(<[u8]>::to_vec))).collect();
        follow(&owned).1.root()
    }

    /// Roots are compared between versions of this software: a changed root is a changed format.
    #[test]
    fn roots_are_golden() {
        assert_eq!(
            RootAccumulator::default().root().to_string(),
            "36d03a1506b67c0f689e15b128127fc9e6ac344612d87127d6f979ce50cd829e"
        );
        assert_eq!(
            root_of(&[(1, 1, Some(b"a"))]).to_string(),
            "d32ef1f1ae3b51db1b92bb5d330258668e5b1e82ea186c75567d9f72fa7a7632"
        );
    }

    #[test]
    fn covers_key_version_and_bytes_but_not_the_order() {
        let base = root_of(&[(1, 1, Some(b"a")), (2, 2, Some(b"b"))]);
        assert_eq!(base, root_of(&[(2, 2, Some(b"b")), (1, 1, Some(b"a"))]), "order of unrelated writes");
        assert_eq!(base, root_of(&[(3, 1, Some(b"x")), (1, 1, Some(b"a")), (2, 2, Some(b"b")), (3, 4, None)]));
        assert_ne!(base, root_of(&[(1, 1, Some(b"a")), (2, 2, Some(b"c"))]), "bytes");
        assert_ne!(base, root_of(&[(1, 1, Some(b"a")), (2, 3, Some(b"b"))]), "version");
        assert_ne!(base, root_of(&[(1, 1, Some(b"a")), (3, 2, Some(b"b"))]), "key");
        assert_ne!(base, root_of(&[(1, 1, Some(b"a"))]), "presence");
    }

    #[test]
    fn the_border_between_key_and_bytes_counts() {
        let mut root = RootAccumulator::default();
        let stamp = Stamp { index: 1, op: 0 };
        let short = root.hash(b"ab", RecordRef { stamp, value: b"" });
        // The same bytes in total, with the border elsewhere: without the length both would hash alike.
        let mut value = b"b".to_vec();
        push_stamp(&mut value, stamp);
        assert_ne!(short, root.hash(b"a", RecordRef { stamp, value: &value }));
    }

    #[test]
    fn derived_tables_are_left_out() {
        let mut root = RootAccumulator::default();
        let record = RecordRef { stamp: Stamp { index: 1, op: 0 }, value: b"x" };
        for table in Table::ALL {
            let before = root.clone();
            root.follow(&Change { key: &key::single(table, SCOPE), old: None, new: Some(record) });
            assert_eq!(root.lanes != before.lanes, table.in_root(), "{table:?}");
        }
    }

    proptest! {
        /// Kept up to date through any history, it is what a full scan computes, and survives its encoding.
        #[test]
        fn equals_a_full_scan(
            writes in prop::collection::vec(
                (0u8..6, prop::option::of(prop::collection::vec(any::<u8>(), 0..80))), 0..60),
        ) {
            let writes: Vec<_> =
                writes.into_iter().enumerate().map(|(i, (key, value))| (key, i as u64 + 1, value)).collect();
            let (store, root) = follow(&writes);
            let scanned = RootAccumulator::of(&store).expect("memory does not fail");
            prop_assert_eq!(scanned.lanes, root.lanes);
            prop_assert_eq!(RootAccumulator::decode(&root.encode()).root(), root.root());
        }
    }
}
