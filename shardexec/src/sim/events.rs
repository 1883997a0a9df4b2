//! What will happen, in the order of (time, sequence number).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::network::NetEvent;
use crate::driver::OpKey;

/// Something that happens at its time, without anybody running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A file op or an offloaded job of a core's start is over, unless it was cancelled.
    Op { core: usize, key: OpKey },
    /// A core's earliest deadline.
    Wake { core: usize },
    /// Faults that come with time are rolled.
    Tick,
    /// A paused node goes on.
    Unpause { node: usize },
    /// A partition ends.
    HealPartition { id: u64 },
    /// In the network.
    Net(NetEvent),
}

struct Entry {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// The queue. Bounded by ops, cores and connections: each has at most a few events under way.
#[derive(Default)]
pub(super) struct Events {
    heap: BinaryHeap<Reverse<Entry>>,
    seq: u64,
}

impl Events {
    pub fn push(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.heap.push(Reverse(Entry { at, seq: self.seq, event }));
    }

    /// When the next one is due.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next one that is due at `now`.
    pub fn pop_due(&mut self, now: u64) -> Option<(u64, Event)> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_of_their_making() {
        let mut events = Events::default();
        for (at, node) in [(5, 0), (3, 1), (5, 2), (3, 3)] {
            events.push(at, Event::Unpause { node });
        }
        assert_eq!(events.pop_due(2), None);
        let order: Vec<_> = std::iter::from_fn(|| events.pop_due(9)).collect();
        let expected = [(3, 1), (3, 3), (5, 0), (5, 2)].map(|(at, node)| (at, Event::Unpause { node }));
        assert_eq!(order, expected);
    }
}
