//! Where a group's entries lie.
//!
//! Eight bytes an entry: offset and length, in runs of consecutive entries of one segment. Beside them the log's terms as runs, so that
//! the position of any live entry is known without reading it.

use std::collections::VecDeque;

use crate::limits::RECORD_ALIGN;
use crate::types::SegmentId;

/// Place of an entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub segment: SegmentId,
    /// Of the header, in bytes.
    pub offset: u32,
    pub payload_bytes: u32,
}

/// Consecutive entries in one segment.
#[derive(Debug)]
struct Run {
    segment: SegmentId,
    /// Index of `slots[0]`.
    first: u64,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Offset in units of [`RECORD_ALIGN`].
    offset: u32,
    payload_bytes: u32,
}

/// The live entries of a group: `first..next`, dense.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    first: u64,
    next: u64,
    runs: VecDeque<Run>,
    /// First index of each term, ascending; the front one may reach below `first`.
    terms: VecDeque<(u64, u64)>,
}

impl EntryIndex {
    pub fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// Index of the first live entry; the next one to come when empty.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Index after the last live entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Segment that holds the first live entry.
    pub fn oldest_segment(&self) -> Option<SegmentId> {
        self.runs.front().map(|run| run.segment)
    }

    /// Continues at `index`, for a log that is empty.
    pub fn restart_at(&mut self, index: u64) {
        assert!(self.is_empty(), "live entries are purged or truncated first");
        (self.first, self.next) = (index, index);
        self.terms.clear();
    }

    /// Appends the entry at `next()`.
    pub fn push(&mut self, term: u64, at: Location) {
        debug_assert_eq!(at.offset as usize % RECORD_ALIGN, 0);
        if self.terms.back().is_none_or(|&(_, last)| last != term) {
            self.terms.push_back((self.next, term));
        }
        let slot = Slot { offset: at.offset / RECORD_ALIGN as u32, payload_bytes: at.payload_bytes };
        match self.runs.back_mut() {
            Some(run) if run.segment == at.segment => run.slots.push(slot),
            _ => self.runs.push_back(Run { segment: at.segment, first: self.next, slots: vec![slot] }),
        }
        self.next += 1;
    }

    /// Where the entry at `index` lies.
    pub fn locate(&self, index: u64) -> Option<Location> {
        if !(self.first..self.next).contains(&index) {
            return None;
        }
        let run = &self.runs[self.runs.partition_point(|run| run.first <= index) - 1];
        let slot = run.slots[(index - run.first) as usize];
        Some(Location {
            segment: run.segment,
            offset: slot.offset * RECORD_ALIGN as u32,
            payload_bytes: slot.payload_bytes,
        })
    }

    /// Term of the entry at `index`.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if !(self.first..self.next).contains(&index) {
            return None;
        }
        self.terms.get(self.terms.partition_point(|&(first, _)| first <= index) - 1).map(|&(_, term)| term)
    }

    /// Removes entries from `next` on. `freed` learns of each segment how many went.
    pub fn truncate(&mut self, next: u64, mut freed: impl FnMut(SegmentId, u64)) {
        let next = next.clamp(self.first, self.next);
        while let Some(run) = self.runs.back_mut() {
            let end = run.first + run.slots.len() as u64;
            let live_from = run.first.max(self.first);
            if end <= next {
                break;
            }
            freed(run.segment, end - next.max(live_from));
            if next > live_from {
                run.slots.truncate((next - run.first) as usize);
                break;
            }
            self.runs.pop_back();
        }
        self.next = next;
        while self.terms.back().is_some_and(|&(first, _)| first >= next) {
            self.terms.pop_back();
        }
    }

    /// Removes entries below `first`, which is at most `next()`.
    pub fn purge(&mut self, first: u64, mut freed: impl FnMut(SegmentId, u64)) {
        assert!(first <= self.next);
        let first = first.max(self.first);
        while let Some(run) = self.runs.front() {
            let end = run.first + run.slots.len() as u64;
            let live_from = self.first.max(run.first);
            freed(run.segment, end.min(first) - live_from);
            if end > first {
                break;
            }
            self.runs.pop_front();
            self.first = end;
        }
        self.first = first;
        while self.terms.get(1).is_some_and(|&(start, _)| start <= first) {
            self.terms.pop_front();
        }
        if self.is_empty() {
            self.terms.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(segment: u64, n: u64) -> Location {
        Location { segment: SegmentId(segment), offset: (n * 32) as u32, payload_bytes: n as u32 }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { segment_step: u64, term_step: u64 },
        Truncate(u64),
        Purge(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..4_u64, 0..5_u64).prop_map(|(segment, term)| Step::Push {
                segment_step: segment / 3,
                term_step: term / 4
            }),
            1 => (0..12_u64).prop_map(Step::Truncate),
            1 => (0..12_u64).prop_map(Step::Purge),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_map(steps in steps()) {
            let mut index = EntryIndex::default();
            let mut model: BTreeMap<u64, (u64, Location)> = BTreeMap::new();
            let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
            let (mut segment, mut term, mut n) = (1, 1, 0);
            for step in steps {
                let mut freed = |segment: SegmentId, count: u64| {
                    let left = live.get_mut(&segment).expect("known segment");
                    *left -= count;
                };
                match step {
                    Step::Push { segment_step, term_step } => {
                        segment += segment_step;
                        term += term_step;
                        n += 1;
                        *live.entry(SegmentId(segment)).or_default() += 1;
                        model.insert(index.next(), (term, at(segment, n)));
                        index.push(term, at(segment, n));
                    }
                    Step::Truncate(count) => {
                        let next = index.next().saturating_sub(count).max(index.first());
                        index.truncate(next, &mut freed);
                        model.split_off(&next);
                    }
                    Step::Purge(count) => {
                        let first = (index.first() + count).min(index.next());
                        index.purge(first, &mut freed);
                        model = model.split_off(&first);
                    }
                }
                prop_assert_eq!(index.next() - index.first(), model.len() as u64);
                for i in index.first().saturating_sub(2)..index.next() + 2 {
                    prop_assert_eq!(index.locate(i), model.get(&i).map(|(_, at)| *at));
                    prop_assert_eq!(index.term_at(i), model.get(&i).map(|(term, _)| *term));
                }
                for (segment, count) in &live {
                    let expected = model.values().filter(|(_, at)| at.segment == *segment).count() as u64;
                    prop_assert_eq!(*count, expected);
                }
                prop_assert_eq!(index.oldest_segment(), model.values().next().map(|(_, at)| at.segment));
            }
        }
    }
}
