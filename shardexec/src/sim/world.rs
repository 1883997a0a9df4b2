//! The world's loop: who runs, when time goes on, who goes down.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use super::config::{NodeConfig, SimConfig};
use super::driver::SimDriver;
use super::events::Event;
use super::handle::Sim;
use super::random::{Concern, Rng};
use super::state::{Down, NodeId, State};
use super::trace::What;
use crate::CoreId;
use crate::driver::{Op, OpKey, OpOutput};
use crate::executor::{Class, Executor, ExecutorConfig, Pause, SpinPolicy, TaskOrder};

/// A core does at most so many polls in one turn.
const TURN_POLLS_MAX: u64 = 4;

/// Violations kept; of more, only the first count.
pub const VIOLATIONS_MAX: usize = 64;

/// Why [`World::run_until`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Every main future that was started has ended, or its node went down.
    Done,
    /// Virtual time is up.
    Time,
    /// The polls are used up.
    Steps,
    /// A node went down, by the plan or at a task's request. It is for the caller to start it again.
    Down(NodeId, Down),
    /// Nobody can run and nothing will ever happen.
    Stuck,
}

/// Something that no fault excuses: a task panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Virtual time.
    pub at: Duration,
    /// Where.
    pub node: NodeId,
    /// On which of its cores.
    pub core: CoreId,
    /// The panic's text.
    pub message: String,
}

struct Running {
    executor: Executor,
    /// Set when the main future is ready.
    finished: Rc<Cell<bool>>,
    /// It no longer counts as unfinished.
    counted: bool,
    panics: u64,
}

/// A simulated world: nodes, their disks and clocks, the network, and the executors of all cores taking turns on this thread.
///
/// The same seed, configuration and programs give the same run, and the same [`Sim::trace_hash`].
pub struct World {
    sim: Sim,
    /// By start number of the core.
    running: Vec<Option<Running>>,
    /// Main futures that have not ended.
    unfinished: usize,
    violations: Vec<Violation>,
}

impl Deref for World {
    type Target = Sim;
    fn deref(&self) -> &Sim {
        &self.sim
    }
}

impl World {
    /// An empty world at virtual time 0.
    pub fn new(seed: u64, config: SimConfig) -> World {
        let state = Rc::new(RefCell::new(State::new(seed, config)));
        World { sim: Sim { state }, running: Vec::new(), unfinished: 0, violations: Vec::new() }
    }

    /// A handle for tasks and checkers.
    pub fn sim(&self) -> Sim {
        self.sim.clone()
    }

    /// Adds a node with an empty disk.
    ///
    /// # Panics
    /// While links are cut.
    pub fn add_node(&mut self, config: NodeConfig) -> NodeId {
        NodeId(self.state.borrow_mut().add_node(config) as u16)
    }

    /// Starts an executor for one core of `node` (the machine, too, if it was down) and `main` on it. `main` is called there.
    ///
    /// # Panics
    /// When that core runs already.
    pub fn start<F>(&mut self, node: NodeId, core: CoreId, config: &ExecutorConfig, main: impl FnOnce() -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let index = usize::from(node.0);
        let at = {
            assert_eq!(self.find(node, core), None, "{core} of {node} runs already");
            self.state.borrow_mut().add_core(index, core)
        };
        let config = ExecutorConfig {
            core,
            pin_to: None,
            spin: SpinPolicy::Never,
            task_order: TaskOrder::DriverPicks,
            ..config.clone()
        };
        let driver = SimDriver::new(Rc::clone(&self.state), at);
        let mut executor = Executor::with_driver(Box::new(driver), config);
        let finished = Rc::new(Cell::new(false));
        let ready = Rc::clone(&finished);
        drop(executor.spawn(Class::Request, "main", async move {
            main().await;
            ready.set(true);
        }));
        assert_eq!(self.running.len(), at, "cores are numbered by their starts");
        self.running.push(Some(Running { executor, finished, counted: false, panics: 0 }));
        self.unfinished += 1;
    }

    /// Spawns a task on a core that runs, from outside.
    ///
    /// # Panics
    /// When the core does not run.
    pub fn spawn<F>(&mut self, node: NodeId, core: CoreId, class: Class, name: &'static str, task: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let at = self.find(node, core).unwrap_or_else(|| panic!("{core} of {node} does not run"));
        let running = self.running[at].as_mut().expect("a core of a node that is up runs");
        drop(running.executor.spawn(class, name, task));
        self.state.borrow_mut().make_runnable(at);
    }

    /// The start number of a core that runs.
    fn find(&self, node: NodeId, core: CoreId) -> Option<usize> {
        let state = self.state.borrow();
        state.nodes[usize::from(node.0)].cores.iter().copied().find(|&at| state.cores[at].core == core)
    }

    /// Whether the main future of a core that runs has ended.
    pub fn is_finished(&self, node: NodeId, core: CoreId) -> bool {
        let running = self.find(node, core).and_then(|at| self.running[at].as_ref());
        running.is_some_and(|running| running.finished.get())
    }

    /// What no fault excuses. The first [`VIOLATIONS_MAX`].
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Loss of power: ops in flight have happened, in part, or not; what was not synced is at the seed's mercy.
    pub fn crash(&mut self, node: NodeId) {
        self.take_down(node, Down::PowerLoss);
    }

    /// SIGKILL: the kernel keeps what was written, and closes the connections.
    pub fn kill(&mut self, node: NodeId) {
        self.take_down(node, Down::Kill);
    }

    /// Takes a node down: its tasks are dropped, its operations come back without effect. A machine whose process was killed may still
    /// lose power, and with it what was not synced; else nothing happens when the node is down.
    pub fn take_down(&mut self, node: NodeId, how: Down) {
        let index = usize::from(node.0);
        let mut state = self.state.borrow_mut();
        if state.nodes[index].cores.is_empty() && (how == Down::Kill || !state.nodes[index].up) {
            return;
        }
        state.struck(how.kind(), index as u64);
        drop(state);
        self.bring_down(node, how);
    }

    /// Takes away a process that has ended by itself, or that its operator ends: as a kill, but no fault.
    pub fn reap(&mut self, node: NodeId) {
        if self.is_running(node) {
            self.bring_down(node, Down::Kill);
        }
    }

    fn bring_down(&mut self, node: NodeId, how: Down) {
        let index = usize::from(node.0);
        let mut state = self.state.borrow_mut();
        state.withdraw_cores(index);
        let cores = std::mem::take(&mut state.nodes[index].cores);
        for &core in &cores {
            state.kill_core(core);
        }
        state.drop_sockets(index, how == Down::PowerLoss);
        (state.nodes[index].paused_until, state.nodes[index].suspended_at) = (None, None);
        match how {
            Down::Kill => state.nodes[index].disk.close_all(),
            Down::PowerLoss => {
                state.nodes[index].up = false;
                let (now, starts, seed) = (state.now, state.nodes[index].starts, state.seed);
                let mut rng = Rng::stream(seed, Concern::Clock, (index as u64) << 32 | starts);
                state.nodes[index].clock.boot(now, &mut rng);
                let (disk, mut chaos) = state.disk_and_chaos(index);
                disk.lose_power(&mut chaos);
            }
        }
        let now = state.now;
        state.trace.event(now, index as u64, What::End, [how as u64, cores.len() as u64]);
        state.trace.line(now, format_args!("{node} is down: {how:?}"));
        drop(state);
        for core in cores {
            let ended = self.running[core].take(); // Destructors of tasks run here; their ops come back at once.
            self.unfinished -= usize::from(ended.is_some_and(|running| !running.counted));
        }
    }

    /// Gives one core a turn. When none can run, time goes on to the next event, but not beyond `until`.
    pub fn step(&mut self, until: Duration) -> Option<Stop> {
        let until = until.as_nanos() as u64;
        let core = loop {
            self.pass_events();
            let mut state = self.state.borrow_mut();
            if state.now >= until {
                return Some(Stop::Time);
            }
            if let Some(core) = state.next_runnable() {
                break core;
            }
            match state.events.next_at() {
                None => return Some(Stop::Stuck),
                Some(at) => state.now = at.min(until).max(state.now),
            }
        };
        if let Some((node, how)) = self.strikes_down(core) {
            self.take_down(node, how);
            return Some(Stop::Down(node, how));
        }
        self.turn(core);
        let request = self.state.borrow_mut().down_requests.pop_front();
        request.map(|(node, how)| {
            let node = NodeId(node as u16);
            self.take_down(node, how);
            Stop::Down(node, how)
        })
    }

    /// Runs until virtual time `until` (since the world began), `steps_max` polls in all, a node's end, or everybody's.
    pub fn run_until(&mut self, until: Duration, steps_max: u64) -> Stop {
        loop {
            if self.sim.steps() >= steps_max {
                return Stop::Steps;
            }
            if let Some(stop) = self.step(until) {
                return stop;
            }
            if self.unfinished == 0 {
                return Stop::Done;
            }
        }
    }

    /// Rolls whether the node of `core` goes down right here.
    fn strikes_down(&mut self, core: usize) -> Option<(NodeId, Down)> {
        let mut state = self.state.borrow_mut();
        let node = state.cores[core].node;
        let plan = state.plan(node);
        let ppm = [Down::PowerLoss, Down::Kill].map(|how| (how, plan.ppm(how.kind())));
        let nodes_down_max = plan.nodes_down_max;
        for (how, ppm) in ppm {
            if state.process.chance(ppm) && state.nodes_down() < nodes_down_max {
                return Some((NodeId(node as u16), how));
            }
        }
        None
    }

    /// One core's turn.
    fn turn(&mut self, core: usize) {
        let polls = {
            let mut state = self.state.borrow_mut();
            let polls = 1 + state.schedule.below(TURN_POLLS_MAX);
            let now = state.now;
            state.trace.event(now, core as u64, What::Turn, [polls, 0]);
            polls
        };
        let running = self.running[core].as_mut().expect("a core that is runnable runs");
        let pause = running.executor.run_for(polls as u32);
        if running.finished.get() && !std::mem::replace(&mut running.counted, true) {
            self.unfinished -= 1;
        }
        let panics = running.executor.panics();
        let new_panics = panics - std::mem::replace(&mut running.panics, panics);
        if new_panics > 0 {
            let message = running.executor.last_panic().unwrap_or_default();
            self.violated(core, new_panics, &message);
        }
        let mut state = self.sim.state.borrow_mut();
        match pause {
            Pause::Runnable => state.make_runnable(core),
            Pause::Idle(deadline) => {
                if !state.cores[core].ready.is_empty() {
                    state.make_runnable(core);
                }
                state.sleep(core, deadline);
            }
        }
    }

    fn violated(&mut self, core: usize, panics: u64, message: &str) {
        let state = self.sim.state.borrow();
        let io = &state.cores[core];
        let (at, node, core) = (Duration::from_nanos(state.now), NodeId(io.node as u16), io.core);
        for _ in 0..panics {
            if self.violations.len() < VIOLATIONS_MAX {
                self.violations.push(Violation { at, node, core, message: message.to_owned() });
            }
        }
    }

    /// Everything that is due happens.
    fn pass_events(&mut self) {
        loop {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            let Some((at, event)) = state.events.pop_due(now) else { return };
            match event {
                Event::Op { core, key } => {
                    let job =
                        matches!(state.cores[core].flight(key).map(|flight| &flight.op), Some(Op::Offload { .. }));
                    if job {
                        drop(state);
                        self.run_job(core, key);
                    } else {
                        state.finish_op(core, key);
                    }
                }
                Event::Wake { core } => state.wake(core, at),
                Event::Tick => state.tick(),
                Event::Unpause { node } => {
                    if state.nodes[node].paused_until == Some(at) {
                        state.resume(node);
                    }
                }
                Event::HealPartition { id } => drop(state.network.heal(id)),
                Event::Net(event) => state.on_net_event(event),
            }
        }
    }

    /// Runs an offloaded job here, with nothing borrowed: it is foreign code.
    fn run_job(&mut self, core: usize, key: OpKey) {
        let flight = self.state.borrow_mut().cores[core].take_flight(key).expect("the caller found it");
        let Op::Offload { mut job } = flight.op else { unreachable!("the caller found a job") };
        let result = Ok(OpOutput::Offloaded(job.run()));
        self.state.borrow_mut().complete(core, key, Op::Offload { job }, result, false);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Executors give their ops back before they go, as in a kill; what they held of the world is gone with them.
        let nodes = self.state.borrow().nodes.len();
        for node in 0..nodes {
            let mut state = self.state.borrow_mut();
            let cores = std::mem::take(&mut state.nodes[node].cores);
            for &core in &cores {
                state.kill_core(core);
            }
            drop(state);
            for core in cores {
                self.running[core] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
