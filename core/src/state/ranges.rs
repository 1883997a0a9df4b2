//! The ranges of partitions that a shard owns: replicated state, checked for every operation at apply.
//!
//! The ring makes the first assignment; afterwards splits and merges change the ranges through the log.

use super::store::StoreError;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::ring::Ring;

/// Sorted, disjoint ranges of partitions, both ends inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRanges {
    ranges: Vec<(u64, u64)>,
}

impl OwnedRanges {
    /// Every partition: a store of one shard.
    pub fn all() -> OwnedRanges {
        OwnedRanges { ranges: vec![(0, u64::MAX)] }
    }

    /// What the ring assigns to a shard: from behind each foreign virtual node up to and including its own.
    pub fn of_ring(ring: &Ring, shard: ShardId) -> OwnedRanges {
        let nodes = ring.nodes();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut add = |start: u64, end: u64| match ranges.last_mut() {
            Some(last) if last.1 + 1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        };
        let mut start = 0;
        for node in nodes {
            // Of several nodes at one point the first owns it: the others' arcs are empty.
            if node.shard == shard && start <= node.point {
                add(start, node.point);
            }
            match node.point.checked_add(1) {
                Some(next) => start = next,
                None => return OwnedRanges { ranges },
            }
        }
        if nodes.first().is_some_and(|first| first.shard == shard) {
            add(start, u64::MAX);
        }
        OwnedRanges { ranges }
    }

    /// Whether a partition is owned.
    pub fn contains(&self, partition: u64) -> bool {
        let at = self.ranges.partition_point(|(_, end)| *end < partition);
        self.ranges.get(at).is_some_and(|(start, _)| *start <= partition)
    }

    /// The ranges, sorted, both ends inclusive.
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// The record's bytes: start and end of each range, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        self.ranges.iter().flat_map(|(start, end)| [start.to_le_bytes(), end.to_le_bytes()]).flatten().collect()
    }

    /// The ranges of a record.
    pub fn decode(bytes: &[u8]) -> Result<OwnedRanges, StoreError> {
        let malformed = |detail| StoreError::Record { what: "owned ranges", detail };
        let (words, rest) = bytes.as_chunks::<8>();
        let (pairs, odd) = words.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() {
            return Err(malformed("not a multiple of 16 bytes"));
        }
        let ranges: Vec<_> =
            pairs.iter().map(|[start, end]| (u64::from_le_bytes(*start), u64::from_le_bytes(*end))).collect();
        if ranges.iter().any(|(start, end)| start > end) || ranges.windows(2).any(|pair| pair[0].1 >= pair[1].0) {
            return Err(malformed("not sorted"));
        }
        Ok(OwnedRanges { ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Ring and ranges agree everywhere, at the virtual nodes themselves and around them above all.
        #[test]
        fn ranges_are_what_the_ring_says(shards in 1u32..6, vnodes in 1u32..20, points: Vec<u64>) {
            let ring = Ring::new(shards, vnodes);
            let ranges: Vec<_> = (0..shards).map(|shard| OwnedRanges::of_ring(&ring, ShardId(shard))).collect();
            let edges = ring.nodes().iter().flat_map(|n| [n.point.wrapping_sub(1), n.point, n.point.wrapping_add(1)]);
            for point in points.into_iter().chain(edges).chain([0, u64::MAX]) {
                for (shard, ranges) in ranges.iter().enumerate() {
                    prop_assert_eq!(ranges.contains(point), ring.shard_at(point) == Some(ShardId(shard as u32)));
                }
            }
            for ranges in ranges {
                prop_assert!(ranges.as_slice().len() <= vnodes as usize + 1);
                prop_assert_eq!(OwnedRanges::decode(&ranges.encode()).expect("own bytes"), ranges);
            }
        }
    }

    #[test]
    fn one_shard_owns_everything() {
        assert_eq!(OwnedRanges::of_ring(&Ring::new(1, 150), ShardId(0)), OwnedRanges::all());
        assert_eq!(OwnedRanges::of_ring(&Ring::new(1, 150), ShardId(1)).as_slice(), []);
    }

    #[test]
    fn malformed_records_are_refused() {
        let encode = |ranges: &[(u64, u64)]| OwnedRanges { ranges: ranges.to_vec() }.encode();
        assert!(OwnedRanges::decode(&[0; 15]).is_err());
        assert!(OwnedRanges::decode(&[0; 24]).is_err());
        assert!(OwnedRanges::decode(&encode(&[(2, 1)])).is_err());
        assert!(OwnedRanges::decode(&encode(&[(5, 9), (9, 12)])).is_err());
        assert!(OwnedRanges::decode(&encode(&[])).is_ok());
    }
}
