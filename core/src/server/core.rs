//! One core of a node: its shards, its listeners, and the way of a request to its shard.
//!
//! ```text
//!   connection ─► dispatch: check, find the shard ─┬─► a shard of this core ─► answer
//!                                                  └─► Peers ─► the owning core's dispatch_forwarded ─► answer
//! ```

use super::ConnectionLimits;
use super::boot::Offered;
use super::cluster::{Cluster, not_clustered};
use super::connection::{Connection, refuse};
use super::observe::{CoreMetrics, observe_log, watch_executor};
use super::peers::{CoreMessage, Peers};
use super::reply::ReplyTo;
use super::seldom::Seldom;
use super::status::{self, CoreStatus, NodeDescription};
use crate::metrics::{Event, Registry};
use crate::raft::ReplicaId;
use crate::shard::placement::Placement;
use crate::shard::replica::Shard;
use crate::shard::wall_ms;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::frame::{FrameError, FrameHeader};
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::protocol::ServerOffer;
use gristmill_rpc::ring::Ring;
use gristmill_rpc::validate::{self, RequestRef};
use gristmill_shardexec::net::{TcpListener, TcpStream};
use gristmill_shardexec::sync::{Notify, Semaphore};
use gristmill_shardexec::time::{Instant, sleep};
use gristmill_shardexec::{Class, CoreId, spawn, tell};
use gristmill_wal::{LogNumber, RecoveryReport, Wal};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Connections over the limit that are told so at the same time; more are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long a stopping core waits for requests in flight, its own and those of other cores.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks at them.
const DRAIN_PAUSE: Duration = Duration::from_millis(5);
/// Pause after an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every request on this core needs.
pub(crate) struct Core {
    id: CoreId,
    placement: Placement,
    ring: Rc<Ring>,
    shards: BTreeMap<ShardId, Rc<Shard>>,
    peers: Rc<Peers>,
    offer: Arc<ServerOffer>,
    node: NodeDescription,
    limits: ConnectionLimits,
    cluster: Option<Cluster>,
    connections: RefCell<Vec<Weak<Connection>>>,
    refusals: Semaphore,
    refusals_told: Seldom,
    bad_frames_told: Seldom,
    accept_errors_told: Seldom,
    stopping: Cell<bool>,
    stop: Notify,
    metrics: Rc<CoreMetrics>,
    registry: Registry,
}

impl Core {
    pub(crate) fn new(
        placement: Placement,
        ring: Ring,
        shards: BTreeMap<ShardId, Rc<Shard>>,
        peers: Rc<Peers>,
        offered: Offered,
        registry: Registry,
        (limits, cluster): (ConnectionLimits, Option<Cluster>),
    ) -> Rc<Core> {
        let id = peers.own();
        Rc::new(Core {
            id,
            placement,
            ring: Rc::new(ring),
            shards,
            peers,
            offer: offered.offer,
            node: offered.node,
            limits,
            cluster,
            connections: RefCell::default(),
            refusals: Semaphore::new(REFUSALS_MAX),
            refusals_told: Seldom::default(),
            bad_frames_told: Seldom::default(),
            accept_errors_told: Seldom::default(),
            stopping: Cell::new(false),
            stop: Notify::new(),
            metrics: Rc::new(CoreMetrics::register(&registry, id)),
            registry,
        })
    }

    pub(crate) fn offer(&self) -> Arc<ServerOffer> {
        Arc::clone(&self.offer)
    }

    /// What this core's connections may hold on to.
    pub(crate) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// The node's part in a cluster.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Checks a request that `sender` sent here, which `arrived` then, and hands it to its shard.
    pub(crate) fn dispatch(
        self: &Rc<Self>,
        sender: &Sender,
        header: &FrameHeader,
        body: Body,
        arrived: Instant,
        reply: ReplyTo,
    ) {
        self.metrics.requests.add(1);
        let routed = self.route(sender, header, &body);
        match routed {
            Ok(Route::Shard(shard)) => self.to_shard(shard, *header, body, arrived, reply),
            Ok(Route::Status { verbose }) => status::gather(self, verbose, reply),
            Ok(Route::Here(answer)) => reply.answer(Ok(answer)),
            Err(rejection) => reply.answer(Err(rejection)),
        }
    }

    fn route(&self, sender: &Sender, header: &FrameHeader, body: &Body) -> Result<Route, Rejection> {
        if self.stopping.get() {
            return Err(Rejection::new(ErrorCode::ShuttingDown, "the server is shutting down; ask again later"));
        }
        let request = validate::request(header, body)?;
        if let RequestRef::Status(request) = &request {
            return Ok(Route::Status { verbose: request.verbose });
        }
        match &request {
            RequestRef::PeerHello(hello) => {
                let (from, answer) = self.cluster.as_ref().ok_or_else(not_clustered)?.greet(hello)?;
                sender.replica.set(Some(from));
                return Ok(Route::Here(archive(&answer)));
            }
            RequestRef::Replica(message) => {
                self.cluster.as_ref().ok_or_else(not_clustered)?;
                Cluster::check(sender.replica.get(), message)?;
            }
            RequestRef::AddLearner(_) | RequestRef::ChangeMembership(_) => {
                self.cluster.as_ref().ok_or_else(not_clustered)?;
            }
            _ => {}
        }
        match request.shard(header, &self.ring)? {
            Some(shard) => Ok(Route::Shard(shard)),
            None => Err(validate::unknown_message(header.message_type)),
        }
    }

    fn to_shard(self: &Rc<Self>, shard: ShardId, header: FrameHeader, body: Body, arrived: Instant, reply: ReplyTo) {
        let owner = self.placement.core_of(shard);
        if owner == self.id {
            self.serve(shard, &header, body, arrived, reply);
        } else {
            self.metrics.forwarded.add(1);
            let header = FrameHeader { shard, ..header };
            self.peers.forward(owner, header, body, reply);
        }
    }

    fn serve(&self, shard: ShardId, header: &FrameHeader, body: Body, arrived: Instant, reply: ReplyTo) {
        let shard = self.shards.get(&shard).expect("placement and shards agree");
        let deadline = (header.deadline_ms > 0).then(|| arrived + Duration::from_millis(u64::from(header.deadline_ms)));
        shard.serve(header, body, deadline, reply);
    }

    /// Serves the other cores until told to stop.
    pub(crate) async fn serve_peers(self: Rc<Self>) {
        loop {
            let (from, message) = self.peers.receive().await;
            match message {
                CoreMessage::Request { ticket, header, body } => {
                    let reply = ReplyTo::peer(Rc::clone(&self.peers), from, ticket);
                    self.serve(header.shard, &header, body, Instant::now(), reply);
                }
                CoreMessage::Status { ticket, verbose } => {
                    let reply = ReplyTo::peer(Rc::clone(&self.peers), from, ticket);
                    reply.answer(Ok(Body::copy_from(&self.status(verbose).to_json())));
                }
                CoreMessage::Answer { ticket, answer } => self.peers.answered(ticket, answer),
                CoreMessage::Stop => self.begin_stop(),
                CoreMessage::Drained => self.peers.note_drained(from),
                CoreMessage::Opened(_) | CoreMessage::Bound { .. } | CoreMessage::Offered(_) => {
                    unreachable!("told while starting, before this loop runs")
                }
            }
        }
    }

    /// Accepts connections on one listener until the core stops.
    pub(crate) async fn accept(self: Rc<Self>, listener: TcpListener) {
        while !self.stopping.get() {
            match listener.accept().await {
                Ok((socket, _)) if self.metrics.connections.value() < i64::from(self.limits.count_max) => {
                    self.metrics.accepted.add(1);
                    let connection = Connection::serve(&self, socket);
                    let mut connections = self.connections.borrow_mut();
                    connections.retain(|old| old.strong_count() > 0);
                    connections.push(Rc::downgrade(&connection));
                }
                Ok((socket, _)) => self.refuse(socket),
                Err(error) => {
                    if let Some(times) = self.accept_errors_told.due(Instant::now()) {
                        tell(format_args!(
                            "gristmill: {}: cannot accept a connection ({times} times): {error}",
                            self.id
                        ));
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// There are too many connections: says so, to the client and now and then on stderr.
    fn refuse(&self, socket: TcpStream) {
        self.metrics.refused.add(1);
        let limit = self.limits.count_max;
        if let Some(times) = self.refusals_told.due(Instant::now()) {
            let peer = socket.peer_addr();
            tell(format_args!(
                "gristmill: {}: {limit} connections are open: refused {times}, the last from {peer}",
                self.id
            ));
        }
        if let Some(permit) = self.refusals.try_acquire() {
            spawn(Class::Request, "connection refusal", refuse(socket, self.offer(), limit, permit));
        }
    }

    /// Counts a connection for as long as the guard lives.
    pub(crate) fn connection_opened(&self) -> OpenConnection {
        self.metrics.connections.add(1);
        OpenConnection(Rc::clone(&self.metrics))
    }

    /// What this core counts.
    pub(crate) fn metrics(&self) -> Rc<CoreMetrics> {
        Rc::clone(&self.metrics)
    }

    /// A client sent what is no frame.
    pub(crate) fn bad_frame(&self, peer: SocketAddr, error: FrameError) {
        self.metrics.bad_frames.add(1);
        if let Some(times) = self.bad_frames_told.due(Instant::now()) {
            tell(format_args!(
                "gristmill: {}: closed {times} connections for bad frames, the last from {peer}: {error}",
                self.id
            ));
        }
    }

    /// A log of this core was opened.
    pub(crate) fn log_opened(&self, log: LogNumber, wal: &Wal, report: &RecoveryReport) {
        observe_log(&self.registry, log, wal, report);
    }

    /// Notes something that happened on this core.
    pub(crate) fn emit(&self, event: Event) {
        self.registry.emit(wall_ms(), event);
    }

    /// This core's part of the status.
    pub(crate) fn status(&self, verbose: bool) -> CoreStatus {
        let shards = self.shards.values().map(|shard| shard.status()).collect();
        let figures = verbose.then(|| self.registry.snapshot());
        CoreStatus::new(self.id, self.metrics.connections.value(), shards, figures)
    }

    /// What is the same on every core.
    pub(crate) fn node(&self) -> &NodeDescription {
        &self.node
    }

    pub(crate) fn peers(&self) -> &Rc<Peers> {
        &self.peers
    }

    /// Stops this core, and with it the others.
    pub(crate) fn stop_node(&self) {
        self.peers.stop_others();
        self.begin_stop();
    }

    fn begin_stop(&self) {
        self.stopping.set(true);
        self.stop.notify_one();
    }

    /// Resolves once the core was told to stop. One task waits at a time.
    pub(crate) async fn stop_asked(&self) {
        while !self.stopping.get() {
            self.stop.notified().await;
        }
    }

    /// Resolves once the core was told to stop and the answers to its clients are sent, and so on every other core, whose
    /// clients may wait for shards of this one; or they all have had their time.
    pub(crate) async fn stopped(&self) {
        self.stop_asked().await;
        let open: Vec<Rc<Connection>> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        for connection in &open {
            connection.close();
        }
        let deadline = Instant::now() + DRAIN_MAX;
        wait_until(deadline, || open.iter().all(|connection| connection.is_drained())).await;
        self.peers.tell_drained();
        wait_until(deadline, || self.peers.are_drained()).await;
    }

    /// The shards of this core.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &Rc<Shard>> {
        self.shards.values()
    }
}

/// Waits until something holds, or until `deadline`.
async fn wait_until(deadline: Instant, holds: impl Fn() -> bool) {
    while !holds() && Instant::now() < deadline {
        sleep(DRAIN_PAUSE).await;
    }
}

enum Route {
    Shard(ShardId),
    Status {
        verbose: bool,
    },
    /// Answered on the spot.
    Here(Body),
}

/// Who is at the other end of a connection.
#[derive(Default)]
pub(crate) struct Sender {
    /// The replica that introduced itself there; clients do not.
    replica: Cell<Option<ReplicaId>>,
}

/// One open connection, counted.
pub(crate) struct OpenConnection(Rc<CoreMetrics>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.add(-1);
    }
}

/// Runs the loops of a core that has its shards.
pub(crate) fn start_loops(core: &Rc<Core>, listeners: Vec<TcpListener>) {
    watch_executor(&core.registry);
    spawn(Class::Request, "mesh receiver", Rc::clone(core).serve_peers());
    for listener in listeners {
        spawn(Class::Request, "acceptor", Rc::clone(core).accept(listener));
    }
}
