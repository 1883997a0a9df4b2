//! A node's cores as programs for executors that somebody else runs, and a look at them while they run.
//!
//! ```text
//!   core_programs(config) ─► one CoreProgram per core ─┬─ Node::start: a thread and an executor for each
//!                                                      └─ a simulation: an executor over its driver for each, all on one thread
//!   CoreProgram::run(watch) ─► boot ─► watch(CoreView) ─► serves until it is stopped
//! ```
//!
//! Invariants
//! - Production and simulation run the very same programs: what differs is the driver below the executor.
//! - A [`CoreView`] only looks. It wakes nobody, changes nothing and keeps nothing alive, so a run that is watched goes as it goes
//!   unwatched. It may be used between polls, on the thread that polls the core, also outside an executor.

use super::boot::{self, Boot};
use super::core::Core;
use super::peers::CoreMessage;
use super::stop::StopSignal;
use super::{BootError, Listening, NodeConfig};
use crate::raft::ReplicaView;
use crate::state::root::StateRoot;
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec::CoreId;
use gristmill_shardexec::mesh::{MeshSeat, mesh};
use gristmill_wal::LogPosition;
use std::rc::{Rc, Weak};

/// Slots of the ring between each two cores.
const MESH_RING_SLOTS: usize = 1024;

/// What one core of a node runs, from its first step to its last. Moves to the thread of its executor.
pub struct CoreProgram {
    boot: Boot,
    seat: MeshSeat<CoreMessage>,
}

/// The programs of a node's cores, by core number. All of them must run, or none comes up. `on_listening` is told once where the node
/// listens, or dropped.
///
/// # Errors
/// The configuration cannot be; nothing was touched.
pub fn core_programs(
    config: &NodeConfig,
    stop: &StopSignal,
    on_listening: impl FnOnce(Listening) + Send + 'static,
) -> Result<Vec<CoreProgram>, BootError> {
    boot::check(config)?;
    let cores = config.cores();
    let mut on_listening: Option<boot::OnListening> = Some(Box::new(on_listening));
    let seats = mesh(usize::from(cores), MESH_RING_SLOTS).into_iter();
    let program = |(core, seat)| {
        let (config, stop) = (config.clone(), stop.clone());
        CoreProgram { boot: Boot { core, cores, config, stop, on_listening: on_listening.take() }, seat }
    };
    Ok((0..cores).map(CoreId).zip(seats).map(program).collect())
}

impl CoreProgram {
    /// Which core it is for.
    pub fn core(&self) -> CoreId {
        self.boot.core
    }

    /// Runs the core. `watch` is given a view of it as soon as its shards exist, before their logs are opened.
    pub async fn run(self, watch: impl FnOnce(CoreView)) -> Result<(), BootError> {
        boot::run(self.boot, self.seat, watch).await
    }
}

/// A look at one core's shards.
#[derive(Clone)]
pub struct CoreView(Weak<Core>);

/// One shard, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardView {
    /// Which.
    pub shard: ShardId,
    /// Its replica; `None` while its log is being opened, and where it was refused or has stopped.
    pub replica: Option<ReplicaView>,
    /// Why it serves nothing and never will, as clients are told.
    pub refused: Option<String>,
}

impl CoreView {
    pub(super) fn of(core: &Rc<Core>) -> CoreView {
        CoreView(Rc::downgrade(core))
    }

    /// Whether the core is still there.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Shows every shard of the core.
    pub fn for_each(&self, mut look: impl FnMut(ShardView)) {
        let Some(core) = self.0.upgrade() else { return };
        core.shards().for_each(|shard| look(shard.view()));
    }

    /// The last entry in a shard's state, and the state's root. `None` where the core does not run the shard.
    pub fn state_root(&self, shard: ShardId) -> Option<(Option<LogPosition>, StateRoot)> {
        let core = self.0.upgrade()?;
        let shard = core.shards().find(|found| found.id() == shard)?;
        Some(shard.machine().root_at())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Role;
    use gristmill_shardexec::sim::{NodeConfig as SimNode, SimConfig, Stop, World};
    use gristmill_shardexec::{Class, ExecutorConfig, spawn, time};
    use std::cell::RefCell;
    use std::time::Duration;

    /// A node of two cores comes up in a simulated world, is looked at, and stops when asked.
    #[test]
    fn a_node_runs_on_executors_of_somebody_else() {
        let mut world = World::new(1, SimConfig::default());
        let node = world.add_node(SimNode::default());
        let config = NodeConfig {
            cores: Some(2),
            shards: Some(3),
            wal: gristmill_wal::WalOptions::small(),
            ..NodeConfig::new("/data")
        };
        let stop = StopSignal::new();
        let told = std::sync::Arc::new(std::sync::Mutex::new(None));
        let heard = std::sync::Arc::clone(&told);
        let programs = core_programs(&config, &stop, move |listening| *heard.lock().unwrap() = Some(listening));
        let views: Rc<RefCell<Vec<CoreView>>> = Rc::default();
        for program in programs.expect("the configuration is right") {
            let (views, stop) = (Rc::clone(&views), stop.clone());
            world.start(node, program.core(), &ExecutorConfig::default(), move || async move {
                spawn(Class::Background, "stopper", async move {
                    time::sleep(Duration::from_secs(5)).await;
                    stop.ask();
                });
                program.run(|view| views.borrow_mut().push(view)).await.expect("it runs");
            });
        }
        assert_eq!(world.run_until(Duration::from_secs(4), u64::MAX), Stop::Time, "{:?}", world.violations());
        assert_eq!(told.lock().unwrap().as_ref().expect("it listens").io_driver, "sim");
        let mut leaders = Vec::new();
        for view in views.borrow().iter() {
            view.for_each(|seen| {
                let replica = seen.replica.expect("its log is open");
                assert_eq!((replica.role, replica.ready, replica.term), (Role::Leader, true, 1));
                assert_eq!((replica.committed, replica.durable), (replica.applied, replica.applied));
                let (applied, _) = view.state_root(seen.shard).expect("it is here");
                assert_eq!(applied, replica.applied);
                leaders.push(seen.shard.0);
            });
        }
        leaders.sort_unstable();
        assert_eq!(leaders, [0, 1, 2]);
        assert_eq!(world.run_until(Duration::from_mins(1), u64::MAX), Stop::Done, "{:?}", world.violations());
        assert_eq!(world.violations(), []);
    }
}
