//! Which nodes belong to the cluster, and where they listen.

use crate::raft::types::ReplicaId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

/// Names a cluster. Nodes of different clusters refuse each other, whatever their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a core knows of the other nodes. A clone is the same book.
#[derive(Clone)]
pub struct PeerBook(Rc<Inner>);

struct Inner {
    cluster: ClusterId,
    own: ReplicaId,
    shards: u32,
    ring_vnodes: u32,
    addresses: RefCell<BTreeMap<u64, SocketAddr>>,
}

impl PeerBook {
    /// The book of the node that `own` names. `shards` and `ring_vnodes` must be the same on all nodes of a cluster: they
    /// decide where a namespace lives.
    pub fn new(
        cluster: ClusterId,
        own: ReplicaId,
        (shards, ring_vnodes): (u32, u32),
        addresses: BTreeMap<u64, SocketAddr>,
    ) -> PeerBook {
        PeerBook(Rc::new(Inner { cluster, own, shards, ring_vnodes, addresses: RefCell::new(addresses) }))
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// This node, in its present life.
    pub fn own(&self) -> ReplicaId {
        self.0.own
    }

    /// Shards, and virtual nodes of each on the ring.
    pub fn ring(&self) -> (u32, u32) {
        (self.0.shards, self.0.ring_vnodes)
    }

    /// Where a node listens, if that is known.
    pub fn address(&self, node: u64) -> Option<SocketAddr> {
        self.0.addresses.borrow().get(&node).copied()
    }

    /// A node listens there from now on; connections that are open stay.
    pub fn set_address(&self, node: u64, address: SocketAddr) {
        self.0.addresses.borrow_mut().insert(node, address);
    }

    /// Whether a node of this number belongs to the cluster.
    pub fn knows(&self, node: u64) -> bool {
        node == self.0.own.node || self.0.addresses.borrow().contains_key(&node)
    }
}
