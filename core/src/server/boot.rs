//! How a core comes up and goes down. See the module head of [`super`] for the order.

use super::cluster::{Cluster, ClusterConfig};
use super::core::{Core, start_loops};
use super::hosted::CoreView;
use super::observe::tell_progress;
use super::peers::{CoreMessage, Peers};
use super::status::NodeDescription;
use super::stop::StopSignal;
use super::{Listening, NodeConfig};
use crate::metrics::{Event, Registry};
use crate::raft::{self, Group, GroupConfig, RaftSettings, ReplicaId, WalLog};
use crate::shard::data_dir::{DataDir, DataDirError, DataDirOptions, log_dir_name};
use crate::shard::machine::Machine;
use crate::shard::placement::Placement;
use crate::shard::replica::Shard;
use crate::shard::superblock::{LOGS_MAX, SHARDS_MAX, Superblock};
use futures_util::future::{Either, join_all, select};
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::frame::PROTOCOL_VERSION;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::limits::{FRAME_BODY_BYTES_MAX, IN_FLIGHT_MAX};
use gristmill_rpc::protocol::ServerOffer;
use gristmill_rpc::ring::Ring;
use gristmill_rpc::schema::HelloReply;
use gristmill_shardexec::cores::{CorePanic, CoresError};
use gristmill_shardexec::mesh::MeshSeat;
use gristmill_shardexec::net::{ListenOptions, TcpListener};
use gristmill_shardexec::time::{sleep, timeout};
use gristmill_shardexec::{Class, CoreId, driver_name, spawn, tell};
use gristmill_wal::{LogNumber, Wal, WalError};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Cores of one node at the most.
pub(crate) const CORES_MAX: u16 = 512;
/// Times that binding the shared port is tried again while the probe of it is still closing.
const BIND_ATTEMPTS_MAX: u32 = 20;
/// Pause between them.
const BIND_PAUSE: Duration = Duration::from_millis(5);

/// Who a node is that runs alone.
const ALONE: ReplicaId = ReplicaId { node: 1, incarnation: 1 };
/// How long a stopping core waits for its logs' last writes.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// Advice to a client whose request met a core that is starting.
const STARTING_RETRY_AFTER_MS: u32 = 20;

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The configuration cannot be.
    #[error("{option}: {problem}")]
    Config {
        /// Which option.
        option: &'static str,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A port cannot be bound.
    #[error("cannot listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A log is new, and its disk is full.
    #[error(
        "log {log}: disk full: a log's segment takes {segment_bytes} bytes in {directory}, and the next one as much \
         again; free space, then start again (nothing needs to be removed)"
    )]
    DiskFull {
        /// Its directory's name.
        log: String,
        /// Where it lies.
        directory: PathBuf,
        /// Bytes of one segment.
        segment_bytes: u64,
    },
    /// A log cannot be opened.
    #[error("log {log}: {source}")]
    Wal {
        /// Its directory's name.
        log: String,
        /// What the log said.
        source: WalError,
    },
    /// A log waits for its disk and was left as it is.
    #[error(
        "log {log}: not closed within {} s, for its disk is full or does not answer; what was acknowledged is there, and the \
         next start recovers the rest",
        CLOSE_MAX.as_secs()
    )]
    Unclosed {
        /// Its directory's name.
        log: String,
    },
    /// A thread or its executor could not start.
    #[error(transparent)]
    Cores(#[from] CoresError),
    /// A core panicked.
    #[error(transparent)]
    Panic(#[from] CorePanic),
    /// Another core failed first.
    #[error("the node stopped while it was starting")]
    Stopped,
}

/// Why a log cannot be opened or created.
fn of_log(log: String, source: WalError) -> BootError {
    match source {
        WalError::DiskFull { dir: directory, segment_bytes } => BootError::DiskFull { log, directory, segment_bytes },
        source => BootError::Wal { log, source },
    }
}

fn listen_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another process has the port, give another one with --listen",
        io::ErrorKind::AddrNotAvailable => "; the address is not one of this machine's",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege, give another one with --listen",
        _ => "",
    }
}

/// Refuses what no node can run with, before anything is touched.
pub(super) fn check(config: &NodeConfig) -> Result<(), BootError> {
    let refuse = |option, problem: String| Err(BootError::Config { option, problem });
    if !config.insecure && !config.listen.ip().is_loopback() {
        let problem = format!(
            "{} is not a loopback address, and nothing is encrypted or authenticated yet; \
             listen on 127.0.0.1, or give --insecure if everybody who can reach it may read and write everything",
            config.listen
        );
        return refuse("--listen", problem);
    }
    if config.cores == Some(0) || config.cores() > CORES_MAX {
        return refuse("--cores", format!("{} is not 1 to {CORES_MAX}", config.cores.unwrap_or_default()));
    }
    if let Some(shards) = config.shards
        && (shards == 0 || shards > SHARDS_MAX)
    {
        return refuse("--shards", format!("{shards} is not 1 to {SHARDS_MAX}"));
    }
    if let Some(cluster) = &config.cluster
        && let Err(problem) = cluster.check()
    {
        return refuse("cluster", problem);
    }
    if config.core_ports.len() > usize::from(config.cores()) {
        let problem = format!("{} ports for {} cores", config.core_ports.len(), config.cores());
        return refuse("--core-ports", problem);
    }
    Ok(())
}

/// Told where the node listens, once it does.
pub(super) type OnListening = Box<dyn FnOnce(Listening) + Send>;

/// What one core needs to come up.
pub(super) struct Boot {
    pub(super) core: CoreId,
    pub(super) cores: u16,
    pub(super) config: NodeConfig,
    pub(super) stop: StopSignal,
    /// Core 0 has it, and drops it untold where the node does not start.
    pub(super) on_listening: Option<OnListening>,
}

/// What core 0 finds out and tells the others first.
#[derive(Clone)]
pub(crate) struct Opened {
    superblock: Superblock,
    listen: SocketAddr,
}

/// What core 0 tells the others once all ports are bound.
#[derive(Clone)]
pub(crate) struct Offered {
    pub(super) offer: Arc<ServerOffer>,
    pub(super) node: NodeDescription,
}

/// Runs one core from its first step to its last.
pub(super) async fn run(
    boot: Boot,
    seat: MeshSeat<CoreMessage>,
    watch: impl FnOnce(CoreView),
) -> Result<(), BootError> {
    let peers = Peers::start(seat);
    let outcome = boot.serve(&peers, watch).await;
    if outcome.is_err() {
        peers.stop_others();
        peers.tell_drained();
    }
    outcome
}

impl Boot {
    async fn serve(mut self, peers: &Rc<Peers>, watch: impl FnOnce(CoreView)) -> Result<(), BootError> {
        // Held to the end: it is the lock on the data directory.
        let mut data_dir = None;
        let (opened, shared) = if self.core == CoreId(0) {
            let (opened, listener, directory) = self.open().await?;
            data_dir = Some(directory);
            for other in peers.others() {
                peers.send(other, CoreMessage::Opened(opened.clone()));
            }
            (opened, listener)
        } else {
            let opened = self.expect_opened(peers).await?;
            let shared = bind(opened.listen, true).await?;
            (opened, shared)
        };
        let own = self.bind_own().await?;
        let offered = self.agree(peers, &opened, own.local_addr()).await?;
        let placement = Placement::new(opened.superblock.shards, opened.superblock.logs, self.cores);
        let core = self.build(placement, &opened, &offered, peers);
        watch(CoreView::of(&core));
        start_loops(&core, vec![shared, own]);
        if let Some(on_listening) = self.on_listening.take() {
            self.announce(&core, &opened, &offered, on_listening);
        }
        let logs = self.open_logs(&core, placement).await?;
        core.stopped().await;
        join_all(core.shards().map(|shard| shard.shutdown())).await;
        close_logs(logs).await?;
        drop(data_dir);
        Ok(())
    }

    /// Core 0: the data directory, and the port that all cores share.
    async fn open(&self) -> Result<(Opened, TcpListener, DataDir), BootError> {
        let options = DataDirOptions {
            shards: self.config.shards,
            shards_default: u32::from(self.cores),
            logs: self.cores.min(LOGS_MAX),
            member: self.config.cluster.as_ref().map(ClusterConfig::member),
        };
        let directory = DataDir::open(&self.config.data_dir, options, &self.config.wal).await;
        let directory = directory.map_err(|error| match error {
            DataDirError::Log { log, source } => of_log(log, source),
            error => error.into(),
        })?;
        if self.config.listen.port() != 0 {
            // Sharing a port between our cores would also share it with another server: make sure that there is none.
            drop(bind(self.config.listen, false).await?);
        }
        let listener = bind(self.config.listen, true).await?;
        let opened = Opened { superblock: *directory.superblock(), listen: listener.local_addr() };
        Ok((opened, listener, directory))
    }

    async fn expect_opened(&self, peers: &Peers) -> Result<Opened, BootError> {
        match next_of_boot(peers).await? {
            (_, CoreMessage::Opened(opened)) => Ok(opened),
            _ => unreachable!("core 0 tells of the data directory first"),
        }
    }

    async fn bind_own(&self) -> Result<TcpListener, BootError> {
        let port = self.config.core_ports.get(usize::from(self.core.0)).copied().unwrap_or(0);
        bind(SocketAddr::new(self.config.listen.ip(), port), false).await
    }

    /// Collects every core's port on core 0 and spreads what clients are offered.
    async fn agree(&self, peers: &Peers, opened: &Opened, own: SocketAddr) -> Result<Offered, BootError> {
        if self.core != CoreId(0) {
            peers.send(CoreId(0), CoreMessage::Bound { port: own.port() });
            return match next_of_boot(peers).await? {
                (_, CoreMessage::Offered(offered)) => Ok(offered),
                _ => unreachable!("nothing but the offer is left to be told"),
            };
        }
        let mut ports = BTreeMap::from([(CoreId(0), own.port())]);
        while ports.len() < usize::from(self.cores) {
            match next_of_boot(peers).await? {
                (core, CoreMessage::Bound { port }) => ports.insert(core, port),
                _ => unreachable!("other cores tell their ports, and nothing else"),
            };
        }
        let offered = self.offer(opened, ports.into_values().collect());
        for other in peers.others() {
            peers.send(other, CoreMessage::Offered(offered.clone()));
        }
        Ok(offered)
    }

    fn offer(&self, opened: &Opened, core_ports: Vec<u16>) -> Offered {
        let superblock = &opened.superblock;
        let placement = Placement::new(superblock.shards, superblock.logs, self.cores);
        let reply = HelloReply {
            version: PROTOCOL_VERSION,
            server: concat!("gristmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            store: superblock.store,
            shards: superblock.shards,
            ring_vnodes: superblock.ring_vnodes,
            core_ports: core_ports.clone(),
            shard_cores: (0..superblock.shards).map(|shard| placement.core_of(ShardId(shard)).0).collect(),
            frame_body_bytes_max: FRAME_BODY_BYTES_MAX,
            in_flight_max: IN_FLIGHT_MAX,
        };
        let node = NodeDescription {
            store: superblock.store,
            data_dir: self.config.data_dir.display().to_string(),
            io_driver: driver_name(),
            listen: opened.listen.to_string(),
            core_ports,
        };
        Offered { offer: ServerOffer::new(&reply), node }
    }

    fn build(&self, placement: Placement, opened: &Opened, offered: &Offered, peers: &Rc<Peers>) -> Rc<Core> {
        let ring = Ring::new(opened.superblock.shards, opened.superblock.ring_vnodes);
        let registry = Registry::new(self.core.0);
        let machine = |id| Machine::new(id, &ring, &registry).with_bugs(self.config.bugs());
        let mut shards = BTreeMap::new();
        for log in placement.logs_of(self.core) {
            for id in placement.shards_in(log) {
                shards.insert(id, Shard::new(id, machine(id), &registry));
            }
        }
        let of_ring = (opened.superblock.shards, opened.superblock.ring_vnodes);
        let cluster = self.config.cluster.as_ref().map(|config| Cluster::new(config, of_ring));
        let limits = self.config.connections;
        Core::new(placement, ring, shards, Rc::clone(peers), offered.clone(), registry, (limits, cluster))
    }

    /// Core 0: tells whoever started the node where it listens, and waits for their wish to stop.
    fn announce(&self, core: &Rc<Core>, opened: &Opened, offered: &Offered, on_listening: OnListening) {
        let host: IpAddr = opened.listen.ip();
        let listening = Listening {
            listen: opened.listen,
            cores: offered.node.core_ports.iter().map(|port| SocketAddr::new(host, *port)).collect(),
            shards: opened.superblock.shards,
            io_driver: driver_name(),
        };
        on_listening(listening);
        let (core, stop) = (Rc::clone(core), self.stop.clone());
        spawn(Class::Request, "stop signal", async move {
            stop.asked().await;
            core.stop_node();
        });
    }

    /// Opens this core's logs and starts consensus on every shard in them. A core that is told to stop meanwhile opens no
    /// more of them: a long one is given up, as a crash would.
    async fn open_logs(&self, core: &Rc<Core>, placement: Placement) -> Result<Vec<(LogNumber, Wal)>, BootError> {
        let mut logs = Vec::new();
        for log in placement.logs_of(self.core) {
            let directory: PathBuf = self.config.data_dir.join(log_dir_name(log));
            let mut progress = tell_progress(log);
            let opening = Wal::open_with_progress(&directory, log, self.config.wal.clone(), &mut progress);
            let Either::Left((opened, _)) = select(pin!(opening), pin!(core.stop_asked())).await else { break };
            let (wal, report) = opened.map_err(|source| of_log(log_dir_name(log), source))?;
            if report.created {
                // It was there when the data directory was opened.
                return Err(DataDirError::LogMissing { path: directory }.into());
            }
            core.log_opened(log, &wal, &report);
            for id in placement.shards_in(log) {
                let shard = core.shards().find(|shard| shard.id() == id).expect("built for this placement");
                start_shard(core, shard, &wal, &self.config);
            }
            logs.push((log, wal));
        }
        Ok(logs)
    }
}

/// Starts consensus on one shard. One that must not run is refused, the others go on.
fn start_shard(core: &Core, shard: &Rc<Shard>, wal: &Wal, node: &NodeConfig) {
    let bugs = node.bugs();
    let id = shard.id();
    let (replica, settings, peers) = match core.cluster() {
        Some(cluster) => (cluster.replica(), cluster.settings(), Some(cluster.group_peers())),
        None => (ALONE, RaftSettings::default(), None),
    };
    let config = GroupConfig { shard: id, replica, settings: settings.with_bugs(bugs) };
    let store = WalLog::new(wal.clone(), id, node.group_logs.with_bugs(bugs));
    match Group::start_with(config, peers, store, shard.machine().state_machine()) {
        Ok(group) => shard.run(group),
        Err(error) => {
            tell(format_args!("gristmill: shard {} does not serve: {error}", id.0));
            let (number, reason) = (id.0, error.to_string());
            let (code, event) = match error {
                raft::StartError::Quarantined(_) => {
                    (ErrorCode::Quarantined, Event::ShardQuarantined { shard: number, reason })
                }
                _ => (ErrorCode::Internal, Event::ReplicaStopped { shard: number, reason }),
            };
            core.emit(event);
            shard.refuse(Rejection::new(code, format!("shard {}: {error}", id.0)));
        }
    }
}

/// The next message about starting. Cores that are up already forward requests of their clients: those have to wait.
async fn next_of_boot(peers: &Peers) -> Result<(CoreId, CoreMessage), BootError> {
    loop {
        match peers.receive().await {
            (from, CoreMessage::Request { ticket, .. } | CoreMessage::Status { ticket, .. }) => {
                let starting = Rejection::new(ErrorCode::Recovering, "a core of the server is starting; try again");
                peers.answer(from, ticket, Err(starting.retry_after_ms(STARTING_RETRY_AFTER_MS)));
            }
            (from, CoreMessage::Drained) => peers.note_drained(from),
            (_, CoreMessage::Stop) => return Err(BootError::Stopped),
            message => return Ok(message),
        }
    }
}

/// Closes every log; the first that fails is told. One that waits for its disk does not hold up the end.
async fn close_logs(logs: Vec<(LogNumber, Wal)>) -> Result<(), BootError> {
    let close = async |(log, wal): (LogNumber, Wal)| {
        let log = log_dir_name(log);
        match timeout(CLOSE_MAX, wal.close()).await {
            Ok(closed) => closed.map_err(|source| BootError::Wal { log, source }),
            Err(_) => Err(BootError::Unclosed { log }),
        }
    };
    join_all(logs.into_iter().map(close)).await.into_iter().collect()
}

/// Binds a listener. With `shared`, several cores may bind the same port, and the kernel spreads connections over them.
async fn bind(address: SocketAddr, shared: bool) -> Result<TcpListener, BootError> {
    let options = ListenOptions { reuse_port: shared, ..ListenOptions::default() };
    let mut attempt = 1;
    loop {
        match TcpListener::bind(address, options).await {
            Ok(listener) => return Ok(listener),
            Err(error) if shared && error.kind() == io::ErrorKind::AddrInUse && attempt < BIND_ATTEMPTS_MAX => {
                attempt += 1;
                sleep(BIND_PAUSE).await;
            }
            Err(source) => return Err(BootError::Listen { address, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::ReplyTo;
    use super::*;
    use gristmill_rpc::body::Body;
    use gristmill_rpc::frame::{FrameHeader, MessageType};
    use gristmill_shardexec::cores::{BodyPanic, Cores};
    use gristmill_shardexec::mesh::mesh;
    use gristmill_shardexec::sync::oneshot;
    use gristmill_shardexec::{ExecutorConfig, IoChoice};

    /// A core that had its offer forwarded requests to one that still waited for it, which took that for the end of the node.
    #[test]
    fn a_request_that_comes_before_a_core_is_up_is_told_to_wait() {
        let mut seats = mesh(2, 4).into_iter();
        let config = |core| ExecutorConfig { core, io: IoChoice::Posix, ..ExecutorConfig::default() };
        let cores = Cores::start(2, BodyPanic::Report, config, |core| {
            let seat = seats.next().expect("a seat a core");
            move || async move {
                let peers = Peers::start(seat);
                if core == CoreId(1) {
                    let next = next_of_boot(&peers).await;
                    assert!(matches!(next, Ok((CoreId(0), CoreMessage::Bound { port: 7 }))), "what it waits for");
                    let next = next_of_boot(&peers).await;
                    assert!(matches!(next, Err(BootError::Stopped)), "the node stops");
                    return;
                }
                let body = Body::copy_from(&[]);
                let header = FrameHeader::for_body(MessageType::Get, 1, &body);
                let (sender, request) = oneshot::channel();
                peers.forward(CoreId(1), header, body, ReplyTo::task(sender));
                let (sender, status) = oneshot::channel();
                peers.ask_status(CoreId(1), false, ReplyTo::task(sender));
                for answer in [request, status] {
                    let (_, CoreMessage::Answer { ticket, answer: told }) = peers.receive().await else {
                        panic!("an answer")
                    };
                    peers.answered(ticket, told);
                    let rejection = answer.await.expect("answered").expect_err("not served");
                    assert_eq!(rejection.code, ErrorCode::Recovering);
                }
                peers.send(CoreId(1), CoreMessage::Bound { port: 7 });
                peers.stop_others();
            }
        });
        for outcome in cores.expect("cores start").join() {
            outcome.expect("no panic");
        }
    }
}
