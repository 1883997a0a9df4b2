//! Everything in the simulated world but the executors: time, what will happen, nodes, and the drivers' halves of the cores.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clock::Clock;
use super::config::{NodeConfig, SimConfig};
use super::disk::{Disk, OpenFile};
use super::events::{Event, Events};
use super::faults::{Chaos, FaultCounts, FaultKind, FaultPlan, TICK};
use super::network::Network;
use super::random::{Concern, Rng};
use super::trace::{NOWHERE, Trace, What};
use crate::CoreId;
use crate::driver::{Completion, Op, OpKey, OpOutput, RawHandle, Unpark};

/// A node, counted from 0 in the order of their adding. Its address is [`NodeId::ip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// Wakes a core of the world. Works from any thread, as the trait wants; in a simulation there is only one.
pub(super) struct SimUnpark {
    rung: AtomicBool,
    any_rung: Arc<AtomicBool>,
}

impl Unpark for SimUnpark {
    fn unpark(&self) {
        self.rung.store(true, Ordering::Release);
        self.any_rung.store(true, Ordering::Release);
    }
}

/// An op that the driver holds.
pub(super) struct Flight {
    pub generation: u32,
    pub op: Op,
}

/// What a handle of a core stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opened {
    File(OpenFile),
    Listener(u64),
    Socket { conn: u64, side: usize },
}

/// The driver's half of one start of one core. Never reused: a driver that outlives its executor still finds its own.
pub(super) struct CoreIo {
    pub node: usize,
    pub core: CoreId,
    /// Its executor is gone or about to go: every op comes back at once, without effect.
    pub dead: bool,
    pub ready: Vec<Completion>,
    pub flights: Vec<Option<Flight>>,
    pub handles: Vec<Option<Opened>>,
    free_handles: Vec<usize>,
    /// It is in the list of runnable cores.
    queued: bool,
    pub unpark: Arc<SimUnpark>,
    wake_at: Option<u64>,
    pub random: Rng,
}

impl CoreIo {
    pub fn flight(&mut self, key: OpKey) -> Option<&mut Flight> {
        let flight = self.flights.get_mut(key.slot as usize)?.as_mut()?;
        (flight.generation == key.generation).then_some(flight)
    }

    pub fn take_flight(&mut self, key: OpKey) -> Option<Flight> {
        self.flight(key)?;
        self.flights[key.slot as usize].take()
    }

    pub fn put_flight(&mut self, key: OpKey, op: Op) {
        let at = key.slot as usize;
        if self.flights.len() <= at {
            self.flights.resize_with(at + 1, || None);
        }
        assert!(self.flights[at].is_none(), "{key:?} is in flight already");
        self.flights[at] = Some(Flight { generation: key.generation, op });
    }

    pub fn adopt(&mut self, opened: Opened) -> RawHandle {
        let at = self.free_handles.pop().unwrap_or(self.handles.len());
        if at == self.handles.len() {
            self.handles.push(None);
        }
        self.handles[at] = Some(opened);
        RawHandle(at as u64)
    }

    pub fn opened(&self, handle: RawHandle) -> Opened {
        self.handles.get(handle.0 as usize).copied().flatten().expect("an op names an open handle")
    }

    pub fn release(&mut self, handle: RawHandle) -> Opened {
        self.free_handles.push(handle.0 as usize);
        self.handles[handle.0 as usize].take().expect("a handle is closed once")
    }
}

pub(super) struct Node {
    pub config: NodeConfig,
    pub clock: Clock,
    pub disk: Disk,
    /// Of disk latencies and disk faults.
    pub rng: Rng,
    /// The machine has power.
    pub up: bool,
    pub paused_until: Option<u64>,
    /// Paused with its machine: the kernel does not answer either.
    pub suspended_at: Option<u64>,
    /// Its process's cores, by their starts.
    pub cores: Vec<usize>,
    /// How many executors it has ever started.
    pub starts: u64,
}

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// The machine loses power: process, page cache and connections are gone.
    PowerLoss,
    /// The process ends by SIGKILL: the kernel keeps what was written and closes the connections.
    Kill,
}

impl Down {
    pub(super) const fn kind(self) -> FaultKind {
        match self {
            Down::PowerLoss => FaultKind::PowerLoss,
            Down::Kill => FaultKind::ProcessKill,
        }
    }
}

pub(super) struct State {
    pub seed: u64,
    pub now: u64,
    /// Task polls.
    pub steps: u64,
    pub events: Events,
    pub nodes: Vec<Node>,
    pub cores: Vec<CoreIo>,
    pub network: Network,
    pub config: SimConfig,
    pub counts: FaultCounts,
    pub trace: Trace,
    pub schedule: Rng,
    pub process: Rng,
    cost: Rng,
    runnable: Vec<usize>,
    any_rung: Arc<AtomicBool>,
    pub ticking: bool,
    /// Nodes that a task wants to go down.
    pub down_requests: VecDeque<(usize, Down)>,
}

impl State {
    pub fn new(seed: u64, mut config: SimConfig) -> State {
        let trace = Trace::new(config.trace.take());
        let mut state = State {
            seed,
            now: 0,
            steps: 0,
            events: Events::default(),
            nodes: Vec::new(),
            cores: Vec::new(),
            network: Network::new(Rng::stream(seed, Concern::Network, 0)),
            config,
            counts: FaultCounts::default(),
            trace,
            schedule: Rng::stream(seed, Concern::Schedule, 0),
            process: Rng::stream(seed, Concern::Process, 0),
            cost: Rng::stream(seed, Concern::Cost, 0),
            runnable: Vec::new(),
            any_rung: Arc::new(AtomicBool::new(false)),
            ticking: false,
            down_requests: VecDeque::new(),
        };
        state.keep_ticking();
        state
    }

    pub fn add_node(&mut self, config: NodeConfig) -> usize {
        let node = self.nodes.len();
        let mut clock_rng = Rng::stream(self.seed, Concern::Clock, node as u64);
        self.nodes.push(Node {
            clock: Clock::new(self.config.clocks, &mut clock_rng),
            disk: Disk::new(config.disk.clone()),
            rng: Rng::stream(self.seed, Concern::Disk, node as u64),
            up: true,
            paused_until: None,
            suspended_at: None,
            cores: Vec::new(),
            starts: 0,
            config,
        });
        self.network.add_node();
        self.keep_ticking();
        node
    }

    /// A new core of `node`; its number among all starts.
    pub fn add_core(&mut self, node: usize, core: CoreId) -> usize {
        let at = self.cores.len();
        let start = self.nodes[node].starts;
        self.nodes[node].starts += 1;
        self.nodes[node].up = true;
        self.nodes[node].cores.push(at);
        let unpark = Arc::new(SimUnpark { rung: AtomicBool::new(false), any_rung: Arc::clone(&self.any_rung) });
        self.cores.push(CoreIo {
            node,
            core,
            dead: false,
            ready: Vec::new(),
            flights: Vec::new(),
            handles: Vec::new(),
            free_handles: Vec::new(),
            queued: false,
            unpark,
            wake_at: None,
            random: Rng::stream(self.seed, Concern::Program, (node as u64) << 32 | start),
        });
        self.trace.event(self.now, node as u64, What::Start, [u64::from(core.0), start]);
        self.make_runnable(at);
        at
    }

    pub fn plan(&self, node: usize) -> &FaultPlan {
        self.nodes[node].config.faults.as_ref().unwrap_or(&self.config.faults)
    }

    /// A node's disk, and what decides about its faults.
    pub fn disk_and_chaos(&mut self, node: usize) -> (&mut Disk, Chaos<'_>) {
        let Node { config, disk, rng, .. } = &mut self.nodes[node];
        let plan = config.faults.as_ref().unwrap_or(&self.config.faults);
        let (counts, trace) = (&mut self.counts, &mut self.trace);
        (disk, Chaos { now: self.now, place: node as u64, rng, plan, counts, trace })
    }

    /// Books a fault of a node, or of the world.
    pub fn struck(&mut self, kind: FaultKind, place: u64) {
        self.counts.count(kind);
        self.trace.event(self.now, place, What::Fault, [kind as u64, 0]);
        let node = if place == NOWHERE { "net".to_owned() } else { format!("n{place}") };
        self.trace.line(self.now, format_args!("{node} fault {}", kind.name()));
    }

    /// Charges one poll's virtual cost.
    pub fn charge_poll(&mut self) {
        let latencies = &self.config.latencies;
        let range = if self.cost.below(256) == 0 { &latencies.slow_poll } else { &latencies.poll };
        self.now += self.cost.duration(range.clone()).as_nanos() as u64;
    }

    pub fn make_runnable(&mut self, core: usize) {
        let io = &mut self.cores[core];
        if io.dead || io.queued || self.nodes[io.node].paused_until.is_some() {
            return; // A node that goes on makes all its cores runnable.
        }
        io.queued = true;
        self.runnable.push(core);
    }

    /// Takes a runnable core by seed.
    pub fn next_runnable(&mut self) -> Option<usize> {
        if self.any_rung.swap(false, Ordering::AcqRel) {
            for node in 0..self.nodes.len() {
                for at in 0..self.nodes[node].cores.len() {
                    let core = self.nodes[node].cores[at];
                    if self.cores[core].unpark.rung.swap(false, Ordering::AcqRel) {
                        self.make_runnable(core);
                    }
                }
            }
        }
        if self.runnable.is_empty() {
            return None;
        }
        let pick = self.schedule.index(self.runnable.len());
        let core = self.runnable.swap_remove(pick);
        self.cores[core].queued = false;
        Some(core)
    }

    /// Cores of `node` no longer take turns.
    pub fn withdraw_cores(&mut self, node: usize) {
        let cores = &mut self.cores;
        self.runnable.retain(|&core| {
            let stays = cores[core].node != node;
            cores[core].queued = stays;
            stays
        });
    }

    /// `core` sleeps until `deadline` on its clock, or until something comes.
    pub fn sleep(&mut self, core: usize, deadline: Option<crate::time::Instant>) {
        let Some(deadline) = deadline else { return };
        let at = self.nodes[self.cores[core].node].clock.reaches(deadline);
        if at <= self.now {
            return self.make_runnable(core);
        }
        if self.cores[core].wake_at.is_none_or(|earlier| earlier > at) {
            self.cores[core].wake_at = Some(at);
            self.events.push(at, Event::Wake { core });
        }
    }

    /// The event of a deadline.
    pub fn wake(&mut self, core: usize, at: u64) {
        if self.cores[core].wake_at == Some(at) {
            self.cores[core].wake_at = None;
            self.make_runnable(core);
        }
    }

    /// Hands an op back.
    pub fn complete(&mut self, core: usize, key: OpKey, op: Op, result: std::io::Result<OpOutput>, more: bool) {
        let outcome = match &result {
            Ok(OpOutput::Count(count)) => *count as u64,
            Ok(_) => u64::MAX,
            Err(error) => u64::MAX - 1 - u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()),
        };
        self.trace.event(self.now, core as u64, What::Complete, [key.to_user_data(), outcome]);
        if self.trace.is_read() {
            let io = &self.cores[core];
            let (node, on, at) = (io.node, io.core.0, self.now);
            self.trace.line(at, format_args!("n{node}c{on} {key:?} {} -> {result:?}", super::driver::kind_of(&op).1));
        }
        self.cores[core].ready.push(Completion { key, op, result, more });
        self.make_runnable(core);
    }

    /// Sees to it that faults which come with time are rolled, if there are any.
    pub fn keep_ticking(&mut self) {
        const KINDS: [FaultKind; 5] = [
            FaultKind::PartitionOneWay,
            FaultKind::PartitionTwoWay,
            FaultKind::ProcessPause,
            FaultKind::ClockJump,
            FaultKind::ClockLeap,
        ];
        let node_plans = self.nodes.iter().filter_map(|node| node.config.faults.as_ref());
        let wanted = node_plans.chain([&self.config.faults]).any(|plan| plan.any(&KINDS));
        if wanted && !self.ticking {
            self.ticking = true;
            self.events.push(self.now + TICK.as_nanos() as u64, Event::Tick);
        }
    }

    /// Nodes whose process ran and does not run now.
    pub fn nodes_down(&self) -> usize {
        self.nodes.iter().filter(|node| node.starts > 0 && node.cores.is_empty()).count()
    }
}
