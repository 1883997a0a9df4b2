//! Listening, connecting, accepting.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

use super::{Conn, EPHEMERAL_FIRST, End, Half, Listener, NetEvent, Owner, RETRY_MAX_NS, RETRY_MIN_NS};
use super::{is_loopback, node_of};
use crate::driver::{ListenOptions, Op, OpKey, OpOutput};
use crate::sim::events::Event;
use crate::sim::state::{NodeId, Opened, State};

impl State {
    /// One way between two nodes, without faults.
    pub(super) fn network_latency(&mut self, from: usize, to: usize) -> u64 {
        let latencies = &self.config.latencies;
        let range = if from == to { &latencies.loopback } else { &latencies.network };
        self.network.rng.duration(range.clone()).as_nanos() as u64
    }

    pub(super) fn listen(&mut self, core: usize, addr: SocketAddr, options: ListenOptions) -> io::Result<OpOutput> {
        let node = self.cores[core].node;
        if !(addr.ip().is_unspecified() || is_loopback(addr.ip()) || node_of(addr.ip()) == Some(node)) {
            return Err(Errno::ADDRNOTAVAIL.into());
        }
        let clashes = |other: &Listener, port: u16| {
            let same_place = other.addr.ip() == addr.ip()
                || other.addr.is_ipv4() == addr.is_ipv4()
                    && (other.addr.ip().is_unspecified() || addr.ip().is_unspecified());
            other.node == node && other.addr.port() == port && same_place
        };
        let mut listeners = self.network.listeners.values();
        let port = if addr.port() == 0 {
            self.free_port(node)?
        } else if listeners.any(|l| clashes(l, addr.port()) && !(l.reuse_port && options.reuse_port)) {
            return Err(Errno::ADDRINUSE.into());
        } else {
            addr.port()
        };
        let local = SocketAddr::new(addr.ip(), port);
        let id = self.network.fresh_id();
        self.network.listeners.insert(
            id,
            Listener {
                node,
                core,
                addr: local,
                reuse_port: options.reuse_port,
                backlog_max: options.backlog.max(1) as usize,
                backlog: VecDeque::new(),
                accepts: VecDeque::new(),
            },
        );
        let listener = self.cores[core].adopt(Opened::Listener(id));
        Ok(OpOutput::Listening { listener, local })
    }

    /// A port that nobody on the node listens on.
    fn free_port(&mut self, node: usize) -> io::Result<u16> {
        for _ in EPHEMERAL_FIRST..=u16::MAX {
            let next = &mut self.network.next_port[node];
            *next = next.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
            let port = *next;
            let taken = |l: &Listener| l.node == node && l.addr.port() == port;
            if !self.network.listeners.values().any(taken) {
                return Ok(port);
            }
        }
        Err(Errno::ADDRINUSE.into())
    }

    pub(super) fn start_connect(&mut self, core: usize, key: OpKey, addr: SocketAddr) {
        let node = self.cores[core].node;
        let target = self.target_of(node, addr).unwrap_or(node);
        let round_trip = self.network_latency(node, target) + self.network_latency(target, node);
        let event = NetEvent::Connect { core, key, attempt: 0, since: self.now };
        self.events.push(self.now + round_trip, Event::Net(event));
    }

    fn target_of(&self, node: usize, addr: SocketAddr) -> Option<usize> {
        if is_loopback(addr.ip()) || addr.ip().is_unspecified() {
            return Some(node);
        }
        node_of(addr.ip()).filter(|&target| target < self.nodes.len())
    }

    /// A connect reaches its target: it is accepted into a backlog, refused, or tried again later.
    pub(super) fn try_connect(&mut self, core: usize, key: OpKey, attempt: u32, since: u64) {
        let Some(Op::Connect { addr }) = self.cores[core].flight(key).map(|flight| &flight.op) else { return };
        let addr = *addr;
        let node = self.cores[core].node;
        let Some(target) = self.target_of(node, addr) else {
            return self.finish_connect(core, key, Err(Errno::HOSTUNREACH.into()));
        };
        if self.reaches(node, target) && self.reaches(target, node) {
            match self.knock(target, addr) {
                Ok(Some(listener)) => return self.establish(core, key, addr, listener),
                Ok(None) => {} // Its backlog is full, and the kernel says nothing.
                Err(refused) => return self.finish_connect(core, key, Err(refused)),
            }
        }
        if self.now - since >= self.config.connect_timeout.as_nanos() as u64 {
            return self.finish_connect(core, key, Err(Errno::TIMEDOUT.into()));
        }
        let pause = (RETRY_MIN_NS << attempt.min(4)).min(RETRY_MAX_NS);
        let event = NetEvent::Connect { core, key, attempt: attempt + 1, since };
        self.events.push(self.now + pause, Event::Net(event));
    }

    /// A listener of `target` with room in its backlog, by seed among those that share the port.
    fn knock(&mut self, target: usize, addr: SocketAddr) -> io::Result<Option<u64>> {
        let hears = |listener: &Listener| {
            let at = listener.addr.ip();
            let same_place =
                at == addr.ip() || at.is_unspecified() && at.is_ipv4() == addr.is_ipv4() || addr.ip().is_unspecified();
            listener.node == target && listener.addr.port() == addr.port() && same_place
        };
        let found: Vec<u64> =
            self.network.listeners.iter().filter(|(_, listener)| hears(listener)).map(|(&id, _)| id).collect();
        if found.is_empty() {
            return Err(Errno::CONNREFUSED.into());
        }
        let chosen = found[self.network.rng.index(found.len())];
        let listener = &self.network.listeners[&chosen];
        Ok((listener.backlog.len() < listener.backlog_max).then_some(chosen))
    }

    fn establish(&mut self, core: usize, key: OpKey, addr: SocketAddr, listener: u64) {
        let node = self.cores[core].node;
        let port = match self.free_port(node) {
            Ok(port) => port,
            Err(error) => return self.finish_connect(core, key, Err(error)),
        };
        let ip = if is_loopback(addr.ip()) || addr.ip().is_unspecified() {
            addr.ip()
        } else {
            NodeId(node as u16).ip().into()
        };
        let local = SocketAddr::new(ip, port);
        let conn = self.network.fresh_id();
        let target = self.network.listeners[&listener].node;
        let ends = [End::new(node, Owner::Core(core), local), End::new(target, Owner::Backlog(listener), addr)];
        self.network.conns.insert(conn, Conn { ends, halves: [Half::default(), Half::default()] });
        self.network.listeners.get_mut(&listener).expect("just chosen").backlog.push_back(conn);
        let socket = self.cores[core].adopt(Opened::Socket { conn, side: 0 });
        self.finish_connect(core, key, Ok(OpOutput::Connected { socket, local }));
        self.serve_accepts(listener);
    }

    fn finish_connect(&mut self, core: usize, key: OpKey, result: io::Result<OpOutput>) {
        let flight = self.cores[core].take_flight(key).expect("the connect was found in flight");
        self.complete(core, key, flight.op, result, false);
    }

    pub(super) fn start_accept(&mut self, core: usize, key: OpKey, op: Op) {
        let Op::Accept { listener: handle, multishot } = op else { unreachable!("the caller matched it") };
        let Opened::Listener(listener) = self.cores[core].opened(handle) else {
            return self.complete(core, key, op, Err(Errno::INVAL.into()), false);
        };
        // A driver may stay armed, and may not: the layer above has to live with both.
        let stays = multishot && self.network.rng.coin();
        self.cores[core].put_flight(key, op);
        self.network.listeners.get_mut(&listener).expect("an open listener").accepts.push_back((key, stays));
        self.serve_accepts(listener);
    }

    /// Gives connections that wait to accepts that wait.
    fn serve_accepts(&mut self, id: u64) {
        loop {
            let listener = self.network.listeners.get_mut(&id).expect("an open listener");
            let (Some(&(key, stays)), Some(&conn)) = (listener.accepts.front(), listener.backlog.front()) else {
                return;
            };
            listener.backlog.pop_front();
            let core = listener.core;
            if !stays {
                listener.accepts.pop_front();
            }
            let Some(ends) = self.network.conns.get_mut(&conn).map(|conn| &mut conn.ends) else { continue };
            ends[1].owner = Owner::Core(core);
            let peer = ends[0].addr;
            let socket = self.cores[core].adopt(Opened::Socket { conn, side: 1 });
            let output = Ok(OpOutput::Accepted { socket, peer });
            if stays {
                let Some(Op::Accept { listener, multishot }) = self.cores[core].flight(key).map(|flight| &flight.op)
                else {
                    unreachable!("an armed accept is in flight")
                };
                let copy = Op::Accept { listener: *listener, multishot: *multishot };
                self.complete(core, key, copy, output, true);
            } else {
                let flight = self.cores[core].take_flight(key).expect("a waiting accept is in flight");
                self.complete(core, key, flight.op, output, false);
            }
        }
    }

    /// Takes a cancelled op out of whatever queue it waits in.
    pub fn withdraw(&mut self, core: usize, key: OpKey) {
        let handle = match self.cores[core].flight(key).map(|flight| &flight.op) {
            Some(
                Op::Accept { listener: handle, .. } | Op::Recv { socket: handle, .. } | Op::Send { socket: handle, .. },
            ) => *handle,
            _ => return,
        };
        match self.cores[core].opened(handle) {
            Opened::Listener(id) => {
                let listener = self.network.listeners.get_mut(&id).expect("an open listener");
                listener.accepts.retain(|&(waiting, _)| waiting != key);
            }
            Opened::Socket { conn, side } => {
                if let Some(conn) = self.network.conns.get_mut(&conn) {
                    conn.ends[side].recvs.retain(|&waiting| waiting != key);
                    conn.ends[side].sends.retain(|&waiting| waiting != key);
                }
            }
            Opened::File(_) => unreachable!("a socket op on a file"),
        }
    }

    /// Stops listening; connections that nobody accepted are reset.
    pub fn close_listener(&mut self, id: u64) {
        let listener = self.network.listeners.remove(&id).expect("a listener is closed once");
        for conn in listener.backlog {
            self.abandon_end(conn, 1);
        }
    }
}
