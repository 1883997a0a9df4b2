//! Where to send a request: from the hello's map to a core's own port.

use std::time::{Duration, Instant};

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

/// At most this often is a map asked for again.
const MAP_REFRESH_AFTER: Duration = Duration::from_secs(1);

/// Whether to say hello again because a server called the map wrong. Bounded, so that a server that contradicts its own
/// hello costs few connections.
#[derive(Debug, Default)]
pub(crate) struct MapDoubt {
    is_suspect: bool,
    asked_at: Option<Instant>,
}

impl MapDoubt {
    /// Notes that the map was called wrong.
    pub(crate) fn note(&mut self) {
        self.is_suspect = true;
    }

    /// Whether to ask at `now`; notes that it is done.
    pub(crate) fn ask(&mut self, now: Instant) -> bool {
        if !self.is_suspect || self.asked_at.is_some_and(|at| now.duration_since(at) < MAP_REFRESH_AFTER) {
            return false;
        }
        *self = MapDoubt { is_suspect: false, asked_at: Some(now) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_map_is_asked_for_now_and_then() {
        let (mut doubt, start) = (MapDoubt::default(), Instant::now());
        assert!(!doubt.ask(start), "nobody called it wrong");
        doubt.note();
        assert!(doubt.ask(start) && !doubt.ask(start + MAP_REFRESH_AFTER), "once is enough");
        doubt.note();
        let moments = [Duration::ZERO, MAP_REFRESH_AFTER / 2, MAP_REFRESH_AFTER, MAP_REFRESH_AFTER];
        assert_eq!(moments.map(|after| doubt.ask(start + after)), [false, false, true, false]);
    }

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
