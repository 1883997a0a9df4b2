//! Where to send a request: from the hello's map to a core's own port.

use crate::ids::ShardId;
use crate::ring::Ring;
use crate::schema::HelloReply;

/// What a client knows of a server: the ring, the core of each shard, the port of each core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMap {
    /// Identity of the server's store.
    pub store: [u8; 16],
    /// Maps namespaces to shards.
    pub ring: Ring,
    shard_cores: Vec<u16>,
    core_ports: Vec<u16>,
}

impl RouteMap {
    /// The map of a checked hello.
    pub fn new(hello: &HelloReply) -> RouteMap {
        RouteMap {
            store: hello.store,
            ring: Ring::new(hello.shards, hello.ring_vnodes),
            shard_cores: hello.shard_cores.clone(),
            core_ports: hello.core_ports.clone(),
        }
    }

    /// The core of a shard and its port; `None` for [`ShardId::ANY`] and where the core has no port of its own.
    pub fn core_of(&self, shard: ShardId) -> Option<(u16, u16)> {
        let core = *self.shard_cores.get(shard.0 as usize)?;
        let port = *self.core_ports.get(usize::from(core))?;
        (port != 0).then_some((core, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_lead_to_ports() {
        let map = RouteMap::new(&HelloReply {
            version: 1,
            server: String::new(),
            store: [1; 16],
            shards: 3,
            ring_vnodes: 10,
            core_ports: vec![100, 0],
            shard_cores: vec![0, 1, 0],
            frame_body_bytes_max: 1 << 20,
            in_flight_max: 1,
        });
        let ports = [0, 1, 2, 3, ShardId::ANY.0].map(|shard| map.core_of(ShardId(shard)));
        assert_eq!(ports, [Some((0, 100)), None, Some((0, 100)), None, None]);
        assert_eq!((map.ring.shards(), map.ring.vnodes()), (3, 10));
    }
}
