//! One seed, from its setup to its verdict.
//!
//! ```text
//!   safety phase: faults, for so many steps ─► heal ─► liveness phase, in bounded virtual time:
//!       every client gets answers ─► clients end ─► replicas converge ─► everything is read ─► the checkers judge
//! ```
//!
//! | what happens | what it means |
//! |---|---|
//! | a checker objects, a task panics, a phase does not end in time | a violation |
//! | no fault struck, or nothing was acknowledged | a violation: the run proves nothing ("vacuous") |
//! | a node whose disk was damaged refuses to start, or stops a shard | counted as `refused`; a cluster must live on, a single node ends here |
//! | a replica on a damaged disk forgets what it made durable | counted as `beyond`: what the log documents as its residual window. No promise holds from there on, so the run ends |

use super::admin::Admin;
use super::checkers::acknowledged::Acknowledged;
use super::checkers::linearizable::{Answer, by_key, check};
use super::checkers::{Broken, grains};
use super::cluster::Cluster;
use super::history::{History, Record, WriteEnd};
use super::observer::Observer;
use super::plan::{Cut, DAMAGE, Prey, Setup, Strike};
use super::workload::{Client, Shared};
use gristmill::raft::Role;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::limits::RING_VNODES_DEFAULT;
use gristmill_rpc::ring::Ring;
use gristmill_shardexec::sim::{
    Down, FaultCounts, FaultPlan, NodeConfig as SimNode, NodeId, PartitionId, Rng, SimConfig, Stop, TraceSink, World,
};
use gristmill_shardexec::time::sleep;
use gristmill_shardexec::{Class, CoreId, ExecutorConfig, spawn};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Steps of the safety phase unless told otherwise.
pub const STEPS_DEFAULT: u64 = 30_000;
/// Virtual time for each part of the liveness phase.
const LIVENESS_MAX: Duration = Duration::from_mins(3);
/// Steps for each part of it.
const LIVENESS_STEPS_MAX: u64 = 3_000_000;
/// Virtual time between two looks at the nodes as an operator takes them.
const ROUND: Duration = Duration::from_millis(100);
/// Virtual time between two readings of all logs.
const LOGS_EVERY: Duration = Duration::from_secs(2);
/// A node that cannot be brought to serve so often in a row, with nothing going wrong any more, refuses.
const STARTS_IN_VAIN_MAX: u32 = 4;
/// Acknowledged writes before disks begin to lie or rot.
const SOUND_WRITES: u64 = 20;
/// Steps that a loss of power waits for something to lose.
const STRIKE_WAITS_MAX: u64 = 2_000;
/// Answers that each client must get in the liveness phase.
const ANSWERS_MIN: u64 = 3;

/// How to run a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Nodes; `None`: by seed.
    pub nodes: Option<u16>,
    /// Steps (polls of tasks) of the safety phase.
    pub steps: u64,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions { nodes: None, steps: STEPS_DEFAULT }
    }
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: u16,
    /// Steps of all phases.
    pub steps: u64,
    /// Virtual time of all phases.
    pub virtual_time: Duration,
    /// Writes that were answered for good.
    pub acked: u64,
    /// Requests that were noted.
    pub requests: u64,
    /// Writes whose outcome stayed unknown.
    pub unknown: u64,
    /// Terms that had a leader.
    pub terms: usize,
    /// Comparisons of states, and logs judged.
    pub compared: (u64, u64),
    /// Faults by kind.
    pub faults: FaultCounts,
    /// Starts of nodes after the first.
    pub restarts: u32,
    /// Nodes with a damaged disk that do not serve, and why.
    pub refused: Vec<String>,
    /// Why the run ended early, where a damaged disk took it beyond what can be promised.
    pub beyond: Option<String>,
    /// What was violated.
    pub violations: Vec<Broken>,
    /// One number for all that happened and all that clients were told.
    pub trace_hash: u64,
}

/// What is to happen at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Start(u16),
    /// An operator acts on an ailing node, if it is still the same life.
    Tend(u16, u32),
    Round,
    Logs,
    /// The cut with this number ends.
    Mend(u64),
}

struct Run {
    setup: Setup,
    world: World,
    cluster: Cluster,
    observer: Observer,
    history: History,
    shared: Rc<Shared>,
    clients: NodeId,
    /// Clients that have ended.
    ended: Rc<Cell<u16>>,
    rng: Rng,
    due: BTreeSet<(Duration, u64, Due)>,
    due_count: u64,
    strikes: Vec<Strike>,
    cuts: Vec<Cut>,
    /// Cuts that last, by number.
    cut_off: BTreeMap<u64, PartitionId>,
    has_damage: bool,
    healed: bool,
    restarts: u32,
    /// Starts of each node that came to nothing, in a row.
    in_vain: BTreeMap<u16, u32>,
    refused: BTreeMap<u16, String>,
    violations: Vec<Broken>,
    panics: usize,
    /// A round has passed: conditions may be looked at.
    round: bool,
}

/// Runs one seed.
pub fn run_seed(seed: u64, options: RunOptions, trace: Option<TraceSink>) -> Outcome {
    run_setup(Setup::draw(seed, options.nodes, options.steps), options.steps, trace)
}

/// Runs a setup that was drawn, and perhaps changed since.
pub fn run_setup(setup: Setup, steps: u64, trace: Option<TraceSink>) -> Outcome {
    let mut run = Run::new(setup, trace);
    run.begin();
    run.safety(steps);
    if run.goes_on() {
        run.liveness();
    }
    run.outcome()
}

impl Run {
    fn new(setup: Setup, trace: Option<TraceSink>) -> Run {
        let config = SimConfig { faults: setup.faults.clone(), clocks: setup.clocks, trace, ..SimConfig::default() };
        let mut world = World::new(setup.seed, config);
        let cluster = Cluster::new(&mut world, &setup);
        let clients = world.add_node(SimNode { faults: Some(FaultPlan::none()), ..SimNode::default() });
        let history = History::default();
        let shared = Rc::new(Shared {
            history: history.clone(),
            nodes: cluster.addresses(),
            ring: Ring::new(setup.shards, RING_VNODES_DEFAULT),
            spaces: setup.spaces,
            keys: setup.keys,
            think_max: setup.think_max,
            one_long_in: setup.one_long_in,
            readers: setup.readers,
            faulty: Cell::new(true),
            stop: Cell::new(false),
            next_value: Cell::new(1),
            words: RefCell::default(),
        });
        Run {
            strikes: setup.strikes.clone(),
            cuts: setup.cuts.clone(),
            cut_off: BTreeMap::new(),
            rng: Rng::new(setup.seed ^ 0x7275_6e00_0000_0000),
            setup,
            world,
            cluster,
            observer: Observer::default(),
            history,
            shared,
            clients,
            ended: Rc::default(),
            due: BTreeSet::new(),
            due_count: 0,
            has_damage: false,
            healed: false,
            restarts: 0,
            in_vain: BTreeMap::new(),
            refused: BTreeMap::new(),
            violations: Vec::new(),
            panics: 0,
            round: false,
        }
    }

    /// Starts all nodes, not all at once, and the clients.
    fn begin(&mut self) {
        for node in self.cluster.nodes() {
            let after = self.rng.duration(Duration::ZERO..=Duration::from_millis(50));
            self.after(after, Due::Start(node));
        }
        self.after(ROUND, Due::Round);
        self.after(LOGS_EVERY, Due::Logs);
        let clients: Vec<Client> =
            (0..self.setup.clients).map(|id| Client::new(id, self.setup.seed, Rc::clone(&self.shared))).collect();
        let ended = Rc::clone(&self.ended);
        let admin = self.admin();
        self.world.start(self.clients, CoreId(0), &ExecutorConfig::default(), move || async move {
            for client in clients {
                let ended = Rc::clone(&ended);
                spawn(Class::Request, "client", async move {
                    client.run().await;
                    ended.set(ended.get() + 1);
                });
            }
            if let Some(admin) = admin {
                admin.run().await;
            }
            // Time goes on although every node may be down, every client gone, and nobody left who waits for a timer: seed 8 of the smoke
            // share stood still until the operator would have started its only node again.
            loop {
                sleep(ROUND).await;
            }
        });
    }

    /// Who sets up a cluster; one node needs nobody.
    fn admin(&self) -> Option<Admin> {
        let shared = Rc::clone(&self.shared);
        (self.setup.nodes > 1).then(|| Admin {
            nodes: self.cluster.addresses(),
            shards: self.setup.shards,
            rng: Rng::new(self.setup.seed ^ 0x6164_6d69_6e00_0000),
            stepwise: self.setup.stepwise,
            churn: self.setup.churn,
            faulty: Rc::new(move || shared.faulty.get()),
            progress: self.cluster.progress(),
        })
    }

    /// The setup allows the run to go on.
    fn goes_on(&self) -> bool {
        self.violations.is_empty() && self.observer.forgetful().is_empty()
    }

    fn safety(&mut self, steps: u64) {
        while self.world.steps() < steps && self.goes_on() {
            self.turn(Duration::MAX);
            self.strike();
            self.cut_off_leaders();
            self.begin_damage();
        }
    }

    /// Brings down what the setup wants to be down by now. A machine loses power while its disk has something to lose, if that
    /// comes about in time.
    fn strike(&mut self) {
        let steps = self.world.steps();
        let mut next = 0;
        while let Some(&strike) = self.strikes.get(next).filter(|strike| strike.at <= steps) {
            if !self.pays(strike) && steps < strike.at + STRIKE_WAITS_MAX {
                next += 1;
                continue;
            }
            self.strikes.remove(next);
            let id = self.cluster.id(strike.node);
            if self.world.is_running(id) {
                self.world.take_down(id, if strike.power.is_some() { Down::PowerLoss } else { Down::Kill });
                self.went_down(strike.node);
            }
        }
    }

    /// There is something to lose right now.
    fn pays(&self, strike: Strike) -> bool {
        let id = self.cluster.id(strike.node);
        let Some(prey) = strike.power else { return true };
        self.world.is_running(id)
            && self.world.disk(id, |disk| match prey {
                Prey::Data => disk.has_unsynced(),
                Prey::Writes => disk.unsynced_writes() > 1,
                Prey::Names => disk.has_unsynced_names(),
            })
    }

    fn cut_off_leaders(&mut self) {
        while let Some(&cut) = self.cuts.first().filter(|cut| cut.at <= self.world.steps()) {
            let Some(leader) = self.cluster.nodes().find(|&node| self.leads(node)) else { return };
            self.cuts.remove(0);
            let others: Vec<u16> = self.cluster.nodes().filter(|&node| node != leader).collect();
            let ids: Vec<NodeId> = others.iter().map(|&node| self.cluster.id(node)).collect();
            let number = self.due_count;
            self.cut_off.insert(number, self.world.partition(&[self.cluster.id(leader)], &ids));
            self.after(cut.lasts, Due::Mend(number));
            for node in others.into_iter().filter(|_| cut.kills) {
                if self.world.is_running(self.cluster.id(node)) {
                    self.world.take_down(self.cluster.id(node), Down::Kill);
                    self.went_down(node);
                }
            }
        }
    }

    /// Whether a node leads a shard, by its own word.
    fn leads(&self, node: u16) -> bool {
        let mut leads = false;
        for view in self.cluster.views(node) {
            view.for_each(|shard| leads |= shard.replica.is_some_and(|replica| replica.role == Role::Leader));
        }
        leads
    }

    /// Once there is something to lose, the disks of some begin to lie. Not before all nodes vote: a minority of the nodes could be
    /// the majority of those that do.
    fn begin_damage(&mut self) {
        let is_full = self.setup.nodes == 1 || self.cluster.progress().full.get();
        if !self.has_damage && is_full && self.history.acked() >= SOUND_WRITES {
            self.has_damage = true;
            for &node in &self.setup.damaged {
                self.world.set_node_faults(self.cluster.id(node), Some(self.setup.damage.clone()));
            }
        }
        if self.has_damage && !self.setup.damaged.is_empty() {
            let faults = self.world.faults();
            if DAMAGE.iter().any(|&kind| faults.of(kind) > 0) {
                self.setup.damaged.iter().for_each(|&node| self.observer.damaged(node));
            }
        }
    }

    fn after(&mut self, pause: Duration, due: Due) {
        self.due_count += 1;
        self.due.insert((self.world.now() + pause, self.due_count, due));
    }

    fn pause(&mut self, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.rng.within(range))
    }

    fn went_down(&mut self, node: u16) {
        let pause = self.rng.duration(Duration::from_millis(1)..=self.setup.restart_max);
        self.after(pause, Due::Start(node));
    }

    /// One turn of the world, and whatever follows from it.
    fn turn(&mut self, until: Duration) {
        self.pass_due();
        let next = self.due.first().map_or(until, |due| due.0).min(until);
        match self.world.step(next) {
            Some(Stop::Down(id, _)) => {
                let node = self.cluster.node_of(id).expect("clients do not go down");
                self.went_down(node);
            }
            Some(Stop::Stuck) => self.violated(Broken::new("stuck", "nothing will ever happen any more")),
            _ => {}
        }
        let damages = self.damages();
        let looked = self.observer.look(&self.cluster, damages);
        self.judge(looked);
        if self.world.violations().len() > self.panics {
            let panics = self.world.violations()[self.panics..].to_vec();
            self.panics += panics.len();
            for panic in panics {
                let detail = format!("{} of {} at {:?}: {}", panic.core, panic.node, panic.at, panic.message);
                self.violated(Broken::new("panic", detail));
            }
        }
    }

    fn judge<T>(&mut self, outcome: Result<T, Broken>) -> Option<T> {
        outcome.map_err(|broken| self.violated(broken)).ok()
    }

    fn violated(&mut self, broken: Broken) {
        self.violations.push(broken);
    }

    fn pass_due(&mut self) {
        while let Some(&entry) = self.due.first().filter(|due| due.0 <= self.world.now()) {
            self.due.remove(&entry);
            match entry.2 {
                Due::Start(node) => self.start(node),
                Due::Tend(node, life) => self.tend(node, life),
                Due::Mend(number) => {
                    // Ended by the liveness phase already, perhaps: then this does nothing.
                    if let Some(partition) = self.cut_off.remove(&number) {
                        self.world.heal_partition(partition);
                    }
                }
                Due::Round => {
                    self.round = true;
                    self.look_after();
                    self.after(ROUND, Due::Round);
                }
                Due::Logs => {
                    for node in self.cluster.nodes() {
                        self.read_logs(node);
                    }
                    self.after(LOGS_EVERY, Due::Logs);
                }
            }
        }
    }

    fn read_logs(&mut self, node: u16) {
        let read = self.observer.read_logs(&self.world, &self.cluster, node);
        self.judge(read);
    }

    fn start(&mut self, node: u16) {
        if self.world.is_running(self.cluster.id(node)) {
            return;
        }
        self.read_logs(node);
        self.observer.starts(node, self.damages());
        self.restarts += u32::from(self.cluster.life(node) > 0);
        self.cluster.start(&mut self.world, node);
    }

    /// What an operator sees on a round: processes that have ended, and shards that have stopped.
    fn look_after(&mut self) {
        for node in self.cluster.nodes() {
            if let Some(end) = self.cluster.exited(&self.world, node) {
                self.cluster.reap(&mut self.world, node);
                if self.gives_up(node, end) {
                    continue;
                }
                let pause = self.pause(50..=1500);
                self.after(pause, Due::Start(node));
            } else if self.cluster.ails(node).is_some() {
                let pause = self.pause(100..=1500);
                let life = self.cluster.life(node);
                if !self.due.iter().any(|due| due.2 == Due::Tend(node, life)) {
                    self.after(pause, Due::Tend(node, life));
                }
            } else if self.serves(node) {
                self.in_vain.remove(&node);
            }
        }
    }

    /// Notes a start that came to nothing; whether there will be no other.
    fn gives_up(&mut self, node: u16, reason: Option<String>) -> bool {
        let Some(reason) = reason.filter(|_| self.healed) else { return false };
        let times = self.in_vain.entry(node).or_default();
        *times += 1;
        if *times < STARTS_IN_VAIN_MAX {
            return false;
        }
        self.refuse(node, reason);
        true
    }

    /// A node will not come back. Only damage excuses that.
    fn refuse(&mut self, node: u16, reason: String) {
        if self.is_damaged(node) {
            self.refused.insert(node, reason);
        } else {
            let detail = format!("node {node} does not serve although its disk kept its word: {reason}");
            self.violated(Broken::new("liveness", detail));
        }
    }

    /// How often a disk broke its word.
    fn damages(&self) -> u64 {
        let faults = self.world.faults();
        DAMAGE.iter().map(|&kind| faults.of(kind)).sum()
    }

    fn is_damaged(&self, node: u16) -> bool {
        let faults = self.world.faults();
        self.has_damage && self.setup.damaged.contains(&node) && DAMAGE.iter().any(|&kind| faults.of(kind) > 0)
    }

    /// Ends an ailing process, one way or the other.
    fn tend(&mut self, node: u16, life: u32) {
        let Some(reason) = self.cluster.ails(node).filter(|_| self.cluster.life(node) == life) else { return };
        if self.gives_up(node, Some(reason)) {
            return;
        }
        if self.rng.coin() {
            self.cluster.ask_to_end(node);
        } else {
            self.cluster.reap(&mut self.world, node);
            self.went_down(node);
        }
    }

    /// Whether every shard of a node takes part.
    fn serves(&self, node: u16) -> bool {
        let mut shards = BTreeSet::new();
        for view in self.cluster.views(node) {
            view.for_each(|shard| {
                if shard.replica.is_some_and(|replica| replica.role != Role::None && replica.stopped.is_none()) {
                    shards.insert(shard.shard);
                }
            });
        }
        shards.len() == self.setup.shards as usize
    }

    /// Goes on until something holds on a round, or there is no hope; `false` where it never came to hold.
    fn go_on_until(&mut self, what: &str, holds: impl Fn(&Run) -> bool) -> bool {
        let (time, steps) = (self.world.now() + LIVENESS_MAX, self.world.steps() + LIVENESS_STEPS_MAX);
        while self.world.now() < time && self.world.steps() < steps && self.goes_on() {
            if std::mem::take(&mut self.round) && (holds(self) || self.is_over()) {
                return true;
            }
            self.turn(time);
        }
        if self.goes_on() {
            let detail = format!(
                "not in {:?} of virtual time or {LIVENESS_STEPS_MAX} steps: {what}; {}",
                LIVENESS_MAX,
                self.describe()
            );
            self.violated(Broken::new("liveness", detail));
        }
        false
    }

    /// A majority cannot serve any more, and damage excuses it.
    fn is_over(&self) -> bool {
        self.refused.len() * 2 >= usize::from(self.setup.nodes)
    }

    fn describe(&self) -> String {
        let mut parts = vec![format!("refused {:?}", self.refused)];
        for node in self.cluster.nodes() {
            let (life, running) = (self.cluster.life(node), self.world.is_running(self.cluster.id(node)));
            parts.push(format!("node {node} in life {life}, running: {running}"));
            for view in self.cluster.views(node) {
                view.for_each(|shard| parts.push(format!("{shard:?}")));
            }
        }
        parts.join("; ")
    }

    fn liveness(&mut self) {
        self.world.heal();
        self.healed = true;
        self.shared.faulty.set(false);
        let before: Vec<u64> = (0..self.setup.clients).map(|client| self.history.answered(client)).collect();
        let progress = move |run: &Run| {
            (0..).zip(&before).all(|(client, before)| run.history.answered(client) >= before + ANSWERS_MIN)
        };
        let lives = self.go_on_until("every client gets answers", progress);
        self.shared.stop.set(true);
        let lives = lives
            && self.go_on_until("clients end", |run| run.ended.get() == run.setup.clients)
            && self.go_on_until("replicas converge", Run::has_converged)
            && self.come_back()
            && self.read_everything();
        if lives && !self.is_over() {
            self.judge_logs();
        }
        if self.goes_on() {
            self.judge_history();
        }
    }

    /// Some nodes are started once more, those with damaged disks among them: they must come to the same state, or refuse.
    fn come_back(&mut self) -> bool {
        let lucky = self.rng.below(u64::from(self.setup.nodes)) as u16;
        for node in self.cluster.nodes() {
            if (node == lucky || self.is_damaged(node)) && self.world.is_running(self.cluster.id(node)) {
                self.cluster.reap(&mut self.world, node);
                self.went_down(node);
            }
        }
        self.go_on_until("replicas come back and converge", Run::has_converged)
    }

    /// A client reads all there is.
    fn read_everything(&mut self) -> bool {
        self.shared.stop.set(false);
        let reader = Client::new(self.setup.clients, self.setup.seed, Rc::clone(&self.shared));
        let done = Rc::new(Cell::new(false));
        let told = Rc::clone(&done);
        self.world.spawn(self.clients, CoreId(0), Class::Request, "reader", async move {
            reader.read_everything().await;
            told.set(true);
        });
        self.go_on_until("everything is read", |_| done.get())
    }

    /// Every replica that serves has the same last entry applied, and the same state.
    fn has_converged(&self) -> bool {
        if self.setup.nodes > 1 && !self.cluster.progress().settled.get() {
            return false;
        }
        let mut states = BTreeMap::new();
        let serving = self.cluster.nodes().filter(|node| !self.refused.contains_key(node));
        let mut equal = true;
        for node in serving {
            equal &= self.serves(node);
            for view in self.cluster.views(node) {
                view.for_each(|shard| {
                    let Some(replica) = shard.replica else { return };
                    let state = view.state_root(shard.shard);
                    let applied = replica.applied.map(|applied| applied.index);
                    equal &= applied.is_some() && applied == replica.last_log && replica.applied == replica.durable;
                    equal &= *states.entry(shard.shard).or_insert(state) == state;
                });
            }
        }
        equal && states.len() == self.setup.shards as usize
    }

    /// What was acknowledged stands in the logs. Where no disk but damaged ones is left, only what is read counts: a log that rots
    /// below a running node is still served from memory.
    fn judge_logs(&mut self) {
        let mut acknowledged = Acknowledged::default();
        if acknowledged.note(&self.history.records()).is_err() {
            return; // Told with the history.
        }
        let sound = self.cluster.nodes().find(|node| !self.refused.contains_key(node) && !self.is_damaged(*node));
        for node in self.cluster.nodes() {
            let read = self.observer.read_logs(&self.world, &self.cluster, node);
            let Some(mut logs) = self.judge(read).filter(|_| Some(node) == sound) else { continue };
            for shard in (0..self.setup.shards).map(ShardId) {
                let judged = acknowledged.judge(shard, &logs.remove(&shard).unwrap_or_default());
                self.judge(judged);
            }
        }
    }

    /// What clients were told makes sense.
    fn judge_history(&mut self) {
        let records = self.history.records();
        let noted = Acknowledged::default().note(&records);
        self.judge(noted);
        let judged = grains::judge(&records);
        self.judge(judged);
        self.judge_keys(&records);
    }

    fn judge_keys(&mut self, records: &[Record]) {
        for (key, ops) in by_key(records) {
            match check(&ops) {
                Answer::Yes => {}
                Answer::No(found) => {
                    let detail = format!("{key:?}: no order explains {found:#?}");
                    self.violated(Broken::new("linearizable", detail));
                }
                Answer::Undecided => {
                    let detail = format!("{key:?}: {} operations, too many orders to try", ops.len());
                    self.violated(Broken::new("undecided", detail));
                }
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        let faults = self.world.faults();
        let beyond = self.observer.forgetful().first().cloned();
        let acked = self.history.acked();
        let struck = faults.total();
        if self.violations.is_empty() && (struck == 0 || acked == 0) {
            self.violated(Broken::new("vacuous", format!("{struck} faults, {acked} acknowledged writes")));
        }
        let is_unknown = |record: &Record| matches!(record, Record::Write(write) if write.end == WriteEnd::Unknown);
        let unknown = self.history.records().iter().filter(|record| is_unknown(record)).count() as u64;
        let sim_hash = self.world.trace_hash();
        let trace_hash = (sim_hash ^ self.history.hash()).wrapping_mul(0x0100_0000_01b3).rotate_left(29) ^ acked;
        Outcome {
            seed: self.setup.seed,
            nodes: self.setup.nodes,
            steps: self.world.steps(),
            virtual_time: self.world.now(),
            acked,
            requests: self.history.len() as u64,
            unknown,
            terms: self.observer.terms(),
            compared: (self.observer.states_compared(), self.observer.logs_judged()),
            faults,
            restarts: self.restarts,
            refused: self.refused.iter().map(|(node, reason)| format!("node {node}: {reason}")).collect(),
            beyond,
            violations: self.violations,
            trace_hash,
        }
    }
}
