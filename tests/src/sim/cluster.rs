//! The nodes of a run: what they are started with, how they come back, and when somebody looks after them.
//!
//! ```text
//!   down (crash, exit) ──pause──► start ──► boot … serves ──► crash
//!        ▲                                    │ a shard of it has stopped: an operator asks it to end, and starts it again
//!        └──────────── ends ◄─────────────────┘
//! ```

use super::admin::Progress;
use super::offline::DATA_DIR;
use super::plan::Setup;
use gristmill::raft::{ClusterId, ReplicaId};
use gristmill::server::hosted::{CoreView, core_programs};
use gristmill::server::stop::StopSignal;
use gristmill::server::{BootError, ClusterConfig, NodeConfig};
use gristmill_shardexec::sim::{DiskConfig, NodeConfig as SimNode, NodeId, World};
use gristmill_shardexec::{CoreId, ExecutorConfig};
use gristmill_wal::WalOptions;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

/// The port that all cores of a node share.
pub const PORT: u16 = 7171;

/// What the cores of one start of a node have told.
#[derive(Default)]
struct Told {
    views: Vec<CoreView>,
    ends: Vec<(CoreId, Result<(), BootError>)>,
}

/// One node.
struct Member {
    id: NodeId,
    /// Counts its starts.
    life: u32,
    told: Rc<RefCell<Told>>,
    stop: StopSignal,
    /// It was asked to end.
    ending: bool,
}

/// The nodes.
pub struct Cluster {
    setup: Setup,
    members: Vec<Member>,
    progress: Rc<Progress>,
}

impl Cluster {
    /// Adds the setup's nodes to a world. None runs yet.
    pub fn new(world: &mut World, setup: &Setup) -> Cluster {
        let member = |disk: &DiskConfig| Member {
            id: world.add_node(SimNode { disk: disk.clone(), faults: None }),
            life: 0,
            told: Rc::default(),
            stop: StopSignal::new(),
            ending: false,
        };
        let members = setup.disks.iter().map(member).collect();
        Cluster { members, setup: setup.clone(), progress: Rc::default() }
    }

    /// How far whoever sets the cluster up is.
    pub fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }

    /// Numbers of the nodes.
    pub fn nodes(&self) -> std::ops::Range<u16> {
        0..self.members.len() as u16
    }

    /// The node's place in the world.
    pub fn id(&self, node: u16) -> NodeId {
        self.members[usize::from(node)].id
    }

    /// The number of a node of the world; `None` where it is none of ours.
    pub fn node_of(&self, id: NodeId) -> Option<u16> {
        self.nodes().find(|&node| self.id(node) == id)
    }

    /// Where clients find the nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.id.addr(PORT)).collect()
    }

    fn config(&self, id: NodeId) -> NodeConfig {
        NodeConfig {
            listen: id.addr(PORT),
            core_ports: (1..=self.setup.cores).map(|core| PORT + core).collect(),
            cores: Some(self.setup.cores),
            shards: Some(self.setup.shards),
            insecure: true,
            wal: self.log_options(),
            cluster: (self.setup.nodes > 1).then(|| self.part_of(id)),
            #[cfg(feature = "bugs")]
            bug: self.setup.bug.and_then(super::bugs::Injected::of_node),
            ..NodeConfig::new(DATA_DIR)
        }
    }

    /// A node's part in the cluster. The first one founds it, and may do so again only until others have joined.
    fn part_of(&self, id: NodeId) -> ClusterConfig {
        let node = |id: NodeId| u64::from(id.0) + 1;
        let others = self.members.iter().map(|member| member.id).filter(|other| *other != id);
        let peers = others.map(|other| (node(other), other.addr(PORT))).collect();
        let replica = ReplicaId { node: node(id), incarnation: 1 };
        let found = id.0 == 0 && !self.progress.founded.get();
        ClusterConfig { found, ..ClusterConfig::new(ClusterId(*b"simulated world!"), replica, peers) }
    }

    fn log_options(&self) -> WalOptions {
        let small = WalOptions::small();
        WalOptions {
            gather_bytes: if self.setup.eager_log { 1 } else { small.gather_bytes },
            #[cfg(feature = "bugs")]
            bug: self.setup.bug.and_then(super::bugs::Injected::of_log),
            ..small
        }
    }

    /// Starts a node that is down.
    pub fn start(&mut self, world: &mut World, node: u16) {
        let config = self.config(self.id(node));
        let member = &mut self.members[usize::from(node)];
        member.life += 1;
        member.told = Rc::default();
        member.stop = StopSignal::new();
        member.ending = false;
        let programs = core_programs(&config, &member.stop, drop).expect("the configuration is right");
        for program in programs {
            let (told, core) = (Rc::clone(&member.told), program.core());
            world.start(member.id, core, &ExecutorConfig::default(), move || async move {
                let viewed = Rc::clone(&told);
                let end = program.run(|view| viewed.borrow_mut().views.push(view)).await;
                told.borrow_mut().ends.push((core, end));
            });
        }
    }

    /// How often the node was started.
    pub fn life(&self, node: u16) -> u32 {
        self.members[usize::from(node)].life
    }

    /// Views of the node's cores that exist.
    pub fn views(&self, node: u16) -> Vec<CoreView> {
        let told = self.members[usize::from(node)].told.borrow();
        told.views.iter().filter(|view| view.is_alive()).cloned().collect()
    }

    /// Whether every core of the process has ended by itself; why, where one failed.
    pub fn exited(&self, world: &World, node: u16) -> Option<Option<String>> {
        let told = self.members[usize::from(node)].told.borrow();
        if !world.is_running(self.id(node)) || told.ends.len() < usize::from(self.setup.cores) {
            return None;
        }
        let failed = told.ends.iter().filter_map(|(core, end)| Some((core, end.as_ref().err()?)));
        // Cores that stopped because another one failed have nothing to tell.
        let telling = failed.max_by_key(|(_, error)| !matches!(error, BootError::Stopped));
        Some(telling.map(|(core, error)| format!("{core}: {error}")))
    }

    /// Asks a node to end; once. `false` where it was asked before.
    pub fn ask_to_end(&mut self, node: u16) -> bool {
        let member = &mut self.members[usize::from(node)];
        member.stop.ask();
        !std::mem::replace(&mut member.ending, true)
    }

    /// Takes a process away that has ended, or must.
    pub fn reap(&self, world: &mut World, node: u16) {
        world.reap(self.id(node));
    }

    /// Whether somebody should look after a running node: a shard of it serves nothing and never will in this life.
    pub fn ails(&self, node: u16) -> Option<String> {
        let mut reason = None;
        for view in self.views(node) {
            view.for_each(|shard| {
                let stopped = shard.replica.and_then(|replica| replica.stopped).map(|stopped| stopped.to_string());
                reason = reason.take().or(shard.refused).or(stopped);
            });
        }
        reason
    }
}
