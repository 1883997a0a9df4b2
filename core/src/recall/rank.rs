//! What the legs of a recall have in common: ranked grains, and the best of them.

use gristmill_rpc::ids::GrainId;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A grain with the score that one leg gave it.
#[derive(Debug, Clone, Copy)]
pub struct Ranked {
    /// The grain.
    pub id: GrainId,
    /// Its score: the higher the better.
    pub score: f32,
}

impl Ord for Ranked {
    /// Better is less: higher score first, then lower id.
    fn cmp(&self, other: &Ranked) -> Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Ranked) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Ranked) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Keeps the k best of what is pushed.
pub struct Top<T> {
    limit: usize,
    /// The worst on top.
    heap: BinaryHeap<T>,
}

impl<T: Ord> Top<T> {
    /// Room for `limit` of them.
    pub fn new(limit: usize) -> Top<T> {
        Top { limit, heap: BinaryHeap::new() }
    }

    /// Takes one in if it is among the best.
    pub fn push(&mut self, new: T) {
        if self.heap.len() < self.limit {
            self.heap.push(new);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && new < *worst
        {
            *worst = new;
        }
    }

    /// There is no room at all.
    pub fn is_closed(&self) -> bool {
        self.limit == 0
    }

    /// The worst of them, once there are as many as there is room for.
    pub fn worst(&self) -> Option<&T> {
        self.heap.peek().filter(|_| self.heap.len() == self.limit)
    }

    /// All of them, best first.
    pub fn into_sorted(self) -> Vec<T> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(score: f32, id: u8) -> Ranked {
        Ranked { id: GrainId([id; 16]), score }
    }

    #[test]
    fn the_best_stay_and_ties_go_to_the_lower_id() {
        let mut top = Top::new(3);
        for (score, id) in [(0.5, 9), (0.1, 1), (0.5, 2)] {
            assert!(top.worst().is_none());
            top.push(ranked(score, id));
        }
        assert_eq!(top.worst(), Some(&ranked(0.1, 1)));
        for (score, id) in [(0.7, 5), (0.5, 3), (-1.0, 0)] {
            top.push(ranked(score, id));
        }
        let ids: Vec<u8> = top.into_sorted().iter().map(|ranked| ranked.id.0[0]).collect();
        assert_eq!(ids, [5, 2, 3]);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut top = Top::new(0);
        top.push(ranked(1.0, 1));
        assert!(top.is_closed() && top.worst().is_none());
        assert_eq!(top.into_sorted(), []);
    }
}
