//! How a node takes part in a cluster: what it is told, and whom it lets speak to its replicas.
//!
//! ```text
//!   connection ─ PeerHello ─► greet: same cluster, this node, same ring, a known node ─► the connection is that replica's
//!   connection ─ Vote, Append … ─► check: by a replica that said so, for itself ─► dispatch like any request
//! ```
//!
//! Nothing authenticates a node yet: like the rest of the protocol this is for networks that are trusted.

use crate::raft::{ClusterId, GroupPeers, LinkOptions, PeerBook, PeerLinks, RaftSettings, ReplicaId};
use crate::shard::superblock::Member;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::peer::{ArchivedPeerHello, ArchivedReplica, PeerHelloReply, Replica};
use gristmill_rpc::validate::ReplicaRef;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A node's part in a cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Which cluster.
    pub cluster: ClusterId,
    /// This node, and which life of it. A node that lost its data comes back with the next incarnation.
    pub replica: ReplicaId,
    /// Where each other node listens, by id.
    pub peers: BTreeMap<u64, SocketAddr>,
    /// Founds the groups of all shards if their logs are empty. Exactly one node of a new cluster does.
    pub found: bool,
    /// Timers of all groups. The same on all nodes.
    pub settings: RaftSettings,
    /// How long connections to other nodes wait.
    pub links: LinkOptions,
}

impl ClusterConfig {
    /// The part of `replica`, with default timers; it founds nothing.
    pub fn new(cluster: ClusterId, replica: ReplicaId, peers: BTreeMap<u64, SocketAddr>) -> ClusterConfig {
        let (settings, links) = (RaftSettings::default(), LinkOptions::default());
        ClusterConfig { cluster, replica, peers, found: false, settings, links }
    }

    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.replica.node == 0 || self.replica.incarnation == 0 || self.peers.contains_key(&0) {
            return Err("ids of nodes and of their lives start at 1".to_owned());
        }
        if self.peers.contains_key(&self.replica.node) {
            return Err(format!("node {} is this node; list the others only", self.replica.node));
        }
        if self.found && self.replica.incarnation > 1 {
            return Err(
                "a node that lost its data waits to be added; only one in its first incarnation founds".to_owned()
            );
        }
        Ok(())
    }

    /// Whose data directory it is.
    pub(super) fn member(&self) -> Member {
        let ReplicaId { node, incarnation } = self.replica;
        Member { cluster: self.cluster.0, node, incarnation }
    }
}

/// One core's part in the cluster.
pub(crate) struct Cluster {
    links: PeerLinks,
    found: bool,
    settings: RaftSettings,
}

impl Cluster {
    /// `ring` is the number of shards and of virtual nodes per shard.
    pub(super) fn new(config: &ClusterConfig, ring: (u32, u32)) -> Cluster {
        let book = PeerBook::new(config.cluster, config.replica, ring, config.peers.clone());
        Cluster { links: PeerLinks::new(book, config.links), found: config.found, settings: config.settings }
    }

    fn book(&self) -> &PeerBook {
        self.links.book()
    }

    /// This node.
    pub(super) fn replica(&self) -> ReplicaId {
        self.book().own()
    }

    pub(super) fn settings(&self) -> RaftSettings {
        self.settings
    }

    /// What a group needs to reach the others.
    pub(super) fn group_peers(&self) -> GroupPeers {
        GroupPeers { links: self.links.clone(), found: self.found }
    }

    /// Lets another node in: who it is, and what it is answered.
    pub(super) fn greet(&self, hello: &ArchivedPeerHello) -> Result<(ReplicaId, PeerHelloReply), Rejection> {
        let (book, from) = (self.book(), replica_of(&hello.from));
        let (cluster, ring) = (ClusterId(hello.cluster), (hello.shards.to_native(), hello.ring_vnodes.to_native()));
        let own = book.own();
        let problem = if cluster != book.cluster() {
            format!("it belongs to cluster {cluster}, this node to {}", book.cluster())
        } else if hello.to_node.to_native() != own.node {
            format!("it looks for node {}, this is node {}", hello.to_node, own.node)
        } else if ring != book.ring() {
            format!("it has (shards, virtual nodes) {ring:?}, this node {:?}; all nodes need the same", book.ring())
        } else if from.node == own.node || !book.knows(from.node) {
            "it is not among the nodes that this one was told of".to_owned()
        } else {
            let replica = Replica { node: own.node, incarnation: own.incarnation };
            return Ok((from, PeerHelloReply { replica }));
        };
        Err(Rejection::new(ErrorCode::NotPeer, format!("node {} is not let in: {problem}", from.node)))
    }

    /// Lets a message pass that `from` sends for itself.
    pub(super) fn check(from: Option<ReplicaId>, message: &ReplicaRef<'_>) -> Result<(), Rejection> {
        let from = from.ok_or_else(not_greeted)?;
        let sender = replica_of(match message {
            ReplicaRef::PreVote(request) => &request.ballot.candidate,
            ReplicaRef::Vote(request) => &request.ballot.candidate,
            ReplicaRef::Append(request) => &request.ballot.candidate,
            ReplicaRef::TransferLeader(request) => &request.ballot.candidate,
        });
        if sender == from {
            return Ok(());
        }
        let message = format!("replica {from} speaks for replica {sender}; each speaks for itself");
        Err(Rejection::new(ErrorCode::NotPeer, message))
    }
}

/// The answer to nodes and operators where there is no cluster.
pub(super) fn not_clustered() -> Rejection {
    Rejection::new(ErrorCode::NotPeer, "this node runs alone; start it as a node of a cluster")
}

fn not_greeted() -> Rejection {
    Rejection::new(
        ErrorCode::NotPeer,
        "messages between nodes begin with PeerHello, which this connection has not seen",
    )
}

fn replica_of(archived: &ArchivedReplica) -> ReplicaId {
    ReplicaId { node: archived.node.to_native(), incarnation: archived.incarnation.to_native() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_rpc::body::{access, archive};
    use gristmill_rpc::peer::{ArchivedVoteRequest, Ballot, PeerHello, VoteRequest};

    fn replica(node: u64) -> ReplicaId {
        ReplicaId { node, incarnation: 1 }
    }

    fn cluster() -> Cluster {
        let peers = BTreeMap::from([(2, "127.0.0.1:2".parse().expect("an address"))]);
        Cluster::new(&ClusterConfig::new(ClusterId([7; 16]), replica(1), peers), (4, 150))
    }

    fn hello(node: u64) -> PeerHello {
        let from = Replica { node, incarnation: 1 };
        PeerHello { cluster: [7; 16], from, to_node: 1, shards: 4, ring_vnodes: 150 }
    }

    fn greet(hello: &PeerHello) -> Result<ReplicaId, String> {
        let body = archive(hello);
        let greeted = cluster().greet(access(&body).expect("just archived"));
        greeted.map(|(from, _)| from).map_err(|rejection| {
            assert_eq!(rejection.code, ErrorCode::NotPeer);
            rejection.message
        })
    }

    #[test]
    fn only_known_nodes_of_the_same_cluster_and_ring_are_let_in() {
        assert_eq!(greet(&hello(2)), Ok(replica(2)));
        for (stranger, why) in [
            (hello(3), "not among"),
            (hello(1), "not among"),
            (PeerHello { cluster: [8; 16], ..hello(2) }, "belongs to cluster 0808"),
            (PeerHello { to_node: 3, ..hello(2) }, "looks for node 3"),
            (PeerHello { shards: 5, ..hello(2) }, "all nodes need the same"),
        ] {
            let refused = greet(&stranger).expect_err("not let in");
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_replica_speaks_for_itself_only() {
        let ballot = Ballot { term: 3, candidate: Replica { node: 2, incarnation: 1 }, committed: false };
        let to = Replica { node: 1, incarnation: 1 };
        let body = archive(&VoteRequest { to, ballot, last: None, transfer: false });
        let message = ReplicaRef::Vote(access::<ArchivedVoteRequest>(&body).expect("just archived"));
        assert_eq!(Cluster::check(Some(replica(2)), &message), Ok(()));
        for from in [None, Some(replica(3)), Some(ReplicaId { node: 2, incarnation: 2 })] {
            assert_eq!(Cluster::check(from, &message).expect_err("refused").code, ErrorCode::NotPeer, "{from:?}");
        }
    }

    #[test]
    fn a_part_in_a_cluster_names_the_others_only() {
        let config = |node, peers: &[u64]| {
            let address: SocketAddr = "127.0.0.1:2".parse().expect("an address");
            let peers = peers.iter().map(|node| (*node, address)).collect();
            ClusterConfig::new(ClusterId([7; 16]), replica(node), peers).check()
        };
        assert_eq!(config(1, &[2, 3]), Ok(()));
        assert!(config(0, &[2]).is_err() && config(1, &[1]).is_err() && config(1, &[0]).is_err());
        for (incarnation, found, right) in [(1, true, true), (2, false, true), (2, true, false)] {
            let replica = ReplicaId { node: 1, incarnation };
            let config = ClusterConfig { found, ..ClusterConfig::new(ClusterId([7; 16]), replica, BTreeMap::new()) };
            assert_eq!(config.check().is_ok(), right, "incarnation {incarnation}, founds {found}");
        }
    }
}
