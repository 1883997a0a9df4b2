//! Which nodes reach which.

use crate::sim::events::Event;
use crate::sim::faults::FaultKind;
use crate::sim::network::Network;
use crate::sim::state::State;
use crate::sim::trace::NOWHERE;

/// Names a partition, so that it can be healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionId(pub(in crate::sim) u64);

impl Network {
    pub fn add_node(&mut self) {
        assert!(self.partitions.is_empty(), "nodes are added before links are cut");
        let port = super::EPHEMERAL_FIRST + self.rng.below(10_000) as u16;
        self.next_port.push(port);
        let nodes = self.next_port.len();
        self.cuts = vec![0; nodes * nodes];
    }

    fn nodes(&self) -> usize {
        self.next_port.len()
    }

    /// Whether some partition cuts the way from one node to another.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts[from * self.nodes() + to] > 0
    }

    /// Cuts directed links.
    pub fn cut(&mut self, links: Vec<(usize, usize)>) -> u64 {
        let nodes = self.nodes();
        for &(from, to) in links.iter().filter(|(from, to)| from != to) {
            self.cuts[from * nodes + to] += 1;
        }
        let id = self.fresh_id();
        self.partitions.insert(id, links);
        id
    }

    /// Ends a partition. False: it has ended before.
    pub fn heal(&mut self, id: u64) -> bool {
        let Some(links) = self.partitions.remove(&id) else { return false };
        let nodes = self.nodes();
        for &(from, to) in links.iter().filter(|(from, to)| from != to) {
            self.cuts[from * nodes + to] -= 1;
        }
        true
    }

    /// Links for a partition, by seed.
    fn random_links(&mut self, one_way: bool) -> Vec<(usize, usize)> {
        let nodes = self.nodes();
        if !one_way {
            let mut order: Vec<usize> = (0..nodes).collect();
            self.rng.shuffle(&mut order);
            let (a, b) = order.split_at(1 + self.rng.index(nodes - 1));
            return both_ways(a, b);
        }
        let from = self.rng.index(nodes);
        let others = (0..nodes).filter(|&to| to != from);
        // One link, or all that lead away from, or to, one node.
        match self.rng.below(3) {
            0 => vec![(from, (from + 1 + self.rng.index(nodes - 1)) % nodes)],
            1 => others.map(|to| (from, to)).collect(),
            _ => others.map(|to| (to, from)).collect(),
        }
    }

    /// Ends all partitions.
    pub fn heal_all(&mut self) {
        let ids: Vec<u64> = self.partitions.keys().copied().collect();
        for id in ids {
            self.heal(id);
        }
    }
}

impl State {
    /// Packets get from one node to another now.
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        let answers = |node: usize| self.nodes[node].up && self.nodes[node].suspended_at.is_none();
        from == to && answers(to) || answers(from) && answers(to) && !self.network.is_cut(from, to)
    }

    /// One tick's chance of partitions.
    pub fn roll_partitions(&mut self) {
        let nodes = self.nodes.len();
        if nodes < 2 {
            return;
        }
        for kind in [FaultKind::PartitionOneWay, FaultKind::PartitionTwoWay] {
            if !self.network.rng.chance(self.config.faults.ppm(kind)) {
                continue;
            }
            let links = self.network.random_links(kind == FaultKind::PartitionOneWay);
            self.struck(kind, NOWHERE);
            let outage = self.config.faults.outage_max.as_nanos() as u64;
            let until = self.now + 1 + self.network.rng.below(outage.max(1));
            let id = self.network.cut(links);
            self.events.push(until, Event::HealPartition { id });
        }
    }
}

/// Every link between two sets of nodes.
pub(in crate::sim) fn both_ways(a: &[usize], b: &[usize]) -> Vec<(usize, usize)> {
    a.iter().flat_map(|&a| b.iter().flat_map(move |&b| [(a, b), (b, a)])).collect()
}
