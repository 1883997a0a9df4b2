//! The grains of a namespace, as the index knows them: a small number (slot) for each, and which row is its live one.
//!
//! ```text
//!  by id:    GrainId ──▶ slot          slots:   [ {id, row 9, vector 4} | {id, row 3} | free | ... ]
//! ```
//!
//! * A **slot** is dense and is used again after its grain is gone; a grain that is replaced keeps it. Sets of grains
//!   (filters) are bitmaps of slots.
//! * A **row** is given out once, to one version of one grain, and ascends. An index entry carries its slot and row, and is
//!   alive as long as the slot still has that row. So a grain dies everywhere by one write here, and nothing else has to be
//!   found or marked.
//!
//! While recalls run, the rows given out since the oldest of them began are remembered, so that each can look at what came
//! meanwhile before it answers.
//!
//! An ordered map finds slots by id: it grows without the pauses of a table that is rehashed, and no choice of ids slows it.

use gristmill_rpc::ids::GrainId;
use std::collections::{BTreeMap, VecDeque};

const NO_ROW: u64 = 0;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Roster {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_id: BTreeMap<GrainId, u32>,
    /// The highest row given out.
    rows: u64,
    /// Recalls under way, by the first row that they have not seen.
    readers: BTreeMap<u64, u32>,
    /// Rows given out since the oldest of them began, with their slots.
    recent: VecDeque<(u64, u32)>,
}

#[derive(Clone, Copy)]
struct Slot {
    id: GrainId,
    row: u64,
    vector: Option<u32>,
}

/// What a grain had before it was replaced or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Former {
    /// Its row.
    pub row: u64,
    /// Where its vector was.
    pub vector: Option<u32>,
}

impl Roster {
    /// Gives a grain a new row: (slot, row, what it had before).
    pub fn put(&mut self, id: GrainId) -> (u32, u64, Option<Former>) {
        self.rows += 1;
        let row = self.rows;
        let new = Slot { id, row, vector: None };
        let (slot, former) = if let Some(slot) = self.by_id.get(&id) {
            let former = std::mem::replace(&mut self.slots[*slot as usize], new);
            (*slot, Some(Former { row: former.row, vector: former.vector }))
        } else {
            let slot = if let Some(slot) = self.free.pop() {
                self.slots[slot as usize] = new;
                slot
            } else {
                self.slots.push(new);
                u32::try_from(self.slots.len() - 1).expect("a namespace is split long before 2^32 grains")
            };
            self.by_id.insert(id, slot);
            (slot, None)
        };
        if !self.readers.is_empty() {
            self.recent.push_back((row, slot));
        }
        (slot, row, former)
    }

    /// Takes a grain out: its slot, and what it had.
    pub fn remove(&mut self, id: GrainId) -> Option<(u32, Former)> {
        let slot = self.by_id.remove(&id)?;
        let Slot { row, vector, .. } = self.slots[slot as usize];
        self.slots[slot as usize].row = NO_ROW;
        self.slots[slot as usize].vector = None;
        self.free.push(slot);
        Some((slot, Former { row, vector }))
    }

    /// Notes where a grain's vector is.
    pub fn set_vector(&mut self, slot: u32, vector: u32) {
        self.slots[slot as usize].vector = Some(vector);
    }

    /// Where the vector of a slot's grain is.
    pub fn vector(&self, slot: u32) -> Option<u32> {
        self.slots.get(slot as usize)?.vector
    }

    /// The grain of a slot if this row is its live one.
    pub fn grain(&self, slot: u32, row: u64) -> Option<GrainId> {
        let slot = &self.slots[slot as usize];
        (slot.row == row).then_some(slot.id)
    }

    /// The grain whose slot it is.
    pub fn id(&self, slot: u32) -> Option<GrainId> {
        self.slots.get(slot as usize).filter(|slot| slot.row != NO_ROW).map(|slot| slot.id)
    }

    /// The slot of a live grain.
    pub fn slot(&self, id: GrainId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Live grains.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Begins a recall: the first row that it has not seen, by which it [`Self::leave`]s.
    pub fn enter(&mut self) -> u64 {
        let rows_end = self.rows + 1;
        *self.readers.entry(rows_end).or_default() += 1;
        rows_end
    }

    /// Ends a recall.
    pub fn leave(&mut self, rows_end: u64) {
        let readers = self.readers.get_mut(&rows_end).expect("a recall ends once");
        *readers -= 1;
        if *readers == 0 {
            self.readers.remove(&rows_end);
        }
        let Some((oldest, _)) = self.readers.first_key_value() else {
            self.recent = VecDeque::new();
            return;
        };
        while self.recent.front().is_some_and(|(row, _)| row < oldest) {
            self.recent.pop_front();
        }
    }

    /// Slots of the grains that were put since a recall began, and still are as they were put.
    pub fn since(&self, rows_end: u64) -> impl Iterator<Item = u32> {
        let start = self.recent.partition_point(|(row, _)| *row < rows_end);
        self.recent.range(start..).filter(|(row, slot)| self.grain(*slot, *row).is_some()).map(|(_, slot)| *slot)
    }

    /// Bytes of memory held, about.
    pub fn memory(&self) -> usize {
        const TREE_FILL: f64 = 0.7;
        let node = size_of::<(GrainId, u32)>() as f64 / TREE_FILL;
        self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u32>()
            + (self.by_id.len() as f64 * node) as usize
            + self.recent.capacity() * size_of::<(u64, u32)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> GrainId {
        GrainId([n; 16])
    }

    proptest! {
        /// Against a map from grains to rows; with readers that come and go.
        #[test]
        fn follows_a_map(steps in prop::collection::vec((0u8..4, 0u8..12), 0..200)) {
            let mut roster = Roster::default();
            let mut model = BTreeMap::<u8, (u32, u64)>::new();
            let mut given = Vec::<(u64, u32, u8)>::new();
            let mut readers = Vec::<u64>::new();
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let (slot, row, former) = roster.put(id(n));
                        let replaced = model.insert(n, (slot, row));
                        prop_assert_eq!(former.map(|former| former.row), replaced.map(|(_, row)| row));
                        prop_assert!(replaced.is_none_or(|(kept, _)| kept == slot), "a grain keeps its slot");
                        prop_assert!(given.last().is_none_or(|(last, ..)| *last < row), "rows ascend");
                        given.push((row, slot, n));
                    }
                    2 => {
                        let removed = roster.remove(id(n)).map(|(slot, former)| (slot, former.row));
                        prop_assert_eq!(removed, model.remove(&n));
                    }
                    _ if readers.len() < 3 => readers.push(roster.enter()),
                    _ => roster.leave(readers.remove(usize::from(n) % 3)),
                }
                prop_assert_eq!(roster.len(), model.len());
                for (row, slot, n) in &given {
                    let alive = model.get(n) == Some(&(*slot, *row));
                    prop_assert_eq!(roster.grain(*slot, *row), alive.then(|| id(*n)));
                }
                for rows_end in &readers {
                    let since: Vec<u32> = roster.since(*rows_end).collect();
                    let alive = given.iter().filter(|(row, slot, n)| row >= rows_end && model.get(n) == Some(&(*slot, *row)));
                    prop_assert_eq!(since, alive.map(|(_, slot, _)| *slot).collect::<Vec<_>>());
                }
            }
            for (n, (slot, _)) in &model {
                prop_assert_eq!((roster.slot(id(*n)), roster.id(*slot)), (Some(*slot), Some(id(*n))));
            }
        }
    }

    #[test]
    fn nothing_is_remembered_without_a_reader() {
        let mut roster = Roster::default();
        let reader = roster.enter();
        roster.put(id(1));
        let later = roster.enter();
        roster.put(id(2));
        roster.leave(reader);
        assert_eq!(roster.recent.len(), 1, "only what the later one has not seen");
        roster.leave(later);
        roster.put(id(3));
        assert_eq!(roster.recent.len(), 0);
    }
}
