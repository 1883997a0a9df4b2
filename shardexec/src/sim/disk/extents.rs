//! Which pages of a file have space on the disk, as disjoint ranges: preallocating 64 MiB is one entry and no memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-adjacent page ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents {
    /// End by start.
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl Extents {
    /// Pages in all ranges.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Pages of `range` that are in none.
    pub fn missing(&self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let overlap = |(start, end): (&u64, &u64)| range.end.min(*end).saturating_sub(range.start.max(*start));
        let before = self.ranges.range(..range.start).next_back().map_or(0, overlap);
        let covered: u64 = before + self.ranges.range(range.clone()).map(overlap).sum::<u64>();
        range.end - range.start - covered
    }

    /// Adds `range`; how many pages are new.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        let added = self.missing(&range);
        if added == 0 {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Whatever touches the new range melts into it.
        while let Some((&near, &near_end)) = self.ranges.range(..=end).next_back().filter(|&(_, &e)| e >= start) {
            self.ranges.remove(&near);
            (start, end) = (start.min(near), end.max(near_end));
        }
        self.ranges.insert(start, end);
        self.total += added;
        added
    }

    /// Drops everything from `page` on; how many pages that was.
    pub fn truncate(&mut self, page: u64) -> u64 {
        let before = self.total;
        let beyond = self.ranges.split_off(&page);
        self.total -= beyond.iter().map(|(start, end)| end - start).sum::<u64>();
        if let Some((_, end)) = self.ranges.range_mut(..page).next_back()
            && *end > page
        {
            self.total -= *end - page;
            *end = page;
        }
        before - self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::random::Rng;

    #[test]
    fn agrees_with_a_set_of_pages() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let (mut extents, mut set) = (Extents::default(), std::collections::BTreeSet::new());
            for _ in 0..50 {
                let start = rng.below(100);
                if rng.below(4) == 0 {
                    let kept = set.split_off(&start);
                    assert_eq!(extents.truncate(start), kept.len() as u64);
                } else {
                    let range = start..start + rng.below(20);
                    let missing = range.clone().filter(|page| !set.contains(page)).count() as u64;
                    assert_eq!(extents.missing(&range), missing);
                    assert_eq!(extents.insert(range.clone()), missing);
                    set.extend(range);
                }
                assert_eq!(extents.total(), set.len() as u64);
                let ranges: Vec<_> = extents.ranges.iter().collect();
                assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
            }
        }
    }
}
