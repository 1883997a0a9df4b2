//! The k best rows seen so far.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::Hit;

/// Keeps the `k` best of the hits pushed: by higher score, then by lower id, then by lower row.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    /// The worst on top.
    heap: BinaryHeap<Worst>,
}

/// Orders hits so that the worst is the greatest.
#[derive(Clone, Copy, Debug)]
struct Worst(Hit);

impl TopK {
    /// An empty collection of at most `k`.
    ///
    /// # Panics
    /// When `k` is 0.
    pub fn new(k: usize) -> Self {
        assert!(k > 0, "the best of nothing");
        Self { k, heap: BinaryHeap::with_capacity(k + 1) }
    }

    /// The score that a further hit must reach to matter: that of the k-th, or −∞ while there are fewer.
    pub fn floor(&self) -> f32 {
        match self.heap.peek() {
            Some(Worst(worst)) if self.heap.len() == self.k => worst.score,
            _ => f32::NEG_INFINITY,
        }
    }

    /// Offers a hit.
    pub fn push(&mut self, hit: Hit) {
        if self.heap.len() < self.k {
            self.heap.push(Worst(hit));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && Worst(hit) < *worst
        {
            *worst = Worst(hit);
        }
    }

    /// The hits, best first.
    pub fn into_hits(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|Worst(hit)| hit).collect()
    }
}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        let (this, other) = (self.0, other.0);
        other.score.total_cmp(&this.score).then(this.id.cmp(&other.id)).then(this.row.cmp(&other.row))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Worst {}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(score: f32, id: u64) -> Hit {
        Hit { score, id, row: 0 }
    }

    #[test]
    fn the_best_stay_and_ties_go_to_the_lower_id() {
        let mut top = TopK::new(3);
        assert!(top.floor() < f32::MIN);
        for (score, id) in [(0.5, 9), (0.1, 1), (0.5, 2), (0.7, 5), (0.5, 3)] {
            top.push(hit(score, id));
        }
        assert_eq!(top.floor().to_bits(), 0.5_f32.to_bits());
        let ids: Vec<u64> = top.into_hits().iter().map(|hit| hit.id).collect();
        assert_eq!(ids, [5, 2, 3]);
    }

    #[test]
    fn fewer_than_k_are_all_kept() {
        let mut top = TopK::new(10);
        top.push(hit(-1.0, 1));
        top.push(hit(-2.0, 2));
        assert_eq!(top.into_hits().len(), 2);
    }
}
