//! The network between the nodes, and each node's sockets.
//!
//! ```text
//!   send ─► wire (under way, in order) ──arrival──► inbox (unread) ─► recv
//!             │  link cut or host down: tried again, until the sender's side breaks       one `Half` per direction
//!             └─ nobody there: the sender's side is reset                                 of a connection
//! ```
//!
//! Connections are TCP streams: bytes arrive in order or not at all. So what a network does to packets shows as follows. A packet that is
//! dropped or overtaken shows as delay of it and of all after it on the connection, while other connections go on. Loss for good shows as
//! a side that breaks, at any point of the stream, without telling what the other side got. Duplicates show as requests that a client
//! sends again on a new connection although the old one had delivered them ([`FaultKind::NetDuplicate`](super::FaultKind::NetDuplicate)).
//!
//! Within a node nothing goes wrong but by its end. A partition cuts directed links. What is sent over a cut link is tried again with growing pauses; when nothing was acknowledged for a
//! while, the sender's side breaks with ETIMEDOUT and the other side learns nothing: it is half open. The same happens with
//! acknowledgements: with only the way back cut, data arrives and the sender's side breaks all the same.
//!
//! Limits: bytes per direction of a connection (`socket_buffer`), connections that wait for an accept (the listener's backlog).

mod connect;
mod links;
mod tcp;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

pub use self::links::PartitionId;
pub(super) use self::links::both_ways;
use super::random::Rng;
use super::state::NodeId;
use crate::driver::OpKey;

impl NodeId {
    /// The node's address: 10.0.0.1 for the first. Only the first 65,279 nodes have one.
    pub const fn ip(self) -> Ipv4Addr {
        let [high, low] = (self.0 + 1).to_be_bytes();
        Ipv4Addr::new(10, 0, high, low)
    }

    /// The node's address with a port.
    pub const fn addr(self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip()), port)
    }
}

/// First of the ports that are given out.
const EPHEMERAL_FIRST: u16 = 32_768;

/// First pause before something unacknowledged is sent again; doubled each time, up to [`RETRY_MAX_NS`].
const RETRY_MIN_NS: u64 = 200_000_000;
const RETRY_MAX_NS: u64 = 1_600_000_000;

/// What happens in the network at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetEvent {
    /// A connect reaches its target, or tries again.
    Connect { core: usize, key: OpKey, attempt: u32, since: u64 },
    /// The wire from `side` of a connection has something for the other side, or tries again.
    Arrive { conn: u64, side: usize },
    /// A reset reaches `side`, unless the link from the other one is cut.
    Reset { conn: u64, side: usize },
}

/// Who holds one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A core has a handle, or is about to get it from a listener's backlog.
    Core(usize),
    /// A listener: nobody has accepted it yet.
    Backlog(u64),
    /// Nobody: closed, though what was sent before may still be under way.
    Closed,
    /// Nobody: the machine has forgotten it.
    Gone,
}

struct End {
    node: usize,
    owner: Owner,
    addr: SocketAddr,
    recvs: VecDeque<OpKey>,
    sends: VecDeque<OpKey>,
    /// What every op gets from now on.
    broken: Option<Errno>,
    recv_shut: bool,
}

impl End {
    fn new(node: usize, owner: Owner, addr: SocketAddr) -> End {
        End { node, owner, addr, recvs: VecDeque::new(), sends: VecDeque::new(), broken: None, recv_shut: false }
    }

    fn is_held(&self) -> bool {
        matches!(self.owner, Owner::Core(_) | Owner::Backlog(_))
    }
}

/// What a fault does when a segment arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// Both sides are reset after a part of it.
    Cut,
    /// It arrives, and its sender is reset.
    SentTwice,
}

struct Segment {
    arrives: u64,
    bytes: Vec<u8>,
    /// The end of the stream follows.
    last: bool,
    blow: Option<Blow>,
}

/// One direction.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a stream")]
struct Half {
    wire: VecDeque<Segment>,
    inbox: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were read already.
    read: usize,
    /// Bytes on the wire and unread.
    held: usize,
    unread: usize,
    /// Bytes that arrived and whose acknowledgement did not get back.
    unacknowledged: bool,
    fin_sent: bool,
    fin_arrived: bool,
    /// An arrival is among the events.
    armed: bool,
    /// Since when nothing was acknowledged, how often it was tried again, and when the sender gives up.
    stalled: Option<Stall>,
}

#[derive(Clone, Copy, Debug)]
struct Stall {
    tries: u32,
    gives_up_at: u64,
}

struct Conn {
    /// 0: who connected; 1: who accepted.
    ends: [End; 2],
    /// By sending side.
    halves: [Half; 2],
}

struct Listener {
    node: usize,
    core: usize,
    addr: SocketAddr,
    reuse_port: bool,
    backlog_max: usize,
    /// Connections that wait for an accept.
    backlog: VecDeque<u64>,
    /// Accepts that wait for a connection; `true`: stays armed after one.
    accepts: VecDeque<(OpKey, bool)>,
}

/// All connections, listeners and links.
pub(super) struct Network {
    rng: Rng,
    conns: BTreeMap<u64, Conn>,
    listeners: BTreeMap<u64, Listener>,
    next_id: u64,
    /// Per node.
    next_port: Vec<u16>,
    /// Partitions that cut each directed link, by from * nodes + to.
    cuts: Vec<u16>,
    partitions: BTreeMap<u64, Vec<(usize, usize)>>,
}

impl Network {
    pub fn new(rng: Rng) -> Network {
        Network {
            rng,
            conns: BTreeMap::new(),
            listeners: BTreeMap::new(),
            next_id: 1,
            next_port: Vec::new(),
            cuts: Vec::new(),
            partitions: BTreeMap::new(),
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// Whether `addr` can be bound on, or means, the node itself.
fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    }
}

/// The node with this address.
fn node_of(ip: IpAddr) -> Option<usize> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [10, 0, high, low] => usize::from(u16::from_be_bytes([high, low])).checked_sub(1),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests;
