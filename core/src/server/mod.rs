//! A node: one process, its cores, its listeners, one data directory.
//!
//! ```text
//!   Node::start ─► one thread per core ─► boot: core 0 opens the data directory and tells the others what it is,
//!                                               every core binds its ports and tells core 0,
//!                                               core 0 tells all what to offer to clients
//!                                         then: open the logs, start the shards, serve
//! ```
//!
//! Invariants
//! - A client that connects before the shards have replayed their logs is answered `Recovering`, never refused.
//! - A core that cannot start makes the whole node stop; `Node::wait` tells why.
//! - Stopping drains: no new requests, those in flight are answered, the logs are closed with their final mark.

mod boot;
pub(crate) mod cluster;
#[cfg(test)]
mod cluster_tests;
pub(crate) mod connection;
pub(crate) mod core;
pub mod hosted;
mod observe;
pub(crate) mod peers;
pub(crate) mod reply;
mod seldom;
pub(crate) mod status;
pub mod stop;

use crate::bugs::Bugs;
use crate::raft::WalLogOptions;
pub use boot::BootError;
pub use cluster::ClusterConfig;
use gristmill_shardexec::cores::{BodyPanic, Cores, cpu_for};
use gristmill_shardexec::{CoreId, ExecutorConfig, IoChoice, SpinPolicy};
use gristmill_wal::WalOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;
use stop::StopSignal;

/// The port that `serve` listens on and clients connect to unless told otherwise.
pub const PORT_DEFAULT: u16 = 7171;

/// How many connections a core holds, and how long it waits for one that is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of one core; a further one is told so and closed.
    pub count_max: u32,
    /// Time from the accept until the hello is through.
    pub hello_wait_max: Duration,
    /// Time that a client may let pass without taking a byte of what is sent to it.
    pub send_wait_max: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            count_max: 10_000,
            hello_wait_max: Duration::from_secs(10),
            send_wait_max: Duration::from_secs(30),
        }
    }
}

/// How to run a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where the data lies. Created where it does not exist.
    pub data_dir: PathBuf,
    /// The address that accepts any request; port 0 means any free one.
    pub listen: SocketAddr,
    /// Port of each core on the same host, by core; missing ones are any free one.
    pub core_ports: Vec<u16>,
    /// Number of cores; `None`: as many as this process may run on.
    pub cores: Option<u16>,
    /// Number of shards, fixed when the data directory is created. `None`: what it has, or one per core for a new one.
    pub shards: Option<u32>,
    /// I/O driver.
    pub io: IoChoice,
    /// Pin each core's thread to a CPU.
    pub pin: bool,
    /// How long an idle core spins before it sleeps.
    pub spin: SpinPolicy,
    /// Allow a bind to other than a loopback address although nothing is encrypted or authenticated.
    pub insecure: bool,
    /// What clients may hold on to.
    pub connections: ConnectionLimits,
    /// Options of every log.
    pub wal: WalOptions,
    /// How each shard's group uses its log.
    pub group_logs: WalLogOptions,
    /// The node's part in a cluster; `None`: it runs alone.
    pub cluster: Option<ClusterConfig>,
    /// The bug that the node shall have.
    #[cfg(feature = "bugs")]
    pub bug: Option<crate::bugs::Bug>,
}

impl NodeConfig {
    /// Safe defaults: loopback, one shard per core, threads not pinned.
    pub fn new(data_dir: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig {
            data_dir: data_dir.into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT_DEFAULT),
            core_ports: Vec::new(),
            cores: None,
            shards: None,
            io: IoChoice::Auto,
            pin: false,
            spin: SpinPolicy::default(),
            insecure: false,
            connections: ConnectionLimits::default(),
            wal: WalOptions::default(),
            group_logs: WalLogOptions::default(),
            cluster: None,
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }

    #[cfg_attr(not(feature = "bugs"), allow(clippy::unused_self, reason = "with the feature it looks at a field"))]
    pub(crate) fn bugs(&self) -> Bugs {
        Bugs {
            #[cfg(feature = "bugs")]
            active: self.bug,
        }
    }

    fn cores(&self) -> u16 {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.cores.unwrap_or(u16::try_from(available).unwrap_or(u16::MAX)).max(1)
    }
}

/// Where a node listens and what it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listening {
    /// The address that accepts any request.
    pub listen: SocketAddr,
    /// The address of each core.
    pub cores: Vec<SocketAddr>,
    /// Number of shards.
    pub shards: u32,
    /// `uring` or `posix`.
    pub io_driver: &'static str,
}

/// A running node. Dropped without [`Node::wait`] it goes on until the process ends.
pub struct Node {
    listening: Listening,
    stop: StopSignal,
    cores: Cores<Result<(), BootError>>,
}

impl Node {
    /// Starts the cores and waits until every one listens. Shards may still be replaying their logs then.
    pub fn start(config: &NodeConfig) -> Result<Node, BootError> {
        let stop = StopSignal::new();
        let (ready, listening) = mpsc::channel();
        let announce = move |told| {
            // Only a caller that has given up does not listen; the node then goes on until it is stopped.
            let _ = ready.send(told);
        };
        let mut programs = hosted::core_programs(config, &stop, announce)?.into_iter();
        probe_ports(config)?;
        let count = programs.len();
        let executor = |core: CoreId| ExecutorConfig {
            core,
            pin_to: config.pin.then(|| cpu_for(core, count)).flatten(),
            io: config.io,
            spin: config.spin,
            ..ExecutorConfig::default()
        };
        // A panic in what a core's tasks share may leave it half changed: the process aborts rather than go on with it.
        let cores = Cores::start(count, BodyPanic::Abort, executor, |_| {
            let program = programs.next().expect("one program per core");
            move || program.run(|_| ())
        })?;
        match listening.recv() {
            Ok(listening) => Ok(Node { listening, stop, cores }),
            // Core 0 has dropped the sender: the cores are about to end, and one of them says why.
            Err(_) => Err(join(cores).err().unwrap_or(BootError::Stopped)),
        }
    }

    /// Where the node listens.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// A handle that asks the node to stop, for other threads.
    pub fn stop_signal(&self) -> StopSignal {
        self.stop.clone()
    }

    /// Asks the node to drain and stop.
    pub fn stop(&self) {
        self.stop.ask();
    }

    /// Waits until the node has stopped; an error where a core failed.
    pub fn wait(self) -> Result<(), BootError> {
        join(self.cores)
    }
}

/// Makes sure, before anything is touched, that every port that was asked for can be had, and lets go of them again. The
/// first core creates the directory before it binds, and with it fixes the number of shards.
#[expect(clippy::disallowed_methods, reason = "no core runs yet, and a simulated node has other ports")]
fn probe_ports(config: &NodeConfig) -> Result<(), BootError> {
    let own = config.core_ports.iter().filter(|port| **port != 0);
    let own = own.map(|port| SocketAddr::new(config.listen.ip(), *port));
    let mut held = Vec::new();
    for address in std::iter::once(config.listen).chain(own) {
        // All are held until the last is bound, so that a port that was given twice is seen.
        held.push(TcpListener::bind(address).map_err(|source| BootError::Listen { address, source })?);
    }
    Ok(())
}

/// Waits for all cores; the first failure wins.
fn join(cores: Cores<Result<(), BootError>>) -> Result<(), BootError> {
    let mut first = Ok(());
    for outcome in cores.join() {
        let outcome = outcome.unwrap_or_else(|panic| Err(BootError::from(panic)));
        // Cores that stopped because another one failed have nothing to tell.
        if first.is_ok() || matches!(first, Err(BootError::Stopped)) {
            first = outcome;
        }
    }
    first
}
