//! The world as tests, checkers and tasks see it while executors run: everything but starting and running them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::disk::Disk;
use super::events::Event;
use super::faults::{FaultCounts, FaultKind, FaultPlan};
use super::network::{PartitionId, both_ways};
use super::state::{Down, NodeId, State};
use super::trace::{NOWHERE, What};
use crate::time::{Instant, WallClock};

/// A handle to a [`World`](super::World). Clones are the same world; tasks may hold them, but never across a borrow of a disk.
#[derive(Clone)]
pub struct Sim {
    pub(super) state: Rc<RefCell<State>>,
}

fn index(node: NodeId) -> usize {
    usize::from(node.0)
}

fn indexes(nodes: &[NodeId]) -> Vec<usize> {
    nodes.iter().copied().map(index).collect()
}

impl Sim {
    /// The seed that decides everything.
    pub fn seed(&self) -> u64 {
        self.state.borrow().seed
    }

    /// Virtual time since the world began. No node sees it: their clocks drift.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.state.borrow().now)
    }

    /// Task polls so far.
    pub fn steps(&self) -> u64 {
        self.state.borrow().steps
    }

    /// One number for everything that has happened: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.state.borrow().trace.hash()
    }

    /// Events that the hash is made of.
    pub fn trace_events(&self) -> u64 {
        self.state.borrow().trace.events()
    }

    /// How often each kind of fault struck.
    pub fn faults(&self) -> FaultCounts {
        self.state.borrow().counts.clone()
    }

    /// Looks at a node's disk, or damages it. While the node is down it may be replaced: by an image, or by an empty one.
    ///
    /// # Panics
    /// When `look` uses the world again.
    pub fn disk<R>(&self, node: NodeId, look: impl FnOnce(&mut Disk) -> R) -> R {
        look(&mut self.state.borrow_mut().nodes[index(node)].disk)
    }

    /// Changes what goes wrong, on all nodes without a plan of their own.
    pub fn set_faults(&self, plan: FaultPlan) {
        let mut state = self.state.borrow_mut();
        state.config.faults = plan;
        state.keep_ticking();
    }

    /// Changes what goes wrong on one node: disk, clock and process. `None`: as on the others. The network is the world's affair.
    pub fn set_node_faults(&self, node: NodeId, plan: Option<FaultPlan>) {
        let mut state = self.state.borrow_mut();
        state.nodes[index(node)].config.faults = plan;
        state.keep_ticking();
    }

    /// The liveness phase: nothing goes wrong any more, links are whole, paused nodes go on. What is damaged on disks, and who is
    /// down, stays so.
    pub fn heal(&self) {
        let mut state = self.state.borrow_mut();
        let now = state.now;
        state.trace.event(now, NOWHERE, What::Heal, [0, 0]);
        state.trace.line(now, format_args!("faults end, links heal"));
        state.config.faults = FaultPlan::none();
        state.network.heal_all();
        for node in 0..state.nodes.len() {
            state.nodes[node].config.faults = None;
            state.resume(node);
        }
    }

    /// Cuts all links between two sets of nodes, both ways, until it is healed.
    pub fn partition(&self, a: &[NodeId], b: &[NodeId]) -> PartitionId {
        self.cut(FaultKind::PartitionTwoWay, both_ways(&indexes(a), &indexes(b)))
    }

    /// Cuts the links from one set of nodes to another; the way back works.
    pub fn partition_one_way(&self, from: &[NodeId], to: &[NodeId]) -> PartitionId {
        let to = indexes(to);
        let links = indexes(from).into_iter().flat_map(|from| to.iter().map(move |&to| (from, to))).collect();
        self.cut(FaultKind::PartitionOneWay, links)
    }

    fn cut(&self, kind: FaultKind, links: Vec<(usize, usize)>) -> PartitionId {
        let mut state = self.state.borrow_mut();
        state.struck(kind, NOWHERE);
        PartitionId(state.network.cut(links))
    }

    /// Ends a partition.
    pub fn heal_partition(&self, partition: PartitionId) {
        self.state.borrow_mut().network.heal(partition.0);
    }

    /// Ends every partition.
    pub fn heal_links(&self) {
        self.state.borrow_mut().network.heal_all();
    }

    /// Stops a node's process for `duration` of virtual time (SIGSTOP): its clocks go on, its kernel keeps taking packets.
    pub fn pause(&self, node: NodeId, duration: Duration) {
        self.state.borrow_mut().pause(index(node), duration.as_nanos() as u64, false);
    }

    /// Suspends a node's machine for `duration`: CLOCK_MONOTONIC stands still, nothing answers.
    pub fn suspend(&self, node: NodeId, duration: Duration) {
        self.state.borrow_mut().pause(index(node), duration.as_nanos() as u64, true);
    }

    /// Sets a node's wall clock forward or back.
    pub fn jump_clock(&self, node: NodeId, by_ns: i64) {
        let kind = if by_ns.unsigned_abs() > 500_000_000 { FaultKind::ClockLeap } else { FaultKind::ClockJump };
        self.state.borrow_mut().jump_clock(index(node), kind, by_ns);
    }

    /// What a node's wall clock shows.
    pub fn wall_clock(&self, node: NodeId) -> WallClock {
        let state = self.state.borrow();
        state.nodes[index(node)].clock.wall(state.now)
    }

    /// What a node's CLOCK_MONOTONIC shows.
    pub fn monotonic(&self, node: NodeId) -> Instant {
        let state = self.state.borrow();
        state.nodes[index(node)].clock.monotonic(state.now)
    }

    /// By how many nanoseconds a node's wall clock is off, drift apart.
    pub fn skew_ns(&self, node: NodeId) -> i64 {
        self.state.borrow().nodes[index(node)].clock.skew_ns()
    }

    /// Whether a node's process runs.
    pub fn is_running(&self, node: NodeId) -> bool {
        !self.state.borrow().nodes[index(node)].cores.is_empty()
    }

    /// Takes a node down once the running poll is over; for tasks. Others call [`World::take_down`](super::World::take_down).
    pub fn request_down(&self, node: NodeId, how: Down) {
        self.state.borrow_mut().down_requests.push_back((index(node), how));
    }
}

impl State {
    /// Stops a node's process, or its machine.
    pub(super) fn pause(&mut self, node: usize, ns: u64, machine: bool) {
        let until = self.now.saturating_add(ns);
        if self.nodes[node].paused_until.is_some() {
            return;
        }
        self.struck(FaultKind::ProcessPause, node as u64);
        self.withdraw_cores(node);
        self.nodes[node].paused_until = Some(until);
        self.nodes[node].suspended_at = machine.then_some(self.now);
        self.events.push(until, Event::Unpause { node });
    }

    /// A paused node goes on.
    pub(super) fn resume(&mut self, node: usize) {
        let paused = &mut self.nodes[node];
        if paused.paused_until.take().is_none() {
            return;
        }
        if let Some(since) = paused.suspended_at.take() {
            paused.clock.suspended(self.now - since);
        }
        for core in self.nodes[node].cores.clone() {
            self.make_runnable(core);
        }
    }

    pub(super) fn jump_clock(&mut self, node: usize, kind: FaultKind, by_ns: i64) {
        self.struck(kind, node as u64);
        self.nodes[node].clock.jump(by_ns);
    }

    /// Rolls the faults that come with time.
    pub(super) fn tick(&mut self) {
        const JUMP_NS: u64 = 500_000_000;
        const LEAP_NS: i64 = 600_000_000_000;
        self.ticking = false;
        self.roll_partitions();
        for node in 0..self.nodes.len() {
            if self.nodes[node].cores.is_empty() {
                continue;
            }
            let plan = self.plan(node);
            let ppm = |kind| plan.ppm(kind);
            let (jump, leap) = (ppm(FaultKind::ClockJump), ppm(FaultKind::ClockLeap));
            let (pause, outage) = (ppm(FaultKind::ProcessPause), plan.outage_max.as_nanos() as u64);
            if self.process.chance(jump) {
                let by = self.process.within(0..=2 * JUMP_NS) as i64 - JUMP_NS as i64;
                self.jump_clock(node, FaultKind::ClockJump, by);
            }
            if self.process.chance(leap) {
                // Forward when it is behind, so that clocks stay within reach of each other.
                let forward = self.nodes[node].clock.skew_ns() < 0 || self.process.below(4) == 0;
                self.jump_clock(node, FaultKind::ClockLeap, if forward { LEAP_NS } else { -LEAP_NS });
            }
            if self.process.chance(pause) {
                let ns = 1 + self.process.below(outage.max(1));
                self.pause(node, ns, false);
            }
        }
        self.keep_ticking();
    }
}
