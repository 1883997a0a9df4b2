//! Reciprocal rank fusion: one ranking out of several whose scores cannot be compared.
//!
//! `score(grain) = sum over the lists that have it of 1 / (60 + its rank there)`, ranks from 1. Cormack, Clarke and
//! Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods" (SIGIR 2009), with their
//! constant. The lists are the legs of one recall here; the answers of several shards fuse the same way.
//!
//! A grain's terms are added from the largest on, so grains with the same ranks in other lists tie exactly, whichever
//! lists those are. Ties are ordered by id.

use super::rank::Ranked;
use gristmill_rpc::ids::GrainId;
use std::ops::Range;

/// The constant k.
pub const RANK_CONSTANT: f32 = 60.0;

/// A grain in one of the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Appearance {
    id: GrainId,
    /// Position in the list, from 1.
    pub rank: u32,
    /// The list.
    pub list: u32,
}

/// The fused ranking.
#[derive(Debug, Clone, PartialEq)]
pub struct Fusion {
    /// By grain, then by rank.
    appearances: Vec<Appearance>,
    /// Best first.
    ranked: Vec<(Ranked, Range<usize>)>,
}

impl Fusion {
    /// Fuses lists of grains, best first, each grain at most once in each.
    pub fn of<'a>(lists: impl IntoIterator<Item = &'a [Ranked]>) -> Fusion {
        let mut appearances = Vec::new();
        for (list, ranked) in lists.into_iter().enumerate() {
            for (rank, Ranked { id, .. }) in ranked.iter().enumerate() {
                appearances.push(Appearance { id: *id, rank: rank as u32 + 1, list: list as u32 });
            }
        }
        appearances.sort_unstable();
        let mut ranked = Vec::new();
        let mut start = 0;
        for of_one in appearances.chunk_by(|a, b| a.id == b.id) {
            let score = of_one.iter().map(|appearance| 1.0 / (RANK_CONSTANT + appearance.rank as f32)).sum();
            ranked.push((Ranked { id: of_one[0].id, score }, start..start + of_one.len()));
            start += of_one.len();
        }
        ranked.sort_unstable_by_key(|(ranked, _)| *ranked);
        Fusion { appearances, ranked }
    }

    /// The grains, best first, each with where it appeared, best rank first.
    pub fn iter(&self) -> impl Iterator<Item = (Ranked, &[Appearance])> {
        self.ranked.iter().map(|(ranked, range)| (*ranked, &self.appearances[range.clone()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn list(ids: &str) -> Vec<Ranked> {
        ids.bytes().map(|id| Ranked { id: GrainId([id; 16]), score: 0.0 }).collect()
    }

    fn order(fusion: &Fusion) -> String {
        fusion.iter().map(|(ranked, _)| char::from(ranked.id.0[0])).collect()
    }

    /// known lists, known order, worked out by hand.
    #[test]
    fn golden_order() {
        let fusion = Fusion::of([&list("abcd")[..], &list("cae")[..], &list("fc")[..]]);
        // c: 1/63 + 1/61 + 1/62; a: 1/61 + 1/62; f: 1/61; b: 1/62; e: 1/63; d: 1/64.
        assert_eq!(order(&fusion), "cafbed");
        let scores: Vec<String> = fusion.iter().map(|(ranked, _)| format!("{:.6}", ranked.score)).collect();
        assert_eq!(scores, ["0.048395", "0.032522", "0.016393", "0.016129", "0.015873", "0.015625"]);
        let c = fusion.iter().next().unwrap().1;
        let c: Vec<_> = c.iter().map(|appearance| (appearance.list, appearance.rank)).collect();
        assert_eq!(c, [(1, 1), (2, 2), (0, 3)]);
    }

    #[test]
    fn the_same_ranks_tie_whatever_lists_gave_them() {
        let fusion = Fusion::of([&list("zxy")[..], &list("xyz")[..], &list("yzx")[..]]);
        assert_eq!(order(&fusion), "xyz");
        let mut scores = fusion.iter().map(|(ranked, _)| ranked.score.to_bits());
        let first = scores.next();
        assert!(scores.all(|score| Some(score) == first));
    }

    #[test]
    fn nothing_fuses_to_nothing() {
        assert_eq!(order(&Fusion::of([])), "");
        assert_eq!(order(&Fusion::of([&[][..], &[][..]])), "");
    }

    proptest! {
        #[test]
        fn fuses_as_the_formula_says(lists in prop::collection::vec(prop::collection::btree_set(0u8..40, 0..30), 0..5)) {
            let lists: Vec<Vec<Ranked>> = lists.iter().enumerate().map(|(turn, ids)| {
                let mut ids: Vec<u8> = ids.iter().copied().collect();
                let turn = turn.min(ids.len());
                ids.rotate_left(turn);
                ids.iter().map(|id| Ranked { id: GrainId([*id; 16]), score: 0.0 }).collect()
            }).collect();
            let mut model = BTreeMap::<GrainId, f64>::new();
            for list in &lists {
                for (rank, ranked) in list.iter().enumerate() {
                    *model.entry(ranked.id).or_default() += 1.0 / (61.0 + rank as f64);
                }
            }
            let fusion = Fusion::of(lists.iter().map(Vec::as_slice));
            prop_assert_eq!(fusion.iter().count(), model.len());
            prop_assert!(fusion.iter().is_sorted_by_key(|(ranked, _)| ranked));
            for (ranked, appearances) in fusion.iter() {
                prop_assert!((f64::from(ranked.score) - model[&ranked.id]).abs() < 1e-7);
                for appearance in appearances {
                    prop_assert_eq!(lists[appearance.list as usize][appearance.rank as usize - 1].id, ranked.id);
                }
            }
        }
    }
}
